"""Squares of pixels of a scene, which intervals and standard errors draw: neighbouring pixels depend on each other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_SQUARES = 400  # of a scene, about


class Squares:
    """Squares side by side from the upper left corner of a scene.

    Parameters
    ----------
    shape
        Rows and columns of the scene.
    min_side
        Least side in pixels.
    """

    def __init__(self, shape: tuple[int, int], min_side: int) -> None:
        height, width = shape
        self._side = max(min_side, math.ceil(math.sqrt(height * width / _MAX_SQUARES)))
        self._columns = -(-width // self._side)
        self.number = self._columns * -(-height // self._side)

    def find(self, row: NDArray[np.integer[Any]], column: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
        """Return the number of the square of each pixel."""
        return row // self._side * self._columns + column // self._side
