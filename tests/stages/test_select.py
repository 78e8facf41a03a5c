from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.models import registry
from pipeline.models.registry import Family
from pipeline.models.spec import ModelSpec
from pipeline.records import TABLES
from pipeline.stage import Row, UserError, Writer
from pipeline.stages import select as select_module
from pipeline.stages.select import Select, SelectConfig, load_categories
from pipeline.stages.select_quota import Assignment, Draw, Quotas, Scores

SPEC = ModelSpec(family="fake", name="text", revision="1")
DIM = 16


class Rows:
    """A reader over rows in memory, in batches of uneven size."""

    def __init__(self, rows: list[Row], sizes: tuple[int, ...] = (3, 1, 7)) -> None:
        self.rows, self.sizes = rows, sizes

    def batches(self, columns: Iterable[str], *, ordered: bool = False) -> Iterator[list[Row]]:
        names = [column.partition(".")[2] for column in columns]
        at, turn = 0, 0
        while at < len(self.rows):
            size = self.sizes[turn % len(self.sizes)]
            yield [{name: row[name] for name in ("video_id", *names)} for row in self.rows[at : at + size]]
            at, turn = at + size, turn + 1


class Memory:
    """A writer that keeps everything."""

    def __init__(self) -> None:
        self.tables: dict[str, list[Row]] = {"select": [], "select_scores": []}
        self.rejects: dict[str, tuple[str, str]] = {}

    def row(self, table: str, row: Row) -> None:
        assert set(row) == {column.name for column in TABLES[table]}
        self.tables[table].append(row)

    def reject(self, key: str, reason: str, detail: str) -> None:
        assert key not in self.rejects
        self.rejects[key] = (reason, detail)

    @property
    def selected(self) -> dict[str, Row]:
        return {row["video_id"]: row for row in self.tables["select"]}


class AxisTexts:
    """A text embedder whose sentence number c is the axis c, so that an embedding's numbers are its similarities."""

    key, dim, max_batch = SPEC.key, DIM, 1

    def embed_texts(self, sentences: list[str]) -> npt.NDArray[np.float32]:
        return np.eye(len(sentences), DIM, dtype=np.float32)


@pytest.fixture(autouse=True)
def _fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.MODELS["video_text_embedder"], "fake", Family("none:card", "none:load"))
    monkeypatch.setattr(select_module, "load_video_text_embedder", lambda spec: AxisTexts())


def table(folder: Path, count: int) -> str:
    path = folder / "table.yaml"
    path.write_text("categories:\n" + "".join(f"  - About {chr(97 + c)}.\n" for c in range(count)))
    return str(path)


def video(video_id: str, *similarities: float, model: str = SPEC.key) -> Row:
    embedding = np.zeros(DIM, np.float32)
    embedding[: len(similarities)] = similarities
    return {"video_id": video_id, "embedding": embedding, "model": model}


def run(rows: list[Row], categories: str, **config: Any) -> Memory:
    memory = Memory()
    Select(SelectConfig(model=SPEC, categories=categories, **config)).run(Rows(rows), cast(Writer, memory))
    assert sorted([*memory.selected, *memory.rejects]) == sorted(row["video_id"] for row in rows)
    return memory


