"""Runs whose describer is a server that misbehaves: which clips are kept, why others are not, and that none is lost."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import clips
from tests.command_line import LOCAL, assert_balance, hicom, refused, sets
from tests.models.misbehaving_server import KEY, MODEL, Act, Asked, MisbehavingServer, fails, says, shares, sound
from tests.run_helpers import Tables, copy_run, differences, read_tables

pytest.importorskip("openai")

pytestmark = pytest.mark.slow

VARIABLE = "HICOM_TEST_KEY"
VIDEOS, SHOTS = 10, 6
SHOT_FRAMES = 52
COLORS = ("black", "white", "maroon", "sky", "navy", "gold")
"""Each of which is a cut away from the next."""


def _cut_off(asked: Asked) -> Act:
    return sound(asked) if asked.turn == "caption" else says('{"pairs": [{"instruction": "Describe')


def _empty(asked: Asked) -> Act:
    return says("")


def _refusal(asked: Asked) -> Act:
    return says("I'm sorry, but I can't help with that.")


WRONG_ANSWERS = {"invalid": _cut_off, "empty": _empty, "refusal": _refusal}
FAILURES = {
    "429": lambda asked: fails(429, Retry_After="0.05"),
    "500": lambda asked: fails(500),
    "cut": lambda asked: Act(body=sound(asked).body, send_bytes=30),
    "half": lambda asked: Act(body=b'{"choices": ['),
}


@pytest.fixture(scope="module")
def cut_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after cut, with 60 clips that all look different. Read only: tests take copies."""
    folder = tmp_path_factory.mktemp("videos")
    for video in range(VIDEOS):
        clips.write_clip(folder / f"{video}.mp4", _frames(video), keyframes=range(0, SHOTS * SHOT_FRAMES, SHOT_FRAMES))
    run = tmp_path_factory.mktemp("cut") / "run"
    some = sets("select.random_rest=99", "select.quota=0", "dedup.thresholds={builtin:visual: 0.9999}")
    hicom("ingest", run, folder, *LOCAL, *some)
    for stage in ("embed", "select", "scan", "split", "dedup", "filter", "cut"):
        hicom(stage, run, *LOCAL)
    assert len(read_tables(run).rows["cut"]) == VIDEOS * SHOTS
    return run


def _frames(video: int) -> Iterator[np.ndarray]:
    """Shots of one colour each, with the video's number as a pattern in a corner."""
    colors = (COLORS[(video + shot) % len(COLORS)] for shot in range(SHOTS))
    mark = next(clips.numbered(1, first=video * 1000 + 1))[::2, ::2]
    for frame in clips.shots(*((color, SHOT_FRAMES) for color in colors)):
        frame[: mark.shape[0], : mark.shape[1]] = mark
        yield frame


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer() as running:
        yield running


def describer(server: MisbehavingServer, **more: object) -> list[str]:
    options = {"base_url": server.base_url, "api_key_env": VARIABLE, "backoff_s": 0.02, "outage_s": 1.0, **more}
    inner = ", ".join(f"{name}: {value}" for name, value in options.items())
    return sets(f"models.describer={{family: openai, name: {MODEL}, options: {{{inner}}}}}")


def fates(asked: list[Asked], server: MisbehavingServer) -> Counter[str]:
    """What must become of the clips, by what was last said of each: kept, or a reject's reason."""
    by_clip: dict[str, list[Asked]] = defaultdict(list)
    for one in asked:
        if one.turn != "trial":
            by_clip[one.clip].append(one)
    return Counter(_fate(asks[-1], server) for asks in by_clip.values())


def _fate(last: Asked, server: MisbehavingServer) -> str:
    act = server.script(last) or sound(last)
    for kind, wrong in WRONG_ANSWERS.items():
        if act == wrong(last) != sound(last):
            return "refused" if kind == "refusal" or last.turn == "caption" else "bad_output"
    return "kept"


def assert_answers_are_their_clips_own(tables: Tables) -> None:
    """The mark of a clip is in its caption and in each of its pairs, and in no other's."""
    marks = [row["caption"].split("mark ")[1][:8] for row in tables.rows["generate"]]
    assert len(set(marks)) == len(marks)
    for row, mark in zip(tables.rows["generate"], marks, strict=True):
        assert len(row["raw_pairs"]) == 3 and all(mark in pair["answer"] for pair in row["raw_pairs"])


