"""Bands that are tagged as alpha: masks, or imagery that a program tagged so because it is the fourth band."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segkit.io.grid import lattice_windows
from segkit.io.raster import open_raster, read_grid, read_window

# Sampled windows: number along each side, and side in pixels.
_LATTICE, _WINDOW_PX = 8, 32
# A mask has two values, and few others where its edge was smoothed.
_MAX_OTHER_SHARE = 0.02


def has_varying_values(path: Path, band: int, *, vrt: bool | None = None) -> bool:
    """Return whether a band (from 1) has many values, as imagery does and a mask does not; a sample of it is read.

    Raises
    ------
    RasterError
        The file is damaged there.
    """
    with open_raster(path, vrt=vrt) as dataset:
        windows = lattice_windows(read_grid(dataset), _LATTICE, _WINDOW_PX)
        values = np.concatenate([read_window(dataset, [band], window).ravel() for window in windows])
    counts = np.sort(np.unique(values, return_counts=True)[1])
    return bool(counts[:-2].sum() > _MAX_OTHER_SHARE * values.size)
