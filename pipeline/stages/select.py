"""Select: the best videos of each category by video-text similarity, then a random rest.

Two passes over the embeddings keep memory bounded: the first finds the videos to take (see `select_quota`), the
second writes every video's row or reject. A similarity is computed the same way in both, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import yaml
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.models.cosine import Vectors, cosines
from pipeline.models.registry import identity, load_video_text_embedder, options
from pipeline.models.spec import ModelSpec
from pipeline.records import Grain
from pipeline.resources import resource
from pipeline.stage import GlobalStage, Reader, Row, UserError, Writer, digest
from pipeline.stages.select_quota import Assignment, Draw, Quotas, Scores


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SelectConfig:
    """Which videos are taken."""

    model: ModelSpec
    """The video-text embedder; the one that `embed` used."""
    categories: Annotated[str, Field(min_length=1)] = field(default="categories", metadata={"place": True})
    """A table of category sentences: a name in manifests/, or the path of a YAML file. Default: the 29 of Tab. A2."""
    quota: Annotated[int, Field(ge=0)] = 1500
    """Videos taken for each category (sec. 3.2, B.2)."""
    random_rest: Annotated[int, Field(ge=0)] = 10_000
    """Videos drawn at random from those that no category took (sec. 3.2; App. B.2 draws from the whole set, where a
    draw may hit a video that is taken already; here it never does)."""
    assignment: Assignment = "exclusive"
    """`exclusive`: a video serves one category, best match first. `independent`: each category takes its best, and a
    video may serve several (the paper's plain top-k)."""
    seed: int = 0
    """Seed of the random rest."""


class Select(GlobalStage):
    """All embedded videos to those that a category or the draw takes."""

    name: ClassVar[str] = "select"
    grain_in: ClassVar[Grain] = Grain.VIDEO
    grain_out: ClassVar[Grain] = Grain.VIDEO
    reads: ClassVar[tuple[str, ...]] = ("embed.embedding", "embed.model")
    extra_tables: ClassVar[tuple[str, ...]] = ("select_scores",)

    def __init__(self, config: SelectConfig) -> None:
        self.config = config

    @cached_property
    def sentences(self) -> list[str]:
        """The category sentences, in the table's order. Raises UserError."""
        return load_categories(self.config.categories)

    def depends_on(self) -> Mapping[str, str]:
        return {"categories": digest(self.sentences), **identity("video_text_embedder", self.config.model)}

    def run(self, reader: Reader, writer: Writer) -> None:
        texts_CD = load_video_text_embedder(_on_cpu(self.config.model)).embed_texts(self.sentences)
        assert np.all(np.isfinite(texts_CD)), f"{self.config.model.key}: the category embeddings must be finite"
        chosen = self._choose(reader, writer, texts_CD)
        for ids, scores_NC in self._scored(reader, texts_CD):
            for video_id, ranking, scores in zip(ids, _rankings(scores_NC), scores_NC, strict=True):
                if video_id in chosen:
                    writer.row("select", self._row(video_id, chosen[video_id], ranking, scores))
                else:
                    best = ranking[0]
                    detail = f"best category {self.sentences[best]!r} at similarity {scores[best]:.4f}"
                    writer.reject(video_id, "not_selected", detail)

    def _choose(self, reader: Reader, writer: Writer, texts_CD: Vectors) -> dict[str, list[int]]:
        """The videos to take, each with the categories that took it (none: drawn at random). Writes all scores."""
        config, count = self.config, len(self.sentences)
        quotas = Quotas(count, config.quota, config.assignment)
        draw = Draw(config.seed, config.random_rest + config.quota * count)
        for ids, scores_NC in self._scored(reader, texts_CD):
            quotas.add(ids, scores_NC)
            draw.add(ids)
            for video_id, scores in zip(ids, scores_NC.tolist(), strict=True):
                for sentence, score in zip(self.sentences, scores, strict=True):
                    writer.row("select_scores", {"video_id": video_id, "category": sentence, "similarity": score})
        chosen = quotas.assign()
        chosen.update((video_id, []) for video_id in draw.draw(config.random_rest, without=list(chosen)))
        return chosen

    def _scored(self, reader: Reader, texts_CD: Vectors) -> Iterator[tuple[list[str], Scores]]:
        """Stream batches of video ids with their similarities [N, C] to the categories."""
        key = self.config.model.key
        for rows in reader.batches(self.reads):
            for row in rows:
                if row["model"] != key:
                    raise UserError(
                        f"select: video {row['video_id']} was embedded by {row['model']}, but select.model is {key}; "
                        "set the same model for embed and select"
                    )
            if rows:
                ids: list[str] = [row["video_id"] for row in rows]
                scores_NC = cosines(np.stack([row["embedding"] for row in rows]), texts_CD)
                bad = np.flatnonzero(~np.isfinite(scores_NC).all(axis=1))
                assert len(bad) == 0, f"embeddings that are not finite: {[ids[i] for i in bad[:5]]}"
                yield ids, scores_NC

    def _row(self, video_id: str, taken_by: list[int], ranking: list[int], scores: Scores) -> Row:
        """A row of the select table; `ranking` holds the best two categories, best first."""
        served = taken_by[0] if taken_by else ranking[0]
        others = [c for c in ranking if c != served]
        runner_up = others[0] if others else None
        similarity = float(scores[served])
        return {
            "video_id": video_id,
            "category": self.sentences[served] if taken_by else None,
            "categories": [self.sentences[c] for c in taken_by],
            "similarity": similarity,
            "runner_up": None if runner_up is None else self.sentences[runner_up],
            "margin": None if runner_up is None else similarity - float(scores[runner_up]),
            "selected_by": "category" if taken_by else "random",
        }


def _rankings(scores_NC: Scores) -> list[list[int]]:
    """The best two categories of each video, best first; ties go to the category listed first."""
    ranked: list[list[int]] = np.argsort(-scores_NC, axis=1, kind="stable")[:, :2].tolist()
    return ranked


def _on_cpu(model: ModelSpec) -> ModelSpec:
    """The model for a few sentences: this stage runs in the command's own process, which has no GPU reserved and would
    keep memory of one until it ends. It sees no picture, and a model tries one batch of them when it is loaded."""
    known = options("video_text_embedder", model)
    own = {name: value for name, value in (("device", "cpu"), ("max_batch", 1)) if hasattr(known, name)}
    return replace(model, options={**model.options, **own})


def load_categories(name: str) -> list[str]:
    """Category sentences from manifests/<name>.yaml, or from a YAML file when `name` is a path. Raises UserError."""
    is_path = "/" in name or name.endswith((".yaml", ".yml"))
    wanted = "expected a YAML mapping with a list of sentences under `categories`"
    try:
        path = Path(name) if is_path else resource("manifests", f"{name}.yaml")
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except LookupError as error:
        raise UserError(f"select.categories: {error.args[0]}; or give the path of a YAML file") from error
    except OSError as error:
        raise UserError(f"select.categories: cannot read {path} ({error.strerror}); {wanted}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"select.categories: {path} is not YAML ({error}); {wanted}") from error
    sentences = data.get("categories") if isinstance(data, dict) else None
    if not isinstance(sentences, list) or not sentences or not all(isinstance(s, str) and s.strip() for s in sentences):
        raise UserError(f"select.categories: {path} holds no list of sentences; {wanted}")
    twice = sorted({s for s in sentences if sentences.count(s) > 1})
    if twice:
        raise UserError(f"select.categories: {path} lists {twice[0]!r} twice; each category needs its own sentence")
    return list(sentences)
