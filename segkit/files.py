"""Files that are either finished under their final name or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segkit.errors import MissingFileError, OutputError, OutputExistsError, UsageError


def existing(path: str | os.PathLike[str], what: str = "file") -> Path:
    """Return `path` as a Path.

    Raises
    ------
    MissingFileError
        Nothing is there.
    """
    found = Path(path)
    if not found.exists():
        raise MissingFileError(f"{found}: no such {what}; check the spelling and the folder (here: {Path.cwd()})")
    return found


def check_output(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return `path` if it can be written to, so that hours of work do not end at a typing error.

    Raises
    ------
    UsageError
        The folder does not exist, is not writable, or the path is a folder.
    OutputExistsError
        The file is there and `overwrite` is false.
    """
    output = Path(path)
    check_parent(output)
    if output.is_dir():
        raise UsageError(f"{output} is a folder; name a file in it")
    if not os.access(output.parent, os.W_OK):
        raise UsageError(f"{output}: its folder {output.parent} is not writable")
    if output.exists() and not overwrite:
        raise OutputExistsError(f"{output} is there already; add --overwrite to replace it, or name another file")
    return output


def check_parent(path: Path) -> None:
    """Raise a UsageError where the folder that `path` is to lie in does not exist."""
    if not path.parent.is_dir():
        raise UsageError(f"{path}: its folder {path.parent} does not exist; make it first (mkdir -p {path.parent})")


def check_folder(path: str | os.PathLike[str], what: str) -> Path:
    """Return `path` if it is a folder or can become one.

    Raises
    ------
    UsageError
        It is a file, or its own folder does not exist; `what` it is for is named.
    """
    folder = Path(path)
    if not folder.parent.is_dir():
        raise UsageError(
            f"{folder}: the folder {folder.parent} does not exist; make it first: mkdir -p {folder.parent}"
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder for the {what}")
    return folder


@contextmanager
def staged(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path in a temporary folder beside `path`; on leaving, move every file written there to the final folder.

    The temporary folder lies on the same file system, so each move is one rename; files are synced first. The block
    verifies what it wrote before it ends. When it raises, nothing under the final name has changed. Formats of several
    files (a shapefile's set) are moved together, the named file last, so that it is never there without its parts.

    Raises
    ------
    OutputError
        The block ended without writing the named file, or a file could not be moved.
    """
    final = Path(path)
    folder = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent))
    try:
        yield folder / final.name
        written = sorted(folder.iterdir(), key=lambda file: file.name == final.name)
        if not written or written[-1].name != final.name:
            raise OutputError(f"{final} was not written")
        try:
            for file in written:
                _sync(file)
            for file in written:
                file.replace(final.parent / file.name)
            _sync(final.parent)
        except OSError as error:
            raise OutputError(f"{final} could not be finished: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
