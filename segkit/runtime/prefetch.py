"""Threads: reading ahead of those that compute, and writing behind them."""

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


def ahead(items: Generator[T], depth: int, *, yielding: bool = False) -> Generator[T]:
    """Yield what `items` yields; it runs in a thread of its own, at most `depth` items ahead.

    What it opens, it also closes in that thread, in particular when this generator is closed early. Its exceptions are
    raised here. A yielding thread waits for files while others compute, and computes while they wait (on Linux).
    """
    end = object()
    with ThreadPoolExecutor(1, initializer=_yield_to_others if yielding else None) as thread:
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
def behind(work: Callable[[T], None], *, yielding: bool = False) -> Iterator[Callable[[T], None]]:
    """Give a function that hands items over to `work`, which takes them in order in a thread of its own.

    One item waits at most. Exceptions of `work` are raised by the next call, or at the end. A yielding thread works
    while others wait, as that of `ahead`; whoever hands over waits for it then.
    """
    with ThreadPoolExecutor(1, initializer=_yield_to_others if yielding else None) as thread:
        last: Future[None] | None = None

        def hand_over(item: T) -> None:
            nonlocal last
            if last is not None:
                last.result()
            last = thread.submit(work, item)

        yield hand_over
        if last is not None:
            last.result()


def _yield_to_others() -> None:
    """Give this thread, and those that it starts, the lowest priority."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