def random_videos(count: int, categories: int, seed: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    # two decimals: many ties
    return [video(f"v{i:05d}", *rng.uniform(-1, 1, categories).round(2)) for i in range(count)]


# --- the rows --------------------------------------------------------------------------------------------------


def test_a_video_serves_its_best_match_that_has_room(tmp_path: Path) -> None:
    rows = [video("p", 0.9, 0.8, 0.1), video("q", 0.7, 0.6, 0.0), video("r", 0.2, 0.1, 0.3)]
    memory = run(rows, table(tmp_path, 3), quota=1, random_rest=0)
    assert {i: (row["category"], row["categories"]) for i, row in memory.selected.items()} == {
        "p": ("About a.", ["About a."]),
        "q": ("About b.", ["About b."]),
        "r": ("About c.", ["About c."]),
    }
    q = memory.selected["q"]
    assert (q["runner_up"], q["selected_by"]) == ("About a.", "category")
    assert q["similarity"] == pytest.approx(0.6) and q["margin"] == pytest.approx(-0.1)
    p = memory.selected["p"]
    assert p["runner_up"] == "About b." and p["margin"] == pytest.approx(0.1)


def test_independent_takes_each_category_s_best(tmp_path: Path) -> None:
    rows = [video("p", 0.9, 0.8, 0.1), video("q", 0.7, 0.6, 0.0), video("r", 0.2, 0.1, 0.3)]
    memory = run(rows, table(tmp_path, 3), quota=1, random_rest=0, assignment="independent")
    assert {i: row["categories"] for i, row in memory.selected.items()} == {
        "p": ["About a.", "About b."],
        "r": ["About c."],
    }
    assert memory.selected["p"]["category"] == "About a."
    assert memory.rejects == {"q": ("not_selected", "best category 'About a.' at similarity 0.7000")}


def test_every_video_keeps_all_its_scores(tmp_path: Path) -> None:
    rows = random_videos(50, 4, seed=1)
    memory = run(rows, table(tmp_path, 4), quota=2, random_rest=3)
    scores = {(row["video_id"], row["category"]): row["similarity"] for row in memory.tables["select_scores"]}
    assert len(scores) == len(memory.tables["select_scores"]) == 200
    for row in rows:
        for c in range(4):
            assert scores[row["video_id"], f"About {chr(97 + c)}."] == row["embedding"][c]


def test_the_random_rest_is_drawn_from_what_no_category_took(tmp_path: Path) -> None:
    rows = random_videos(60, 2, seed=2)
    memory = run(rows, table(tmp_path, 2), quota=5, random_rest=20, seed=7)
    by = {i: row["selected_by"] for i, row in memory.selected.items()}
    rest = sorted(i for i, how in by.items() if how == "random")
    others = sorted((row["video_id"] for row in rows if by.get(row["video_id"]) != "category"), key=seeded(7))
    assert rest == sorted(others[:20])
    assert list(by.values()).count("category") == 10 and len(memory.rejects) == 30
    for i in rest:
        row = memory.selected[i]
        assert row["category"] is None and row["categories"] == [] and row["margin"] >= 0
    other = run(rows, table(tmp_path, 2), quota=5, random_rest=20, seed=8)
    assert {i for i, r in other.selected.items() if r["selected_by"] == "random"} != set(rest)


def seeded(seed: int) -> Any:
    return lambda video_id: hashlib.sha256(f"{seed}:{video_id}".encode()).hexdigest()


def test_one_category_has_no_runner_up(tmp_path: Path) -> None:
    memory = run([video("p", 0.5), video("q", 0.4)], table(tmp_path, 1), quota=1, random_rest=1)
    assert all(row["runner_up"] is None and row["margin"] is None for row in memory.selected.values())


@pytest.mark.parametrize("assignment", ["exclusive", "independent"])
def test_more_room_than_videos_takes_all_and_no_room_takes_none(tmp_path: Path, assignment: Assignment) -> None:
    rows, names = random_videos(9, 3, seed=3), table(tmp_path, 3)
    assert run(rows, names, quota=100, random_rest=5, assignment=assignment).rejects == {}
    assert run(rows, names, quota=0, random_rest=0, assignment=assignment).selected == {}
    assert len(run(rows, names, quota=0, random_rest=4, assignment=assignment).selected) == 4
    assert run([], names, assignment=assignment).selected == {}


@pytest.mark.parametrize("assignment", ["exclusive", "independent"])
@pytest.mark.parametrize("seed", range(5))
def test_the_result_does_not_depend_on_arrival(tmp_path: Path, assignment: Assignment, seed: int) -> None:
    rows, names = random_videos(80, 5, seed), table(tmp_path, 5)
    first = run(rows, names, quota=4, random_rest=15, assignment=assignment)
    np.random.default_rng(seed).shuffle(rows)
    memory = Memory()
    config = SelectConfig(model=SPEC, categories=names, quota=4, random_rest=15, assignment=assignment)
    Select(config).run(Rows(rows, sizes=(50, 2)), cast(Writer, memory))
    assert memory.selected == first.selected and memory.rejects == first.rejects


def test_embeddings_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"video q was embedded by fake:text@0, but select.model is fake:text@1"):
        run([video("p", 0.5), video("q", 0.4, model="fake:text@0")], table(tmp_path, 2))


def test_a_broken_embedding_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"not finite: .'q'"):
        run([video("p", 0.5), video("q", float("nan"))], table(tmp_path, 2))


# --- the quotas ------------------------------------------------------------------------------------------------


def greedy(ids: list[str], scores: Scores, quota: int, exclusive: bool) -> dict[str, list[int]]:
    """The rule as stated, over all pairs."""
    videos, categories = np.indices(scores.shape).reshape(2, -1)
    rank = np.argsort(np.argsort(ids))
    order = np.lexsort((categories, rank[videos], -scores.ravel()))
    taken: dict[str, list[int]] = {}
    room = [quota] * scores.shape[1]
    for v, c in zip(videos[order].tolist(), categories[order].tolist(), strict=True):
        video_id = ids[v]
        if room[c] and not (exclusive and video_id in taken):
            room[c] -= 1
            taken.setdefault(video_id, []).append(c)
    return taken


def streamed(quotas: Quotas, ids: list[str], scores: Scores, batch: int) -> dict[str, list[int]]:
    for at in range(0, len(ids), batch):
        quotas.add(ids[at : at + batch], scores[at : at + batch])
    return quotas.assign()


Kind = Literal["even", "ties", "same", "alike"]


def make(kind: Kind, count: int, categories: int, seed: int) -> tuple[list[str], Scores]:
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-1, 1, (count, categories))
    if kind == "ties":
        scores = scores.round(1)
    elif kind == "same":
        scores[:] = 0.25
    elif kind == "alike":  # all categories want the same videos: the worst case for exclusive
        scores = np.linspace(0, 1, count)[:, None] + rng.normal(0, 0.001, (count, categories))
    return [f"v{i}" for i in rng.permutation(count)], scores.astype(np.float32)


