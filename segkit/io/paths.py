"""Types of paths."""

from __future__ import annotations

import os
import sys
from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

PathLike = str | os.PathLike[str]

# `Path` itself cannot be subclassed before Python 3.12.
if TYPE_CHECKING:
    _SystemPath = Path
else:
    _SystemPath = type(Path())


class FileSet(_SystemPath):
    """A path that stands for several files, which are read as one raster.

    `is_named` says whether they have a name of their own, which names of other files can be derived from.
    """

    is_named = False

    def __init__(self, path: PathLike) -> None:
        if sys.version_info >= (3, 12):  # before, `__new__` sets the path
            super().__init__(path)

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The files, in their order."""

    @abstractmethod
    def open_dataset(self, *, vrt: bool | None) -> AbstractContextManager[Any]:
        """Open the files as one raster; see `segkit.io.raster.open_raster`."""

    @abstractmethod
    def describe(self) -> str:
        """Return what identifies the files, to detect changes: names, sizes, times, and how they are combined."""

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Return true: it is read as one raster."""
        return True

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Return false."""
        return False

    @property
    def parent(self) -> Any:
        """The folder, as a plain path."""
        return Path(os.fspath(self)).parent

    def with_name(self, name: str) -> Any:
        """Return a plain path in the same folder."""
        return self.parent / name

    def with_segments(self, *segments: PathLike) -> Any:
        """Return what else is derived as a plain path; Python 3.11 does not call this."""
        return Path(*segments)


def is_there(path: Path) -> bool:
    """Return whether a file exists; not if its name is too long, of which `Path.exists` raises an error."""
    return os.path.exists(path)  # noqa: PTH110


def list_files(path: Path) -> tuple[Path, ...]:
    """Return the files that a path stands for: usually the path itself."""
    return path.files if isinstance(path, FileSet) else (path,)
