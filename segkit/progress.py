"""Progress of long work: a bar on a terminal, plain lines elsewhere, silence where a library asks for it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(what: str, total: float, unit: str = "", *, show: bool = True) -> Iterator[Callable[[float], None]]:
    """Show that `what` advances towards `total`; the block gets a function to call with each step done.

    Written to stderr, so that stdout stays a result. Off a terminal a line is printed every ten seconds of work, and
    none for work that is shorter.
    """
    if not show:
        yield lambda step: None
    elif sys.stderr.isatty():
        with _bar(what, total, unit) as advance:
            yield advance
    else:
        yield _Lines(what, total, unit).advance


@contextmanager
def _bar(what: str, total: float, unit: str) -> Iterator[Callable[[float], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Done(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = f"  {_count(task.speed)} {unit}/s" if task.speed else ""
            return Text(f"{_count(task.completed)}/{_count(task.total or 0)} {unit}{speed}")

    columns = (
        TextColumn("{task.description}", markup=False),  # file names may hold brackets
        BarColumn(),
        Done(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda step: bar.advance(task, step)


class _Lines:
    def __init__(self, what: str, total: float, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0.0
        self.started = self.last = time.monotonic()

    def advance(self, step: float) -> None:
        self.done += step
        now = time.monotonic()
        if now - self.last < _SECONDS_BETWEEN_LINES:
            return
        self.last = now
        rate = self.done / (now - self.started)
        left = (self.total - self.done) / rate if rate else float("inf")
        done = f"{_count(self.done)}/{_count(self.total)} {self.unit}"
        print(f"{self.what}: {done}  {_count(rate)} {self.unit}/s  {left:,.0f} s left", file=sys.stderr)


def _count(number: float) -> str:
    """Write whole numbers and large ones without decimals, others with three digits."""
    return f"{number:,.0f}" if number >= 100 or number == round(number) else f"{number:.3g}"
