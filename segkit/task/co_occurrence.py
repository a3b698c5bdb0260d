"""How often overlapping classes share a pixel, and how often they contradict the rules of their task."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segkit.task.declaration import TaskDeclaration
from segkit.task.relations import ABSENT, PRESENT


class CoOccurrence:
    """Counts how often overlapping classes share a pixel, and pixels that contradict the rules of their task.

    Attributes
    ----------
    both
        int64 (T, T): pixels of both classes; on the diagonal, those of one.
    known
        int64 (T, T): pixels of the class of the row where that of the column is labelled, too.
    contradictions
        int64 (R,): pixels that contradict each of `task.relations`.
    pixels, contradicting
        Pixels with a label, and those that contradict a rule.
    """

    def __init__(self, task: TaskDeclaration) -> None:
        self.task, size = task, task.n_targets
        self.both: NDArray[np.int64] = np.zeros((size, size), dtype=np.int64)
        self.known: NDArray[np.int64] = np.zeros((size, size), dtype=np.int64)
        self.contradictions: NDArray[np.int64] = np.zeros(len(task.relations), dtype=np.int64)
        self.pixels = self.contradicting = 0

    def add(self, targets: NDArray[np.integer[Any]]) -> None:
        """Count targets (T, ...), `IGNORE` where unlabelled."""
        flat = targets.reshape(len(targets), -1)
        present = (flat == PRESENT).astype(np.float64)  # products of floats are much faster, and exact up to 2^53
        self.both += (present @ present.T).astype(np.int64)
        self.known += (present @ (flat >= ABSENT).astype(np.float64).T).astype(np.int64)
        self.pixels += int((flat >= ABSENT).any(axis=0).sum())
        wrong = [relation.find_contradictions(flat) for relation in self.task.relations]
        if wrong:
            self.contradictions += np.array([each.sum() for each in wrong])
            self.contradicting += int(np.logical_or.reduce(wrong).sum())

    def merge(self, other: CoOccurrence) -> None:
        """Add the counts of another instance with the same task."""
        for name in ("both", "known", "contradictions", "pixels", "contradicting"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def shares(self) -> NDArray[np.float64]:
        """Return the share of the pixels of each class (row) that are also of another (column); NaN without any."""
        with np.errstate(invalid="ignore"):
            return np.where(self.known > 0, self.both / self.known, np.nan)

    def table(self) -> dict[str, dict[str, float | None]]:
        """Return `shares` by class names, {class: {other class: share}}; None without any pixel."""
        names = [one.name for one in self.task.classes]
        return {
            name: {other: None if np.isnan(value) else float(value) for other, value in zip(names, row, strict=True)}
            for name, row in zip(names, self.shares(), strict=True)
        }

    def summary(self) -> dict[str, Any]:
        """Return the pixels that contradict the rules, as a JSON value."""
        return {
            "pixels": self.contradicting,
            "share": self.contradicting / self.pixels if self.pixels else None,
            "rules": {
                relation.text: int(count)
                for relation, count in zip(self.task.relations, self.contradictions, strict=True)
            },
        }
