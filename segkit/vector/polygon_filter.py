"""Which polygons are kept: by their area, and by the mean probability of their class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segkit.errors import UsageError, suggest
from segkit.io.quantities import Quantity, parse_area
from segkit.vector.geometry import take_polygons
from segkit.vector.tracing.rings import Polygons


@dataclass
class PolygonFilter:
    """Leaves out finished polygons, each as a whole; its neighbours do not change.

    A polygon whose value is not known is left out: that of no pixel with a probability, or beyond the domain of the
    CRS.

    Parameters
    ----------
    max_area
        Maximum area, as it is written: of the polygon after generalisation, or its number of pixels.
    min_confidence
        Minimum mean probability of the class in the polygon.
    left_out
        Number of polygons that were left out so far.
    """

    max_area: Quantity | None = None
    min_confidence: float | None = None
    left_out: int = 0

    @classmethod
    def from_text(
        cls, *, max_area: str | None, min_confidence: float | None, min_area: Quantity | None, has_confidence: bool
    ) -> PolygonFilter:
        """Parse the limits.

        Parameters
        ----------
        min_area
            Smaller regions are merged before.
        has_confidence
            Whether there are probabilities.

        Raises
        ------
        UsageError
            A limit is invalid, would leave out all polygons, or needs probabilities.
        """
        largest = None if max_area is None else parse_area(max_area, "max_area")
        if largest is not None and largest.number == 0:
            raise UsageError(f"max_area {max_area}: leaves out every polygon; give an area above 0")
        if largest and min_area and largest.pixels == min_area.pixels and largest.number < min_area.number:
            raise UsageError(
                f"max_area {max_area}: is below min_area, and smaller areas are merged before; give a larger one"
            )
        if min_confidence is not None:
            if not 0 <= min_confidence <= 1:
                raise UsageError(f"min_confidence {min_confidence:g}: must be from 0 to 1; 0.7 means 70 %")
            if not has_confidence:
                raise UsageError(
                    "min_confidence: needs the probabilities of the map"
                    + suggest("give those that segkit predict --probabilities wrote (--probabilities)")
                )
        return cls(largest, min_confidence)

    def check(self, *, has_areas: bool) -> None:
        """Raise a UsageError if the limit is in hectares and the map's pixels have no true areas."""
        if self.max_area is not None and not self.max_area.pixels and not has_areas:
            raise UsageError("max_area: the map has no CRS to measure areas in; give pixels, such as 1200px")

    def apply(self, polygons: Polygons) -> Polygons:
        """Return the polygons within the limits, in their order."""
        kept = np.ones(len(polygons.class_index), dtype=bool)
        if self.max_area is not None:
            area = polygons.pixels if self.max_area.pixels else polygons.area
            kept &= area <= self.max_area.number  # False if NaN
        if self.min_confidence is not None:
            kept &= mean_confidence(polygons.confidence_sum, polygons.confidence_count) >= self.min_confidence
        if kept.all():
            return polygons
        self.left_out += int(np.count_nonzero(~kept))
        return take_polygons(polygons, np.flatnonzero(kept))


def mean_confidence(total: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return means of probabilities; NaN without a pixel that has one."""
    mean = np.full(count.size, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean
