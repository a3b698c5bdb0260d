"""The errors that segkit raises.

::

    SegkitError                      the root: one clear line for the user
    +-- UsageError                   an invalid argument or option, a ValueError              exit code 2
    |   +-- TaskError                a task declaration that contradicts itself
    |   +-- RecipeError              a recipe, or an override of it
    |   +-- MissingFileError         also a FileNotFoundError
    |   +-- OutputExistsError        also a FileExistsError
    +-- DataError                    files that cannot be used as requested, a ValueError     exit code 1
    |   +-- RasterError              a raster that cannot be read, also an OSError
    |   |   +-- UnreadableError      pixels of an open raster that cannot be read
    |   +-- GridError                two grids that must be equal and are not
    |   +-- LabelError               codes, fields or geometries of labels
    |   +-- ModelFileError           a model file, or a scene that does not match it
    +-- TrainingError                a loss or weight that is not a finite number             exit code 1
    +-- OutputError                  an output that could not be written, an OSError          exit code 1
    +-- ClusterError                 a cluster that is lost, or work that failed on it        exit code 1
    +-- ScenesError                  some of several scenes failed; has the others' summaries exit code 1

A message says what was found, what the rule is and what to do, and names the file, band, code or field.

OSError comes first among the bases, since it has its own memory layout: its `__new__` must be the one that is called,
also when errors are unpickled in another process.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

OPTION_PATTERN = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
KEY_PATTERN = re.compile(r"(?<![\w./-])(?:task|data|model|train|labels)\.[a-z_]+")
RECIPE_OPTION = "--set"  # exactly the commands that take a recipe have this option
_available_options: Collection[str] | None = None


@contextmanager
def limit_suggestions(options: Collection[str] | None) -> Iterator[None]:
    """Within the block, let `suggest` return only advice that applies to a command with these options."""
    global _available_options
    before, _available_options = _available_options, options
    try:
        yield
    finally:
        _available_options = before


def suggest(*advice: str) -> str:
    """Return advice for the user as the end of a message: "; add --vrt, or convert the file".

    Advice with an option that the running command does not have is left out, and so is advice with a recipe key
    (data.bands) if the command takes no recipe. In Python all advice is returned.
    """
    given = [one for one in advice if _available_options is None or is_applicable(one, _available_options)]
    return "; " + ", or ".join(given) if given else ""


def is_applicable(advice: str, options: Collection[str]) -> bool:
    """Return whether a command with these options has all options and recipe keys that the advice names."""
    has_options = all(name in options for name in OPTION_PATTERN.findall(advice))
    return has_options and (RECIPE_OPTION in options or not KEY_PATTERN.search(advice))


class SegkitError(Exception):
    """Root of all errors of segkit; `exit_code` is the exit code of the command line."""

    exit_code = 1


class UsageError(SegkitError, ValueError):
    """An invalid option or path, or an invalid combination of them."""

    exit_code = 2


class TaskError(UsageError):
    """A task declaration that contradicts itself."""


class RecipeError(UsageError):
    """An invalid recipe, or an invalid override of a key."""


class MissingFileError(FileNotFoundError, UsageError):
    """A file or folder that does not exist."""


class OutputExistsError(FileExistsError, UsageError):
    """The output exists and may not be overwritten."""


class DataError(SegkitError, ValueError):
    """Files that exist but cannot be used as requested."""


class RasterError(OSError, DataError):
    """A raster that cannot be opened or read."""


class UnreadableError(RasterError):
    """Pixels of an open raster that cannot be read."""


class GridError(DataError):
    """Two grids that must be equal and are not, or a grid that cannot be used as requested."""


class LabelError(DataError):
    """Codes, fields or geometries of labels that do not match the task."""


class ModelFileError(DataError):
    """A model file that cannot be used, or a scene that does not match the model."""


class TrainingError(SegkitError):
    """A training whose loss, gradients or weights are no longer finite numbers."""


class OutputError(OSError, SegkitError):
    """An output that could not be written or verified."""


class ClusterError(SegkitError):
    """A cluster that cannot be reached or was lost, or work that failed on it."""


class ScenesError(SegkitError):
    """Some of several scenes failed; `summaries` are those of the others."""

    def __init__(self, message: str, summaries: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.summaries = list(summaries)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
