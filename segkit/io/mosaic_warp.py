"""Mosaics on another grid.

GDAL warps files. So the part of a mosaic that a block of the other grid needs is copied to memory, and warped from
there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.errors import UnreadableError
from segkit.io.block_warp import WarpedBlocks, WarpedCopies, warp_file
from segkit.io.grid import Grid
from segkit.io.mosaic_dataset import MosaicDataset
from segkit.io.raster import read_window
from segkit.io.unreadable import PartialRaster
from segkit.io.warp import warp_to


class WarpedMosaic(WarpedCopies):
    """A mosaic, or a raster with holes, on another grid; see `MosaicDataset` for what it is to its users."""

    def __init__(
        self,
        mosaic: MosaicDataset | PartialRaster,
        grid: Grid,
        resampling: Resampling,
        *,
        ignore_nodata: bool,
        nodata: float | None,
    ) -> None:
        mosaic.require_stored_values()
        # The files' own value is that of all of them.
        value = None if ignore_nodata else mosaic.nodatavals[0] if nodata is None else nodata
        super().__init__(mosaic, grid, mosaic.indexes, resampling, value)

    def _read_part(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        values = read_window(self._dataset, self._bands, window)
        if self._nodata is None:
            return values, self._mask(window)
        values[:, ~self._dataset.read_coverage(window)] = self._nodata
        return values, None

    def _mask(self, window: Window) -> NDArray[np.bool_]:
        """Return where the mosaic has data: where there is a file, if its masks are ignored as its no-data value is."""
        covered: NDArray[np.bool_] = self._dataset.read_coverage(window)
        if self._dataset.nodatavals[0] is not None:
            return covered
        for band in self._bands:
            covered &= self._dataset.read_masks(band, window=window) > 0
        return covered


class PartialWarp:
    """A `PartialRaster` on another grid; windows that cannot be warped from the file are warped from copies.

    Its no-data value is ignored; the last band is 0 where there is no data.
    """

    def __init__(self, raster: PartialRaster, grid: Grid, resampling: Resampling) -> None:
        self._raster, self._grid, self._resampling = raster, grid, resampling
        self._warped = self._open()
        self.name, self.count, self.dtypes = self._warped.name, self._warped.count, self._warped.dtypes
        self._copies = WarpedMosaic(raster, grid, resampling, ignore_nodata=True, nodata=None)

    def _open(self) -> DatasetReader:
        return warp_to(self._raster.dataset, self._grid, self._resampling, ignore_nodata=True)

    def read(self, indexes: Sequence[int], *, window: Window) -> NDArray[Any]:
        """Read bands of a window inside the grid, as (bands, H, W)."""
        try:
            return read_window(self._warped, indexes, window)
        except UnreadableError:
            self._raster.open_again()
            self._warped = self._open()
        found = {band: self._copies.read([band], window=window)[0] for band in indexes if band < self.count}
        found[self.count] = self._copies.read_coverage(window).astype(np.uint8)
        return np.stack([found[band] for band in indexes])


def warp_bands(
    dataset: Any, grid: Grid, bands: Sequence[int], resampling: Resampling, *, nodata: float | None = None
) -> WarpedBlocks:
    """Return bands of an open raster, which may be a mosaic, on another grid; see `segkit.io.warp.warp_to`."""
    if isinstance(dataset, MosaicDataset):
        return WarpedMosaic(dataset, grid, resampling, ignore_nodata=False, nodata=nodata)
    return warp_file(dataset, grid, bands, resampling, nodata)


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
