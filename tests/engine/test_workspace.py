"""What a worker lends to a stage."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine.limits import EngineConfig
from pipeline.engine.workspace import EngineWorkspace
from pipeline.media.guard import Deadline
from pipeline.stage import Chunk
from pipeline.store.files import open_files


def workspace(tmp_path: Path, **limits: Any) -> EngineWorkspace:
    return EngineWorkspace(open_files(str(tmp_path / "run")), EngineConfig(**limits))


def test_files_of_the_run_folder(tmp_path: Path) -> None:
    work = workspace(tmp_path)
    assert work.get_json("clips/a/x.json") is None
    work.put_json("clips/a/x.json", {"b": 1, "a": [2]})
    assert work.get_json("clips/a/x.json") == {"a": [2], "b": 1}
    draft = tmp_path / "draft.mp4"
    draft.write_bytes(b"clip")
    work.put_file(str(draft), "clips/a/x.mp4")
    assert Path(work.locate("clips/a/x.mp4")).read_bytes() == b"clip"


def test_the_scratch_folder_is_made_when_asked_for_and_removed(tmp_path: Path) -> None:
    work = workspace(tmp_path)
    folder = work.scratch_dir()
    assert work.scratch_dir() == folder and os.path.isdir(folder)
    Path(folder, "draft").write_text("x")
    work.drop_scratch()
    assert not os.path.exists(folder)
    again = work.scratch_dir()
    work.close()
    assert not os.path.exists(again)


class Guards:
    """Stands in for Guard, and remembers."""

    made: list[Guards]

    def __init__(self, memory_mb: int, deadline: Deadline) -> None:
        self.limits = (memory_mb, deadline)
        self.jobs: list[tuple[str, Mapping[str, Any], float | None]] = []
        self.closed = False
        self.made.append(self)

    def run(self, job: str, args: Mapping[str, Any], media_s: float | None) -> Iterator[Chunk]:
        self.jobs.append((job, args, media_s))
        yield Chunk({}, {"job": job})

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> list[Guards]:
    Guards.made = []
    monkeypatch.setattr("pipeline.media.guard.Guard", Guards)
    return Guards.made


def test_one_guard_serves_all_jobs_with_the_runs_limits(tmp_path: Path, guards: list[Guards]) -> None:
    work = workspace(tmp_path, decode_memory_mb=99, deadline_base_s=1.0, deadline_per_media_s=2.0, unknown_media_s=3.0)
    assert guards == [], "no child process before the first job"
    assert [chunk.info["job"] for job in ("probe", "scan") for chunk in work.guarded(job, {"uri": "u"}, 4.0)] == [
        "probe",
        "scan",
    ]
    (guard,) = guards
    assert guard.jobs == [("probe", {"uri": "u"}, 4.0), ("scan", {"uri": "u"}, 4.0)]
    memory_mb, deadline = guard.limits
    assert memory_mb == 99
    assert (deadline.seconds(10.0), deadline.seconds(None)) == (21.0, 7.0)


def test_closing_ends_the_guard(tmp_path: Path, guards: list[Guards]) -> None:
    work = workspace(tmp_path)
    list(work.guarded("probe", {}, None))
    work.close()
    work.close()
    assert [guard.closed for guard in guards] == [True]


def test_a_hung_decoder_is_given_what_the_guard_gives_by_itself() -> None:
    """The default is written once."""
    limits, deadline = EngineConfig(), Deadline()
    assert (limits.deadline_base_s, limits.deadline_per_media_s) == (deadline.base_s, deadline.per_media_s)
    assert limits.unknown_media_s == deadline.unknown_media_s
