"""Mosaics on another grid.

GDAL warps files. So the part of a mosaic that a block of the other grid needs is copied to memory, and warped from
there. Blocks have fixed places, so that a pixel does not depend on the window that is read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader, MemoryFile
from rasterio.warp import transform
from rasterio.windows import Window

from segkit.io.grid import Grid, split_window
from segkit.io.mosaic_dataset import MosaicDataset
from segkit.io.raster import read_mask, read_window
from segkit.io.warp import warp_to

_BLOCK_PX = 512
_CACHED_BLOCKS = 8
_EDGE_POINTS = 21  # at which the edges of a block are transformed to find the pixels it needs


class WarpedMosaic:
    """A mosaic on another grid; see `MosaicDataset` for what it is to its users."""

    def __init__(
        self, mosaic: MosaicDataset, grid: Grid, resampling: Resampling, *, ignore_nodata: bool, nodata: float | None
    ) -> None:
        self._mosaic, self._grid, self._resampling = mosaic, grid, resampling
        mosaic.require_stored_values()
        # The files' own value is that of all of them.
        self._nodata = None if ignore_nodata else mosaic.nodatavals[0] if nodata is None else nodata
        self.name, self.count, self.indexes, self.dtypes = mosaic.name, mosaic.count, mosaic.indexes, mosaic.dtypes
        self.height, self.width, self.transform, self.crs = grid.height, grid.width, grid.transform, grid.crs
        self.colorinterp = (ColorInterp.undefined,) * mosaic.count
        self.nodatavals = (self._nodata,) * mosaic.count
        flag = MaskFlags.per_dataset if self._nodata is None else MaskFlags.nodata
        self.mask_flag_enums = ([flag],) * mosaic.count
        self._warp_block = functools.lru_cache(maxsize=_CACHED_BLOCKS)(self._warp)

    def read(
        self,
        indexes: Sequence[int],
        *,
        window: Window,
        out: NDArray[Any] | None = None,
        masked: bool = False,
    ) -> NDArray[Any]:
        """Read bands of a window inside the grid, as (bands, H, W)."""
        bands = list(indexes)
        shape = len(bands), int(window.height), int(window.width)
        values = np.empty(shape, dtype=np.result_type(*self.dtypes)) if out is None else out
        masks = np.empty(shape, dtype=np.uint8)
        for place, found, mask in self._blocks(window):
            rows, columns = place
            values[:, rows, columns] = found[[band - 1 for band in bands]]
            masks[:, rows, columns] = mask[[band - 1 for band in bands]]
        return np.ma.MaskedArray(values, masks == 0) if masked else values

    def read_masks(self, band: int, *, window: Window) -> NDArray[np.uint8]:
        """Return the mask of a band, uint8 (H, W): 0 is no data."""
        found: NDArray[np.uint8] = np.empty((int(window.height), int(window.width)), dtype=np.uint8)
        for place, _, mask in self._blocks(window):
            found[place] = mask[band - 1]
        return found

    def read_coverage(self, window: Window) -> NDArray[np.bool_]:
        """Return where there is data, bool (H, W)."""
        return self.read_masks(1, window=window) > 0

    def _blocks(self, window: Window) -> Iterator[tuple[tuple[slice, slice], NDArray[Any], NDArray[np.uint8]]]:
        """Yield the values and masks of a window block by block, with their place in it."""
        top, left = int(window.row_off), int(window.col_off)
        bottom, right = top + int(window.height), left + int(window.width)
        first_row, first_column = top // _BLOCK_PX * _BLOCK_PX, left // _BLOCK_PX * _BLOCK_PX
        for block in split_window(Window(first_column, first_row, right - first_column, bottom - first_row), _BLOCK_PX):
            row, column = int(block.row_off), int(block.col_off)
            values, masks = self._warp_block(row, column)
            first, last = max(row, top), min(row + _BLOCK_PX, bottom)
            start, end = max(column, left), min(column + _BLOCK_PX, right)
            inside = slice(None), slice(first - row, last - row), slice(start - column, end - column)
            yield (slice(first - top, last - top), slice(start - left, end - left)), values[inside], masks[inside]

    def _warp(self, row: int, column: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Return values and masks (bands, H, W) of the block that starts in a row and a column."""
        height, width = min(_BLOCK_PX, self.height - row), min(_BLOCK_PX, self.width - column)
        block = self._grid.subgrid(Window(column, row, width, height))
        needed = self._needed(block)
        if needed is None:
            fill = 0 if self._nodata is None else self._nodata
            shape = self.count, height, width
            return np.full(shape, fill, dtype=np.result_type(*self.dtypes)), np.zeros(shape, dtype=np.uint8)
        with self._copy(needed) as copy, warp_to(copy, block, self._resampling) as warped:
            window = Window(0, 0, width, height)
            masks = np.stack([read_mask(warped, band, window) for band in self.indexes])
            return read_window(warped, self.indexes, window), masks

    def _needed(self, block: Grid) -> Window | None:
        """Return the window of the mosaic that a block needs; None if it is outside of it."""
        mosaic = self._mosaic.layout.grid
        along = np.linspace(0, 1, _EDGE_POINTS)
        rows, columns = (each.ravel() for each in np.meshgrid(along * block.height, along * block.width))
        x, y = _apply(block.transform, columns, rows)
        columns, rows = _apply(~mosaic.transform, *map(np.array, transform(block.crs, mosaic.crs, x, y)[:2]))
        finite = np.isfinite(columns) & np.isfinite(rows)
        if not finite.any():
            return None
        spans = []
        for pixels, size, length in (
            (rows[finite], mosaic.height, block.height),
            (columns[finite], mosaic.width, block.width),
        ):
            margin = 3 * math.ceil((pixels.max() - pixels.min()) / length) + 3  # of the resampling, with reserve
            first = max(0, math.floor(pixels.min()) - margin)
            last = min(size, math.ceil(pixels.max()) + margin)
            if first >= last:
                return None
            spans.append((first, last - first))
        (top, height), (left, width) = spans
        return Window(left, top, width, height)

    @contextmanager
    def _copy(self, window: Window) -> Iterator[DatasetReader]:
        """Open a copy in memory of a window of the mosaic."""
        grid = self._mosaic.layout.grid.subgrid(window)
        values = read_window(self._mosaic, self.indexes, window)
        if self._nodata is not None:
            values[:, ~self._mosaic.read_coverage(window)] = self._nodata
        profile = {"driver": "GTiff", "count": self.count, "dtype": values.dtype, "nodata": self._nodata}
        profile |= {"height": grid.height, "width": grid.width, "crs": grid.crs, "transform": grid.transform}
        with ExitStack() as stack:
            memory = stack.enter_context(MemoryFile())
            with memory.open(**profile, photometric="MINISBLACK", BIGTIFF="IF_SAFER") as copy:
                copy.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (self.count - 1)
                copy.write(values)
                if self._nodata is None:
                    copy.write_mask(self._mask(window))
            yield stack.enter_context(memory.open())

    def _mask(self, window: Window) -> NDArray[np.bool_]:
        """Return where the mosaic has data: where there is a file, if its masks are ignored as its no-data value is."""
        covered = self._mosaic.read_coverage(window)
        if self._mosaic.nodatavals[0] is not None:
            return covered
        for band in self.indexes:
            covered &= self._mosaic.read_masks(band, window=window) > 0
        return covered


def _apply(
    affine: Affine, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f


@contextmanager
def warp_raster(
    dataset: Any,
    grid: Grid,
    resampling: Resampling,
    *,
    ignore_nodata: bool = False,
    nodata: float | None = None,
) -> Iterator[DatasetReader | WarpedMosaic]:
    """Open an open raster, which may be a mosaic, on another grid; see `segkit.io.warp.warp_to`."""
    if isinstance(dataset, MosaicDataset):
        yield WarpedMosaic(dataset, grid, resampling, ignore_nodata=ignore_nodata, nodata=nodata)
        return
    with warp_to(dataset, grid, resampling, ignore_nodata=ignore_nodata, nodata=nodata) as warped:
        yield warped
