"""Choose windows that are uncertain, unlike one another, and unlike what is labelled.

The most uncertain windows, ten times as many as are wanted, are clustered by k-means in which uncertain windows weigh
more; of each cluster the window nearest to its centre is chosen (Zhdanov 2019, "Diverse mini-batch active learning").
Labelled windows are centres that do not move: what is near them needs no labels. Without uncertainty all windows weigh
the same, so the choice covers the variety of the scenes, with typical windows and not with outliers (Hacohen et al.
2022, "Active learning on a budget").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ITERATIONS = 50  # at most; k-means then hardly changes
_PRESELECTED = 10  # times as many uncertain windows as are wanted are clustered (the best of 3, 5, 10 and 20 in trials)
_CHUNK = 2**22  # distances that are computed at once
_QUARTILES_OF_NORMAL = 1.349  # their distance in standard deviations of a normal distribution
_CLIP = 3.0  # standard deviations; a cloud must not push all others together
_KEPT_VARIANCE, _MAX_COMPONENTS = 0.99, 32


def standardize(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features (windows, F) with median 0 and a common spread, clipped, as at most 32 principal components.

    Unknown values (NaN) become the median.
    """
    known = np.where(np.isfinite(features), features, np.nan)[:, np.isfinite(features).any(axis=0)]
    low, middle, high = np.nanquantile(known, (0.25, 0.5, 0.75), axis=0)
    spread = (high - low) / _QUARTILES_OF_NORMAL
    spread = np.where(spread > 0, spread, np.nanstd(known, axis=0))
    scaled = np.nan_to_num((known - middle) / np.where(spread > 0, spread, 1)).clip(-_CLIP, _CLIP)
    scaled -= scaled.mean(axis=0)
    values, vectors = np.linalg.eigh(scaled.T.astype(np.float64) @ scaled)
    order = np.argsort(values)[::-1]
    share = np.cumsum(values[order]) / max(values.sum(), np.finfo(np.float64).tiny)
    kept = order[: min(int(np.searchsorted(share, _KEPT_VARIANCE)) + 1, _MAX_COMPONENTS)]
    components: NDArray[np.float32] = (scaled @ vectors[:, kept]).astype(np.float32)
    return components


def choose_windows(
    features: NDArray[np.float32],
    weights: NDArray[np.float64],
    number: int,
    *,
    known: NDArray[np.float32],
    seed: int,
    overlapping: Callable[[int], Any] = lambda index: index,
) -> NDArray[np.intp]:
    """Return the indices of chosen windows, those of the largest total weight of their cluster first.

    Parameters
    ----------
    features
        (windows, F), as `standardize` returns them.
    weights
        (windows,): uncertainty, at least 0.
    number
        How many; the result is shorter if there are no more.
    known
        (labelled windows, F): features of labelled windows.
    overlapping
        Function of the index of a window that returns the indices of all windows that cannot be chosen with it.
    """
    count = len(features)
    number = min(number, count)
    if (weights > 0).sum() < number:  # certain windows, too, if there are not enough others
        weights = weights + 1e-3
    if np.ptp(weights) > 0:
        weights = np.where(_is_largest(weights, _PRESELECTED * number), weights, 0)
    to_known = _nearest(features, known)[1] if len(known) else np.full(count, np.inf)
    centres = _first_centres(features, weights, number, to_known, np.random.default_rng(seed))
    belongs = np.full(count, -1)
    for _ in range(_ITERATIONS):
        nearest, distance = _nearest(features, centres)
        nearest = np.where(distance <= to_known, nearest, number)  # near labelled windows: of no cluster
        if (nearest == belongs).all():
            break
        belongs = nearest
        mass = np.bincount(belongs, weights, number + 1)[:number]
        for axis in range(features.shape[1]):
            moved = np.bincount(belongs, weights * features[:, axis], number + 1)[:number]
            centres[:, axis] = np.where(mass > 0, moved / np.where(mass > 0, mass, 1), centres[:, axis])
    mass = np.bincount(belongs, weights, number + 1)[:number]
    return _nearest_to_centres(features, centres, np.argsort(-mass, kind="stable"), weights > 0, overlapping)


def _is_largest(values: NDArray[np.float64], number: int) -> NDArray[np.bool_]:
    """Return which values are among the `number` largest."""
    largest = np.zeros(len(values), dtype=bool)
    largest[np.argsort(-values, kind="stable")[:number]] = True
    return largest


def _first_centres(
    features: NDArray[np.float32],
    weights: NDArray[np.float64],
    number: int,
    to_known: NDArray[np.float64],
    random: np.random.Generator,
) -> NDArray[np.float32]:
    """Draw windows as first centres, with probabilities of weight times squared distance (k-means++)."""
    distance, centres = to_known.copy(), []
    for _ in range(number):
        chances = weights * np.where(np.isfinite(distance), distance, 1)
        chances = chances if chances.sum() > 0 else weights
        index = random.choice(len(features), p=chances / chances.sum())
        centres.append(features[index])
        distance = np.minimum(distance, _nearest(features, features[index : index + 1])[1])
    return np.array(centres)


def _nearest(
    features: NDArray[np.float32], centres: NDArray[np.float32]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the nearest centre of each window, and the squared distance to it."""
    nearest = np.empty(len(features), dtype=np.intp)
    distance = np.empty(len(features))
    lengths = (centres.astype(np.float64) ** 2).sum(axis=1)
    for start in range(0, len(features), step := max(1, _CHUNK // len(centres))):
        part = features[start : start + step].astype(np.float64)
        squares = (part**2).sum(axis=1)[:, None] + lengths - 2 * part @ centres.T
        nearest[start : start + step] = squares.argmin(axis=1)
        distance[start : start + step] = squares.min(axis=1).clip(0)
    return nearest, distance


def _nearest_to_centres(
    features: NDArray[np.float32],
    centres: NDArray[np.float32],
    order: NDArray[np.intp],
    preferred: NDArray[np.bool_],
    overlapping: Callable[[int], Any],
) -> NDArray[np.intp]:
    """Return the window nearest to each centre, in an order of the centres; none that overlaps an earlier one.

    Others than the preferred windows are chosen only if none of these is left.
    """
    possible = np.ones(len(features), dtype=bool)
    chosen: list[int] = []
    for centre in order:
        if not possible.any():
            break
        squares = ((features - centres[centre]) ** 2).sum(axis=1)
        left = possible & preferred
        index = int(np.where(left if left.any() else possible, squares, np.inf).argmin())
        chosen.append(index)
        possible[overlapping(index)] = False
    return np.array(chosen, dtype=np.intp)
