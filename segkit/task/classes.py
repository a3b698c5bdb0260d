"""The classes of a task: name, value in rasters, colour, threshold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ConfigDict

from segkit.errors import TaskError

BACKGROUND = "background"
MAX_VALUE = 65_534  # 65535 is the no-data value of 16-bit maps
BACKGROUND_COLOR = "#e8e8e8"


def map_nodata(max_value: int) -> int:
    """Return the no-data value of a map with values up to `max_value`: 255, or 65535 if a value is 255 or more."""
    return 255 if max_value < 255 else 65_535


def map_dtype(max_value: int) -> np.dtype[Any]:
    """Return the data type of a map with values up to `max_value`: uint8 or uint16."""
    return np.dtype("uint8" if map_nodata(max_value) == 255 else "uint16")


@dataclass(frozen=True)
class LandCoverClass:
    """One class of a task.

    Parameters
    ----------
    name
        Shown in maps, layers and metrics; spaces around it are removed, since values of fields are read without them.
    value
        Its code in label rasters and in the map, 0 to 65534.
    color
        "#rrggbb". By default that of its name (water is blue), or one from a palette for colour-blind readers.
    threshold
        Minimum probability for the class, between 0 and 1. Only for tasks that decide by threshold (see `Task`).

    Raises
    ------
    TaskError
        A value is out of range, or the name is empty.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    value: int
    color: str | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name.strip())
        if not self.name:
            raise TaskError("a class has an empty name; give each class a name")
        if not 0 <= self.value <= MAX_VALUE:
            raise TaskError(f"class {self.name!r} has value {self.value}; values are integers from 0 to {MAX_VALUE}")
        if self.color is not None and not re.fullmatch("#[0-9a-fA-F]{6}", self.color):
            raise TaskError(f"class {self.name!r} has color {self.color!r}; write it as '#rrggbb'")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise TaskError(f"class {self.name!r} has threshold {self.threshold}; it must lie between 0 and 1")
