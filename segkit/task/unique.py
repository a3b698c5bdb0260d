"""Codes: which whole numbers occur in an array."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FEW = 2**16  # a table of so many entries is small


def distinct(values: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the codes that occur, sorted, and the place of each value among them, in the values' shape.

    As `numpy.unique` with its inverse. Where codes lie near each other they are counted, which takes a tenth of the
    time of sorting.
    """
    first, last = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if last - first >= FEW:
        codes, place = np.unique(values, return_inverse=True)
        return codes.astype(np.int64), place.reshape(values.shape)
    shifted = values.astype(np.int64) - first
    codes = np.flatnonzero(np.bincount(shifted.ravel()))
    table = np.zeros(last - first + 1, dtype=np.int64)
    table[codes] = np.arange(len(codes))
    return codes + first, table[shifted]
