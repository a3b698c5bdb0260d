"""Files that are either finished under their final name or not there."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from segkit.errors import MissingFileError, OutputError, OutputExistsError, SegkitError, UsageError, ways
from segkit.io.remote import Remote, located, refuse

# A folder's lock is held on a file in it: between machines, network file systems lock files, but no folders.
_LOCK = ".lock"
_held: set[int] = set()

# Bytes that the name of a temporary file or folder is longer than that of what it is for.
_LONGER = len("..bands.12345678.part")
_SHAPEFILE = (".shp", ".shx", ".dbf", ".prj", ".cpg", ".qix", ".sbn", ".sbx", ".shp.xml")
# What is written, read or removed with a file: endings that follow its own.
_SIDES = {".gpkg": ("-wal", "-shm", "-journal"), ".tif": (".aux.xml", ".ovr", ".msk")}
_SIDES[".tiff"] = _SIDES[".tif"]
_ADVICE = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EFBIG: "no file may grow so large here (ulimit -f, or the limit of the file system)",
    errno.ENAMETOOLONG: "shorten it",
}
_QUOTED = 300  # characters of what a library says
_TRIED_BYTES = 2**16
# What a spreadsheet takes for the beginning of a formula, or skips before one.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

if sys.platform != "win32":
    import fcntl
    import resource

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
        It is a URL; who reads those does not ask here. Or the system refuses the name.
    """
    refuse(path, f"a {what} lies")
    found = Path(path)
    with _asking(found):
        there = found.exists()
    if not there:
        raise MissingFileError(f"{found}: no such {what}; check the spelling and the folder (here: {Path.cwd()})")
    return found


