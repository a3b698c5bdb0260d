"""A per-pixel linear discriminant: what a network has to beat, because it sees no more than a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segkit.data.area import Area, read_pieces
from segkit.evaluation.metrics import Confusion
from segkit.io.scene import Tile
from segkit.task.task import IGNORE, Task


@dataclass(frozen=True)
class LinearDiscriminant:
    """Fisher's linear discriminant of each plane of a task (Hastie et al. 2009, section 4.3).

    Parameters
    ----------
    weights
        float64 (P, K, C): a score is weights . pixel + bias.
    biases
        float64 (P, K); minus infinity for a category that training never showed.
    """

    weights: NDArray[np.float64]
    biases: NDArray[np.float64]

    @classmethod
    def fit(cls, areas: Sequence[Area], task: Task) -> LinearDiscriminant:
        """Fit on all known pixels of areas: category means, one pooled covariance and the categories' shares."""
        bands, kinds = len(areas[0].sample.scene.bands), len(task.categories)
        number = np.zeros((task.planes, kinds))
        total = np.zeros((task.planes, kinds, bands))
        squares = np.zeros((task.planes, bands, bands))
        for tile, planes, _ in read_pieces(areas):
            for plane in range(task.planes):
                pixels, categories = _known(tile, planes[plane])
                squares[plane] += pixels.T @ pixels
                for kind in range(kinds):
                    own = pixels[categories == kind]
                    number[plane, kind] += len(own)
                    total[plane, kind] += own.sum(axis=0)
        weights, biases = np.zeros((task.planes, kinds, bands)), np.full((task.planes, kinds), -np.inf)
        for plane in range(task.planes):
            seen = number[plane] > 0
            means = total[plane, seen] / number[plane, seen, None]
            between = (means * number[plane, seen, None]).T @ means
            within = (squares[plane] - between) / max(number[plane].sum() - seen.sum(), 1)
            weights[plane, seen] = means @ np.linalg.pinv(within, hermitian=True)
            share = number[plane, seen] / number[plane].sum()
            biases[plane, seen] = np.log(share) - (weights[plane, seen] * means).sum(axis=1) / 2
        return cls(weights, biases)

    def score(self, areas: Sequence[Area], task: Task) -> Confusion:
        """Count its decisions against the labels of areas."""
        confusion = Confusion(task)
        for tile, planes, _ in read_pieces(areas):
            decided = np.zeros_like(planes)
            for plane in range(task.planes):
                where = _where(tile, planes[plane])
                pixels = tile.pixels[:, where].T.astype(np.float64)
                decided[plane, where] = (pixels @ self.weights[plane].T + self.biases[plane]).argmax(axis=1)
                planes[plane, ~where] = IGNORE
            confusion.add(decided, planes)
        return confusion


def _where(tile: Tile, plane: NDArray[np.int16]) -> NDArray[np.bool_]:
    return np.asarray((plane != IGNORE) & np.isfinite(tile.pixels).all(axis=0))


def _known(tile: Tile, plane: NDArray[np.int16]) -> tuple[NDArray[np.float64], NDArray[np.int16]]:
    where = _where(tile, plane)
    return tile.pixels[:, where].T.astype(np.float64), plane[where]
