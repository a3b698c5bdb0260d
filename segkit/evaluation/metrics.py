"""Metrics from int64 counts.

Counts are summed over tiles and scenes, so a metric is computed over all pixels together, never as a mean of means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segkit.task import IGNORE, Task

_N_BINS = 15  # equal-width bins of confidence: Guo et al. 2017, "On Calibration of Modern Neural Networks"


class Confusion:
    """Confusion matrix of each target, and the reliability of the confidence.

    Attributes
    ----------
    counts
        int64 (T, K, K): target, true category, predicted category.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        size = len(task.categories)
        self.counts: NDArray[np.int64] = np.zeros((task.n_targets, size, size), dtype=np.int64)
        self._bins = np.zeros((_N_BINS, 3), dtype=np.float64)  # pixels, summed confidence, correct pixels

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
            Category indices (T, ...) of one shape. Pixels with `IGNORE` in the truth are not counted.
        confidence
            Probability of the decided category, of the same shape; without it the calibration error is None.
        """
        labelled = truth != IGNORE
        size = self.counts.shape[1]
        for target in range(self.task.n_targets):
            here = labelled[target]
            pairs = truth[target][here].astype(np.int64) * size + decided[target][here].astype(np.int64)
            self.counts[target] += np.bincount(pairs, minlength=size * size).reshape(size, size)
        if confidence is not None:
            self._bins += _bin_counts(confidence[labelled].astype(np.float64), (decided == truth)[labelled])

    def merge(self, other: Confusion) -> None:
        """Add the counts of another instance with the same task."""
        self.counts += other.counts
        self._bins += other._bins

    def per_class(self) -> dict[str, dict[str, float | int | None]]:
        """Return IoU, F1, precision, recall and support (true pixels) by class name; None if a score is undefined.

        IoU and F1 of a class without true pixels are undefined even if it was predicted: they would be 0 for one
        wrong pixel as for a million. Such a class is left out of the means. Its wrongly predicted pixels count against
        the classes that they belong to, and make its precision 0.
        """
        per_class: dict[str, dict[str, float | int | None]] = {}
        for name, (correct, predicted, true) in category_counts(self.task, self.counts):
            scores = class_scores(correct, predicted, true)
            per_class[name] = {key: float_or_none(value) for key, value in scores.items()} | {"support": int(true)}
        return per_class

    def summary(self) -> dict[str, Any]:
        """Return all scores, as in `metrics.json`; None if a score is undefined.

        ``pixels`` counts decisions: one per pixel, or one per pixel and class if classes overlap. ``confusion.matrix``
        has true categories as rows and predicted ones as columns. If classes overlap, it is a list of 2 x 2 matrices
        ``[[true negatives, false positives], [false negatives, true positives]]``, one per class.
        """
        per_class = self.per_class()
        pixels = int(self.counts.sum())
        correct = int(np.trace(self.counts, axis1=1, axis2=2).sum())
        matrices = self.counts.tolist()
        exclusive = len(per_class) == len(matrices) * len(self.task.categories)
        return {
            "overall_accuracy": correct / pixels if pixels else None,
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
        """Return the reliability diagram: mean confidence, share of correct pixels and number of pixels per bin."""
        return _reliability_curve(self._bins, "confidence", "right")


class Reliability:
    """Reliability diagram of each channel's probability, and the Brier score.

    With softmax the Brier score is the mean over pixels of the squared differences summed over channels, 0 to 2 (Brier
    1950). With sigmoid each class has a score of its own, 0 to 1, and the result is their mean.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        # Channel, bin: pixels, summed probability, pixels of the category.
        self._bins = np.zeros((task.channels, _N_BINS, 3))
        self._squares = np.zeros(task.channels)

    def add(self, probabilities: NDArray[np.floating[Any]], truth: NDArray[np.integer[Any]]) -> None:
        """Count pixels: probabilities (C, ...) and targets (T, ...), `IGNORE` where unlabelled."""
        for channel, (target, category) in enumerate(self._task.channel_categories):
            labelled = truth[target] != IGNORE
            probability = probabilities[channel][labelled].astype(np.float64)
            present = truth[target][labelled] == category
            self._bins[channel] += _bin_counts(probability, present)
            self._squares[channel] += float(((probability - present) ** 2).sum())

    def brier(self) -> float | None:
        """Return the Brier score; None if no pixel was counted."""
        if self._task.is_softmax:
            return _divide(self._squares.sum(), self._bins[0, :, 0].sum())
        return _mean([channel["brier"] for channel in self.per_channel().values()])

    def per_channel(self) -> dict[str, dict[str, Any]]:
        """Return Brier score, calibration error and reliability diagram of each channel by name."""
        channels: dict[str, dict[str, Any]] = {}
        for name, bins, squares in zip(self._task.channel_names, self._bins, self._squares, strict=True):
            channels[name] = {
                "brier": _divide(squares, bins[:, 0].sum()),
                "ece": _calibration_error(bins),
                "reliability": _reliability_curve(bins, "probability", "share"),
            }
        return channels


