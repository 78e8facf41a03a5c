"""From headers to videos, frames and clips, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.estimate.asked import Asked
from pipeline.estimate.figures import amounts_of
from pipeline.estimate.volume import SAMPLED, listed, sampled_rate, selected_count, source
from tests.estimate.inputs import header, headers, rates, want


def test_amounts_are_sums_over_all_rows() -> None:
    videos = listed(source(headers([header(10), header(30)], rows=4), rates()))
    assert (videos.count, videos.seconds, videos.frames, videos.megapixels) == (4, 80, 2400, 1200)
    assert videos.bytes == 80_000_000


def test_what_a_header_leaves_out_is_the_mean_of_the_others() -> None:
    found = source(headers([header(10, fps=20), header(30, fps=None), header(None, fps=40)]), rates())
    assert [(video.seconds, video.fps) for video in found.videos] == [(10, 20), (30, 30), (20, 40)]


def test_what_no_header_says_is_a_rate() -> None:
    [video] = source(headers([header(None, fps=None)]), rates(unknown_video_s=77, unknown_fps=12)).videos
    assert (video.seconds, video.fps) == (77, 12)


def test_a_sample_is_in_doubt_by_its_error_and_all_rows_are_not() -> None:
    videos = [header(10), header(30)]
    assert sampled_rate(headers(videos)) == []
    [rate] = sampled_rate(headers(videos, rows=100))
    assert rate.name == SAMPLED and rate.low < 1 < rate.high and "2 headers of 100 rows" in rate.source
    doubled = rates().having([replace(rate, value=2.0)])
    assert listed(source(headers(videos), doubled)).seconds == 80


DEMO = want("demo", "select.categories=categories")  # 29 of them, a quota of 1 and 4 more


@pytest.mark.parametrize(
    ("ask", "videos", "taken"),
    [
        (DEMO, 10, 10),
        (DEMO, 1000, 33),
        (DEMO, 0, 0),
        (replace(DEMO, quota=1500, random_rest=10_000), 4_000_000, 53_500),
        (replace(DEMO, exclusive=False), 1, 1),
        (replace(DEMO, exclusive=False), 10, 10),
    ],
)
def test_select_takes_what_quotas_and_the_random_rest_have_room_for(ask: Asked, videos: float, taken: float) -> None:
    assert selected_count(videos, ask) == taken


def test_categories_that_choose_alone_share_some_videos() -> None:
    alone = replace(DEMO, exclusive=False, quota=10, random_rest=0)
    assert 10 < selected_count(100, alone) < 100
    assert selected_count(1e6, alone) == pytest.approx(290, rel=1e-3)


def test_clips_are_a_share_of_the_length_in_clips_of_the_mean_length() -> None:
    book = rates(clips_share=0.25, clip_s=20, embeddable=1)
    made = amounts_of(source(headers([header(100), header(300)]), book), want(), book).clips
    assert (made.seconds, made.count, made.mean_s) == pytest.approx((100, 5, 20))
    assert (made.frames, made.megapixels, made.bytes) == pytest.approx((3000, 1500, 100_000_000))


def test_a_video_too_short_for_a_clip_gives_none() -> None:
    book = rates(clips_share=1, clip_s=20, embeddable=1)
    made = amounts_of(source(headers([header(4.9), header(100)]), book), want(), book).clips
    assert (made.seconds, made.count) == pytest.approx((100, 5))
    assert amounts_of(source(headers([header(4.9)]), book), want(), book).clips.count == 0


def test_a_clip_is_no_longer_than_its_video() -> None:
    book = rates(clips_share=0.5, clip_s=20, embeddable=1)
    made = amounts_of(source(headers([header(10)] * 4), book), want(), book).clips
    assert (made.count, made.mean_s) == pytest.approx((2, 10))


def test_more_than_all_is_never_kept() -> None:
    book = rates(clips_share=1.3, embeddable=1.2)
    amounts = amounts_of(source(headers([header(100)]), book), want(), book)
    assert amounts.selected.count == 1 and amounts.clips.seconds == pytest.approx(100)


def test_videos_that_are_not_selected_make_no_clips_and_are_not_scanned() -> None:
    book = rates(embeddable=1, selected_length=0.5)
    amounts = amounts_of(source(headers([header(100)] * 66), book), DEMO, book)
    assert amounts.selected.count == 33
    assert amounts.selected.seconds == pytest.approx(33 * 100 * 0.5), "select takes shorter ones, says the rate"
    assert amounts.pictures == pytest.approx(33 * 100 * 0.5 * 2), "a picture every half second"


def test_where_all_are_selected_their_length_is_known() -> None:
    book = rates(embeddable=1, selected_length=0.5)
    assert amounts_of(source(headers([header(100)]), book), DEMO, book).selected.seconds == 100


def test_inputs_without_a_readable_video_come_to_nothing() -> None:
    amounts = amounts_of(source(headers([], broken=3), rates()), want("hicom248k"), rates())
    assert (amounts.videos.count, amounts.selected.count, amounts.clips.count, amounts.tokens.prompt) == (0, 0, 0, 0)
    assert amounts.rows == 3
