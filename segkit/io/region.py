"""Region: the part of a scene that is asked for."""

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
from segkit.io.polygons import Polygons, on_grid, rasterised, read_polygons
from segkit.io.raster import PathLike


class Region(Protocol):
    """Says which pixels of a scene are asked for."""

    def mask(self, window: Window) -> NDArray[np.bool_]:
        """Return true where a pixel of the window is asked for, bool (H, W)."""


def read_area(path: PathLike, layer: str | None = None) -> Polygons:
    """Read the polygons of an area of interest.

    Raises
    ------
    MissingFileError
        Nothing is there.
    DataError
        The file cannot be read, has several layers and none is named, holds points or lines, or no polygon.
    """
    polygons = read_polygons(os.fspath(path), layer, option="--aoi-layer")
    if not polygons.shapes.size:
        raise DataError(f"{path}: holds no polygon; an area of interest is made of polygons")
    return polygons


def identity(polygons: Polygons) -> str:
    """Return what tells an area of interest apart from another: its file's name, and a checksum of the polygons."""
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
        The scene's.

    Raises
    ------
    GridError
        Only one of both has a CRS, or the polygons have no place in the scene's CRS.
    DataError
        None of the polygons meets the scene.
    """

    def __init__(self, polygons: Polygons, grid: Grid) -> None:
        shapes, _, _ = on_grid(polygons, grid)
        self._tree = shapely.STRtree(shapes)
        if not self._tree.query(_box(grid.whole), predicate="intersects").size:
            raise DataError(
                f"{polygons.path}: does not meet the scene, which lies at {_six(grid.bounds)} in {crs_name(grid.crs)}, "
                f"the polygons at {_six(shapely.total_bounds(polygons.shapes))} in {crs_name(polygons.crs)}; name "
                "another area or scene"
            )

    def mask(self, window: Window) -> NDArray[np.bool_]:
        """Return true where a pixel's centre lies in a polygon, bool (H, W)."""
        return rasterised(self._tree.geometries[self._tree.query(_box(window))], window)


def _box(window: Window) -> shapely.Polygon:
    return shapely.box(window.col_off, window.row_off, window.col_off + window.width, window.row_off + window.height)


def _six(bounds: object) -> str:
    return ", ".join(f"{value:.6g}" for value in np.asarray(bounds))
