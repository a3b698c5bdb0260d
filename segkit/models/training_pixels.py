"""What a model was trained on, as a sample of pixels in the model file, and how far other pixels are from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segkit.models.nearest_pixels import NearestPixels

MAX_PIXELS = 2000
MAX_VALUES = 60_000  # pixels x bands in a model file


@dataclass(frozen=True)
class TrainingPixels:
    """A sample of the training pixels, and the area of applicability that follows from it.

    The dissimilarity index of a pixel is its distance to the nearest training pixel divided by the mean distance
    between training pixels, in bands divided by their standard deviation. The threshold is the largest index of a
    training pixel whose nearest pixel is looked for in other groups, without outliers (Meyer and Pebesma 2021,
    "Predicting into unknown space? Estimating the area of applicability of spatial prediction models", Methods in
    Ecology and Evolution 12: 1620-1633; bands have equal weights here).

    Parameters
    ----------
    pixels
        Tuples of C values, in the units of the files.
    std
        Standard deviation of each band, (C); 1 for a constant band.
    mean_distance, threshold
        See above.
    low, median, high
        Quantiles 5, 50 and 95 % of each band, (C).
    dtypes
        Data types of the training files.
    scaling
        Pairs of scale and offset that the training files declare.
    resolution
        Smallest and largest side of a pixel on the ground, in metres; None if unknown.
    """

    pixels: tuple[tuple[float, ...], ...]
    std: tuple[float, ...]
    mean_distance: float
    threshold: float
    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]
    dtypes: tuple[str, ...]
    scaling: tuple[tuple[float, float], ...]
    resolution: tuple[float, float] | None

    @classmethod
    def from_samples(
        cls,
        groups: Sequence[NDArray[np.float32]],
        dtypes: Sequence[str],
        scaling: Sequence[tuple[float, float]],
        resolution: tuple[float, float] | None,
    ) -> TrainingPixels | None:
        """Describe pixels in groups, such as scenes: arrays (n, C).

        Returns
        -------
        None if there are fewer than two groups with pixels.
        """
        groups = [group for group in groups if len(group)]
        if len(groups) < 2:
            return None
        bands = groups[0].shape[1]
        number = max(len(groups), min(MAX_PIXELS, MAX_VALUES // bands))
        chosen = [_evenly(group, max(1, number // len(groups))) for group in groups]
        if len(groups) > MAX_PIXELS:
            chosen = [chosen[at] for at in evenly_spaced(len(chosen), MAX_PIXELS)]
        everything = np.concatenate(groups).astype(np.float64)
        std = everything.std(axis=0)
        std[std == 0] = 1.0
        pixels = np.concatenate(chosen).astype(np.float64)
        mean_distance, threshold = _dissimilarity_of_groups(pixels / std, [len(each) for each in chosen])
        low, median, high = _rounded(np.quantile(everything, [0.05, 0.5, 0.95], axis=0))
        return cls(
            _rounded(pixels),
            _rounded(std),
            mean_distance,
            threshold,
            low,
            median,
            high,
            tuple(dict.fromkeys(dtypes)),
            tuple(dict.fromkeys(scaling)),
            resolution,
        )

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TrainingPixels:
        """Return what a model file holds; lists become tuples."""
        return cls(**{key: _as_tuples(value) for key, value in stored.items()})

    def dissimilarity(self, pixels: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the dissimilarity index of pixels (n, C), float64 (n); 0 is a training pixel."""
        return DissimilarityIndex(self)(pixels)

    def is_outside(self, pixels: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which pixels (n, C) are outside the area of applicability, bool (n)."""
        return self.dissimilarity(pixels) > self.threshold


class DissimilarityIndex:
    """The dissimilarity index of many pixels; see `TrainingPixels`."""

    def __init__(self, training: TrainingPixels) -> None:
        self._std, self._mean_distance = np.array(training.std), training.mean_distance
        self._nearest = NearestPixels(np.array(training.pixels) / self._std)

    def __call__(self, pixels: NDArray[np.float32], threads: int = 1) -> NDArray[np.float64]:
        """Return the index of pixels (n, C), float64 (n)."""
        return self._nearest.distance(pixels / self._std, threads) / self._mean_distance


def evenly_spaced(size: int, number: int) -> list[int]:
    """Return up to `number` evenly spaced indices of `size` items, from the first to the last."""
    return [int(at) for at in np.unique(np.linspace(0, size - 1, min(size, number)).round())]


def _dissimilarity_of_groups(pixels: NDArray[np.float64], sizes: Sequence[int]) -> tuple[float, float]:
    """Return the mean distance of pixels, and the threshold of the dissimilarity index between groups."""
    from scipy.spatial.distance import cdist

    distances = cdist(pixels, pixels)
    mean = distances.sum() / (len(pixels) * (len(pixels) - 1)) or 1.0
    group = np.repeat(np.arange(len(sizes)), sizes)
    distances[group[:, None] == group] = np.inf
    index = distances.min(axis=1) / mean
    lower, upper = np.quantile(index, [0.25, 0.75])
    within = index[index <= upper + 1.5 * (upper - lower)]
    return float(mean), float(within.max())


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _rounded(values: NDArray[np.float64]) -> tuple[Any, ...]:
    """Return an array of any shape as tuples, with the six digits that a model file holds."""
    if values.ndim > 1:
        return tuple(map(_rounded, values))
    return tuple(float(f"{value:.6g}") for value in values.tolist())


def _evenly(rows: NDArray[np.float32], number: int) -> NDArray[np.float32]:
    return rows[evenly_spaced(len(rows), number)]
