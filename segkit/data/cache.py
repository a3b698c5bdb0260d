"""Cache: scenes and labels decoded once, on the disk as plain arrays that are mapped into memory.

An entry is a folder of .npy files, named by a digest of what was decoded: the bytes of the files, or the version that
a server tells of a remote one, and how they are read.
So a changed file is another entry, and runs share what they have in common. What was used longest ago goes first.

An entry holds the checksums of its files. They are compared when it is opened; what is damaged is decoded anew.
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
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.labels.base import Labels
from segkit.errors import SegkitError
from segkit.io.files import home_folder, locked, remove_leftovers, scratch, sync
from segkit.io.grid import Grid
from segkit.io.raster import open_raster, version_now
from segkit.io.remote import Remote
from segkit.io.scene import Scene, SceneReader
from segkit.runtime.progress import progress

# What the entries hold; a number for each way in which they ever did.
_FORMAT = 2  # 1 had no checksums
_GIGABYTE = 10**9
_PIXELS, _VALID, _PLANES = "pixels.npy", "valid.npy", "planes.npy"
_SUMS = "checksums.json"
# Types that float32 holds exactly; others are kept as float32, which is how they are read.
_SMALL = {"uint8", "int8", "uint16", "int16"}
_STRIP_PIXELS = 2**22
_CHUNK = 2**20  # bytes read at once for a checksum; more fall out of the processor's cache
_OPEN_ARRAYS = 512
_FREE_SHARE = 0.05  # of a disk, which is left free


def cache_folder() -> Path:
    """Return where entries lie: $SEGKIT_CACHE, or `segkit` where the system keeps caches."""
    if own := os.environ.get("SEGKIT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or home_folder() / ".cache") / "segkit"


@dataclass(frozen=True)
class Entry:
    """A folder of the cache, how many bytes it holds, and when it was used last (seconds since 1970)."""

    path: Path
    size: int
    used: float


def entries() -> list[Entry]:
    """Return what the cache holds, the least recently used first."""
    found = []
    folder = cache_folder()
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.name.startswith("."):
            with suppress(OSError):  # another process has just removed it
                size = sum(file.stat().st_size for file in path.iterdir())
                found.append(Entry(path, size, path.stat().st_mtime))
    return sorted(found, key=lambda entry: entry.used)


def clear() -> list[Entry]:
    """Remove what no training uses right now, and return it."""
    gone = [entry for entry in entries() if _remove(entry.path)]
    remove_leftovers(cache_folder())
    return gone


class Cache:
    """Gives scenes and labels that read from arrays; made by `Cache.opened`."""

    def __init__(self, limit: int, held: ExitStack, *, show_progress: bool) -> None:
        self._folder, self._limit, self._held, self._show = cache_folder(), limit, held, show_progress

    @classmethod
    @contextmanager
    def opened(cls, gigabytes: float, *, show_progress: bool = False) -> Iterator[Cache | None]:
        """Use the cache while the block lasts; None where it may hold nothing.

        Parameters
        ----------
        gigabytes
            How much all entries may take together (10^9 bytes).
        show_progress
            Whether decoding is shown on stderr.
        """
        if not gigabytes:
            yield None
            return
        with ExitStack() as held:
            yield cls(int(gigabytes * _GIGABYTE), held, show_progress=show_progress)

    def scene(self, scene: Scene) -> Scene:
        """Return a scene that reads the same from an array; the scene itself where it finds no room.

        Where a pixel is not valid, all its bands are NaN.

        Raises
        ------
        RasterError
            A file is damaged.
        """
        files, types = _files(scene)
        how = {"scene": _FORMAT, "bands": scene.bands, "resample": scene.resample, "scaled": scene.scaled}
        how |= {"grid": _told(scene.grid)}
        as_stored = not scene.resample and not scene.scaled
        kept = np.dtype(types.pop() if len(types) == 1 and types <= _SMALL and as_stored else "float32")
        pixels = scene.grid.height * scene.grid.width
        entry = self._entry(
            _digest(how, files),
            pixels * (len(scene.bands) * kept.itemsize + 1),
            scene.name,
            lambda folder: _write_scene(scene, folder, kept, show=self._show),
        )
        return scene if entry is None else _CachedScene(**_fields(scene, Scene), entry=entry)

    def labels(self, labels: Labels, files: list[Path], how: Mapping[str, Any]) -> Labels:
        """Return labels that read the same from an array; themselves where they find no room.

        Parameters
        ----------
        files
            That they come from; with them, those that lie beside them under the same name count.
        how
            Everything else that decides what they say, as JSON can hold it.

        Raises
        ------
        LabelError, RasterError
            They cannot be read.
        """
        grid, task = labels.grid, labels.task
        small = "int8" if len(task.categories) <= np.iinfo(np.int8).max else "int16"
        kept, planes = np.dtype("float32" if labels.soft else small), task.channels if labels.soft else task.planes
        entry = self._entry(
            _digest({"labels": _FORMAT, "grid": _told(grid), "task": asdict(task), **how}, _with_companions(files)),
            grid.height * grid.width * planes * kept.itemsize,
            labels.name,
            lambda folder: _write_labels(labels, folder, kept, planes),
        )
        return labels if entry is None else _CachedLabels(**_fields(labels, Labels), entry=entry)

    def _entry(self, key: str, size: int, name: str, write: Callable[[Path], None]) -> Path | None:
        """Return an entry that is there or can be made, and hold it until the cache is closed."""
        entry = self._folder / key
        damage = self._hold(entry)
        if damage is None:
            return entry
        try:
            if damage:
                warnings.warn(f"{name}: its entry in the cache is damaged ({damage}); it is made anew", stacklevel=4)
                _mapped.cache_clear()  # of this process; what it has mapped may be the damaged files
                if not _remove(entry) and entry.is_dir():
                    raise BlockingIOError("another process uses the damaged entry")
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._make_room(size):
                warnings.warn(
                    f"{name}: takes {size / _GIGABYTE:.3g} GB when decoded, for which {self._folder} has no room; it "
                    "is read from its files, which is slower: raise data.cache, or set SEGKIT_CACHE to a larger disk",
                    stacklevel=4,
                )
                return None
            with scratch(self._folder, key) as part:
                arrays = part / "arrays"
                arrays.mkdir()
                write(arrays)
                (arrays / _SUMS).write_text(json.dumps(_checksums(arrays, key)))
                for file in (*arrays.iterdir(), arrays):
                    sync(file)
                try:
                    arrays.rename(entry)
                except OSError:
                    if not entry.is_dir():  # else another run was faster
                        raise
            why = self._hold(entry)
            if why is None:
                return entry
            why = why or "another process has removed it"
        except SegkitError:
            raise
        except OSError as error:
            why = str(error)
        warnings.warn(f"{self._folder}: cannot keep {name} ({why}); it is read from its files", stacklevel=4)
        return None

    def _hold(self, entry: Path) -> str | None:
        """Keep others from removing a sound entry; else say what is damaged, and nothing where it is not there."""
        if not entry.is_dir():
            return ""
        try:
            with ExitStack() as own:
                own.enter_context(locked(entry, shared=True))
                os.utime(entry)
                damage = _damage(entry)
                if damage is None:
                    self._held.enter_context(own.pop_all())
                return damage
        except OSError:  # it is just being removed, or somebody else's
            return ""

    def _make_room(self, size: int) -> bool:
        """Remove entries that were not used for longest until there is room; false where that does not do."""
        present = entries()
        total = sum(entry.size for entry in present)
        disk = shutil.disk_usage(self._folder)
        free = disk.free - int(disk.total * _FREE_SHARE)
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
        """Give a reader of the arrays."""
        yield SceneReader(self.grid, len(self.bands), [_Arrays(self.entry)])


class _Arrays:
    """All bands of a scene."""

    def __init__(self, entry: Path) -> None:
        self._pixels, self._valid = _mapped(entry, _PIXELS), _mapped(entry, _VALID)[0]

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
        return _mapped(self.entry, _PLANES)[:, *window.toslices()].astype(np.float32 if self.soft else np.int16)


@functools.lru_cache(maxsize=_OPEN_ARRAYS)
def _mapped(entry: Path, name: str) -> NDArray[Any]:
    """Map an array into memory; processes that are forked share it, others map it again."""
    # Slices of a plain array take a third of the time of those of a memmap.
    return np.load(entry / name, mmap_mode="r").view(np.ndarray)  # type: ignore[no-any-return]


def _checksums(folder: Path, key: str) -> dict[str, str | int]:
    """Return the CRC-32 of each array in a folder, and the name of the entry, lest it be taken for another one."""
    sums: dict[str, str | int] = {"name": key}
    buffer = memoryview(bytearray(_CHUNK))
    for path in sorted(folder.glob("*.npy")):
        sums[path.name] = 0
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                sums[path.name] = zlib.crc32(buffer[:size], int(sums[path.name]))
    return sums


def _damage(entry: Path) -> str | None:
    """Say what of an entry is not as it was written; None where all is."""
    try:
        written, found = json.loads((entry / _SUMS).read_bytes()), _checksums(entry, entry.name)
    except (OSError, ValueError):
        return f"{entry} has no readable {_SUMS}"
    if written == found:
        return None
    names = sorted(found.keys() | dict(written).keys()) if isinstance(written, dict) else []
    wrong = [name for name in names if written.get(name) != found.get(name)]
    return f"{entry}: {', '.join(wrong) or _SUMS} is not as it was written"


def _write_scene(scene: Scene, folder: Path, kept: np.dtype[Any], *, show: bool) -> None:
    grid = scene.grid
    with (
        progress(f"decode {scene.name}", grid.height * grid.width / 1e6, "Mpx", show=show) as advance,
        scene.open() as reader,
        _array(folder / _PIXELS, kept, (len(scene.bands), *grid.shape)) as put_pixels,
        _array(folder / _VALID, np.dtype(bool), (1, *grid.shape)) as put_valid,
    ):
        for window in _strips(grid):
            tile = reader.read(window)
            if kept.kind in "iu" and np.isnan(tile.pixels[:, tile.valid]).any():
                break  # a band alone has no data here, which whole numbers cannot say
            pixels = tile.pixels if kept.kind == "f" else np.where(tile.valid, tile.pixels, 0).astype(kept)
            put_pixels(int(window.row_off), pixels)
            put_valid(int(window.row_off), tile.valid[None])
            advance(tile.valid.size / 1e6)
        else:
            return
    _write_scene(scene, folder, np.dtype("float32"), show=show)


def _write_labels(labels: Labels, folder: Path, kept: np.dtype[Any], planes: int) -> None:
    with _array(folder / _PLANES, kept, (planes, *labels.grid.shape)) as put:
        for window in _strips(labels.grid):
            put(int(window.row_off), labels.read(window).astype(kept))


@contextmanager
def _array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Iterator[Callable[[int, NDArray[Any]], None]]:
    """Write a .npy file (P, H, W) in strips of rows: by writing, as a full disk kills who writes to mapped memory."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_2_0(
            file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        )
        start = file.tell()

        def put(row: int, strip: NDArray[Any]) -> None:
            for plane, part in enumerate(strip):
                file.seek(start + (plane * shape[1] + row) * shape[2] * dtype.itemsize)
                file.write(np.ascontiguousarray(part).data)

        yield put


