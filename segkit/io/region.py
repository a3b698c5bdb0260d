"""An area of interest as a mask of a scene's pixels."""

from __future__ import annotations

import hashlib
import os
from typing import Protocol

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.errors import DataError
from segkit.io.grid import Grid, crs_name
from segkit.io.paths import PathLike
from segkit.io.polygons import Polygons, project_to_grid, rasterize_shapes, read_polygons


class Region(Protocol):
    """A part of a scene."""

    def mask(self, window: Window) -> NDArray[np.bool_]:
        """Return which pixels of a window are in the region, bool (H, W)."""


def read_aoi(path: PathLike, layer: str | None = None) -> Polygons:
    """Read the polygons of an area of interest.

    Raises
    ------
    MissingFileError
        The file does not exist.
    DataError
        The file is unreadable, has several layers and no `layer` is given, has points or lines, or has no polygon.
    """
    polygons = read_polygons(os.fspath(path), layer, option="--aoi-layer")
    if not polygons.shapes.size:
        raise DataError(f"{path}: has no polygon; an area of interest must have polygons")
    return polygons


def aoi_fingerprint(polygons: Polygons) -> str:
    """Return the file name of an area of interest and a checksum of its polygons."""
    crs = "" if polygons.crs is None else polygons.crs.to_wkt()
    digest = hashlib.sha256(b"".join(shapely.to_wkb(polygons.shapes)) + crs.encode()).hexdigest()
    return f"{polygons.path.name} sha256:{digest}"


class PolygonRegion:
    """The pixels of a grid whose centre lies in a polygon.

    Parameters
    ----------
    polygons
        In any CRS.
    grid
        The scene's grid.

    Raises
    ------
    GridError
        Only one of the two has a CRS, or the polygons cannot be transformed to the scene's CRS.
    DataError
        No polygon overlaps the scene.
    """

    def __init__(self, polygons: Polygons, grid: Grid) -> None:
        shapes, _, _ = project_to_grid(polygons, grid)
        self._tree = shapely.STRtree(shapes)
        if not self._tree.query(_box(grid.full_window), predicate="intersects").size:
            raise DataError(
                f"{polygons.path}: does not overlap the scene, which has the bounds {_format_bounds(grid.bounds)} in "
                f"{crs_name(grid.crs)}; the polygons have {_format_bounds(shapely.total_bounds(polygons.shapes))} in "
                f"{crs_name(polygons.crs)}; give another area or scene"
            )

    def mask(self, window: Window) -> NDArray[np.bool_]:
        """Return which pixels have their centre in a polygon, bool (H, W)."""
        return rasterize_shapes(self._tree.geometries[self._tree.query(_box(window))], window)


def _box(window: Window) -> shapely.Polygon:
    return shapely.box(window.col_off, window.row_off, window.col_off + window.width, window.row_off + window.height)


def _format_bounds(bounds: object) -> str:
    return ", ".join(f"{value:.6g}" for value in np.asarray(bounds))
