"""Pixels within a distance of others."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_MAX_SHIFTS = 400  # up to this number, shifting the mask is faster than a distance transform


def within_distance(mask: NDArray[np.bool_], metres: float, pixel: tuple[float, float]) -> NDArray[np.bool_]:
    """Return the pixels within a distance of the pixels of a mask, centre to centre.

    Parameters
    ----------
    mask
        bool (H, W).
    metres
        The distance.
    pixel
        Lengths of a pixel's sides along a row and along a column, in metres.

    Returns
    -------
    bool (H, W)
    """
    if not mask.any():
        return mask
    # Slightly more, so that pixels at exactly this distance are included in spite of rounding.
    width = metres * (1 + 1e-9)
    right, down = (math.floor(width / side) for side in pixel)
    if (2 * right + 1) * (2 * down + 1) <= _MAX_SHIFTS:
        found = mask.copy()
        rows, columns = np.mgrid[-down : down + 1, -right : right + 1]
        steps = np.argwhere((rows * pixel[1]) ** 2 + (columns * pixel[0]) ** 2 <= width**2) - (down, right)
        for row, column in steps.tolist():
            if abs(row) < mask.shape[0] and abs(column) < mask.shape[1]:
                target, source = zip(_shift_slices(row), _shift_slices(column), strict=True)
                found[target] |= mask[source]
        return found
    from scipy.ndimage import distance_transform_edt

    distances: NDArray[np.float64] = distance_transform_edt(~mask, sampling=pixel[::-1])
    return distances <= width


def _shift_slices(step: int) -> tuple[slice, slice]:
    """Return the target and source slices of a shift along an axis."""
    return slice(max(step, 0), min(step, 0) or None), slice(max(-step, 0), min(-step, 0) or None)
