"""A mosaic as one raster: it has the attributes and methods of a rasterio dataset that segkit uses.

It can be used in one thread only.
"""

from __future__ import annotations

import contextlib
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.errors import GridError, UsageError
from segkit.io.block_warp import WarpedBlocks, warp_file
from segkit.io.mosaic_layout import MosaicLayout, find_overlaps, tile_part
from segkit.io.pixel_rules import AS_STORED
from segkit.io.raster import open_raster, read_grid, read_mask, read_window
from segkit.io.unreadable import PartialRaster, UnreadableBlocks

# Files of a mosaic that are open at the same time: at most this many, and this share of what the system allows. Each
# holds about a megabyte of decoding buffers, and is opened in 2 ms.
_MAX_OPEN_FILES, _SHARE_OF_LIMIT = 32, 8


_OpenTile: TypeAlias = DatasetReader | PartialRaster | WarpedBlocks


class TilePool:
    """The open files of a mosaic; those used last stay open.

    Attributes
    ----------
    bands, rules
        Bands that are read of files on another grid, and what means no data in them.
    unreadable
        Where blocks that cannot be read are noted; None: they are errors.
    """

    def __init__(self, layout: MosaicLayout, vrt: bool | None) -> None:
        self._layout, self._vrt = layout, vrt
        self._open: OrderedDict[int, tuple[contextlib.ExitStack, _OpenTile]] = OrderedDict()
        self._limit = _open_files_limit()
        self.bands: Sequence[int] = range(1, len(layout.tiles[0].dtypes) + 1)
        self.rules = AS_STORED
        self.unreadable: UnreadableBlocks | None = None

    def get(self, index: int) -> Any:
        """Return a file, opened if necessary; it stays open until the next call. One on another grid is warped.

        Raises
        ------
        GridError
            Its grid or its bands have changed.
        """
        if index not in self._open:
            while len(self._open) >= self._limit:
                self._open.popitem(last=False)[1][0].close()
            self._open[index] = self._open_tile(index)
        self._open.move_to_end(index)
        return self._open[index][1]

    def _open_tile(self, index: int) -> tuple[contextlib.ExitStack, _OpenTile]:
        tile = self._layout.tiles[index]
        with contextlib.ExitStack() as stack:
            dataset = stack.enter_context(open_raster(tile.path, vrt=self._vrt))
            difference = tile.grid.describe_difference(read_grid(dataset))
            if difference or tuple(dataset.dtypes) != tile.dtypes:
                raise GridError(
                    f"{tile.path}: {difference or 'its bands have'} changed since the mosaic was opened; try again"
                )
            found = dataset if self.unreadable is None else PartialRaster(dataset, self.unreadable)
            if tile.resampled:
                grid = self._layout.grid.subgrid(tile.window)
                nodata = self.rules.resampling_nodata(str(tile.path), tile.nodatavals)
                return stack.pop_all(), warp_file(found, grid, self.bands, Resampling.bilinear, nodata, self._limit)
            return stack.pop_all(), found

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self._open.popitem()[1][0].close()


