"""One item at a time: how often it is tried, what it leaves as, and what travels to the model meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from pipeline.engine.attempt import SUSPECTS, Attempts, Job
from pipeline.engine.limits import EngineConfig
from pipeline.engine.task import Answer, MapTask, ModelHung, StageFailed
from pipeline.stage import Chunk, MapStage, ModelDied, Output, Rejected, Retryable, Row, TwoStepStage, Workspace
from pipeline.store.files import open_files
from pipeline.store.tables import ItemResult, PartWriter
from tests.tiny import TinyEmbed, TinyIngest, TinySplit, frames, redundant, shot, take_uri_for_id

NO_WORKSPACE = cast(Workspace, None)


class LazyAnswer:
    """Answered when somebody waits for it."""

    def __init__(self, desk: LazyDesk, chunk: Chunk) -> None:
        self._desk, self._chunk = desk, chunk
        self._result: Chunk | Exception | None = None

    def done(self) -> bool:
        return self._result is not None

    def result(self) -> Chunk:
        if self._result is None:
            self._result = self._desk.answer(self._chunk)
            self._desk.waiting_bytes -= self._chunk.nbytes
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


class LazyDesk:
    """A model that works on a chunk only when somebody waits for it, and fails on some levels."""

    def __init__(self, failing: dict[int, Exception] | None = None) -> None:
        self.failing = failing or {}
        self.answers: list[LazyAnswer] = []
        self.waiting_bytes = 0
        self.most_bytes = 0

    def submit(self, chunk: Chunk) -> Answer:
        self.waiting_bytes += chunk.nbytes
        self.most_bytes = max(self.most_bytes, self.waiting_bytes)
        self.answers.append(LazyAnswer(self, chunk))
        return self.answers[-1]

    def answer(self, chunk: Chunk) -> Chunk | Exception:
        level = int(chunk.arrays["frames"][0, 0])
        return self.failing.pop(level, None) or Chunk({"levels": chunk.arrays["frames"][:, 0]})


def attempts(
    stage: MapStage | TwoStepStage,
    tmp_path: Path,
    desk: LazyDesk | None = None,
    task: dict[str, Any] | None = None,
    **limits: Any,
) -> Attempts:
    files = open_files(str(tmp_path))
    made = MapTask(stage, files, cast(PartWriter, None), EngineConfig(**limits), **(task or {}))
    return Attempts(made, NO_WORKSPACE, desk)


def end(tried: Attempts, item: Job) -> ItemResult:
    """The end of an item that has one."""
    result = tried.end(item)
    assert result is not None
    return result


class Failing:
    """A stage's work that raises what it is given, one after another, and then succeeds."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0

    def __call__(self, row: Row, work: Workspace) -> Output:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return take_uri_for_id(row, work)


ROW: Row = {"source_key": "s0", "uri": "v0"}


def timeout() -> Retryable:
    return Retryable("timeout", "too slow")


def test_a_row_gets_its_items_key_and_a_measurement(tmp_path: Path) -> None:
    done = attempts(TinyIngest(), tmp_path).run(ROW)
    assert [(row["source_key"], row["video_id"]) for row in done.rows] == [("s0", "v0")]
    assert done.rejects == [] and done.metrics is not None
    assert (done.metrics["id"], done.metrics["attempts"]) == ("s0", 1)
    assert done.metrics["seconds"] >= 0


def test_a_stages_own_measurements_stand_beside_the_engines(tmp_path: Path) -> None:
    def measure(row: Row, work: Workspace) -> Output:
        return Output(take_uri_for_id(row, work).rows, measured={"qa_s": 0.25, "caption_s": 1.5})

    done = attempts(TinyIngest(measure), tmp_path).run(ROW)
    assert done.metrics is not None and done.metrics["measured"] == '{"caption_s": 1.5, "qa_s": 0.25}'
    nothing = attempts(TinyIngest(), tmp_path).run(ROW)
    assert nothing.metrics is not None and nothing.metrics["measured"] is None


