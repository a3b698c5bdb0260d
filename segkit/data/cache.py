"""Disk cache of decoded scenes and labels, as arrays that are mapped into memory.

An entry is a folder of .npy files. Its name is a digest of the source: the bytes of the files, or the version that a
server reports of a remote file, and the options with which they are read. So a changed file has a new entry, and runs
with the same source share an entry. The least recently used entries are removed first.

An entry holds checksums of its files, which are compared when it is opened; a damaged entry is decoded again.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import os
import secrets
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.labels.base import Labels
from segkit.errors import SegkitError
from segkit.io.files import fsync, home_folder, lock_folder, remove_leftovers, temporary_folder
from segkit.io.grid import Grid
from segkit.io.layers import SceneLayer
from segkit.io.mosaic import Mosaic
from segkit.io.pixel_rules import AS_STORED
from segkit.io.product_band import ProductFile
from segkit.io.raster import current_version, open_raster
from segkit.io.remote import Remote, as_path
from segkit.io.scene import Scene, SceneReader
from segkit.runtime.progress import progress

_FORMAT = 2  # of entries; 1 had no checksums
_GIGABYTE = 10**9
_PIXELS, _VALID, _TARGETS = "pixels.npy", "valid.npy", "planes.npy"
_CHECKSUMS = "checksums.json"
# Types that float32 represents exactly; other types are stored as float32, as they are read.
_EXACT_IN_FLOAT32 = {"uint8", "int8", "uint16", "int16"}
_MAX_STRIP_PX = 2**22
_CHUNK_BYTES = 2**20  # read at once for a checksum; fits into the processor's cache
_MAX_OPEN_ARRAYS = 512
_MIN_FREE_SHARE = 0.05  # of the disk


def cache_folder() -> Path:
    """Return the folder of the cache: $SEGKIT_CACHE, or the `segkit` folder in the user's cache folder."""
    if chosen := os.environ.get("SEGKIT_CACHE"):
        return Path(chosen)
    folder = platformdirs.user_cache_path("segkit", appauthor=False)
    return folder if folder.is_absolute() else home_folder() / ".cache" / "segkit"  # the system knows no home


@dataclass(frozen=True)
class CacheEntry:
    """A folder of the cache, its size in bytes, and the time of its last use (seconds since 1970)."""

    path: Path
    size: int
    used: float


def list_entries() -> list[CacheEntry]:
    """Return the entries of the cache, the least recently used first."""
    found = []
    folder = cache_folder()
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.name.startswith("."):
            with suppress(OSError):  # another process has just removed it
                size = sum(file.stat().st_size for file in path.iterdir())
                found.append(CacheEntry(path, size, path.stat().st_mtime))
    return sorted(found, key=lambda entry: entry.used)


def clear_cache() -> list[CacheEntry]:
    """Remove and return the entries that no training is using."""
    removed = [entry for entry in list_entries() if _remove(entry.path)]
    remove_leftovers(cache_folder())
    return removed


