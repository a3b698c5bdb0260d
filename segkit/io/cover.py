"""Cover: some of a scene's pixels, as rectangles and polygons, and the same ground on another scene's grid."""

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
from segkit.io.polygons import moved, rasterised

_LONGEST_EDGE = 64.0  # pixels; a straight edge bends when it is taken to another CRS
_AROUND = 1.005  # a circle of 32 edges about a point holds the circle whose radius is this much shorter


@dataclass(frozen=True)
class Cover:
    """Some of the pixels of a grid: those in a window, and those whose centre lies in a polygon.

    Parameters
    ----------
    windows
        In pixels of the grid.
    polygons
        In pixel coordinates of the grid: x is the column, y the row, and a pixel's centre lies at .5.
    """

    windows: tuple[Window, ...] = ()
    polygons: tuple[shapely.Polygon | shapely.MultiPolygon, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to cover with."""
        return bool(self.windows or self.polygons)

    @functools.cached_property
    def shapes(self) -> NDArray[Any]:
        """Windows and polygons, all as polygons."""
        return np.array([*(box(window) for window in self.windows), *self.polygons], dtype=object)

    @functools.cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self.shapes)

    def mask(self, window: Window) -> NDArray[np.bool_]:
        """Return true where a pixel of a window is covered, bool (H, W)."""
        covered = np.zeros((int(window.height), int(window.width)), dtype=bool)
        meeting = self._tree.query(box(window))
        drawn = []
        for place in meeting:
            if place < len(self.windows):
                covered[overlap(self.windows[place], window)] = True
            else:
                drawn.append(self.shapes[place])
        return covered | rasterised(drawn, window)

    def grown(self, gap: int) -> Cover:
        """Return what lies within `gap` pixels: of windows along rows and columns, of polygons in every direction."""
        windows = (_grown(window, gap) for window in self.windows)
        polygons = (shapely.buffer(polygon, gap * _AROUND) for polygon in self.polygons)
        return Cover(tuple(windows), tuple(polygons))

    def onto(self, own: Grid, other: Grid) -> Cover:
        """Return the same ground on another grid; what has no place in its CRS is left out."""
        shapes = self.shapes
        if own.crs is not None and other.crs is not None and own.crs != other.crs:
            to_other = pyproj.Transformer.from_crs(own.crs.to_wkt(), other.crs.to_wkt(), always_xy=True)
            shapes = moved(shapely.segmentize(shapes, _LONGEST_EDGE), own.transform)
            shapes = shapely.transform(shapes, to_other.transform, interleaved=False)
            shapes = shapes[np.isfinite(shapely.bounds(shapes)).all(axis=1)]
            shapes = moved(shapes, ~other.transform)
        else:
            shapes = moved(shapes, ~other.transform @ own.transform)
        return Cover((), tuple(shapely.make_valid(shapes, method="structure")))


def overlap(one: Window, window: Window) -> tuple[slice, slice]:
    """Return the rows and columns of `window` that lie in another one; empty where they do not meet."""

    def along(first: float, length: float, own: float, size: float) -> slice:
        return slice(int(max(first - own, 0)), int(max(min(first + length - own, size), 0)))

    return (
        along(one.row_off, one.height, window.row_off, window.height),
        along(one.col_off, one.width, window.col_off, window.width),
    )


def near(grids: Sequence[Grid], gap: int) -> list[tuple[int, int]]:
    """Return the pairs of grids that lie within `gap` pixels of each other, or not much further; each pair once.

    Grids that have no place on the ground lie near no other: without a transform, or without a CRS where others have
    one.
    """
    placed = [place for place, grid in enumerate(grids) if grid.located]
    systems = {grids[place].crs for place in placed}
    if len(systems) > 1:
        placed = [place for place in placed if grids[place].crs is not None]
        systems -= {None}
    boxes = []
    for place in placed:
        grid = grids[place]
        left, bottom, right, top = grid.part(_grown(grid.whole, gap)).bounds
        if len(systems) > 1 and grid.crs is not None:
            left, bottom, right, top = _to_degrees(grid.crs.to_wkt()).transform_bounds(left, bottom, right, top)
            if left > right:  # across the antimeridian
                left, right = -180.0, 180.0
        boxes.append(shapely.box(left, bottom, right, top))
    pairs = shapely.STRtree(boxes).query(boxes, predicate="intersects").T if boxes else ()
    return [(placed[a], placed[b]) for a, b in pairs if a < b]


@functools.lru_cache(maxsize=64)
def _to_degrees(wkt: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(wkt, "EPSG:4326", always_xy=True)


def box(window: Window) -> Any:
    """Return a window as a polygon in pixel coordinates."""
    return shapely.box(window.col_off, window.row_off, window.col_off + window.width, window.row_off + window.height)


def _grown(window: Window, gap: int) -> Window:
    return Window(window.col_off - gap, window.row_off - gap, window.width + 2 * gap, window.height + 2 * gap)
