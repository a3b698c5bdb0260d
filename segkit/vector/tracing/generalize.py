"""Simplify and smooth finished arcs; remove them when both of their regions are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segkit.vector.tracing.jit import compiled
from segkit.vector.tracing.pixel_measures import area_at, length_at, metric_at
from segkit.vector.tracing.simplify import CUT, FAR, NEAR, OWN, WHOLE, can_smooth, drop_vertices
from segkit.vector.tracing.tables import (
    AFTER,
    ARC,
    ARCS,
    AREA,
    AROUND,
    BEFORE,
    COUNT,
    EDGES,
    EXACT,
    FIRST_SIDE,
    FOUR,
    HEAD,
    LAST_SIDE,
    MAX_VERTICES,
    NEXT,
    OF_ARC,
    OF_NODE,
    OF_VERTEX,
    OUTSIDE,
    PERIMETER,
    REGIONS_LEFT,
    SIDE,
    SMOOTH,
    TAIL,
    TOUCHES_FOUR,
    VISITED,
    X,
    Y,
    free_row,
    take_row,
)
from segkit.vector.tracing.union_find import root


@dataclass(frozen=True)
class Generalisation:
    """Generalisation of borders between regions; the outline of nodata does not change.

    Parameters
    ----------
    tolerance
        Maximum distance that a border may move, in pixels, or in metres if `metres`; None for no simplification.
    smooth
        Round corners.
    """

    tolerance: float | None = None
    metres: bool = False
    smooth: bool = False

    @property
    def enabled(self) -> bool:
        """Whether borders change at all."""
        return self.smooth or self.tolerance is not None


class NewOutlines(NamedTuple):
    """Outlines that replace loops on some lines of corners (see `regularize`).

    Parameters
    ----------
    corridors
        uint64 (lines, words): one bit per corner, set if no other border may come there.
    end
        int64 (outlines,): where each loop ends, line x (width + 1) + column of its last corner in raster order.
    start
        int64 (outlines + 1,): start of each outline's corners.
    corners
        float64 (corners, 2): columns and rows, in the order of the loop's.
    """

    corridors: NDArray[np.uint64]
    end: NDArray[np.int64]
    start: NDArray[np.int64]
    corners: NDArray[np.float64]


def no_outlines() -> NewOutlines:
    """Return no outlines."""
    words = np.empty((0, 0), dtype=np.uint64)
    return NewOutlines(words, np.empty(0, dtype=np.int64), np.zeros(1, dtype=np.int64), np.empty((0, 2)))


@compiled
def finish_arc(t, finished, pixel_measures, bits, band, generalise, smooth, tolerance, metres, outlines, width):
    """Record the arcs that end on a line, generalise them, and add them to their regions."""
    vertex, arc, node, region, free = t.vertex, t.arc, t.node, t.region, t.free
    arcs = np.empty(len(finished), dtype=np.int32)
    replaced = np.zeros(len(finished), dtype=np.bool_)
    longest = 0
    for k in range(len(finished)):
        end, left, right = finished[k]
        a = arcs[k] = take_row(arc, free, OF_ARC)
        loop = end < 0
        head = -2 - end if loop else end
        # Follow the arc and order its vertices; a loop starts upwards at its corner, with the north-west on its left.
        before, at, count, flags = head, vertex[head, BEFORE], 1, 0
        while at != head and vertex[at, AFTER] >= -1:
            after = vertex[at, AFTER] if vertex[at, BEFORE] == before else vertex[at, BEFORE]
            vertex[at, BEFORE], vertex[at, AFTER], vertex[at, SMOOTH] = before, after, 0
            before, at = at, after
            count += 1
        if loop:
            vertex[head, AFTER] = vertex[head, BEFORE]
            vertex[head, BEFORE] = before
        else:
            count += 1
            for code, which in ((-2 - vertex[head, AFTER], 0), (-2 - vertex[at, AFTER], 1)):
                node[code >> 2, ARC + (code & 3)] = 2 * a + which
                if node[code >> 2, EDGES] == FOUR:
                    flags = TOUCHES_FOUR
            code = -2 - vertex[head, AFTER]
            left, right = node[code >> 2, AROUND + (code & 3)], node[code >> 2, AROUND + ((code + 1) & 3)]
        vertex[head, SMOOTH] = vertex[at, SMOOTH] = 0
        arc[a, HEAD], arc[a, TAIL], arc[a, COUNT], arc[a, VISITED] = head, at, count, flags
        arc[a, SIDE], arc[a, SIDE + 1] = left, right
        arc[a, REGIONS_LEFT] = (left >= 0) + (right >= 0)
        longest = max(longest, count)
        if loop and outlines.end.size:
            place = np.int64(vertex[head, Y]) * (width + 1) + vertex[head, X]
            m = np.searchsorted(outlines.end, place)
            if m < outlines.end.size and outlines.end[m] == place:
                _replace(t, a, outlines.corners[outlines.start[m] : outlines.start[m + 1]], pixel_measures)
                replaced[k] = True
    if generalise and len(finished):
        x, y = np.empty(longest, dtype=np.int64), np.empty(longest, dtype=np.int64)
        before, after = np.empty(longest, dtype=np.int64), np.empty(longest, dtype=np.int64)
        rows = np.empty(longest, dtype=np.int32)
        heap = (
            np.empty(3 * longest, dtype=np.int64), np.empty(3 * longest, dtype=np.int64),
            np.empty(3 * longest, dtype=np.int64),
        )  # fmt: skip
        for k in range(arcs.size):
            a = arcs[k]
            if arc[a, SIDE] != OUTSIDE and arc[a, SIDE + 1] != OUTSIDE and arc[a, COUNT] > 2 and not replaced[k]:
                _generalise(
                    t, a, pixel_measures, bits, band, smooth, tolerance, metres, x, y, before, after, rows, heap
                )
    for a in arcs:
        for side in range(2):
            if arc[a, SIDE + side] < 0:
                continue
            k = root(region, arc[a, SIDE + side])
            arc[a, NEXT + side] = -1
            if region[k, FIRST_SIDE] < 0:
                region[k, FIRST_SIDE] = 2 * a + side
            else:
                last = region[k, LAST_SIDE]
                arc[last >> 1, NEXT + (last & 1)] = 2 * a + side
            region[k, LAST_SIDE] = 2 * a + side
            # A smoothed corner has up to four points, and each ring (at most one per arc) repeats its first point.
            region[k, MAX_VERTICES] += (4 if smooth else 1) * arc[a, COUNT] + 1
        if arc[a, REGIONS_LEFT] == 0:
            forget_arc(t, a)


@compiled
def _generalise(t, a, pixel_measures, bits, band, smooth, tolerance, metres, x, y, before, after, rows, heap):
    """Simplify and smooth an arc, and correct the areas and perimeters of its regions."""
    vertex, arc = t.vertex, t.arc
    head, n = arc[a, HEAD], arc[a, COUNT]
    loop = arc[a, TAIL] == head
    at = head
    for k in range(n):
        rows[k], x[k], y[k] = at, vertex[at, X], vertex[at, Y]
        at = vertex[at, AFTER] if k > 0 or loop else vertex[at, BEFORE]
    if tolerance >= 0:
        metric = metric_at(pixel_measures, float(x[n // 2]), float(y[n // 2])) if metres else (1.0, 0.0, 1.0)
        min_vertices = _min_vertices(t, a, loop)
        arc[a, COUNT] = drop_vertices(x, y, n, loop, min_vertices, tolerance, metric, bits, band, before, after, heap)
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
            more, longer = _chord(pixel_measures, x, y, p, q, n)
            area += more
            perimeter += longer
        p = q
        if p == first:
            break
    if smooth:
        v = first
        while True:
            p, q = before[v], after[v]
            if p >= 0 and q >= 0 and can_smooth(bits, band, x[p], y[p], x[v], y[v], x[q], y[q]):
                vertex[rows[v], SMOOTH] = 1
                more, longer = _rounding(pixel_measures, x[p], y[p], x[v], y[v], x[q], y[q])
                area += more
                perimeter += longer
            v = q
            if v < 0 or v == first:
                break
    _correct(t, a, area, perimeter)
    _relink(t, rows, n, first, before, after)
    arc[a, HEAD] = rows[first]
    if loop:
        arc[a, TAIL] = rows[first]


@compiled
def _correct(t, a, area, perimeter):
    """Correct the measures of an arc's regions: `area` moves from the left region to the right one."""
    for side in range(2):
        if t.arc[a, SIDE + side] >= 0:
            k = root(t.region, t.arc[a, SIDE + side])
            t.total[k, AREA] += area if side else -area
            t.total[k, PERIMETER] += perimeter


