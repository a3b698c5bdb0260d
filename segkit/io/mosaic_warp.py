"""Mosaics on another grid.

GDAL warps files. So the part of a mosaic that a block of the other grid needs is copied to memory, and warped from
there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rasterio.io import DatasetReader, MemoryFile
from rasterio.warp import transform
from rasterio.windows import Window

from segkit.io.block_warp import WarpedBlocks, WarpedFile
from segkit.io.grid import Grid
from segkit.io.mosaic_dataset import MosaicDataset
from segkit.io.raster import read_window
from segkit.io.warp import warp_to

_EDGE_POINTS = 21  # at which the edges of a block are transformed to find the pixels it needs


class WarpedMosaic(WarpedBlocks):
    """A mosaic on another grid; see `MosaicDataset` for what it is to its users."""

    def __init__(
        self, mosaic: MosaicDataset, grid: Grid, resampling: Resampling, *, ignore_nodata: bool, nodata: float | None
    ) -> None:
        mosaic.require_stored_values()
        # The files' own value is that of all of them.
        self._nodata = None if ignore_nodata else mosaic.nodatavals[0] if nodata is None else nodata
        super().__init__(mosaic, grid, mosaic.indexes, (self._nodata,) * mosaic.count)
        self._mosaic, self._resampling = mosaic, resampling

    def _warp(self, block: Grid) -> tuple[NDArray[Any], NDArray[np.uint8]] | None:
        needed = self._needed(block)
        if needed is None:
            return None
        with self._copy(needed) as copy:
            return self._read_warped(copy, block, self._resampling)

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


def warp_bands(
    dataset: Any, grid: Grid, bands: Sequence[int], resampling: Resampling, *, nodata: float | None = None
) -> WarpedBlocks:
    """Return bands of an open raster, which may be a mosaic, on another grid; see `segkit.io.warp.warp_to`."""
    if isinstance(dataset, MosaicDataset):
        return WarpedMosaic(dataset, grid, resampling, ignore_nodata=False, nodata=nodata)
    return WarpedFile(dataset, grid, bands, resampling, nodata)


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
