"""The contract between a stage and whatever runs it.

A stage is a small object that holds its config and says: what one row is before and after, which columns it
reads, which table it writes, what it needs. It never knows which engine runs it.

- `MapStage`: one input row to an `Output` (rows of its table, rejected shots), or `Rejected`.
- `TwoStepStage`: the same in two steps. `prepare` runs on CPU workers and yields chunks of uint8 frames;
  `infer` runs where the model lives (an actor that loaded it once) and may be entered many times at once;
  `finish` puts the answers together, back on the worker.
- `GlobalStage`: sees the whole set at once, as a stream.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from pipeline.records import REASONS, TABLES, Grain

Row = dict[str, Any]
"""A row by column name. Lists of numbers are 1-D numpy arrays; lists of structs are lists of dicts."""


class UserError(Exception):
    """The user's mistake: the message says what came, what was expected and what to do. Exit code 2, no traceback."""


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a disk is full: no item's fault."""


@dataclass(frozen=True)
class ShotReject:
    """A shot that a stage drops while its video goes on."""

    shot: int
    reason: str
    detail: str


class Rejected(Exception):
    """Raised by a stage to reject the item it works on. `reason` is one of records.REASONS.

    `shot_rejects` are the item's own shots and why each was dropped, where the stage balances shots.
    """

    def __init__(self, reason: str, detail: str, shot_rejects: Sequence[ShotReject] = ()) -> None:
        assert reason in REASONS, reason
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.shot_rejects = list(shot_rejects)


class Retryable(Rejected):
    """A rejection that another attempt may cure (a timeout, a dead process, a busy engine)."""


class ModelDied(Exception):
    """Raised by a model that will answer no call any more, such as an engine whose own processes are gone. Whatever
    holds the model ends it and loads it again, a bounded number of times. The message holds the model's words."""


@dataclass
class Output:
    """What a map stage makes of one item."""

    rows: list[Row]
    """Rows of the stage's own table; the engine adds the input's key."""
    shot_rejects: list[ShotReject] = field(default_factory=list)
    frames_decoded: int | None = None
    measured: dict[str, float] = field(default_factory=dict)
    """Measurements of the stage's own, by name; the engine puts them into metrics/."""


@dataclass(frozen=True)
class Resources:
    """What one worker of a stage asks of the machine, and how much it takes at a time."""

    num_cpus: float = 0.5
    """CPU cores a worker reserves."""
    batch_size: int = 256
    """Items handed to a worker at a time."""
    model_cpus: float = 0.2
    """CPU cores the model's actor reserves (two-step stages)."""
    model_gpus: float = 0.0
    """GPUs the model's actor reserves (two-step stages)."""
    model_replicas: int = 1
    """Model actors."""
    in_flight: int = 4
    """Items of one worker that may wait for the model at once (two-step stages)."""
    model_environment: tuple[str, ...] = ()
    """Environment variables of the command that the model's process must see too, such as one that holds a key."""


@dataclass
class Chunk:
    """What travels between prepare and infer: arrays (frames as uint8 [N, H, W, 3]) and a few plain values."""

    arrays: dict[str, np.ndarray]
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays.values())


class Workspace(Protocol):
    """What the engine lends to a map stage while it works on an item."""

    def guarded(self, job: str, args: Mapping[str, Any], media_s: float | None) -> Iterator[Chunk]:
        """Run a job of `pipeline.media` in the guarded child process and stream back what it yields.

        `media_s` is the media's length in seconds as far as known; the deadline grows with it.
        Raises Retryable("decoder_crashed" | "timeout"), or the Rejected that the job raised.
        """
        ...

    def put_file(self, local_path: str, relative: str) -> None:
        """Put a finished local file whole into the run folder."""
        ...

    def get_json(self, relative: str) -> dict[str, Any] | None:
        """Read a small JSON object of the run folder; None when it is not there."""
        ...

    def put_json(self, relative: str, value: Mapping[str, Any]) -> None:
        """Write a small JSON object of the run folder, whole."""
        ...

    def locate(self, relative: str) -> str:
        """A file of the run folder as a path or URL that a guarded job can open."""
        ...

    def scratch_dir(self) -> str:
        """A local folder for temporary files, this worker's own."""
        ...


