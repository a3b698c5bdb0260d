"""How scenes look: means and standard deviations of their bands, as features in which scenes are ordered and compared.

A split by appearance orders scenes along one axis and cuts the order into contiguous parts. So what validates is
darker, hazier or of another season than most of what trains, and its scores tell how a model does on such scenes. The
parts of an order have about equal area. Clusters of few scenes in many dimensions would be of uneven size, and depend
on where the clustering starts.

How far a scene is from the training scenes (`TrainingScenes`) is measured in the same features, standardised over the
training scenes alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segkit.data.statistics import BandMoments
from segkit.io.grid import lattice_windows
from segkit.io.scene import Scene

# A scene of more pixels is measured in windows on a square lattice: number along each side, and side in pixels.
_MAX_MEASURED_PIXELS = 2**20
_LATTICE, _LATTICE_SIDE_PX = 8, 128
_READ_PX = 1024  # side of the windows in which a scene is read
_DECIMALS = 9  # of shares; smaller differences are rounding


def measure_appearance(scene: Scene) -> BandMoments:
    """Return statistics of the bands of a scene, from all valid pixels, or from 64 windows of 128 px of a large scene.

    If these windows hold no data, the whole scene is read.
    """
    moments, grid = BandMoments(len(scene.bands)), scene.grid
    everything = list(grid.tiles(_READ_PX))
    is_large = grid.height * grid.width >= _MAX_MEASURED_PIXELS
    passes = [lattice_windows(grid, _LATTICE, _LATTICE_SIDE_PX), everything] if is_large else [everything]
    with scene.open() as reader:
        for windows in passes:
            for window in windows:
                tile = reader.read(window)
                moments.add(tile.pixels, tile.valid)
            if moments.number.any():
                break
    return moments


def appearance_features(scenes: Sequence[BandMoments]) -> NDArray[np.float64]:
    """Return the means of the bands of scenes, then their standard deviations: (scenes, 2 * bands).

    NaN where a band has no valid pixel.
    """
    known = np.array([np.tile(one.number > 0, 2) for one in scenes])
    return np.where(known, np.array([np.concatenate([one.mean, one.std]) for one in scenes]), np.nan)


def describe_appearance(scenes: Sequence[BandMoments]) -> NDArray[np.float64]:
    """Return the features of scenes, each standardised over all of them.

    Parameters
    ----------
    scenes
        Statistics of the valid pixels of each; all have the same bands.

    Returns
    -------
    float64 (scenes, 2 * bands): the means of the bands, then their standard deviations; each feature with mean 0 and
    standard deviation 1 over the scenes. 0 where a band has no valid pixel, and for a feature that is always the same.
    """
    features = appearance_features(scenes)
    known = np.isfinite(features)
    features = np.where(known, features, 0)
    number = np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, features - features.sum(axis=0) / number, 0)
    scale = np.sqrt((centred**2).sum(axis=0) / number)
    constant = scale <= np.finfo(np.float32).eps * np.abs(features).max(axis=0)
    standardised: NDArray[np.float64] = np.where(constant, 0, centred / np.where(constant, 1, scale))
    return standardised


def order_by_appearance(features: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the indices of units from dark to bright: along the first principal component of `features`.

    Of all axes this one has the largest variance, so neighbours in the order are alike, and the ends differ most.

    Parameters
    ----------
    features
        (units, 2 * bands), of `describe_appearance`.
    """
    centred = features - features.mean(axis=0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    n_bands = features.shape[1] // 2
    brightness = axis[:n_bands].sum()
    return np.argsort(centred @ (axis if brightness >= 0 else -axis), kind="stable")


def cut_folds(pixels: NDArray[np.float64], folds: int) -> NDArray[np.intp]:
    """Cut ordered units into contiguous folds of about equal area; return the fold of each unit.

    Each cut is where the area before it is nearest to its share of the total, with at least one unit in every fold.

    Parameters
    ----------
    pixels
        (units,), labelled pixels of each unit in order; at least as many units as folds.
    """
    share = np.cumsum(pixels) / pixels.sum()  # of the area up to and including each unit
    cuts = [0]
    for fold in range(1, folds):
        allowed = np.arange(cuts[-1] + 1, len(pixels) - (folds - fold) + 1)
        cuts.append(int(allowed[np.abs(share[allowed - 1] - fold / folds).argmin()]))
    return np.searchsorted(cuts, np.arange(len(pixels)), side="right") - 1


def cut_end(counts: NDArray[np.float64], fraction: float) -> NDArray[np.bool_]:
    """Select ordered units at one end; as few categories as possible are on one side only.

    Of the cuts for which this holds, that with the share of the area nearest to `fraction` is used; if both ends are as
    near, the first one.

    Parameters
    ----------
    counts
        (units, categories), labelled pixels of each unit in order; at least two units.

    Returns
    -------
    bool (units,)
    """
    total = counts.sum(axis=0)
    below = np.cumsum(counts, axis=0)[:-1]  # before each cut
    one_sided = ((total > 0) & ((below == 0) | (below == total))).sum(axis=1)
    share = below.sum(axis=1) / total.sum()
    cost = np.concatenate([np.abs(share - fraction), np.abs(1 - share - fraction)]).round(_DECIMALS)
    best = int(np.lexsort((cost, np.tile(one_sided, 2)))[0])
    at_first_end, cut = best < len(share), best % len(share) + 1
    is_first = np.arange(len(counts)) < cut
    return is_first if at_first_end else ~is_first
