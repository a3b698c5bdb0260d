"""Tables of what is open while polygons are traced: vertices, arcs, nodes and regions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segkit.vector.tracing.jit import compiled
from segkit.vector.tracing.union_find import PARENT

# The directions in which an edge leaves a corner: clockwise, as rows run down. Bit d of `edges` says that there is one.
EAST, SOUTH, WEST, NORTH = range(4)
HORIZONTAL = 1 << EAST | 1 << WEST
VERTICAL = 1 << SOUTH | 1 << NORTH
FOUR = HORIZONTAL | VERTICAL
# Labels of runs that are in no region that is wanted: what has no data, and classes that are left out.
OUTSIDE, UNWANTED = -1, -2
# Where borders are generalised, those that go on below a row whose number is a multiple of this have a node there. So
# a border is finished, and its corners need not be remembered, after that many rows, wherever strips end.
BAND_ROWS = 1024
# Tables of int32. Rows that are not in use are chained by their first column, of vertices by the neighbour after.
# A vertex: place, the two vertices beside it in its arc, and for the ends of an unfinished arc the other end. At a node
# each arc has a vertex of its own, whose second neighbour is the code -2 - (4 node + direction). A finished arc's
# vertices are in order: the one before, the one after; their fifth column says whether they are smoothed.
X, Y, BEFORE, AFTER, END = range(5)
SMOOTH = END
# An arc: its first and last vertex (one and the same in a loop); the regions left and right of it, and the next arc in
# the list of each; how many vertices it has; how many of the two regions are still to be written; on which of its sides
# a ring has passed, and whether it touches a node with four edges.
HEAD, TAIL, SIDE, NEXT, COUNT, USES, SEEN = 0, 1, 2, 4, 6, 7, 8
# A node: the arc that leaves in each direction, as 2 arc + (0 its head, 1 its tail), or -1; the labels around it, which
# start in the north-east and run clockwise; which edges there are; and how many arcs are left. Where arcs are
# generalised, a second table has the column and the row to which straight arcs that are gone led, for each direction.
ARC, AROUND, EDGES, ARCS = 0, 4, 8, 9
# A region: the one that it is part of; the last row that it was seen in; the first and last of its sides of arcs, as
# 2 arc + (0 left, 1 right); its kind; the next one in the ring of those that became one; room for its vertices.
LAST, FIRST_SIDE, LAST_SIDE, KIND, NEXT_IN_REGION, SPACE = range(PARENT + 1, 7)
# The same as int64: where it starts in raster order, its pixels, those with a known probability.
START, PIXELS, KNOWN = range(3)
# The same as float64: square metres, metres, the sum of probabilities.
AREA, PERIMETER, CHANCE = range(3)
TOUCHES_FOUR = 4
COLUMNS = {"vertex": 5, "arc": 9, "node": 10, "region": 7}


class Tables(NamedTuple):
    """What is open. `free` has, for each table, the first of the chained free rows (or -1) and the rows ever used."""

    vertex: NDArray[np.int32]
    arc: NDArray[np.int32]
    node: NDArray[np.int32]
    straight: NDArray[np.int32]
    region: NDArray[np.int32]
    number: NDArray[np.int64]
    total: NDArray[np.float64]
    free: NDArray[np.int64]


OF_VERTEX, OF_ARC, OF_NODE, OF_REGION = range(4)


@compiled
def take_row(table, free, which):  # type: ignore[no-untyped-def]
    """Return a row that is not in use."""
    row = free[2 * which]
    if row >= 0:
        free[2 * which] = table[row, AFTER if which == OF_VERTEX else 0]
        return row
    row = free[2 * which + 1]
    free[2 * which + 1] = row + 1
    return row


@compiled
def free_row(table, free, which, row):  # type: ignore[no-untyped-def]
    """Give a row of a table back."""
    table[row, AFTER if which == OF_VERTEX else 0] = free[2 * which]
    free[2 * which] = row
