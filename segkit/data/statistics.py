"""Band statistics, label counts and class weights of training areas, computed in one pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segkit.data.area import LabelledArea, count_categories, read_tiles
from segkit.errors import DataError
from segkit.runtime.progress import progress
from segkit.task import Task


class BandMoments:
    """Number, mean and standard deviation of the values of each band, computed from parts.

    Means and squared deviations of parts are merged in float64 (Chan, Golub and LeVeque 1983, "Algorithms for Computing
    the Sample Variance", formula 2.1), without cancellation.

    Parameters
    ----------
    bands
        Number of bands. Before the first value, all numbers and means are 0.
    """

    def __init__(self, bands: int) -> None:
        self.number, self.mean, self._squares = np.zeros(bands), np.zeros(bands), np.zeros(bands)

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation of each band; 0 without values."""
        deviation: NDArray[np.float64] = np.sqrt(self._squares / np.maximum(self.number, 1))
        return deviation

    def add(self, pixels: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
        """Add the finite values of pixels (C, H, W) where `valid` (H, W)."""
        for band, layer in enumerate(pixels):
            values = layer[valid & np.isfinite(layer)].astype(np.float64)
            if values.size:
                merged = self.number[band] + values.size
                difference = values.mean() - self.mean[band]
                self._squares[band] += ((values - values.mean()) ** 2).sum()
                self._squares[band] += difference**2 * self.number[band] * values.size / merged
                self.mean[band] += difference * values.size / merged
                self.number[band] = merged


@dataclass(frozen=True)
class Statistics:
    """Statistics of training areas.

    Parameters
    ----------
    mean, std
        Of each band over valid pixels, in the units of the files.
    counts
        int64 (T, K): labelled pixels of each category of each target.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    counts: NDArray[np.int64]

    @classmethod
    def from_areas(cls, areas: Sequence[LabelledArea], task: Task, *, show_progress: bool = False) -> Statistics:
        """Compute the statistics of areas, which are read once, tile by tile.

        Excluded pixels do not count.

        Raises
        ------
        DataError
            No pixel is both valid and labelled, or a band has no valid pixel.
        """
        bands = len(areas[0].sample.scene.bands)
        moments = BandMoments(bands)
        counts = np.zeros(task.n_targets * len(task.categories), dtype=np.int64)
        total = sum(int(window.width * window.height) for area in areas for window in area.windows)
        with progress("statistics", total / 1e6, "Mpx", show=show_progress) as advance:
            for tile, targets, window in read_tiles(areas):
                counts += count_categories(targets, task)
                moments.add(tile.pixels, tile.valid)
                advance(window.width * window.height / 1e6)
        if not counts.any():
            raise DataError(
                "no training pixel is left: all valid labelled pixels of the training scenes are in validation areas "
                "or in the gap around them; make data.val.gap and data.val.block smaller, or validate on other scenes"
                if any(area.exclude for area in areas)
                else "there is no training pixel: no pixel of the training scenes has both data and a label; correct "
                "the labels or data.train"
            )
        if not moments.number.all():
            scene = areas[0].sample.scene
            empty = np.flatnonzero(moments.number == 0)
            listed = ", ".join(f"{scene.bands[index]} ({scene.band_names[index]})" for index in empty)
            raise DataError(f"no pixel of the training areas is valid in band {listed}; remove it from data.bands")
        return cls(tuple(moments.mean.tolist()), tuple(moments.std.tolist()), counts.reshape(task.n_targets, -1))


def balanced_weights(counts: NDArray[np.int64], task: Task) -> dict[str, float]:
    """Return the weight total / (categories x pixels) of each channel's category.

    So all categories have the same total weight: scikit-learn's ``class_weight="balanced"`` (King and Zeng 2001),
    within each target. The weight of a category that never occurs is 1.
    """
    weights = {}
    for name, (target, category) in zip(task.channel_names, task.channel_categories, strict=True):
        pixels = counts[target, category]
        others = counts[target].sum()
        weights[name] = float(others / (counts.shape[1] * pixels)) if pixels else 1.0
    return weights


def effective_weights(counts: NDArray[np.int64], task: Task) -> dict[str, float]:
    """Return the inverse effective number of samples of each channel's category, which saturates.

    n pixels count as (1 - β^n) / (1 - β), the expected number of different ones among n drawn from N prototypes, with β
    = 1 - 1/N (Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples", section 3). N is the number
    of labelled pixels of the target: the true number of prototypes is unknown, and it is at most the number of pixels.
    So the weight of a small class is proportional to its inverse share, as with balanced weights, and that of a large
    class slightly higher: a class that fills a target counts as 0.63 of it.

    With softmax the mean weight of the channels is 1. The weight of a sigmoid channel is that of its category divided
    by that of the other pixels, which have weight 1 in the losses; scaled to a mean of 1 it would be 1 for a single
    class of any share. The weight of a category that never occurs, or is the only one, is 1, and is not part of the
    mean.
    """
    weights: dict[str, float] = {}
    for name, (target, category) in zip(task.channel_names, task.channel_categories, strict=True):
        pixels, known = int(counts[target, category]), int(counts[target].sum())
        if 0 < pixels < known:
            others = _effective(known - pixels, known) if task.head == "sigmoid" else 1.0
            weights[name] = others / _effective(pixels, known)
    mean = sum(weights.values()) / len(weights) if weights and task.head == "softmax" else 1.0
    return {name: weights[name] / mean if name in weights else 1.0 for name in task.channel_names}


def _effective(pixels: int, prototypes: int) -> float:
    """Return (1 - β^pixels) / (1 - β) for β = 1 - 1 / prototypes, without rounding errors for β near 1."""
    return -math.expm1(pixels * math.log1p(-1 / prototypes)) * prototypes


CLASS_WEIGHTS = {"balanced": balanced_weights, "effective": effective_weights}


def class_weights(
    given: str | Mapping[str, float] | Sequence[float] | None, counts: NDArray[np.int64], task: Task
) -> list[float] | None:
    """Return the weight of each channel, or None without class weights.

    Parameters
    ----------
    given
        A name in `CLASS_WEIGHTS`; {name of a channel: weight}, 1 by default; or a weight per channel.
    counts
        int64 (T, K): labelled pixels of each category of each target.

    Raises
    ------
    KeyError
        A name is not in `CLASS_WEIGHTS`; recipes are checked when they are loaded.
    """
    if given is None:
        return None
    if isinstance(given, str):
        given = CLASS_WEIGHTS[given](counts, task)
    if isinstance(given, Mapping):
        return [given.get(name, 1.0) for name in task.channel_names]
    return list(given)
