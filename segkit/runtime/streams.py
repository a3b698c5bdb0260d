"""Streams of a command: what they show can be silenced, and all lines go to a log file, too."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, TextIO

# What a terminal would act on, in names from files, as JSON writes it: control characters, and orders of direction.
_ESCAPES = {
    code: f"\\u{code:04x}"
    for code in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if chr(code) not in "\t\n\r"
}


class LogFile:
    """Lines with the time (UTC) before each, in a file that stays open."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def start(self, line: str) -> None:
        """Add the first line; an OSError says that the file cannot be written."""
        self._write(line)

    def add(self, line: str) -> None:
        """Add a line; it is in the file at once, so that it can be followed and a killed command leaves it.

        If the file cannot be written any more, as on a full disk, it ends with a warning, and the command goes on.
        """
        if self._file.closed:
            return
        try:
            self._write(line)
        except OSError as error:
            with suppress(OSError):
                self._file.close()
            print(f"segkit: warning: {self._file.name}: the log ends here ({error.strerror})", file=sys.stderr)

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # of a full disk, which was said before
            self._file.close()

    def _write(self, line: str) -> None:
        self._file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n")
        self._file.flush()


class CommandStream:
    """Stands in for stdout or stderr; attributes that it lacks are those of the stream behind it.

    If nobody reads the stream any more (`segkit ... | head`), the command goes on without it. Control characters are
    escaped, so that a name in a file cannot command the terminal.

    Parameters
    ----------
    shown
        The stream behind it.
    holds_result
        Whether it is an error if the stream cannot be written, since its disk is full.

    Attributes
    ----------
    shown
        The stream behind it.
    silent
        Whether nothing is shown.
    log
        Gets each complete line, whether or not it is shown.
    """

    def __init__(self, shown: TextIO, *, holds_result: bool = False) -> None:
        self.shown, self._holds_result = shown, holds_result
        self.silent = False
        self.log: LogFile | None = None
        self._line = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shown, name)

    def write(self, text: str) -> int:
        """Show a text unless silent, and log the lines that it completes."""
        if not self.silent:
            self.show(text)
        if self.log is not None:
            *lines, self._line = (self._line + text.translate(_ESCAPES)).split("\n")
            for line in lines:
                self.log.add(line)
        return len(text)

    def show(self, text: str) -> None:
        """Show a text, also if the stream is silent, and do not log it."""
        with self._without_reader():
            self.shown.write(text.translate(_ESCAPES))

    def flush(self) -> None:
        """Show what was written so far."""
        with self._without_reader():
            self.shown.flush()

    @contextmanager
    def _without_reader(self) -> Iterator[None]:
        """Write what follows to nowhere if the stream cannot be written; raise an OSError if it holds a result."""
        try:
            yield
        except OSError as error:
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.shown.fileno())  # what is left in buffers can be written, too
                os.close(nowhere)
            if self._holds_result and not isinstance(error, BrokenPipeError):
                raise OSError(error.errno, error.strerror, "standard output") from error

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