class Cache:
    """Makes scenes and labels that read from cached arrays; see `Cache.open`."""

    def __init__(self, limit: int, locks: ExitStack, *, show_progress: bool) -> None:
        self._folder, self._limit, self._locks, self._show = cache_folder(), limit, locks, show_progress

    @classmethod
    @contextmanager
    def open(cls, gigabytes: float, *, show_progress: bool = False) -> Iterator[Cache | None]:
        """Use the cache in a with block; None if its size is 0.

        Parameters
        ----------
        gigabytes
            Maximum size of all entries together (10^9 bytes).
        show_progress
            Whether to show the progress of decoding on stderr.
        """
        if not gigabytes:
            yield None
            return
        with ExitStack() as locks:
            yield cls(int(gigabytes * _GIGABYTE), locks, show_progress=show_progress)

    def scene(self, scene: Scene) -> Scene:
        """Return a scene that reads the same from a cached array; the scene itself if there is no space.

        In pixels that are not valid all bands are NaN.

        Raises
        ------
        RasterError
            A file is damaged.
        """
        files, types = _files(scene)
        how = {"scene": _FORMAT, "bands": scene.bands, "resample": scene.resample, "scaled": scene.scaled}
        how |= {"grid": _describe_grid(scene.grid)}
        if overlaps := [path.overlap for path in scene.paths if isinstance(path, Mosaic)]:
            how["overlaps"] = overlaps
        if products := [path.describe() for path in scene.paths if isinstance(path, ProductFile)]:
            how["products"] = products
        how |= {} if scene.rules == AS_STORED else {"rules": asdict(scene.rules)}
        how |= {} if not scene.masks else {"masks": [[mask.bands, asdict(mask.rule)] for mask in scene.masks]}
        how |= {} if not scene.derived else {"derived": [asdict(band) for band in scene.derived]}
        how |= {} if not scene.layers else {"layers": [_describe_layer(layer) for layer in scene.layers]}
        as_read = scene.resample or scene.scaled or scene.rules.has_units or scene.is_of_products
        as_stored = not (as_read or scene.derived or scene.layers)
        stored = np.dtype(types.pop() if len(types) == 1 and types <= _EXACT_IN_FLOAT32 and as_stored else "float32")
        pixels = scene.grid.height * scene.grid.width
        entry = self._entry(
            _digest(how, files),
            pixels * (len(scene.bands) * stored.itemsize + 1),
            scene.name,
            lambda folder: _write_scene(scene, folder, stored, show=self._show),
        )
        return scene if entry is None else _CachedScene(**_field_values(scene, Scene), entry=entry)

    def labels(self, labels: Labels, files: list[Path], how: Mapping[str, Any]) -> Labels:
        """Return labels that read the same from a cached array; the labels themselves if there is no space.

        Parameters
        ----------
        files
            Their files; files beside them with the same stem (.dbf, .prj, ...) are included.
        how
            All options that affect them, as values that JSON can hold.

        Raises
        ------
        LabelError, RasterError
            The labels cannot be read.
        """
        grid, task = labels.grid, labels.task
        small = "int8" if len(task.categories) <= np.iinfo(np.int8).max else "int16"
        stored = np.dtype("float32" if labels.soft else small)
        bands = task.channels if labels.soft else task.n_targets
        how = {"labels": _FORMAT, "grid": _describe_grid(grid), "task": asdict(task), **how}
        entry = self._entry(
            _digest(how, _with_companions(files)),
            grid.height * grid.width * bands * stored.itemsize,
            labels.name,
            lambda folder: _write_labels(labels, folder, stored, bands),
        )
        return labels if entry is None else _CachedLabels(**_field_values(labels, Labels), entry=entry)

    def _entry(self, key: str, size: int, name: str, write: Callable[[Path], None]) -> Path | None:
        """Return an entry, made if it does not exist, and lock it until the cache is closed; None if that fails."""
        entry = self._folder / key
        damage = self._lock(entry)
        if damage is None:
            return entry
        try:
            if damage:
                warnings.warn(f"{name}: its cache entry is damaged ({damage}); it is decoded again", stacklevel=4)
                _open_array.cache_clear()  # arrays that this process has mapped may be the damaged files
                if not _remove(entry) and entry.is_dir():
                    raise BlockingIOError("another process uses the damaged entry")
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._free_space(size):
                warnings.warn(
                    f"{name}: needs {size / _GIGABYTE:.3g} GB when decoded, more than {self._folder} has free; it is "
                    "read from its files, which is slower: raise data.cache, or set SEGKIT_CACHE to a larger disk",
                    stacklevel=4,
                )
                return None
            with temporary_folder(self._folder, key) as part:
                arrays = part / "arrays"
                arrays.mkdir()
                write(arrays)
                (arrays / _CHECKSUMS).write_text(json.dumps(_checksums(arrays, key)), encoding="utf-8")
                for file in (*arrays.iterdir(), arrays):
                    fsync(file)
                try:
                    arrays.rename(entry)
                except OSError:
                    if not entry.is_dir():  # otherwise another process was faster
                        raise
            reason = self._lock(entry)
            if reason is None:
                return entry
            reason = reason or "another process has removed it"
        except SegkitError:
            raise
        except OSError as error:
            reason = str(error)
        warnings.warn(f"{self._folder}: cannot cache {name} ({reason}); it is read from its files", stacklevel=4)
        return None

    def _lock(self, entry: Path) -> str | None:
        """Lock an intact entry against removal; else return what is damaged, "" if the entry does not exist."""
        try:
            if not entry.is_dir():
                return ""
            with ExitStack() as lock:
                lock.enter_context(lock_folder(entry, shared=True))
                os.utime(entry)
                damage = _find_damage(entry)
                if damage is None:
                    self._locks.enter_context(lock.pop_all())
                return damage
        except OSError:  # it is being removed, or it or its folder belongs to another user
            return ""

    def _free_space(self, size: int) -> bool:
        """Remove the least recently used entries until `size` bytes are free; return False if that is not enough."""
        present = list_entries()
        total = sum(entry.size for entry in present)
        disk = shutil.disk_usage(self._folder)
        free = disk.free - int(disk.total * _MIN_FREE_SHARE)
        for entry in present:
            if total + size <= self._limit and size <= free:
                break
            if _remove(entry.path):
                total, free = total - entry.size, free + entry.size
        return total + size <= self._limit and size <= free