@compiled
def _replace(t, a, corners, pixel_measures):
    """Give a loop other corners, not more than it has, and correct the areas and perimeters of its regions."""
    vertex, n, new = t.vertex, t.arc[a, COUNT], len(corners)
    old, rows = np.empty((n, 2)), np.empty(n, dtype=np.int32)
    at = t.arc[a, HEAD]
    for k in range(n):
        rows[k], old[k, 0], old[k, 1] = at, vertex[at, X], vertex[at, Y]
        at = vertex[at, AFTER]
    x0, y0 = old[:, 0].mean(), old[:, 1].mean()
    before, length_before = _measure_loop(pixel_measures, old, x0, y0)
    after, length_after = _measure_loop(pixel_measures, corners, x0, y0)
    # The inside is on the left, and a loop that runs this way has a negative area.
    _correct(t, a, after - before, length_after - length_before)
    for k in range(new):
        v = rows[k]
        vertex[v, SMOOTH] = EXACT
        t.place[v, 0], t.place[v, 1] = corners[k, 0], corners[k, 1]
    for k in range(new, n):
        free_row(vertex, t.free, OF_VERTEX, rows[k])
    vertex[rows[new - 1], AFTER], vertex[rows[0], BEFORE] = rows[0], rows[new - 1]
    t.arc[a, COUNT] = new


