"""Rasters: the only module that opens imagery, local and remote, and reads windows of it."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
import warnings
from collections import Counter
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

from segkit.errors import RasterError, UnreadableError, suggest
from segkit.io.block_cache import limit_block_cache, raise_block_cache_limit
from segkit.io.decoder_warnings import require_undamaged
from segkit.io.files import require_file
from segkit.io.grid import Grid, find_crs_problem
from segkit.io.limits import describe_excess
from segkit.io.paths import FileSet, PathLike
from segkit.io.remote import (
    Remote,
    as_path,
    clear_gdal_cache,
    error_text,
    from_gdal_name,
    gdal_name,
    gdal_options,
    read_version,
    retry_once,
)

# GDAL chooses a driver by content, and some drivers can read any other file or fetch a URL. These read only the file
# itself, and fail if it is truncated (ENVI: `_check_size`). ERDAS Imagine (HFA, .img) is left out: GDAL reads zeros
# from a truncated .ige file, and loses the CRS of a truncated .img file.
_DRIVERS = ("GTiff", "JP2OpenJPEG", "ENVI", "PNG", "JPEG", "WEBP")
# Side files that GDAL opens with any driver for masks, overviews or metadata; and the driver with which GDAL writes
# them, which reads no other files.
_SIDE_FILES = {".msk": "GTiff", ".ovr": "GTiff", ".aux": "HFA"}
INTEGER_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
# Their pixels are one stream from top to bottom.
STREAM_DRIVERS = ("PNG", "JPEG", "WEBP")
# What rasterio raises if GDAL fails: it passes some of GDAL's errors on unchanged.
GDAL_ERRORS = (RasterioError, CPLE_BaseError)
# Rows of windows overlap. For a remote raster the block cache may grow to hold this many rows and one row of tiles, so
# that tiles needed by the next row of windows are not fetched again.
_CACHED_ROWS, _MAX_REMOTE_CACHE_BYTES = 1024, 512 * 10**6

# The remote rasters that were closed last stay open, so that neither their headers nor tiles in GDAL's cache are
# fetched again. The key holds the process id: a forked process has none of them.
_MAX_OPEN_REMOTES = 4
_open_remotes: dict[tuple[int, str, bool], tuple[str, float, DatasetReader]] = {}
_REVALIDATE_AFTER_S = 1.0  # then the server is asked whether the file has changed
# How many datasets of a URL are open. While another thread reads one, GDAL's cache of it must not be cleared: what the
# other one reads would fail.
_in_use: Counter[tuple[int, str]] = Counter()
_in_use_lock = threading.Lock()


@contextlib.contextmanager
def open_raster(path: PathLike, *, vrt: bool | None = None) -> Iterator[DatasetReader]:
    """Open one raster for reading.

    Parameters
    ----------
    path
        A file, a URL (`segkit.io.remote`), or files that lie side by side (`segkit.io.mosaic`), which give an object
        with the attributes and methods of a dataset that segkit uses.
    vrt
        Whether it may be a virtual raster, which can read any other file or URL. None: no, and the user cannot allow
        it.

    Raises
    ------
    MissingFileError
        The file does not exist.
    RasterError
        The file is not a raster that segkit reads, is damaged or too large (`segkit.io.limits`); a side file may lead
        GDAL to read other files; or the raster is georeferenced by ground control points only.
    """
    limit_block_cache()
    file = as_path(path)
    if isinstance(file, FileSet):
        with file.open_dataset(vrt=vrt) as files:
            yield files
        return
    with (
        _open_remote(file, vrt=vrt)
        if isinstance(file, Remote)
        else contextlib.closing(_open(require_file(file, "raster"), vrt=vrt))
    ) as dataset:
        if dataset.count == 0:
            raise RasterError(f"{file}: holds subdatasets but no bands; name one of them, or convert it")
        if problem := describe_excess(dataset):
            raise RasterError(f"{file}: {problem}")
        if dataset.transform.is_identity and dataset.gcps[0]:
            raise RasterError(f"{file}: georeferenced by ground control points only; warp it first (gdalwarp)")
        try:
            yield dataset
            return
        except GDAL_ERRORS as error:
            reason = error_text(error, file) if isinstance(file, Remote) else str(error)
        # Not `from error`, which contains the full URL.
        raise RasterError(f"{file}: cannot be read: {reason}; the file is damaged")


def _open(file: Path, *, vrt: bool | None) -> DatasetReader:
    drivers = [*_DRIVERS, "VRT"] if vrt else list(_DRIVERS)
    known = ", ".join(_DRIVERS)
    if isinstance(file, Remote):
        try:
            with rasterio.Env(**gdal_options()):
                return _check_opened(_open_uncached(file, drivers), str(file), vrt=bool(vrt))
        except GDAL_ERRORS as error:
            reason = error_text(error, file)
        # Not `from error`, which contains the full URL.
        raise RasterError(f"{file}: {reason}; check the name, the access rights, and that it is a raster ({known})")
    try:
        # GDAL then looks for side files by their exact names, as `_open_plain` does, not in a list of the folder.
        with ignore_not_georeferenced, rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"):
            if not vrt:
                return _open_plain(file, drivers)
            _check_vrt_text(file)
            return _check_opened(DatasetReader(str(file), driver=drivers), str(file), vrt=True)
    except GDAL_ERRORS as error:
        if file.is_dir():
            raise RasterError(
                f"{file} is a folder, not a raster"
                + suggest("name a file", "add --mosaic (segkit.Mosaic) if its rasters lie side by side")
            ) from error
        if not vrt and _is_vrt(file):
            raise RasterError(
                f"{file}: is a virtual raster (VRT), which can read any other file or URL"
                + (
                    suggest("convert it to GeoTIFF")
                    if vrt is None
                    else suggest("if you trust it, add --vrt (vrt=True)", "convert it to GeoTIFF")
                )
            ) from error
        raise RasterError(
            f"{file}: not a raster that segkit reads ({known}), or damaged; copy it again, or convert it to GeoTIFF: "
            f"gdal_translate IN OUT.tif ({error})"
        ) from error


def _open_plain(file: Path, drivers: Sequence[str]) -> DatasetReader:
    """Open a local file with one of the drivers, and refuse it if it or a side file makes GDAL read other files.

    Raises
    ------
    RasterioError, CPLE_BaseError
        None of the drivers can open it.
    RasterError
        It refers to another file, a side file is not of the type that GDAL writes, or an ENVI file is truncated.
    """
    for side, driver in _side_files(file):
        try:
            # Formats that refer to other files are text; GDAL looks for their marks up to the first zero byte.
            if b"\0" not in _first_bytes(side, 16):
                raise RasterioIOError("it is text")
            _open_plain(side, [driver]).close()
        except GDAL_ERRORS as error:
            raise RasterError(
                f"{side}: GDAL would read this file with {file.name}, but it is not a complete "
                f"{'GeoTIFF' if driver == 'GTiff' else 'ERDAS file'} ({error}), and other formats can refer to any "
                "file or URL; copy it again, or remove it"
            ) from error
    dataset = _check_opened(DatasetReader(str(file), driver=list(drivers)), str(file), vrt=False)
    if dataset.driver == "ENVI":
        _check_size(file, dataset)
    return dataset


def _side_files(file: Path) -> Iterator[tuple[Path, str]]:
    """Yield the side files of a raster that GDAL would open with any driver, and the driver that they need."""
    for ending, driver in _SIDE_FILES.items():
        names = [f"{file.name}{ending}", f"{file.name}{ending.upper()}"]
        if ending == ".aux":
            stem = file.name.rpartition(".")[0] or file.name
            names += [f"{stem}{ending}", f"{stem}{ending.upper()}"]
        for name in names:
            side = file.with_name(name)
            # GDAL opens no other .aux files; LaTeX writes files of this name, too.
            if _exists(side) and (ending != ".aux" or _first_bytes(side, 15).upper() == b"EHFA_HEADER_TAG"):
                yield side, driver


def _exists(file: Path) -> bool:
    """Return whether a file exists; none has a name that is too long."""
    try:
        return file.exists()
    except OSError:
        return False


def _check_opened(dataset: DatasetReader, name: str, *, vrt: bool) -> DatasetReader:
    """Return a raster just opened, after making GDAL read what it otherwise would read later.

    Raises
    ------
    RasterioError, CPLE_BaseError
        The file, or a side file, is damaged.
    RasterError
        The name of a band is not UTF-8; or its metadata, in the file or in an .aux.xml, refer to another file for its
        overviews, and `vrt` is false.
    """
    try:
        _ = dataset.descriptions
    except UnicodeDecodeError as error:
        dataset.close()
        raise RasterError(
            f"{name}: the name of a band is not UTF-8 ({error}); name the bands again "
            "(rasterio: dataset.descriptions = [...], or the .hdr of an ENVI file)"
        ) from error
    if not vrt and dataset.tags(ns="OVERVIEWS"):
        dataset.close()
        raise RasterError(
            f"{name}: its metadata (OVERVIEW_FILE, in the file or in its .aux.xml) refer to another file or URL for "
            "overviews, which segkit does not read; remove that entry, or copy the raster without it: "
            "gdalwarp -nomd -ovr NONE IN OUT.tif"
        )
    # For a remote raster, which has no side files, this would only cost requests.
    if from_gdal_name(dataset.name) is None:
        # Masks, overviews, and colours; reading colours raises an error that GDAL met before.
        _ = dataset.mask_flag_enums, vrt or not dataset.count or dataset.overviews(1), dataset.colorinterp
    return dataset


def _check_size(file: Path, dataset: DatasetReader) -> None:
    """Refuse an ENVI file that is shorter than its header says; GDAL would read zeros beyond its end."""
    # Not from GDAL's metadata, which an .aux.xml may change.
    header = next((Path(each) for each in dataset.files if each.lower().endswith(".hdr")), file)
    offset = re.search(rb"(?im)^\s*header offset\s*=\s*(\d+)", header.read_bytes())
    pixel = sum(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
    declared = (int(offset[1]) if offset else 0) + dataset.width * dataset.height * pixel
    if (size := file.stat().st_size) < declared:
        dataset.close()
        raise RasterError(
            f"{file}: has {size} bytes, but its header (.hdr) declares {declared}, so it is truncated or compressed; "
            "copy it again, or, if it is compressed, convert it to GeoTIFF: gdal_translate IN OUT.tif"
        )


def _open_uncached(file: Remote, drivers: Sequence[str]) -> DatasetReader:
    """Open a remote raster, without what GDAL has cached of it unless another thread reads it."""

    def attempt() -> DatasetReader:
        with _in_use_lock:
            if _in_use[os.getpid(), os.fspath(file)] <= 1:
                clear_gdal_cache(file)
        return DatasetReader(gdal_name(file), driver=list(drivers))

    with ignore_not_georeferenced, rasterio.Env(**gdal_options()):
        return retry_once(attempt, lambda error: isinstance(error, GDAL_ERRORS) and "CURL" in str(error))


@contextlib.contextmanager
def _open_remote(file: Remote, *, vrt: bool | None) -> Iterator[DatasetReader]:
    """Open a remote raster, or reuse one that is still open and has not changed."""
    key = os.getpid(), os.fspath(file), bool(vrt)
    with _in_use_lock:
        _in_use[key[:2]] += 1
    try:
        yield from _open_or_reuse(file, key)
    finally:
        with _in_use_lock:
            _in_use[key[:2]] -= 1
            if not _in_use[key[:2]]:
                del _in_use[key[:2]]


def _open_or_reuse(file: Remote, key: tuple[int, str, bool]) -> Iterator[DatasetReader]:
    version, checked, dataset = _open_remotes.pop(key, ("", 0.0, None))
    if dataset is None or time.monotonic() - checked > _REVALIDATE_AFTER_S:
        current = current_version(file)
        if dataset is not None and (current != version or not current):
            dataset.close()
            dataset = None
        version = current
    if dataset is None:
        dataset = _open(file, vrt=key[2])
    pixel_bytes = sum(np.dtype(dtype).itemsize for dtype in dataset.dtypes if dtype in dtype_rev)
    rows = _CACHED_ROWS + max((height for height, _ in dataset.block_shapes), default=0)
    raise_block_cache_limit(min(_MAX_REMOTE_CACHE_BYTES, int(1.1 * rows * dataset.width * pixel_bytes)))
    try:
        yield dataset
    except BaseException:
        dataset.close()
        raise
    if other := _open_remotes.pop(key, None):
        other[2].close()
    _open_remotes[key] = version, time.monotonic(), dataset
    while len(_open_remotes) > _MAX_OPEN_REMOTES:
        with contextlib.suppress(StopIteration, KeyError):  # another thread closed it first
            _open_remotes.pop(next(iter(_open_remotes)))[2].close()


def open_again(dataset: DatasetReader) -> DatasetReader:
    """Return the raster of a local file that could not be read, opened again; the dataset stays open.

    After an error, decoders of JPEG give other pixels without one.
    """
    with ignore_not_georeferenced, rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"):
        return DatasetReader(dataset.name, driver=[dataset.driver])


def current_version(file: Remote) -> str:
    """Ask the server for the version of a remote file, see `read_version`."""
    with rasterio.Env(**gdal_options()):
        return read_version(file)


def read_grid(dataset: Any) -> Grid:
    """Return the grid of an open raster.

    Without a georeference, the transform is the one with which QGIS shows it: x = column, y = -row.

    Raises
    ------
    RasterError
        Its transform or its CRS is damaged.
    """
    if isinstance(own := getattr(dataset, "grid", None), Grid):  # of an array
        return own
    transform = dataset.transform
    if transform.is_degenerate or not np.isfinite([*transform, *~transform]).all():
        raise RasterError(
            f"{dataset.name}: its pixels have no size or no place (transform {', '.join(map(str, transform[:6]))}); "
            "the file is damaged, or georeference it again: gdal_translate -a_ullr"
        )
    if dataset.crs is not None and (problem := find_crs_problem(dataset.crs.to_wkt())):
        raise RasterError(f"{dataset.name}: its CRS cannot be used ({problem}); assign it again: gdal_edit -a_srs")
    # GDAL distinguishes the identity transform from no transform; rasterio returns the identity for both.
    if dataset.transform.is_identity and vrt_description(dataset).find("GeoTransform") is None:
        return Grid(dataset.height, dataset.width, Affine.scale(1, -1), dataset.crs, georeferenced=False)
    return Grid(dataset.height, dataset.width, dataset.transform, dataset.crs)


def vrt_description(dataset: DatasetReader) -> ElementTree.Element:
    """Return an open raster as the XML of a virtual raster, which holds metadata that rasterio does not expose.

    Raises
    ------
    RasterError
        The file is damaged.
    """
    try:
        # GDAL must not open side files of side files, which `_open` has not checked.
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), MemoryFile(ext="vrt") as file:
            rasterio.shutil.copy(dataset, file.name, driver="VRT")
            return ElementTree.fromstring(file.read())  # noqa: S314, GDAL wrote it
    except GDAL_ERRORS as error:
        raise RasterError(f"{dataset.name}: the file is damaged ({error})") from error


def read_window(dataset: DatasetReader, indexes: Sequence[int], window: Window, **options: Any) -> NDArray[Any]:
    """Read bands of a window inside the raster, as (bands, H, W) with a dtype that holds the values of all of them.

    Raises
    ------
    UnreadableError
        The file is damaged there.
    RasterError
        A remote file, or one of a virtual raster, cannot be read there: whether it is damaged or the network failed
        cannot be told.
    """
    if len({dataset.dtypes[band - 1] for band in indexes}) > 1:
        return _read_several_types(dataset, indexes, window, **options)
    return _read(dataset, window, lambda: dataset.read(list(indexes), window=window, **options))


def _read_several_types(
    dataset: DatasetReader, indexes: Sequence[int], window: Window, out: NDArray[Any] | None = None, **options: Any
) -> NDArray[Any]:
    """Read bands that do not have the same dtype, as those of a VRT; rasterio reads them one by one only."""
    if out is None:
        bands = [read_window(dataset, [band], window, **options) for band in indexes]
        return np.concatenate(bands) if not options.get("masked") else np.ma.concatenate(bands)  # type: ignore[no-untyped-call]
    for band, target in zip(indexes, out, strict=True):
        read_window(dataset, [band], window, out=target[np.newaxis], **options)
    return out


def read_mask(dataset: DatasetReader, band: int, window: Window) -> NDArray[np.uint8]:
    """Read the mask of a band in a window inside the raster: uint8 (H, W), 0 is no data; raises as `read_window`."""
    return _read(dataset, window, lambda: dataset.read_masks(band, window=window), "its mask ")


def _read(dataset: DatasetReader, window: Window, read: Callable[[], NDArray[Any]], what: str = "") -> NDArray[Any]:
    """Call `read`, for a remote file a second time if it fails; `what` is named in the error message."""
    file = from_gdal_name(dataset.name)
    try:
        if file is None or getattr(dataset, "driver", "") in STREAM_DRIVERS:  # see `open_again`
            return require_undamaged(read)
        return require_undamaged(lambda: retry_once(read, lambda error: isinstance(error, GDAL_ERRORS)))
    except GDAL_ERRORS as error:
        place = f"{what}cannot be read at {window_text(window)}"
        source = file or next(filter(None, map(from_gdal_name, getattr(dataset, "files", ()))), None)
        if source is None:
            reason = str(error.__cause__ or error)  # rasterio's own text is the same for all errors
            remedies = suggest("copy it again", "map what can be read of it: --on-read-error nodata")
            raise UnreadableError(f"{dataset.name}: {place}; the file is damaged ({reason}){remedies}") from error
        reason = error_text(error, source)
    # GDAL reports the server's answer only when it opens a file.
    try:
        _open_uncached(source, _DRIVERS).close()
    except GDAL_ERRORS as error:
        raise RasterError(f"{file or dataset.name}: {place}: {error_text(error, source)}") from None
    server = "the server" if file else f"the server of {source}"
    remedies = suggest("try again", "download it: damage of a local file can be skipped (--on-read-error nodata)")
    raise RasterError(
        f"{file or dataset.name}: {place}; {server} does not send all of it, or the file is damaged or has changed "
        f"({reason}){remedies}"
    )


def _is_vrt(file: Path) -> bool:
    return b"<VRTDataset" in _first_bytes(file, 1024)  # as GDAL recognises it


def _check_vrt_text(file: Path) -> None:
    """Refuse a virtual raster that is not UTF-8: rasterio loses GDAL's errors about names that it cannot decode."""
    if _is_vrt(file):
        try:
            file.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise RasterError(
                f"{file}: is not UTF-8 ({error}); save it as UTF-8, or make it again (gdalbuildvrt)"
            ) from error


def _first_bytes(file: Path, size: int) -> bytes:
    """Return the first bytes of a file; none if it cannot be read."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        return stream.read(size)
    return b""


class _IgnoredWarning:
    """Ignores a warning while at least one thread is in the block.

    Python's filters belong to all threads. If each thread set and restored them on its own, one could restore them
    while another still needs them, or leave them changed for good.
    """

    def __init__(self, category: type[Warning]) -> None:
        self._category, self._lock, self._inside = category, threading.Lock(), 0
        self._filters = warnings.catch_warnings()
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(after_in_child=self._forget_threads)

    def _forget_threads(self) -> None:
        """Of the threads, a forked process has one, and another may have held the lock."""
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore", self._category)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.__exit__(None, None, None)


# Maps of rasters without a georeference have none either.
ignore_not_georeferenced = _IgnoredWarning(NotGeoreferencedWarning)


def window_text(window: Window) -> str:
    """Return the rows and columns of a window for messages."""
    return (
        f"rows {int(window.row_off)} to {int(window.row_off + window.height)}, "
        f"columns {int(window.col_off)} to {int(window.col_off + window.width)}"
    )
