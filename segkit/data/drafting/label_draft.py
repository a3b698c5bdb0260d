"""What a recipe says about its labels, as found in the label files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from segkit.task.colors import default_colors

# Names of values that say that a pixel or polygon has no known class.
_UNLABELLED = re.compile(
    r"(un|not )(known|labelled|labeled|classified|certain)|no ?data|nan|null|void|ignore|missing|n/?a|-*", re.IGNORECASE
)
_NOTHING = re.compile(r"background|none|nothing|no class", re.IGNORECASE)
MAX_CLASSES = 64  # more values than this are not classes


@dataclass(frozen=True)
class LabelDraft:
    """The task and the keys of the labels.

    Parameters
    ----------
    task
        Keys of the task.
    labels
        Keys of the labels besides their path.
    reason
        Why this type of task.
    notes
        What was assumed, for the user.
    counts
        {class: "11 polygons"}.
    ignore
        Label codes of unlabelled pixels.
    unit
        What a split keeps together, if the labels are sparse: polygons or points.
    """

    task: dict[str, Any]
    labels: dict[str, Any]
    reason: str
    notes: tuple[str, ...] = ()
    counts: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[int, ...] = ()
    unit: Literal["block", "polygon", "point"] = "block"


def is_unlabelled(name: str | None) -> bool:
    """Return whether a name says that the class is not known."""
    return name is None or _UNLABELLED.fullmatch(name.strip()) is not None


def is_background(name: str) -> bool:
    """Return whether a name says that a pixel is in none of the classes."""
    return _NOTHING.fullmatch(name.strip()) is not None


def class_rows(
    names: Sequence[str], values: Iterable[int], colors: Sequence[str | None] | None = None
) -> list[dict[str, Any]]:
    """Return the classes of a task with their colours."""
    found = default_colors(names, colors or ())
    return [
        {"name": name, "value": value, "color": color} for name, value, color in zip(names, values, found, strict=True)
    ]
