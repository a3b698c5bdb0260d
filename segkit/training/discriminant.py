"""Fisher's linear discriminant of single pixels, in closed form and without scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.area import LabelledArea, iter_windows
from segkit.models.training_pixels import evenly_spaced
from segkit.task import IGNORE, Task
from segkit.training.pixels import category_weights, read_labelled_pixels

if TYPE_CHECKING:
    from segkit.models.segmenter import Segmenter

MAX_PIXELS = 4_000_000  # read to fit a discriminant; more hardly change it
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
    pixels
        Number of pixels that it was fitted to, for each target.
    """

    weights: NDArray[np.float64]
    biases: NDArray[np.float64]
    pixels: list[int]

    @classmethod
    def fit(
        cls,
        areas: Sequence[LabelledArea],
        task: Task,
        segmenter: Segmenter | None = None,
        *,
        max_pixels: int = MAX_PIXELS,
        class_weights: Sequence[float] | None = None,
    ) -> LinearDiscriminant:
        """Fit on the labelled pixels of areas, which are read twice.

        Parameters
        ----------
        segmenter
            Whose features are used, C of them; None: the bands in the units of the files.
        max_pixels
            Of larger areas, evenly spaced windows with about that many pixels are used.
        class_weights
            One per channel, multiplied with the shares of the categories; None: all 1.
        """
        areas = _sample_windows(areas, max_pixels)
        weight, shape = category_weights(class_weights, task), (task.n_targets, len(task.categories))
        size = len(areas[0].sample.scene.bands) if segmenter is None else segmenter.n_features
        counts, means = np.zeros(shape), np.zeros((*shape, size))
        for place, pixels in _pixels_by_category(areas, task, segmenter):
            counts[place] += len(pixels)
            means[place] += pixels.sum(axis=0)
        means /= np.maximum(counts, 1)[..., None]
        products, squares = np.zeros((2, *shape, size, size))
        for place, pixels in _pixels_by_category(areas, task, segmenter):
            centered = pixels - means[place]
            products[place] += centered.T @ centered
            squares[place] += (centered**2).T @ centered**2
        weights, biases = np.zeros_like(means), np.full(shape, -np.inf)
        for target in range(task.n_targets):
            present = np.flatnonzero(counts[target])
            if not len(present):
                continue  # no labelled pixel has data in all bands
            share = counts[target, present] * weight[target, present]
            share /= share.sum()
            covariance = sum(
                part
                * _shrunk_covariance(products[target, category], squares[target, category], counts[target, category])
                for part, category in zip(share, present, strict=True)
            )
            weights[target, present] = _solve(np.asarray(covariance), means[target, present])
            biases[target, present] = (
                np.log(share) - (weights[target, present] * means[target, present]).sum(axis=1) / 2
            )
        return cls(weights, biases, counts.sum(axis=1).astype(int).tolist())


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
    areas: Sequence[LabelledArea], task: Task, segmenter: Segmenter | None
) -> Iterator[tuple[tuple[int, int], NDArray[np.float64]]]:
    """Yield the pixels (n, C) of each category of each target, part by part, with their place (target, category)."""
    for features, targets in read_labelled_pixels(areas, segmenter):
        for target in range(task.n_targets):
            for category in np.unique(targets[target]).tolist():
                if category != IGNORE:
                    yield (target, category), features[targets[target] == category].astype(np.float64)
