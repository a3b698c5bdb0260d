"""Units: sizes and distances that a user writes with their unit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from segkit.errors import UsageError

_AREAS = {"px": 1.0, "m2": 1.0, "m²": 1.0, "ha": 1e4, "km2": 1e6, "km²": 1e6}
_LENGTHS = {"px": 1.0, "m": 1.0, "km": 1e3}


@dataclass(frozen=True)
class Quantity:
    """A number of pixels, or of square metres or metres on the ground."""

    number: float
    pixels: bool


def area(text: str, option: str) -> Quantity:
    """Read an area such as "0.5ha", "5000m2" or "12px".

    Raises
    ------
    UsageError
        It is none, or has no unit; `option` is named.
    """
    return _read(text, option, _AREAS, "0.5ha, 5000m2 or 12px")


def length(text: str, option: str) -> Quantity:
    """Read a length such as "10m" or "1.5px".

    Raises
    ------
    UsageError
        It is none, or has no unit; `option` is named.
    """
    return _read(text, option, _LENGTHS, "10m or 1.5px")


def _read(text: str, option: str, units: Mapping[str, float], examples: str) -> Quantity:
    # A number that is no text is refused like one, for it has no unit.
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(\D\S*)?\s*", str(text))
    if found is None:
        raise UsageError(f"{option} {text}: is no number of 0 or more with a unit; write {examples}")
    number, unit = found.groups()
    if unit is None:
        raise UsageError(f"{option} {text}: has no unit; write {examples}")
    if unit not in units:
        raise UsageError(f"{option} {text}: has the unit {unit}; known are {', '.join(units)}: write {examples}")
    return Quantity(float(number) * units[unit], pixels=unit == "px")
