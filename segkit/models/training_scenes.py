"""How the scenes that a model was trained on look, in the model file, and how far other scenes are from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_VALUES = 20_000  # scenes x features in a model file
_MIN_SCENES = 2  # for a distance between neighbours
_CONSTANT = np.finfo(np.float32).eps  # smaller deviations, relative to the values, are rounding


@dataclass(frozen=True)
class TrainingScenes:
    """The appearance of training scenes: means and standard deviations of their bands, as features.

    The distance of a scene is that to the nearest training scene, in features divided by their standard deviation over
    the training scenes, relative to the median distance of training scenes to their nearest neighbours. So 1 is usual
    among the training scenes, 0 is a training scene, and the distance does not depend on other scenes. A feature that
    is the same in all training scenes does not count.

    Parameters
    ----------
    features
        Tuples of 2 * C values: means of the bands in the units of the files, then their standard deviations.
    mean, std
        Of each feature over all training scenes, (2 * C); `std` is 0 if the feature is always the same.
    usual_distance
        Median distance of training scenes to their nearest neighbours.
    """

    features: tuple[tuple[float, ...], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    usual_distance: float

    @classmethod
    def from_features(cls, features: NDArray[np.float64]) -> TrainingScenes | None:
        """Describe training scenes.

        Parameters
        ----------
        features
            (scenes, 2 * C); NaN where a band has no valid pixel. Of more scenes than a model file should hold, those
            are kept from which all others are least far.

        Returns
        -------
        None if there are fewer than two scenes, or most of them look the same.
        """
        from scipy.spatial import KDTree

        if len(features) < _MIN_SCENES:
            return None
        known = np.isfinite(features)
        number = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, features, 0).sum(axis=0) / number
        features = _rounded(np.where(known, features, mean))
        std = np.sqrt((np.where(known, features - mean, 0) ** 2).sum(axis=0) / number)
        std[std <= _CONSTANT * np.abs(features).max(axis=0)] = 0.0
        scaled = _scale(features, mean, std)
        usual = float(np.median(KDTree(scaled).query(scaled, k=2)[0][:, 1]))
        if usual == 0:
            return None
        kept = features[_choose_spread(scaled, max(_MIN_SCENES, MAX_VALUES // features.shape[1]))]
        return cls(tuple(map(tuple, kept.tolist())), tuple(mean.tolist()), tuple(std.tolist()), usual)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TrainingScenes:
        """Return what a model file holds; lists become tuples."""
        features = tuple(tuple(map(float, row)) for row in stored["features"])
        mean, std = (tuple(map(float, stored[key])) for key in ("mean", "std"))
        if {len(row) for row in (*features, std)} != {len(mean)}:
            raise ValueError("training_scenes: rows of different lengths")
        return cls(features, mean, std, float(stored["usual_distance"]))

    def distances(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the distances of scenes, float64 (n,).

        Parameters
        ----------
        features
            (n, 2 * C) as in `from_features`; one that is NaN counts as the training scenes' mean.
        """
        from scipy.spatial import KDTree

        mean, std = np.array(self.mean), np.array(self.std)
        tree = KDTree(_scale(np.array(self.features), mean, std))
        nearest, _ = tree.query(_scale(np.where(np.isfinite(features), features, mean), mean, std))
        return np.asarray(nearest / self.usual_distance)


def _scale(features: NDArray[np.float64], mean: NDArray[np.float64], std: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return standardised features; 0 where the standard deviation is 0."""
    return np.asarray(np.where(std > 0, (features - mean) / np.where(std > 0, std, 1), 0))


def _rounded(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return features with the nine digits that a model file holds."""
    return np.array([[float(f"{value:.9g}") for value in row] for row in features.tolist()])


def _choose_spread(points: NDArray[np.float64], number: int) -> NDArray[np.intp]:
    """Return indices of up to `number` points, each chosen as the farthest from those before.

    So no other point is farther from them than twice the least possible (Gonzalez 1985, "Clustering to minimize the
    maximum intercluster distance", Theoretical Computer Science 38: 293-306).
    """
    if len(points) <= number:
        return np.arange(len(points))
    chosen = [int((points**2).sum(axis=1).argmin())]
    nearest = np.full(len(points), np.inf)
    while len(chosen) < number:
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int(nearest.argmax()))
    return np.sort(np.array(chosen))
