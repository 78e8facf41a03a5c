"""Cosines that depend on the two vectors alone, not on what else is in the batch nor on the machine.

A matrix product may add in another order when its shape or the processor changes, and then the last bits differ:
enough to reorder two videos or to move a frame across a threshold. Here the products are exact (two float32 fit
into a float64), each sum runs over one row in numpy's fixed pairwise order, and the result is rounded to float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


def cosines(rows_ND: Vectors, to_CD: Vectors) -> Vectors:
    """Cosines [N, C] of unit vectors [N, D] to unit vectors [C, D]."""
    assert rows_ND.ndim == to_CD.ndim == 2 and rows_ND.shape[1] == to_CD.shape[1], (rows_ND.shape, to_CD.shape)
    rows, to = np.ascontiguousarray(rows_ND, np.float64), np.asarray(to_CD, np.float64)
    out = np.empty((len(rows), len(to)), np.float32)
    for c, vector in enumerate(to):
        out[:, c] = (rows * vector).sum(axis=1)
    return out
