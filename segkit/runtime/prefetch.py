"""Threads that read ahead of a computation, and write behind it."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Generator[T], depth: int, *, low_priority: bool = False) -> Generator[T]:
    """Yield the items of a generator that runs in its own thread, at most `depth` items ahead.

    The generator opens and closes its files in that thread, also if this one is closed early. Its exceptions are raised
    here. With `low_priority`, the thread reads while others compute, and computes only while they wait (on Linux).
    """
    end = object()
    with ThreadPoolExecutor(1, initializer=_lower_priority if low_priority else None) as thread:
        waiting: deque[Future[T | object]] = deque(thread.submit(next, items, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, items, end))
                yield item  # type: ignore[misc]
        finally:
            for future in waiting:
                future.cancel()
            thread.submit(items.close).result()


@contextmanager
def background_writer(write: Callable[[T], None], *, low_priority: bool = False) -> Iterator[Callable[[T], None]]:
    """Yield a function that passes items to `write`, which takes them in order in its own thread.

    At most one item waits. Exceptions of `write` are raised by the next call, or at the end of the block. With
    `low_priority`, the thread writes only while others wait, as in `prefetch`; the caller may then wait for it.
    """
    with ThreadPoolExecutor(1, initializer=_lower_priority if low_priority else None) as thread:
        last: Future[None] | None = None

        def submit(item: T) -> None:
            nonlocal last
            if last is not None:
                last.result()
            last = thread.submit(write, item)

        yield submit
        if last is not None:
            last.result()


def _lower_priority() -> None:
    """Give this thread, and the threads that it starts, the lowest priority."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
