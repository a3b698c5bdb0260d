"""Rasters on another grid, computed in blocks with fixed places, so that no pixel depends on the window that is read.

GDAL interpolates coordinates within the part that it warps at once, so other windows would give other pixels.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
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

from segkit.errors import UnreadableError
from segkit.io.grid import Grid, split_window
from segkit.io.raster import read_grid, read_mask, read_window
from segkit.io.unreadable import PartialRaster
from segkit.io.warp import warp_to

_BLOCK_PX = 512
_CACHE_BYTES, _MIN_CACHED_BLOCKS = 2**26, 8
# Largest error of interpolated coordinates, in pixels of the raster; a smaller one takes more time.
_TOLERANCE_PX = 0.01
_EDGE_POINTS = 21  # at which the edges of a block are transformed to find the pixels it needs


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
    n_open
        Number of rasters that are open at the same time and share the memory for finished blocks.
    """

    def __init__(
        self, dataset: Any, grid: Grid, bands: Sequence[int], nodatavals: Sequence[float | None], n_open: int = 1
    ) -> None:
        self._grid, self._bands = grid, list(bands)
        self.name, self.count, self.indexes, self.dtypes = dataset.name, dataset.count, dataset.indexes, dataset.dtypes
        self.height, self.width, self.transform, self.crs = grid.height, grid.width, grid.transform, grid.crs
        self.colorinterp = (ColorInterp.undefined,) * dataset.count
        self.nodatavals = tuple(nodatavals)
        self.mask_flag_enums = ([MaskFlags.nodata],) * dataset.count  # each band has a mask of its own
        self._block_dtype = np.result_type(*(dataset.dtypes[band - 1] for band in self._bands))
        block_bytes = _BLOCK_PX**2 * len(self._bands) * (self._block_dtype.itemsize + 1)
        cached = max(2, _MIN_CACHED_BLOCKS // n_open, _CACHE_BYTES // n_open // block_bytes)
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


class WarpedFile(WarpedBlocks):
    """One file on another grid; parameters as for `segkit.io.warp.warp_to`.

    What a block needs of a `PartialRaster` is copied if it cannot be read in one piece.
    """

    def __init__(
        self,
        dataset: DatasetReader | PartialRaster,
        grid: Grid,
        bands: Sequence[int],
        resampling: Resampling,
        nodata: float | None,
        n_open: int = 1,
    ) -> None:
        nodatavals = dataset.nodatavals if nodata is None else (nodata,) * dataset.count
        super().__init__(dataset, grid, bands, nodatavals, n_open)
        self._dataset, self._resampling, self._given_nodata = dataset, resampling, nodata

    def _warp(self, block: Grid) -> tuple[NDArray[Any], NDArray[np.uint8]] | None:
        partial = self._dataset if isinstance(self._dataset, PartialRaster) else None
        whole = self._dataset if partial is None else partial.dataset
        try:
            return _read_warped(whole, block, self._bands, self._resampling, nodata=self._given_nodata)
        except UnreadableError:
            if partial is None:
                raise
        partial.open_again()
        nodata = self.nodatavals[self._bands[0] - 1]
        return MaskedFile(partial, self._grid, self._bands, self._resampling, nodata)._warp(block)


class WarpedCopies(WarpedBlocks):
    """A raster on another grid; the part that a block needs is copied to memory, and warped from there.

    Parameters
    ----------
    dataset, bands
        As for `WarpedBlocks`.
    nodata
        Value of all pixels without data in the copies; None if a mask says where these are.
    """

    def __init__(
        self,
        dataset: Any,
        grid: Grid,
        bands: Sequence[int],
        resampling: Resampling,
        nodata: float | None,
        n_open: int = 1,
    ) -> None:
        super().__init__(dataset, grid, bands, (nodata,) * dataset.count, n_open)
        self._dataset, self._own_grid = dataset, read_grid(dataset)
        self._resampling, self._nodata = resampling, nodata

    @abstractmethod
    def _read_part(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Return values (bands, H, W) of a window of the raster, and the mask (H, W) of its data if there is one."""

    def _warp(self, block: Grid) -> tuple[NDArray[Any], NDArray[np.uint8]] | None:
        needed = self._needed(block)
        if needed is None:
            return None
        with self._copy(needed) as copy:
            return _read_warped(copy, block, copy.indexes, self._resampling)

    def _needed(self, block: Grid) -> Window | None:
        """Return the window of the raster that a block needs; None if it is outside of it."""
        own = self._own_grid
        along = np.linspace(0, 1, _EDGE_POINTS)
        rows, columns = (each.ravel() for each in np.meshgrid(along * block.height, along * block.width))
        x, y = _apply(block.transform, columns, rows)
        columns, rows = _apply(~own.transform, *map(np.array, transform(block.crs, own.crs, x, y)[:2]))
        finite = np.isfinite(columns) & np.isfinite(rows)
        if not finite.any():
            return None
        spans = []
        for pixels, size, length in (
            (rows[finite], own.height, block.height),
            (columns[finite], own.width, block.width),
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
        """Open a copy in memory of a window of the raster."""
        grid = self._own_grid.subgrid(window)
        values, mask = self._read_part(window)
        profile = {"driver": "GTiff", "count": len(values), "dtype": values.dtype, "nodata": self._nodata}
        profile |= {"height": grid.height, "width": grid.width, "crs": grid.crs, "transform": grid.transform}
        with ExitStack() as stack:
            memory = stack.enter_context(MemoryFile())
            with memory.open(**profile, photometric="MINISBLACK", BIGTIFF="IF_SAFER") as copy:
                copy.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (len(values) - 1)
                copy.write(values)
                if mask is not None:
                    copy.write_mask(mask)
            yield stack.enter_context(memory.open())


class MaskedFile(WarpedCopies):
    """One file with a mask; if there is a no-data value, too, what is masked has this value in the copies."""

    def _read_part(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        values = read_window(self._dataset, self._bands, window)
        known = np.stack([read_mask(self._dataset, band, window) > 0 for band in self._bands])
        if self._nodata is None:
            return values, np.asarray(known.all(axis=0), dtype=bool)
        values[~known] = self._nodata
        return values, None


def warp_file(
    dataset: DatasetReader | PartialRaster,
    grid: Grid,
    bands: Sequence[int],
    resampling: Resampling,
    nodata: float | None,
    n_open: int = 1,
) -> WarpedBlocks:
    """Return bands of an open file on another grid; `nodata` means no data besides what the file declares."""
    if nodata is not None and not any(_can_hold(dataset.dtypes[band - 1], nodata) for band in bands):
        nodata = None
    if not _has_two_masks(dataset, bands, nodata):
        return WarpedFile(dataset, grid, bands, resampling, nodata, n_open)
    declared = next((value for band in bands if (value := dataset.nodatavals[band - 1]) is not None), None)
    return MaskedFile(dataset, grid, bands, resampling, declared if nodata is None else nodata, n_open)


def _can_hold(dtype: str, value: float) -> bool:
    """Return whether a value can be stored in a data type."""
    if np.dtype(dtype).kind == "f":
        return True
    limits = np.iinfo(dtype)
    return float(value).is_integer() and limits.min <= value <= limits.max


def _has_two_masks(dataset: DatasetReader | PartialRaster, bands: Sequence[int], nodata: float | None) -> bool:
    """Return whether two things say what is no data, of which GDAL applies one only when it warps a file.

    They are a no-data value, which may be given (`nodata`), and a mask or an alpha band.
    """
    flags = {flag for band in bands for flag in dataset.mask_flag_enums[band - 1]}
    if nodata is not None:
        return MaskFlags.per_dataset in flags
    return MaskFlags.nodata in flags and ColorInterp.alpha in dataset.colorinterp


def _read_warped(
    dataset: DatasetReader, block: Grid, bands: Sequence[int], resampling: Resampling, *, nodata: float | None = None
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Warp a raster to a block; return values and masks (bands, H, W)."""
    with warp_to(dataset, block, resampling, nodata=nodata, tolerance=_TOLERANCE_PX) as warped:
        values = read_window(warped, bands, block.full_window)
        if warped.count == dataset.count:
            return values, np.stack([read_mask(warped, band, block.full_window) for band in bands])
        # The band that was added is 0 where there is no data. GDAL takes it for a mask only in unsigned types.
        known = read_window(warped, [warped.count], block.full_window) > 0
        return values, np.repeat(known.astype(np.uint8), len(bands), axis=0)


def _apply(
    affine: Affine, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f