@compiled
def _measure_loop(pixel_measures, corners, x0, y0):
    """Return area and length of a loop, the area positive if it is on the right; pixel areas are linear around it."""
    pixel = area_at(pixel_measures, x0, y0)
    stepx = area_at(pixel_measures, x0 + 0.5, y0) - area_at(pixel_measures, x0 - 0.5, y0)
    stepy = area_at(pixel_measures, x0, y0 + 0.5) - area_at(pixel_measures, x0, y0 - 0.5)
    area = length = 0.0
    for k in range(len(corners)):
        m = k + 1 if k + 1 < len(corners) else 0
        px, py, qx, qy = corners[k, 0], corners[k, 1], corners[m, 0], corners[m, 1]
        ux, uy, vx, vy = px - x0, py - y0, qx - x0, qy - y0
        area += (ux * vy - vx * uy) / 2 * (pixel + (ux + vx) / 3 * stepx + (uy + vy) / 3 * stepy)
        length += length_at(pixel_measures, (px + qx) / 2, (py + qy) / 2, qx - px, qy - py)
    return area, length


@compiled
def _relink(t, rows, n, first, before, after):
    """Free the removed vertices of an arc and link the remaining ones."""
    vertex = t.vertex
    for k in range(n):
        if after[k] == -2:
            free_row(vertex, t.free, OF_VERTEX, rows[k])
    v = first
    while True:
        p, q = before[v], after[v]
        if p >= 0 and q >= 0:
            vertex[rows[v], BEFORE], vertex[rows[v], AFTER] = rows[p], rows[q]
        elif p < 0:
            vertex[rows[v], BEFORE] = rows[q]
        else:
            vertex[rows[v], BEFORE] = rows[p]
        v = q
        if v < 0 or v == first:
            break


@compiled
def _min_vertices(t, a, loop):
    """Return the minimum number of vertices of an arc, so that it neither vanishes nor coincides with another one."""
    if loop:
        return 3
    node, arc, vertex = t.node, t.arc, t.vertex
    head, tail = vertex[arc[a, HEAD]], vertex[arc[a, TAIL]]
    if head[X] == tail[X] and head[Y] == tail[Y]:
        return 4
    n = (-2 - head[AFTER]) >> 2
    for direction in range(4):
        if t.straight[n, 2 * direction] == tail[X] and t.straight[n, 2 * direction + 1] == tail[Y]:
            return 3
        code = node[n, ARC + direction]
        if code < 0 or code >> 1 == a or arc[code >> 1, COUNT] > 2:
            continue
        other = vertex[arc[code >> 1, HEAD if code & 1 else TAIL]]
        if other[X] == tail[X] and other[Y] == tail[Y]:
            return 3
    return 2