def _strips(grid: Grid) -> Iterator[Window]:
    height = max(1, _STRIP_PIXELS // grid.width)
    for top in range(0, grid.height, height):
        yield Window(0, top, grid.width, min(height, grid.height - top))


def _files(scene: Scene) -> tuple[list[Path], set[str]]:
    """Return all files that GDAL reads a scene from, masks and headers too, and the types of its bands."""
    files: list[Path] = []
    types: list[str] = []
    for path in scene.paths:
        with open_raster(path, vrt=scene.vrt) as dataset:
            # Beside a remote file, GDAL looks for nothing.
            files += [path] if isinstance(path, Remote) else [Path(file) for file in dataset.files]
            types += dataset.dtypes
    return files, {types[band - 1] for band in scene.bands}


def _with_companions(files: list[Path]) -> list[Path]:
    """Add the parts of a shapefile, headers, masks and world files."""
    local = [file for file in files if not isinstance(file, Remote)]
    beside = {other for file in local for other in file.parent.glob(f"{glob.escape(file.stem)}.*")}
    return [*files, *sorted(beside.difference(files))]


def _digest(how: Mapping[str, Any], files: list[Path]) -> str:
    """Return a name for what is decoded: 32 hexadecimal digits."""
    whole = hashlib.blake2b(json.dumps(how, sort_keys=True).encode(), digest_size=16)
    for file in files:
        if isinstance(file, Remote):
            # Not its bytes, which are what is to be saved. A server that tells no version gets an entry each time.
            whole.update(f"{file} {version_now(file) or secrets.token_hex()}".encode())
            continue
        with file.open("rb") as stream:
            # The name's ending tells how a file is read; where it lies does not matter.
            whole.update(file.suffix.encode() + hashlib.file_digest(stream, "blake2b").digest())
    return whole.hexdigest()


def _told(grid: Grid) -> list[Any]:
    return [grid.height, grid.width, list(grid.transform)[:6], None if grid.crs is None else grid.crs.to_wkt()]


def _fields(one: Any, kind: type[Any]) -> dict[str, Any]:
    return {field.name: getattr(one, field.name) for field in fields(kind)}


def _remove(entry: Path) -> bool:
    """Remove an entry unless somebody uses it; tell whether it is gone."""
    try:
        with locked(entry):
            shutil.rmtree(entry)
    except OSError:
        return False
    return True
