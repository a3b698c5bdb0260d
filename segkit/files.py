"""Files that are either finished under their final name or not there."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from segkit.errors import MissingFileError, OutputError, OutputExistsError, UsageError, ways
from segkit.remote import refuse

# A folder's lock is held on a file in it: between machines, network file systems lock files, but no folders.
_LOCK = ".lock"
_held: set[int] = set()

if sys.platform != "win32":
    import fcntl

    def _drop_locks() -> None:
        """Close what a forked child inherits: a lock is free only when every copy of its descriptor is closed."""
        while _held:
            os.close(_held.pop())

    os.register_at_fork(after_in_child=_drop_locks)


def existing(path: str | os.PathLike[str], what: str = "file") -> Path:
    """Return `path` as a Path.

    Raises
    ------
    MissingFileError
        Nothing is there.
    UsageError
        It is a URL; who reads those does not ask here.
    """
    refuse(path, f"a {what} lies")
    found = Path(path)
    if not found.exists():
        raise MissingFileError(f"{found}: no such {what}; check the spelling and the folder (here: {Path.cwd()})")
    return found


def check_output(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return `path` if it can be written to, so that hours of work do not end at a typing error.

    Raises
    ------
    UsageError
        The folder does not exist, is not writable, or the path is a folder or a URL.
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
        raise OutputExistsError(
            f"{output} is there already" + ways("add --overwrite to replace it", "name another file")
        )
    return output


def check_parent(path: Path) -> None:
    """Raise a UsageError where the folder that `path` is to lie in does not exist, or `path` is a URL."""
    refuse(path, "what is written lies")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: its folder {path.parent} does not exist; make it first (mkdir -p {path.parent})")


def check_folder(path: str | os.PathLike[str], what: str) -> Path:
    """Return `path` if it is a folder or can become one.

    Raises
    ------
    UsageError
        It is a file or a URL, or its own folder does not exist; `what` it is for is named.
    """
    refuse(path, f"{what} lie")
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
    with scratch(final.parent, final.name) as folder:
        yield folder / final.name
        written = sorted(folder.iterdir(), key=lambda file: file.name == final.name)
        written = [file for file in written if file.name != _LOCK]
        if not written or written[-1].name != final.name:
            raise OutputError(f"{final} was not written")
        try:
            for file in written:
                sync(file)
            for file in written:
                file.replace(final.parent / file.name)
            sync(final.parent)
        except OSError as error:
            raise OutputError(f"{final} could not be finished: {error}") from error


@contextmanager
def scratch(parent: Path, name: str) -> Iterator[Path]:
    """Give a fresh folder in `parent` for work on `name`, locked while the block lasts and removed after it.

    What killed processes left of the same work goes first.
    """
    remove_leftovers(parent, name)
    with ExitStack() as stack:
        while True:
            folder = _unfinished(parent, name)
            folder.mkdir()
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            # Until it is locked, another process may take it for a leftover.
            with suppress(BlockingIOError, FileNotFoundError):
                stack.enter_context(locked(folder))
                break
        yield folder


def discard(folder: Path) -> None:
    """Remove a folder under its own name at once, so that it is never seen half-removed."""
    gone = _unfinished(folder.parent, folder.name)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def remove_leftovers(parent: Path, name: str | None = None) -> None:
    """Remove what killed processes left of `scratch` and `discard` in `parent`, for one name or for all.

    What is locked is in use; where the file system has no locks, everything may be.
    """
    left = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.\w{{8}}\.part")
    with suppress(OSError):
        for folder in parent.iterdir():
            if left.fullmatch(folder.name):
                with suppress(OSError):
                    with locked(folder) as alone:
                        if alone:
                            shutil.rmtree(folder, ignore_errors=True)
                    folder.rmdir()  # a network file system keeps a file, and so its folder, as long as it is open


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[bool]:
    """Hold the lock of a folder while the block lasts; gives false where the system or the file system has none.

    The lock ends with the process, however it ends. It is not passed on to children. A shared one keeps out who wants
    it alone, and nobody else.

    Raises
    ------
    BlockingIOError
        Somebody else holds it, in this process or another one.
    FileNotFoundError
        The folder is not there any more.
    """
    if sys.platform == "win32":
        yield False
        return
    file = folder / _LOCK
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(descriptor)
    try:
        yield _lock(descriptor, file, shared=shared)
    finally:
        if descriptor in _held:  # a forked child has closed it
            _held.remove(descriptor)
            os.close(descriptor)


def _lock(descriptor: int, file: Path, *, shared: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    # Between opening and locking, the folder may have been removed by who had the lock, and made anew by another.
    if not os.path.samestat(os.fstat(descriptor), file.stat()):
        raise BlockingIOError(f"{file} was replaced")
    return True


def _unfinished(parent: Path, name: str) -> Path:
    return parent / f".{name}.{uuid4().hex[:8]}.part"


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
