"""Run the command line: signals, streams, errors as one line, exit codes.

Each command parses its options, calls one function of the library and prints the result. Libraries are imported inside
the commands, so that ``segkit --help`` answers at once.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import typer
from typer.exceptions import Abort, TyperException

import segkit.cli.assess
import segkit.cli.auditing
import segkit.cli.demo
import segkit.cli.exporting
import segkit.cli.finished_maps
import segkit.cli.information
import segkit.cli.labelling
import segkit.cli.mapping
import segkit.cli.training  # noqa: F401 - these register their commands
from segkit.cli.output import open_output
from segkit.cli.root import RENAMED_OPTIONS, Stopped, app, assess_app
from segkit.errors import KEY_PATTERN, RECIPE_OPTION, SegkitError, limit_suggestions
from segkit.runtime.extras import describe_missing_package
from segkit.runtime.streams import CommandStream

# What a shell expects after a signal, and after that of Ctrl-C.
_SIGNALLED, _INTERRUPTED = 128, 130
_SAME_SIGNAL_SECONDS = 2
# What an interrupted command leaves, and how to continue, if it does not tell itself.
_KEPT = {
    "train": "nothing has changed; run the same command again",
    "finish": "finished epochs are kept; run the same command again",
    "compare": "finished trainings are kept; run the same command again to continue",
    "predict": "finished parts are kept; run the same command again to continue",
}
# Commands that load torch or numba, which take up to seconds, and the libraries of which they load one first.
_SLOW_COMMANDS = {
    "check", "compare", "demo", "evaluate", "export", "finish", "predict", "report", "train", "vectorize",
}  # fmt: skip
_FIRST_LIBRARIES = {"lightning", "numpy", "torch"}
# What libraries say when they get no memory, in lower case.
_NO_MEMORY = (
    "allocate memory", "alloc_cpu", "failed to map segment", "out of memory", "not enough memory",
    "can't start new thread",
)  # fmt: skip


def main() -> None:
    """Run the command line; a traceback only on --debug.

    Exit codes: 2 for usage, 1 for a failed job, 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """
    debug = "--debug" in sys.argv
    _open_streams()
    _find_folders()
    if not debug:
        os.environ.setdefault("CPL_LOG", os.devnull)  # what GDAL prints besides the errors that it raises
    warnings.showwarning = _warn
    with _ended_by_signals() as received, _without_log_errors(), open_output() as output:
        arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
        code, kept = 1, _KEPT.get(" ".join(arguments[:1]), "no partial output is left")
        try:
            try:
                with _announce_loading(arguments):
                    code = _run(arguments, debug=debug)
            except Stopped as stopped:
                code, kept = _INTERRUPTED, str(stopped) or kept
            if received:
                code = _SIGNALLED + received[0]
            if code == _INTERRUPTED or received:  # typer makes this code of Ctrl-C itself
                what = f"ended by {signal.Signals(received[0]).name}" if received else "interrupted"
                _fail(f"{what}; {kept}", code)
        finally:
            output.close(code)
        sys.exit(code)


@contextmanager
def _without_log_errors() -> Iterator[None]:
    """Do not print that rasterio cannot decode a text of a damaged file that GDAL would log; Cython uses both hooks."""
    hook, unraisable_hook = sys.excepthook, sys.unraisablehook

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if not isinstance(error, UnicodeDecodeError):
            hook(kind, error, traceback)

    def show_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, UnicodeDecodeError):
            unraisable_hook(unraisable)

    sys.excepthook, sys.unraisablehook = show, show_unraisable
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = hook, unraisable_hook


@contextmanager
def _announce_loading(arguments: Sequence[str]) -> Iterator[None]:
    """Print a line on stderr as soon as a slow command starts to load its libraries, if they are not loaded yet."""
    if not _SLOW_COMMANDS.intersection(arguments[:1]) or not _is_first_process():
        yield
        return
    finder = _LoadingNotice()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)


class _LoadingNotice(MetaPathFinder):
    """Finds no module, but is asked for each that is loaded; prints a line at the first slow one."""

    def __init__(self) -> None:
        self._is_shown = False

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname in _FIRST_LIBRARIES and not self._is_shown:
            self._is_shown = True  # not taken out of the list here, over which Python iterates
            print("segkit: loading libraries ...", file=_messages(), flush=True)


def _is_first_process() -> bool:
    """Whether this is not one of the further processes of a training on several devices."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def _run(arguments: list[str], *, debug: bool) -> int:
    """Run a command, print what went wrong in one line, and return the exit code."""
    options = _options(arguments)
    arguments = _with_new_names(arguments, options)
    try:
        with limit_suggestions(options):
            code = _command()(args=arguments, prog_name="segkit", standalone_mode=False) or 0
            sys.stdout.flush()
            return int(code)
    except (KeyboardInterrupt, Abort):
        return _INTERRUPTED
    except TyperException as error:
        command, below = [*(argument for argument in arguments if not argument.startswith("-")), "", ""][:2]
        command += f" {below}" if f"{command} {below}" in _commands() else ""
        help_ = f"segkit {command} --help" if command in _commands() else "segkit --help"
        return _fail(f"{error.format_message().rstrip('.')}{_all_arguments(error)}; see {help_}", error.exit_code)
    except SegkitError as error:
        if debug:
            raise
        return _fail(str(error) + _about_keys(str(error), options), error.exit_code)
    except Exception as error:
        if debug:
            raise
        return _fail(_unforeseen(error), 1)