class Stage(ABC):
    """What all stages have in common. Subclasses set the class variables and hold their config in `config`."""

    name: ClassVar[str]
    grain_in: ClassVar[Grain]
    grain_out: ClassVar[Grain]
    reads: ClassVar[tuple[str, ...]]
    """Columns read, as "table.column"."""
    version: ClassVar[int] = 1
    """Raised by whoever changes the stage's results for the same input and config."""
    names_content: ClassVar[bool] = False
    """True when the output's id is made from the content: then later results depend on the id and on this
    stage's own config, and not on what led here. A moved threshold does not describe the same clip twice."""

    config: Any

    @property
    def resources(self) -> Resources:
        return Resources()

    def depends_on(self) -> Mapping[str, str]:
        """Names and hashes of what else decides the results: models and their revisions, prompts."""
        return {}

    def own_hash(self) -> str:
        """Hash of config, version, models and prompts."""
        return digest(
            {
                "stage": self.name,
                "version": self.version,
                "config": plain(self.config, places=False),
                "depends_on": dict(self.depends_on()),
            }
        )

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        name = getattr(cls, "name", None)
        if name is not None and name not in TABLES:
            raise TypeError(f"{cls.__name__}: no table {name!r} in pipeline/records.py; add its columns there first")


class MapStage(Stage):
    """One item in, one Output out; items do not see each other."""

    @abstractmethod
    def apply(self, row: Row, work: Workspace) -> Output:
        """Work on one item. Raises Rejected."""

    def shots_in(self, row: Row) -> int | None:
        """Shots the item brings, for stages whose shots must balance: shots in = shots out + shots rejected."""
        return None

    def shots_out(self, output: Output) -> int | None:
        """Shots the item leaves with (see shots_in)."""
        return None


class Model(Protocol):
    """A loaded model as a two-step stage sees it: entered many times at once, batching as it likes."""

    async def infer(self, chunk: Chunk) -> Chunk: ...

    def close(self) -> None:
        """End what the model started (processes, connections). Called once, when no call is open any more."""
        ...


class TwoStepStage(Stage):
    """A map stage whose heavy middle runs where a model lives."""

    @abstractmethod
    def prepare(self, row: Row, work: Workspace) -> Iterator[Chunk]:
        """CPU side: decode, resize. Yields chunks. Raises Rejected."""

    @abstractmethod
    def load_model(self) -> Model:
        """Called once in the model's process; may take minutes."""

    @abstractmethod
    def finish(self, row: Row, prepared: list[dict[str, Any]], inferred: list[Chunk]) -> Output:
        """Put an item together from each chunk's `info` and the model's answer to it, in order. Raises Rejected."""


class Reader(Protocol):
    """How a global stage reads what is committed upstream: live rows only, one per key."""

    def batches(self, columns: Iterable[str], *, ordered: bool = False) -> Iterator[list[Row]]:
        """Stream rows with the key and these "table.column" columns, joined by key.

        Ordered by key when `ordered`, else in the order that reads fastest.
        """
        ...


class Writer(Protocol):
    """Where a global stage puts what it makes. Parts are bounded; memory does not grow."""

    def row(self, table: str, row: Row) -> None: ...

    def reject(self, key: str, reason: str, detail: str) -> None: ...

    def put_bytes(self, relative: str, data: bytes) -> None:
        """Put a small file whole into the run folder."""
        ...

    def put_file(self, local_path: str, relative: str) -> None: ...

    def link_or_copy(self, source: str, target: str) -> None:
        """Make `target` the same file as `source`, both in the run folder, by a link where the disk has links.

        Does nothing when the target is there with the source's size.
        """
        ...

    def list(self, prefix: str) -> list[str]:
        """Files below a folder of the run folder, relative to the run folder, sorted."""
        ...

    def remove(self, relative: str) -> None: ...

    def exists(self, relative: str) -> bool: ...

    def open_file(self, relative: str) -> Any:
        """Open a file of the run folder for reading bytes."""
        ...


class GlobalStage(Stage):
    """Sees the whole set; runs again when the set or its config changes."""

    extra_tables: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def run(self, reader: Reader, writer: Writer) -> None:
        """Read all, write all. Every input id ends in a row or in a reject."""


def plain(value: Any, *, places: bool = True) -> Any:
    """A config as plain JSON values. Without `places`, fields marked metadata={"place": True} are left out: where a
    thing lies on this machine does not decide what it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = [f for f in dataclasses.fields(value) if places or not f.metadata.get("place")]
        return {f.name: plain(getattr(value, f.name), places=places) for f in kept}
    if isinstance(value, Mapping):
        return {str(k): plain(v, places=places) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v, places=places) for v in value]
    return value


def digest(value: Any) -> str:
    """Hash of a plain value: 16 hex digits of SHA-256 over canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
