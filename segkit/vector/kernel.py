"""Kernel: how functions are compiled that work on single pixels, corners or vertices.

By numba, once: what was compiled is kept beside the source. They take arrays and numbers, and free other threads while
they run. Dividing by zero gives what it gives in numpy.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function when it is first called with arguments of some types."""
    found = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    # What was compiled holds the functions that it calls, but numba keeps it as long as its own file has not changed.
    if hasattr(found, "_cache"):
        found._cache._cache_file._source_stamp = _sources()
    return found


@functools.cache
def _sources() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
