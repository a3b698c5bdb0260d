"""Rasters: the only file that opens imagery, and the only one that writes maps.

A `Scene` is one or more files on one grid. It is read window by window as `Tile`s, by a `SceneReader` that belongs to
one thread. Maps are written window by window and finished as cloud-optimised GeoTIFFs.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from segkit.errors import GridError, OutputError, RasterError, UsageError
from segkit.files import check_output, existing, staged
from segkit.grid import Grid

# GDAL picks a driver by content, and some can read any other file or fetch a URL. These read only what they are given.
_DRIVERS = ("GTiff", "JP2OpenJPEG", "HFA", "ENVI", "PNG")
# GDAL's default block cache is a share of the machine's memory; a fixed one (in MB) keeps memory independent of the
# scene. GDAL asks the environment once, when it first reads a block.
os.environ.setdefault("GDAL_CACHEMAX", "128")

PathLike = str | os.PathLike[str]


@contextlib.contextmanager
def open_raster(path: PathLike) -> Iterator[DatasetReader]:
    """Open one raster file for reading.

    Raises
    ------
    MissingFileError
        Nothing is there.
    RasterError
        The file is no raster that segkit reads, is damaged, or places its pixels by ground control points only.
    """
    file = existing(path, "raster")
    with contextlib.ExitStack() as stack:
        try:
            with _quiet(), rasterio.Env():
                dataset = stack.enter_context(DatasetReader(str(file), driver=list(_DRIVERS)))
        except RasterioError as error:
            if file.is_dir():
                raise RasterError(f"{file} is a folder, not a raster; name a file") from error
            known = ", ".join(_DRIVERS)
            raise RasterError(
                f"{file}: not a raster that segkit reads ({known}); convert it to GeoTIFF ({error})"
            ) from error
        if dataset.count == 0:
            raise RasterError(f"{file}: holds no bands, only subdatasets; name one of them or convert it")
        if dataset.transform.is_identity and dataset.gcps[0]:
            raise RasterError(f"{file}: placed by ground control points only; warp it to a grid first (gdalwarp)")
        yield dataset


def grid_of(dataset: DatasetReader) -> Grid:
    """Return the grid of an open raster."""
    return Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)


def read_window(dataset: DatasetReader, indexes: Sequence[int], window: Window, **options: Any) -> NDArray[Any]:
    """Read bands of a window that lies inside the raster, (bands, H, W) of the raster's type.

    Raises
    ------
    RasterError
        The file is damaged there.
    """
    try:
        return dataset.read(list(indexes), window=window, **options)  # type: ignore[no-any-return]
    except RasterioError as error:
        raise RasterError(
            f"{dataset.name}: cannot be read at {_place(window)}; the file is damaged ({error})"
        ) from error


@dataclass(frozen=True)
class Tile:
    """A window of a scene.

    Parameters
    ----------
    pixels
        float32 (C, H, W) in the files' own units; NaN where a band holds no data.
    valid
        bool (H, W); false where the scene holds no data.
    """

    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """One or more rasters on one grid, stacked band after band.

    Use `Scene.of`, which opens and checks the files.
    """

    name: str
    paths: tuple[Path, ...]
    grid: Grid
    bands: tuple[int, ...]
    band_names: tuple[str, ...]
    resample: bool

    @classmethod
    def of(
        cls,
        paths: PathLike | Sequence[PathLike],
        *,
        bands: Sequence[int] | None = None,
        resample: bool = False,
        name: str | None = None,
    ) -> Scene:
        """Describe the scene that files make up.

        Parameters
        ----------
        paths
            One file, or several whose bands are stacked in this order. The first one gives the grid.
        bands
            1-based numbers in the stack, counted through all files. By default all but alpha bands, which are masks.
        resample
            Whether files on another grid are warped to the first one's (bilinear).
        name
            By default the first file's stem.

        Raises
        ------
        MissingFileError, RasterError
            A file is missing or unreadable.
        GridError
            The files lie on different grids and `resample` is false.
        """
        files = [Path(paths)] if isinstance(paths, (str, os.PathLike)) else [Path(path) for path in paths]
        if not files:
            raise UsageError("no file was named; a scene has at least one file")
        grid: Grid | None = None
        stacked: list[tuple[str, bool]] = []
        moved: set[int] = set()
        for file in files:
            with open_raster(file) as dataset:
                if any(dtype.startswith("complex") for dtype in dataset.dtypes):
                    raise RasterError(f"{file}: holds complex numbers; make amplitude or phase bands first")
                own = grid_of(dataset)
                grid = grid or own
                difference = grid.difference(own)
                if difference and not resample:
                    raise GridError(
                        f"{files[0]} and {file} lie on different grids ({difference}); a scene has one grid: "
                        "warp one of them, or set resample: true"
                    )
                if difference and (grid.crs is None or own.crs is None):
                    raise GridError(f"{file}: without a CRS on both {files[0]} and {file} neither can be resampled")
                if difference:
                    moved.update(range(len(stacked) + 1, len(stacked) + dataset.count + 1))
                prefix = f"{file.stem}:" if len(files) > 1 else ""
                stacked += [
                    (f"{prefix}{description or index}", interpretation == ColorInterp.alpha)
                    for index, description, interpretation in zip(
                        dataset.indexes, dataset.descriptions, dataset.colorinterp, strict=True
                    )
                ]
        chosen = tuple(bands) if bands else tuple(i for i, (_, alpha) in enumerate(stacked, 1) if not alpha)
        for band in chosen:
            if not 1 <= band <= len(stacked):
                raise RasterError(
                    f"{files[0]}{' and the files stacked on it' if len(files) > 1 else ''}: band {band} was asked for, "
                    f"there are {len(stacked)} (counted from 1); correct the bands or the files"
                )
            if band in moved and stacked[band - 1][1]:
                raise GridError(
                    f"band {band}, {stacked[band - 1][0]}, is marked as alpha, which hides other bands when its file "
                    "is resampled; mark it as grey first (gdal_edit.py -colorinterp_N gray), or warp the file"
                )
        if not chosen:
            raise RasterError(
                f"{files[0]}: holds alpha bands only, which are masks; choose bands to use one as imagery"
            )
        assert grid is not None
        names = tuple(stacked[band - 1][0] for band in chosen)
        return cls(name or files[0].stem, tuple(files), grid, chosen, names, resample)

    @contextlib.contextmanager
    def open(self) -> Iterator[SceneReader]:
        """Open the files; the reader belongs to the thread that opened it."""
        with contextlib.ExitStack() as stack:
            sources, first = [], 1
            for path in self.paths:
                dataset = stack.enter_context(open_raster(path))
                last = first + dataset.count
                own = [(place, band - first + 1) for place, band in enumerate(self.bands) if first <= band < last]
                first = last
                if difference := self.grid.difference(grid_of(dataset)):
                    if not self.resample:
                        raise GridError(f"{path}: lies on another grid than when it was looked at first ({difference})")
                    dataset = stack.enter_context(warped(dataset, self.grid, Resampling.bilinear))
                sources.append(_Source(dataset, [place for place, _ in own], [index for _, index in own]))
            yield SceneReader(self.grid, len(self.bands), [source for source in sources if source.places])

    def read(self, window: Window | None = None) -> Tile:
        """Open the files and read one window (default: the whole scene)."""
        with self.open() as reader:
            return reader.read(window or self.grid.whole)


def warped(dataset: DatasetReader, grid: Grid, resampling: Resampling) -> WarpedVRT:
    """Present an open raster on another grid; what lies outside of it is no data."""
    # GDAL shows what a no-data value or an alpha band hides; a mask band it heeds, but does not pass on.
    masked = any({MaskFlags.nodata, MaskFlags.alpha} & set(flags) for flags in dataset.mask_flag_enums)
    return WarpedVRT(
        dataset,
        crs=grid.crs,
        transform=grid.transform,
        height=grid.height,
        width=grid.width,
        resampling=resampling,
        add_alpha=not masked,
    )


class SceneReader:
    """Reads windows of an open scene; made by `Scene.open`."""

    def __init__(self, grid: Grid, count: int, sources: Sequence[_Source]) -> None:
        self.grid = grid
        self._count = count
        self._sources = sources

    def read(self, window: Window) -> Tile:
        """Read one window; what reaches beyond the scene is no data.

        A pixel is valid where every file's mask (declared no-data value, mask band, alpha band) shows it in some
        chosen band, and every chosen value shown is a finite number. A band that alone holds no data at a valid pixel
        is NaN.

        Raises
        ------
        RasterError
            A file is damaged there.
        """
        shape = int(window.height), int(window.width)
        tile = Tile(np.full((self._count, *shape), np.nan, dtype=np.float32), np.zeros(shape, dtype=bool))
        top, left = max(0, -int(window.row_off)), max(0, -int(window.col_off))
        bottom = min(shape[0], self.grid.height - int(window.row_off))
        right = min(shape[1], self.grid.width - int(window.col_off))
        if top >= bottom or left >= right:
            return tile
        inside = Window(window.col_off + left, window.row_off + top, right - left, bottom - top)
        tile.valid[top:bottom, left:right] = True
        for source in self._sources:
            pixels, valid = source.read(inside)
            tile.pixels[source.places, top:bottom, left:right] = pixels
            tile.valid[top:bottom, left:right] &= valid
        return tile


class _Source:
    """The bands of one file: which of its bands (`indexes`) go where in the stack (`places`)."""

    def __init__(self, dataset: DatasetReader, places: list[int], indexes: list[int]) -> None:
        self.dataset = dataset
        self.places = places
        self.indexes = indexes
        flags = {flag for index in indexes for flag in dataset.mask_flag_enums[index - 1]}
        # A band marked as alpha but chosen as imagery (near-infrared in NAIP) is no mask.
        chosen_alpha = any(dataset.colorinterp[index - 1] == ColorInterp.alpha for index in indexes)
        self.whole_mask = MaskFlags.per_dataset in flags and not (MaskFlags.alpha in flags and chosen_alpha)
        self.band_masks = MaskFlags.nodata in flags and not self.whole_mask

    def read(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        pixels = read_window(self.dataset, self.indexes, window, out_dtype="float32")
        finite = np.isfinite(pixels)
        try:
            if self.whole_mask:
                valid = finite.all(axis=0) & (self.dataset.read_masks(self.indexes[0], window=window) > 0)
            elif self.band_masks:
                shown = self.dataset.read_masks(self.indexes, window=window) > 0
                # The no-data value itself need not be finite: float files declare NaN, or a number beyond float32.
                valid = (finite | ~shown).all(axis=0) & shown.any(axis=0)
                pixels[~shown] = np.nan
            else:
                valid = finite.all(axis=0)
        except RasterioError as error:
            place = _place(window)
            raise RasterError(f"{self.dataset.name}: its mask cannot be read at {place} ({error})") from error
        return pixels, valid


@dataclass(frozen=True)
class MapFormat:
    """What a map holds: one band of class values, a 0/1 band per class, or a band of probabilities per channel.

    Parameters
    ----------
    dtype, nodata
        Of every band.
    band_names
        Their descriptions; one band each.
    tags
        Dataset metadata: class table, provenance.
    colors
        {value: "#rrggbb"} for the colour table of a single band.
    scale
        What a stored number is multiplied with to read it.
    overviews
        How overviews are made: "mode" for classes, "average" for numbers.
    """

    dtype: np.dtype[Any]
    nodata: int
    band_names: tuple[str, ...]
    tags: Mapping[str, str]
    colors: Mapping[int, str] | None = None
    scale: float = 1.0
    overviews: str = "mode"


class MapWriter:
    """Takes the windows of a map in any order; made by `writing_map`."""

    def __init__(self, dataset: DatasetWriter) -> None:
        self._dataset = dataset

    def write(self, values: NDArray[Any], window: Window) -> None:
        """Write values (bands, H, W) of a window of (H, W) pixels."""
        self._dataset.write(values, window=window)


@contextlib.contextmanager
def writing_map(path: PathLike, grid: Grid, form: MapFormat, *, overwrite: bool = False) -> Iterator[MapWriter]:
    """Write a map as a cloud-optimised GeoTIFF on `grid`.

    Windows go to a working file beside the target; windows never written are no data. When the block ends, the COG is
    made from it, re-opened, compared with it block by block, and renamed. When it raises, nothing is left.

    Raises
    ------
    UsageError, OutputExistsError
        The target cannot be written, or is there and `overwrite` is false.
    OutputError
        The disk is full, or what was written does not read back the same.
    """
    target = check_output(path, overwrite=overwrite)
    with staged(target) as part:
        working = part.with_name(f"working.{part.name}")
        try:
            with _quiet(), _create(working, grid, form) as dataset:
                yield MapWriter(dataset)
            with _quiet():
                rasterio.shutil.copy(
                    working,
                    part,
                    driver="COG",
                    COMPRESS="DEFLATE",
                    BLOCKSIZE=512,
                    BIGTIFF="IF_SAFER",
                    NUM_THREADS="ALL_CPUS",
                    OVERVIEW_RESAMPLING=form.overviews.upper(),
                )
        except (RasterioError, CPLE_BaseError) as error:
            raise OutputError(f"{target} could not be written: {error}; is the disk full?") from error
        _verify(working, part, target, grid)
        working.unlink()
    # What lies beside an older map of this name (statistics, overviews, a mask) would be taken for the new one's.
    for ending in (".aux.xml", ".ovr", ".msk"):
        target.with_name(target.name + ending).unlink(missing_ok=True)


def _create(path: Path, grid: Grid, form: MapFormat) -> DatasetWriter:
    dataset = rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=grid.height,
        width=grid.width,
        count=len(form.band_names),
        dtype=form.dtype,
        crs=grid.crs,
        transform=grid.transform,
        nodata=form.nodata,
        tiled=True,
        blockxsize=512,
        blockysize=512,
        compress="DEFLATE",
        zlevel=1,
        bigtiff="IF_SAFER",
        interleave="band",
    )
    dataset.update_tags(**form.tags)
    dataset.descriptions = form.band_names
    if form.scale != 1:
        dataset.scales = (form.scale,) * dataset.count
    if form.colors is not None:
        colormap = {value: _rgba(color) for value, color in form.colors.items()}
        dataset.write_colormap(1, colormap | {form.nodata: (0, 0, 0, 0)})
    return dataset


def _verify(working: Path, finished: Path, target: Path, grid: Grid) -> None:
    """Compare a finished COG with what was written, so that a full disk or a bad block is found now."""
    try:
        with open_raster(working) as expected, open_raster(finished) as found:
            difference = grid.difference(grid_of(found))
            if difference or found.transform != grid.transform:
                raise OutputError(f"{target}: the written map lies on another grid ({difference or 'transform'})")
            for window in grid.tiles(2048):
                if not np.array_equal(expected.read(window=window), found.read(window=window)):
                    raise OutputError(
                        f"{target}: reads back differently at {_place(window)}; is the disk full or faulty?"
                    )
    except (RasterError, RasterioError) as error:
        raise OutputError(f"{target}: does not read back ({error}); is the disk full or faulty?") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A scene without georeference makes a map without: GDAL need not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _rgba(color: str) -> tuple[int, int, int, int]:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue, 255


def _place(window: Window) -> str:
    return (
        f"rows {int(window.row_off)} to {int(window.row_off + window.height)}, "
        f"columns {int(window.col_off)} to {int(window.col_off + window.width)}"
    )
