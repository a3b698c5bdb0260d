"""Kernel: how functions are compiled that work on single pixels, corners or vertices.

By numba, once: what was compiled is kept where numba keeps it ($NUMBA_CACHE_DIR, beside the source, or in the user's
cache folder), and where none of these can be written in the system's folder for temporary files. They take arrays and
numbers, and free other threads while they run. Dividing by zero gives what it gives in numpy.
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


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function when it is first called with arguments of some types.

    Without any folder that can be written, every process compiles it anew.
    """
    found = numba.njit(nogil=True, error_model="numpy")(function)
    if hasattr(found, "_cache"):  # not where NUMBA_DISABLE_JIT is set
        try:
            found._cache = _Cache(function)
        except RuntimeError:  # numba has no folder
            if (folder := private_folder()) is not None:
                with _numba_cache(folder / "numba"), suppress(RuntimeError):
                    found._cache = _Cache(function)
    return found


@contextmanager
def _numba_cache(folder: Path) -> Iterator[None]:
    """Let numba keep what it compiles in a folder while the block lasts."""
    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before


class _Cache(FunctionCache):
    """The compiled forms of a function on the disk; one that cannot be stored is compiled again by the next process."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        # What was compiled holds the functions that it calls, but numba looks only for changes of the file it is in.
        self._cache_file._source_stamp = _sources()

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):  # a full disk must not stop the work
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]


@functools.cache
def _sources() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
