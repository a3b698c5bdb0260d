"""The offset of labels from their image, by the likelihood of shifted labels under out-of-fold probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segkit.auditing.squares import Squares

_MIN_SQUARE_PX = 32  # side of the squares over which likelihoods are summed, which are drawn for the standard error
_RESAMPLES = 200
# A learner that never met some values says 0; one such pixel should not decide.
_MIN_PROBABILITY = 0.01


@dataclass(frozen=True)
class LabelShift:
    """How far the labels of a scene lie from their image.

    Parameters
    ----------
    x, y
        Offset in pixels: positive if the labels lie too far to the right, and too far down.
    error_x, error_y
        Standard errors, from a bootstrap of squares of pixels; None with fewer than two squares.
    """

    x: float
    y: float
    error_x: float | None
    error_y: float | None

    @property
    def length(self) -> float:
        """The distance in pixels."""
        return math.hypot(self.x, self.y)

    @property
    def significant(self) -> bool:
        """Whether the labels lie at least half a pixel off, and three standard errors."""
        if self.error_x is None or self.error_y is None:
            return False
        return self.length >= max(0.5, 3 * math.hypot(self.error_x, self.error_y))


class ShiftEstimator:
    """Sums the log-likelihood of labels at each shift of whole pixels; its maximum is refined by a parabola.

    Only pixels near a border of the labels are used, since at all others a shift changes nothing, and all shifts are
    compared on the same pixels.

    Parameters
    ----------
    shape
        Rows and columns of the scene.
    reach
        Largest shift that is tried, in pixels.
    """

    def __init__(self, shape: tuple[int, int], reach: int) -> None:
        self.reach = reach
        self._squares = Squares(shape, _MIN_SQUARE_PX)
        self._sums = np.zeros((self._squares.number, 2 * reach + 1, 2 * reach + 1))
        self._pixels = np.zeros(self._squares.number, dtype=np.int64)

    def add(self, labels: NDArray[np.int16], probabilities: NDArray[np.float32], top: int, rows: slice) -> None:
        """Add rows of a target.

        Parameters
        ----------
        labels
            Category indices (H, W), negative where not known, with up to `reach` rows more above and below.
        probabilities
            Of each category, (K, H, W).
        top
            Row of the scene at which the arrays start.
        rows
            The rows of the arrays that count.
        """
        row, column = np.nonzero(self._near_borders(labels, rows))
        if not row.size:
            return
        logs = np.log(np.maximum(probabilities[:, row, column], _MIN_PROBABILITY)).astype(np.float64)
        square = self._squares.find(row + top, column)
        self._pixels += np.bincount(square, minlength=len(self._pixels))
        every = np.arange(row.size)
        for down in range(-self.reach, self.reach + 1):
            for right in range(-self.reach, self.reach + 1):
                found = logs[labels[row + down, column + right], every]
                sums = np.bincount(square, found, minlength=len(self._pixels))
                self._sums[:, down + self.reach, right + self.reach] += sums

    def _near_borders(self, labels: NDArray[np.int16], rows: slice) -> NDArray[np.bool_]:
        """Return the pixels all of whose shifted labels are known, and not all the same."""
        from scipy.ndimage import maximum_filter, minimum_filter

        size = 2 * self.reach + 1
        lowest = minimum_filter(labels, size, mode="constant", cval=-1)
        used = (lowest >= 0) & (maximum_filter(labels, size, mode="constant", cval=-1) > lowest)
        inside = np.zeros(labels.shape, dtype=bool)
        inside[rows] = used[rows]
        return inside

    def estimate(self, seed: int = 0) -> LabelShift | None:
        """Return the offset; None if the maximum is not found within reach, or no label has a border."""
        used = self._pixels > 0
        sums = self._sums[used]
        if not used.any() or (peak := _find_peak(sums.sum(axis=0))) is None:
            return None
        errors: tuple[float | None, float | None] = None, None
        if len(sums) > 1:
            random = np.random.default_rng(seed)
            drawn = random.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=_RESAMPLES)
            peaks = [found for one in drawn if (found := _find_peak(np.tensordot(one, sums, axes=1))) is not None]
            if len(peaks) > _RESAMPLES // 2:
                spread = np.std(peaks, axis=0, ddof=1)
                errors = float(spread[1]), float(spread[0])
        return LabelShift(peak[1], peak[0], *errors)


def _find_peak(surface: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the place of the maximum of a surface from its centre (down, right), by a parabola along each axis.

    None if the maximum lies on the edge.
    """
    row, column = (int(each) for each in np.unravel_index(surface.argmax(), surface.shape))
    if not (0 < row < surface.shape[0] - 1 and 0 < column < surface.shape[1] - 1):
        return None
    place = []
    for at, line in ((row, surface[:, column]), (column, surface[row])):
        before, here, after = line[at - 1 : at + 2]
        curvature = before - 2 * here + after
        place.append(at + (float((before - after) / (2 * curvature)) if curvature else 0.0) - len(line) // 2)
    return place[0], place[1]
