"""What training needs to know of its pixels, and of nobody else's: band statistics and label counts, streamed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segkit.data.area import Area, count_categories, read_pieces
from segkit.errors import DataError
from segkit.runtime.progress import progress
from segkit.task.task import Task


@dataclass(frozen=True)
class Statistics:
    """Statistics of training areas.

    Parameters
    ----------
    mean, std
        Of each band over valid pixels, in the files' own units.
    counts
        int64 (P, K): known pixels of each category of each plane.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, areas: Sequence[Area], task: Task, *, show_progress: bool = False) -> Statistics:
        """Read areas once, piece by piece.

        Hidden pixels are left out. Means and squared deviations of pieces are joined in float64 (Chan, Golub and
        LeVeque 1983, "Algorithms for Computing the Sample Variance", formula 2.1), so nothing cancels.

        Raises
        ------
        DataError
            No pixel is valid and has a known label, or a band has no valid pixel.
        """
        bands = len(areas[0].sample.scene.bands)
        number, mean, squares = np.zeros(bands), np.zeros(bands), np.zeros(bands)
        counts = np.zeros(task.planes * len(task.categories), dtype=np.int64)
        total = sum(int(window.width * window.height) for area in areas for window in area.windows)
        with progress("statistics", total / 1e6, "Mpx", show=show_progress) as advance:
            for tile, planes, window in read_pieces(areas):
                counts += count_categories(planes, task)
                for band, pixels in enumerate(tile.pixels):
                    values = pixels[tile.valid & np.isfinite(pixels)].astype(np.float64)
                    if values.size:
                        joined = number[band] + values.size
                        apart = values.mean() - mean[band]
                        squares[band] += ((values - values.mean()) ** 2).sum()
                        squares[band] += apart**2 * number[band] * values.size / joined
                        mean[band] += apart * values.size / joined
                        number[band] = joined
                advance(window.width * window.height / 1e6)
        if not counts.any():
            raise DataError(
                "nothing is left to train: where training scenes hold data and have known labels, something validates, "
                "or lies within data.val.gap of it; make data.val.gap and data.val.block smaller, or validate elsewhere"
                if any(area.hidden for area in areas)
                else "nothing is there to train: no pixel of the training scenes holds data and has a known label; "
                "correct the labels or data.train"
            )
        if not number.all():
            scene = areas[0].sample.scene
            empty = np.flatnonzero(number == 0)
            listed = ", ".join(f"{scene.bands[place]} ({scene.band_names[place]})" for place in empty)
            raise DataError(f"no pixel of the training areas is valid in band {listed}; leave it out of data.bands")
        std = np.sqrt(squares / number)
        return cls(tuple(mean.tolist()), tuple(std.tolist()), counts.reshape(task.planes, -1))


def balanced_weights(counts: NDArray[np.int64], task: Task) -> dict[str, float]:
    """Weigh each channel's category by total / (categories x its pixels), so that all weigh alike in sum.

    The rule is scikit-learn's ``class_weight="balanced"`` (King and Zeng 2001), within each plane. A category that
    never occurs weighs 1.
    """
    weights = {}
    for name, (plane, category) in zip(task.channel_names, task.speaks_for, strict=True):
        pixels = counts[plane, category]
        others = counts[plane].sum()
        weights[name] = float(others / (counts.shape[1] * pixels)) if pixels else 1.0
    return weights


def effective_weights(counts: NDArray[np.int64], task: Task) -> dict[str, float]:
    """Weigh each channel's category by the inverse of its effective number of samples, which saturates.

    n pixels count as (1 - β^n) / (1 - β), the expected number of different ones among n drawn from N prototypes, with
    β = 1 - 1/N (Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples", section 3). N is the known
    pixels of the plane: how many prototypes there are is not known, and pixels are the most that can be told apart.
    So small classes weigh by their inverse share, as balanced ones do, and large ones, which repeat themselves, a
    little more than that: one that fills a plane counts as 0.63 of it.

    With softmax the weights of the channels have the mean 1. A sigmoid channel's weight is that of its category over
    that of the other pixels, which weigh 1 in the losses; scaled to a mean it would be 1 for a single class, whatever
    its share. A category that never occurs, or that nothing stands against, weighs 1 and is in no mean.
    """
    weights: dict[str, float] = {}
    for name, (plane, category) in zip(task.channel_names, task.speaks_for, strict=True):
        pixels, known = int(counts[plane, category]), int(counts[plane].sum())
        if 0 < pixels < known:
            others = _effective(known - pixels, known) if task.head == "sigmoid" else 1.0
            weights[name] = others / _effective(pixels, known)
    mean = sum(weights.values()) / len(weights) if weights and task.head == "softmax" else 1.0
    return {name: weights[name] / mean if name in weights else 1.0 for name in task.channel_names}


def _effective(pixels: int, prototypes: int) -> float:
    """(1 - β^pixels) / (1 - β) for β = 1 - 1 / prototypes, without the rounding of a power of nearly 1."""
    return -math.expm1(pixels * math.log1p(-1 / prototypes)) * prototypes


CLASS_WEIGHTS = {"balanced": balanced_weights, "effective": effective_weights}


def class_weights(
    given: str | Mapping[str, float] | Sequence[float] | None, counts: NDArray[np.int64], task: Task
) -> list[float] | None:
    """Return the weight of each channel, or None where none are wanted.

    Parameters
    ----------
    given
        A name in `CLASS_WEIGHTS`; {name of a channel: weight}, where those left out weigh 1; or a weight per channel.
    counts
        int64 (P, K): known pixels of each category of each plane.

    Raises
    ------
    KeyError
        A name is not in `CLASS_WEIGHTS`; recipes are checked before.
    """
    if given is None:
        return None
    if isinstance(given, str):
        given = CLASS_WEIGHTS[given](counts, task)
    if isinstance(given, Mapping):
        return [given.get(name, 1.0) for name in task.channel_names]
    return list(given)