def check_output(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return `path` if it can be written to, so that hours of work do not end at a typing error.

    Raises
    ------
    UsageError
        The folder does not exist, is not writable, the path is a folder or a URL, or its name is too long.
    OutputExistsError
        The file is there and `overwrite` is false.
    """
    output = Path(path)
    check_parent(output)
    if not os.access(output.parent, os.W_OK):
        raise UsageError(f"{output}: its folder {output.parent} is not writable")
    with _asking(output):
        is_folder, there = output.is_dir(), output.exists()
    if is_folder:
        raise UsageError(f"{output} is a folder; name a file in it")
    if there and not overwrite:
        raise OutputExistsError(
            f"{output} is there already" + ways("add --overwrite to replace it", "name another file")
        )
    return output


def check_parent(path: Path) -> None:
    """Raise a UsageError where the folder that `path` is to lie in does not exist, or `path` is a URL."""
    refuse(path, "what is written lies")
    with _asking(path):
        there = path.parent.is_dir()
    if not there:
        raise UsageError(f"{path}: its folder {path.parent} does not exist; make it first (mkdir -p {path.parent})")
    most = 255 if sys.platform == "win32" else os.pathconf(path.parent, "PC_NAME_MAX")
    if (size := len(os.fsencode(path.name))) > most - _LONGER:
        raise UsageError(
            f"{path}: its name takes {size} bytes; it may take {most - _LONGER}, since temporary files have longer "
            "names; shorten it"
        )


@contextmanager
def _asking(path: Path) -> Iterator[None]:
    """Turn what the system says against a name into a UsageError."""
    try:
        os.fspath(path).encode()
        yield
    except UnicodeEncodeError:
        raise UsageError(
            f"{str(path)!a}: this name is not UTF-8, and GDAL cannot open it; rename it, or set PYTHONUTF8=1 "
            "where the locale hides that it is"
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: {because(error, path.parent)}") from error


def check_apart(
    outputs: Iterable[str | os.PathLike[str] | None],
    inputs: Iterable[str | os.PathLike[str] | None] = (),
    *,
    advice: str = "name another file",
) -> None:
    """Refuse outputs that are one file, or are an input, before work starts.

    Files are the same whatever leads to them: another spelling, a symbolic link, a hard link. To a file belong those
    that are written, read or removed with it (the set of a shapefile, the overviews of a raster); a folder is taken
    with all that lies in it.

    Parameters
    ----------
    outputs, inputs
        Files or folders, there or not; None and URLs are passed over. Inputs may be one file.
    advice
        What to do.

    Raises
    ------
    UsageError
        Both names are in the message.
    """
    written = [Path(path) for path in outputs if path is not None]
    read = [Path(path) for path in map(located, (path for path in inputs if path is not None))]
    owners: dict[object, Path] = {}
    for path in written:
        for key in _identities(path):
            if owners.setdefault(key, path) is not path:
                raise UsageError(f"{owners[key]} and {path} would be written to one file; {advice}")
    folders = {key: path for path in written for key in _identity(path)}
    for path in written:
        for key in _around(path):
            if key in folders:
                raise UsageError(f"{path} lies in {folders[key]}, which is written, too; {advice}")
    around: dict[Path, set[object]] = {}
    for path in read:
        if isinstance(path, Remote):
            continue
        if path.parent not in around:
            around[path.parent] = _around(path)
        for known, keys in ((owners, _identities(path)), (folders, around[path.parent])):
            if met := next((known[key] for key in keys if key in known), None):
                raise UsageError(f"{met} would overwrite {path}, which is read; {advice}")


def _identities(path: Path) -> set[object]:
    """Return what tells a file apart, and the files that belong to it."""
    ending = path.suffix.lower()
    if ending == ".shp":
        files = [path, *(path.with_suffix(other) for other in _SHAPEFILE)]
    else:
        files = [path, *(path.with_name(path.name + other) for other in _SIDES.get(ending, ()))]
    return {key for file in files for key in _identity(file)}


def _identity(path: Path) -> set[object]:
    found: set[object] = {os.path.realpath(path)}
    with suppress(OSError):
        facts = path.stat()
        if facts.st_ino:
            found.add((facts.st_dev, facts.st_ino))
    return found


def _around(path: Path) -> set[object]:
    return {key for folder in Path(os.path.realpath(path)).parents for key in _identity(folder)}


def because(error: BaseException, folder: Path) -> str:
    """Say in a few words why a file in a folder could not be written.

    What the system said counts. A library that does not pass it on is quoted, followed by what the system says now.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return _system_says(cause.errno)
        cause = cause.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = lines[0] if len(lines[0]) <= _QUOTED else f"{lines[0][: _QUOTED // 3]} ... {lines[0][-_QUOTED // 2 :]}"
    return said.rstrip(".") + hindrance(folder)


def hindrance(folder: Path) -> str:
    """Say, after a semicolon, what the system has against files in a folder; nothing where it takes them."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_TRIED_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"; {_system_says(error.errno)}" if error.errno else ""
    if sys.platform != "win32" and resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
        return f"; {_system_says(errno.EFBIG)}"
    return ""


def _system_says(number: int) -> str:
    advice = _ADVICE.get(number)
    return os.strerror(number) + (f": {advice}" if advice else "")


def cell(text: str) -> str:
    """Return a text as it is written to a CSV file: one that a spreadsheet would run as a formula follows a quote."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def check_folder(path: str | os.PathLike[str], what: str) -> Path:
    """Return `path` if it is a folder or can become one.

    Raises
    ------
    UsageError
        It is a file or a URL, or its own folder does not exist; `what` it is for is named.
    """
    refuse(path, f"{what} lie")
    folder = Path(path)
    with _asking(folder):
        parent, there, is_folder = folder.parent.is_dir(), folder.exists(), folder.is_dir()
    if not parent:
        raise UsageError(
            f"{folder}: the folder {folder.parent} does not exist; make it first: mkdir -p {folder.parent}"
        )
    if there and not is_folder:
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
        The block ended without writing the named file, or the system refused to write or to move a file.
    """
    final = Path(path)
    with writing_to(final), scratch(final.parent, final.name) as folder, writing_to(final):
        yield folder / final.name
        written = sorted(folder.iterdir(), key=lambda file: file.name == final.name)
        written = [file for file in written if file.name != _LOCK]
        if not written or written[-1].name != final.name:
            raise OutputError(f"{final} was not written")
        for file in written:
            sync(file)
        for file in written:
            file.replace(final.parent / file.name)
        sync(final.parent)


@contextmanager
def writing_to(path: Path, *others: type[Exception], name: str | None = None) -> Iterator[None]:
    """Turn what the system, or a library by `others`, says against writing a file into an OutputError.

    The file is called by `name`, where it is written under another one. Use it while temporary files are still
    there: they take the space of which the system is asked.
    """
    caught: tuple[type[Exception], ...] = (OSError, *others)
    try:
        yield
    except SegkitError:
        raise
    except caught as error:
        raise OutputError(f"{name or path} could not be written: {because(error, path.parent)}") from error


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


def home_folder() -> Path:
    """Return the user's home; the root folder where the system knows none, as containers have it."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def private_folder() -> Path | None:
    """Return a folder for what may be kept from one run to the next, where the user's own cannot be written.

    It lies among the system's temporary files, and only this user can write and read it: what is kept there is run.
    None where there is no such folder and none can be made.
    """
    if sys.platform == "win32":
        return None
    with suppress(OSError):
        folder = Path(tempfile.gettempdir()) / f"segkit-{os.getuid()}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        facts = folder.lstat()
        if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o077:
            return folder
    return None


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
