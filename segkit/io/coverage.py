"""The exact fraction of each pixel that polygons cover."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

_X, _Y = 0, 1
_EPSILON = 1e-9  # fractions this close to 0 or 1 are rounding errors of sums


class Coverage:
    """A polygon or multipolygon on the pixels of a grid.

    The area of a pixel that lies in a polygon is a sum over its edges: each adds the area to its right, with the sign
    of its direction. So an edge changes the pixels that it crosses, and all pixels to their right by the same amount,
    which a cumulative sum along the row adds. This is how fonts are drawn, and as exact as the coordinates.

    Parameters
    ----------
    shape
        Valid, in pixel coordinates of the grid: x is the column, y the row.
    """

    def __init__(self, shape: shapely.Polygon | shapely.MultiPolygon) -> None:
        self._edges = _edges(shape)
        self._rows: tuple[tuple[float, float], NDArray[np.float64]] | None = None
        left, top, right, bottom = shapely.bounds(shape).tolist()
        first = int(np.floor(left)), int(np.floor(top))
        self._bounds = Window(*first, int(np.ceil(right)) - first[0], int(np.ceil(bottom)) - first[1])

    def part_of(self, window: Window) -> Window | None:
        """Return the part of a window outside of which nothing is covered; None if there is none."""
        left, top = max(window.col_off, self._bounds.col_off), max(window.row_off, self._bounds.row_off)
        right = min(window.col_off + window.width, self._bounds.col_off + self._bounds.width)
        bottom = min(window.row_off + window.height, self._bounds.row_off + self._bounds.height)
        return Window(left, top, right - left, bottom - top) if left < right and top < bottom else None

    def fractions(self, window: Window) -> NDArray[np.float64]:
        """Return the covered fraction of each pixel of a window, 0 to 1, float64 (H, W)."""
        height, width = int(window.height), int(window.width)
        edges = self._within_rows(window.row_off, window.row_off + height)
        edges = edges - np.array([window.col_off, window.row_off])
        edges = edges[edges[:, :, _X].min(axis=1) < width]
        edges = _cut(_cut(edges, _X, 0), _X, width)
        # What is left of the window changes its rows as if it was on its edge; what is right of it changes nothing.
        np.clip(edges[:, :, _X], 0, width, out=edges[:, :, _X])
        edges = _cut_at_integers(_cut_at_integers(edges, _Y), _X)
        (x, y), rise = edges.mean(axis=1).T, edges[:, 1, _Y] - edges[:, 0, _Y]
        column, row = np.floor(x).astype(np.intp), np.clip(np.floor(y).astype(np.intp), 0, height - 1)
        first, size = row * (width + 2) + column, height * (width + 2)
        change = np.bincount(first, rise * (1 - (x - column)), size)
        change += np.bincount(first + 1, rise * (x - column), size)
        covered: NDArray[np.float64] = np.cumsum(change.reshape(height, width + 2)[:, :width], axis=1)
        covered[covered < _EPSILON] = 0
        covered[covered > 1 - _EPSILON] = 1
        return covered

    def _within_rows(self, top: float, bottom: float) -> NDArray[np.float64]:
        """Return the edges between two rows; those of the last call are kept, for windows side by side."""
        if self._rows is None or self._rows[0] != (top, bottom):
            y = self._edges[:, :, _Y]
            edges = self._edges[(y.max(axis=1) > top) & (y.min(axis=1) < bottom)]
            edges = _cut(_cut(edges, _Y, top), _Y, bottom)
            middle = edges[:, :, _Y].mean(axis=1)
            self._rows = (top, bottom), edges[(middle > top) & (middle < bottom)]
        return self._rows[1]


def _edges(shape: Any) -> NDArray[np.float64]:
    """Return edges (E, 2 ends, 2 axes) that rise on the left of the polygon; those that are horizontal are left out."""
    # The outer rings are clockwise for x to the right and y up: they rise on the left.
    rings = shapely.get_rings(shapely.get_parts(shapely.orient_polygons(shape, exterior_cw=True)))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    edges = np.stack([points[:-1], points[1:]], axis=1)[ring[:-1] == ring[1:]]
    return np.asarray(edges[edges[:, 0, _Y] != edges[:, 1, _Y]])


def _cut(edges: NDArray[np.float64], axis: int, value: float) -> NDArray[np.float64]:
    """Cut the edges that cross a value of an axis in two."""
    start, end = edges[:, 0], edges[:, 1]
    crosses = (start[:, axis] - value) * (end[:, axis] - value) < 0
    if not crosses.any():
        return edges
    start, end = start[crosses], end[crosses]
    share = (value - start[:, axis]) / (end[:, axis] - start[:, axis])
    middle = start + share[:, None] * (end - start)
    middle[:, axis] = value
    return np.concatenate([edges[~crosses], np.stack([start, middle], axis=1), np.stack([middle, end], axis=1)])


def _cut_at_integers(edges: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Cut edges at each whole number of an axis."""
    start, end = edges[:, 0, axis], edges[:, 1, axis]
    first, last = np.floor(np.minimum(start, end)) + 1, np.ceil(np.maximum(start, end)) - 1
    cuts = np.maximum(last - first + 1, 0).astype(np.intp)
    index = np.repeat(np.arange(len(edges)), cuts + 1)
    number = np.arange(len(index)) - np.repeat(np.cumsum(cuts + 1) - cuts - 1, cuts + 1)
    rises, pieces = (end >= start)[index], edges[index]

    def at(cut: NDArray[np.intp], stands: NDArray[np.bool_], end_of: int) -> NDArray[np.float64]:
        """Return the points of cuts, counted from the start of their edge; of `stands` the end of the edge."""
        value = np.where(rises, first[index] + cut, last[index] - cut)
        length = np.where(stands, 1, end[index] - start[index])
        share = np.where(stands, end_of, (value - start[index]) / length)
        points = pieces[:, 0] + share[:, None] * (pieces[:, 1] - pieces[:, 0])
        points[:, axis] = np.where(stands, pieces[:, end_of, axis], value)
        return np.where(stands[:, None], pieces[:, end_of], points)

    return np.stack([at(number - 1, number == 0, 0), at(number, number == cuts[index], 1)], axis=1)