_BRACES = str.maketrans("", "", "{}")  # in which the usage has arguments that are required


def _all_arguments(error: TyperException) -> str:
    """If an argument is missing, list all: a single one is taken for the last, behind a list of files."""
    context = getattr(error, "ctx", None)
    if context is None or not error.format_message().startswith("Missing argument"):
        return ""
    found = [one.translate(_BRACES) for one in context.command.collect_usage_pieces(context) if one != "[OPTIONS]"]
    return f" (of {' '.join(found)})" if len(found) > 1 else ""


def _with_new_names(arguments: list[str], options: set[str]) -> list[str]:
    """Replace options of segkit 0.2 that the command has under another name, with a hint."""
    renamed = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        new = RENAMED_OPTIONS.get(name)
        if new in options and name not in options:
            _warn(f"{name} is now called {new}; the old name goes with segkit 0.4")
            argument = f"{new}{equals}{value}"
        renamed.append(argument)
    return renamed


def _unforeseen(error: Exception) -> str:
    """Return the message for an error of another library or of the system: no memory, no space, a bug."""
    text = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY):
        return (
            f"not enough memory{f' ({text})' if text else ''}; free some, raise the limit (ulimit -v), or ask for less"
        )
    if isinstance(error, OSError) and error.strerror:
        from segkit.io.files import describe_error

        named = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{named}{describe_error(error, Path())}"
    if isinstance(error, ModuleNotFoundError) and (missing := describe_missing_package(error)):
        return missing
    if isinstance(error, UnicodeError):
        return f"a name or text is not in the encoding of this locale: {text}; rename it, or set PYTHONUTF8=1"
    return f"unexpected {type(error).__name__}: {text}; run again with --debug to see where"


