"""Options of all commands for what they print: --json, --quiet and --log."""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from segkit.errors import UsageError
from segkit.runtime.json_values import to_json
from segkit.runtime.streams import CommandStream, LogFile

_LOG_START = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")

_AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document, for programs.")]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only, and a result that was asked for.")]
_Log = Annotated[
    Path | None, typer.Option("--log", metavar="FILE", help="Also append all lines to this file, with their times.")
]
_OPTIONS: dict[str, tuple[Any, Any]] = {"as_json": (_AsJson, False), "quiet": (_Quiet, False), "log": (_Log, None)}


class Output:
    """The streams of a running command; made by `open_output`."""

    def __init__(self) -> None:
        self.out, self.err = CommandStream(sys.stdout, holds_result=True), CommandStream(sys.stderr)
        self.as_json = False

    def configure(self, *, as_json: bool, quiet: bool, log: Path | None, prints_result: bool) -> None:
        """Silence streams, and open the log."""
        self.as_json = as_json
        self.out.silent = as_json or (quiet and not prints_result)
        self.err.silent = quiet
        if log is not None:
            self.out.log = self.err.log = _open_log(log)

    def close(self, code: int) -> None:
        """Log the exit code, and close the log."""
        log = self.out.log
        for stream in (self.out, self.err):
            stream.end_log()
        self.err.flush()
        if log is not None:
            log.add(f"exit code {code}")
            log.close()


_running: Output | None = None


@contextmanager
def open_output() -> Iterator[Output]:
    """Put streams in the place of stdout and stderr that the options of a command can silence and log."""
    global _running
    streams, before = (sys.stdout, sys.stderr), _running
    _running = Output()
    sys.stdout, sys.stderr = _running.out, _running.err
    try:
        yield _running
    finally:
        sys.stdout, sys.stderr = streams
        _running = before


def show_result() -> None:
    """Show what is printed from here on with --quiet, too: with these options it is what was asked for."""
    if _running is not None:
        _running.out.silent = _running.as_json


def emit(result: Any) -> None:
    """Print the result of a command as JSON if that was asked for; every command calls this once.

    Parameters
    ----------
    result
        Dataclasses, dicts, lists, paths, arrays and numbers. NaN and infinity become null.
    """
    if _running is not None and _running.as_json:
        _running.out.show(json.dumps(to_json(result), indent=2, ensure_ascii=False) + "\n")


class CommandLine(typer.Typer):
    """Commands that all have the options of this module.

    A command with ``prints_result=True`` prints what was asked for, so it is printed with --quiet, too. The result of
    other commands are files.
    """

    def command(  # type: ignore[override]
        self, *names: str, prints_result: bool = False, **settings: Any
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Register a function as a command."""
        register = super().command(*names, **settings)

        def decorate(function: Callable[..., None]) -> Callable[..., None]:
            register(_with_options(function, prints_result=prints_result))
            return function

        return decorate


def _with_options(function: Callable[..., None], *, prints_result: bool) -> Callable[..., None]:
    """Return the function of a command with the options of this module."""

    @functools.wraps(function)
    def run(*, as_json: bool, quiet: bool, log: Path | None, **given: Any) -> None:
        if log is not None:
            _check_log(log, given)
        if _running is not None:
            _running.configure(as_json=as_json, quiet=quiet, log=log, prints_result=prints_result)
        function(**given)

    signature = inspect.signature(function, eval_str=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [each.replace(kind=keyword) for each in signature.parameters.values()]
    more = [
        inspect.Parameter(name, keyword, default=default, annotation=kind) for name, (kind, default) in _OPTIONS.items()
    ]
    run.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in (*own, *more)}
    return run


def _check_log(log: Path, given: Mapping[str, Any]) -> None:
    """Refuse a log file that is another file of the command."""
    values = [each for value in given.values() for each in (value if isinstance(value, list) else [value])]
    for value in values:
        if isinstance(value, str | Path) and os.path.realpath(value) == os.path.realpath(log):
            raise typer.BadParameter(f"{log} is another file of this command; name another one", param_hint="--log")


def _open_log(path: Path) -> LogFile:
    """Open a log to append to it; a file that is no log is refused."""
    from segkit.io.files import as_output_error, check_output
    from segkit.io.remote import redact

    target = check_output(path, overwrite=True)
    with as_output_error(target):
        if target.exists() and target.stat().st_size:
            with target.open("rb") as file:
                start = file.read(32).decode("ascii", "replace")
            if not _LOG_START.match(start):
                raise UsageError(f"{target} is there already and is no log of segkit; name another file for the log")
        log = LogFile(target.open("a", encoding="utf-8", errors="backslashreplace"))
        log.start(f"$ segkit {shlex.join(map(str, redact(sys.argv[1:])))}")
    return log
