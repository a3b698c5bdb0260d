"""Windows that can be labelled: side by side in a scene, and what is known of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.errors import UsageError
from segkit.io.grid import Grid
from segkit.io.quantities import parse_length
from segkit.io.scene import Scene

BAND_STATISTICS = "band statistics"  # what `describe_windows` returns
_MIN_SIDE_PX = 8  # of a window; texture of fewer pixels says nothing
_READ_PX = 2048  # columns that are read at once


@dataclass(frozen=True)
class Lattice:
    """Windows of one size that lie side by side in the middle of a scene, as many as fit; numbered row by row.

    Parameters
    ----------
    grid
        Of the scene.
    height, width
        Of a window, in pixels.
    """

    grid: Grid
    height: int
    width: int

    @classmethod
    def from_size(cls, grid: Grid, size: str, name: str) -> Lattice:
        """Return the windows of a scene whose side is `size` ("128px" or "500m"), at most the scene's.

        Raises
        ------
        UsageError
            The size has no unit, or is less than 8 pixels.
        GridError
            It is in metres, and the scene `name` has no CRS.
        """
        side = parse_length(size, "--size")
        along_row, along_column = (1.0, 1.0) if side.pixels else grid.pixel_metres()
        height, width = round(side.number / along_column), round(side.number / along_row)
        if min(height, width) < _MIN_SIDE_PX:
            raise UsageError(
                f"--size {size}: a window of {name} has {height} x {width} pixels; give {_MIN_SIDE_PX} or more on each "
                "side"
            )
        return cls(grid, min(height, grid.height), min(width, grid.width))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        return self.grid.height // self.height, self.grid.width // self.width

    @property
    def origin(self) -> tuple[int, int]:
        """Row and column of the first pixel of the first window."""
        rows, columns = self.shape
        return (self.grid.height - rows * self.height) // 2, (self.grid.width - columns * self.width) // 2

    def __len__(self) -> int:
        return self.shape[0] * self.shape[1]

    def window(self, index: int) -> Window:
        """Return the window of a number."""
        row, column = divmod(index, self.shape[1])
        top, left = self.origin
        return Window(left + column * self.width, top + row * self.height, self.width, self.height)

    def sums(self, values: NDArray[np.floating], window: Window) -> tuple[slice, slice, NDArray[np.float64]]:
        """Return the sums of the pixels (H, W) of any part of the scene within each window that it meets.

        Returns
        -------
        Rows and columns of windows, and the sums (rows, columns).
        """
        parts, spans = [], []
        starts = (int(window.row_off), int(window.col_off))
        for axis, side in enumerate((self.height, self.width)):
            first = starts[axis] - self.origin[axis]
            begin, end = max(0, -first), min(values.shape[axis], self.shape[axis] * side - first)
            if begin >= end:
                return slice(0), slice(0), np.zeros((0, 0))
            low, high = (first + begin) // side, (first + end - 1) // side + 1
            cuts = np.maximum(np.arange(low, high) * side - first, begin)
            parts.append((slice(begin, end), cuts - begin))
            spans.append(slice(low, high))
        (rows, row_cuts), (columns, column_cuts) = parts
        inside = values[rows, columns].astype(np.float64)
        return *spans, np.add.reduceat(np.add.reduceat(inside, row_cuts, axis=0), column_cuts, axis=1)  # type: ignore[return-value]


def describe_windows(
    scene: Scene, lattice: Lattice, advance: Callable[[float], None]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Read a scene once, a row of windows at a time, and describe each window.

    Returns
    -------
    valid
        (windows,): share of valid pixels.
    features
        float32 (windows, 3 * bands): of each band the mean, the standard deviation, and the texture, which is the mean
        difference of neighbouring pixels. NaN where a band has no valid pixel.
    """
    valid, features = [], []
    with scene.open() as reader:
        for part in _read_parts(lattice):
            tile = reader.read(part)
            count = part.width // lattice.width
            shape = (lattice.height, count, lattice.width)
            valid.append(tile.valid.reshape(shape).mean(axis=(0, 2)))
            pixels = np.where(tile.valid, tile.pixels, np.float32(np.nan)).reshape(-1, *shape)
            features.append(_describe(pixels))
            advance(part.width * part.height / 1e6)
    return np.concatenate(valid), np.concatenate(features)


def _read_parts(lattice: Lattice) -> Iterator[Window]:
    """Return the windows in which a scene is read: whole windows of the lattice side by side, in their order."""
    rows, columns = lattice.shape
    step = max(1, _READ_PX // lattice.width)
    for row in range(rows):
        for column in range(0, columns, step):
            first = lattice.window(row * columns + column)
            width = min(step, columns - column) * lattice.width
            yield Window(first.col_off, first.row_off, width, lattice.height)


def _describe(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the features of the windows (bands, H, windows, W), see `describe_windows`."""
    mean = _nan_mean(pixels, (1, 3))
    spread = np.sqrt(_nan_mean((pixels - mean[:, None, :, None]) ** 2, (1, 3)))
    texture = [_nan_mean(np.abs(np.diff(pixels, axis=axis)), (1, 3)) for axis in (1, 3)]
    return np.concatenate([mean, spread, (texture[0] + texture[1]) / 2]).T.astype(np.float32)


def _nan_mean(values: NDArray[np.float32], axes: tuple[int, int]) -> NDArray[np.float32]:
    """Return the mean of the numbers along axes; NaN without any."""
    known = np.isfinite(values)
    number = known.sum(axis=axes)
    total = np.where(known, values, 0).sum(axis=axes, dtype=np.float64)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan).astype(np.float32)
