"""Arcs: runs -> regions, the borders between them, and the rings that these make up. The kernel, compiled by numba.

It takes a map row by row and looks at two rows at a time. A *corner* is a point of the pixel grid, (column, row),
where the border between regions does not run straight on. Where three or four edges meet it is a *node*; an *arc* runs
from node to node, or around in a loop, and has one region on either side. Arcs are kept once, so neighbours share each
vertex of their border and polygons are an exact coverage; points between corners lie on straight edges and are left
out.

Memory holds what is open: regions that reach into the last row, the arcs around them, and no more. A region is done
when a row has none of it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from segkit.vector.tracing.confidence import Chances
from segkit.vector.tracing.jit import compiled
from segkit.vector.tracing.pixel_measures import Measures, Squares, area_at, length_at, measure_runs, metric_at
from segkit.vector.tracing.runs import Runs
from segkit.vector.tracing.simplify import CUT, FAR, NEAR, OWN, WHOLE, can_be_smooth, drop_vertices, mark
from segkit.vector.tracing.union_find import PARENT, root

# The directions in which an edge leaves a corner: clockwise, as rows run down. Bit d of `edges` says that there is one.
_EAST, _SOUTH, _WEST, _NORTH = range(4)
_HORIZONTAL = 1 << _EAST | 1 << _WEST
_VERTICAL = 1 << _SOUTH | 1 << _NORTH
_FOUR = _HORIZONTAL | _VERTICAL

# Labels of runs that are in no region that is wanted: what has no data, and classes that are left out.
_OUTSIDE, _UNWANTED = -1, -2

# Where borders are generalised, those that go on below a row whose number is a multiple of this have a node there. So
# a border is finished, and its corners need not be remembered, after that many rows, wherever strips end.
BAND_ROWS = 1024

# Tables of int32. Rows that are not in use are chained by their first column, of vertices by the neighbour after.
# A vertex: place, the two vertices beside it in its arc, and for the ends of an unfinished arc the other end. At a node
# each arc has a vertex of its own, whose second neighbour is the code -2 - (4 node + direction). A finished arc's
# vertices are in order: the one before, the one after; their fifth column says whether they are smoothed.
_X, _Y, _BEFORE, _AFTER, _END = range(5)
_SMOOTH = _END
# An arc: its first and last vertex (one and the same in a loop); the regions left and right of it, and the next arc in
# the list of each; how many vertices it has; how many of the two regions are still to be written; on which of its sides
# a ring has passed, and whether it touches a node with four edges.
_HEAD, _TAIL, _SIDE, _NEXT, _COUNT, _USES, _SEEN = 0, 1, 2, 4, 6, 7, 8
# A node: the arc that leaves in each direction, as 2 arc + (0 its head, 1 its tail), or -1; the labels around it, which
# start in the north-east and run clockwise; which edges there are; and how many arcs are left. Where arcs are
# generalised, a second table has the column and the row to which straight arcs that are gone led, for each direction.
_ARC, _AROUND, _EDGES, _ARCS = 0, 4, 8, 9
# A region: the one that it is part of; the last row that it was seen in; the first and last of its sides of arcs, as
# 2 arc + (0 left, 1 right); its kind; the next one in the ring of those that became one; room for its vertices.
_LAST, _FIRST_SIDE, _LAST_SIDE, _KIND, _KIN, _SPACE = range(PARENT + 1, 7)
# The same as int64: where it starts in raster order, its pixels, those with a known probability.
_START, _PIXELS, _KNOWN = range(3)
# The same as float64: square metres, metres, the sum of probabilities.
_AREA, _PERIMETER, _CHANCE = range(3)

_TOUCHES_FOUR = 4

_COLUMNS = {"vertex": 5, "arc": 9, "node": 10, "region": 7}


class _Tables(NamedTuple):
    """What is open. `free` has, for each table, the first of the chained free rows (or -1) and the rows ever used."""

    vertex: NDArray[np.int32]
    arc: NDArray[np.int32]
    node: NDArray[np.int32]
    straight: NDArray[np.int32]
    region: NDArray[np.int32]
    number: NDArray[np.int64]
    total: NDArray[np.float64]
    free: NDArray[np.int64]


_OF_VERTEX, _OF_ARC, _OF_NODE, _OF_REGION = range(4)


@dataclass(frozen=True)
class Generalisation:
    """How borders between regions are simplified; the edge of what has data stays as it is.

    Parameters
    ----------
    tolerance
        How far they may move, in pixels, or in metres where `metres`; None for no simplification.
    smooth
        Whether corners are rounded.
    """

    tolerance: float | None = None
    metres: bool = False
    smooth: bool = False

    @property
    def wanted(self) -> bool:
        """Whether anything is done."""
        return self.smooth or self.tolerance is not None


@dataclass(frozen=True)
class Polygons:
    """Regions as closed rings, in CRS coordinates, and what is known about them.

    Outer rings run counter-clockwise and holes clockwise, x to the right and y upwards.

    Parameters
    ----------
    vertices
        float64 (vertices, 2): each ring's first vertex is repeated as its last.
    ring
        int64 (rings + 1,): where each ring's vertices start.
    polygon
        int64 (polygons + 1,): where each one's rings start, its outer ring first.
    kind
        int32 (polygons,)
    pixels, known
        int64 (polygons,): how many it has, and of how many the probability is known.
    area, perimeter, chance
        float64 (polygons,): square metres and metres on the ground, and the sum of known probabilities.
    """

    vertices: NDArray[np.float64]
    ring: NDArray[np.int64]
    polygon: NDArray[np.int64]
    kind: NDArray[np.int32]
    pixels: NDArray[np.int64]
    known: NDArray[np.int64]
    area: NDArray[np.float64]
    perimeter: NDArray[np.float64]
    chance: NDArray[np.float64]

    def some(self, start: int, end: int) -> Polygons:
        """Return the polygons from number `start` to `end`."""
        first, last = self.polygon[start], self.polygon[end]
        vertices = slice(self.ring[first], self.ring[last])
        columns = {field.name: getattr(self, field.name)[start:end] for field in fields(self)[3:]}
        return Polygons(
            self.vertices[vertices],
            self.ring[first : last + 1] - vertices.start,
            self.polygon[start : end + 1] - first,
            **columns,
        )


class Tracer:
    """Makes polygons of runs, which come from top to bottom.

    Parameters
    ----------
    width
        Pixels in a row.
    transform
        From (column, row) to CRS coordinates.
    squares
        What pixels measure on the ground.
    """

    def __init__(
        self, width: int, transform: Affine, squares: Squares, generalisation: Generalisation | None = None
    ) -> None:
        self._width = width
        self._transform = np.array(transform[:6], dtype=np.float64)
        self._turned = transform.determinant > 0
        self._squares = squares
        self._form = generalisation or Generalisation()
        sizes = {name: np.empty((0, columns), dtype=np.int32) for name, columns in _COLUMNS.items()}
        free = np.array([-1, 0] * len(_COLUMNS), dtype=np.int64)
        straight = np.empty((0, 8), dtype=np.int32)
        self._tables = _Tables(
            **sizes, straight=straight, number=np.empty((0, 3), dtype=np.int64), total=np.empty((0, 3)), free=free
        )
        # The last row seen: runs, their labels, and how far each lies along its lower side.
        outside = np.full(1, _OUTSIDE, dtype=np.int32)
        self._last = np.zeros(1, dtype=np.int32), outside, outside, np.zeros(1)
        # The vertex that hangs in each column, from which an edge leads down.
        self._hanging = np.full(width + 1, -1, dtype=np.int32)
        words = (width + 64) // 64 if self._form.wanted else 0
        self._bits = np.zeros((BAND_ROWS + 1 if words else 0, words), dtype=np.uint64)

    def trace(self, runs: Runs, wanted: NDArray[np.bool_], chances: Chances | None = None) -> Polygons:
        """Take the next rows and return the polygons that are done.

        They are in the order of the rows, and then of the columns, where they end; however the rows are parted.

        Parameters
        ----------
        wanted
            Whether polygons of a kind are.
        chances
            What is known about the probabilities in each run.
        """
        first, kind, label, lower = self._last
        measures = measure_runs(self._squares, runs)
        row = np.concatenate(([0], runs.row + first.size))
        first, kind = np.concatenate((first, runs.first)), np.concatenate((kind, runs.kind))
        label = np.concatenate((label, np.empty(runs.first.size, dtype=np.int32)))
        padding = np.full(row[1], np.nan)
        measures = Measures(
            np.concatenate((padding, measures.area)),
            np.concatenate((padding, measures.left)),
            np.concatenate((padding, measures.upper)),
            np.concatenate((lower, measures.lower)),
            measures.end,
        )
        chances = chances or Chances(np.empty(0), np.empty(0, dtype=np.int64))
        # Corners lie where a run starts in the row above or below, and at the end of the row.
        corners = 2 * first.size + runs.height
        self._reserve(vertex=4 * corners, arc=4 * corners, node=corners, region=first.size)
        form = self._form
        closed = np.empty(self._tables.free[2 * _OF_REGION + 1] + first.size, dtype=np.int32)
        count = _sweep(
            self._tables, self._hanging, self._bits, self._squares, measures, row, first, kind, label,
            chances.total, chances.known, wanted, runs.top, runs.width, form.wanted, form.smooth,
            -1.0 if form.tolerance is None else form.tolerance, form.metres, closed,
        )  # fmt: skip
        last = slice(row[-2], row[-1])
        self._last = first[last].copy(), kind[last].copy(), label[last].copy(), measures.lower[last].copy()
        return self._written(closed[:count])

    def finish(self, height: int) -> Polygons:
        """Return the polygons that reach the map's last row, of `height`."""
        end = Runs(
            height, np.array([0, 1]), np.zeros(1, dtype=np.int32), np.full(1, _OUTSIDE, dtype=np.int32), self._width
        )
        return self.trace(end, np.empty(0, dtype=bool))

    def _reserve(self, **more: int) -> None:
        """Make room for more rows in the tables."""
        for number, name in enumerate(_COLUMNS):
            used = self._tables.free[2 * number + 1]
            beside = {"region": ("number", "total"), "node": ("straight",) if self._form.wanted else ()}
            for table in (name, *beside.get(name, ())):
                old = getattr(self._tables, table)
                if used + more[name] > len(old):
                    # Twice what is needed, but memory that is not written to costs nothing.
                    new = np.empty((2 * (used + more[name]), old.shape[1]), dtype=old.dtype)
                    new[:used] = old[:used]
                    self._tables = self._tables._replace(**{table: new})

    def _written(self, closed: NDArray[np.int32]) -> Polygons:
        tables = self._tables
        space = tables.region[closed, _SPACE].astype(np.int64)
        vertices = np.empty((int(space.sum()), 2))
        ring = np.empty(int(space.sum()) // 4 + 1, dtype=np.int64)
        polygon = np.empty(closed.size + 1, dtype=np.int64)
        kind, (pixels, known) = tables.region[closed, _KIND], tables.number[closed][:, [_PIXELS, _KNOWN]].T
        area, perimeter, chance = tables.total[closed].T
        counts = _write(tables, closed, self._transform, self._turned, vertices, ring, polygon)
        return Polygons(
            vertices[: counts[0]], ring[: counts[1] + 1], polygon, kind, pixels, known, area, perimeter, chance
        )


@compiled
def _take(table, free, which):  # type: ignore[no-untyped-def]
    """Return a row that is not in use."""
    row = free[2 * which]
    if row >= 0:
        free[2 * which] = table[row, _AFTER if which == _OF_VERTEX else 0]
        return row
    row = free[2 * which + 1]
    free[2 * which + 1] = row + 1
    return row


@compiled
def _give_back(table, free, which, row):  # type: ignore[no-untyped-def]
    table[row, _AFTER if which == _OF_VERTEX else 0] = free[2 * which]
    free[2 * which] = row


@compiled
def _join(t, a, b):  # type: ignore[no-untyped-def]
    """Make one region of two; the one that starts first goes first, whatever their numbers are."""
    region = t.region
    if t.number[b, _START] < t.number[a, _START]:
        a, b = b, a
    region[b, PARENT] = a
    region[a, _LAST] = max(region[a, _LAST], region[b, _LAST])
    region[a, _SPACE] += region[b, _SPACE]
    region[a, _KIN], region[b, _KIN] = region[b, _KIN], region[a, _KIN]
    if region[b, _FIRST_SIDE] >= 0:
        if region[a, _FIRST_SIDE] < 0:
            region[a, _FIRST_SIDE] = region[b, _FIRST_SIDE]
        else:
            last = region[a, _LAST_SIDE]
            t.arc[last >> 1, _NEXT + (last & 1)] = region[b, _FIRST_SIDE]
        region[a, _LAST_SIDE] = region[b, _LAST_SIDE]
    for k in range(1, 3):
        t.number[a, k] += t.number[b, k]
    for k in range(3):
        t.total[a, k] += t.total[b, k]
    return a


@compiled
def _sweep(  # type: ignore[no-untyped-def]
    t, hanging, bits, squares, measures, row, first, kind, label, chance, known, wanted, top, width, generalise, smooth,
    tolerance, metres, closed,
):  # fmt: skip
    """Take rows 1 and on of `row` (row 0 is the one before); list the regions that are closed and return how many."""
    region, vertex, node, free = t.region, t.vertex, t.node, t.free
    longest = 0
    for r in range(row.size - 1):
        longest = max(longest, row[r + 1] - row[r])
    # Arcs that are finished along the line: an end, or for a loop -2 less a vertex of it; and the regions on the left
    # and on the right of a loop.
    finished = np.empty((4 * (2 * longest + 2), 3), dtype=np.int32)
    around = np.empty(4, dtype=np.int32)
    closings = 0
    for r in range(1, row.size - 1):
        line = top + r - 1
        start, i_end, end = row[r - 1], row[r], row[r + 1]
        _label(t, measures, row, first, kind, label, chance, known, wanted, r, line, width)

        # The corners on the line above the row.
        band = (line - 1) // BAND_ROWS * BAND_ROWS if line > 0 else 0
        pinning = generalise and line % BAND_ROWS == 0 and line > 0
        count = 0
        i, j = start, i_end
        nw = sw = _OUTSIDE
        nw_label = sw_label = _OUTSIDE
        c, along = -1, 0.0
        pending = -1  # the vertex from which an edge leads here from the west
        while c < width:
            north = first[i] if i < i_end else width
            south = first[j] if j < end else width
            c = min(north, south)
            here = (
                measures.upper[j]
                if south < width and south == c
                else (measures.lower[i] if c < width else measures.end[r - 1, 1])
            )
            ne, se, ne_label, se_label = nw, sw, nw_label, sw_label
            if north == c:
                ne, ne_label = (kind[i], label[i]) if i < i_end else (_OUTSIDE, _OUTSIDE)
                i += 1
            if south == c:
                se, se_label = (kind[j], label[j]) if j < end else (_OUTSIDE, _OUTSIDE)
                j += 1
            if nw != sw:
                if nw_label >= 0:
                    t.total[root(region, nw_label), _PERIMETER] += here - along
                if sw_label >= 0:
                    t.total[sw_label, _PERIMETER] += here - along
            along = here
            edges = (ne != se) << _EAST | (sw != se) << _SOUTH | (nw != sw) << _WEST | (nw != ne) << _NORTH
            many = (ne != se) + (sw != se) + (nw != sw) + (nw != ne)
            pinned = pinning and many == 2 and sw != se and sw >= 0 and se >= 0
            if (many == 2 and edges != _HORIZONTAL and edges != _VERTICAL) or many > 2 or pinned:
                if generalise:
                    mark(bits, band, c, line, True)
                if many > 2 or pinned:
                    n = _take(node, free, _OF_NODE)
                    around[0], around[1], around[2], around[3] = ne_label, se_label, sw_label, nw_label
                    for k in range(4):
                        node[n, _ARC + k], node[n, _AROUND + k] = -1, around[k]
                        if generalise:
                            t.straight[n, 2 * k] = -1
                    node[n, _EDGES], node[n, _ARCS] = edges, many
                else:
                    n = -1
                v = -1
                for direction in (_NORTH, _WEST, _SOUTH, _EAST):
                    if not edges >> direction & 1:
                        continue
                    if v < 0 or n >= 0:
                        v = _take(vertex, free, _OF_VERTEX)
                        vertex[v, _X], vertex[v, _Y] = c, line
                        vertex[v, _BEFORE], vertex[v, _END] = -1, v
                        vertex[v, _AFTER] = -1 if n < 0 else -2 - (4 * n + direction)
                    if direction == _SOUTH:
                        hanging[c] = v
                    elif direction == _EAST:
                        pending = v
                    else:
                        end_of_arc = _link(vertex, hanging[c] if direction == _NORTH else pending, v)
                        if end_of_arc != -1:
                            finished[count, 0] = end_of_arc
                            # The west edge closes a loop, at its lower right corner, with one region on the inside.
                            finished[count, 1], finished[count, 2] = nw_label, ne_label
                            count += 1
            nw, sw, nw_label, sw_label = ne, se, ne_label, se_label

        _finish(t, finished[:count], squares, bits, band, generalise, smooth, tolerance, metres)
        if pinning:
            for word in range(bits.shape[1]):
                bits[0, word] = bits[BAND_ROWS, word]
                for k in range(1, BAND_ROWS + 1):
                    bits[k, word] = 0

        for i in range(start, i_end):
            if label[i] >= 0:
                k = root(region, label[i])
                if region[k, _LAST] == line - 1:
                    region[k, _LAST] = -1
                    closed[closings] = k
                    closings += 1
    return closings


@compiled
def _label(t, measures, row, first, kind, label, chance, known, wanted, r, line, width):  # type: ignore[no-untyped-def]
    """Label the runs of a row with their regions and add what they measure."""
    region = t.region
    i, i_end, j, end = row[r - 1], row[r], row[r], row[r + 1]
    for k in range(j, end):
        label[k] = _OUTSIDE if kind[k] < 0 else _UNWANTED
    while i < i_end and j < end:
        if kind[i] == kind[j] and label[i] >= 0:
            above = root(region, label[i])
            if label[j] < 0:
                label[j] = above
            else:
                own = root(region, label[j])
                if own != above:
                    label[j] = _join(t, own, above)
        north = first[i + 1] if i + 1 < i_end else width
        south = first[j + 1] if j + 1 < end else width
        i += north <= south
        j += south <= north
    for j in range(row[r], end):
        left = measures.left[j]
        if j > row[r] and label[j - 1] >= 0:
            t.total[label[j - 1], _PERIMETER] += left
        if kind[j] < 0 or not wanted[kind[j]]:
            continue
        if label[j] < 0:
            k = _take(region, t.free, _OF_REGION)
            region[k, PARENT] = region[k, _KIN] = k
            region[k, _FIRST_SIDE] = region[k, _LAST_SIDE] = -1
            region[k, _KIND], region[k, _SPACE] = kind[j], 0
            t.number[k, _START], t.number[k, _PIXELS], t.number[k, _KNOWN] = line * width + first[j], 0, 0
            t.total[k, _AREA] = t.total[k, _PERIMETER] = t.total[k, _CHANCE] = 0.0
            label[j] = k
        else:
            label[j] = root(region, label[j])
        k = label[j]
        region[k, _LAST] = line
        t.number[k, _PIXELS] += (first[j + 1] if j + 1 < end else width) - first[j]
        t.total[k, _AREA] += measures.area[j]
        t.total[k, _PERIMETER] += left
        if chance.size:
            at = j - row[1]
            t.total[k, _CHANCE] += chance[at]
            t.number[k, _KNOWN] += known[at]
    if label[end - 1] >= 0:
        t.total[label[end - 1], _PERIMETER] += measures.end[r - 1, 0]


@compiled
def _link(vertex, u, v):  # type: ignore[no-untyped-def]
    """Join two ends of arcs. Return an end where that finishes an arc, -2 - v where it closes a loop at v, else -1."""
    if vertex[u, _BEFORE] == -1:
        vertex[u, _BEFORE] = v
    else:
        vertex[u, _AFTER] = v
    if vertex[v, _BEFORE] == -1:
        vertex[v, _BEFORE] = u
    else:
        vertex[v, _AFTER] = u
    a, b = vertex[u, _END], vertex[v, _END]
    if a == v:
        return -2 - v
    vertex[a, _END], vertex[b, _END] = b, a
    return a if vertex[a, _AFTER] < -1 and vertex[b, _AFTER] < -1 else -1


@compiled
def _finish(t, finished, squares, bits, band, generalise, smooth, tolerance, metres):  # type: ignore[no-untyped-def]
    """Record the arcs that end on a line, generalise them, and hand them to their regions."""
    vertex, arc, node, region, free = t.vertex, t.arc, t.node, t.region, t.free
    arcs = np.empty(len(finished), dtype=np.int32)
    longest = 0
    for k in range(len(finished)):
        end, left, right = finished[k]
        a = arcs[k] = _take(arc, free, _OF_ARC)
        loop = end < 0
        head = -2 - end if loop else end
        # Follow it: a loop from its corner upwards, which has the north-west on its left.
        before, at, many, seen = head, vertex[head, _BEFORE], 1, 0
        while at != head and vertex[at, _AFTER] >= -1:
            after = vertex[at, _AFTER] if vertex[at, _BEFORE] == before else vertex[at, _BEFORE]
            vertex[at, _BEFORE], vertex[at, _AFTER], vertex[at, _SMOOTH] = before, after, 0
            before, at = at, after
            many += 1
        if loop:
            vertex[head, _AFTER] = vertex[head, _BEFORE]
            vertex[head, _BEFORE] = before
        else:
            many += 1
            for code, which in ((-2 - vertex[head, _AFTER], 0), (-2 - vertex[at, _AFTER], 1)):
                node[code >> 2, _ARC + (code & 3)] = 2 * a + which
                if node[code >> 2, _EDGES] == _FOUR:
                    seen = _TOUCHES_FOUR
            code = -2 - vertex[head, _AFTER]
            left, right = node[code >> 2, _AROUND + (code & 3)], node[code >> 2, _AROUND + ((code + 1) & 3)]
        vertex[head, _SMOOTH] = vertex[at, _SMOOTH] = 0
        arc[a, _HEAD], arc[a, _TAIL], arc[a, _COUNT], arc[a, _SEEN] = head, at, many, seen
        arc[a, _SIDE], arc[a, _SIDE + 1] = left, right
        arc[a, _USES] = (left >= 0) + (right >= 0)
        longest = max(longest, many)
    if generalise and len(finished):
        x, y = np.empty(longest, dtype=np.int64), np.empty(longest, dtype=np.int64)
        before, after = np.empty(longest, dtype=np.int64), np.empty(longest, dtype=np.int64)
        own = np.empty(longest, dtype=np.int32)
        heap = (
            np.empty(3 * longest, dtype=np.int64), np.empty(3 * longest, dtype=np.int64),
            np.empty(3 * longest, dtype=np.int64),
        )  # fmt: skip
        for a in arcs:
            if arc[a, _SIDE] != _OUTSIDE and arc[a, _SIDE + 1] != _OUTSIDE and arc[a, _COUNT] > 2:
                _generalise(t, a, squares, bits, band, smooth, tolerance, metres, x, y, before, after, own, heap)
    for a in arcs:
        for side in range(2):
            if arc[a, _SIDE + side] < 0:
                continue
            k = root(region, arc[a, _SIDE + side])
            arc[a, _NEXT + side] = -1
            if region[k, _FIRST_SIDE] < 0:
                region[k, _FIRST_SIDE] = 2 * a + side
            else:
                last = region[k, _LAST_SIDE]
                arc[last >> 1, _NEXT + (last & 1)] = 2 * a + side
            region[k, _LAST_SIDE] = 2 * a + side
            # Each smoothed corner is up to four points; and a ring, at most one for each arc, is closed.
            region[k, _SPACE] += (4 if smooth else 1) * arc[a, _COUNT] + 1
        if arc[a, _USES] == 0:
            _forget_arc(t, a)


@compiled
def _generalise(t, a, squares, bits, band, smooth, tolerance, metres, x, y, before, after, own, heap):  # type: ignore[no-untyped-def]
    """Simplify and smooth an arc, and correct what its regions measure."""
    vertex, arc = t.vertex, t.arc
    head, n = arc[a, _HEAD], arc[a, _COUNT]
    loop = arc[a, _TAIL] == head
    at = head
    for k in range(n):
        own[k], x[k], y[k] = at, vertex[at, _X], vertex[at, _Y]
        at = vertex[at, _AFTER] if k > 0 or loop else vertex[at, _BEFORE]
    if tolerance >= 0:
        metric = metric_at(squares, float(x[n // 2]), float(y[n // 2])) if metres else (1.0, 0.0, 1.0)
        least = _least(t, a, loop)
        arc[a, _COUNT] = drop_vertices(x, y, n, loop, least, tolerance, metric, bits, band, before, after, heap)
    else:
        for k in range(n):
            before[k], after[k] = k - 1, k + 1
        before[0], after[n - 1] = (n - 1, 0) if loop else (-1, -1)
    area = perimeter = 0.0
    first = 0
    while after[first] == -2:
        first += 1
    p = first
    while True:
        q = after[p]
        if q < 0:
            break
        if (q - p) % n > 1:
            more, longer = _chord(squares, x, y, p, q, n)
            area += more
            perimeter += longer
        p = q
        if p == first:
            break
    if smooth:
        v = first
        while True:
            p, q = before[v], after[v]
            if p >= 0 and q >= 0 and can_be_smooth(bits, band, x[p], y[p], x[v], y[v], x[q], y[q]):
                vertex[own[v], _SMOOTH] = 1
                more, longer = _rounding(squares, x[p], y[p], x[v], y[v], x[q], y[q])
                area += more
                perimeter += longer
            v = q
            if v < 0 or v == first:
                break
    # `area` is what goes from the left to the right.
    for side in range(2):
        if arc[a, _SIDE + side] >= 0:
            k = root(t.region, arc[a, _SIDE + side])
            t.total[k, _AREA] += area if side else -area
            t.total[k, _PERIMETER] += perimeter
    for k in range(n):
        if after[k] == -2:
            _give_back(vertex, t.free, _OF_VERTEX, own[k])
    v = first
    while True:
        p, q = before[v], after[v]
        if p >= 0 and q >= 0:
            vertex[own[v], _BEFORE], vertex[own[v], _AFTER] = own[p], own[q]
        elif p < 0:
            vertex[own[v], _BEFORE] = own[q]
        else:
            vertex[own[v], _BEFORE] = own[p]
        v = q
        if v < 0 or v == first:
            break
    arc[a, _HEAD] = own[first]
    if loop:
        arc[a, _TAIL] = own[first]


@compiled
def _least(t, a, loop):  # type: ignore[no-untyped-def]
    """How many vertices an arc must keep, so that it neither vanishes nor lies upon another one."""
    if loop:
        return 3
    node, arc, vertex = t.node, t.arc, t.vertex
    head, tail = vertex[arc[a, _HEAD]], vertex[arc[a, _TAIL]]
    if head[_X] == tail[_X] and head[_Y] == tail[_Y]:
        return 4
    n = (-2 - head[_AFTER]) >> 2
    for direction in range(4):
        if t.straight[n, 2 * direction] == tail[_X] and t.straight[n, 2 * direction + 1] == tail[_Y]:
            return 3
        code = node[n, _ARC + direction]
        if code < 0 or code >> 1 == a or arc[code >> 1, _COUNT] > 2:
            continue
        other = vertex[arc[code >> 1, _HEAD if code & 1 else _TAIL]]
        if other[_X] == tail[_X] and other[_Y] == tail[_Y]:
            return 3
    return 2


@compiled
def _chord(squares, x, y, p, q, n):  # type: ignore[no-untyped-def]
    """Return what a straight line instead of the path from p to q adds: to the area on its right, and to its length."""
    twice = 0
    length, middlex, middley = 0.0, 0.0, 0.0
    k = p
    while k != q:
        m = k + 1 if k + 1 < n else 0
        own = (x[k] - x[p]) * (y[m] - y[p]) - (x[m] - x[p]) * (y[k] - y[p])
        twice += own
        middlex += own * (x[p] + x[k] + x[m]) / 3
        middley += own * (y[p] + y[k] + y[m]) / 3
        length -= length_at(squares, (x[k] + x[m]) / 2, (y[k] + y[m]) / 2, x[m] - x[k], y[m] - y[k])
        k = m
    # A pixel's area changes so little between p and q that it does so evenly.
    x0, y0 = (x[p] + x[q]) / 2, (y[p] + y[q]) / 2
    pixel = area_at(squares, x0, y0)
    area = twice * pixel
    area += (middlex - twice * x0) * (area_at(squares, x0 + 0.5, y0) - area_at(squares, x0 - 0.5, y0))
    area += (middley - twice * y0) * (area_at(squares, x0, y0 + 0.5) - area_at(squares, x0, y0 - 0.5))
    # What bulges to the left belongs to the right, and a line that cuts it off gives it to the left.
    return -area / 2, length + length_at(squares, x0, y0, x[q] - x[p], y[q] - y[p])


@compiled
def _rounding(squares, px, py, vx, vy, qx, qy):  # type: ignore[no-untyped-def]
    """Return what smoothing the corner v between p and q adds: to the area on its right, and to its length."""
    twice = (vx - px) * (qy - py) - (qx - px) * (vy - py)
    area = -CUT * twice / 2 * area_at(squares, (px + 4 * vx + qx) / 6, (py + 4 * vy + qy) / 6)
    length = -length_at(squares, (px + 3 * vx) / 4, (py + 3 * vy) / 4, (vx - px) / 2, (vy - py) / 2)
    length -= length_at(squares, (qx + 3 * vx) / 4, (qy + 3 * vy) / 4, (qx - vx) / 2, (qy - vy) / 2)
    e, f, g = metric_at(squares, (px + 6 * vx + qx) / 8, (py + 6 * vy + qy) / 8)
    for dx, dy in (
        # From the middle of p-v to the first point, on to the second, and to the middle of v-q, in pixels / `WHOLE`.
        (NEAR * px + OWN * vx + FAR * qx - 9 * (px + vx), NEAR * py + OWN * vy + FAR * qy - 9 * (py + vy)),
        ((FAR - NEAR) * (px - qx), (FAR - NEAR) * (py - qy)),
        (NEAR * qx + OWN * vx + FAR * px - 9 * (qx + vx), NEAR * qy + OWN * vy + FAR * py - 9 * (qy + vy)),
    ):
        length += np.sqrt(e * dx * dx + 2 * f * dx * dy + g * dy * dy) / WHOLE
    return area, length


@compiled
def _forget_arc(t, a):  # type: ignore[no-untyped-def]
    vertex, arc, node, free = t.vertex, t.arc, t.node, t.free
    head, tail = arc[a, _HEAD], arc[a, _TAIL]
    _give_back(arc, free, _OF_ARC, a)
    if head == tail:
        _give_back(vertex, free, _OF_VERTEX, vertex[head, _BEFORE])
        free[2 * _OF_VERTEX] = head
        return
    for own, other in ((head, tail), (tail, head)):
        code = -2 - vertex[own, _AFTER]
        n, direction = code >> 2, code & 3
        node[n, _ARC + direction] = -1
        if len(t.straight) and vertex[own, _BEFORE] == other:
            t.straight[n, 2 * direction], t.straight[n, 2 * direction + 1] = vertex[other, _X], vertex[other, _Y]
        node[n, _ARCS] -= 1
        if node[n, _ARCS] == 0:
            _give_back(node, free, _OF_NODE, n)
    # Its vertices are chained already, but for the first one.
    vertex[head, _AFTER] = vertex[head, _BEFORE]
    _give_back(vertex, free, _OF_VERTEX, tail)
    free[2 * _OF_VERTEX] = head


@compiled
def _write(t, closed, transform, turned, vertices, ring, polygon):  # type: ignore[no-untyped-def]
    """Write the rings of regions and forget these; return how many vertices and rings there are."""
    arc, region = t.arc, t.region
    n = rings = 0
    for number in range(closed.size):
        k = closed[number]
        polygon[number] = rings
        outer = rings
        code = region[k, _FIRST_SIDE]
        while code >= 0:
            if not arc[code >> 1, _SEEN] >> (code & 1) & 1:
                ring[rings] = n
                n, outside = _walk(t, k, code, transform, vertices, n)
                if not turned:
                    low, high = ring[rings], n - 1
                    while low < high:
                        for axis in range(2):
                            vertices[low, axis], vertices[high, axis] = vertices[high, axis], vertices[low, axis]
                        low, high = low + 1, high - 1
                if outside:
                    outer = rings
                rings += 1
            code = arc[code >> 1, _NEXT + (code & 1)]
        ring[rings] = n
        first = polygon[number]
        if outer > first:
            start, middle, end = ring[first], ring[outer], ring[outer + 1]
            own = vertices[middle:end].copy()
            for m in range(middle - 1, start - 1, -1):
                vertices[m + end - middle, 0], vertices[m + end - middle, 1] = vertices[m, 0], vertices[m, 1]
            for m in range(end - middle):
                vertices[start + m, 0], vertices[start + m, 1] = own[m, 0], own[m, 1]
            for m in range(outer, first, -1):
                ring[m] = ring[m - 1] + end - middle
    polygon[closed.size] = rings
    ring[rings] = n
    for k in closed:
        _forget_region(t, k)
    return n, rings


@compiled
def _forget_region(t, k):  # type: ignore[no-untyped-def]
    arc, node, region, vertex = t.arc, t.node, t.region, t.vertex
    code = region[k, _FIRST_SIDE]
    while code >= 0:
        a = code >> 1
        code = arc[a, _NEXT + (code & 1)]
        if arc[a, _SEEN] & _TOUCHES_FOUR:
            for end in (arc[a, _HEAD], arc[a, _TAIL]):
                n = (-2 - vertex[end, _AFTER]) >> 2
                if node[n, _EDGES] != _FOUR:
                    continue  # it is not asked what is around it, and may name regions that are gone
                for m in range(_AROUND, _AROUND + 4):
                    if node[n, m] >= 0 and root(region, node[n, m]) == k:
                        node[n, m] = _UNWANTED  # its number will be another region's
        arc[a, _USES] -= 1
        if arc[a, _USES] == 0:
            _forget_arc(t, a)
    kin = region[k, _KIN]
    while kin != k:
        after = region[kin, _KIN]
        _give_back(region, t.free, _OF_REGION, kin)
        kin = after
    _give_back(region, t.free, _OF_REGION, k)


@compiled
def _walk(t, k, code, transform, vertices, n):  # type: ignore[no-untyped-def]
    """Write a ring around region k, which lies on the right; return the end of it and whether it is the outer one."""
    arc, node, vertex = t.arc, t.node, t.vertex
    start, start_code = n, code
    twice = 0.0
    while True:
        a, side = code >> 1, code & 1
        arc[a, _SEEN] |= 1 << side
        # An arc runs with its right side on the right.
        forward = side == 1
        at, end = (arc[a, _HEAD], arc[a, _TAIL]) if forward else (arc[a, _TAIL], arc[a, _HEAD])
        onwards, back = (_AFTER, _BEFORE) if forward else (_BEFORE, _AFTER)
        loop = at == end
        before, after = (vertex[at, back], vertex[at, onwards]) if loop else (-1, vertex[at, _BEFORE])
        while True:
            x, y = float(vertex[at, _X]), float(vertex[at, _Y])
            if not vertex[at, _SMOOTH]:
                vertices[n, 0] = transform[0] * x + transform[1] * y + transform[2]
                vertices[n, 1] = transform[3] * x + transform[4] * y + transform[5]
                n += 1
            else:
                px, py = float(vertex[before, _X]), float(vertex[before, _Y])
                qx, qy = float(vertex[after, _X]), float(vertex[after, _Y])
                n = _point(vertices, n, px + x, py + y, 2.0, transform)
                n = _point(
                    vertices, n, NEAR * px + OWN * x + FAR * qx, NEAR * py + OWN * y + FAR * qy, WHOLE, transform
                )
                n = _point(
                    vertices, n, FAR * px + OWN * x + NEAR * qx, FAR * py + OWN * y + NEAR * qy, WHOLE, transform
                )
                if not vertex[after, _SMOOTH]:
                    n = _point(vertices, n, x + qx, y + qy, 2.0, transform)
            twice += x * vertex[after, _Y] - vertex[after, _X] * y
            before, at = at, after
            if at == end:
                break
            after = vertex[at, onwards]
        if loop:
            break
        m = -2 - vertex[end, _AFTER]
        m, heading = m >> 2, ((m & 3) + 2) & 3
        edges, right, left = node[m, _EDGES], (heading + 1) & 3, (heading + 3) & 3
        ahead = node[m, _AROUND + heading]
        # Where the region meets itself diagonally, ahead on the left, turning right would join its outer ring and a
        # hole into one ring that touches itself.
        if edges == _FOUR and ahead >= 0 and root(t.region, ahead) == k:
            direction = left
        elif edges >> right & 1:
            direction = right
        elif edges >> heading & 1:
            direction = heading
        else:
            direction = left
        # From its tail an arc runs backwards, with its left side on the right.
        code = node[m, _ARC + direction] ^ 1
        if code == start_code:
            break
    vertices[n] = vertices[start]
    return n + 1, twice > 0


@compiled
def _point(vertices, n, x, y, share, transform):  # type: ignore[no-untyped-def]
    x, y = x / share, y / share
    vertices[n, 0] = transform[0] * x + transform[1] * y + transform[2]
    vertices[n, 1] = transform[3] * x + transform[4] * y + transform[5]
    return n + 1
