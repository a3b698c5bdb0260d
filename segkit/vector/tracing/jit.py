"""Compile functions that process single pixels, corners or vertices, with numba.

Compiled code is cached where numba caches it ($NUMBA_CACHE_DIR, beside the source, or in the user's cache folder). If
none of these is writable, it is cached in the system's folder for temporary files. Compiled functions take arrays and
numbers and release the GIL. Division by zero behaves as in numpy.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache

from segkit.io.files import private_folder
from segkit.runtime.progress import announce


def compiled(function: Callable[..., Any]) -> Any:
    """Return a function that is compiled at the first call with each combination of argument types.

    Without a writable folder, every process compiles it again.
    """
    dispatcher = numba.njit(nogil=True, error_model="numpy")(function)
    if hasattr(dispatcher, "_cache"):  # false if NUMBA_DISABLE_JIT is set
        try:
            dispatcher._cache = _Cache(function)
        except RuntimeError:  # numba found no writable folder
            if (folder := private_folder()) is not None:
                with _numba_cache(folder / "numba"), suppress(RuntimeError):
                    dispatcher._cache = _Cache(function)
    return dispatcher


@contextmanager
def _numba_cache(folder: Path) -> Iterator[None]:
    """Set numba's cache folder while the block runs."""
    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before


class _Cache(FunctionCache):
    """Compiled versions of a function on disk. If they cannot be stored, the next process compiles them again."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        # Compiled code contains the functions that it calls, but numba only checks the file of the function itself. The
        # version comes first in a cache file; of another version, numba does not unpickle types that may be gone.
        sources = _sources(function.__code__.co_filename)
        self._cache_file._source_stamp = sources
        self._cache_file._version = f"{numba.__version__} {sources}"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = super().load_overload(sig, target_context)
        if found is None:
            _announce_compilation()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):  # a full disk is not an error here
            super().save_overload(sig, data)


@functools.cache
def _announce_compilation() -> None:
    """Say once that functions are compiled; without it a command seems to hang when it runs for the first time."""
    announce("segkit: compiling, which is needed only the first time (up to a minute) ...")


@functools.cache
def _sources(source: str) -> str:
    """Return a checksum of a module with compiled functions and of those that it may call."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted({*folder.glob("*.py"), folder.parent / "geometry.py", Path(source)}):
        digest.update(file.read_bytes())
    return digest.hexdigest()
