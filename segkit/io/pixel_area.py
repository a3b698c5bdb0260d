"""True areas of pixels, and pixels and areas counted by class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.errors import GridError
from segkit.io.grid import Grid

_PATCH_PIXELS = 16  # side of a square of pixels that get their mean area ...
_MAX_PATCH_STEP = 1e-4  # ... if the means of neighbouring patches differ by less than this share


def has_areas(grid: Grid) -> bool:
    """Return whether the grid has a CRS in which true areas can be computed."""
    try:
        grid.hectares(Window(0, 0, 1, 1))
    except GridError:
        return False
    return True


def pixel_hectares(grid: Grid, window: Window) -> NDArray[np.float64]:
    """Return the true area of each pixel of a window in hectares, float64 (H, W).

    `Grid.hectares` for every pixel takes as long as a network. If areas hardly change over a few pixels, each pixel
    gets the mean of its patch: exact to 1e-4 per pixel, and much better in sums over many patches.
    """
    part = grid.subgrid(window)
    patches = Grid(
        -(-part.height // _PATCH_PIXELS),
        -(-part.width // _PATCH_PIXELS),
        part.transform @ Affine.scale(_PATCH_PIXELS),
        part.crs,
    )
    mean = patches.hectares() / _PATCH_PIXELS**2
    max_step = max(np.abs(np.diff(mean, axis=axis)).max(initial=0) for axis in (0, 1))
    if min(mean.shape) < 2 or not max_step < _MAX_PATCH_STEP * mean.min():
        return grid.hectares(window)
    return mean.repeat(_PATCH_PIXELS, axis=0)[: part.height].repeat(_PATCH_PIXELS, axis=1)[:, : part.width]


class AreaTally:
    """Count the pixels and true hectares of classes, window by window.

    Parameters
    ----------
    n_classes
        Classes of each target.
    grid
        The map's grid.
    n_targets
        Number of class arrays of a pixel, as in `Task`.

    Attributes
    ----------
    pixels
        int64 (n_targets, n_classes).
    hectares
        float64 (n_targets, n_classes); None if the grid has no true areas.
    """

    def __init__(self, n_classes: int, grid: Grid, *, n_targets: int = 1) -> None:
        self._grid = grid
        self.pixels: NDArray[np.int64] = np.zeros((n_targets, n_classes), dtype=np.int64)
        self.hectares: NDArray[np.float64] | None = np.zeros((n_targets, n_classes)) if has_areas(grid) else None

    def add(self, targets: Iterable[NDArray[np.integer[Any]]], valid: NDArray[np.bool_], window: Window) -> None:
        """Count the valid pixels of a window.

        Parameters
        ----------
        targets
            For each target, the class index of each pixel, int (H, W); invalid pixels may hold any value.
        valid
            Pixels that are counted, bool (H, W).
        """
        # An ellipsis does not copy.
        counted = ... if valid.all() else valid
        area = None if self.hectares is None else pixel_hectares(self._grid, window)[counted].ravel()
        for target, classes in enumerate(targets):
            index = classes[counted].ravel()
            self.pixels[target] += np.bincount(index, minlength=self.pixels.shape[1])
            if self.hectares is not None:
                self.hectares[target] += np.bincount(index, weights=area, minlength=self.pixels.shape[1])

    def extend(self, n_classes: int) -> None:
        """Add classes, so that each target has `n_classes`."""
        new = ((0, 0), (0, n_classes - self.pixels.shape[1]))
        self.pixels = np.pad(self.pixels, new)
        if self.hectares is not None:
            self.hectares = np.pad(self.hectares, new)
