"""Agreement of two labellers: Cohen's kappa of each class, in areas of ground that both labelled."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import shapely

from segkit.labelling.partition import Partition, clip, disagreement


@dataclass(frozen=True)
class Agreement:
    """Agreement of two files on the ground that both label.

    Parameters
    ----------
    one, other
        The files.
    area
        Ground that both label, in hectares (in pixels without a CRS).
    differing
        Part of it on which they differ in any class.
    kappa
        {class: Cohen's kappa of its presence, from areas}; NaN where neither or both have the class everywhere.
    """

    one: str
    other: str
    area: float
    differing: float
    kappa: dict[str, float]


class AgreementTally:
    """Sums the areas on which two files agree and differ, window by window."""

    def __init__(self, one: str, other: str) -> None:
        self._names = one, other
        self._area = self._differing = 0.0
        self._tables: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((2, 2)))

    def add(self, one: Partition, other: Partition, scale: float) -> None:
        """Add the ground that two windows share; `scale` is hectares per unit of area."""
        common = clip(one.labelled, other.labelled)
        area = common.area * scale
        self._area += area
        self._differing += disagreement(one, other).area * scale
        for name in one.present:
            first, second = (clip(each.present[name], common) for each in (one, other))
            both = clip(first, second).area * scale
            alone = first.area * scale - both, second.area * scale - both
            self._tables[name] += np.array([[both, alone[0]], [alone[1], area - both - sum(alone)]])

    def result(self) -> Agreement | None:
        """Return the agreement; None if no ground is shared."""
        if not self._area > 0:
            return None
        kappa = {name: cohen_kappa(table) for name, table in self._tables.items()}
        return Agreement(*self._names, self._area, self._differing, kappa)


def cohen_kappa(table: np.ndarray) -> float:
    """Return Cohen's kappa (1960) of a table of areas, (rows: one rater, columns: the other); NaN if chance is 1."""
    shares = table / table.sum()
    observed, chance = np.trace(shares), float(shares.sum(axis=1) @ shares.sum(axis=0))
    return float((observed - chance) / (1 - chance)) if chance < 1 - 1e-12 else float("nan")


def share_ground(one: Partition, other: Partition) -> bool:
    """Return whether two windows label common ground."""
    return bool(shapely.intersects(one.labelled, other.labelled)) and clip(one.labelled, other.labelled).area > 0