def test_with_a_fifth_of_the_answers_wrong_every_clip_is_kept_or_rejected_for_it(
    server: MisbehavingServer, cut_run: Path, tmp_path: Path
) -> None:
    run = copy_run(cut_run, tmp_path / "run")
    server.script = shares(WRONG_ANSWERS, 0.2 / 3)
    hicom("generate", run, *LOCAL, *describer(server))
    hicom("clean", run, *LOCAL)
    tables = read_tables(run)
    assert_balance(tables, "clean")
    rejected = Counter(tables.rejected("generate").values())
    kept = len(tables.rows["generate"])
    assert Counter(kept=kept) + rejected == fates(server.asked, server)
    assert rejected.keys() == {"refused", "bad_output"} and kept + rejected.total() == VIDEOS * SHOTS
    assert_answers_are_their_clips_own(tables)
    assert sum(len(row["pairs"]) + len(row["rejected_pairs"]) for row in tables.rows["clean"]) == 3 * kept


def test_on_ray_with_failures_on_the_way_too_it_is_the_same(
    server: MisbehavingServer, cut_run: Path, tmp_path: Path
) -> None:
    runs = {"local": copy_run(cut_run, tmp_path / "local"), "ray": copy_run(cut_run, tmp_path / "ray")}
    server.script = shares({**WRONG_ANSWERS, **FAILURES}, 0.4 / 7)
    for engine, run in runs.items():
        server.forget()
        hicom("generate", run, "--engine", engine, *describer(server))
        hicom("clean", run, *LOCAL)
    tables = {engine: read_tables(run) for engine, run in runs.items()}
    assert_balance(tables["ray"], "clean")
    assert differences(tables["local"], tables["ray"]) == []
    rejected = Counter(tables["ray"].rejected("generate").values())
    assert Counter(kept=len(tables["ray"].rows["generate"])) + rejected == fates(server.asked, server)
    assert_answers_are_their_clips_own(tables["ray"])


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_server_that_goes_away_costs_no_clip(
    engine: str, server: MisbehavingServer, cut_run: Path, tmp_path: Path
) -> None:
    run = copy_run(cut_run, tmp_path / "run")

    def leave(asked: Asked) -> Act | None:
        if asked.number == 50:
            threading.Thread(target=server.stop).start()
        return None

    server.script = leave
    again = ("generate", run, "--engine", engine, *describer(server, tries=2))
    assert f"the endpoint {server.base_url} has not answered for" in refused(*again, code=1)
    before = read_tables(run)
    assert before.rejected("generate") == {}
    server.script = lambda asked: None
    server.start()
    hicom(*again)
    tables = read_tables(run)
    assert tables.rejected("generate") == {} and len(tables.rows["generate"]) == VIDEOS * SHOTS
    assert_balance(tables, "generate")


def test_a_key_that_expires_stops_the_run_which_goes_on_with_another(
    server: MisbehavingServer, cut_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_run(cut_run, tmp_path / "run")

    def expire(asked: Asked) -> Act | None:
        if asked.number == 50:
            server.key = "sk-the-next-key"
        return None

    server.script = expire
    again = ("generate", run, *LOCAL, *describer(server))
    assert f"turns down the key in the environment variable {VARIABLE}" in refused(*again)
    assert read_tables(run).rejected("generate") == {}
    monkeypatch.setenv(VARIABLE, "sk-the-next-key")
    hicom(*again)
    assert len(read_tables(run).rows["generate"]) == VIDEOS * SHOTS
    assert_no_trace(run, KEY, "sk-the-next-key")


def assert_no_trace(run: Path, *secrets: str) -> None:
    """None of the secrets is in a file of the run folder, nor in a row of a table."""
    told = repr(read_tables(run).rows)
    for secret in secrets:
        assert secret not in told
        for path in run.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    "options",
    [
        "{base_url: 'http://x', api_key: sk-secret-9}",
        "{base_url: 'http://x', api_key_env: sk-secret-9}",
        "{base_url: 'http://me:sk-secret-9@x'}",
        "{base_url: 'http://x?key=sk-secret-9'}",
    ],
)
def test_a_key_that_is_given_in_the_config_is_refused_and_neither_shown_nor_kept(
    options: str, cut_run: Path, tmp_path: Path
) -> None:
    run = copy_run(cut_run, tmp_path / "run")
    setting = f"models.describer={{family: openai, name: m, options: {options}}}"
    assert "sk-secret-9" not in refused("generate", run, *LOCAL, *sets(setting))
    assert_no_trace(run, "sk-secret-9")
