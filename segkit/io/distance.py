"""Distance: which pixels lie near others."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_FEW_STEPS = 400  # so many shifts of a mask take less time than distances


def near(mask: NDArray[np.bool_], metres: float, pixel: tuple[float, float]) -> NDArray[np.bool_]:
    """Say which pixels lie within so many metres of one of a mask (H, W), centre to centre; `pixel` as for `add`."""
    if not mask.any():
        return mask
    # A hair more, so that rounding does not decide about what lies at the width.
    width = metres * (1 + 1e-9)
    right, down = (math.floor(width / side) for side in pixel)
    if (2 * right + 1) * (2 * down + 1) <= _FEW_STEPS:
        found = mask.copy()
        rows, columns = np.mgrid[-down : down + 1, -right : right + 1]
        steps = np.argwhere((rows * pixel[1]) ** 2 + (columns * pixel[0]) ** 2 <= width**2) - (down, right)
        for row, column in steps.tolist():
            if abs(row) < mask.shape[0] and abs(column) < mask.shape[1]:
                to, since = zip(_shifted(row), _shifted(column), strict=True)
                found[to] |= mask[since]
        return found
    from scipy.ndimage import distance_transform_edt

    away: NDArray[np.float64] = distance_transform_edt(~mask, sampling=pixel[::-1])
    return away <= width


def _shifted(step: int) -> tuple[slice, slice]:
    """Return where a shift along an axis puts values, and which ones."""
    return slice(max(step, 0), min(step, 0) or None), slice(max(-step, 0), min(-step, 0) or None)
