"""Groups: balanced, without a gap, one overlap at most between neighbours."""

from __future__ import annotations

from math import ceil

import pytest
import torch

from compressor.windows import Axis, Windows, index_of
from tests.compressor.naive import divide, windowed

LENGTHS = range(1, 41)
RATIOS = range(1, 9)


@pytest.mark.parametrize("ratio", RATIOS)
def test_windows_of_every_length(ratio: int) -> None:
    for length in LENGTHS:
        axis = Axis.split(length, ratio)
        ends = [start + axis.size for start in axis.starts]
        overlaps = [end - start for start, end in zip(axis.starts[1:], ends, strict=False)]
        assert len(axis.starts) == ceil(length / ratio)
        assert axis.size <= ratio
        assert axis.starts[0] == 0 and ends[-1] == length
        assert set(overlaps) <= {0, 1}
        assert axis.even == (sum(overlaps) == 0)
        assert overlaps == sorted(overlaps), "those that overlap come last"


@pytest.mark.parametrize("ratio", RATIOS)
def test_they_are_the_authors_windows(ratio: int) -> None:
    for length in LENGTHS:
        expected = windowed(torch.arange(length), ratio).T
        assert torch.equal(Axis.split(length, ratio).index(), expected)


def test_five_frames_in_groups_of_four_are_two_windows_of_three() -> None:
    assert Axis.split(5, 4) == Axis(5, (0, 2), 3)


@pytest.mark.parametrize("grid", [(1, 1, 1), (4, 6, 9), (5, 7, 4), (2, 9, 10)])
def test_index_is_a_cut_into_groups(grid: tuple[int, int, int]) -> None:
    windows = Windows.split(grid, (4, 3, 3))
    tokens = torch.arange(windows.time.length * windows.height.length * windows.width.length)
    expected = divide(tokens.view(*grid, 1), (4, 3, 3))[..., 0]
    assert torch.equal(index_of(windows, torch.device("cpu")), expected)
