"""The dataset card, `export/README.md`: Markdown with the front matter that the Hugging Face hub reads.

All text that came from outside (captions, categories, names of collections) is escaped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import yaml

from pipeline.export.figures import Figures, SourceFigures
from pipeline.stage import Row

_MARKDOWN = re.compile(r"([\\`*_\[\]|~#$])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_FENCE = "~~~~~~"


@dataclass(frozen=True)
class CardFacts:
    """What the card says beside the figures."""

    title: str
    schema: pa.Schema
    llava_name: str
    clips_with_file: int
    recipe: Mapping[str, Any]
    """The profile and the stages' configs as plain values; empty when unknown."""


def escape(text: str) -> str:
    """Text from outside as one line of Markdown that shows it letter by letter."""
    line = " ".join(_CONTROL.sub(" ", text).split())
    return html.escape(_MARKDOWN.sub(r"\\\1", line), quote=False)


def render(facts: CardFacts, figures: Figures) -> str:
    """The whole card."""
    sections = (
        _front_matter(facts, figures),
        f"# {escape(facts.title)}",
        _summary(figures),
        _sources(figures),
        _examples(figures.examples),
        _loading() if figures.total.clips else "",
        _llava(facts, figures),
        _made(facts, figures),
        _columns(facts.schema),
        _limits(figures),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(facts: CardFacts, figures: Figures) -> str:
    values = {
        "pretty_name": facts.title,
        "license": "unknown",
        "task_categories": ["video-text-to-text"],
        "size_categories": [_size_category(figures.total.clips)],
        "tags": ["video", "instruction-tuning", "hicom"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _size_category(clips: int) -> str:
    """The hub's name for a size: n<1K, 1K<n<10K, ..."""
    bounds = ["1K", "10K", "100K", "1M", "10M", "100M"]
    over = sum(clips >= 10 ** (3 + index) for index in range(len(bounds)))
    if over == 0:
        return "n<1K"
    return f"{bounds[over - 1]}<n<{bounds[over]}" if over < len(bounds) else "n>100M"


def _summary(figures: Figures) -> str:
    total = figures.total
    if not total.clips:
        return (
            "**This export is empty: no clip came through all stages.** `hicom rejects RUN` says why. The files are "
            "there and hold no rows; `load_dataset` refuses a dataset without rows."
        )
    return (
        f"{total.clips:,} clips, {len(total.videos):,} source videos, {total.pairs:,} instruction-answer pairs; "
        f"a clip is {_mean_s(total)} s long on average, {total.seconds / 3600:,.2f} hours in all. Made the way the "
        "paper *Hybrid-Level Instruction Injection for Video Token Compression in Multi-modal Large Language Models* "
        "(HICom, CVPR 2025, arXiv 2503.16036) describes its HICom-248K; it is not that dataset."
    )


def _mean_s(source: SourceFigures) -> str:
    return f"{source.seconds / source.clips:.2f}" if source.clips else "-"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _sources(figures: Figures) -> str:
    if not figures.total.clips:
        return ""
    named = [(escape(name), figures.datasets[name]) for name in sorted(figures.datasets)]
    rows = [
        (
            name,
            f"{len(source.videos):,}",
            f"{source.clips:,}",
            f"{source.clips / figures.total.clips:.1%}",
            f"{source.pairs:,}",
            _mean_s(source),
        )
        for name, source in [*named, ("**all**", figures.total)]
    ]
    text = "## Figures\n\n" + _table(("source", "videos", "clips", "share", "pairs", "mean length, s"), rows)
    chosen = sum(figures.categories.values())
    by_category = [(escape(name), f"{clips:,}") for name, clips in sorted(figures.categories.items())]
    by_category.append(("*none: drawn at random*", f"{figures.total.clips - chosen:,}"))
    return f"{text}\n\n{_table(('category', 'clips'), by_category)}"


def _examples(rows: list[Row]) -> str:
    if not rows:
        return ""
    parts = ["## Examples"]
    for row in rows:
        parts.append(f"Clip `{row['clip_id']}`, {row['duration_s']:.2f} s. Caption: {escape(row['caption'])}")
        pairs = (f"- Instruction: {escape(p['instruction'])}\n  Answer: {escape(p['answer'])}" for p in row["pairs"])
        parts.append("\n".join(pairs))
    return "\n\n".join(parts)


def _loading() -> str:
    return """## Load it

In the folder of this file, with Hugging Face datasets:

```python
from datasets import load_dataset

clips = load_dataset("parquet", data_files="data/train-*.parquet", split="train")
```

or with DuckDB, one row a pair:

```sql
SELECT clip_id, clip_path, unnest(pairs, recursive := true) FROM 'data/train-*.parquet';
```"""


def _llava(facts: CardFacts, figures: Figures) -> str:
    virtual = figures.total.clips - facts.clips_with_file
    left_out = f" {virtual:,} virtual clips have no file and are not in it." if virtual else ""
    return f"""## Train the compressor on it

`{facts.llava_name}` holds {facts.clips_with_file:,} clips in the LLaVA format that the authors' trainer reads
(github.com/lntzm/HICom): a clip is an entry, each of its pairs two turns. `video` is relative to `split_videos`.
Text in it that the trainer would take for a control token, such as `<video>`, stands without its brackets.{left_out}
The trainer's data file, with this folder as `--data_folder` and `json_path` written in full:

```yaml
datasets:
  - json_path: {facts.llava_name}
    data_root: split_videos
    sampling_strategy: all
```"""


def _made(facts: CardFacts, figures: Figures) -> str:
    roles = {
        "video_model": "similarity to the categories",
        "frame_model": "keyframes",
        "describer": "captions and pairs",
    }
    models = [
        (role, ", ".join(escape(key) for key in sorted(figures.models[column])))
        for column, role in roles.items()
        if column in figures.models
    ]
    methods = ", ".join(f"{name} {clips:,}" for name, clips in sorted(figures.methods.items()))
    parts = ["## How it was made"]
    if models:
        parts.append(_table(("for", "model"), models))
    if methods:
        parts.append(f"Clips by the way they were cut: {methods}.")
    if facts.recipe:
        config = yaml.safe_dump(dict(facts.recipe), sort_keys=False, allow_unicode=True)
        parts.append(f"Settings of every stage:\n\n{_FENCE}yaml\n{config}{_FENCE}")
    else:
        parts.append("The settings of every stage are in the run folder's `run.yaml`.")
    return "\n\n".join(parts)


def _columns(schema: pa.Schema) -> str:
    rows = [(f"`{field.name}`", f"`{field.type}`", escape((field.metadata or {})[b"doc"].decode())) for field in schema]
    return "## Columns\n\n" + _table(("column", "type", "meaning"), rows)


def _limits(figures: Figures) -> str:
    parts = [
        "## Limits",
        "- Licence: the videos' own licences and terms bind whoever uses or passes on the clips and what was written "
        "about them; so may the describer's. This card cannot know them: set `license` above before publishing.",
        "- Captions and pairs were written by a program and checked by rules, not by people.",
    ]
    if figures.built_in_describer:
        parts.append(
            "- The built-in describer states measured colours, brightness and motion. It shows that the pipeline "
            "works and is no substitute for a vision-language model: do not train on its text."
        )
    return "\n".join([parts[0], "", *parts[1:]])