def category_counts(
    task: Task, counts: NDArray[np.int64]
) -> list[tuple[str, tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]]:
    """Return (name, (correct, predicted, true)) of each scored category, in pixels.

    Parameters
    ----------
    counts
        int64 (..., T, K, K): confusion matrices. The results have the shape of the leading axes.
    """
    return [
        (
            name,
            (
                counts[..., target, category, category],
                counts[..., target, :, category].sum(axis=-1),
                counts[..., target, category, :].sum(axis=-1),
            ),
        )
        for name, target, category in task.scored_categories
    ]


def class_scores(correct: ArrayLike, predicted: ArrayLike, true: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Return IoU, F1, precision and recall from pixel counts of one shape; NaN where undefined.

    IoU and F1 are undefined where there are no true pixels (see `Confusion.per_class`).
    """
    correct, predicted, true = (np.asarray(each) for each in (correct, predicted, true))
    occurs = np.where(true > 0, 1.0, np.nan)
    scores = precision_recall_f1(correct, predicted, correct, true)
    return {
        "iou": occurs * ratio(correct, predicted + true - correct),
        "f1": occurs * scores["f1"],
        "precision": scores["precision"],
        "recall": scores["recall"],
    }


def precision_recall_f1(
    matched_predicted: ArrayLike, predicted: ArrayLike, matched_true: ArrayLike, true: ArrayLike
) -> dict[str, NDArray[np.float64]]:
    """Return precision, recall and F1 from counts of one shape; NaN where undefined.

    Predicted and true items are matched separately: pixels have the same number of matches on both sides, objects and
    contours need not. F1 is the share of both sides together, which is the harmonic mean if the numbers are the same.
    """
    matched_predicted, predicted, matched_true, true = (
        np.asarray(each) for each in (matched_predicted, predicted, matched_true, true)
    )
    return {
        "precision": ratio(matched_predicted, predicted),
        "recall": ratio(matched_true, true),
        "f1": ratio(matched_predicted + matched_true, predicted + true),
    }


def ratio(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    """Divide counts; NaN where `whole` is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(whole) == 0, np.nan, np.true_divide(part, whole))


def float_or_none(value: float | NDArray[np.float64]) -> float | None:
    """Return a number for JSON: None for NaN."""
    number = float(value)
    return None if math.isnan(number) else number


def _bin_counts(probability: NDArray[np.float64], true: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return for each bin of probability (bins, 3): pixels, summed probability, pixels that are true."""
    index = np.minimum((probability * _N_BINS).astype(np.int64), _N_BINS - 1)
    return np.stack([np.bincount(index, weights, minlength=_N_BINS) for weights in (None, probability, true)], axis=1)


def _calibration_error(bins: NDArray[np.float64]) -> float | None:
    """Expected calibration error: mean |observed frequency - probability| of the bins, weighted by their pixels."""
    pixels, probability, true = bins.T
    return _divide(np.abs(true - probability).sum(), pixels.sum())


def _reliability_curve(bins: NDArray[np.float64], probability_key: str, true_key: str) -> dict[str, list[Any]]:
    """Return mean probability, observed frequency and pixels of each bin, under the given keys."""
    pixels, probability, true = bins.T
    return {
        probability_key: [_divide(*pair) for pair in zip(probability, pixels, strict=True)],
        true_key: [_divide(*pair) for pair in zip(true, pixels, strict=True)],
        "pixels": pixels.astype(np.int64).tolist(),
    }


def disagreement(matrix: NDArray[Any]) -> tuple[float, float]:
    """Return quantity and allocation disagreement (Pontius and Millones 2011, "Death to Kappa").

    Parameters
    ----------
    matrix
        (K, K): counts or shares of pairs of predicted and true categories, either way round.

    Returns
    -------
    (quantity, allocation): error from wrong class totals, and error from wrong positions. Their sum is the share of
    wrong pixels. NaN if nothing was counted.
    """
    shares = matrix / matrix.sum() if matrix.sum() else np.full(matrix.shape, np.nan)
    rows, columns, same = shares.sum(axis=1), shares.sum(axis=0), np.diagonal(shares)
    quantity = np.abs(rows - columns).sum() / 2
    return float(quantity), float(np.minimum(rows - same, columns - same).sum())


def _divide(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _mean(values: Sequence[float | int | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
