"""The task declaration and what follows from it: channels, activation, targets, decision.

A new task type changes this package alone. `declaration` holds the fields and the layout of channels, `encoding` turns
labels into targets, `head` turns logits into decisions; `Task` has the methods of all three.
"""

from __future__ import annotations

import warnings
from typing import Any

from segkit.task.classes import BACKGROUND as BACKGROUND
from segkit.task.classes import LandCoverClass as LandCoverClass
from segkit.task.co_occurrence import CoOccurrence as CoOccurrence
from segkit.task.declaration import IGNORE as IGNORE
from segkit.task.task import Task as Task


def __getattr__(name: str) -> Any:
    """Return a class under its old name, for one release."""
    if name == "LandClass":
        warnings.warn("segkit.LandClass is now called segkit.LandCoverClass", DeprecationWarning, stacklevel=2)
        return LandCoverClass
    raise AttributeError(f"module 'segkit.task' has no attribute {name!r}")
