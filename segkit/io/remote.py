"""Remote files: what a URL means, what GDAL calls it, and how GDAL is to read it.

A URL travels as a `Remote`, a Path whose text leaves out what may be secret. Whatever depends on schemes, or on GDAL's
network, is here.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, TypeVar

from segkit.errors import UsageError

T = TypeVar("T")
PathLike = str | os.PathLike[str]

# pathlib folds the slashes of a URL that is taken for a path.
_URL = re.compile(r"(https?|s3|gs|az):/{1,2}(?=[^/])", re.IGNORECASE)
_NAMES = {"http": "/vsicurl/http://", "https": "/vsicurl/https://", "s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/"}

_LOOKS_BESIDE = "GDAL_DISABLE_READDIR_ON_OPEN"
_OPTIONS = {
    # Neither a listing of the folder nor a look for files beside this one.
    # They could lead GDAL to other files, so that the user cannot set this one.
    _LOOKS_BESIDE: "EMPTY_DIR",
    # The header of a scene of some thousand tiles, in one request.
    "GDAL_INGESTED_BYTES_AT_OPEN": "65536",
    # What a read of one tile is rounded up to.
    "CPL_VSIL_CURL_CHUNK_SIZE": "4096",
    "GDAL_HTTP_MULTIPLEX": "YES",
    # Half a second before the second attempt, about twice as long before each further one.
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    # Fewer bytes a second, for so many seconds, and an attempt has failed.
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",
    "GDAL_HTTP_LOW_SPEED_TIME": "10",
}


class Remote(Path, PurePosixPath):
    """A file named by a URL; `name`, `stem` and `suffix` are the file's, whatever follows it in the URL.

    `str` is what may be shown and stored: without a query, which may hold a signature, and without a password.
    `os.fspath` is all of the URL.
    """

    _url: str | None = None

    def __new__(cls, url: str) -> Remote:
        """Take a URL of a known scheme."""
        return PurePath.__new__(cls, _shown(url))

    def __init__(self, url: str) -> None:
        if sys.version_info >= (3, 12):
            super().__init__(_shown(url))
        self._url = url

    def absolute(self) -> Remote:
        """Return the file itself; nothing is relative about a URL."""
        return self

    def resolve(self, strict: bool = False) -> Remote:
        """Return the file itself."""
        return self

    def with_segments(self, *segments: PathLike) -> Path:
        """Make a folder or a neighbour of this file a plain path."""
        return Path(*segments)

    def __fspath__(self) -> str:
        return self._url or _whole(PurePosixPath.__str__(self))

    def __str__(self) -> str:
        return _shown(os.fspath(self))

    def __reduce__(self) -> tuple[type[Remote], tuple[str]]:
        return Remote, (os.fspath(self),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and os.fspath(self) == os.fspath(other)

    def __hash__(self) -> int:
        return hash(os.fspath(self))


def is_remote(path: PathLike) -> bool:
    """Whether a path is a URL of a scheme that GDAL reads here."""
    return _URL.match(os.fspath(path)) is not None


def located(path: PathLike) -> Path:
    """Return a path as a Path, a URL as a Remote."""
    text = os.fspath(path)
    return Remote(_whole(text)) if is_remote(text) else Path(text)


def beside(folder: Path, path: str) -> Path:
    """Return a path that starts at a folder, a URL as it is."""
    return located(path) if is_remote(path) else folder / path


def told(error: BaseException, file: Remote) -> str:
    """Return what GDAL said of a remote file, from the cause on, without what may be secret."""
    texts: list[str] = []
    query = os.fspath(file).partition("?")[2]
    one: BaseException | None = error
    while one is not None:
        text = str(one).replace(gdal_name(file), str(file)).replace(os.fspath(file), str(file))
        text = text.replace(f"?{query}", "") if query else text
        texts = [text, *texts] if text not in texts else texts
        one = one.__cause__ or one.__context__
    return ": ".join(text for text in texts if text)


def public(value: Any) -> Any:
    """Return what JSON holds with URLs as they may be shown."""
    if isinstance(value, dict):
        return {key: public(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [public(each) for each in value]
    return str(located(value)) if isinstance(value, str) and is_remote(value) else value


def refuse(path: PathLike, what: str) -> None:
    """Raise a UsageError where a path is a URL; `what` must be local."""
    if is_remote(path):
        raise UsageError(f"{located(path)}: {what} on this machine's disks; only rasters are read from a URL")


def of_gdal(name: str) -> Remote | None:
    """Return the remote file that GDAL calls so, itself or warped; None where it is none."""
    name = re.sub(r"^WarpedVRT\((.*)\)$", r"\1", name)
    for scheme, prefix in _NAMES.items():
        if name.startswith(prefix):
            return Remote(f"{scheme}://{name.removeprefix(prefix)}")
    return None


def again(act: Callable[[], T], wanted: Callable[[Exception], bool]) -> T:
    """Do what failed once more: GDAL itself repeats what a server could not do, but not what was cut off."""
    try:
        return act()
    except Exception as error:
        if not wanted(error):
            raise
    time.sleep(float(os.environ.get("GDAL_HTTP_RETRY_DELAY") or _OPTIONS["GDAL_HTTP_RETRY_DELAY"]))
    return act()


def gdal_name(path: PathLike) -> str:
    """Return what GDAL calls a remote file."""
    scheme, rest = os.fspath(path).split("://", 1)
    return _NAMES[scheme] + rest


def options() -> dict[str, str]:
    """Return how GDAL is to read remote files, but for what the user may and has set, in the environment or in Env."""
    from rasterio.env import getenv, hasenv

    own = {*os.environ, *(getenv() if hasenv() else ())} - {_LOOKS_BESIDE}
    return {key: value for key, value in _OPTIONS.items() if key not in own}


def version_of(path: PathLike) -> str:
    """Return what the server says of a file's version: ETag, time and size; "" where it says nothing.

    One request, which GDAL signs, as it signs those for pixels. Call it within `rasterio.Env(**options())`.
    """
    ask = _gdal("VSIGetFileMetadata", ctypes.POINTER(ctypes.c_char_p))
    destroy = _gdal("CSLDestroy", None)
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


def forget(path: PathLike) -> None:
    """Let GDAL forget what it knows of a file, in particular that it could not be had."""
    if clear := _gdal("VSICurlPartialClearCache", None):
        clear(gdal_name(path).encode())


def hold(size: int) -> None:
    """Let GDAL's cache of decoded tiles take so many bytes, if it may take fewer."""
    now, change = _gdal("GDALGetCacheMax64", ctypes.c_int64), _gdal("GDALSetCacheMax64", None)
    if now is not None and change is not None and now() < size:
        change(size)


@functools.cache
def _gdal(name: str, result: Any) -> Any:
    """Return a function of the GDAL that rasterio brings but gives no access to; None where it is not found."""
    import rasterio._base

    try:
        found = getattr(ctypes.CDLL(rasterio._base.__file__), name)
    except (OSError, AttributeError):  # Windows looks into one library only
        return None
    found.restype = result
    found.argtypes = {
        "VSIGetFileMetadata": [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p],
        "CSLDestroy": [ctypes.c_void_p],
        "VSICurlPartialClearCache": [ctypes.c_char_p],
        "GDALGetCacheMax64": [],
        "GDALSetCacheMax64": [ctypes.c_int64],
    }[name]
    return found


def _whole(text: str) -> str:
    """Return a URL with the slashes and the scheme that it should have."""
    return _URL.sub(lambda found: f"{found[1].lower()}://", text, count=1)


def _shown(url: str) -> str:
    scheme, rest = url.split("://", 1)
    if scheme.startswith("http"):  # elsewhere, ? is a character of a name
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    return f"{scheme}://{re.sub('^[^/]*@', '', rest)}"
