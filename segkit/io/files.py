"""Output files that are either complete under their final name or do not exist; checks of paths; locks."""

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

from segkit.errors import MissingFileError, OutputError, OutputExistsError, SegkitError, UsageError, suggest
from segkit.io.paths import PathLike, list_files
from segkit.io.remote import Remote, as_path, require_local
from segkit.io.stac import find_stac_items

# A folder is locked by a file in it: network file systems lock files between machines, but not folders.
LOCK_FILE = ".lock"
_lock_descriptors: set[int] = set()

# Bytes by which the names of temporary files and folders are longer than those of the outputs.
_TEMPORARY_SUFFIX_BYTES = len("..bands.12345678.part")
_SHAPEFILE_SUFFIXES = (".shp", ".shx", ".dbf", ".prj", ".cpg", ".qix", ".sbn", ".sbx", ".shp.xml")
# Side files that are written, read or removed with a file: suffixes that are appended to its name.
_LOG_SUFFIXES = ("-wal", "-shm", "-journal")  # of a database
_SIDE_SUFFIXES = {".gpkg": _LOG_SUFFIXES, ".tif": (".aux.xml", ".ovr", ".msk")}
_SIDE_SUFFIXES[".tiff"] = _SIDE_SUFFIXES[".tif"]
_ADVICE = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EFBIG: "files here may not be that large (ulimit -f, or the limit of the file system)",
    errno.ENAMETOOLONG: "shorten it",
}
_MAX_QUOTED_CHARS = 300  # of an error message of a library
_TEMPORARY_NAME = re.compile(r"\.(.+)\.\w{8}\.part")
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # in messages of safetensors
_TEST_WRITE_BYTES = 2**16
# Characters with which a formula starts in a spreadsheet, or that are skipped before one.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")

if sys.platform != "win32":
    import fcntl
    import resource

    def _drop_locks() -> None:
        """Close the descriptors that a forked child inherits; a lock lasts until all copies are closed."""
        while _lock_descriptors:
            os.close(_lock_descriptors.pop())

    os.register_at_fork(after_in_child=_drop_locks)

    def _lock(descriptor: int, file: Path, *, shared: bool) -> bool:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            return False
        # Between opening and locking, one process may have removed the folder, and another one made it again.
        if not os.path.samestat(os.fstat(descriptor), file.stat()):
            raise BlockingIOError(f"{file} was replaced")
        return True


def require_file(path: PathLike, what: str = "file") -> Path:
    """Return the path of a local file or folder that must exist.

    Raises
    ------
    MissingFileError
        It does not exist.
    UsageError
        It is a URL, or the system does not accept the name.
    """
    require_local(path, f"a {what}")
    file = as_path(path)
    with _as_usage_error(file):
        exists = file.exists()
    if not exists:
        raise MissingFileError(f"{file}: no such {what}; check the spelling and the current folder ({Path.cwd()})")
    return file


def check_output(path: PathLike, *, overwrite: bool) -> Path:
    """Return the path of an output if it can be written, to find a typing error before hours of work.

    Raises
    ------
    UsageError
        Its folder does not exist or is not writable, the path is a folder or a URL, or its name is too long.
    OutputExistsError
        The file exists and `overwrite` is false.
    """
    output = Path(path)
    check_parent(output)
    if not os.access(output.parent, os.W_OK):
        raise UsageError(f"{output}: its folder {output.parent} is not writable")
    with _as_usage_error(output):
        is_folder, exists = output.is_dir(), output.exists()
    if is_folder:
        raise UsageError(f"{output} is a folder; name a file in it")
    if exists and not overwrite:
        raise OutputExistsError(
            f"{output} is there already" + suggest("add --overwrite to replace it", "name another file")
        )
    return output


