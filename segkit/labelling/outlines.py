"""Outlines of windows, and shapes of several scenes in one CRS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.windows import Window

from segkit.errors import UsageError
from segkit.io.cover import window_polygon
from segkit.io.grid import Grid, crs_name
from segkit.io.polygons import apply_affine

_SEVERAL_CRS = "EPSG:4326"
_HALF_CIRCLE = 180  # degrees; what is wider in longitude was torn apart


def common_crs(grids: Sequence[Grid]) -> CRS | None:
    """Return the CRS of scenes, or geographic coordinates if they have several.

    Raises
    ------
    UsageError
        Only some have a CRS.
    """
    found = {grid.crs for grid in grids}
    if len(found) == 1:
        return grids[0].crs
    if None in found:
        names = sorted({crs_name(crs) for crs in found})
        raise UsageError(f"some scenes have a CRS and others none ({', '.join(names)}); assign the missing one")
    return CRS.from_string(_SEVERAL_CRS)


def outline_windows(grid: Grid, windows: Sequence[Window], crs: CRS | None) -> NDArray[Any]:
    """Return windows of a grid as polygons in a CRS."""
    boxes = np.array([window_polygon(window) for window in windows], dtype=object)
    return reproject(apply_affine(boxes, grid.transform), grid.crs, crs)


def reproject(shapes: NDArray[Any], own: CRS | None, other: CRS | None) -> NDArray[Any]:
    """Return shapes in another CRS; vertices that neighbours share stay shared, since only vertices are moved.

    Raises
    ------
    UsageError
        One has no outline in longitude and latitude: it reaches over the antimeridian.
    """
    if own is None or other is None or own == other:
        return shapes
    transformer = pyproj.Transformer.from_crs(own.to_wkt(), other.to_wkt(), always_xy=True)
    moved = np.asarray(shapely.transform(shapes, transformer.transform, interleaved=False), dtype=object)
    left, _, right, _ = shapely.bounds(moved).reshape(-1, 4).T
    if other.is_geographic and (right - left > _HALF_CIRCLE).any():
        raise UsageError(
            f"a window or polygon in {crs_name(own)} reaches over the antimeridian, so it has no outline in longitude "
            "and latitude, in which scenes of several CRSs are written; give those of one CRS at a time"
        )
    return moved
