"""Rasters: the only file that opens imagery, and the only one that writes maps.

A `Scene` is one or more files on one grid. It is read window by window as `Tile`s, by a `SceneReader` that belongs to
one thread. A map is written part by part, each window by window, and assembled to a cloud-optimised GeoTIFF.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.dtypes import dtype_rev, typename_fwd
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.io import DatasetReader, DatasetWriter, MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from segkit.errors import GridError, OutputError, RasterError, UsageError, ways
from segkit.io.files import check_output, existing, hindrance, staged, sync, writing_to
from segkit.io.grid import Grid
from segkit.io.remote import Remote, again, forget, gdal_name, hold, located, of_gdal, options, told, version_of

# GDAL picks a driver by content, and some can read any other file or fetch a URL. These read only what they are given,
# and fail where a file is cut off (ENVI by `_check_size`). ERDAS Imagine (HFA, .img) is left out: GDAL reads zeros
# where its .ige file is cut off, and loses the CRS where the .img file is.
_DRIVERS = ("GTiff", "JP2OpenJPEG", "ENVI", "PNG")
# Files beside a raster that GDAL opens with any driver when it needs a mask, an overview or metadata, and the driver of
# those that GDAL itself writes, which read nothing else.
_SIDE_FILES = {".msk": "GTiff", ".ovr": "GTiff", ".aux": "HFA"}
# What rasterio raises where GDAL fails: some of GDAL's errors pass through as they are.
GDAL_ERRORS = (RasterioError, CPLE_BaseError)
# GDAL's default block cache is a share of the machine's memory; a fixed one (in MB) keeps memory independent of the
# scene. GDAL asks the environment once, when it first reads a block.
_CACHE_MB = "128"
os.environ.setdefault("GDAL_CACHEMAX", _CACHE_MB)
# Rows of windows overlap. A tile that the next row needs again is not fetched again where this many rows, and one more
# of tiles, fit into the cache; for a remote raster it may grow this far.
_CACHED_ROWS, _REMOTE_CACHE = 1024, 512 * 10**6

_EXACT = ("uint8", "int8", "uint16", "int16")  # in float32
_WHOLE_NUMBERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")

# Remote rasters that were closed last stay open: their headers need not be fetched again, nor what GDAL holds of their
# tiles. A process that was forked has none of them.
_KEPT = 4
_kept: dict[tuple[int, str, bool], tuple[str, float, DatasetReader]] = {}
_TRUSTED_S = 1.0  # without asking again whether it has changed

PathLike = str | os.PathLike[str]


@contextlib.contextmanager
def open_raster(path: PathLike, *, vrt: bool = False) -> Iterator[DatasetReader]:
    """Open one raster for reading.

    Parameters
    ----------
    path
        A file, or a URL (`segkit.io.remote`).
    vrt
        Whether it may be a virtual raster, which can read any other file or URL.

    Raises
    ------
    MissingFileError
        Nothing is there.
    RasterError
        The file is no raster that segkit reads, or is damaged; a file beside it may lead GDAL to read others; or its
        pixels are placed by ground control points only.
    """
    file = located(path)
    with (
        _open_remote(file, vrt=vrt)
        if isinstance(file, Remote)
        else contextlib.closing(_open(existing(path, "raster"), vrt=vrt))
    ) as dataset:
        if dataset.count == 0:
            raise RasterError(f"{file}: holds no bands, only subdatasets; name one of them or convert it")
        if dataset.transform.is_identity and dataset.gcps[0]:
            raise RasterError(f"{file}: placed by ground control points only; warp it to a grid first (gdalwarp)")
        try:
            yield dataset
            return
        except GDAL_ERRORS as error:
            why = told(error, file) if isinstance(file, Remote) else str(error)
        # Not `from error`, which names all of a URL.
        raise RasterError(f"{file}: cannot be read: {why}; the file is damaged")


def _open(file: Path, *, vrt: bool) -> DatasetReader:
    drivers = [*_DRIVERS, "VRT"] if vrt else list(_DRIVERS)
    known = ", ".join(_DRIVERS)
    if isinstance(file, Remote):
        try:
            with rasterio.Env(**options()):
                return _asked(_fetch(file, drivers), str(file), vrt=vrt)
        except GDAL_ERRORS as error:
            why = told(error, file)
        # Not `from error`, which names all of the URL.
        raise RasterError(f"{file}: {why}; is the name right, may we read it, and is it a raster ({known})?")
    try:
        # GDAL looks for files beside this one by their exact names, as `_open_plain` does, not in a list of the folder.
        with _quiet(), rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"):
            if not vrt:
                return _open_plain(file, drivers)
            return _asked(DatasetReader(str(file), driver=drivers), str(file), vrt=True)
    except GDAL_ERRORS as error:
        if file.is_dir():
            raise RasterError(f"{file} is a folder, not a raster; name a file") from error
        if not vrt and _is_vrt(file):
            raise RasterError(
                f"{file}: is a virtual raster (VRT), which can read any other file or URL"
                + ways("if you trust it, add --vrt (vrt=True)", "convert it to GeoTIFF")
            ) from error
        raise RasterError(
            f"{file}: not a raster that segkit reads ({known}), or damaged; copy it again, or convert it to GeoTIFF: "
            f"gdal_translate IN OUT.tif ({error})"
        ) from error


def _open_plain(file: Path, drivers: Sequence[str]) -> DatasetReader:
    """Open a local file with one of some drivers, where neither it nor a file beside it makes GDAL read any other.

    Raises
    ------
    RasterioError, CPLE_BaseError
        None of the drivers can open it.
    RasterError
        It names another file, or a side file is not what GDAL writes under such a name; or an ENVI file is cut off.
    """
    for side, driver in _side_files(file):
        try:
            # Formats that name other files are text, and GDAL looks for their marks up to the first zero byte.
            if b"\0" not in _head(side, 16):
                raise RasterioIOError("it is text")
            _open_plain(side, [driver]).close()
        except GDAL_ERRORS as error:
            raise RasterError(
                f"{side}: GDAL would read this file with {file.name}, and it is no whole "
                f"{'GeoTIFF' if driver == 'GTiff' else 'ERDAS file'} ({error}); other formats can name any file "
                "or URL: copy it again, or remove it"
            ) from error
    dataset = _asked(DatasetReader(str(file), driver=list(drivers)), str(file), vrt=False)
    if dataset.driver == "ENVI":
        _check_size(file, dataset)
    return dataset


def _side_files(file: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files beside a raster that GDAL would open with any driver, and the driver that they need."""
    for ending, driver in _SIDE_FILES.items():
        names = [f"{file.name}{ending}", f"{file.name}{ending.upper()}"]
        if ending == ".aux":
            stem = file.name.rpartition(".")[0] or file.name
            names += [f"{stem}{ending}", f"{stem}{ending.upper()}"]
        for name in names:
            side = file.with_name(name)
            # GDAL opens no other .aux; LaTeX has files of this name, too.
            if side.exists() and (ending != ".aux" or _head(side, 15).upper() == b"EHFA_HEADER_TAG"):
                yield side, driver


