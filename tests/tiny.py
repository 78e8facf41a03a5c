"""Small stages on real tables, and what is needed to run them without a video."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa

from pipeline.config import RunConfig
from pipeline.engine.limits import EngineConfig
from pipeline.engine.local import LocalEngine
from pipeline.engine.task import MapTask, Progress, Tally
from pipeline.plan import fingerprints
from pipeline.records import Grain
from pipeline.runner import MapEngine, Runner
from pipeline.session import Session, nodes
from pipeline.stage import (
    Chunk,
    GlobalStage,
    MapStage,
    Model,
    Output,
    Reader,
    Rejected,
    Resources,
    Row,
    ShotReject,
    Stage,
    TwoStepStage,
    Workspace,
    Writer,
)
from pipeline.store.files import open_files
from pipeline.store.live import Counts
from pipeline.store.lock import Lock
from tests.store.rows import random_row

Apply = Callable[[Row, Workspace], Output]


def take_uri_for_id(row: Row, work: Workspace) -> Output:
    """A source row to a video whose id is the row's uri: two rows with one uri are one video."""
    del work
    given = random_row("ingest", 0, video_id=row["uri"], uri=row["uri"])
    return Output([{name: value for name, value in given.items() if name != "source_key"}])


class TinyIngest(MapStage):
    """Source rows to videos, by a function."""

    name = "ingest"
    grain_in = Grain.SOURCE
    grain_out = Grain.VIDEO
    reads: ClassVar[tuple[str, ...]] = ("sources.uri",)

    def __init__(self, apply: Apply = take_uri_for_id, batch_size: int = 32, config: Any = None) -> None:
        self.config = config
        self._apply = apply
        self._batch_size = batch_size

    @property
    def resources(self) -> Resources:
        return Resources(batch_size=self._batch_size)

    def apply(self, row: Row, work: Workspace) -> Output:
        return self._apply(row, work)


class TinySplit(MapStage):
    """A video's shots, whose number has to balance."""

    name = "dedup"
    grain_in = Grain.VIDEO
    grain_out = Grain.VIDEO
    reads = ("split.shots",)

    def __init__(self, apply: Apply) -> None:
        self.config = None
        self._apply = apply

    def apply(self, row: Row, work: Workspace) -> Output:
        return self._apply(row, work)

    def shots_in(self, row: Row) -> int:
        return len(row["shots"])

    def shots_out(self, output: Output) -> int:
        return sum(len(row["distinct_shots"]) for row in output.rows)


def frames(count: int, level: int, size: int = 100) -> np.ndarray:
    """`count` frames of `size` bytes each, all of one level."""
    return np.full((count, size), level, np.uint8)


def two_chunks(row: Row, work: Workspace) -> Iterator[Chunk]:
    """Two chunks of frames whose level is the number at the end of the video's id, and that plus 100."""
    del work
    level = int(row["video_id"].lstrip("v"))
    for part, value in enumerate((level, level + 100)):
        yield Chunk({"frames": frames(2, value)}, {"part": part})


class Levels:
    """A model that answers with the level of the frames it is given."""

    async def infer(self, chunk: Chunk) -> Chunk:
        return Chunk({"levels": chunk.arrays["frames"][:, 0]})

    def close(self) -> None: ...


Prepare = Callable[[Row, Workspace], Iterator[Chunk]]
Finish = Callable[[Row, Sequence[Mapping[str, Any]], Sequence[Chunk]], Output]


def take_levels_for_embedding(row: Row, prepared: Sequence[Mapping[str, Any]], inferred: Sequence[Chunk]) -> Output:
    """The levels of all chunks, in order, as the embedding."""
    del row
    assert [info["part"] for info in prepared] == list(range(len(inferred)))
    levels = np.concatenate([answer.arrays["levels"] for answer in inferred]).astype(np.float32)
    return Output([{"embedding": levels, "model": "levels"}], frames_decoded=len(levels))


@dataclass
class TinyEmbed(TwoStepStage):
    """Videos to embeddings, in two steps made of functions."""

    name = "embed"
    grain_in = Grain.VIDEO
    grain_out = Grain.VIDEO
    reads = ("ingest.uri",)

    prepare_with: Prepare = two_chunks
    load_with: Callable[[], Model] = Levels
    finish_with: Finish = take_levels_for_embedding
    needs: Resources = field(default_factory=lambda: Resources(batch_size=8, in_flight=3))
    config: Any = None

    @property
    def resources(self) -> Resources:
        return self.needs

    def prepare(self, row: Row, work: Workspace) -> Iterator[Chunk]:
        return self.prepare_with(row, work)

    def load_model(self) -> Model:
        return self.load_with()

    def finish(self, row: Row, prepared: list[dict[str, Any]], inferred: list[Chunk]) -> Output:
        return self.finish_with(row, prepared, inferred)


