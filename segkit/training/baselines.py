"""A per-pixel linear discriminant: a baseline without spatial context, which a network should beat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.area import LabelledArea, iter_windows, read_tiles
from segkit.evaluation.metrics import Confusion
from segkit.io.scene import Tile
from segkit.models.training_pixels import evenly_spaced
from segkit.task import IGNORE, Task

LINEAR_DISCRIMINANT = "linear_discriminant"  # in metrics.json
BASELINE_SCORES = ("overall_accuracy", "mean_iou", "macro_f1")
_MAX_PIXELS = 4_000_000  # read to fit a discriminant; more hardly change it
_WINDOW_PX = 128  # side of the windows that a sample of a larger area is made of


@dataclass(frozen=True)
class LinearDiscriminant:
    """Fisher's linear discriminant of each target of a task (Hastie et al. 2009, section 4.3).

    The covariance of each category is shrunk as by Ledoit and Wolf (2004, "A well-conditioned estimator for
    large-dimensional covariance matrices"), so there may be fewer pixels than bands.

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
        """Fit on the labelled pixels of areas, or of evenly spaced windows of large ones; they are read twice."""
        areas = _sample_windows(areas, _MAX_PIXELS)
        n_bands, shape = len(areas[0].sample.scene.bands), (task.n_targets, len(task.categories))
        counts, means = np.zeros(shape), np.zeros((*shape, n_bands))
        for place, pixels in _pixels_by_category(areas, task):
            counts[place] += len(pixels)
            means[place] += pixels.sum(axis=0)
        means /= np.maximum(counts, 1)[..., None]
        products, squares = np.zeros((2, *shape, n_bands, n_bands))
        for place, pixels in _pixels_by_category(areas, task):
            centered = pixels - means[place]
            products[place] += centered.T @ centered
            squares[place] += (centered**2).T @ centered**2
        weights, biases = np.zeros_like(means), np.full(shape, -np.inf)
        for target in range(task.n_targets):
            present = np.flatnonzero(counts[target])
            if not len(present):
                continue  # no labelled pixel has data in all bands
            share = counts[target, present] / counts[target].sum()
            covariance = sum(
                part
                * _shrunk_covariance(products[target, category], squares[target, category], counts[target, category])
                for part, category in zip(share, present, strict=True)
            )
            weights[target, present] = _solve(np.asarray(covariance), means[target, present])
            biases[target, present] = (
                np.log(share) - (weights[target, present] * means[target, present]).sum(axis=1) / 2
            )
        return cls(weights, biases)

    def score(self, areas: Sequence[LabelledArea], task: Task) -> Confusion:
        """Return the confusion of its predictions and the labels of areas."""
        confusion = Confusion(task)
        for tile, targets, _ in read_tiles(areas):
            decided = np.zeros_like(targets)
            for target, (weights, biases) in enumerate(zip(self.weights, self.biases, strict=True)):
                usable = _usable(tile, targets[target])
                pixels = tile.pixels[:, usable].T.astype(np.float64)
                decided[target, usable] = (pixels @ weights.T + biases).argmax(axis=1)
                targets[target, ~usable] = IGNORE
            confusion.add(decided, targets)
        return confusion


def score_baselines(
    training: Sequence[LabelledArea], validation: Sequence[LabelledArea], task: Task
) -> dict[str, dict[str, float | None]]:
    """Return {baseline: {score: value}} on the validation areas, for ``metrics.json``."""
    summary = LinearDiscriminant.fit(training, task).score(validation, task).summary()
    return {LINEAR_DISCRIMINANT: {key: summary[key] for key in BASELINE_SCORES}}


def compare_with_baseline(metrics: Mapping[str, Any]) -> str | None:
    """Return a warning if a network's mean IoU is not above that of the linear discriminant; None if it is."""
    ours, theirs = metrics["mean_iou"], metrics["baselines"][LINEAR_DISCRIMINANT]["mean_iou"]
    if ours is None or theirs is None or ours > theirs:
        return None
    return (
        f"on the validation areas the network (mean IoU {ours:.4f}) is not better than a linear discriminant of single "
        f"pixels ({theirs:.4f}); a network should be. Try more labels, more steps (train.epochs, "
        "train.steps_per_epoch) or fewer stages (model.options.encoder_depth)"
    )


def _solve(covariance: NDArray[np.float64], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means (K, C) times the (pseudo-)inverse of a covariance (C, C)."""
    # In units of the standard deviations, so that bands of small numbers are not taken for constant ones.
    scale = np.sqrt(np.diag(covariance))
    scale[scale == 0] = 1.0
    inverse = np.linalg.pinv(covariance / np.outer(scale, scale), hermitian=True)
    return np.asarray((means / scale) @ inverse / scale)


def _sample_windows(areas: Sequence[LabelledArea], max_pixels: int) -> list[LabelledArea]:
    """Return areas of at most about `max_pixels` pixels in total: the given ones, or evenly spaced windows of them."""
    total = sum(int(window.width * window.height) for area in areas for window in area.windows)
    if total <= max_pixels:
        return list(areas)
    windows = [(index, window) for index, area in enumerate(areas) for window in iter_windows(area.windows, _WINDOW_PX)]
    chosen: list[list[Window]] = [[] for _ in areas]
    for at in evenly_spaced(len(windows), max(1, len(windows) * max_pixels // total)):
        index, window = windows[at]
        chosen[index].append(window)
    return [replace(area, windows=tuple(kept)) for area, kept in zip(areas, chosen, strict=True) if kept]


def _shrunk_covariance(
    products: NDArray[np.float64], squares: NDArray[np.float64], count: float
) -> NDArray[np.float64]:
    """Return a covariance (C, C), shrunk towards a diagonal one as far as its noise demands (Ledoit and Wolf 2004).

    Parameters
    ----------
    products, squares
        Sums over the centred pixels of ``x_i x_j`` and ``x_i**2 x_j**2``.
    """
    covariance = products / count
    std = np.sqrt(np.diag(covariance))
    std[std == 0] = 1.0
    size, standardized = len(std), covariance / np.outer(std, std)
    mean = np.trace(standardized) / size
    noise = (squares / np.outer(std, std) ** 2 / count - standardized**2).sum() / (size * count)
    distance = ((standardized**2).sum() - size * mean**2) / size
    intensity = 0.0 if distance <= 0 else min(noise, distance) / distance
    shrunk = (1 - intensity) * standardized
    shrunk[np.diag_indices(size)] += intensity * mean
    return np.asarray(shrunk * np.outer(std, std))


def _pixels_by_category(
    areas: Sequence[LabelledArea], task: Task
) -> Iterator[tuple[tuple[int, int], NDArray[np.float64]]]:
    """Yield the pixels (n, C) of each category of each target, part by part, with their place (target, category)."""
    for tile, targets, _ in read_tiles(areas):
        for target in range(task.n_targets):
            usable = _usable(tile, targets[target])
            pixels, categories = tile.pixels[:, usable].T.astype(np.float64), targets[target][usable]
            for category in np.unique(categories).tolist():
                yield (target, category), pixels[categories == category]


def _usable(tile: Tile, target: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Return the labelled pixels with data in all bands, bool (H, W)."""
    return np.asarray((target != IGNORE) & np.isfinite(tile.pixels).all(axis=0))