def _asked(dataset: DatasetReader, name: str, *, vrt: bool) -> DatasetReader:
    """Return a raster just opened, asked for what GDAL otherwise looks for later.

    Raises
    ------
    RasterioError, CPLE_BaseError
        The file, or one beside it, is damaged.
    RasterError
        Its metadata, its own or those of an .aux.xml, name another file for its overviews, and it may be no VRT.
    """
    if not vrt and dataset.tags(ns="OVERVIEWS"):
        dataset.close()
        raise RasterError(
            f"{name}: its metadata (OVERVIEW_FILE, in the file or in its .aux.xml) name another file or URL for its "
            "overviews, which segkit does not read; remove that entry, or copy the raster without it: "
            "gdalwarp -nomd -ovr NONE IN OUT.tif"
        )
    # Of a remote raster, which has nothing beside it, this would only be more requests.
    if of_gdal(dataset.name) is None:
        # Masks, overviews, and colours, the last of which raises what was an error to GDAL before.
        _ = dataset.mask_flag_enums, vrt or not dataset.count or dataset.overviews(1), dataset.colorinterp
    return dataset


def _check_size(file: Path, dataset: DatasetReader) -> None:
    """Refuse an ENVI file that is shorter than its header says: GDAL reads zeros beyond its end."""
    # Not GDAL's metadata of the header, which an .aux.xml may change.
    header = next((Path(each) for each in dataset.files if each.lower().endswith(".hdr")), file)
    offset = re.search(rb"(?im)^\s*header offset\s*=\s*(\d+)", header.read_bytes())
    pixel = sum(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
    declared = (int(offset[1]) if offset else 0) + dataset.width * dataset.height * pixel
    if (size := file.stat().st_size) < declared:
        dataset.close()
        raise RasterError(
            f"{file}: has {size} bytes, and its header (.hdr) declares {declared}, so it is cut off or compressed; "
            "copy it again, or, if it is compressed, convert it to GeoTIFF: gdal_translate IN OUT.tif"
        )


def _fetch(file: Remote, drivers: Sequence[str]) -> DatasetReader:
    """Open a remote raster as if GDAL had not known of it before."""

    def attempt() -> DatasetReader:
        forget(file)
        return DatasetReader(gdal_name(file), driver=list(drivers))

    with _quiet(), rasterio.Env(**options()):
        return again(attempt, lambda error: isinstance(error, GDAL_ERRORS) and "CURL" in str(error))


@contextlib.contextmanager
def _open_remote(file: Remote, *, vrt: bool) -> Iterator[DatasetReader]:
    """Open a remote raster, or take one that stayed open and has not changed."""
    key = os.getpid(), os.fspath(file), vrt
    version, checked, dataset = _kept.pop(key, ("", 0.0, None))
    if dataset is None or time.monotonic() - checked > _TRUSTED_S:
        now = version_now(file)
        if dataset is not None and (now != version or not now):
            dataset.close()
            dataset = None
        version = now
    if dataset is None:
        dataset = _open(file, vrt=vrt)
    if os.environ["GDAL_CACHEMAX"] == _CACHE_MB:  # else the user has chosen
        pixel = sum(np.dtype(dtype).itemsize for dtype in dataset.dtypes if dtype in dtype_rev)
        rows = _CACHED_ROWS + max((height for height, _ in dataset.block_shapes), default=0)
        hold(min(_REMOTE_CACHE, int(1.1 * rows * dataset.width * pixel)))
    try:
        yield dataset
    except BaseException:
        dataset.close()
        raise
    if other := _kept.pop(key, None):
        other[2].close()
    _kept[key] = version, time.monotonic(), dataset
    while len(_kept) > _KEPT:
        with contextlib.suppress(StopIteration, KeyError):  # another thread was faster
            _kept.pop(next(iter(_kept)))[2].close()


def version_now(file: Remote) -> str:
    """Ask what version of a remote file is there, as `version_of` tells it."""
    with rasterio.Env(**options()):
        return version_of(file)


def grid_of(dataset: DatasetReader) -> Grid:
    """Return the grid of an open raster.

    Where it has no georeference, the transform is that with which QGIS shows it: x = column, y = -row.
    """
    # GDAL tells a transform that is there from one that is not, rasterio shows the identity for both.
    if dataset.transform.is_identity and described(dataset).find("GeoTransform") is None:
        return Grid(dataset.height, dataset.width, Affine.scale(1, -1), dataset.crs, georeferenced=False)
    return Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)


