"""Fit the decision threshold of each class on labelled pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segkit.evaluation.metrics import precision_recall_f1
from segkit.task import IGNORE, Task

# A power of two, so that the bin edges are exact in floating point and a bin holds exactly the probabilities for which
# `Task.decide` finds edge <= probability < next edge.
_N_BINS = 1024


class ThresholdFit:
    """Histograms of each class's probability in pixels with and without the class, and the best threshold.

    Attributes
    ----------
    counts
        int64 (classes, 2, 1024): class, absent or present, bin of the probability. No classes if the task decides by
        the highest probability. May be summed over processes.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        classes = 0 if task.thresholds is None else len(task.classes)
        self.counts: NDArray[np.int64] = np.zeros((classes, 2, _N_BINS), dtype=np.int64)

    def add(self, probabilities: torch.Tensor | NDArray[np.floating[Any]], truth: NDArray[np.integer[Any]]) -> None:
        """Count pixels.

        Parameters
        ----------
        probabilities
            (C, ...), 0 to 1; any value where unlabelled.
        truth
            Category indices (T, ...), `IGNORE` where unlabelled.
        """
        classes = len(self.counts)
        if not classes:
            return
        # The classes are the last channels: with softmax, a binary task has background as the first channel.
        class_probabilities = torch.as_tensor(probabilities)[-classes:].detach().float().cpu().numpy()
        for index, (target, category) in enumerate(self.task.channel_categories[-classes:]):
            labelled = truth[target] != IGNORE
            cell = np.minimum((class_probabilities[index][labelled] * _N_BINS).astype(np.int64), _N_BINS - 1)
            cell += (truth[target][labelled] == category) * _N_BINS
            self.counts[index] += np.bincount(cell, minlength=2 * _N_BINS).reshape(2, _N_BINS)

    def fit(self) -> tuple[float, ...] | None:
        """Return the threshold of each class; None if the task decides by the highest probability.

        Thresholds in the task are kept. Others are the multiple of 1/1024 between 0 and 1 (exclusive) with the highest
        F1, which also has the highest IoU. Of a range of equally good thresholds it is the middle; of several ranges
        the one whose middle is nearest to 0.5. If a class is present at no pixel or at all pixels, it is 0.5.

        Classes are fitted separately. In a multiclass task with a sigmoid head a class must also be the most probable
        of those above their thresholds. This is not considered, so the fit is optimal for each class against the rest,
        not for the map.
        """
        to_fit = self.task.thresholds_to_fit
        if self.task.thresholds is None or to_fit is None:
            return None
        return tuple(
            _best_threshold(counts) if fit else given
            for given, fit, counts in zip(self.task.thresholds, to_fit, self.counts, strict=True)
        )


def _best_threshold(counts: NDArray[np.int64]) -> float:
    """Return the threshold with the highest F1 for histograms (2, bins) of pixels without and with the class."""
    if not counts.any(axis=1).all():
        return 0.5
    # Pixels at or above an edge, for the edges 1 to bins - 1.
    false_positives, true_positives = counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    scores = precision_recall_f1(true_positives, true_positives + false_positives, true_positives, counts[1].sum())[
        "f1"
    ]
    best = np.flatnonzero(scores == scores.max()) + 1
    runs = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    middles = np.array([(run[0] + run[-1]) // 2 for run in runs]) / _N_BINS
    return float(middles[np.abs(middles - 0.5).argmin()])
