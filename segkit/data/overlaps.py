"""What `check` says of overlapping classes: which share pixels, and where labels contradict the rules of the task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from segkit.plots.text import format_percent
from segkit.runtime.tables import format_table
from segkit.task import CoOccurrence, Task


def add_up(task: Task, counted: Iterable[CoOccurrence | None]) -> CoOccurrence:
    """Return the counts of several scenes together; None is a scene that could not be read."""
    total = CoOccurrence(task)
    for one in counted:
        if one is not None:
            total.merge(one)
    return total


def render_table(part: str, total: CoOccurrence) -> Iterator[str]:
    """Yield the share of the pixels of each class that are of another one, too, and the rules of the task."""
    names = [one.name for one in total.task.classes]
    rows = [
        (f"  {name}", *("-" if np.isnan(share) else format_percent(share) for share in row))
        for name, row in zip(names, total.shares(), strict=True)
    ]
    yield format_table((f"{part}: pixels of ... that are also", *names), rows)
    for text, count in total.summary()["rules"].items():
        yield f"  {text}: {count:,} label pixels contradict this"


def describe_contradictions(name: str, counted: CoOccurrence | None) -> Iterator[str]:
    """Yield a warning for each rule that labels contradict; `name` is their file."""
    for text, count in ({} if counted is None else counted.summary()["rules"]).items():
        if count:
            yield (
                f"{name}: {count:,} label pixels contradict the rule that {text}; correct the labels, or task.never "
                "and task.implies"
            )
