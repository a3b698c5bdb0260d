"""Rasters: the only module that opens imagery, local and remote, and reads windows of it."""

from __future__ import annotations

import contextlib
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.dtypes import dtype_rev
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.windows import Window

from segkit.errors import RasterError, ways
from segkit.io.files import existing
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
        with quiet(), rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"):
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

    with quiet(), rasterio.Env(**options()):
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
        place = f"{what}cannot be read at {window_text(window)}"
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


def _is_vrt(file: Path) -> bool:
    return b"<VRTDataset" in _head(file, 1024)  # as GDAL recognises it


def _head(file: Path, size: int) -> bytes:
    """Return a file's first bytes; none where it cannot be read."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        return stream.read(size)
    return b""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A scene without georeference makes a map without: GDAL need not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def window_text(window: Window) -> str:
    """Name the rows and columns of a window, for messages."""
    return (
        f"rows {int(window.row_off)} to {int(window.row_off + window.height)}, "
        f"columns {int(window.col_off)} to {int(window.col_off + window.width)}"
    )
