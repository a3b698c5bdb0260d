"""A per-pixel linear discriminant: a baseline without spatial context, which a network should beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segkit.data.area import LabelledArea, read_tiles
from segkit.evaluation.metrics import Confusion
from segkit.io.scene import Tile
from segkit.task import IGNORE, Task


@dataclass(frozen=True)
class LinearDiscriminant:
    """Fisher's linear discriminant of each target of a task (Hastie et al. 2009, section 4.3).

    Parameters
    ----------
    weights
        float64 (T, K, C): the score of a category is weights . pixel + bias.
    biases
        float64 (T, K); minus infinity for a category without training pixels.
    """

    weights: NDArray[np.float64]
    biases: NDArray[np.float64]

    @classmethod
    def fit(cls, areas: Sequence[LabelledArea], task: Task) -> LinearDiscriminant:
        """Fit on all labelled pixels of areas: means and shares of the categories, and one pooled covariance."""
        n_bands, n_categories = len(areas[0].sample.scene.bands), len(task.categories)
        counts = np.zeros((task.n_targets, n_categories))
        sums = np.zeros((task.n_targets, n_categories, n_bands))
        products = np.zeros((task.n_targets, n_bands, n_bands))
        for tile, targets, _ in read_tiles(areas):
            for target in range(task.n_targets):
                usable = _usable(tile, targets[target])
                pixels, categories = tile.pixels[:, usable].T.astype(np.float64), targets[target][usable]
                products[target] += pixels.T @ pixels
                for category in range(n_categories):
                    members = pixels[categories == category]
                    counts[target, category] += len(members)
                    sums[target, category] += members.sum(axis=0)
        weights = np.zeros((task.n_targets, n_categories, n_bands))
        biases = np.full((task.n_targets, n_categories), -np.inf)
        for target in range(task.n_targets):
            present = counts[target] > 0
            means = sums[target, present] / counts[target, present, None]
            between = (means * counts[target, present, None]).T @ means
            covariance = (products[target] - between) / max(counts[target].sum() - present.sum(), 1)
            weights[target, present] = means @ np.linalg.pinv(covariance, hermitian=True)
            share = counts[target, present] / counts[target].sum()
            biases[target, present] = np.log(share) - (weights[target, present] * means).sum(axis=1) / 2
        return cls(weights, biases)

    def score(self, areas: Sequence[LabelledArea], task: Task) -> Confusion:
        """Return the confusion of its predictions and the labels of areas."""
        confusion = Confusion(task)
        for tile, targets, _ in read_tiles(areas):
            decided = np.zeros_like(targets)
            for target in range(task.n_targets):
                usable = _usable(tile, targets[target])
                pixels = tile.pixels[:, usable].T.astype(np.float64)
                decided[target, usable] = (pixels @ self.weights[target].T + self.biases[target]).argmax(axis=1)
                targets[target, ~usable] = IGNORE
            confusion.add(decided, targets)
        return confusion


def _usable(tile: Tile, target: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Return the labelled pixels with data in all bands, bool (H, W)."""
    return np.asarray((target != IGNORE) & np.isfinite(tile.pixels).all(axis=0))
