"""Label rasters on the grid of a scene."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj.exceptions import ProjError
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NodataShadowWarning
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.data.labels.base import COUNT_WINDOW_PX
from segkit.errors import GridError, LabelError, suggest
from segkit.io.cover import grids_within
from segkit.io.grid import Grid, crs_name
from segkit.io.mosaic_dataset import read_coverage
from segkit.io.mosaic_warp import warp_raster
from segkit.io.raster import open_raster, read_grid, read_window
from segkit.recipe.label_source import LabelSource

_LOSSY_DRIVERS = ("JPEG", "WEBP")


@dataclass(frozen=True)
class LabelFile:
    """A raster with one band of codes, one band per class, or bands of red, green and blue.

    Parameters
    ----------
    path, bands
        The file and its label bands.
    grid
        The grid of the scene.
    masked
        Whether to apply the mask or no-data value of the file.
    resample
        Whether to warp the file to `grid`.
    nodata
        The declared no-data value, if it decides which pixels are masked.
    nodata_is_code
        Whether pixels with the value `nodata` are labelled.
    shift
        Row and column of the file at which the scene's first pixel lies; other than (0, 0) if the file covers another
        part of the same lattice of pixels.
    """

    path: Path
    grid: Grid
    bands: tuple[int, ...]
    masked: bool
    resample: bool
    nodata: float | None
    nodata_is_code: bool = False
    shift: tuple[int, int] = (0, 0)

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read stored values (bands, H, W), and a mask that is True where they are unlabelled."""
        with contextlib.ExitStack() as stack:
            dataset: DatasetReader = stack.enter_context(open_raster(self.path))
            if self.resample:
                dataset = stack.enter_context(
                    warp_raster(dataset, self.grid, Resampling.nearest, ignore_nodata=self.nodata_is_code)
                )
            with warnings.catch_warnings():
                # The no-data value takes precedence over an alpha band.
                warnings.simplefilter("ignore", NodataShadowWarning)
                values, masked = self._read_shifted(dataset, window)
        return values, masked | np.isnan(values) if values.dtype.kind == "f" else masked

    def _read_shifted(self, dataset: DatasetReader, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read values and mask of a window of the scene; masked outside the file."""
        top, left = int(window.row_off) + self.shift[0], int(window.col_off) + self.shift[1]
        height, width = int(window.height), int(window.width)
        rows, columns = (
            (max(0, top), min(dataset.height, top + height)),
            (max(0, left), min(dataset.width, left + width)),
        )
        inside = Window(columns[0], rows[0], columns[1] - columns[0], rows[1] - rows[0])
        if (inside.row_off, inside.col_off, inside.height, inside.width) == (top, left, height, width):
            return self._read_inside(dataset, inside)
        values = np.zeros((len(self.bands), height, width), dtype=dataset.dtypes[self.bands[0] - 1])
        masked = np.ones(values.shape, dtype=bool)
        if inside.height > 0 and inside.width > 0:
            part = (slice(None), *(slice(a - b, c - b) for (a, c), b in ((rows, top), (columns, left))))
            values[part], masked[part] = self._read_inside(dataset, inside)
        return values, masked

    def _read_inside(self, dataset: DatasetReader, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read values and mask of a window of the file; masked in the holes of a mosaic."""
        found = read_window(dataset, self.bands, window, masked=self.masked)
        values, masked = np.ma.getdata(found), np.ma.getmaskarray(found)
        if self.nodata_is_code and not self.resample:
            masked &= values != self.nodata
        return values, masked | ~read_coverage(dataset, window)

    def interpret_nodata(
        self, as_code: str | None, source: LabelSource, *, in_all_bands: bool = False
    ) -> tuple[LabelFile, tuple[str, ...]]:
        """Apply `source.nodata` to a no-data value that is also a code; return an ambiguity if that is not set.

        `as_code` describes the meaning of the no-data value as a code; None if it is not a code. It concerns pixels
        with the value in any band, or `in_all_bands`.
        """
        if as_code is None or source.nodata == "ignore":
            return self, ()
        if source.nodata == "code":
            return replace(self, nodata_is_code=True), ()
        as_codes, pixels = replace(self, nodata_is_code=True), 0
        for window in self.grid.tiles(COUNT_WINDOW_PX):
            values, masked = as_codes.read(window)
            found = (values == self.nodata) & ~masked
            pixels += int((found.all(axis=0) if in_all_bands else found.any(axis=0)).sum())
        if not pixels:
            return self, ()
        share = pixels / (self.grid.height * self.grid.width)
        return self, (
            f"{self.path} declares {self.nodata:g} as no data, which is also {as_code} ({share:.1%} of the pixels)",
        )


def label_file_meets(path: Path, grid: Grid) -> bool:
    """Return whether a label raster may cover a part of a grid.

    Raises
    ------
    GridError
        One of the two has no place on the ground.
    """
    with open_raster(path) as dataset:
        file_grid = read_grid(dataset)
    if not (file_grid.has_location and grid.has_location) or (file_grid.crs is None) != (grid.crs is None):
        raise GridError(
            f"{path}: no image has its name, and without a georeference in both files it is not known which part of "
            "it belongs to an image; give images and labels the same names"
        )
    try:
        return bool(grids_within([file_grid, grid], 0))
    except ProjError as error:
        raise GridError(
            f"{path} has the CRS {crs_name(file_grid.crs)}, the image {crs_name(grid.crs)}, and one cannot be "
            "transformed to the other; correct the CRS"
        ) from error


def inspect_label_file(
    path: Path, grid: Grid, classes: int, *, resample: bool, in_color: bool = False
) -> tuple[LabelFile, list[str]]:
    """Inspect a label raster for a number of classes: its label bands, and how it lies on a grid.

    A file on the same lattice of pixels as the grid is not resampled: it may be larger, or cover a part.

    Parameters
    ----------
    in_color
        Whether the first three bands are red, green and blue, unless the file has only one.

    Returns
    -------
    The file, and notes for the user.

    Raises
    ------
    GridError
        The raster is on another grid and `resample` is False, or it cannot be resampled.
    LabelError
        The file has a lossy compression.
    """
    with open_raster(path) as dataset:
        if dataset.driver in _LOSSY_DRIVERS:
            raise LabelError(
                f"{path}: is a {dataset.driver} picture, and the compression of such files changes codes; give the "
                "original label file (PNG, GeoTIFF)"
            )
        file_grid, flags = read_grid(dataset), dataset.mask_flag_enums
        alpha = {band for band in dataset.indexes if dataset.colorinterp[band - 1] == ColorInterp.alpha}
        # GDAL calls the fourth of four byte bands alpha, even if it is the fourth class.
        per_class = dataset.count == classes and not in_color
        bands = tuple(band for band in dataset.indexes if per_class or band not in alpha)
        nodata = dataset.nodata if any(MaskFlags.nodata in flags[band - 1] for band in bands) else None
    alpha_is_class = bool(alpha.intersection(bands)) and any(MaskFlags.alpha in flags[band - 1] for band in bands)
    file = LabelFile(path, grid, bands, not alpha_is_class, False, nodata)
    difference = grid.describe_difference(file_grid)
    if difference is None:
        return file, []
    if file_grid.crs is None and not file_grid.has_location and file_grid.shape == grid.shape:
        return file, [f"{path} has no georeference; it has the size of the image, so its pixels are those of the image"]
    shift = grid.position_in(file_grid)
    if shift is not None and _overlap(shift, grid, file_grid):
        notes = [f"{path} covers only a part of the image; the rest is unlabelled"]
        return replace(file, shift=shift), [] if _covers(shift, grid, file_grid) else notes
    if file_grid.crs is None or grid.crs is None or alpha_is_class:
        reason = "its alpha band would mask its other classes" if alpha_is_class else "one of them has no CRS"
        raise GridError(
            f"{path} is on another grid than its image ({difference}, image first), and cannot be resampled: {reason}; "
            "correct the labels"
        )
    if not resample:
        raise GridError(
            f"{path} is on another grid than its image ({difference}, image first)"
            + suggest("correct the labels", "set data.resample: true")
        )
    return replace(file, resample=True), []


def _overlap(shift: tuple[int, int], grid: Grid, file_grid: Grid) -> bool:
    """Return whether a grid at a position of a file's grid has pixels of it."""
    row, column = shift
    return -grid.height < row < file_grid.height and -grid.width < column < file_grid.width


def _covers(shift: tuple[int, int], grid: Grid, file_grid: Grid) -> bool:
    """Return whether a file has all pixels of a grid at a position of its own grid."""
    row, column = shift
    return min(shift) >= 0 and row + grid.height <= file_grid.height and column + grid.width <= file_grid.width
