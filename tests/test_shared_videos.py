"""Thirty real clips and fourteen broken files through the whole pipeline: what becomes of each, and why.

The table was checked row by row against the files themselves: frames and lengths against a bare decode, shots
against `scenedetect.detect()` at the same threshold, damage by looking at the pictures.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.command_line import LOCAL, assert_balance, hicom, sets
from tests.run_helpers import Tables, read_tables, state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CLIPS = {
    "amp_conf_talk_dissolve.mp4": 1,  # one shot: a dissolve is no cut
    "apollo15_vp9_fragmented.mp4": 1,
    "broken/corrupted_decord.mp4": 1,  # 49 of its 50 frames decode
    "chaplin_bw.mp4": 1,
    "chroma_key_pan_60fps.mp4": 1,
    "chrome_icon_montage.mp4": 1,  # the logo card of 8.7 s after twelve short shots
    "desk_h263.3gp": 1,  # 5.02 s
    "fishes_vc1.wmv": 1,
    "flower_vp8.webm": 1,  # 5.005 s
    "google_paris_office.mp4": 1,  # the shot of 5.9 s among eighteen
    "gopro_max_walk.mp4": 1,
    "halo_tv_commercial.ogv": 1,  # black and white: no change of it scores 45, so it is one shot to the content rule
    "intel_car_detection.mp4": 1,
    "lecture_slides_mjpeg.mov": 1,  # a change of slides scores less than 45
    "mapillary_london_hevc.mp4": 1,  # 5.005 s
    "nasa_mirror_two_audio.mp4": 1,  # 8.08 s; the other shot has 4.92 s
    "popcorn_10x6.webm": 1,  # the cut before the last frame leaves a shot of one frame without a sample
    "sam2_dog.mp4": 1,
    "scenedetect_testvideo.mp4": 3,  # of four shots the first has 1.0 s
    "talking_head.mp4": 1,
    "tears_of_steel_battle.webm": 3,  # 34.1, 8.0 and 5.0 s; two of fourteen shots have no sample
    "udacity_highway.mp4": 1,
    "webcam_vfr.mov": 1,
    "zamba_chimps_camera_trap.mp4": 1,
}
"""Clips of every video that has any."""

REJECTED = {
    "amp_conf_event_portrait.mp4": ("filter", "no_clip_left"),  # shots of 2.2, 3.9, 2.8, 2.5 s; the fifth has no sample
    "broken/audio_only.mp4": ("ingest", "no_video_stream"),
    "broken/bitflip_h264.mp4": ("scan", "decode_failed"),  # a quarter of the frames that decode are patched up
    "broken/bogus_duration_fragmented.mp4": ("filter", "no_clip_left"),  # claims 143,166 s, has 1 s
    "broken/header_only.mp4": ("embed", "decode_failed"),  # an index and nothing to decode
    "broken/jpeg_named.mp4": ("ingest", "not_video"),
    "broken/moov_missing_streamio.mp4": ("ingest", "unreadable"),
    "broken/no_duration.webm": ("filter", "no_clip_left"),  # 4.94 s
    "broken/one_frame.mp4": ("filter", "no_clip_left"),
    "broken/text_named.mp4": ("ingest", "not_video"),
    "broken/truncated_moov_first.mp4": ("filter", "no_clip_left"),  # its first 17 s decode: shots of up to 4.7 s
    "broken/truncated_no_moov.mp4": ("ingest", "unreadable"),
    "broken/vp9_invalid_bitstream.webm": ("embed", "decode_failed"),  # none of its packets decodes
    "broken/zero_byte.mp4": ("ingest", "not_video"),
    "cat_short_1080p.mp4": ("filter", "no_clip_left"),  # 2.76 s
    "dog_portrait_short.mp4": ("filter", "no_clip_left"),  # 2.98 s
    "intel_one_by_one_person.mp4": ("filter", "no_clip_left"),  # 139.4 s
    "rooftop_hdr_av1_short.mp4": ("filter", "no_clip_left"),  # 4.24 s
    "rotated_dog_phone.mp4": ("filter", "no_clip_left"),  # 4.97 s
    "scenedetect_counter.mp4": ("filter", "no_clip_left"),  # 3.0 s
}
"""Where and why every other file left."""

SHOTS_REJECTED = {"no_sample": 18, "too_short": 51, "too_long": 1}
DAMAGED = {"broken/corrupted_decord.mp4", "broken/truncated_moov_first.mp4"}
"""Files that count decode errors and are worked on all the same, up to their last good frame."""


@pytest.fixture(scope="module")
def run(shared_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shared") / "run"
    command = ("run", shared_videos, "--profile", "demo", "--out", out, *LOCAL, *sets("select.random_rest=1000"))
    assert "inputs: 44 source rows" in hicom(*command).out
    before = state(out)
    hicom(*command)
    assert state(out) == before, "the same command finds nothing to do"
    return out


@pytest.fixture(scope="module")
def tables(run: Path) -> Tables:
    return read_tables(run)


def names(tables: Tables) -> dict[str, str]:
    """Each file's path under the input folder, by its source_key and by its video_id."""
    found = {row["source_key"]: row["source_key"] for row in tables.rows["sources"]}
    found |= {row["video_id"]: row["source_key"] for row in tables.rows["ingest"]}
    return {key: name.partition("/")[2] for key, name in found.items()}


def test_every_file_has_the_outcome_that_is_true_of_it(tables: Tables) -> None:
    name = names(tables)
    clips = Counter(name[row["video_id"]] for row in tables.rows["cut"])
    rejects = [row for row in tables.rows["rejects"] if row["shot"] is None]
    assert clips == CLIPS
    assert {name[row["id"]]: (row["stage"], row["reason"]) for row in rejects} == REJECTED
    assert len(rejects) == len(REJECTED) and len(CLIPS) + len(REJECTED) == 44


def test_ids_and_shots_balance_in_every_stage(tables: Tables) -> None:
    assert_balance(tables)
    assert len(tables.rows["export"]) == sum(CLIPS.values())
    shots = Counter(row["reason"] for row in tables.rows["rejects"] if row["shot"] is not None)
    assert shots == SHOTS_REJECTED


def test_only_damaged_files_count_errors(tables: Tables) -> None:
    name = names(tables)
    assert {name[row["video_id"]] for row in tables.rows["scan"] if row["decode_errors"]} == DAMAGED


def test_copies_are_made_of_h264_and_hevc_alone(tables: Tables) -> None:
    codec = {row["video_id"]: row["codec"] for row in tables.rows["ingest"]}
    assert {codec[row["video_id"]] for row in tables.rows["cut"] if row["method"] == "copy"} == {"h264", "hevc"}
    assert max(max(row["start_error_s"], row["end_error_s"]) for row in tables.rows["cut"]) <= 0.1
