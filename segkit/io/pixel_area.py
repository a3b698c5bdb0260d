"""True areas of pixels, quickly."""

from __future__ import annotations

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.errors import GridError
from segkit.io.grid import Grid

_PATCH = 16  # pixels along a side whose areas count as one ...
_ALIKE = 1e-4  # ... where patches of a block differ by less than this share


def has_areas(grid: Grid) -> bool:
    """Whether the grid's CRS says where on the ground its pixels lie."""
    try:
        grid.hectares(Window(0, 0, 1, 1))
    except GridError:
        return False
    return True


def pixel_hectares(grid: Grid, window: Window) -> NDArray[np.float64]:
    """True area of each pixel of a window, float64 of its shape.

    `Grid.hectares` of every pixel takes as long as a network. Where areas hardly change over a few pixels, each gets
    the mean of its patch, which is right to a ten-thousandth, and in sums over many patches far better.
    """
    part = grid.part(window)
    patches = Grid(-(-part.height // _PATCH), -(-part.width // _PATCH), part.transform @ Affine.scale(_PATCH), part.crs)
    mean = patches.hectares() / _PATCH**2
    steps = max(np.abs(np.diff(mean, axis=axis)).max(initial=0) for axis in (0, 1))
    if min(mean.shape) < 2 or not steps < _ALIKE * mean.min():
        return grid.hectares(window)
    return mean.repeat(_PATCH, axis=0)[: part.height].repeat(_PATCH, axis=1)[:, : part.width]