@contextmanager
def _ended_by_signals() -> Iterator[list[int]]:
    """End a command on SIGTERM and SIGHUP as on Ctrl-C; yields the list of signals received.

    Signals that are ignored (nohup) or that a host process handles are left alone. A second signal that follows at
    once, as when a terminal is closed, does not interrupt the clean-up after the first.
    """
    received: list[int] = []
    latest = 0.0

    def end(number: int, _: Any) -> None:
        nonlocal latest
        before, latest = latest, time.monotonic()
        received.append(number)
        if len(received) == 1 or latest - before > _SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handled = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in handled:
        signal.signal(number, end)
    try:
        yield received
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def _open_streams() -> None:
    """Open those of stdin, stdout and stderr that are closed; else messages of libraries go to the next opened file.

    Characters that cannot be encoded are escaped.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _find_folders() -> None:
    """Give matplotlib, Hugging Face and torch writable folders if their default ones are not writable."""
    from segkit.io.files import home_folder, private_folder

    home = home_folder()
    os.environ.setdefault("HOME", str(home))
    config, cache = (
        Path(os.environ.get(name) or home / own)
        for name, own in (("XDG_CONFIG_HOME", ".config"), ("XDG_CACHE_HOME", ".cache"))
    )
    for variable, folders in {
        "MPLCONFIGDIR": (config / "matplotlib", cache / "matplotlib"),
        "HF_HOME": (cache / "huggingface",),
        "TORCH_HOME": (cache / "torch",),
    }.items():
        unusable = variable not in os.environ and not all(map(_can_be_written, folders))
        if unusable and (private := private_folder()) is not None:
            os.environ[variable] = str(private / folders[0].name)


def _can_be_written(folder: Path) -> bool:
    """Whether a folder, or its nearest existing parent, is writable."""
    try:
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    except OSError:  # another user's
        return False
    return os.access(there, os.W_OK)


@functools.cache
def _command() -> Any:
    """Return the whole command line; it is put together once, which takes a part of the time of `segkit --help`."""
    return typer.main.get_command(app)


def _options(arguments: Sequence[str]) -> set[str]:
    """Return the options of the command that the arguments name."""
    command = _command()
    for argument in arguments:
        command = getattr(command, "commands", {}).get(argument, command)
    return {option for parameter in command.params for option in parameter.opts}


def _about_keys(message: str, options: set[str]) -> str:
    """If a message names keys of the recipe, explain that this command takes no recipe."""
    keys = [] if RECIPE_OPTION in options else sorted(set(KEY_PATTERN.findall(message)) & _keys())
    if "--set-labels" in options:  # which takes the keys of labels
        keys = [key for key in keys if not key.startswith("labels.")]
    if not keys:
        return ""
    named = f"{keys[0]} is a key" if len(keys) == 1 else f"{' and '.join(keys)} are keys"
    of_maps = "; of a map, --ignore CODE does what data.ignore does" if "--ignore" in options else ""
    return (
        f" ({named} of the recipe, which this command does not take: change the files, or change the recipe and "
        f"train again{of_maps if 'data.ignore' in keys else ''})"
    )


def _keys() -> set[str]:
    """Return the keys that messages name: data.bands, labels.values."""
    import dataclasses

    from pydantic import BaseModel

    from segkit.recipe.label_source import LabelSource
    from segkit.recipe.schema import Data, Model, Train
    from segkit.task import Task

    parts: dict[str, type[BaseModel]] = {"data": Data, "labels": LabelSource, "model": Model, "train": Train}
    names = {f"{part}.{name}" for part, kind in parts.items() for name in kind.model_fields}
    return names | {f"task.{field.name}" for field in dataclasses.fields(Task)}


def _commands() -> set[str]:
    own = {command.callback.__name__ for command in app.registered_commands if command.callback is not None}
    return own | {"assess"} | {f"assess {command.name}" for command in assess_app.registered_commands}


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as one line, without the place in the code."""
    print(f"segkit: warning: {message}", file=_messages())


def _fail(message: str, code: int) -> int:
    stream, line = _messages(), f"segkit: {message}"
    if isinstance(stream, CommandStream):
        stream.print_always(line)
    else:
        print(line, file=stream)
    return code


def _messages() -> TextIO:
    """Return the stream of errors and warnings: stderr, or stdout if stderr was closed from the start."""
    return sys.stdout if sys.__stderr__ is None else sys.stderr


if __name__ == "__main__":
    main()
