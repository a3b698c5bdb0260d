"""Regions of a scene as windows and polygons in pixel coordinates, also on the grid of another scene."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.io.grid import Grid
from segkit.io.polygons import apply_affine, rasterize_shapes

_MAX_EDGE_PX = 64.0  # longer edges are split before reprojection, since they become curves in another CRS
_CIRCLE_FACTOR = 1.005  # a polygon of 32 edges with this radius contains the circle of radius 1


@dataclass(frozen=True)
class PixelRegion:
    """Pixels of a grid: those in any of the windows, and those whose centre is in any of the polygons.

    Parameters
    ----------
    windows
        In pixels of the grid.
    polygons
        In pixel coordinates of the grid: x is the column, y the row, and pixel centres are at .5.
    """

    windows: tuple[Window, ...] = ()
    polygons: tuple[shapely.Polygon | shapely.MultiPolygon, ...] = ()

    def __bool__(self) -> bool:
        """Whether there are windows or polygons."""
        return bool(self.windows or self.polygons)

    @functools.cached_property
    def shapes(self) -> NDArray[Any]:
        """All windows and polygons, as polygons."""
        return np.array([*(window_polygon(window) for window in self.windows), *self.polygons], dtype=object)

    @functools.cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self.shapes)

    def mask(self, window: Window) -> NDArray[np.bool_]:
        """Return the mask of a window, bool (H, W); true inside the region."""
        in_windows = np.zeros((int(window.height), int(window.width)), dtype=bool)
        polygons = []
        for index in self._tree.query(window_polygon(window)):
            if index < len(self.windows):
                in_windows[overlap(self.windows[index], window)] = True
            else:
                polygons.append(self.shapes[index])
        return in_windows | rasterize_shapes(polygons, window)

    def buffered(self, gap: int) -> PixelRegion:
        """Buffer by `gap` pixels: windows along rows and columns, polygons in every direction."""
        windows = (_buffer_window(window, gap) for window in self.windows)
        polygons = (shapely.buffer(polygon, gap * _CIRCLE_FACTOR) for polygon in self.polygons)
        return PixelRegion(tuple(windows), tuple(polygons))

    def reprojected(self, own: Grid, other: Grid) -> PixelRegion:
        """Return the region on another grid, without shapes that cannot be projected to its CRS."""
        shapes = self.shapes
        if own.crs is not None and other.crs is not None and own.crs != other.crs:
            to_other = pyproj.Transformer.from_crs(own.crs.to_wkt(), other.crs.to_wkt(), always_xy=True)
            shapes = apply_affine(shapely.segmentize(shapes, _MAX_EDGE_PX), own.transform)
            shapes = shapely.transform(shapes, to_other.transform, interleaved=False)
            shapes = shapes[np.isfinite(shapely.bounds(shapes)).all(axis=1)]
            shapes = apply_affine(shapes, ~other.transform)
        else:
            shapes = apply_affine(shapes, ~other.transform @ own.transform)
        return PixelRegion((), tuple(shapely.make_valid(shapes, method="structure")))


def overlap(one: Window, window: Window) -> tuple[slice, slice]:
    """Return the rows and columns of `window` that lie in `one`; empty slices if they do not overlap."""

    def along(first: float, length: float, own: float, size: float) -> slice:
        return slice(int(max(first - own, 0)), int(max(min(first + length - own, size), 0)))

    return (
        along(one.row_off, one.height, window.row_off, window.height),
        along(one.col_off, one.width, window.col_off, window.width),
    )


def grids_within(grids: Sequence[Grid], gap: int) -> list[tuple[int, int]]:
    """Return the pairs of grids whose bounds are within `gap` pixels of each other; each pair once.

    Bounds are compared in the CRS if all grids have the same, else in degrees, where they may overlap although the
    grids do not. Grids without a transform are in no pair, nor are those without a CRS if others have one.

    Returns
    -------
    list of (int, int)
        Indexes, the smaller one first.
    """
    located = [index for index, grid in enumerate(grids) if grid.has_location]
    systems = {grids[index].crs for index in located}
    if len(systems) > 1:
        located = [index for index in located if grids[index].crs is not None]
        systems -= {None}
    boxes = []
    for index in located:
        grid = grids[index]
        left, bottom, right, top = grid.subgrid(_buffer_window(grid.full_window, gap)).bounds
        if len(systems) > 1 and grid.crs is not None:
            left, bottom, right, top = _to_degrees(grid.crs.to_wkt()).transform_bounds(left, bottom, right, top)
            if left > right:  # across the antimeridian
                left, right = -180.0, 180.0
        boxes.append(shapely.box(left, bottom, right, top))
    pairs = shapely.STRtree(boxes).query(boxes, predicate="intersects").T if boxes else ()
    return [(located[a], located[b]) for a, b in pairs if a < b]


def lie_side_by_side(grids: Sequence[Grid]) -> bool:
    """Return whether grids are parts of one lattice of pixels that do not overlap, and all are connected by edges."""
    if len(grids) < 2 or any(grids[0].position_in(grid) is None for grid in grids[1:]):
        return False
    positions = [grid.position_in(grids[0]) or (0, 0) for grid in grids]
    boxes = [
        shapely.box(column, row, column + grid.width, row + grid.height)
        for grid, (row, column) in zip(grids, positions, strict=True)
    ]
    group = list(range(len(grids)))
    for one, other in shapely.STRtree(boxes).query(boxes, predicate="intersects").T.tolist():
        if one < other:
            common = shapely.intersection(boxes[one], boxes[other])
            if common.area > 0:
                return False
            if common.length > 0:
                old, new = group[other], group[one]
                group = [new if each == old else each for each in group]
    return len({*group}) == 1


@functools.lru_cache(maxsize=64)
def _to_degrees(wkt: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(wkt, "EPSG:4326", always_xy=True)


def window_polygon(window: Window) -> Any:
    """Return a window as a polygon in pixel coordinates."""
    return shapely.box(window.col_off, window.row_off, window.col_off + window.width, window.row_off + window.height)


def _buffer_window(window: Window, gap: int) -> Window:
    return Window(window.col_off - gap, window.row_off - gap, window.width + 2 * gap, window.height + 2 * gap)