def test_what_another_attempt_may_cure_is_tried_so_often_and_then_rejected(tmp_path: Path) -> None:
    work = Failing(*[timeout() for _ in range(9)])
    done = attempts(TinyIngest(work), tmp_path, attempts=3).run(ROW)
    assert work.calls == 3
    assert done.rows == []
    assert done.rejects == [{"id": "s0", "shot": None, "reason": "timeout", "detail": "too slow", "attempts": 3}]
    assert done.metrics is not None and done.metrics["attempts"] == 3


def test_a_later_attempt_that_succeeds_counts_the_earlier(tmp_path: Path) -> None:
    done = attempts(TinyIngest(Failing(timeout())), tmp_path, attempts=2).run(ROW)
    assert len(done.rows) == 1 and done.rejects == []
    assert done.metrics is not None and done.metrics["attempts"] == 2


def test_what_no_attempt_can_cure_is_tried_once(tmp_path: Path) -> None:
    work = Failing(Rejected("not_video", "a poem"))
    done = attempts(TinyIngest(work), tmp_path, attempts=5).run(ROW)
    assert work.calls == 1
    assert [(r["reason"], r["attempts"]) for r in done.rejects] == [("not_video", 1)]


def test_a_defect_is_not_taken_for_a_reject(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="no such column"):
        attempts(TinyIngest(Failing(KeyError("no such column"))), tmp_path).run(ROW)


def distinct(*kept: int) -> dict[str, Any]:
    return {"keyframes": [], "distinct_shots": [shot(i) for i in kept], "dedup_outcomes": []}


SHOTS: Row = {"video_id": "v0", "shots": [shot(i) for i in range(3)]}


def test_dropped_shots_stand_beside_their_videos_row(tmp_path: Path) -> None:
    stage = TinySplit(lambda row, work: Output([distinct(0, 2)], [redundant(1)]))
    done = attempts(stage, tmp_path).run(SHOTS)
    assert [row["video_id"] for row in done.rows] == ["v0"]
    assert [(r["id"], r["shot"], r["reason"]) for r in done.rejects] == [("v0", 1, "redundant")]


def test_a_rejected_video_takes_its_shots_along(tmp_path: Path) -> None:
    def nothing_left(row: Row, work: Workspace) -> Output:
        raise Rejected("no_clip_left", "all gone", [redundant(i) for i in range(3)])

    done = attempts(TinySplit(nothing_left), tmp_path).run(SHOTS)
    assert done.rows == []
    assert [(r["shot"], r["reason"]) for r in done.rejects] == [
        (None, "no_clip_left"),
        (0, "redundant"),
        (1, "redundant"),
        (2, "redundant"),
    ]


def test_a_shot_that_vanishes_is_found(tmp_path: Path) -> None:
    stage = TinySplit(lambda row, work: Output([distinct(0)], [redundant(1)]))
    with pytest.raises(AssertionError, match="v0: 3 shots came in, 1 left, 1 were rejected"):
        attempts(stage, tmp_path).run(SHOTS)


def test_a_shot_that_vanishes_with_a_rejected_video_is_found(tmp_path: Path) -> None:
    def forgetful(row: Row, work: Workspace) -> Output:
        raise Rejected("no_clip_left", "all gone", [redundant(0)])

    with pytest.raises(AssertionError, match="3 shots came in, 0 left, 1 were rejected"):
        attempts(TinySplit(forgetful), tmp_path).run(SHOTS)


@pytest.mark.parametrize("shots_left", [[], [redundant(i) for i in range(3)]])
def test_an_item_that_leaves_as_nothing_is_found(tmp_path: Path, shots_left: list[Any]) -> None:
    """Its shots' rejects do not account for the item itself."""
    stage = TinySplit(lambda row, work: Output([], shots_left))
    with pytest.raises(AssertionError, match="v0"):
        attempts(stage, tmp_path).run({**SHOTS, "shots": SHOTS["shots"][: len(shots_left)]})


def job(level: int) -> Job:
    return Job({"video_id": f"v{level}", "uri": "u"})


