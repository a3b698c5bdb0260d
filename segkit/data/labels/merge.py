"""Several label sources of one scene, merged."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.labels.base import COUNT_WINDOW_PX, PartialLabels
from segkit.data.labels.fractions import FractionLabels
from segkit.errors import LabelError
from segkit.task import BACKGROUND, IGNORE
from segkit.task.encoding import SUM_TOLERANCE


@dataclass(frozen=True, eq=False)
class MergedLabels(PartialLabels):
    """The merged labels of several sources of one scene."""

    parts: tuple[PartialLabels, ...]

    def _read(self, window: Window) -> NDArray[Any]:
        if not self.soft:
            return super()._read(window)
        fractions = [part for part in self.parts if isinstance(part, FractionLabels)]
        rests = {part.rest for part in fractions}
        rest = next((one for one in ("ignore", "background") if one in rests), None)
        return self.task.encode_fractions(
            self._partial_labels(window),
            rest=rest,
            tolerance=max(part.tolerance for part in fractions),
            source=self.name,
        )

    def _partial_labels(self, window: Window) -> NDArray[Any]:
        merged, *others = (self._labels_of_part(part, window) for part in self.parts)
        for partial_labels in others:
            if _contradict(merged, partial_labels).any():
                self._raise_contradiction()
            merged = np.where(_unlabelled(merged), partial_labels, merged)
        return merged

    def _labels_of_part(self, part: PartialLabels, window: Window) -> NDArray[Any]:
        """Return the partial labels of a source; a present class makes mutually exclusive ones absent."""
        partial_labels = part._partial_labels(window)
        if self.soft or self.task.n_targets > 1:
            return partial_labels
        return np.where((partial_labels == IGNORE) & (partial_labels == 1).any(axis=0), np.int16(0), partial_labels)

    def _raise_contradiction(self) -> None:
        """Raise an error that counts the contradictions in the whole scene."""
        names = [*(one.name for one in self.task.classes), BACKGROUND]
        pixels: Counter[tuple[int, int]] = Counter()
        classes: dict[tuple[int, int], set[int]] = {}
        for window in self.grid.tiles(COUNT_WINDOW_PX):
            labels = [self._labels_of_part(part, window) for part in self.parts]
            for pair in itertools.combinations(range(len(labels)), 2):
                differ = _contradict(labels[pair[0]], labels[pair[1]])
                pixels[pair] += int(differ.any(axis=0).sum())
                classes.setdefault(pair, set()).update(np.flatnonzero(differ.any(axis=(1, 2))).tolist())
        (one, other), count = pixels.most_common(1)[0]
        listed = ", ".join(names[index] for index in sorted(classes[one, other]))
        raise LabelError(
            f"{self.parts[one].name} and {self.parts[other].name} contradict each other in {count} pixels (classes "
            f"{listed}); correct one of them, or cover each class by only one source (labels.classes); incomplete "
            "polygons need outside_polygons: ignore"
        )


def _unlabelled(partial_labels: NDArray[Any]) -> NDArray[np.bool_]:
    unlabelled: NDArray[np.bool_] = (
        np.isnan(partial_labels) if partial_labels.dtype.kind == "f" else partial_labels == IGNORE
    )
    return unlabelled


def _contradict(partial_labels: NDArray[Any], others: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where both are labelled, but differently."""
    differ: NDArray[np.bool_] = np.abs(partial_labels - others) > (
        SUM_TOLERANCE if partial_labels.dtype.kind == "f" else 0
    )
    return differ & ~_unlabelled(partial_labels) & ~_unlabelled(others)
