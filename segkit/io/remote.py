"""Remote files: URLs as paths, their names in GDAL, and GDAL's options for reading them.

A URL is passed on as a `Remote`, a Path whose text leaves out secrets. Everything that depends on URL schemes or on
GDAL's network access is in this module.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, Self, TypeVar

from segkit.errors import UsageError
from segkit.io.paths import FileSet, PathLike

T = TypeVar("T")

# pathlib collapses the slashes of a URL that is passed as a path.
_URL = re.compile(r"(https?|s3|gs|az):/{1,2}(?=[^/])", re.IGNORECASE)
_GDAL_PREFIXES = {
    "http": "/vsicurl/http://",
    "https": "/vsicurl/https://",
    "s3": "/vsis3/",
    "gs": "/vsigs/",
    "az": "/vsiaz/",
}

_READDIR_OPTION = "GDAL_DISABLE_READDIR_ON_OPEN"
_OPTIONS = {
    # Do not list the folder or look for side files, which could lead GDAL to other files. Users cannot change this one.
    _READDIR_OPTION: "EMPTY_DIR",
    # Enough for the header of a scene of some thousand tiles in one request.
    "GDAL_INGESTED_BYTES_AT_OPEN": "65536",
    # Reads of a tile are rounded up to this.
    "CPL_VSIL_CURL_CHUNK_SIZE": "4096",
    "GDAL_HTTP_MULTIPLEX": "YES",
    # Wait 0.5 s before the second attempt, and about twice as long before each further one.
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    # An attempt fails if less than 1 kB/s arrive for 10 s.
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",
    "GDAL_HTTP_LOW_SPEED_TIME": "10",
}


class Remote(Path, PurePosixPath):
    """A file at a URL; `name`, `stem` and `suffix` are those of the file, without the query.

    `str` can be shown and stored: it has no query, which may hold a signature, and no password. `os.fspath` is the full
    URL.
    """

    _url: str | None = None

    def __new__(cls, url: str) -> Self:
        """Create the path of a URL with a known scheme."""
        return PurePath.__new__(cls, _without_secrets(url))

    def __init__(self, url: str) -> None:
        if sys.version_info >= (3, 12):
            super().__init__(_without_secrets(url))
        self._url = url

    def absolute(self) -> Remote:
        """Return this path; a URL is always absolute."""
        return self

    def resolve(self, strict: bool = False) -> Remote:
        """Return this path."""
        return self

    def with_segments(self, *segments: PathLike) -> Any:
        """Return parents and siblings as paths of URLs; Python 3.11 does the same without this."""
        return as_path(PurePosixPath(*segments))

    def __fspath__(self) -> str:
        return self._url or _normalize(PurePosixPath.__str__(self))

    def __str__(self) -> str:
        return _without_secrets(os.fspath(self))

    def __reduce__(self) -> tuple[type[Remote], tuple[str]]:
        return Remote, (os.fspath(self),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and os.fspath(self) == os.fspath(other)

    def __hash__(self) -> int:
        return hash(os.fspath(self))


def is_remote(path: PathLike) -> bool:
    """Whether a path is a URL with a scheme that segkit reads."""
    return _URL.match(_text(path)) is not None


def as_path(path: PathLike) -> Path:
    """Convert a path to a Path, and a URL to a Remote; a path of several files is returned unchanged."""
    if isinstance(path, FileSet | Remote):
        return path
    text = _text(path)
    return Remote(_normalize(text)) if is_remote(text) else Path(text)


def join_path(folder: Path, path: str) -> Path:
    """Return a path relative to a folder; a URL is returned unchanged."""
    return as_path(path) if is_remote(path) else folder / path


def absolute_text(path: PathLike) -> str:
    """Return a path, which may be a pattern, as absolute text; a URL is returned unchanged."""
    text = _text(path)
    return text if is_remote(text) else os.path.abspath(text)  # noqa: PTH100 - keeps links


def error_text(error: BaseException, file: Remote) -> str:
    """Return the messages of an error and its causes, the first cause first, without secrets of the URL."""
    texts: list[str] = []
    query = os.fspath(file).partition("?")[2]
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause).replace(gdal_name(file), str(file)).replace(os.fspath(file), str(file))
        text = text.replace(f"?{query}", "") if query else text
        texts = [text, *texts] if text not in texts else texts
        cause = cause.__cause__ or cause.__context__
    return ": ".join(text for text in texts if text)


def redact(value: Any) -> Any:
    """Return a JSON value with the secrets of its URLs removed."""
    if isinstance(value, dict):
        return {key: redact(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [redact(each) for each in value]
    return str(as_path(value)) if isinstance(value, str) and is_remote(value) else value


def require_local(path: PathLike, what: str) -> None:
    """Raise a UsageError if a path is a URL; `what` says what must be local, for the message."""
    if is_remote(path):
        raise UsageError(f"{as_path(path)}: {what} must be local; only rasters are read from a URL")


def from_gdal_name(name: str) -> Remote | None:
    """Return the remote file of a GDAL dataset name, plain or warped; None if it is a local file."""
    name = re.sub(r"^WarpedVRT\((.*)\)$", r"\1", name)
    for scheme, prefix in _GDAL_PREFIXES.items():
        if name.startswith(prefix):
            return Remote(f"{scheme}://{name.removeprefix(prefix)}")
    return None


def retry_once(action: Callable[[], T], should_retry: Callable[[Exception], bool]) -> T:
    """Call a function, and once more if it fails: GDAL repeats requests that a server refused, but not cut-off ones."""
    try:
        return action()
    except Exception as error:
        if not should_retry(error):
            raise
    time.sleep(float(os.environ.get("GDAL_HTTP_RETRY_DELAY") or _OPTIONS["GDAL_HTTP_RETRY_DELAY"]))
    return action()


def gdal_name(path: PathLike) -> str:
    """Return GDAL's name of a remote file."""
    scheme, rest = os.fspath(path).split("://", 1)
    return _GDAL_PREFIXES[scheme] + rest