@dataclass(frozen=True)
class _CachedScene(Scene):
    entry: Path = Path()

    @contextmanager
    def open(self) -> Iterator[SceneReader]:
        """Open a reader of the arrays."""
        yield SceneReader(self.grid, len(self.bands), [_Arrays(self.entry)])


class _Arrays:
    """Source of all bands of a scene."""

    def __init__(self, entry: Path) -> None:
        self._pixels, self._valid = _open_array(entry, _PIXELS), _open_array(entry, _VALID)[0]

    def read(self, window: Window, stack: NDArray[np.float32]) -> NDArray[np.bool_]:
        rows, columns = window.toslices()
        valid: NDArray[np.bool_] = self._valid[rows, columns]
        stack[:] = self._pixels[:, rows, columns]
        if not valid.all():
            stack[:, ~valid] = np.nan
        return valid


@dataclass(frozen=True, eq=False)
class _CachedLabels(Labels):
    entry: Path = Path()

    def _read(self, window: Window) -> NDArray[Any]:
        return _open_array(self.entry, _TARGETS)[:, *window.toslices()].astype(np.float32 if self.soft else np.int16)


@functools.lru_cache(maxsize=_MAX_OPEN_ARRAYS)
def _open_array(entry: Path, name: str) -> NDArray[Any]:
    """Map an array into memory; forked processes share it, others map it again."""
    # Slicing a plain array takes a third of the time of slicing a memmap.
    return np.load(entry / name, mmap_mode="r").view(np.ndarray)  # type: ignore[no-any-return]


def _checksums(folder: Path, key: str) -> dict[str, str | int]:
    """Return the CRC-32 of each array in a folder, and the name of the entry, which detects renamed folders."""
    sums: dict[str, str | int] = {"name": key}
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    for path in sorted(folder.glob("*.npy")):
        sums[path.name] = 0
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                sums[path.name] = zlib.crc32(buffer[:size], int(sums[path.name]))
    return sums


def _find_damage(entry: Path) -> str | None:
    """Return which files of an entry have changed; None if it is intact."""
    try:
        written, found = json.loads((entry / _CHECKSUMS).read_bytes()), _checksums(entry, entry.name)
    except (OSError, ValueError):
        return f"{entry} has no readable {_CHECKSUMS}"
    if written == found:
        return None
    names = sorted(found.keys() | dict(written).keys()) if isinstance(written, dict) else []
    wrong = [name for name in names if written.get(name) != found.get(name)]
    return f"{entry}: changed: {', '.join(wrong) or _CHECKSUMS}"


def _write_scene(scene: Scene, folder: Path, stored: np.dtype[Any], *, show: bool) -> None:
    grid = scene.grid
    with (
        progress(f"decode {scene.name}", grid.height * grid.width / 1e6, "Mpx", show=show) as advance,
        scene.open() as reader,
        _writable_array(folder / _PIXELS, stored, (len(scene.bands), *grid.shape)) as write_pixels,
        _writable_array(folder / _VALID, np.dtype(bool), (1, *grid.shape)) as write_valid,
    ):
        for window in _strips(grid):
            tile = reader.read(window)
            if stored.kind in "iu" and np.isnan(tile.pixels[:, tile.valid]).any():
                break  # no data in single bands, which an integer type cannot represent
            pixels = tile.pixels if stored.kind == "f" else np.where(tile.valid, tile.pixels, 0).astype(stored)
            write_pixels(int(window.row_off), pixels)
            write_valid(int(window.row_off), tile.valid[None])
            advance(tile.valid.size / 1e6)
        else:
            return
    _write_scene(scene, folder, np.dtype("float32"), show=show)