@pytest.mark.parametrize("kind", ["even", "ties", "same", "alike"])
@pytest.mark.parametrize("assignment", ["exclusive", "independent"])
def test_pruning_changes_nothing(kind: Kind, assignment: Assignment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stages.select_quota._MERGE_ROWS", 16)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        categories, quota = int(rng.integers(1, 6)), int(rng.integers(1, 9))
        ids, scores = make(kind, int(rng.integers(1, 400)), categories, seed)
        quotas = Quotas(categories, quota, assignment)
        expected = greedy(ids, scores, quota, assignment == "exclusive")
        assert streamed(quotas, ids, scores, batch=7) == expected


@pytest.mark.parametrize("kind", ["even", "alike"])
def test_a_hundred_thousand_videos_are_held_to_the_bound(kind: Kind) -> None:
    categories, quota, batch = 29, 60, 1000
    ids, scores = make(kind, 100_000, categories, seed=4)
    quotas, most = Quotas(categories, quota, "exclusive"), 0
    for at in range(0, len(ids), batch):
        quotas.add(ids[at : at + batch], scores[at : at + batch])
        most = max(most, quotas.held)
    taken = quotas.assign()
    assert quotas.held == categories * quota * categories
    assert most <= categories * (quota * categories + 16_384)
    assert len(taken) == quota * categories
    assert taken == greedy(ids, scores, quota, exclusive=True)


def test_the_draw_holds_twice_what_it_may_need() -> None:
    ids = [f"v{i}" for i in range(20_000)]
    draw, most = Draw(seed=5, keep=300), 0
    for at in range(0, len(ids), 100):
        draw.add(ids[at : at + 100])
        most = max(most, draw.held)
    assert most <= 600
    ranked = sorted(ids, key=seeded(5))
    excluded = ranked[:50] + ranked[-50:]
    assert draw.draw(200, without=excluded) == ranked[50:250]


# --- the categories --------------------------------------------------------------------------------------------


def test_the_paper_s_table_is_the_default() -> None:
    sentences = load_categories(SelectConfig(model=SPEC).categories)
    assert len(sentences) == len(set(sentences)) == 29
    assert sentences[0] == "A video about cooking activity."


def test_the_hash_covers_the_sentences_not_the_file(tmp_path: Path) -> None:
    name = table(tmp_path, 3)
    before = Select(SelectConfig(model=SPEC, categories=name)).depends_on()["categories"]
    copy = tmp_path / "copy.yml"
    copy.write_text("note: the same\n" + Path(name).read_text())
    assert Select(SelectConfig(model=SPEC, categories=str(copy))).depends_on()["categories"] == before
    table(tmp_path, 4)
    assert Select(SelectConfig(model=SPEC, categories=name)).depends_on()["categories"] != before


@dataclass(frozen=True)
class FakeOptions:
    """Settings of a model that may sit on a GPU."""

    layers: int = 2
    device: str = field(default="auto", metadata={"place": True})
    max_batch: int = field(default=64, metadata={"place": True})


def test_a_models_own_settings_decide_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    with_options = Family("none:card", "none:load", f"{__name__}:FakeOptions")
    monkeypatch.setitem(registry.MODELS["video_text_embedder"], "fake", with_options)
    own = {
        tuple(options.items()): Select(SelectConfig(model=replace(SPEC, options=options))).own_hash()
        for options in ({}, {"layers": 3}, {"device": "cuda"})
    }
    assert len(set(own.values())) == 2 and own[()] == own[("device", "cuda"),]


def test_the_sentences_need_no_gpu_and_no_batch_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's own process reserves none."""
    with_options = Family("none:card", "none:load", f"{__name__}:FakeOptions")
    monkeypatch.setitem(registry.MODELS["video_text_embedder"], "fake", with_options)
    loaded: list[dict[str, Any]] = []

    def load(spec: ModelSpec) -> AxisTexts:
        loaded.append(spec.options)
        return AxisTexts()

    monkeypatch.setattr(select_module, "load_video_text_embedder", load)
    model = replace(SPEC, options={"layers": 3, "device": "cuda"})
    config = SelectConfig(model=model, categories=table(tmp_path, 2))
    Select(config).run(cast(Any, Rows([])), cast(Writer, Memory()))
    assert loaded == [{"layers": 3, "device": "cpu", "max_batch": 1}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("categories: [", "is not YAML"),
        ("[a, b]", "holds no list of sentences"),
        ("categories: []", "holds no list of sentences"),
        ("categories: [a, 3]", "holds no list of sentences"),
        ("categories: [a, b, a]", "lists 'a' twice"),
    ],
)
def test_a_wrong_table_is_the_user_s_mistake(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "t.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_categories(str(path))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no-such\.yaml.*categories\.yaml"):
        load_categories("no-such")