def described(dataset: DatasetReader) -> ElementTree.Element:
    """Return GDAL's description of an open raster as a virtual one, which has more than rasterio shows.

    Raises
    ------
    RasterError
        The file is damaged.
    """
    try:
        # GDAL opens files beside those that it has opened; it is to find none that `_open` has not seen.
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), MemoryFile(ext="vrt") as file:
            rasterio.shutil.copy(dataset, file.name, driver="VRT")
            return ElementTree.fromstring(file.read())  # noqa: S314, GDAL wrote it
    except GDAL_ERRORS as error:
        raise RasterError(f"{dataset.name}: the file is damaged ({error})") from error


def read_window(dataset: DatasetReader, indexes: Sequence[int], window: Window, **options: Any) -> NDArray[Any]:
    """Read bands of a window that lies inside the raster, (bands, H, W) of the raster's type.

    Raises
    ------
    RasterError
        The file is damaged there.
    """
    return _read(dataset, window, lambda: dataset.read(list(indexes), window=window, **options))


def read_mask(dataset: DatasetReader, band: int, window: Window) -> NDArray[np.uint8]:
    """Read where a band holds data in a window that lies inside the raster: uint8 (H, W), 0 is no data.

    Raises
    ------
    RasterError
        The file is damaged there.
    """
    return _read(dataset, window, lambda: dataset.read_masks(band, window=window), "its mask ")


