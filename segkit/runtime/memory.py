"""How this process takes memory from the system, and when it returns it.

A forward pass of a network allocates and frees hundreds of megabytes, layer by layer. glibc returns large blocks to the
system as soon as they are freed, and the system zeroes them page by page before it hands them out again: 7 to 28 % of
the time of a pass on a CPU. Other allocators are left as they are.

Nothing is changed at import: `predict`, `train` and the workers of a cluster call `retain_freed_memory` when they
start.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt, from glibc's malloc.h


def retain_freed_memory() -> None:
    """Reuse the memory that this process frees; call it before torch allocates its first large tensor.

    The process then holds up to a quarter more than its tensors need at a time, until `trim_memory`. Threads other than
    the main one have heaps for small blocks only, unless MALLOC_ARENA_MAX=1 was set before the process started; their
    large blocks still come from the system, but in pages of 2 MB, which halves the cost.
    """
    mallopt = _glibc_function("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
    one_heap = threading.current_thread() is threading.main_thread() or os.environ.get("MALLOC_ARENA_MAX") == "1"
    # Torch reads this once.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "0" if mallopt is not None and one_heap else "1")


def trim_memory() -> None:
    """Return free memory to the system."""
    trim = _glibc_function("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc_function(name: str) -> Any:
    """Return a function of the C library, or None if it has none of this name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
