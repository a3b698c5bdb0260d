"""Mosaics: files that lie side by side on one grid, as one path."""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any, Self

from segkit.errors import UsageError
from segkit.io.file_search import RASTER_SUFFIXES, expand_paths
from segkit.io.files import require_file
from segkit.io.mosaic_dataset import MosaicDataset, open_mosaic
from segkit.io.mosaic_layout import MosaicLayout, read_layout
from segkit.io.paths import FileSet, PathLike
from segkit.io.raster import current_version
from segkit.io.remote import Remote, as_path

OVERLAPS = ("first", "last", "mean")
# What a mosaic consists of: given paths, overlap, whether to resample, files if they are known.
_State = tuple[tuple[Path, ...], str | None, bool, tuple[Path, ...] | None]


class Mosaic(FileSet):
    """Rasters that lie side by side on one grid and are read as one raster.

    It can be given wherever a raster is read. No pixels are copied: a window is read from the files in which it lies.

    Parameters
    ----------
    files
        A folder, a glob, or several paths (files, folders, globs).
    overlap
        Which file a pixel of several files is from: the "first" or the "last" in which it has data, in the order of
        the files (that of their names in a folder or glob); or the "mean" of their pixels, for imagery only. By default
        files may not overlap.

    Raises
    ------
    UsageError
        `overlap` is none of these.
    """

    _given: tuple[Path, ...] = ()
    overlap: str | None = None
    _resample = False

    def __new__(cls, files: PathLike | Sequence[PathLike], overlap: str | None = None) -> Self:
        """Create the path."""
        return PurePath.__new__(cls, os.fspath(_as_paths(files)[0]))

    def __init__(self, files: PathLike | Sequence[PathLike], overlap: str | None = None) -> None:
        self._given = _as_paths(files)
        super().__init__(self._given[0])
        if overlap not in (None, *OVERLAPS):
            raise UsageError(f"overlap is {overlap!r}; it is one of {', '.join(OVERLAPS)}, or None")
        self.overlap = overlap

    @functools.cached_property
    def files(self) -> tuple[Path, ...]:
        """The files; folders and globs are searched once.

        Raises
        ------
        MissingFileError, UsageError
            A path does not exist, a folder has no rasters, or a file is named twice.
        """
        found: list[Path] = []
        for path in self._given:
            vrt = (".vrt",) * (path.suffix.lower() == ".vrt")
            found += expand_paths(path, "rasters", RASTER_SUFFIXES + vrt)
        twice, number = Counter(found).most_common(1)[0]
        if number > 1:
            raise UsageError(f"{twice} is in the mosaic {number} times; name it once")
        return tuple(found)

    @property
    def given(self) -> tuple[Path, ...]:
        """The paths as given: folders, globs, files."""
        return self._given

    def with_resampling(self) -> Mosaic:
        """Return the mosaic, in which files may be on another grid than the first one; they are warped to it."""
        given, overlap, _, files = self._state
        return _restore(given, overlap, True, files)

    def layout(self, *, vrt: bool | None = None) -> MosaicLayout:
        """Return which file lies where; see `read_layout`."""
        return read_layout(str(self), self.files, self.overlap, resample=self._resample, vrt=vrt)

    @contextmanager
    def open_dataset(self, *, vrt: bool | None) -> Iterator[MosaicDataset]:
        """Open the files as one raster."""
        with open_mosaic(self.layout(vrt=vrt), vrt=vrt) as dataset:
            yield dataset

    def describe(self) -> str:
        """Return number, size and a checksum of names, sizes and times of the files, and how they are combined."""
        facts, size = [], 0
        for file in self.files:
            if isinstance(file, Remote):
                facts.append(f"{file} {current_version(file)}")
                continue
            found = require_file(file, "raster").stat()
            size += found.st_size
            facts.append(f"{file.name} {found.st_size} {datetime.fromtimestamp(found.st_mtime, UTC).isoformat()}")
        digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()
        return f"{len(facts)} files of {size} bytes, overlap {self.overlap}, sha256 {digest}"

    @property
    def name(self) -> str:
        """The name by which scenes and maps are called, with the suffix of the files."""
        return f"{self.stem}{self.suffix}"

    @property
    def stem(self) -> str:
        """The text before the wildcard of a glob ("north" of "north_*.tif"), else the name of the folder."""
        first = self._given[0]
        if len(self._given) == 1 and glob.has_magic(first.name):
            literal = re.split(r"[*?\[]", first.name)[0].rstrip("_-. ")
            if literal:
                return literal
        folder = first if not glob.has_magic(first.name) and first.is_dir() else first.parent
        names = [part for part in folder.absolute().parts if not glob.has_magic(part)]
        return names[-1].strip(os.sep) or "mosaic"

    @property
    def suffix(self) -> str:
        """That of the files."""
        return Path(self._given[0].name).suffix or ".tif"

    @property
    def parent(self) -> Any:
        """The folder of the first path."""
        return self._given[0].parent

    def absolute(self) -> Mosaic:
        """Return the mosaic of the same files with absolute paths, for other processes."""
        _, overlap, resample, _ = self._state
        files = tuple(file.absolute() for file in self.files)
        return _restore(tuple(path.absolute() for path in self._given), overlap, resample, files)

    def resolve(self, strict: bool = False) -> Mosaic:
        """Return the mosaic with absolute paths."""
        return self.absolute()

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there are such files; raises an error that names the path if not."""
        return bool(self.files)

    def __str__(self) -> str:
        more = len(self._given) - 1
        return f"{self._given[0]}" + (f" and {more} more" if more else "")

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"Mosaic({[str(path) for path in self._given]}, overlap={self.overlap!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mosaic) and self._state[:3] == other._state[:3]

    def __hash__(self) -> int:
        return hash(self._state[:2])

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, self._state

    @property
    def _state(self) -> _State:
        return self._given, self.overlap, self._resample, self.__dict__.get("files")


def _restore(
    given: tuple[Path, ...],
    overlap: str | None,
    resample: bool,
    files: tuple[Path, ...] | None,
) -> Mosaic:
    """Return the mosaic that was pickled, with the files that it had found."""
    mosaic = Mosaic(given, overlap)
    mosaic._resample = resample
    if files is not None:
        mosaic.__dict__["files"] = files
    return mosaic


def _as_paths(files: PathLike | Sequence[PathLike]) -> tuple[Path, ...]:
    found = tuple(as_path(file) for file in ([files] if isinstance(files, (str, os.PathLike)) else files))
    if not found:
        raise UsageError("a mosaic needs at least one file; none was given")
    if any(isinstance(path, FileSet) for path in found):
        raise UsageError("a mosaic in a mosaic; name the files of both in one")
    return found
