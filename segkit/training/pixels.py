"""Labelled pixels of training areas, to fit classical learners to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.area import LabelledArea, iter_windows
from segkit.io.grid import Grid
from segkit.task import IGNORE, Task

if TYPE_CHECKING:
    from segkit.models.segmenter import Segmenter

_WINDOW_PX = 512  # side of the windows that are read at once


@dataclass(frozen=True)
class PixelSample:
    """Pixels that are labelled for a target.

    Parameters
    ----------
    features
        float32 (n, F).
    categories
        int16 (n): category of the target.
    weights
        float64 (n): how many pixels each one stands for, times its class weight, with mean 1; None: all alike.
    labelled
        Number of labelled pixels from which the sample was drawn.
    """

    features: NDArray[np.float32]
    categories: NDArray[np.int16]
    weights: NDArray[np.float64] | None
    labelled: int


def read_labelled_pixels(
    areas: Sequence[LabelledArea], segmenter: Segmenter | None = None
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int16]]]:
    """Read the pixels of areas that are labelled and have data in all bands.

    Parameters
    ----------
    segmenter
        With a classical learner, whose features are computed as in a prediction: from all pixels around that have data
        and are not masked. None: the bands in the units of the files.

    Yields
    ------
    features
        float32 (n, F).
    targets
        int16 (T, n); soft labels are hardened. Every pixel is labelled for at least one target.
    """
    margin = 0 if segmenter is None else segmenter.receptive_field or 0
    for area in areas:
        grid, task = area.sample.scene.grid, area.labels.task
        with area.sample.scene.open() as reader:
            for window in iter_windows(area.windows, _WINDOW_PX):
                around = _enlarge(window, margin, grid)
                tile, targets = reader.read(around), area.labels.read(around)
                area.mask(tile, targets, around)
                top, left = int(window.row_off - around.row_off), int(window.col_off - around.col_off)
                inner = (..., slice(top, top + int(window.height)), slice(left, left + int(window.width)))
                targets = task.harden(targets)[inner]
                used = (targets != IGNORE).any(axis=0) & np.isfinite(tile.pixels[inner]).all(axis=0)
                if not used.any():
                    continue
                features = tile.pixels
                if segmenter is not None:
                    pixels, valid = torch.from_numpy(tile.pixels)[None], torch.from_numpy(tile.valid)[None]
                    with torch.inference_mode():
                        features = segmenter.pixel_features(pixels, valid)[0].numpy()
                yield features[inner][:, used].T, targets[:, used]


def _enlarge(window: Window, margin: int, grid: Grid) -> Window:
    """Return a window with a margin on all sides, as far as the scene goes."""
    top, left = max(0, int(window.row_off) - margin), max(0, int(window.col_off) - margin)
    bottom = min(grid.height, int(window.row_off + window.height) + margin)
    right = min(grid.width, int(window.col_off + window.width) + margin)
    return Window(left, top, right - left, bottom - top)


def draw_samples(
    areas: Sequence[LabelledArea],
    segmenter: Segmenter,
    counts: NDArray[np.int64],
    max_pixels: int,
    seed: int,
    class_weights: Sequence[float] | None,
) -> list[PixelSample]:
    """Draw the pixels that a learner of each target is fitted to, in one pass over the areas.

    If a target has more labelled pixels than `max_pixels`, a random sample of about that many is drawn, the same for
    the same seed. Small categories are kept whole; the others have equal numbers. The weights restore the shares.

    Parameters
    ----------
    segmenter
        With a classical learner, which declares features and task.
    counts
        int64 (T, K): labelled pixels of each category of each target.
    max_pixels
        For each target.
    class_weights
        One per channel; None: all 1.
    """
    task = segmenter.task
    shares = np.stack([_kept_shares(each, max_pixels) for each in counts])
    of_class = category_weights(class_weights, task)
    parts: list[list[tuple[NDArray[np.float32], NDArray[np.int16]]]] = [[] for _ in range(task.n_targets)]
    for number, (features, targets) in enumerate(read_labelled_pixels(areas, segmenter)):
        drawn = np.random.default_rng((seed, number)).random(targets.shape)
        for target, categories in enumerate(targets):
            labelled = categories != IGNORE
            kept = labelled & (drawn[target] < shares[target][np.where(labelled, categories, 0)])
            parts[target].append((features[kept], categories[kept]))
    samples = []
    for target, own in enumerate(parts):
        features = np.concatenate([each for each, _ in own]) if own else np.zeros((0, 0), np.float32)
        categories = np.concatenate([each for _, each in own]) if own else np.zeros(0, np.int16)
        weights = of_class[target][categories]
        if (shares[target] < 1).any():
            kept_counts = np.bincount(categories, minlength=len(task.categories))
            weights = weights * (counts[target] / np.maximum(kept_counts, 1))[categories]
        uniform = not len(weights) or bool((weights == weights[0]).all())
        samples.append(
            PixelSample(features, categories, None if uniform else weights / weights.mean(), int(counts[target].sum()))
        )
    return samples


def category_weights(class_weights: Sequence[float] | None, task: Task) -> NDArray[np.float64]:
    """Return the weight of each category of each target, float64 (T, K); 1 for those without a channel."""
    weights = np.ones((task.n_targets, len(task.categories)))
    for place, weight in zip(task.channel_categories, class_weights or (), strict=class_weights is not None):
        weights[place] = weight
    return weights


def _kept_shares(counts: NDArray[np.int64], total: int) -> NDArray[np.float64]:
    """Return the share of each category to keep, so that all are kept that have less than an equal part of `total`."""
    if counts.sum() <= total:
        return np.ones(len(counts))
    quota, left, open_ = np.zeros(len(counts)), float(total), [int(at) for at in np.argsort(counts)]
    while open_:
        smallest = open_.pop(0)
        quota[smallest] = min(counts[smallest], left / (len(open_) + 1))
        left -= quota[smallest]
    return quota / np.maximum(counts, 1)
