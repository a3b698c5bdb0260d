"""Rasters on another grid, computed in blocks with fixed places, so that no pixel depends on the window that is read.

GDAL interpolates coordinates within the part that it warps at once, so other windows would give other pixels.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.io.grid import Grid, split_window
from segkit.io.raster import read_mask, read_window
from segkit.io.warp import warp_to

_BLOCK_PX = 512
_CACHE_BYTES, _MIN_CACHED_BLOCKS = 2**26, 8
# Largest error of interpolated coordinates, in pixels of the raster; a smaller one takes more time.
_TOLERANCE_PX = 0.01


class WarpedBlocks(ABC):
    """A raster on another grid, with the attributes and methods of a rasterio dataset that segkit uses.

    Parameters
    ----------
    dataset
        The open raster.
    bands
        Numbers of the bands that can be read.
    nodatavals
        No-data value of each band of the raster; None if a mask says what is no data.
    """

    def __init__(self, dataset: Any, grid: Grid, bands: Sequence[int], nodatavals: Sequence[float | None]) -> None:
        self._grid, self._bands = grid, list(bands)
        self.name, self.count, self.indexes, self.dtypes = dataset.name, dataset.count, dataset.indexes, dataset.dtypes
        self.height, self.width, self.transform, self.crs = grid.height, grid.width, grid.transform, grid.crs
        self.colorinterp = (ColorInterp.undefined,) * dataset.count
        self.nodatavals = tuple(nodatavals)
        self.mask_flag_enums = ([MaskFlags.nodata],) * dataset.count  # each band has a mask of its own
        self._block_dtype = np.result_type(*(dataset.dtypes[band - 1] for band in self._bands))
        block_bytes = _BLOCK_PX**2 * len(self._bands) * (self._block_dtype.itemsize + 1)
        cached = max(_MIN_CACHED_BLOCKS, _CACHE_BYTES // block_bytes)
        self._cached_block = functools.lru_cache(maxsize=cached)(self._warp_at)

    @abstractmethod
    def _warp(self, block: Grid) -> tuple[NDArray[Any], NDArray[np.uint8]] | None:
        """Return values and masks (bands, H, W) of a block; None if it lies outside of the raster."""

    def read(
        self,
        indexes: Sequence[int],
        *,
        window: Window,
        out: NDArray[Any] | None = None,
        masked: bool = False,
    ) -> NDArray[Any]:
        """Read bands of a window inside the grid, as (bands, H, W)."""
        bands = [self._bands.index(band) for band in indexes]
        shape = len(bands), int(window.height), int(window.width)
        values = np.empty(shape, dtype=self._block_dtype) if out is None else out
        masks = np.empty(shape, dtype=np.uint8)
        for place, found, mask in self._blocks(window):
            rows, columns = place
            values[:, rows, columns] = found[bands]
            masks[:, rows, columns] = mask[bands]
        return np.ma.MaskedArray(values, masks == 0) if masked else values

    def read_masks(self, band: int, *, window: Window) -> NDArray[np.uint8]:
        """Return the mask of a band, uint8 (H, W): 0 is no data."""
        found: NDArray[np.uint8] = np.empty((int(window.height), int(window.width)), dtype=np.uint8)
        for place, _, mask in self._blocks(window):
            found[place] = mask[self._bands.index(band)]
        return found

    def read_coverage(self, window: Window) -> NDArray[np.bool_]:
        """Return where there is data, bool (H, W)."""
        return self.read_masks(self._bands[0], window=window) > 0

    def _blocks(self, window: Window) -> Iterator[tuple[tuple[slice, slice], NDArray[Any], NDArray[np.uint8]]]:
        """Yield the values and masks of a window block by block, with their place in it."""
        top, left = int(window.row_off), int(window.col_off)
        bottom, right = top + int(window.height), left + int(window.width)
        first_row, first_column = top // _BLOCK_PX * _BLOCK_PX, left // _BLOCK_PX * _BLOCK_PX
        for block in split_window(Window(first_column, first_row, right - first_column, bottom - first_row), _BLOCK_PX):
            row, column = int(block.row_off), int(block.col_off)
            values, masks = self._cached_block(row, column)
            first, last = max(row, top), min(row + _BLOCK_PX, bottom)
            start, end = max(column, left), min(column + _BLOCK_PX, right)
            inside = slice(None), slice(first - row, last - row), slice(start - column, end - column)
            yield (slice(first - top, last - top), slice(start - left, end - left)), values[inside], masks[inside]

    def _warp_at(self, row: int, column: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Return values and masks (bands, H, W) of the block that starts in a row and a column."""
        height, width = min(_BLOCK_PX, self.height - row), min(_BLOCK_PX, self.width - column)
        found = self._warp(self._grid.subgrid(Window(column, row, width, height)))
        if found is not None:
            return found
        shape = len(self._bands), height, width
        values = np.empty(shape, dtype=self._block_dtype)
        for band, layer in zip(self._bands, values, strict=True):
            layer.fill(self.nodatavals[band - 1] or 0)
        return values, np.zeros(shape, dtype=np.uint8)

    def _read_warped(
        self, dataset: DatasetReader, block: Grid, resampling: Resampling, *, nodata: float | None = None
    ) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Warp a raster to a block; return values and masks (bands, H, W)."""
        with warp_to(dataset, block, resampling, nodata=nodata, tolerance=_TOLERANCE_PX) as warped:
            values = read_window(warped, self._bands, block.full_window)
            if warped.count == dataset.count:
                return values, np.stack([read_mask(warped, band, block.full_window) for band in self._bands])
            # The band that was added is 0 where there is no data. GDAL takes it for a mask only in unsigned types.
            known = read_window(warped, [warped.count], block.full_window) > 0
            return values, np.repeat(known.astype(np.uint8), len(self._bands), axis=0)


class WarpedFile(WarpedBlocks):
    """One file on another grid; parameters as for `segkit.io.warp.warp_to`."""

    def __init__(
        self, dataset: DatasetReader, grid: Grid, bands: Sequence[int], resampling: Resampling, nodata: float | None
    ) -> None:
        super().__init__(dataset, grid, bands, dataset.nodatavals if nodata is None else (nodata,) * dataset.count)
        self._dataset, self._resampling, self._given_nodata = dataset, resampling, nodata

    def _warp(self, block: Grid) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        return self._read_warped(self._dataset, block, self._resampling, nodata=self._given_nodata)