def _open_files_limit() -> int:
    if sys.platform == "win32":
        return _MAX_OPEN_FILES
    import resource

    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    limited = allowed != resource.RLIM_INFINITY
    return max(2, min(_MAX_OPEN_FILES, allowed // _SHARE_OF_LIMIT)) if limited else _MAX_OPEN_FILES


class MosaicDataset:
    """Files that lie side by side as one raster of stored values; made by `open_mosaic`.

    Where no file is, and in pixels that are no data in all files, a pixel is no data. A pixel of several files is from
    the first one (or the last one) in which it has data. What files declare differently (no-data values, scales) raises
    an error when it is asked for.
    """

    driver = "mosaic"

    def __init__(self, layout: MosaicLayout, pool: TilePool) -> None:
        self.layout, self.pool = layout, pool
        first, grid = layout.tiles[0], layout.grid
        self.name, self.height, self.width, self.transform = layout.name, grid.height, grid.width, grid.transform
        self.crs: CRS | None = grid.crs
        self.count = len(first.dtypes)
        self.indexes = tuple(range(1, self.count + 1))
        self.colorinterp = tuple(ColorInterp.alpha if alpha else ColorInterp.undefined for alpha in first.alpha)
        # Files may lack the name of a band.
        self.descriptions = tuple(
            next((name for name in names if name), None)
            for names in zip(*(tile.descriptions for tile in layout.tiles), strict=True)
        )
        by_band = zip(*(tile.dtypes for tile in layout.tiles), strict=True)
        self.dtypes = tuple(np.result_type(*map(np.dtype, dtypes)).name for dtypes in by_band)
        rows = min(max(tile.block_rows for tile in layout.tiles), grid.height)
        self.block_shapes = ((rows, grid.width),) * self.count

    @property
    def files(self) -> list[Path]:
        """All files that GDAL reads."""
        return [file for tile in self.layout.tiles for file in tile.files]

    @property
    def nodatavals(self) -> tuple[float | None, ...]:
        """The no-data value of each band."""
        found: tuple[float | None, ...] = self.layout.common("nodatavals", "no-data value")
        return found

    @property
    def nodata(self) -> float | None:
        """The no-data value of the first band."""
        return self.nodatavals[0]

    @property
    def scales(self) -> tuple[float, ...]:
        """The scale of each band."""
        found: tuple[float, ...] = self.layout.common("scales", "scale")
        return found

    @property
    def offsets(self) -> tuple[float, ...]:
        """The offset of each band."""
        found: tuple[float, ...] = self.layout.common("offsets", "offset")
        return found

    @property
    def mask_flag_enums(self) -> tuple[list[MaskFlags], ...]:
        """Kind of the mask of each band."""
        flags = [tile.mask_flags for tile in self.layout.tiles]
        alike = all(each == flags[0] for each in flags)
        nodata = self.nodatavals  # also if a mask is read: pixels may have the value
        complete = self.layout.is_covered or all(value is not None for value in nodata)
        if alike and complete and all(MaskFlags.per_dataset not in each for each in flags[0]):
            return tuple(map(list, flags[0]))
        return ([MaskFlags.per_dataset],) * self.count

    def tags(self, bidx: int = 0, ns: str | None = None) -> dict[str, str]:
        """Return the tags of the first file."""
        found: dict[str, str] = self.pool.get(0).tags(bidx, ns=ns)
        return found

    def parts(self) -> Iterator[tuple[Path, DatasetReader]]:
        """Yield each file, open until the next one is."""
        for index, tile in enumerate(self.layout.tiles):
            yield tile.path, self.pool.get(index)

    def read(
        self,
        indexes: Sequence[int] | int,
        *,
        window: Window | None = None,
        out: NDArray[Any] | None = None,
        masked: bool = False,
    ) -> NDArray[Any]:
        """Read bands of a window inside the raster, (bands, H, W), or (H, W) for one number; see rasterio.

        Raises
        ------
        GridError, UsageError
            A file is on another grid, or a pixel would be the mean of several: neither is possible for stored values.
        """
        self.require_stored_values()
        window = window or Window(0, 0, self.width, self.height)
        bands = [indexes] if isinstance(indexes, int) else list(indexes)
        shape = len(bands), int(window.height), int(window.width)
        values = np.empty(shape, dtype=np.result_type(*(self.dtypes[b - 1] for b in bands))) if out is None else out
        for place, band in enumerate(bands):
            nodata = self.layout.tiles[0].nodatavals[band - 1]
            values[place] = 0 if nodata is None else nodata
        chosen = self._choose(bands, window)
        for index, (in_file, (rows, columns)), own in chosen:
            found = read_window(self.pool.get(index), bands, in_file)
            if own is None:
                values[:, rows, columns] = found
            else:
                np.copyto(values[:, rows, columns], found, where=own, casting="unsafe")
        if masked:
            masks = np.stack([self.read_masks(band, window=window) for band in bands])
            values = np.ma.MaskedArray(values, masks == 0)
        return values[0] if isinstance(indexes, int) else values

    def read_masks(self, band: int, *, window: Window | None = None) -> NDArray[np.uint8]:
        """Return the mask of a band, uint8 (H, W): 0 is no data."""
        window = window or Window(0, 0, self.width, self.height)
        mask: NDArray[np.uint8] = np.zeros((int(window.height), int(window.width)), dtype=np.uint8)
        for index in self.layout.find(window):
            in_file, place = tile_part(self.layout.tiles[index], window)
            mask[place] = np.maximum(mask[place], read_mask(self.pool.get(index), band, in_file))
        return mask

    def read_coverage(self, window: Window) -> NDArray[np.bool_]:
        """Return where there is a file that can be read, bool (H, W)."""
        covered = np.zeros((int(window.height), int(window.width)), dtype=bool)
        for index in self.layout.find(window):
            in_file, place = tile_part(self.layout.tiles[index], window)
            partial = None if self.pool.unreadable is None else self.pool.get(index)
            covered[place] |= True if partial is None else partial.read_coverage(in_file)
        return covered

    def require_stored_values(self) -> None:
        """Raise an error unless each pixel is a pixel of one file."""
        if self.layout.overlap == "mean":
            raise UsageError(
                f"{self.name}: only imagery has a mean where files overlap; take the first or last of them"
            )
        if self.layout.is_resampled:
            other = next(tile for tile in self.layout.tiles if tile.resampled)
            raise GridError(
                f"{other.path} is not on the grid of {self.layout.tiles[0].path}; only imagery is resampled within a "
                "mosaic: warp it first (gdalwarp)"
            )

    def _choose(
        self, bands: Sequence[int], window: Window
    ) -> Iterator[tuple[int, tuple[Window, tuple[slice, slice]], NDArray[np.bool_] | None]]:
        """Yield the files in a window with their parts of it, and which of their pixels to take (None: all)."""
        found = self.layout.find(window)
        if not any(find_overlaps(self.layout, found)):
            for index in found:
                yield index, tile_part(self.layout.tiles[index], window), None
            return
        covered = np.zeros((int(window.height), int(window.width)), dtype=bool)
        has_data = np.zeros((len(bands), *covered.shape), dtype=bool)
        for index in found:
            in_file, (rows, columns) = tile_part(self.layout.tiles[index], window)
            dataset = self.pool.get(index)
            masks = np.stack([read_mask(dataset, band, in_file) > 0 for band in bands])
            own = ~has_data[:, rows, columns] & (masks | ~covered[rows, columns])
            has_data[:, rows, columns] |= masks
            covered[rows, columns] = True
            yield index, (in_file, (rows, columns)), own


def read_coverage(dataset: Any, window: Window) -> NDArray[np.bool_]:
    """Return where a raster has pixels, bool (H, W): everywhere, unless it is a mosaic with holes."""
    if hasattr(dataset, "read_coverage"):
        covered: NDArray[np.bool_] = dataset.read_coverage(window)
        return covered
    return np.ones((int(window.height), int(window.width)), dtype=bool)


def with_unreadable(dataset: Any, unreadable: UnreadableBlocks | None) -> Any:
    """Return an open raster of which blocks that cannot be read are no data, and are noted; the same one if None."""
    if unreadable is None:
        return dataset
    if not isinstance(dataset, MosaicDataset):
        return PartialRaster(dataset, unreadable)
    dataset.pool.unreadable = unreadable
    return dataset


@contextlib.contextmanager
def open_mosaic(layout: MosaicLayout, *, vrt: bool | None) -> Iterator[MosaicDataset]:
    """Open a mosaic; its files are opened when they are read."""
    pool = TilePool(layout, vrt)
    try:
        yield MosaicDataset(layout, pool)
    finally:
        pool.close()
