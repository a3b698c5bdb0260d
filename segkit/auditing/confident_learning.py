"""Confident learning: labels that out-of-fold probabilities contradict.

Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70. An example is
confidently of a class if its probability reaches the mean probability of that class among the examples that are
labelled as it. So a class that a model finds rarely, with low probabilities, has a low threshold.

Here an example is a segment of labels, with the mean probabilities of its pixels, and counts as many times as it has
pixels: single pixels would take every error of the model for one of the labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def class_thresholds(
    labels: NDArray[np.integer[Any]], probabilities: NDArray[np.floating[Any]], weights: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """Return the mean self-confidence of each category, float64 (K); infinite for one without examples.

    Parameters
    ----------
    labels
        Category of each example, (n,).
    probabilities
        Out-of-fold probabilities, (n, K).
    weights
        Of each example, (n,), for instance its pixels.
    """
    size = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    total = np.bincount(labels, weights, size)
    sums = np.bincount(labels, weights * own, size)
    thresholds: NDArray[np.float64] = np.divide(sums, total, out=np.full(size, np.inf), where=total > 0)
    return thresholds


def find_confident(
    probabilities: NDArray[np.floating[Any]], thresholds: NDArray[np.floating[Any]]
) -> NDArray[np.int64]:
    """Return the most probable category of each example among those that reach their threshold; -1 if none does."""
    reached = probabilities >= thresholds
    best = np.where(reached, probabilities, -1.0).argmax(axis=1)
    return np.where(reached.any(axis=1), best, -1)


def confident_joint(
    labels: NDArray[np.integer[Any]],
    probabilities: NDArray[np.floating[Any]],
    thresholds: NDArray[np.floating[Any]],
    weights: NDArray[np.floating[Any]],
) -> NDArray[np.float64]:
    """Return the weight of the examples of each label (row) that are confidently of each category, float64 (K, K)."""
    size, found = probabilities.shape[1], find_confident(probabilities, thresholds)
    used = found >= 0
    cells = np.bincount(labels[used] * size + found[used], weights[used], size * size)
    return cells.reshape(size, size).astype(np.float64)


@dataclass(frozen=True)
class Proposals:
    """What speaks against the labels of examples.

    Parameters
    ----------
    category
        The category that is proposed instead, int64 (n,).
    margin
        How far the probability of this category, less its threshold, exceeds that of the label, less its threshold;
        above 0 the label is doubtful. float64 (n,).
    confident
        Whether the example is confidently of another category than its label, bool (n,): it is off the diagonal of
        `confident_joint`.
    """

    category: NDArray[np.int64]
    margin: NDArray[np.float64]
    confident: NDArray[np.bool_]


def propose_categories(
    labels: NDArray[np.integer[Any]], probabilities: NDArray[np.floating[Any]], thresholds: NDArray[np.floating[Any]]
) -> Proposals:
    """Compare examples with their labels; the parameters are those of `confident_joint`."""
    every, found = np.arange(len(labels)), find_confident(probabilities, thresholds)
    confident = (found >= 0) & (found != labels)
    others = probabilities - thresholds
    own = others[every, labels]
    others[every, labels] = -np.inf
    category = np.where(confident, found, others.argmax(axis=1))
    return Proposals(category, others[every, category] - own, confident)