def _write_labels(labels: Labels, folder: Path, stored: np.dtype[Any], bands: int) -> None:
    with _writable_array(folder / _TARGETS, stored, (bands, *labels.grid.shape)) as write:
        for window in _strips(labels.grid):
            write(int(window.row_off), labels.read(window).astype(stored))


@contextmanager
def _writable_array(
    path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> Iterator[Callable[[int, NDArray[Any]], None]]:
    """Write a .npy file (bands, H, W) in strips of rows.

    Not through mapped memory: if the disk is full, that kills the process.
    """
    with path.open("wb") as file:
        np.lib.format.write_array_header_2_0(
            file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        )
        start = file.tell()

        def write(row: int, strip: NDArray[Any]) -> None:
            for band, part in enumerate(strip):
                file.seek(start + (band * shape[1] + row) * shape[2] * dtype.itemsize)
                file.write(np.ascontiguousarray(part).data)

        yield write


def _strips(grid: Grid) -> Iterator[Window]:
    height = max(1, _MAX_STRIP_PX // grid.width)
    for top in range(0, grid.height, height):
        yield Window(0, top, grid.width, min(height, grid.height - top))


def _files(scene: Scene) -> tuple[list[Path], set[str]]:
    """Return all files that GDAL reads for a scene, with masks, layers and headers, and the data types of its bands."""
    files: list[Path] = []
    types: list[str] = []
    for path in dict.fromkeys((*scene.paths, *(mask.path for mask in scene.masks), *scene.all_paths)):
        with open_raster(path, vrt=scene.vrt) as dataset:
            # GDAL reads no other files beside a remote one.
            files += [path] if isinstance(path, Remote) else [as_path(file) for file in dataset.files]
            types += dataset.dtypes  # those of masks and layers come last
    return files, {types[band - 1] for band in scene.without_derived().bands}


def _describe_layer(layer: SceneLayer) -> dict[str, Any]:
    """Return what affects the pixels of a layer, without its path, as values that JSON can hold."""
    path = layer.declared.path
    how = asdict(replace(layer, covered=1.0)) | {"overlap": path.overlap if isinstance(path, Mosaic) else None}
    how["declared"] = how["declared"] | {"path": None}
    return how


def _with_companions(files: list[Path]) -> list[Path]:
    """Add files with the same stem: parts of a shapefile, headers, masks, world files."""
    local = [file for file in files if not isinstance(file, Remote)]
    companions = {other for file in local for other in file.parent.glob(f"{glob.escape(file.stem)}.*")}
    return [*files, *sorted(companions.difference(files))]


def _digest(how: Mapping[str, Any], files: list[Path]) -> str:
    """Return the name of an entry: 32 hexadecimal digits."""
    digest = hashlib.blake2b(json.dumps(how, sort_keys=True).encode(), digest_size=16)
    for file in files:
        if isinstance(file, Remote):
            # Not its bytes: the cache is to avoid their download. Without a version from the server, each run has its
            # own entry.
            digest.update(f"{file} {current_version(file) or secrets.token_hex()}".encode())
            continue
        facts = file.stat()
        # The suffix decides how a file is read; its folder does not matter.
        digest.update(file.suffix.encode() + _file_digest(file, facts.st_mtime_ns, facts.st_size))
    return digest.hexdigest()


@functools.lru_cache(maxsize=32)  # one label file may serve many scenes
def _file_digest(file: Path, changed: int, size: int) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").digest()


def _describe_grid(grid: Grid) -> list[Any]:
    return [grid.height, grid.width, list(grid.transform)[:6], None if grid.crs is None else grid.crs.to_wkt()]


def _field_values(one: Any, kind: type[Any]) -> dict[str, Any]:
    return {field.name: getattr(one, field.name) for field in fields(kind)}


def _remove(entry: Path) -> bool:
    """Remove an entry unless it is in use; return whether it was removed."""
    try:
        with lock_folder(entry):
            shutil.rmtree(entry)
    except OSError:
        return False
    return True