def _read(dataset: DatasetReader, window: Window, read: Callable[[], NDArray[Any]], what: str = "") -> NDArray[Any]:
    """Read something of a window, from a remote file twice where it must be; `what` is told where it cannot be read."""
    file = of_gdal(dataset.name)
    try:
        return read() if file is None else again(read, lambda error: isinstance(error, GDAL_ERRORS))
    except GDAL_ERRORS as error:
        place = f"{what}cannot be read at {_place(window)}"
        if file is None:
            raise RasterError(f"{dataset.name}: {place}; the file is damaged ({error})") from error
        why = told(error, file)
    # Only of opening does GDAL tell what the server said.
    try:
        _fetch(file, _DRIVERS).close()
    except GDAL_ERRORS as error:
        raise RasterError(f"{file}: {place}: {told(error, file)}") from None
    raise RasterError(
        f"{file}: {place}; the server does not send all of it, or the file is damaged or has changed ({why})"
    )


@dataclass(frozen=True)
class Tile:
    """A window of a scene.

    Parameters
    ----------
    pixels
        float32 (C, H, W) as the files store them, or scaled as they declare; NaN where a band holds no data.
    valid
        bool (H, W); false where the scene holds no data.
    """

    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]

    def padded(self, height: int, width: int) -> Tile:
        """Return the tile continued below and to the right by its reflection, (C, height, width)."""
        beyond = ((0, height - self.valid.shape[0]), (0, width - self.valid.shape[1]))
        if not any(after for _, after in beyond):
            return self
        pixels = np.pad(self.pixels, ((0, 0), *beyond), mode="reflect")
        return Tile(pixels, np.pad(self.valid, beyond, mode="reflect"))


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
    vrt: bool = False
    scaled: bool = False
    versions: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        paths: PathLike | Sequence[PathLike],
        *,
        bands: Sequence[int] | None = None,
        resample: bool = False,
        vrt: bool = False,
        scaled: bool = False,
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
        vrt
            Whether files may be virtual rasters, which can read any other file or URL.
        scaled
            Whether pixels are stored number * scale + offset, as a file declares them of each band.
        name
            By default the first file's stem.

        Raises
        ------
        MissingFileError, RasterError
            A file is missing or unreadable.
        GridError
            The files lie on different grids and `resample` is false.
        """
        files = [located(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
        if not files:
            raise UsageError("no file was named; a scene has at least one file")
        grid: Grid | None = None
        stacked: list[tuple[str, bool]] = []
        moved: set[int] = set()
        for file in files:
            with open_raster(file, vrt=vrt) as dataset:
                if any(dtype.startswith("complex") for dtype in dataset.dtypes):
                    raise RasterError(f"{file}: holds complex numbers; make amplitude or phase bands first")
                if scaled and not (np.isfinite([*dataset.scales, *dataset.offsets]).all() and all(dataset.scales)):
                    raise RasterError(
                        f"{file}: declares scales {dataset.scales} and offsets {dataset.offsets}; they are finite, "
                        "and no scale is 0: correct the file, or leave scaled out"
                    )
                own = grid_of(dataset)
                grid = grid or own
                difference = grid.difference(own)
                if difference and (grid.crs is None or own.crs is None):
                    raise GridError(
                        f"{files[0]} and {file} lie on different grids ({difference}), and one of them has no CRS, so "
                        "it cannot be resampled; give both the same georeference"
                    )
                if difference and not resample:
                    raise GridError(
                        f"{files[0]} and {file} lie on different grids ({difference}); a scene has one grid"
                        + ways("warp one of them (gdalwarp)", "set data.resample: true")
                    )
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
        versions = tuple(version_now(file) if isinstance(file, Remote) else "" for file in files)
        return cls(name or files[0].stem, tuple(files), grid, chosen, names, resample, vrt, scaled, versions)

    @contextlib.contextmanager
    def open(self) -> Iterator[SceneReader]:
        """Open the files; the reader belongs to the thread that opened it.

        Raises
        ------
        RasterError
            A file cannot be opened. Or, when the block ends, a remote one is not that which was looked at first.
        """
        with contextlib.ExitStack() as stack:
            sources, first = [], 1
            for path in self.paths:
                dataset = stack.enter_context(open_raster(path, vrt=self.vrt))
                declared = list(zip(dataset.scales, dataset.offsets, strict=True))
                last = first + dataset.count
                own = [(place, band - first + 1) for place, band in enumerate(self.bands) if first <= band < last]
                first = last
                if difference := self.grid.difference(grid_of(dataset)):
                    if not self.resample:
                        raise GridError(f"{path}: lies on another grid than when it was looked at first ({difference})")
                    dataset = stack.enter_context(warped(dataset, self.grid, Resampling.bilinear))
                indexes = [index for _, index in own]
                scaling = [declared[index - 1] for index in indexes] if self.scaled else None
                sources.append(_Source(dataset, [place for place, _ in own], indexes, scaling))
            yield SceneReader(self.grid, len(self.bands), [source for source in sources if source.places])
            for file, version in zip(self.paths, self.versions, strict=True):
                if isinstance(file, Remote) and version and (now := version_now(file)) and now != version:
                    raise RasterError(
                        f"{file}: has changed since it was looked at first ({version}, now {now}); try again"
                    )

    def read(self, window: Window | None = None) -> Tile:
        """Open the files and read one window (default: the whole scene)."""
        with self.open() as reader:
            return reader.read(window or self.grid.whole)


def warped(dataset: DatasetReader, grid: Grid, resampling: Resampling, *, ignore_nodata: bool = False) -> WarpedVRT:
    """Present an open raster on another grid; outside of it there is no data, nor where the declared value says so.

    Raises
    ------
    RasterError
        GDAL cannot take one grid to the other.
    """
    # GDAL shows what a no-data value or an alpha band hides; a mask band it heeds, but does not pass on.
    masked = any({MaskFlags.nodata, MaskFlags.alpha} & set(flags) for flags in dataset.mask_flag_enums)
    undeclared: dict[str, Any] = {"src_nodata": None, "nodata": None} if ignore_nodata else {}
    try:
        return WarpedVRT(
            dataset,
            crs=grid.crs,
            transform=grid.transform,
            height=grid.height,
            width=grid.width,
            resampling=resampling,
            add_alpha=ignore_nodata or not masked,
            **undeclared,
        )
    except GDAL_ERRORS as error:
        raise RasterError(f"{dataset.name}: cannot be resampled ({error}); warp it first (gdalwarp)") from error


class BandSource(Protocol):
    """Some of a scene's bands, all sources together each of them once."""

    def read(self, window: Window, stack: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Fill these bands of a stack (C, H, W) with a window inside the scene; return where there is data."""


class SceneReader:
    """Reads windows of an open scene; made by `Scene.open`."""

    def __init__(self, grid: Grid, count: int, sources: Sequence[BandSource]) -> None:
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
        tile = Tile(np.empty((self._count, *shape), dtype=np.float32), np.zeros(shape, dtype=bool))
        top, left = max(0, -int(window.row_off)), max(0, -int(window.col_off))
        bottom = min(shape[0], self.grid.height - int(window.row_off))
        right = min(shape[1], self.grid.width - int(window.col_off))
        if (top, left, bottom, right) != (0, 0, *shape):
            tile.pixels.fill(np.nan)
        if top >= bottom or left >= right:
            return tile
        inside = Window(window.col_off + left, window.row_off + top, right - left, bottom - top)
        inner = tile.valid[top:bottom, left:right]
        inner[:] = True
        for source in self._sources:
            inner &= source.read(inside, tile.pixels[:, top:bottom, left:right])
        return tile


class _Source:
    """The bands of one file: which of its bands (`indexes`) go where in the stack (`places`).

    `scaling` is (scale, offset) of each of them; None leaves all as they are stored.
    """

    def __init__(
        self,
        dataset: DatasetReader,
        places: list[int],
        indexes: list[int],
        scaling: list[tuple[float, float]] | None = None,
    ) -> None:
        self.dataset = dataset
        self.scaling = scaling or [(1.0, 0.0)] * len(indexes)
        self.places = places
        self.indexes = indexes
        flags = {flag for index in indexes for flag in dataset.mask_flag_enums[index - 1]}
        # A band marked as alpha but chosen as imagery (near-infrared in NAIP) is no mask.
        chosen_alpha = any(dataset.colorinterp[index - 1] == ColorInterp.alpha for index in indexes)
        self.whole_mask = MaskFlags.per_dataset in flags and not (MaskFlags.alpha in flags and chosen_alpha)
        self.band_masks = MaskFlags.nodata in flags and not self.whole_mask

    def read(self, window: Window, stack: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Fill this file's places in a stack (C, H, W), and return where it holds data."""
        own = stack[self.places[0] : self.places[-1] + 1]
        direct = len(own) == len(self.places) and self.places == sorted(self.places) and own.flags.c_contiguous
        room = own if direct else np.empty((len(self.places), *stack.shape[1:]), dtype=np.float32)
        pixels = read_window(self.dataset, self.indexes, window, out=room)
        known = np.ones(pixels.shape[1:], dtype=bool)
        shown = np.full(known.shape, not self.band_masks)
        if self.whole_mask:
            shown &= read_mask(self.dataset, self.indexes[0], window) > 0
        # Band by band, since masks of all bands at once are a quarter of the pixels' memory each.
        for index, band, (scale, offset) in zip(self.indexes, pixels, self.scaling, strict=True):
            finite = True if self.dataset.dtypes[index - 1] in _WHOLE_NUMBERS else np.isfinite(band)
            if self.band_masks:
                nodata = self.dataset.nodatavals[index - 1]
                exact = nodata is not None and self.dataset.dtypes[index - 1] in _EXACT
                # GDAL's mask costs another look at the file.
                hidden = band == nodata if exact else read_mask(self.dataset, index, window) == 0
                # The no-data value itself need not be finite: float files declare NaN, or one beyond float32.
                known &= finite | hidden
                shown |= ~hidden
                band[hidden] = np.nan
            else:
                known &= finite
            if (scale, offset) != (1, 0):
                band[:] = band.astype(np.float64) * scale + offset
        if not direct:
            stack[self.places] = pixels
        known &= shown
        return known


@dataclass(frozen=True)
class MapFormat:
    """What a map holds: one band of class values, a 0/1 band per class, or a band of probabilities per channel.

    Parameters
    ----------
    dtype, nodata
        Of every band. float32 with NaN is for what is not finished yet.
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
    nodata: float
    band_names: tuple[str, ...]
    tags: Mapping[str, str]
    colors: Mapping[int, str] | None = None
    scale: float = 1.0
    overviews: str = "mode"


@dataclass(frozen=True)
class Part:
    """Some rows of a map: a file of the map's width whose first row is the map's row `row`."""

    path: Path
    row: int


class MapWriter:
    """Takes the windows of a part in any order, each pixel at most once; made by `writing_part`."""

    def __init__(self, dataset: DatasetWriter, path: Path, grid: Grid) -> None:
        self._dataset = dataset
        self._path = path
        self._grid = grid
        self._sums: list[tuple[Window, int]] = []

    def write(self, values: NDArray[Any], window: Window) -> None:
        """Write values (bands, H, W) of a window of (H, W) pixels.

        Raises
        ------
        OutputError
            The disk is full.
        """
        stored = np.ascontiguousarray(values, dtype=self._dataset.dtypes[0])
        if stored.dtype.kind == "f":
            # Not every NaN has the bits of the one that stands for blocks that hold nothing else.
            stored = np.where(np.isnan(stored), stored.dtype.type(np.nan), stored)
        with telling(self._path):
            self._dataset.write(stored, window=window)
        self._sums.append((window, zlib.crc32(stored.data)))

    def _finish(self) -> None:
        """Close the file and compare what it holds with what was written: GDAL closes on a full disk silently.

        Raises
        ------
        OutputError
            They differ.
        """
        with telling(self._path):
            self._dataset.close()
            sync(self._path)
        with _reading_back(self._path), open_raster(self._path) as found:
            _check_grid(self._path, self._grid, found)
            for window, expected in self._sums:
                if zlib.crc32(read_window(found, found.indexes, window).data) != expected:
                    raise _differs(self._path, window)


@contextlib.contextmanager
def writing_part(path: Path, grid: Grid, form: MapFormat) -> Iterator[MapWriter]:
    """Write a part of a map as a plain GeoTIFF on `grid`, the part's own.

    Windows never written are no data. When the block ends, the file is read back and lies on the disk. When it raises,
    the file is gone. Of `form`, the file has the type, the no-data value and as many bands as there are names;
    `assemble` sees to the rest.

    Raises
    ------
    OutputError
        The disk is full, or what was written does not read back the same.
    """
    grid = grid.part(grid.whole)  # of a scene without georeference, too, a part says where it lies
    with contextlib.ExitStack() as undo:
        undo.callback(path.unlink, missing_ok=True)
        with telling(path), _quiet():
            dataset = _create(path, grid, form)
        undo.callback(_abandon, dataset)
        writer = MapWriter(dataset, path, grid)
        yield writer
        writer._finish()
        undo.pop_all()


def _create(path: Path, grid: Grid, form: MapFormat) -> DatasetWriter:
    return rasterio.open(
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
        # Windows do not end where blocks do. Small blocks bound what is written twice when a block leaves GDAL's cache
        # half full; none is much higher than a part of few rows.
        blockxsize=256,
        blockysize=min(256, -(-grid.height // 16) * 16),
        bigtiff="IF_SAFER",
        interleave="band",
        sparse_ok=True,
        # Numbers of many bits take long to compress and hardly shrink.
        **({} if form.dtype.kind == "f" else {"compress": "DEFLATE", "zlevel": 1}),
    )


def _abandon(dataset: DatasetWriter) -> None:
    with contextlib.suppress(*GDAL_ERRORS, OSError):
        dataset.close()


def assemble(path: PathLike, grid: Grid, form: MapFormat, parts: Sequence[Part], *, overwrite: bool = False) -> None:
    """Make a map of its parts: a cloud-optimised GeoTIFF on `grid`.

    The file is made beside the target, re-opened, compared with the parts pixel by pixel, and renamed. When that
    fails, nothing is left.

    Parameters
    ----------
    parts
        They cover the grid's rows exactly once, in any order.

    Raises
    ------
    UsageError, OutputExistsError
        The target cannot be written, or is there and `overwrite` is false.
    RasterError
        A part cannot be opened.
    OutputError
        The disk is full, a part is damaged, or what was written does not read back the same.
    """
    target = check_output(path, overwrite=overwrite)
    mosaic = _vrt(grid, form, parts)
    # NUM_THREADS is for packing blocks; without this, GDAL reads them and makes overviews in one thread.
    with staged(target) as finished, rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS"):
        with telling(target), _open_vrt(mosaic, grid, form) as dataset:
            rasterio.shutil.copy(
                dataset,
                finished,
                driver="COG",
                COMPRESS="DEFLATE",
                LEVEL=1,  # the default, 6, takes more than twice as long to save a seventh
                PREDICTOR="YES" if form.overviews == "average" else "NO",  # numbers are like their neighbours
                BLOCKSIZE=512,
                BIGTIFF="IF_SAFER",
                NUM_THREADS="ALL_CPUS",
                OVERVIEW_RESAMPLING=form.overviews.upper(),
            )
        _verify(finished, target, grid, parts)
        # What lies beside an older map of this name (statistics, overviews, a mask) would be taken for the new one's.
        # The new one may come with an .aux.xml of its own: a CRS for which GeoTIFF has no keys.
        for ending in (".aux.xml", ".ovr", ".msk"):
            target.with_name(target.name + ending).unlink(missing_ok=True)


def _vrt(grid: Grid, form: MapFormat, parts: Sequence[Part]) -> str:
    """Return the XML of a virtual raster that shows parts as one map's pixels."""
    placed, row = [], 0
    for part in sorted(parts, key=lambda part: part.row):
        with open_raster(part.path) as dataset:
            size = f'xSize="{grid.width}" ySize="{dataset.height}"'
            assert (part.row, dataset.width) == (row, grid.width), f"{part} does not follow row {row}"
            row += dataset.height
        file = f'<SourceFilename relativeToVRT="0">{escape(str(part.path))}</SourceFilename>'
        rectangles = f'<SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="0" yOff="{part.row}" {size}/>'
        placed.append((file, rectangles))
    assert row == grid.height, f"parts end at row {row} of {grid.height}"
    kind = typename_fwd[dtype_rev[form.dtype.name]]
    bands = (
        # With blocks as those of the COG, GDAL makes overviews in larger pieces.
        f'<VRTRasterBand band="{band}" dataType="{kind}" blockXSize="512" blockYSize="512">'
        + "".join(
            f"<SimpleSource>{file}<SourceBand>{band}</SourceBand>{rectangles}</SimpleSource>"
            for file, rectangles in placed
        )
        + "</VRTRasterBand>"
        for band in range(1, len(form.band_names) + 1)
    )
    return f'<VRTDataset rasterXSize="{grid.width}" rasterYSize="{grid.height}">{"".join(bands)}</VRTDataset>'


def _open_vrt(xml: str, grid: Grid, form: MapFormat) -> DatasetWriter:
    """Open the XML of a virtual raster and say of it in memory what the map is to say."""
    with _quiet():
        dataset = rasterio.open(xml, "r+", driver="VRT")
        if grid.crs is not None:
            dataset.crs = grid.crs
        if grid.georeferenced:
            dataset.transform = grid.transform
    dataset.nodata = form.nodata
    dataset.update_tags(**form.tags)
    dataset.descriptions = form.band_names
    # Left to itself, GDAL takes three bands of bytes for colours and a fourth for a mask of the others.
    dataset.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (dataset.count - 1)
    if form.scale != 1:
        dataset.scales = (form.scale,) * dataset.count
    if form.colors is not None:
        dataset.write_colormap(1, {value: _rgba(color) for value, color in form.colors.items()})
    return dataset


def _verify(finished: Path, target: Path, grid: Grid, parts: Sequence[Part]) -> None:
    """Compare a finished map with its parts, so that a full disk or a bad block is found now."""
    with _reading_back(target), open_raster(finished) as found:
        _check_grid(target, grid, found)
        for part in parts:
            with open_raster(part.path) as expected:
                for window in grid_of(expected).tiles(1024):
                    place = Window(window.col_off, part.row + window.row_off, window.width, window.height)
                    wanted = read_window(expected, expected.indexes, window)
                    got = read_window(found, found.indexes, place)
                    if not np.array_equal(wanted.view(np.uint8), got.view(np.uint8)):  # bit by bit: NaN is NaN
                        raise _differs(target, place)


def _check_grid(path: Path, grid: Grid, found: DatasetReader) -> None:
    own = grid_of(found)
    difference = grid.difference(own)
    if difference or (own.transform, own.georeferenced) != (grid.transform, grid.georeferenced):
        raise OutputError(
            f"{path}: what was written lies on another grid ({difference or 'transform'}); "
            "GeoTIFF cannot hold the scene's, so warp the scene to another CRS first"
        )


@contextlib.contextmanager
def telling(path: Path) -> Iterator[None]:
    """Tell what GDAL and the system say of a file that is written."""
    with writing_to(path, *GDAL_ERRORS):
        yield


@contextlib.contextmanager
def _reading_back(path: Path) -> Iterator[None]:
    try:
        yield
    except RasterError as error:
        raise OutputError(f"{path}: does not read back: {error}{hindrance(path.parent)}") from error


def _differs(path: Path, window: Window) -> OutputError:
    return OutputError(f"{path}: reads back differently at {_place(window)}{hindrance(path.parent)}")


def _is_vrt(file: Path) -> bool:
    return b"<VRTDataset" in _head(file, 1024)  # as GDAL recognises it


def _head(file: Path, size: int) -> bytes:
    """Return a file's first bytes; none where it cannot be read."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        return stream.read(size)
    return b""


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
