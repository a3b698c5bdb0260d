"""Every error that segkit raises on purpose.

::

    SegkitError                      the root: one clear line for the user
    +-- UsageError                   what was asked for cannot be done, a ValueError          exit code 2
    |   +-- TaskError                a task declaration that contradicts itself
    |   +-- RecipeError              a recipe, or an override of it
    |   +-- MissingFileError         also a FileNotFoundError
    |   +-- OutputExistsError        also a FileExistsError
    +-- DataError                    the files do not fit what they are used for, a ValueError exit code 1
    |   +-- RasterError              a raster that cannot be read, also an OSError
    |   +-- GridError                two grids that must be one
    |   +-- LabelError               codes, fields or geometries of labels
    |   +-- ModelFileError           a model file, or a scene that does not fit it
    +-- TrainingError                a loss or weight that is not a finite number             exit code 1
    +-- OutputError                  what was written could not be finished, an OSError       exit code 1
    +-- ClusterError                 a cluster that is lost, or work that failed on it        exit code 1
    +-- ScenesError                  some of several scenes; tells which, keeps the others'   exit code 1

A message says what was found, what the rule is and what to do, and names the file, band, code or field.

A builtin that has a layout of its own (OSError) is the first base: its `__new__` is the one that works, also where
errors are brought from other processes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
KEY = re.compile(r"(?<![\w./-])(?:task|data|model|train|labels)\.[a-z_]+")
RECIPE = "--set"  # an option of all commands that take a recipe, and only of those
_offered: Collection[str] | None = None


@contextmanager
def offering(options: Collection[str] | None) -> Iterator[None]:
    """Let `ways` give only advice that a command with these options can follow, while the block lasts."""
    global _offered
    before, _offered = _offered, options
    try:
        yield
    finally:
        _offered = before


def ways(*advice: str) -> str:
    """Return what the user can do as the end of a message: "; add --vrt, or convert the file".

    What names an option that the running command does not have, or a key of a recipe (data.bands) where it takes none,
    is left out. In Python, where options are parameters, all of it is given.
    """
    given = [one for one in advice if _offered is None or can_follow(one, _offered)]
    return "; " + ", or ".join(given) if given else ""


def can_follow(advice: str, options: Collection[str]) -> bool:
    """Whether a command with these options has all options and keys that an advice names."""
    return all(name in options for name in OPTION.findall(advice)) and (RECIPE in options or not KEY.search(advice))


class SegkitError(Exception):
    """Root of all errors that segkit raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(SegkitError, ValueError):
    """What was asked for cannot be done: an option, a path or a combination of them."""

    exit_code = 2


class TaskError(UsageError):
    """A task declaration that contradicts itself."""


class RecipeError(UsageError):
    """A recipe, or an override of it, that is not valid."""


class MissingFileError(FileNotFoundError, UsageError):
    """A file or folder that was named and is not there."""


class OutputExistsError(FileExistsError, UsageError):
    """The output is there already and may not be overwritten."""


class DataError(SegkitError, ValueError):
    """The files are there, but do not fit what they are used for."""


class RasterError(OSError, DataError):
    """A raster that cannot be opened or read."""


class GridError(DataError):
    """Two grids that must be one and are not."""


class LabelError(DataError):
    """Codes, fields or geometries of labels that the task does not know."""


class ModelFileError(DataError):
    """A model file that cannot be used, or a scene that does not fit the model."""


class TrainingError(SegkitError):
    """A training whose loss, gradients or weights are not finite numbers any more."""


class OutputError(OSError, SegkitError):
    """What was written could not be finished or verified."""


class ClusterError(SegkitError):
    """A cluster that is not there, or not any more, or what was set aside because it failed on one."""


class ScenesError(SegkitError):
    """Some of several scenes could not be done; `summaries` are those of the others."""

    def __init__(self, message: str, summaries: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.summaries = list(summaries)
