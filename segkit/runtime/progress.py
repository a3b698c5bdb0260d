"""Progress of long work: a bar on a terminal, plain lines otherwise, nothing if `show` is false."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Protocol, TextIO, cast

from segkit.runtime.streams import CommandStream

_LINE_INTERVAL_S = 10.0
# Speed is measured over the last 60 s, and shown once 5 s of work were observed.
_SPEED_WINDOW_S, _MIN_OBSERVED_S = 60.0, 5.0
# Characters that the text beside a bar takes, and limits of the bar. Terminals of fewer characters show no speed.
_TEXT_WIDTH, _MIN_BAR_WIDTH, _MAX_BAR_WIDTH, _MIN_WIDTH_WITH_SPEED = 80, 8, 40, 100
_shown = 0  # blocks of `progress` that are running and show something


class Advance(Protocol):
    """Takes the size of a step that is done, and a note that replaces the last one: "loss 0.1234"."""

    def __call__(self, step: float, note: str = "") -> None:
        """Show the progress."""


@contextmanager
def progress(label: str, total: float, unit: str = "", *, show: bool = True) -> Iterator[Advance]:
    """Show the progress towards `total`; yields a function to call with the size of each step done.

    Progress is written to stderr, so that stdout holds results only. If stderr is not a terminal, a line is printed
    every 10 s. Speed and time left are shown once they can be estimated.
    """
    global _shown
    if not show:
        yield lambda step, note="": None
        return
    _shown += 1
    try:
        if sys.stderr.isatty():
            with _bar(label, total, unit) as advance:
                yield advance
        else:
            yield _Lines(label, total, unit, _print_message).advance
    finally:
        _shown -= 1


def announce(line: str) -> None:
    """Print a line to stderr if progress is shown now: for work that takes long before a step is done."""
    if _shown:
        _print_message(line)


class _Pace:
    """Work done, and its speed.

    Steps come in bursts, after some preparation. So all steps within one second count as one, and time is measured from
    the end of the first one.
    """

    def __init__(self, total: float) -> None:
        self.total, self.done = total, 0.0
        # {second: (time of its last step, work done by then)}
        self._marks: dict[int, tuple[float, float]] = {}

    def advance(self, step: float) -> None:
        """Add a step that is done now."""
        self.done += step
        now = time.monotonic()
        self._marks[int(now)] = now, self.done
        while len(self._marks) > 2 and now - next(iter(self._marks.values()))[0] > _SPEED_WINDOW_S:
            del self._marks[next(iter(self._marks))]

    @property
    def speed(self) -> float | None:
        """Work per second; None if too little was observed."""
        marks = list(self._marks.values())
        if not marks or marks[-1][0] - marks[0][0] < _MIN_OBSERVED_S:
            return None
        return (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds to the end; None if the speed is not known yet."""
        return (self.total - self.done) / self.speed if self.speed else None


@contextmanager
def _bar(label: str, total: float, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.file_proxy import FileProxy
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    pace, shown_note = _Pace(total), ""

    class Done(ProgressColumn):
        def render(self, task: Task) -> Text:
            wide = console.width >= _MIN_WIDTH_WITH_SPEED
            speed = f"  {format_count(pace.speed)} {unit}/s" if pace.speed and wide else ""
            return Text(f"{format_count(pace.done)}/{format_count(total)} {unit}{speed}")

    class Elapsed(TimeElapsedColumn):
        def render(self, task: Task) -> Text:
            return Text("elapsed ") + super().render(task)

    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            left = "-:--:--" if pace.seconds_left is None else str(timedelta(seconds=round(pace.seconds_left)))
            return Text(f"left {left}")

    class Note(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(shown_note)

    stream = sys.stderr
    terminal = stream.shown if isinstance(stream, CommandStream) else stream
    console = Console(file=terminal)
    columns = (
        TextColumn("{task.description}", markup=False),  # file names may hold brackets
        BarColumn(min(_MAX_BAR_WIDTH, max(_MIN_BAR_WIDTH, console.width - _TEXT_WIDTH))),
        Done(),
        Elapsed(),
        Left(),
        Note(),
    )
    with (
        Progress(*columns, console=console, transient=True, redirect_stderr=terminal is stream) as bar,
        ExitStack() as undo,
    ):
        task = bar.add_task(label, total=total)
        logged = None
        if isinstance(stream, CommandStream):
            # Lines appear above the bar; the log gets lines of progress, not the bar.
            stream.shown = cast(TextIO, FileProxy(console, terminal))
            undo.callback(setattr, stream, "shown", terminal)
            logged = None if stream.log is None else _Lines(label, total, unit, stream.log.add)

        def advance(step: float, note: str = "") -> None:
            nonlocal shown_note
            shown_note = note
            pace.advance(step)
            bar.advance(task, step)
            if logged is not None:
                logged.advance(step, note)

        yield advance


class _Lines:
    def __init__(self, label: str, total: float, unit: str, write: Callable[[str], None]) -> None:
        self._label, self._unit, self._pace, self._write = label, unit, _Pace(total), write
        self._last = time.monotonic()

    def advance(self, step: float, note: str = "") -> None:
        self._pace.advance(step)
        now = time.monotonic()
        if now - self._last < _LINE_INTERVAL_S:
            return
        self._last, pace = now, self._pace
        line = f"{self._label}: {format_count(pace.done)}/{format_count(pace.total)} {self._unit}"
        if pace.speed:
            line += f"  {format_count(pace.speed)} {self._unit}/s"
        if pace.seconds_left is not None:
            line += f"  {pace.seconds_left:,.0f} s left"
        if note:
            line += f"  {note}"
        self._write(line)


def _print_message(line: str) -> None:
    print(line, file=sys.stderr)


def format_duration(seconds: float) -> str:
    """Format a duration: "12 s", "3 min 5 s", "2 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_count(number: float) -> str:
    """Format whole numbers and numbers of 100 or more without decimals, others with three significant digits."""
    return f"{number:,.0f}" if number >= 100 or number == round(number) else f"{number:.3g}"