@compiled
def _chord(pixel_measures, x, y, p, q, n):
    """Return the changes of the area on the right and of the length if a straight line replaces the path p to q."""
    twice = 0
    length, middlex, middley = 0.0, 0.0, 0.0
    k = p
    while k != q:
        m = k + 1 if k + 1 < n else 0
        cross = (x[k] - x[p]) * (y[m] - y[p]) - (x[m] - x[p]) * (y[k] - y[p])
        twice += cross
        middlex += cross * (x[p] + x[k] + x[m]) / 3
        middley += cross * (y[p] + y[k] + y[m]) / 3
        length -= length_at(pixel_measures, (x[k] + x[m]) / 2, (y[k] + y[m]) / 2, x[m] - x[k], y[m] - y[k])
        k = m
    # Between p and q, pixel area is almost a linear function of position.
    x0, y0 = (x[p] + x[q]) / 2, (y[p] + y[q]) / 2
    pixel = area_at(pixel_measures, x0, y0)
    area = twice * pixel
    area += (middlex - twice * x0) * (area_at(pixel_measures, x0 + 0.5, y0) - area_at(pixel_measures, x0 - 0.5, y0))
    area += (middley - twice * y0) * (area_at(pixel_measures, x0, y0 + 0.5) - area_at(pixel_measures, x0, y0 - 0.5))
    # A bulge to the left belongs to the right region; a line that cuts it off moves it to the left region.
    return -area / 2, length + length_at(pixel_measures, x0, y0, x[q] - x[p], y[q] - y[p])


@compiled
def _rounding(pixel_measures, px, py, vx, vy, qx, qy):
    """Return the changes of the area on the right and of the length if the corner v between p and q is smoothed."""
    twice = (vx - px) * (qy - py) - (qx - px) * (vy - py)
    area = -CUT * twice / 2 * area_at(pixel_measures, (px + 4 * vx + qx) / 6, (py + 4 * vy + qy) / 6)
    length = -length_at(pixel_measures, (px + 3 * vx) / 4, (py + 3 * vy) / 4, (vx - px) / 2, (vy - py) / 2)
    length -= length_at(pixel_measures, (qx + 3 * vx) / 4, (qy + 3 * vy) / 4, (qx - vx) / 2, (qy - vy) / 2)
    e, f, g = metric_at(pixel_measures, (px + 6 * vx + qx) / 8, (py + 6 * vy + qy) / 8)
    for dx, dy in (
        # From the middle of p-v to the first point, on to the second, and to the middle of v-q, in pixels / `WHOLE`.
        (NEAR * px + OWN * vx + FAR * qx - 9 * (px + vx), NEAR * py + OWN * vy + FAR * qy - 9 * (py + vy)),
        ((FAR - NEAR) * (px - qx), (FAR - NEAR) * (py - qy)),
        (NEAR * qx + OWN * vx + FAR * px - 9 * (qx + vx), NEAR * qy + OWN * vy + FAR * py - 9 * (qy + vy)),
    ):
        length += np.sqrt(e * dx * dx + 2 * f * dx * dy + g * dy * dy) / WHOLE
    return area, length


@compiled
def forget_arc(t, a):
    """Free the rows of an arc and its vertices."""
    vertex, arc, node, free = t.vertex, t.arc, t.node, t.free
    head, tail = arc[a, HEAD], arc[a, TAIL]
    free_row(arc, free, OF_ARC, a)
    if head == tail:
        free_row(vertex, free, OF_VERTEX, vertex[head, BEFORE])
        free[2 * OF_VERTEX] = head
        return
    for end, other in ((head, tail), (tail, head)):
        code = -2 - vertex[end, AFTER]
        n, direction = code >> 2, code & 3
        node[n, ARC + direction] = -1
        if len(t.straight) and vertex[end, BEFORE] == other:
            t.straight[n, 2 * direction], t.straight[n, 2 * direction + 1] = vertex[other, X], vertex[other, Y]
        node[n, ARCS] -= 1
        if node[n, ARCS] == 0:
            free_row(node, free, OF_NODE, n)
    # All vertices but the first are already chained.
    vertex[head, AFTER] = vertex[head, BEFORE]
    free_row(vertex, free, OF_VERTEX, tail)
    free[2 * OF_VERTEX] = head