def test_answers_of_one_item_stay_together_and_in_order(tmp_path: Path) -> None:
    desk = LazyDesk()
    tried = attempts(TinyEmbed(), tmp_path, desk)
    first, second = job(1), job(2)
    assert tried.begin(first) is None and tried.begin(second) is None
    for answer in reversed(desk.answers):  # the model may answer in any order
        answer.result()
    ends = [end(tried, first), end(tried, second)]
    assert [list(end.rows[0]["embedding"]) for end in ends] == [[1, 1, 101, 101], [2, 2, 102, 102]]
    assert [end.metrics and end.metrics["frames_decoded"] for end in ends] == [4, 4]
    assert [end.metrics and end.metrics["bytes_moved"] for end in ends] == [400, 400]


def test_a_failure_while_preparing_ends_the_item_at_once(tmp_path: Path) -> None:
    calls = []

    def prepare(row: Row, work: Workspace) -> Iterator[Chunk]:
        calls.append(row)
        yield Chunk({"frames": frames(1, 1)}, {"part": 0})
        raise timeout()

    done = attempts(TinyEmbed(prepare), tmp_path, LazyDesk(), attempts=2).begin(job(1))
    assert len(calls) == 2
    assert done is not None and done.rows == []
    assert [(r["reason"], r["attempts"]) for r in done.rejects] == [("timeout", 2)]


def test_after_a_failure_of_the_model_the_item_is_prepared_again(tmp_path: Path) -> None:
    """Nothing of the failed attempt is left in the result."""
    desk = LazyDesk({101: Retryable("engine_error", "busy")})
    tried = attempts(TinyEmbed(), tmp_path, desk, attempts=2)
    item = job(1)
    assert tried.begin(item) is None
    done = end(tried, item)
    assert list(done.rows[0]["embedding"]) == [1, 1, 101, 101]
    assert len(desk.answers) == 4
    assert done.metrics is not None and (done.metrics["attempts"], done.metrics["bytes_moved"]) == (2, 400)


def test_a_model_that_keeps_failing_costs_the_item(tmp_path: Path) -> None:
    class Busy(LazyDesk):
        def answer(self, chunk: Chunk) -> Chunk | Exception:
            return Retryable("engine_error", "busy")

    tried = attempts(TinyEmbed(), tmp_path, Busy(), attempts=3)
    item = job(1)
    assert tried.begin(item) is None
    assert [(r["reason"], r["attempts"]) for r in end(tried, item).rejects] == [("engine_error", 3)]


def test_a_failure_at_the_end_starts_the_item_again(tmp_path: Path) -> None:
    failures = [timeout()]

    def finish(row: Row, prepared: Any, inferred: Any) -> Output:
        if failures:
            raise failures.pop()
        return Output([{"embedding": np.zeros(1), "model": f"{len(prepared)} {len(inferred)}"}])

    tried = attempts(TinyEmbed(finish_with=finish), tmp_path, LazyDesk(), attempts=2)
    item = job(1)
    assert tried.begin(item) is None
    done = end(tried, item)
    assert done.rows[0]["model"] == "2 2"
    assert done.metrics is not None and done.metrics["attempts"] == 2


def many_chunks(count: int, size: int) -> Any:
    def prepare(row: Row, work: Workspace) -> Iterator[Chunk]:
        for part in range(count):
            yield Chunk({"frames": frames(1, 1, size)}, {"part": part})

    return prepare


def test_frames_in_flight_are_bounded(tmp_path: Path) -> None:
    desk = LazyDesk()
    tried = attempts(TinyEmbed(many_chunks(20, 400)), tmp_path, desk, in_flight_bytes=1000)
    first, second = job(1), job(2)
    assert tried.begin(first) is None and tried.begin(second) is None
    assert desk.most_bytes == 800, "two chunks of 400 bytes fit into 1000"
    assert len(end(tried, first).rows[0]["embedding"]) == 20
    assert len(end(tried, second).rows[0]["embedding"]) == 20


def test_a_chunk_above_the_bound_travels_alone(tmp_path: Path) -> None:
    desk = LazyDesk()
    tried = attempts(TinyEmbed(many_chunks(3, 5000)), tmp_path, desk, in_flight_bytes=1000)
    item = job(1)
    assert tried.begin(item) is None
    assert desk.most_bytes == 5000
    assert len(end(tried, item).rows) == 1


