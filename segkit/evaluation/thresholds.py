"""Thresholds of classes, fitted on what a model says where the truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segkit.task.task import IGNORE, Task

# A power of two: multiplying by it and its edges are exact in every float, so that a bin holds exactly the
# probabilities from its edge on, as `Task.decide` compares them.
_BINS = 1024


class ThresholdFit:
    """Histograms of probabilities where a class is and where it is not, and the best threshold between them.

    Attributes
    ----------
    counts
        int64 (k, 2, 1024): class, whether a pixel is of it, bin of the probability; k is 0 where the highest
        probability decides. Those of several processes add up.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        classes = 0 if task.thresholds is None else len(task.classes)
        self.counts: NDArray[np.int64] = np.zeros((classes, 2, _BINS), dtype=np.int64)

    def add(self, probabilities: torch.Tensor | NDArray[np.floating[Any]], truth: NDArray[np.integer[Any]]) -> None:
        """Count pixels.

        Parameters
        ----------
        probabilities
            Of the channels, (C, ...), 0 to 1; where the truth is not known they may be anything.
        truth
            Category indices (P, ...), `IGNORE` where they are not known.
        """
        classes = len(self.counts)
        if not classes:
            return
        # The classes are the last channels: a softmax over two has background before.
        chances = torch.as_tensor(probabilities)[-classes:].detach().float().cpu().numpy()
        for position, (plane, category) in enumerate(self.task.speaks_for[-classes:]):
            known = truth[plane] != IGNORE
            place = np.minimum((chances[position][known] * _BINS).astype(np.int64), _BINS - 1)
            place += (truth[plane][known] == category) * _BINS
            self.counts[position] += np.bincount(place, minlength=2 * _BINS).reshape(2, _BINS)

    def fit(self) -> tuple[float, ...] | None:
        """Return the threshold of each class, or None where the highest probability decides.

        A threshold that the task states stays. An open one becomes that with the highest F1 score, which is also that
        with the highest IoU, among the multiples of 1/1024 strictly between 0 and 1. Where several are best, it is the
        middle of their run, farthest from what would change the score; of several runs the one whose middle is nearest
        to 0.5. A class that is nowhere or everywhere has nothing to fit, and 0.5.

        Each class is fitted for itself. In a one-vs-rest multiclass task a class must also be the most probable of
        those that reach their thresholds, which is not looked at: there the fit is best for each class against the
        rest, not for the map.
        """
        opens = self.task.open_thresholds
        if self.task.thresholds is None or opens is None:
            return None
        return tuple(
            _best(counts) if left_open else stated
            for stated, left_open, counts in zip(self.task.thresholds, opens, self.counts, strict=True)
        )


def _best(counts: NDArray[np.int64]) -> float:
    """Threshold with the highest F1, for the histograms (2, bins) of other and of own pixels."""
    if not counts.any(axis=1).all():
        return 0.5
    # Pixels at an edge or above, for the edges 1 to bins - 1.
    alarms, hits = counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    scores = 2 * hits / (hits + alarms + counts[1].sum())
    best = np.flatnonzero(scores == scores.max()) + 1
    runs = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    middles = np.array([(run[0] + run[-1]) // 2 for run in runs]) / _BINS
    return float(middles[np.abs(middles - 0.5).argmin()])
