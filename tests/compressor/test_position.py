"""3D positions: the table of places gives the embedding of every token."""

from __future__ import annotations

import pytest
import torch

from compressor.config import Position
from compressor.position import places
from tests.compressor import naive

GRID = (5, 3, 4)
EXACT = (torch.device("cpu"), torch.float64)


@pytest.mark.parametrize("kind", Position)
def test_a_token_is_the_sum_of_its_places(kind: Position) -> None:
    frames, rows, columns = places(kind, GRID, 48, EXACT).split(GRID)
    summed = frames[:, None, None] + rows[None, :, None] + columns[None, None]
    assert torch.allclose(summed, naive.position(kind, GRID, 48), atol=1e-12)


def test_split_gives_each_axis_its_channels() -> None:
    frames, rows, columns = places(Position.SPLIT, GRID, 32, EXACT).split(GRID)
    assert [(table != 0).any(0).nonzero().flatten().tolist() for table in (rows, columns, frames)] == [
        list(range(0, 12)),
        list(range(12, 24)),
        list(range(24, 32)),
    ]


def test_a_longer_video_keeps_the_positions_of_a_shorter_one() -> None:
    short = places(Position.SUM, GRID, 32, EXACT)
    long = places(Position.SUM, (300, 3, 4), 32, EXACT)
    assert torch.equal(short[:5], long[:5]) and torch.equal(short[5:], long[300:])


def test_a_table_made_in_inference_mode_can_be_trained_with() -> None:
    grid = (2, 2, 19)
    with torch.inference_mode():
        places(Position.SUM, grid, 16, EXACT)
    queries = torch.ones(1, 16, dtype=torch.float64, requires_grad=True)
    (queries @ places(Position.SUM, grid, 16, EXACT).T).sum().backward()
    assert queries.grad is not None
