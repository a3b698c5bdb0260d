"""Memory: how this process takes it from the system, and when it gives it back.

A pass of a network takes and frees hundreds of megabytes, layer by layer. glibc returns large pieces to the system as
soon as they are free, which zeroes them, page by page, before it hands them out again: 7 to 28 % of the time of a
pass on a CPU. Other allocators are left as they are.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt, from glibc's malloc.h


def keep_freed() -> None:
    """Let what this process frees serve its next tensors; call it before torch makes the first large one.

    The process then holds up to a quarter more than the tensors that it needs at once, until `return_memory`. Threads
    other than the main one have heaps for small pieces only, unless MALLOC_ARENA_MAX=1 was set before the process
    began; what is large still comes from the system, then in pages of 2 MB, which is half as bad.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
    one_heap = threading.current_thread() is threading.main_thread() or os.environ.get("MALLOC_ARENA_MAX") == "1"
    # Torch asks for this once.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "0" if mallopt is not None and one_heap else "1")


def return_memory() -> None:
    """Return to the system what is free."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Any:
    """Return a function of the C library, None where it has none of this name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
