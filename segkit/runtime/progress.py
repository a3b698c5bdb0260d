"""Progress of long work: a bar on a terminal, plain lines elsewhere, silence where a library asks for it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

_SECONDS_BETWEEN_LINES = 10.0
# Speed is that of the last _LOOKED_BACK seconds, and not shown before _ENOUGH seconds of work were seen.
_LOOKED_BACK, _ENOUGH = 60.0, 5.0


@contextmanager
def progress(what: str, total: float, unit: str = "", *, show: bool = True) -> Iterator[Callable[[float], None]]:
    """Show that `what` advances towards `total`; the block gets a function to call with each step done.

    Written to stderr, so that stdout stays a result. Off a terminal a line is printed every ten seconds of work, and
    none for work that is shorter. Speed and time left are shown when enough work was seen to estimate them.
    """
    if not show:
        yield lambda step: None
    elif sys.stderr.isatty():
        with _bar(what, total, unit) as advance:
            yield advance
    else:
        yield _Lines(what, total, unit).advance


class _Pace:
    """How much is done, and how fast it goes.

    Steps come in bursts, and before the first one there is preparation. So what comes within one second counts as one
    step, and time counts from the end of the first such step on.
    """

    def __init__(self, total: float) -> None:
        self.total, self.done = total, 0.0
        # By second: when its last step came, and how much was done then.
        self._marks: dict[int, tuple[float, float]] = {}

    def advance(self, step: float) -> None:
        """Take a step that is done now."""
        self.done += step
        now = time.monotonic()
        self._marks[int(now)] = now, self.done
        while len(self._marks) > 2 and now - next(iter(self._marks.values()))[0] > _LOOKED_BACK:
            del self._marks[next(iter(self._marks))]

    @property
    def speed(self) -> float | None:
        """What is done in a second; None where too little was seen to tell."""
        marks = list(self._marks.values())
        if not marks or marks[-1][0] - marks[0][0] < _ENOUGH:
            return None
        return (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])

    @property
    def left(self) -> float | None:
        """Seconds to the end; None where nobody can tell yet."""
        return (self.total - self.done) / self.speed if self.speed else None


@contextmanager
def _bar(what: str, total: float, unit: str) -> Iterator[Callable[[float], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    pace = _Pace(total)

    class Done(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = f"  {count(pace.speed)} {unit}/s" if pace.speed else ""
            return Text(f"{count(pace.done)}/{count(total)} {unit}{speed}")

    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("-:--:--" if pace.left is None else str(timedelta(seconds=round(pace.left))))

    columns = (
        TextColumn("{task.description}", markup=False),  # file names may hold brackets
        BarColumn(),
        Done(),
        TimeElapsedColumn(),
        Left(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)

        def advance(step: float) -> None:
            pace.advance(step)
            bar.advance(task, step)

        yield advance


class _Lines:
    def __init__(self, what: str, total: float, unit: str) -> None:
        self._what, self._unit, self._pace = what, unit, _Pace(total)
        self._last = time.monotonic()

    def advance(self, step: float) -> None:
        self._pace.advance(step)
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last, pace = now, self._pace
        line = f"{self._what}: {count(pace.done)}/{count(pace.total)} {self._unit}"
        if pace.speed:
            line += f"  {count(pace.speed)} {self._unit}/s"
        if pace.left is not None:
            line += f"  {pace.left:,.0f} s left"
        print(line, file=sys.stderr)


def count(number: float) -> str:
    """Write whole numbers and large ones without decimals, others with three digits."""
    return f"{number:,.0f}" if number >= 100 or number == round(number) else f"{number:.3g}"
