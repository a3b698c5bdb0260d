"""Where a model applies: the dissimilarity index of each pixel of a scene, for one model or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segkit.errors import UsageError
from segkit.models.ensemble import members
from segkit.models.training_pixels import DissimilarityIndex, TrainingPixels
from segkit.task.array_library import to_numpy

if TYPE_CHECKING:
    from segkit.models.ensemble import AnyModel

_CHUNK_PIXELS = 2**15  # whose bands are copied at a time
_MIN_THRESHOLD = 1e-9  # if training pixels of different scenes are the same
_DEFINITION = (
    "Distance of a pixel to the nearest training pixel, divided by the mean distance between training pixels (Meyer "
    "and Pebesma 2021)"
)


class ApplicabilityIndex:
    """The dissimilarity index of pixels, and the threshold above which they are outside the area of applicability.

    A pixel is outside for several models if it is outside for each of them. Their index is the smallest one, each
    relative to its model's threshold, so the threshold is 1.

    Parameters
    ----------
    trainings
        Training pixels of each model.
    means
        Mean of each band, (C), for each model. Bands without data get it, as before the network.
    """

    def __init__(self, trainings: Sequence[TrainingPixels], means: Sequence[NDArray[np.float32]]) -> None:
        self._indices = [DissimilarityIndex(one) for one in trainings]
        self._means = means
        several = len(trainings) > 1
        self._divisors = [max(one.threshold, _MIN_THRESHOLD) if several else 1.0 for one in trainings]
        # As a float32 number it gives the same result compared in float32 and in float64.
        self.threshold = 1.0 if several else float(np.float32(trainings[0].threshold))

    @classmethod
    def from_model(cls, model: AnyModel) -> ApplicabilityIndex:
        """Return the index of a model.

        Raises
        ------
        UsageError
            A model holds no training pixels.
        """
        models = members(model)
        for one in models:
            if one.training_pixels is None:
                raise UsageError(
                    f"{one.path or 'a model in memory'}: holds no training pixels, so its area of applicability is not "
                    "known (models of segkit 0.2 hold none, nor do models of a single small scene); train it again, or "
                    "leave applicability out"
                )
        found = [one.training_pixels for one in models if one.training_pixels is not None]
        return cls(found, [to_numpy(one.mean.flatten()) for one in models])

    @property
    def tags(self) -> dict[str, str]:
        """Metadata of a raster of the index."""
        relative = (
            "" if len(self._indices) == 1 else ", relative to the threshold of each model; the smallest of all models"
        )
        return {
            "segkit_applicability": f"{_DEFINITION}{relative}. A pixel is outside the area of applicability if its "
            "value is larger than segkit_applicability_threshold.",
            "segkit_applicability_threshold": repr(self.threshold),
        }

    def of_pixels(
        self, pixels: NDArray[np.float32], valid: NDArray[np.bool_], *, threads: int = 1
    ) -> NDArray[np.float32]:
        """Return the index of the pixels (C, H, W) of a tile, float32 (H, W); NaN where not valid.

        Parameters
        ----------
        valid
            bool (H, W).
        threads
            At most this many are used.
        """
        result = np.full(valid.shape, np.nan, dtype=np.float32)
        rows = max(1, _CHUNK_PIXELS // valid.shape[1])
        for top in range(0, len(valid), rows):
            chunk = slice(top, top + rows)
            if valid[chunk].any():
                result[chunk][valid[chunk]] = self._of_list(pixels[:, chunk][:, valid[chunk]].T, threads)
        return result

    def _of_list(self, pixels: NDArray[np.float32], threads: int) -> NDArray[np.float32]:
        """Return the index of pixels (n, C), float32 (n)."""
        has_gaps = bool(np.isnan(pixels).any())
        smallest = np.full(len(pixels), np.inf)
        for index, mean, divisor in zip(self._indices, self._means, self._divisors, strict=True):
            filled = np.where(np.isnan(pixels), mean, pixels) if has_gaps else pixels
            smallest = np.minimum(smallest, index(filled, threads) / divisor)
        return smallest.clip(max=np.finfo(np.float32).max).astype(np.float32)