@pytest.mark.parametrize("failure", [Rejected("bad_output", "nonsense"), ZeroDivisionError("a defect")])
def test_an_item_that_waits_for_room_does_not_meet_anothers_failure(tmp_path: Path, failure: Exception) -> None:
    desk = LazyDesk({1: failure})
    tried = attempts(TinyEmbed(many_chunks(1, 900)), tmp_path, desk, in_flight_bytes=1000)
    first, second = job(1), job(2)
    assert tried.begin(first) is None
    assert tried.begin(second) is None, "it had to wait for the first one's answer"
    if isinstance(failure, Rejected):
        assert [r["reason"] for r in end(tried, first).rejects] == ["bad_output"]
    else:
        with pytest.raises(ZeroDivisionError):
            end(tried, first)
    assert len(end(tried, second).rows) == 1


def test_an_item_whose_model_died_is_left_for_a_later_pass(tmp_path: Path) -> None:
    tried = attempts(TinyEmbed(), tmp_path, LazyDesk({101: ModelDied("gone")}), attempts=5)
    item = job(1)
    assert tried.begin(item) is None
    assert tried.end(item) is None
    assert item.attempts == 1, "others were in the model too: it is not the item's attempt that failed"


LAST = {"last_pass": True, "earlier_passes": 2}


@pytest.mark.parametrize(("death", "reason"), [(ModelDied("gone"), "engine_error"), (ModelHung("late"), "timeout")])
def test_alone_the_item_is_to_blame(tmp_path: Path, death: ModelDied, reason: str) -> None:
    class Dying(LazyDesk):
        def answer(self, chunk: Chunk) -> Chunk | Exception:
            return death

    tried = attempts(TinyEmbed(), tmp_path, Dying(), LAST, attempts=3)
    item = job(1)
    assert tried.begin(item) is None
    (reject,) = end(tried, item).rejects
    assert (reject["reason"], reject["attempts"]) == (reason, 3 + 2)
    assert reject["detail"] == f"the model died each of 3 times that it had this item alone; the last time: {death}"


def test_alone_an_item_gets_another_chance(tmp_path: Path) -> None:
    tried = attempts(TinyEmbed(), tmp_path, LazyDesk({1: ModelDied("somebody killed it")}), LAST, attempts=2)
    item = job(1)
    assert tried.begin(item) is None
    assert list(end(tried, item).rows[0]["embedding"]) == [1, 1, 101, 101]


@pytest.mark.parametrize("answered_before", [False, True])
def test_only_a_model_that_answered_leaves_the_blame_to_an_item(tmp_path: Path, answered_before: bool) -> None:
    """Until then the item is left for one more pass."""
    desk = LazyDesk()
    tried = attempts(TinyEmbed(), tmp_path, desk, LAST | {"model_works": False, "one_more_pass": True}, attempts=1)
    if answered_before:
        sound = job(1)
        assert tried.begin(sound) is None
        assert len(end(tried, sound).rows) == 1
    desk.failing = {2: ModelDied("gone")}
    item = job(2)
    assert tried.begin(item) is None
    if answered_before:
        assert [reject["reason"] for reject in end(tried, item).rejects] == ["engine_error"]
    else:
        assert tried.end(item) is None


def test_not_all_items_are_tried_on_a_model_that_never_worked(tmp_path: Path) -> None:
    class Dying(LazyDesk):
        def answer(self, chunk: Chunk) -> Chunk | Exception:
            return ModelDied("no such kernel")

    tried = attempts(TinyEmbed(), tmp_path, Dying(), LAST | {"model_works": False, "one_more_pass": True})
    items = [job(level) for level in range(SUSPECTS + 1)]
    for item in items:
        assert tried.begin(item) is None
    assert [tried.end(item) for item in items[:-1]] == [None] * SUSPECTS
    with pytest.raises(StageFailed, match=r"embed: its model died 9 times without one answer; .*no such kernel"):
        tried.end(items[-1])


def test_a_model_that_never_worked_is_nobodys_fault(tmp_path: Path) -> None:
    failing = {1: ModelDied("no such kernel")}
    tried = attempts(TinyEmbed(), tmp_path, LazyDesk(failing), LAST | {"model_works": False}, attempts=1)
    item = job(1)
    assert tried.begin(item) is None
    with pytest.raises(StageFailed, match=r"embed: its model died 1 times without one answer; .*no such kernel"):
        tried.end(item)