class TinySelect(GlobalStage):
    """The videos to those whose id is not unwanted."""

    name = "select"
    grain_in = Grain.VIDEO
    grain_out = Grain.VIDEO
    reads = ("ingest.uri",)

    def __init__(self, unwanted: Sequence[str] = (), lost: Sequence[str] = (), files: Sequence[str] = ()) -> None:
        self.config = {"unwanted": list(unwanted)}
        self._lost, self._files = lost, files
        self.runs = 0

    def run(self, reader: Reader, writer: Writer) -> None:
        self.runs += 1
        for name in self._files:
            writer.put_bytes(name, b"content")
        for batch in reader.batches(self.reads, ordered=True):
            for row in batch:
                key = row["video_id"]
                if key in self.config["unwanted"]:
                    writer.reject(key, "not_selected", "unwanted")
                elif key not in self._lost:
                    writer.row("select", random_row("select", 0, video_id=key))


def shot(index: int) -> dict[str, int]:
    return {"index": index, "start_pts": index, "end_pts": index + 1, "start_frame": index, "end_frame": index + 1}


def redundant(index: int) -> ShotReject:
    return ShotReject(index, "redundant", "as before")


def source(key: str, uri: str | None = None, **given: Any) -> Row:
    """A sound source row; its uri is its key unless given."""
    row = random_row("sources", 0, source_key=key, uri=uri or key, given_id=None, problem=None, problem_detail=None)
    return {**row, **given}


def sources(count: int) -> list[Row]:
    """Source rows of the videos v000, v001, ..."""
    return [source(f"v{i:03d}") for i in range(count)]


def tiny_session(root: Path | str, *stages: Stage, engine: EngineConfig | None = None) -> Session:
    """A session of these stages, in plan order, over a run folder."""
    config = cast(RunConfig, SimpleNamespace(engine=engine or EngineConfig()))
    prints = fingerprints(stages)
    return Session(open_files(str(root)), config, stages, nodes(stages, prints), record={}, changed={}, recompute=())


class Notes:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int, int]] = []
        self.tallies: list[Tally] = []

    def stage_begins(self, name: str, items: int, pending: int) -> None:
        self.begun.append((name, items, pending))

    def progress(self, name: str, tally: Tally) -> None:
        self.tallies.append(tally)

    def stage_ends(self, name: str, counts: Counts, seconds: float) -> None:
        pass


@contextlib.contextmanager
def tiny_runner(
    session: Session, make_engine: Callable[[], MapEngine] = LocalEngine, notes: Notes | None = None
) -> Iterator[Runner]:
    """A runner that holds the run folder's lock."""
    with Lock(session.files) as lock:
        runner = Runner(session, lock.epoch, make_engine, notes or Notes())
        try:
            yield runner
        finally:
            runner.close()


def run_tiny(session: Session, rows: Iterable[Row], names: Sequence[str] = ()) -> dict[str, Counts]:
    """List these sources and run stages, all by default."""
    with tiny_runner(session) as runner:
        runner.list_sources(list(rows))
        return runner.run(names or [stage.name for stage in session.stages])


class Kept:
    """An engine that its runner does not close."""

    def __init__(self, engine: MapEngine) -> None:
        self.name, self.run_map = engine.name, engine.run_map

    def close(self) -> None: ...


class Deaths:
    """The local engine with workers that die: a batch that holds a deadly item leaves nothing behind."""

    name = "deaths"

    def __init__(self, deadly: Sequence[str], times: int = 99) -> None:
        self._local = LocalEngine()
        self._deadly = dict.fromkeys(deadly, times)
        self.batch_sizes: list[int] = []
        self.tasks: list[MapTask] = []

    def run_map(self, task: MapTask, pointers: pa.Table, progress: Progress, *, batch_size: int) -> None:
        self.batch_sizes.append(batch_size)
        self.tasks.append(task)
        for start in range(0, pointers.num_rows, batch_size):
            batch = pointers.slice(start, batch_size)
            dying = [key for key in batch["key"].to_pylist() if self._deadly.get(key, 0) > 0]
            for key in dying:
                self._deadly[key] -= 1
            if not dying:
                self._local.run_map(task, batch, progress, batch_size=batch_size)

    def close(self) -> None:
        self._local.close()


def reject_on(*keys: str, reason: str = "unreadable") -> Apply:
    """Like take_uri_for_id, but these items are rejected."""

    def apply(row: Row, work: Workspace) -> Output:
        if row["source_key"] in keys:
            raise Rejected(reason, "on purpose")
        return take_uri_for_id(row, work)

    return apply


def die_on(key: str) -> Apply:
    """Like take_uri_for_id, but this item ends the process that works on it."""

    def apply(row: Row, work: Workspace) -> Output:
        if row["source_key"] == key:
            os._exit(1)
        return take_uri_for_id(row, work)

    return apply
