"""Results as values of JSON."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from enum import Enum
from typing import Any


def to_json(value: Any) -> Any:
    """Return dataclasses, mappings, lists, paths, arrays and tables as JSON has them; NaN and infinity become null."""
    if value is None or (isinstance(value, bool | int | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return to_json(value.value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(each) for key, each in value.items()}
    if isinstance(value, os.PathLike):
        return str(value)
    if hasattr(value, "tolist"):  # a number or an array of numpy
        return to_json(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(each) for each in value]
    if hasattr(value, "to_dict"):  # a table
        return to_json(value.to_dict("records"))
    raise TypeError(f"{type(value).__name__} has no form in JSON")
