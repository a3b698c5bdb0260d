"""Pause Python's garbage collection while large libraries are imported."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pause_collection() -> Iterator[None]:
    """Run a block of imports without the collection of reference cycles.

    torch and its libraries make a million objects that stay. The collector would search them again and again, a fifth
    of the time that the imports take.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