def check_parent(path: Path) -> None:
    """Raise a UsageError if the folder of an output does not exist, or the output is a URL or has too long a name."""
    require_local(path, "outputs")
    with _as_usage_error(path, path.parent):
        exists = path.parent.is_dir()
    if not exists:
        raise UsageError(f"{path}: its folder {path.parent} does not exist; make it first (mkdir -p {path.parent})")
    longest = os.pathconf(path.parent, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    allowed = longest - _TEMPORARY_SUFFIX_BYTES
    if (size := len(os.fsencode(path.name))) > allowed:
        raise UsageError(
            f"{path}: its name takes {size} bytes; at most {allowed} are possible, since names of temporary files are "
            "longer; shorten it"
        )


@contextmanager
def _as_usage_error(path: Path, asked: Path | None = None) -> Iterator[None]:
    """Turn errors of the system about a name into a UsageError; `asked` is the path that is looked for, if another."""
    try:
        os.fspath(path).encode()
        with suppress(FileNotFoundError, NotADirectoryError, ValueError):
            os.stat(asked or path)  # noqa: PTH116 - from Python 3.14 on, `Path.exists` hides other errors
        yield
    except UnicodeEncodeError:
        raise UsageError(
            f"{str(path)!a}: this name is not UTF-8, so GDAL cannot open it; rename it, or set PYTHONUTF8=1 if only "
            "the locale is not UTF-8"
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: {describe_error(error, path.parent)}") from error


def check_distinct(
    outputs: Iterable[PathLike | None],
    inputs: Iterable[PathLike | None] = (),
    *,
    advice: str = "name another file",
) -> None:
    """Refuse outputs that are the same file, or that would overwrite an input, before work starts.

    Other spellings, symbolic links and hard links of a file are recognised. Side files count as part of a file (the set
    of a shapefile, the overviews of a raster, its STAC item), and all files in a folder as part of the folder.

    Parameters
    ----------
    outputs, inputs
        Files or folders, existing or not; None and URLs are skipped. Inputs may be the same file.
    advice
        End of the error message.

    Raises
    ------
    UsageError
        Two of them are the same; the message names both.
    """
    written = [Path(path) for path in outputs if path is not None]
    read = [file for path in inputs if path is not None for file in list_files(as_path(path))]
    owners: dict[object, Path] = {}
    for path in written:
        for key in _identities(path):
            if owners.setdefault(key, path) is not path:
                raise UsageError(f"{owners[key]} and {path} would be written to the same file; {advice}")
    folders = {key: path for path in written for key in _identity(path)}
    for path in written:
        for key in _parent_identities(path):
            if key in folders:
                raise UsageError(f"{path} is in {folders[key]}, which is written, too; {advice}")
    writes_json = any(path.suffix.lower() == ".json" for path in written)
    around: dict[Path, set[object]] = {}
    for path in read:
        if isinstance(path, Remote):
            continue
        if path.parent not in around:
            around[path.parent] = _parent_identities(path)
        own = _identities(path)
        if writes_json:
            own.update(*map(_identity, find_stac_items(path)))
        for known, keys in ((owners, own), (folders, around[path.parent])):
            if output := next((known[key] for key in keys if key in known), None):
                raise UsageError(f"{output} would overwrite {path}, which is an input; {advice}")


def _identities(path: Path) -> set[object]:
    """Return keys that identify a file and its side files."""
    ending = path.suffix.lower()
    if ending == ".shp":
        files = [path, *(path.with_suffix(other) for other in _SHAPEFILE_SUFFIXES)]
    else:
        files = [path, *(path.with_name(path.name + other) for other in _SIDE_SUFFIXES.get(ending, ()))]
    return {key for file in files for key in _identity(file)}


def _identity(path: Path) -> set[object]:
    found: set[object] = {os.path.realpath(path)}
    with suppress(OSError):
        facts = path.stat()
        if facts.st_ino:
            found.add((facts.st_dev, facts.st_ino))
    return found


def _parent_identities(path: Path) -> set[object]:
    return {key for folder in Path(os.path.realpath(path)).parents for key in _identity(folder)}


def describe_error(error: BaseException, folder: Path) -> str:
    """Return in a few words why a file in a folder could not be written.

    This is the message of the system if the error has one, or if a test file meets one now; else that of the library.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return _errno_message(cause.errno)
        if found := _RUST_ERROR.search(str(cause)):
            return _errno_message(int(found[1]))
        cause = cause.__cause__
    obstacle = describe_obstacle(folder)
    if obstacle and folder.is_dir():
        return obstacle
    lines = str(error).strip().splitlines() or [type(error).__name__]
    message = lines[0]
    if len(message) > _MAX_QUOTED_CHARS:
        message = f"{message[: _MAX_QUOTED_CHARS // 3]} ... {message[-_MAX_QUOTED_CHARS // 2 :]}"
    return message.rstrip(".") + (f"; {obstacle}" if obstacle else _size_limit())


def describe_obstacle(folder: Path) -> str:
    """Return why files cannot be written to a folder, which is what a test file meets; empty if it can be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_TEST_WRITE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return _errno_message(error.errno) if error.errno else ""
    return ""


def not_as_written(path: Path, difference: str, *, name: str | None = None) -> OutputError:
    """Return the error for a file that does not read back as it was written: a full disk, if it is one, else this.

    `name` is as in `as_output_error`.
    """
    named = name or final_path(path)
    if obstacle := describe_obstacle(path.parent):
        return OutputError(f"{named} could not be written: {obstacle}")
    return OutputError(f"{named}: {difference}{_size_limit()}")


def _size_limit() -> str:
    """Return, after a semicolon, that files may not be large, if the process has such a limit."""
    limited = sys.platform != "win32" and resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
    return f"; {_errno_message(errno.EFBIG)}" if limited else ""


def final_path(path: Path) -> Path:
    """Return the path of the output for which a file in a temporary folder is written; other paths as they are."""
    for folder in path.parents:
        if match := _TEMPORARY_NAME.fullmatch(folder.name):
            return folder.with_name(match[1])
    return path


def _errno_message(number: int) -> str:
    advice = _ADVICE.get(number)
    return os.strerror(number) + (f": {advice}" if advice else "")


def escape_formula(text: str) -> str:
    """Return a text for a CSV file; one that a spreadsheet would run as a formula gets a leading quote."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def check_folder(path: PathLike, what: str) -> Path:
    """Return the path of a folder that exists or can be made; `what` is to be written to it.

    Raises
    ------
    UsageError
        It is a file or a URL, its parent does not exist, or it cannot be written to.
    """
    require_local(path, what)
    folder = Path(path)
    with _as_usage_error(folder):
        has_parent, exists, is_folder = folder.parent.is_dir(), folder.exists(), folder.is_dir()
    if not has_parent:
        raise UsageError(
            f"{folder}: the folder {folder.parent} does not exist; make it first: mkdir -p {folder.parent}"
        )
    if exists and not is_folder:
        raise UsageError(f"{folder} is a file; name a folder for the {what}")
    if not os.access(folder if exists else folder.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{folder}{'' if exists else f': its folder {folder.parent}'} is not writable")
    return folder


@contextmanager
def atomic_write(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path to write to; at the end of the block, move the files written there to their final names.

    The temporary folder is next to `path`, on the same file system, so each move is a rename; files are synced before.
    The block should verify what it wrote. If it raises, nothing under the final name changes. Side files (the set of a
    shapefile) are moved, too; the named file is moved last, so that it never exists without them. Logs of a GeoPackage
    that is replaced, which are there while QGIS shows it, are removed: they would be applied to the new one.

    Raises
    ------
    OutputError
        The block did not write the named file, or a file could not be written or moved.
    """
    final = Path(path)
    with as_output_error(final), temporary_folder(final.parent, final.name) as folder, as_output_error(final):
        yield folder / final.name
        written = sorted(folder.iterdir(), key=lambda file: file.name == final.name)
        written = [file for file in written if file.name != LOCK_FILE]
        if not written or written[-1].name != final.name:
            raise OutputError(f"{final} was not written")
        for file in written:
            fsync(file)
        for file in written:
            file.replace(final.parent / file.name)
        for ending in _LOG_SUFFIXES if final.suffix.lower() == ".gpkg" else ():
            final.with_name(final.name + ending).unlink(missing_ok=True)
        fsync(final.parent)


@contextmanager
def as_output_error(path: Path, *others: type[Exception], name: str | None = None) -> Iterator[None]:
    """Turn an OSError, or an error of the types `others`, into an OutputError that names the file.

    `name` replaces `path` in the message, for files that are written under another name. Leave this context before
    temporary files are removed: with them the disk is still full, which the message then says.
    """
    caught: tuple[type[Exception], ...] = (OSError, *others)
    try:
        yield
    except SegkitError:
        raise
    except caught as error:
        raise OutputError(
            f"{name or final_path(path)} could not be written: {describe_error(error, path.parent)}"
        ) from error


@contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """Create a temporary folder in `parent` for writing `name`; it is locked during the block and removed after it.

    Leftovers of killed processes that wrote the same name are removed first.
    """
    remove_leftovers(parent, name)
    with ExitStack() as stack:
        while True:
            folder = _temporary_path(parent, name)
            folder.mkdir()
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            # Before it is locked, another process may remove it as a leftover.
            with suppress(BlockingIOError, FileNotFoundError):
                stack.enter_context(lock_folder(folder))
                break
        yield folder


def remove_atomically(folder: Path) -> None:
    """Rename a folder and remove it, so that it never exists half-removed under its own name."""
    renamed = _temporary_path(folder.parent, folder.name)
    folder.rename(renamed)
    shutil.rmtree(renamed, ignore_errors=True)


def remove_leftovers(parent: Path, name: str | None = None) -> None:
    """Remove temporary folders of killed processes from `parent`, for one name or for all.

    Locked folders are in use and stay. Without locks (Windows, some file systems) all stay, since any may be in use.
    """
    with suppress(OSError):
        for folder in parent.iterdir():
            if (found := _TEMPORARY_NAME.fullmatch(folder.name)) and name in (None, found[1]):
                with suppress(OSError):
                    with lock_folder(folder) as locked:
                        if locked:
                            shutil.rmtree(folder, ignore_errors=True)
                    folder.rmdir()  # network file systems keep a file, and so its folder, while it is open


def home_folder() -> Path:
    """Return the home folder of the user; "/" if the system knows none, as in some containers."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def private_folder() -> Path | None:
    """Return a folder in the system's temporary folder, for caches if the user's own folders cannot be written.

    Only this user can read and write it, since it holds code that is executed. None if it cannot be made.
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
def lock_folder(folder: Path, *, shared: bool = False) -> Iterator[bool]:
    """Lock a folder during the block; yields false if the system or the file system has no locks.

    The lock is released when the process ends, also if it is killed, and child processes do not inherit it. Any number
    of shared locks can be held at once, but none together with an exclusive one.

    This is flock rather than the package filelock, whose shared locks are SQLite databases, and whose lock file stays
    open: on Windows a locked folder could then be neither renamed nor removed, as journals and caches are.

    Raises
    ------
    BlockingIOError
        It is locked, by this process or another one.
    FileNotFoundError
        The folder does not exist any more.
    """
    if sys.platform == "win32":
        yield False
    else:
        file = folder / LOCK_FILE
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        _lock_descriptors.add(descriptor)
        try:
            yield _lock(descriptor, file, shared=shared)
        finally:
            if descriptor in _lock_descriptors:  # a forked child has closed it
                _lock_descriptors.remove(descriptor)
                os.close(descriptor)


def _temporary_path(parent: Path, name: str) -> Path:
    return parent / f".{name}.{uuid4().hex[:8]}.part"


def fsync(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, are on the disk.

    Windows opens no folders, and waits only for files that may be written.
    """
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
