"""Runs: a band of a map as stretches of equal pixels, row by row. A map has far fewer runs than pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.errors import DataError
from segkit.raster import read_window

# The code of runs without data; no class may have it.
NO_DATA = -(2**31)
_STRIP_PIXELS = 2**21


@dataclass(frozen=True)
class Runs:
    """A band of H rows as runs, in raster order; a run ends at the next one's start or at the end of its row.

    Parameters
    ----------
    row
        int64 (H + 1,): the runs of row r are number row[r] to row[r + 1]; each row has at least one.
    first
        int32 (runs,): the column where each starts.
    code
        int32 (runs,): its pixels' value, or `NO_DATA`.
    width
        Pixels in a row.
    """

    row: NDArray[np.int64]
    first: NDArray[np.int32]
    code: NDArray[np.int32]
    width: int

    def lengths(self) -> NDArray[np.int32]:
        """Pixels in each run."""
        end = np.empty_like(self.first)
        end[:-1] = self.first[1:]
        end[self.row[1:] - 1] = self.width
        return end - self.first

    def kinds(self, codes: Sequence[int]) -> NDArray[np.int64]:
        """Each run's position in ascending `codes`, -1 where its code is not among them."""
        kind = np.searchsorted(np.array(codes, dtype=np.int32), self.code)
        kind[~np.isin(self.code, codes)] = -1
        return kind

    def within(self, window: Window) -> tuple[slice, NDArray[np.int64]]:
        """Return which runs lie in a window of whole rows, and where each starts in the window's flattened pixels."""
        top, bottom = int(window.row_off), int(window.row_off + window.height)
        part = slice(self.row[top], self.row[bottom])
        row = np.repeat(np.arange(bottom - top), np.diff(self.row[top : bottom + 1]))
        return part, row * self.width + self.first[part]


def read_runs(dataset: DatasetReader, band: int, advance: Callable[[float], None]) -> Runs:
    """Read a band of whole numbers as runs; `advance` is called with the rows done.

    Raises
    ------
    DataError
        A value is no 32-bit number.
    RasterError
        The file is damaged.
    """
    counts, firsts, codes = [np.zeros(1, dtype=np.int64)], [], []
    for window in strips(dataset):
        pixels = read_window(dataset, [band], window, masked=True)[0]
        values = _as_codes(dataset, pixels)
        starts = np.ones(values.shape, dtype=bool)
        np.not_equal(values[:, 1:], values[:, :-1], out=starts[:, 1:])
        counts.append(np.count_nonzero(starts, axis=1))
        firsts.append(np.nonzero(starts)[1].astype(np.int32))
        codes.append(values[starts])
        advance(window.height)
    return Runs(np.cumsum(np.concatenate(counts)), np.concatenate(firsts), np.concatenate(codes), dataset.width)


def strips(dataset: DatasetReader) -> Iterator[Window]:
    """Yield windows of whole rows that cover a raster, of whole blocks and some two million pixels."""
    block = dataset.block_shapes[0][0]
    height = max(1, _STRIP_PIXELS // dataset.width // block) * block
    for top in range(0, dataset.height, height):
        yield Window(0, top, dataset.width, min(height, dataset.height - top))


def _as_codes(dataset: DatasetReader, pixels: Any) -> NDArray[np.int32]:
    """Turn a masked array of whole numbers into codes."""
    if pixels.dtype.itemsize > 2:
        for value in (pixels.min(), pixels.max()):
            if value is not np.ma.masked and not NO_DATA < value < 2**31:
                raise DataError(
                    f"{dataset.name}: holds the code {value}; codes lie above {NO_DATA} and below {2**31}: "
                    "reclassify the map"
                )
    codes: NDArray[np.int32] = pixels.data.astype(np.int32)
    codes[np.ma.getmaskarray(pixels)] = NO_DATA
    return codes
