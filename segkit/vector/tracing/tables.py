"""Tables of the open vertices, arcs, nodes and regions while polygons are traced."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segkit.vector.tracing.jit import compiled
from segkit.vector.tracing.union_find import PARENT

# Directions in which an edge leaves a corner, clockwise. Bit d of `edges` is set if there is an edge in direction d.
EAST, SOUTH, WEST, NORTH = range(4)
HORIZONTAL = 1 << EAST | 1 << WEST
VERTICAL = 1 << SOUTH | 1 << NORTH
FOUR = HORIZONTAL | VERTICAL
# Labels of runs without a region: no data, and classes that are not selected.
OUTSIDE, NOT_SELECTED = -1, -2
# If borders are generalised, a border that crosses a row with a multiple of this index gets a node there. So arcs end,
# and their corners can be forgotten, after this many rows, wherever strips end.
BAND_ROWS = 1024
# Tables of int32. Unused rows are chained by their first column, in the table of vertices by AFTER.
# Columns of a vertex: position; its two neighbours in the arc; for an end of an unfinished arc, the other end. At a
# node, each arc has its own vertex, whose second neighbour is the code -2 - (4 node + direction). The vertices of a
# finished arc are in order (BEFORE, AFTER), and the fifth column tells whether they are smoothed, or lie at another
# place, which the table `place` has as (column, row).
X, Y, BEFORE, AFTER, END = range(5)
SMOOTH = END
ROUNDED, EXACT = 1, 2
# Columns of an arc: first and last vertex (the same in a loop); left and right region, and the next arc in the list of
# each; number of vertices; number of its regions that are not written yet; bits of the sides that a ring has visited
# and of whether it touches a node with four edges.
HEAD, TAIL, SIDE, NEXT, COUNT, REGIONS_LEFT, VISITED = 0, 1, 2, 4, 6, 7, 8
# Columns of a node: the arc in each direction, as 2 arc + (0 head, 1 tail), or -1; the labels around it, clockwise from
# the north-east; its edges; the number of remaining arcs. If arcs are generalised, a second table has, for each
# direction, column and row of the other end of a straight arc that was freed.
ARC, AROUND, EDGES, ARCS = 0, 4, 8, 9
# Columns of a region: parent region (union-find); last row; first and last side of its arcs, as 2 arc + (0 left, 1
# right); class index; next one in the circular list of joined regions; maximum number of its vertices.
LAST, FIRST_SIDE, LAST_SIDE, CLASS_INDEX, NEXT_IN_REGION, MAX_VERTICES = range(PARENT + 1, 7)
# Columns of a region, int64: first pixel in raster order; number of pixels; number of pixels with a probability.
START, PIXELS, CONFIDENCE_COUNT = range(3)
# Columns of a region, float64: area in m2; perimeter in m; sum of probabilities.
AREA, PERIMETER, CONFIDENCE_SUM = range(3)
TOUCHES_FOUR = 4
COLUMNS = {"vertex": 5, "arc": 9, "node": 10, "region": 7}


class Tables(NamedTuple):
    """The tables. `free` has, for each table, the first of the chained unused rows (or -1) and the rows ever used."""

    vertex: NDArray[np.int32]
    place: NDArray[np.float64]
    arc: NDArray[np.int32]
    node: NDArray[np.int32]
    straight: NDArray[np.int32]
    region: NDArray[np.int32]
    number: NDArray[np.int64]
    total: NDArray[np.float64]
    free: NDArray[np.int64]


OF_VERTEX, OF_ARC, OF_NODE, OF_REGION = range(4)


@compiled
def take_row(table, free, which):
    """Return an unused row."""
    row = free[2 * which]
    if row >= 0:
        free[2 * which] = table[row, AFTER if which == OF_VERTEX else 0]
        return row
    row = free[2 * which + 1]
    free[2 * which + 1] = row + 1
    return row


@compiled
def free_row(table, free, which, row):
    """Free a row of a table."""
    table[row, AFTER if which == OF_VERTEX else 0] = free[2 * which]
    free[2 * which] = row
