"""Metrics: one accumulator of int64 counts, from which every metric derives.

Counts are added tile by tile and scene by scene, so a metric is that of all pixels together and never a mean of means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segkit.task.task import IGNORE, Task

_BINS = 15  # equal-width bins of confidence: Guo et al. 2017, "On Calibration of Modern Neural Networks"


class Confusion:
    """Confusion of decided and true categories, and the reliability of the confidence in them.

    Attributes
    ----------
    counts
        int64 (P, K, K): plane, true category, decided category.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        size = len(task.categories)
        self.counts: NDArray[np.int64] = np.zeros((task.planes, size, size), dtype=np.int64)
        # What was decided how surely: pixels, summed confidence and right decisions per bin.
        self._bins = np.zeros((_BINS, 3), dtype=np.float64)

    def add(
        self,
        decided: NDArray[np.integer[Any]],
        truth: NDArray[np.integer[Any]],
        confidence: NDArray[np.floating[Any]] | None = None,
    ) -> None:
        """Count pixels.

        Parameters
        ----------
        decided, truth
            Category indices (P, ...) of one shape; where the truth is not known nothing is counted.
        confidence
            Probability of what was decided, of the same shape; without it there is no calibration error.
        """
        known = truth != IGNORE
        size = self.counts.shape[1]
        for plane in range(self.task.planes):
            here = known[plane]
            pairs = truth[plane][here].astype(np.int64) * size + decided[plane][here].astype(np.int64)
            self.counts[plane] += np.bincount(pairs, minlength=size * size).reshape(size, size)
        if confidence is not None:
            self._bins += _binned(confidence[known].astype(np.float64), (decided == truth)[known])

    def merge(self, other: Confusion) -> None:
        """Add what another accumulator of the same task counted."""
        self.counts += other.counts
        self._bins += other._bins

    def per_class(self) -> dict[str, dict[str, float | int | None]]:
        """Return IoU, F1, precision, recall and support (true pixels) by name; None where a score is undefined.

        IoU and F1 of a class without true pixels are undefined, also where it was decided: they would be 0 for one
        wrong pixel as for a million. So such a class takes no part in the means; the pixels that were wrongly decided
        as it count against the classes that they are of, and make its precision 0.
        """
        return {name: _scores(self.counts[plane], category) for name, plane, category in self.task.scored}

    def summary(self) -> dict[str, Any]:
        """Return everything that was counted, ready for `metrics.json`; None where a score is undefined.

        ``pixels`` counts decisions: one a pixel, or one a pixel and class where classes overlap. ``confusion.matrix``
        has true categories as rows and decided ones as columns; where classes overlap it is a list of one
        [[absent, false alarm], [missed, hit]] matrix per class.
        """
        per_class = self.per_class()
        pixels = int(self.counts.sum())
        right = int(np.trace(self.counts, axis1=1, axis2=2).sum())
        matrices = self.counts.tolist()
        exclusive = len(per_class) == len(matrices) * len(self.task.categories)
        return {
            "overall_accuracy": right / pixels if pixels else None,
            "mean_iou": _mean([scores["iou"] for scores in per_class.values()]),
            "macro_f1": _mean([scores["f1"] for scores in per_class.values()]),
            "ece": _calibration_error(self._bins),
            "pixels": pixels,
            "per_class": per_class,
            "confusion": {
                "labels": list(per_class),
                "matrix": matrices[0] if exclusive else matrices,
            },
        }

    def reliability(self) -> dict[str, list[Any]]:
        """Return what was decided how surely, by bins of equal width: mean confidence, share that is right, pixels."""
        return _curve(self._bins, "confidence", "right")


class Reliability:
    """What each channel's probability says beside how often it is so, and the Brier score.

    With softmax the Brier score is the mean over pixels of the squared differences of all channels, 0 to 2 (Brier
    1950); with sigmoid that of each class alone, 0 to 1, and their mean.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        # Channel, bin: pixels, summed probability, pixels of the category.
        self._bins = np.zeros((task.channels, _BINS, 3))
        self._squares = np.zeros(task.channels)

    def add(self, probabilities: NDArray[np.floating[Any]], truth: NDArray[np.integer[Any]]) -> None:
        """Count pixels: probabilities (C, ...), target planes (P, ...), `IGNORE` where the truth is not known."""
        for channel, (plane, category) in enumerate(self._task.speaks_for):
            known = truth[plane] != IGNORE
            said = probabilities[channel][known].astype(np.float64)
            true = truth[plane][known] == category
            self._bins[channel] += _binned(said, true)
            self._squares[channel] += float(((said - true) ** 2).sum())

    def brier(self) -> float | None:
        """Return the Brier score, None where nothing was counted."""
        if self._task.channels_compete:
            return _share(self._squares.sum(), self._bins[0, :, 0].sum())
        return _mean([one["brier"] for one in self.per_channel().values()])

    def per_channel(self) -> dict[str, dict[str, Any]]:
        """Return Brier score, calibration error and the reliability curve of each channel's category by name."""
        found: dict[str, dict[str, Any]] = {}
        for name, bins, squares in zip(self._task.channel_names, self._bins, self._squares, strict=True):
            found[name] = {
                "brier": _share(squares, bins[:, 0].sum()),
                "ece": _calibration_error(bins),
                "reliability": _curve(bins, "probability", "share"),
            }
        return found


def _binned(said: NDArray[np.float64], true: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return for each bin of what was said: pixels, the sum of what was said, and how many were so."""
    place = np.minimum((said * _BINS).astype(np.int64), _BINS - 1)
    return np.stack([np.bincount(place, column, minlength=_BINS) for column in (None, said, true)], axis=1)


def _calibration_error(bins: NDArray[np.float64]) -> float | None:
    """Expected calibration error: mean |share that is so - what was said| of the bins, weighted by their pixels."""
    pixels, said, true = bins.T
    return _share(np.abs(true - said).sum(), pixels.sum())


def _curve(bins: NDArray[np.float64], said_name: str, true_name: str) -> dict[str, list[Any]]:
    """Return the means of what was said and of what was so in each bin, and its pixels."""
    pixels, said, true = bins.T
    return {
        said_name: [_share(*pair) for pair in zip(said, pixels, strict=True)],
        true_name: [_share(*pair) for pair in zip(true, pixels, strict=True)],
        "pixels": pixels.astype(np.int64).tolist(),
    }


def disagreement(matrix: NDArray[Any]) -> tuple[float, float]:
    """Return quantity and allocation disagreement, which together are the share that is wrong.

    Parameters
    ----------
    matrix
        (K, K): counts or shares of pairs of decided and true categories, either way round.

    Returns
    -------
    (quantity, allocation): what is wrong because the categories' sizes are, and what is at the wrong place
    (Pontius and Millones 2011, "Death to Kappa"); NaN where nothing was counted.
    """
    shares = matrix / matrix.sum() if matrix.sum() else np.full(matrix.shape, np.nan)
    rows, columns, same = shares.sum(axis=1), shares.sum(axis=0), np.diagonal(shares)
    quantity = np.abs(rows - columns).sum() / 2
    return float(quantity), float(np.minimum(rows - same, columns - same).sum())


def _scores(counts: NDArray[np.int64], category: int) -> dict[str, float | int | None]:
    hit = int(counts[category, category])
    called, support = int(counts[:, category].sum()), int(counts[category].sum())
    return {
        "iou": _ratio(hit, called + support - hit) if support else None,
        "f1": _ratio(2 * hit, called + support) if support else None,
        "precision": _ratio(hit, called),
        "recall": _ratio(hit, support),
        "support": support,
    }


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Sequence[float | int | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
