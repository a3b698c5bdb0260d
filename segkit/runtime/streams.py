"""Streams of a command: what they show can be silenced, and all lines go to a log file, too."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TextIO


class LogFile:
    """Lines with the time (UTC) before each, in a file that stays open."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def add(self, line: str) -> None:
        """Add a line; it is in the file at once, so that it can be followed and a killed command leaves it."""
        self._file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class CommandStream:
    """Stands in for stdout or stderr; attributes that it lacks are those of the stream behind it.

    Attributes
    ----------
    shown
        The stream behind it.
    silent
        Whether nothing is shown.
    log
        Gets each complete line, whether or not it is shown.
    """

    def __init__(self, shown: TextIO) -> None:
        self.shown = shown
        self.silent = False
        self.log: LogFile | None = None
        self._line = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shown, name)

    def write(self, text: str) -> int:
        """Show a text unless silent, and log the lines that it completes."""
        if not self.silent:
            self.shown.write(text)
        if self.log is not None:
            *lines, self._line = (self._line + text).split("\n")
            for line in lines:
                self.log.add(line)
        return len(text)

    def isatty(self) -> bool:
        """Return whether a person sees it."""
        return not self.silent and self.shown.isatty()

    def print_always(self, line: str) -> None:
        """Show and log a line, also if the stream is silent."""
        was, self.silent = self.silent, False
        try:
            print(line, file=self)
        finally:
            self.silent = was

    def end_log(self) -> None:
        """Log a last line that has no end, and log nothing more."""
        if self.log is not None and self._line:
            self.log.add(self._line)
        self.log, self._line = None, ""
