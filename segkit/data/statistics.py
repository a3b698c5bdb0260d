"""What training needs to know of its pixels, and of nobody else's: band statistics and label counts, streamed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segkit.data.split import Area, count_categories, read_pieces
from segkit.errors import DataError
from segkit.progress import progress
from segkit.task import Task


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
            A band has no valid pixel.
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
        if not number.any():
            raise DataError(
                "no pixel of the training areas is valid; see segkit check, and make data.val.gap smaller where it "
                "leaves nothing"
            )
        if not number.all():
            scene = areas[0].sample.scene
            empty = scene.band_names[int(np.argmin(number))]
            raise DataError(f"band {empty} has no valid pixel in the training areas; leave it out of data.bands")
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
