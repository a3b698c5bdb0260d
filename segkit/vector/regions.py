"""Regions of a map and the rings around them: the kernel, compiled by numba.

It works on runs (see `runs`), never on pixels, and looks at two rows at a time. What it calls a *corner* is a point of
the pixel grid, (column, row), where the border between regions does not run straight on: where it bends, or where three
or four edges meet. Each corner is a vertex of every region that touches it, so neighbours share all vertices of
their border and the polygons are an exact coverage; the points between corners lie on straight edges and are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from segkit.vector.runs import Runs

# The directions in which an edge leaves a corner: clockwise, as rows run down. Bit d of `edges` says that there is one.
_EAST, _SOUTH, _WEST, _NORTH = range(4)
_HORIZONTAL = 1 << _EAST | 1 << _WEST
_VERTICAL = 1 << _SOUTH | 1 << _NORTH
_FOUR = _HORIZONTAL | _VERTICAL
# Two more bits: whether diagonal pixels belong to one region. North-east and south-west; north-west and south-east.
_RISING = 1 << 4
_FALLING = 1 << 5


@dataclass(frozen=True)
class Regions:
    """Regions of equal kind, connected through pixel sides, numbered in the order of their first pixels.

    Parameters
    ----------
    of_run
        int64 (runs,): the region of each run, -1 where it is in none.
    kind
        int64 (regions,).
    pixels
        int64 (regions,): how many each has.
    """

    of_run: NDArray[np.int64]
    kind: NDArray[np.int64]
    pixels: NDArray[np.int64]


@dataclass(frozen=True)
class Rings:
    """Closed rings of regions, in grid corners; outer rings run clockwise as rows run down, holes the other way.

    Parameters
    ----------
    column, row
        int32 (vertices,): each ring's first vertex is repeated as its last.
    ring
        int64 (rings + 1,): where each ring's vertices start.
    polygon
        int64 (regions + 1,): where each region's rings start, its outer ring first.
    """

    column: NDArray[np.int32]
    row: NDArray[np.int32]
    ring: NDArray[np.int64]
    polygon: NDArray[np.int64]


def label(runs: Runs, kind: NDArray[np.int64]) -> Regions:
    """Join runs of equal kind that share a pixel side into regions; runs of kind -1 belong to none."""
    of_run, count = _label(runs.row, runs.first, kind, runs.width)
    inside = of_run >= 0
    kind_of = np.empty(count, dtype=np.int64)
    kind_of[of_run[inside]] = kind[inside]
    # float64 weights are exact up to 2**53 pixels.
    pixels = np.bincount(of_run[inside], weights=runs.lengths()[inside], minlength=count)
    return Regions(of_run, kind_of, pixels.astype(np.int64))


def trace(runs: Runs, regions: Regions) -> Rings:
    """Walk around every region."""
    column, row, edges, up, down, region = _corners(runs.row, runs.first, regions.of_run, runs.width)
    corner, start, owner = _walk(edges, up, down, region)
    # The kernel finds each region's outer ring before its holes, but holes of several regions mixed.
    order = np.argsort(owner, kind="stable")
    size = np.diff(start)[order]
    ring = _offsets(size)
    corner = corner[np.repeat(start[order] - ring[:-1], size) + np.arange(ring[-1])]
    polygon = _offsets(np.bincount(owner, minlength=regions.kind.size))
    return Rings(column[corner], row[corner], ring, polygon)


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))


@numba.njit(cache=True)
def _label(row, first, kind, width):  # type: ignore[no-untyped-def]
    """Return the region of each run, and how many regions there are: union-find over the runs of adjacent rows."""
    parent = np.arange(first.size)
    for r in range(1, row.size - 1):
        i, j = row[r - 1], row[r]
        while i < row[r] and j < row[r + 1]:
            if kind[i] == kind[j] and kind[j] >= 0:
                a, b = i, j
                while parent[a] != a:
                    parent[a] = parent[parent[a]]
                    a = parent[a]
                while parent[b] != b:
                    parent[b] = parent[parent[b]]
                    b = parent[b]
                parent[max(a, b)] = min(a, b)
            i_end = first[i + 1] if i + 1 < row[r] else width
            j_end = first[j + 1] if j + 1 < row[r + 1] else width
            i += i_end <= j_end
            j += j_end <= i_end
    region = np.full(first.size, -1, dtype=np.int64)
    count = 0
    for k in range(first.size):
        if kind[k] < 0:
            continue
        if parent[k] == k:
            region[k] = count
            count += 1
        else:  # a run's parent comes before it, so it has its region already
            region[k] = region[parent[k]]
    return region, count


@numba.njit(cache=True)
def _corners(row, first, region, width):  # type: ignore[no-untyped-def]
    """Return the corners, row by row: column, row, edges, the corners above and below, and the region south-east of it.

    A corner's neighbour along an edge to the east is the next corner, to the west the one before. The region is given
    where an edge leaves to the east, and is -1 elsewhere.
    """
    height = row.size - 1
    most = 2 * first.size + height + 1  # reserved, but memory that is not written to costs nothing
    column_of, row_of = np.empty(most, dtype=np.int32), np.empty(most, dtype=np.int32)
    edges_of = np.empty(most, dtype=np.uint8)
    up, down, south_east = (
        np.empty(most, dtype=np.int64),
        np.empty(most, dtype=np.int64),
        np.empty(most, dtype=np.int64),
    )
    above = np.empty(width + 1, dtype=np.int64)  # the last corner in each column
    n = 0
    for r in range(height + 1):
        i, i_end = (row[r - 1], row[r]) if r > 0 else (0, 0)
        j, j_end = (row[r], row[r + 1]) if r < height else (0, 0)
        nw = sw = -1
        c = -1
        while c < width:
            north = first[i] if i < i_end else width
            south = first[j] if j < j_end else width
            c = min(north, south)
            ne, se = nw, sw
            if north == c:
                ne = region[i] if i < i_end else -1
                i += 1
            if south == c:
                se = region[j] if j < j_end else -1
                j += 1
            edges = (ne != se) << _EAST | (sw != se) << _SOUTH | (nw != sw) << _WEST | (nw != ne) << _NORTH
            if edges not in (0, _HORIZONTAL, _VERTICAL):
                column_of[n], row_of[n] = c, r
                edges_of[n] = edges | (ne == sw) * _RISING | (nw == se) * _FALLING
                south_east[n] = se if edges >> _EAST & 1 else -1
                if edges >> _NORTH & 1:
                    up[n] = above[c]
                    down[above[c]] = n
                above[c] = n
                n += 1
            nw, sw = ne, se
    return column_of[:n], row_of[:n], edges_of[:n], up[:n], down[:n], south_east[:n]


@numba.njit(cache=True)
def _walk(edges, up, down, region):  # type: ignore[no-untyped-def]
    """Return the corners of all rings, where each ring starts (and the last ends), and the region of each.

    The walk keeps the region on its right. Every ring goes east somewhere, with its region to the south-east of a
    corner, and the first such corner of a region lies on its outer ring. `region` is used up: -1 where a ring has
    passed.
    """
    corner = np.empty(5 * edges.size, dtype=np.int64)  # at most four rings pass a corner, and each ring is closed
    start, owner = np.zeros(edges.size + 1, dtype=np.int64), np.empty(edges.size, dtype=np.int64)
    n = rings = 0
    for origin in range(edges.size):
        if region[origin] < 0:
            continue
        owner[rings] = region[origin]
        at, heading = origin, _EAST
        while True:
            corner[n] = at
            n += 1
            if heading == _EAST:
                region[at] = -1
                at += 1
            elif heading == _SOUTH:
                at = down[at]
            elif heading == _WEST:
                at -= 1
            else:
                at = up[at]
            right, left = (heading + 1) & 3, (heading + 3) & 3
            # Where the region meets itself diagonally, ahead on the left, turning right would join its outer ring and
            # a hole into one ring that touches itself.
            diagonal = _FALLING if heading & 1 else _RISING
            if edges[at] & _FOUR == _FOUR and edges[at] & diagonal:
                heading = left
            elif edges[at] >> right & 1:
                heading = right
            elif not edges[at] >> heading & 1:
                heading = left
            if at == origin and heading == _EAST:
                break
        corner[n] = origin
        n += 1
        rings += 1
        start[rings] = n
    return corner[:n], start[: rings + 1], owner[:rings]