def gdal_options() -> dict[str, str]:
    """Return GDAL's options for remote files, without those that the user has set in the environment or in Env."""
    from rasterio.env import getenv, hasenv

    own = {*os.environ, *(getenv() if hasenv() else ())} - {_READDIR_OPTION}
    return {key: value for key, value in _OPTIONS.items() if key not in own}


def read_version(path: PathLike) -> str:
    """Return the version of a file from the server's headers: ETag, time and size; "" if there are none.

    This is one request, signed by GDAL as requests for pixels are. Call it within `rasterio.Env(**gdal_options())`.
    """
    ask = _gdal_function("VSIGetFileMetadata", ctypes.POINTER(ctypes.c_char_p))
    destroy = _gdal_function("CSLDestroy", None)
    if ask is None or destroy is None:
        return ""
    name = gdal_name(path).encode()
    found = ask(name, b"HEADERS", None) or ask(name, b"HEADERS", None)
    try:
        lines: list[tuple[str, str, str]] = []
        while found and found[len(lines)]:
            lines.append(found[len(lines)].decode(errors="replace").partition("="))
    finally:
        destroy(found)
    headers = {key.lower(): value.strip() for key, _, value in lines}
    size = re.sub(r".*/", "", headers.get("content-range", "")) or headers.get("content-length", "")
    facts = {"bytes": size, "of": headers.get("last-modified", ""), "ETag": headers.get("etag", "").strip('"')}
    return ", ".join(
        f"{value} bytes" if name == "bytes" else f"{name} {value}" for name, value in facts.items() if value
    )


def clear_gdal_cache(path: PathLike) -> None:
    """Clear GDAL's cache of a remote file, in particular that it could not be opened."""
    if clear := _gdal_function("VSICurlPartialClearCache", None):
        clear(gdal_name(path).encode())


@functools.cache
def _gdal_function(name: str, result: Any) -> Any:
    """Return a function of rasterio's GDAL that rasterio does not expose; None if it is not found."""
    import rasterio._base

    try:
        found = getattr(ctypes.CDLL(rasterio._base.__file__), name)
    except (OSError, AttributeError):  # Windows searches this library only, not those that it loads
        return None
    found.restype = result
    found.argtypes = {
        "VSIGetFileMetadata": [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p],
        "CSLDestroy": [ctypes.c_void_p],
        "VSICurlPartialClearCache": [ctypes.c_char_p],
    }[name]
    return found


def _text(path: PathLike) -> str:
    """Return a path as text; on Windows pathlib turns the slashes of a URL around, too."""
    return path.as_posix() if isinstance(path, PureWindowsPath) else os.fspath(path)


def _normalize(text: str) -> str:
    """Return a URL with both slashes and a lower-case scheme."""
    return _URL.sub(lambda found: f"{found[1].lower()}://", text, count=1)


def _without_secrets(url: str) -> str:
    scheme, rest = url.split("://", 1)
    if scheme.startswith("http"):  # in object stores, ? is a character of a name
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    return f"{scheme}://{re.sub('^[^/]*@', '', rest)}"
