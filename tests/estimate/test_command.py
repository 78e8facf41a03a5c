"""`hicom plan INPUT --estimate` as users meet it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.estimate.rates import assumed_rates
from tests.command_line import hicom, refused


def estimate(*args: object) -> dict[str, Any]:
    """The estimate as JSON."""
    found: dict[str, Any] = json.loads(hicom("plan", *args, "--estimate", "--format", "json").out)
    return found


def figure(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in found["figures"] if one["name"] == name)


def test_the_demo_is_estimated_from_headers_alone(tiny_videos: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = estimate(tiny_videos)
    assert found["profile"] == "demo"
    assert found["inputs"] == {
        "rows": 9, "headers_read": 9, "readable": 9, "broken": {}, "ignored": {}, "without_length": 1,
    }  # fmt: skip
    seconds = 18 + 5.4 + 6 * 5 + 2
    assert figure(found, "length of all videos")["value"] == pytest.approx(seconds * 9 / 8 / 3600, rel=0.02)
    assert figure(found, "videos selected")["value"] == pytest.approx(9 * 0.99)
    assert figure(found, "GPU time")["value"] == 0
    assert figure(found, "prompt tokens without prefix cache")["value"] == 0
    assert figure(found, "core time")["value"] > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_the_papers_profile_needs_tokens_and_gpus(tiny_videos: Path) -> None:
    found = estimate(tiny_videos, "--profile", "hicom248k")
    without, with_cache = (figure(found, f"prompt tokens {how} prefix cache")["value"] for how in ("without", "with"))
    assert 0.3 * without < with_cache < 0.7 * without
    assert figure(found, "GPU time")["value"] < figure(found, "GPU time without prefix cache")["value"]
    assert figure(found, "GPU time of generate")["low"] < figure(found, "GPU time of generate")["high"]


def test_every_figure_names_rates_that_are_told_with_their_source(tiny_videos: Path) -> None:
    found = estimate(tiny_videos, "--profile", "hicom248k")
    told = {rate["name"]: rate for rate in found["rates"]}
    named = {name for one in found["figures"] for name in one["rates"]}
    assert named == set(told)
    assert all(rate["source"] and rate["unit"] for rate in told.values())


def test_the_table_says_what_was_found_and_what_it_assumes(tiny_videos: Path) -> None:
    out = hicom("plan", tiny_videos, "--estimate").out
    for words in (
        "Estimate, profile demo",
        "9 source rows, 9 headers read, 9 of them readable video",
        "1 of 9 headers state no length: the mean of the others stands for it",
        "clips_share",
        "248K clips of 25.67 s (Tab. 1)",
    ):
        assert words in out


def test_broken_files_are_counted_and_not_hidden(broken_videos: dict[str, Path]) -> None:
    folder = broken_videos["unreadable"].parent
    found = estimate(folder)
    assert found["inputs"]["broken"] == {"no_video_stream": 1, "not_video": 3, "unreadable": 1}
    assert (
        "not readable, and rejected by ingest: 1 no_video_stream, 3 not_video, 1 unreadable"
        in hicom("plan", folder, "--estimate").out
    )


def test_inputs_without_any_readable_video_are_an_estimate_of_nothing(broken_videos: dict[str, Path]) -> None:
    found = estimate(broken_videos["not_video"], "--profile", "hicom248k")
    assert figure(found, "clips")["value"] == 0 and figure(found, "GPU time")["value"] == 0


def test_no_header_states_a_length(tiny_videos: Path) -> None:
    found = estimate(tiny_videos / "live.webm")
    length = figure(found, "length of all videos")
    assert length["value"] == pytest.approx(assumed_rates()("unknown_video_s") / 3600) and length["rates"] == [
        "unknown_video_s"
    ]
    assert any(note == "no header states a length: the rate unknown_video_s stands for it" for note in found["notes"])


def test_a_sample_of_headers_stands_for_all(tiny_videos: Path) -> None:
    found = estimate(tiny_videos, "--headers", 4)
    assert (found["inputs"]["rows"], found["inputs"]["headers_read"]) == (9, 4)
    length = figure(found, "length of all videos")
    assert length["low"] < length["value"] < length["high"] and "sampled" in length["rates"]
    assert "4 of 9 headers were read, the same each time; figures are of all rows" in found["notes"]
    assert estimate(tiny_videos, "--headers", 4) == found


def test_limit_estimates_the_run_that_takes_so_many(tiny_videos: Path) -> None:
    found = estimate(tiny_videos, "--limit", 3)
    assert found["inputs"]["rows"] == 3 and figure(found, "readable videos")["value"] == 3
    assert "3 source rows (--limit; 9 were found)" in hicom("plan", tiny_videos, "--estimate", "--limit", 3).out


def test_settings_count(tiny_videos: Path) -> None:
    virtual = estimate(tiny_videos, "--set", "cut.mode=virtual", "--set", "select.random_rest=0")
    assert figure(virtual, "size of clips")["value"] == 0
    assert figure(virtual, "videos selected")["value"] < 9


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["plan", "--estimate"], "no input is given"),
        (["plan", "{videos}"], "add --estimate"),
        (["plan", "--rates", "x"], "add --estimate"),
        (["plan", "{videos}/nowhere", "--estimate"], "does not exist"),
        (["plan", "{empty}", "--estimate"], "holds no video"),
        (["plan", "{videos}", "--estimate", "--rates", "{empty}"], "--rates {empty}: {empty} is not a run folder"),
        (["plan", "{videos}", "--estimate", "--profile", "papr"], "no profile 'papr'"),
        (["plan", "{videos}", "--estimate", "--set", "select.qota=1"], "did you mean quota?"),
        (["plan", "{videos}", "--estimate", "--format", "csv"], "printed as table or json"),
        (["plan", "{videos}", "--estimate", "--headers", "0"], "--headers"),
    ],
)
def test_mistakes_are_told(args: list[str], said: str, tiny_videos: Path, tmp_path: Path) -> None:
    places = {"videos": tiny_videos, "empty": tmp_path}
    message = refused(*(arg.format(**places) for arg in args))
    assert said.format(**places) in message


def test_the_plan_alone_is_as_it_was() -> None:
    assert "Plan" in hicom("plan").out
