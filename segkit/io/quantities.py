"""Parse areas and lengths that users write with a unit, such as "0.5ha"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from segkit.errors import UsageError

_AREAS = {"px": 1.0, "m2": 1.0, "m²": 1.0, "ha": 1e4, "km2": 1e6, "km²": 1e6}
_LENGTHS = {"px": 1.0, "m": 1.0, "km": 1e3}


@dataclass(frozen=True)
class Quantity:
    """A number of pixels (`pixels` is true), or of square metres or metres on the ground."""

    number: float
    pixels: bool


def parse_area(text: str, option: str) -> Quantity:
    """Parse an area such as "0.5ha", "5000m2" or "12px".

    Raises
    ------
    UsageError
        The text is not an area or has no unit; the message names `option`.
    """
    return _parse(text, option, _AREAS, "0.5ha, 5000m2 or 12px")


def parse_length(text: str, option: str) -> Quantity:
    """Parse a length such as "10m" or "1.5px".

    Raises
    ------
    UsageError
        The text is not a length or has no unit; the message names `option`.
    """
    return _parse(text, option, _LENGTHS, "10m or 1.5px")


def _parse(text: str, option: str, units: Mapping[str, float], examples: str) -> Quantity:
    # In Python the value may be a number, which has no unit either.
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(\D\S*)?\s*", str(text))
    if found is None:
        raise UsageError(f"{option} {text}: must be a number of at least 0 with a unit; write {examples}")
    number, unit = found.groups()
    if unit is None:
        raise UsageError(f"{option} {text}: has no unit; write {examples}")
    if unit not in units:
        raise UsageError(f"{option} {text}: unknown unit {unit}; the units are {', '.join(units)}: write {examples}")
    return Quantity(float(number) * units[unit], pixels=unit == "px")
