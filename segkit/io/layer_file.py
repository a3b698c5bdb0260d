"""Layers of a scene in a temporary file, written window by window and read as rows."""

from __future__ import annotations

import math
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from rasterio.windows import Window


class LayerFile:
    """Layers of a scene in a file; pixels that are not written are 0.

    Rows are written with `write`, not through a memory map, so that a full disk is an error and not a crash.

    Parameters
    ----------
    file
        An empty file that can be read and written.
    layers
        Number of layers.
    shape
        Rows and columns of the scene.
    dtype
        Data type of the layers.
    """

    def __init__(self, file: IO[bytes], layers: int, shape: tuple[int, int], dtype: DTypeLike) -> None:
        self._file, self._layers, self._shape, self._dtype = file, layers, shape, np.dtype(dtype)
        file.truncate(math.prod((layers, *shape)) * self._dtype.itemsize)

    def write(self, window: Window, values: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> None:
        """Store a window, (layers, H, W); with a `mask` (H, W) only the pixels in it."""
        top, left = int(window.row_off), int(window.col_off)
        for layer, rows in enumerate(values.astype(self._dtype, copy=False)):
            for number, row in enumerate(rows):
                if mask is not None:
                    if not mask[number].any():
                        continue
                    row = np.where(mask[number], row, self._read(layer, top + number, left, len(row)))
                self._file.seek(self._offset(layer, top + number, left))
                self._file.write(row.tobytes())

    def read(self, top: int, bottom: int) -> NDArray[Any]:
        """Return the rows from `top` to `bottom` (exclusive), (layers, H, W)."""
        size = (bottom - top) * self._shape[1]
        found = np.stack([self._read(layer, top, 0, size) for layer in range(self._layers)])
        return found.reshape(self._layers, bottom - top, self._shape[1])

    def _read(self, layer: int, row: int, column: int, size: int) -> NDArray[Any]:
        self._file.seek(self._offset(layer, row, column))
        return np.frombuffer(self._file.read(size * self._dtype.itemsize), self._dtype)

    def _offset(self, layer: int, row: int, column: int) -> int:
        """Return the position of a pixel in the file, in bytes."""
        return ((layer * self._shape[0] + row) * self._shape[1] + column) * self._dtype.itemsize
