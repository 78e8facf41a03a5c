"""Core hours, GPU hours and bytes, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.estimate.asked import Asked
from pipeline.estimate.cost import Amounts, core_hours, decoded, disk_bytes, gpu_hours
from pipeline.estimate.rates import Rate
from pipeline.estimate.tokens import Tokens
from pipeline.estimate.volume import Clips, Volume
from pipeline.estimate.work import gflop_of_item, gflop_of_token, picture_bytes
from tests.estimate.inputs import rates, want

AMOUNTS = Amounts(
    rows=12,
    videos=Volume(10, 1000, 30_000, 6000, 1e9),
    selected=Volume(5, 500, 15_000, 3000, 5e8),
    clips=Clips(8, 160, 4800, 960, 1.6e8, 20),
    pictures=1000,
    tokens=Tokens(video=6000, prompt=14_000, computed=7000, output=700),
)
DEMO, PAPER = want("demo"), want("hicom248k")


def measured(name: str, value: float) -> Rate:
    return Rate(name, value, value, value, "", "", measured=True)


def on_cores(ask: Asked) -> Asked:
    """The same with the frame embedder on cores."""
    return replace(ask, frame=replace(ask.frame, on_gpu=False))


def test_frames_are_decoded_for_every_stage_that_looks() -> None:
    book = rates(embed_frames=50, scan_frames=0.9, cut_frames=2, generate_frames=1)
    assert decoded(AMOUNTS, PAPER, book) == {"embed": 10 * 4 * 50, "scan": 13_500, "cut": 9600, "generate": 4800}
    assert decoded(AMOUNTS, replace(PAPER, has_clip_files=False), book)["cut"] == 0


def test_core_time_of_the_demo() -> None:
    book = rates(
        ingest_core_s=0.1,
        hash_mb_per_core_s=500,
        embed_core_s=0.2,
        scan_core_s=0.01,
        shots_core_s=0.001,
        cut_core_s=0.1,
    )
    hours = core_hours(AMOUNTS, DEMO, book.moved("generate_core_s", 0.5).moved("clean_core_s", 0.25))
    seconds = {stage: None if spent is None else spent * 3600 for stage, spent in hours.items()}
    assert seconds == pytest.approx(
        {
            "ingest": 12 * 0.1 + 2,  # of all rows; a gigabyte is hashed
            "embed": 2,
            "scan": 30,
            "split, dedup, filter": 15,
            "cut": 96,
            "generate": 4,
            "clean": 2,
        }
    )


def test_the_demo_needs_no_gpu() -> None:
    assert gpu_hours(AMOUNTS, DEMO, rates()) == {}


def test_gpu_time_follows_from_work_and_the_share_of_the_peak() -> None:
    book = rates(embed_utilisation=0.5, gpu_fp32_tflop_per_s=60, gpu_16bit_tflop_per_s=1000)
    book = book.moved("prefill_utilisation", 0.5).moved("decode_utilisation", 0.1).moved("vision_gflop_per_token", 5)
    hours = gpu_hours(AMOUNTS, PAPER, book)
    assert hours["embed"] == pytest.approx(10 * 2305.66 / 30_000 / 3600, rel=1e-3), "InternVideo2-1B in float32"
    assert hours["scan"] == pytest.approx(1000 * 381.92 / 30_000 / 3600), "ViT-L/14-336 in float32"
    token = gflop_of_token(PAPER.describer)
    assert token == pytest.approx(2 * 73.4, rel=1e-3), "two operations for each weight of Qwen2-VL-72B"
    reading, writing = 7000 * token + 6000 * 5, 700 * token
    assert hours["generate"] == pytest.approx(8 * (reading / 500_000 + writing / 100_000) / 3600)
    without = gpu_hours(AMOUNTS, PAPER, book, cached=False)["generate"]
    reading = 14_000 * token + 2 * 6000 * 5
    assert without == pytest.approx(8 * (reading / 500_000 + writing / 100_000) / 3600)


def test_half_precision_is_reckoned_with_its_own_peak() -> None:
    half = want("hicom248k", "models.frame.options.dtype=bfloat16")
    assert (PAPER.frame.precision, half.frame.precision, half.describer.precision) == ("fp32", "16bit", "16bit")


def test_what_a_former_run_measured_comes_first() -> None:
    tokens_per_s = measured("generate_tokens_per_gpu_s", 1000)
    book = rates().having([measured("embed_gpu_s", 0.5), measured("scan_gpu_s", 0.01), tokens_per_s])
    hours = gpu_hours(AMOUNTS, PAPER, book)
    assert [hours[stage] * 3600 for stage in ("embed", "scan", "generate") if hours[stage]] == pytest.approx(
        [10 * 0.5, 1000 * 0.01, 8 * 7.7]
    )
    assert gpu_hours(AMOUNTS, PAPER, book, cached=False)["generate"] == pytest.approx(8 * 14.7 / 3600)


def test_a_model_on_cores_costs_cores() -> None:
    ask = on_cores(PAPER)
    book = rates(core_gflop_per_s=40, scan_core_s=0.01)
    assert "scan" not in gpu_hours(AMOUNTS, ask, book)
    assert core_hours(AMOUNTS, ask, book)["scan"] == pytest.approx((30 + 1000 * 381.92 / 40) / 3600)
    all_in_it = book.having([measured("scan_core_s", 5)])
    assert core_hours(AMOUNTS, ask, all_in_it)["scan"] == pytest.approx(3000 * 5 / 3600)


def test_a_describer_on_an_endpoint_costs_neither_gpu_nor_core() -> None:
    ask = replace(PAPER, describer=replace(PAPER.describer, on_gpu=False, endpoint=True))
    assert "generate" not in gpu_hours(AMOUNTS, ask, rates())
    sampling = core_hours(AMOUNTS, ask, rates(sample_core_s=0.01))["generate"]
    assert sampling == pytest.approx(960 * 0.01 / 3600), "its frames are decoded here"


def test_a_model_that_nothing_is_known_of_is_told_so(tmp_path: Path) -> None:
    odd = replace(PAPER.frame, spec=replace(PAPER.frame.spec, name="ViT-XXL-7"))
    assert gflop_of_item(odd, rates()) is None
    hours = gpu_hours(AMOUNTS, replace(PAPER, frame=odd), rates())
    assert hours["scan"] is None and hours["generate"] is not None
    assert core_hours(AMOUNTS, on_cores(replace(PAPER, frame=odd)), rates())["scan"] is None
    own = replace(PAPER.describer, spec=replace(PAPER.describer.spec, name="mine", path=str(tmp_path)))
    assert gpu_hours(AMOUNTS, replace(PAPER, describer=own), rates())["generate"] is None


def test_openais_own_weights_cost_what_the_others_of_their_size_do() -> None:
    quick = replace(PAPER.frame, spec=replace(PAPER.frame.spec, name="ViT-L-14-336-quickgelu"))
    assert gflop_of_item(quick, rates()) == 381.92
    video = replace(PAPER.video_text, spec=quick.spec, frames=8)
    assert gflop_of_item(video, rates()) == 8 * 381.92, "a mean over frames looks at each"


def test_frames_that_a_config_sets_are_those_that_the_model_sees() -> None:
    twice = want("hicom248k", "embed.frames=8")
    assert (PAPER.embed_frames, twice.embed_frames) == (4, 8)
    more = (gflop_of_item(twice.video_text, rates()) or 0) / (gflop_of_item(PAPER.video_text, rates()) or 1)
    assert 2 < more < 2.5, "weights see twice the tokens, attention more"
    assert gflop_of_item(want("small", "embed.frames=8").video_text, rates()) == pytest.approx(8 * 8.82)


def test_vectors_of_pictures_are_as_long_as_the_model_makes_them() -> None:
    assert (picture_bytes(PAPER.frame), picture_bytes(DEMO.frame)) == (4 * 1024, None)
    assert picture_bytes(want("small").frame) == 4 * 512
    none = rates(video_row_bytes=0, frame_row_bytes=0, picture_row_bytes=2000)
    assert disk_bytes(AMOUNTS, PAPER, none)["tables"] == 1000 * 4096
    own = none.having([measured("picture_row_bytes", 2500)])
    assert disk_bytes(AMOUNTS, PAPER, own)["tables"] == 1000 * 2500, "a former run knows best"


def test_bytes_by_kind() -> None:
    book = rates(clip_bytes=1.5, video_row_bytes=1000, frame_row_bytes=10, picture_row_bytes=2000, clip_row_bytes=5000)
    assert disk_bytes(AMOUNTS, DEMO, book) == {
        "clips": 2.4e8,
        "tables": 10_000 + 150_000 + 2_000_000,
        "texts and export": 40_000,
    }
    virtual = replace(DEMO, has_clip_files=False)
    assert disk_bytes(AMOUNTS, virtual, book)["clips"] == 0
    embedded = replace(DEMO, copies_clips=True)
    assert disk_bytes(AMOUNTS, embedded, book)["texts and export"] == 40_000 + 2.4e8
