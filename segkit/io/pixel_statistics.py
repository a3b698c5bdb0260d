"""Statistics of the pixels of each band, gathered window by window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_CODE_BYTES = 2  # integers of more bytes have too many values to be counted one by one


@dataclass(frozen=True)
class BandStatistics:
    """Statistics of the stored values of a band.

    Parameters
    ----------
    minimum, maximum, mean, deviation
        Of pixels with data; the standard deviation is that of the population, as GDAL computes it.
    pixels
        Number of pixels with data, at least one.
    share
        Share of pixels with data.
    """

    minimum: float
    maximum: float
    mean: float
    deviation: float
    pixels: int
    share: float


class PixelStatistics:
    """Gathers the statistics of a raster's bands from its windows; of codes (uint8, uint16) it counts each value.

    Parameters
    ----------
    bands, dtype, nodata
        Of the raster.
    """

    def __init__(self, bands: int, dtype: np.dtype[Any], nodata: float) -> None:
        self._nodata = nodata
        self._seen = 0  # pixels of one band, with or without data
        self._has_codes = dtype.kind == "u" and dtype.itemsize <= _MAX_CODE_BYTES
        # For each code, or for each band of numbers: the count.
        self.counts: NDArray[np.int64] = np.zeros((bands, 256**dtype.itemsize if self._has_codes else 1), np.int64)
        self._range = np.tile([math.inf, -math.inf], (bands, 1))
        self._moments = np.zeros((bands, 2))  # mean, and sum of squared differences from it

    def add(self, values: NDArray[Any]) -> None:
        """Add the values (bands, H, W) of a window."""
        self._seen += values[0].size
        for band, found in enumerate(values):
            if self._has_codes:
                self.counts[band] += np.bincount(found.ravel(), minlength=self.counts.shape[1])
            else:
                self._add_numbers(band, found)

    def _add_numbers(self, band: int, found: NDArray[Any]) -> None:
        no_data = np.isnan(found) if math.isnan(self._nodata) else found == self._nodata
        numbers = found[~no_data].astype(np.float64)
        if numbers.size:
            self._range[band] = min(self._range[band, 0], numbers.min()), max(self._range[band, 1], numbers.max())
            self._add_moments(band, numbers.size, float(numbers.mean()), float(numbers.var()) * numbers.size)

    def _add_moments(self, band: int, pixels: int, mean: float, squares: float) -> None:
        """Combine the moments of two sets of numbers (Chan et al. 1979)."""
        before, total = int(self.counts[band, 0]), int(self.counts[band, 0]) + pixels
        step = mean - self._moments[band, 0]
        self._moments[band] += step * pixels / total, squares + step**2 * before * pixels / total
        self.counts[band, 0] = total

    def of_band(self, band: int) -> BandStatistics | None:
        """Return the statistics of a band, counted from 0; None without data."""
        counts = self.counts[band].copy()
        if self._has_codes:
            counts[int(self._nodata)] = 0
        pixels = int(counts.sum())
        if pixels == 0:
            return None
        if not self._has_codes:
            (low, high), (mean, squares) = self._range[band].tolist(), self._moments[band].tolist()
            return BandStatistics(low, high, mean, math.sqrt(squares / pixels), pixels, pixels / self._seen)
        codes = np.flatnonzero(counts)
        mean = float(codes @ counts[codes]) / pixels
        deviation = math.sqrt(float((codes - mean) ** 2 @ counts[codes]) / pixels)
        return BandStatistics(float(codes[0]), float(codes[-1]), mean, deviation, pixels, pixels / self._seen)
