"""Finished arcs: simplified, smoothed, and forgotten when both of their regions are written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segkit.vector.tracing.jit import compiled
from segkit.vector.tracing.pixel_measures import area_at, length_at, metric_at
from segkit.vector.tracing.simplify import CUT, FAR, NEAR, OWN, WHOLE, can_be_smooth, drop_vertices
from segkit.vector.tracing.tables import (
    AFTER,
    ARC,
    ARCS,
    AREA,
    AROUND,
    BEFORE,
    COUNT,
    EDGES,
    FIRST_SIDE,
    FOUR,
    HEAD,
    LAST_SIDE,
    NEXT,
    OF_ARC,
    OF_NODE,
    OF_VERTEX,
    OUTSIDE,
    PERIMETER,
    SEEN,
    SIDE,
    SMOOTH,
    SPACE,
    TAIL,
    TOUCHES_FOUR,
    USES,
    X,
    Y,
    free_row,
    take_row,
)
from segkit.vector.tracing.union_find import root


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


@compiled
def finish_arc(t, finished, squares, bits, band, generalise, smooth, tolerance, metres):  # type: ignore[no-untyped-def]
    """Record the arcs that end on a line, generalise them, and hand them to their regions."""
    vertex, arc, node, region, free = t.vertex, t.arc, t.node, t.region, t.free
    arcs = np.empty(len(finished), dtype=np.int32)
    longest = 0
    for k in range(len(finished)):
        end, left, right = finished[k]
        a = arcs[k] = take_row(arc, free, OF_ARC)
        loop = end < 0
        head = -2 - end if loop else end
        # Follow it: a loop from its corner upwards, which has the north-west on its left.
        before, at, many, seen = head, vertex[head, BEFORE], 1, 0
        while at != head and vertex[at, AFTER] >= -1:
            after = vertex[at, AFTER] if vertex[at, BEFORE] == before else vertex[at, BEFORE]
            vertex[at, BEFORE], vertex[at, AFTER], vertex[at, SMOOTH] = before, after, 0
            before, at = at, after
            many += 1
        if loop:
            vertex[head, AFTER] = vertex[head, BEFORE]
            vertex[head, BEFORE] = before
        else:
            many += 1
            for code, which in ((-2 - vertex[head, AFTER], 0), (-2 - vertex[at, AFTER], 1)):
                node[code >> 2, ARC + (code & 3)] = 2 * a + which
                if node[code >> 2, EDGES] == FOUR:
                    seen = TOUCHES_FOUR
            code = -2 - vertex[head, AFTER]
            left, right = node[code >> 2, AROUND + (code & 3)], node[code >> 2, AROUND + ((code + 1) & 3)]
        vertex[head, SMOOTH] = vertex[at, SMOOTH] = 0
        arc[a, HEAD], arc[a, TAIL], arc[a, COUNT], arc[a, SEEN] = head, at, many, seen
        arc[a, SIDE], arc[a, SIDE + 1] = left, right
        arc[a, USES] = (left >= 0) + (right >= 0)
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
            if arc[a, SIDE] != OUTSIDE and arc[a, SIDE + 1] != OUTSIDE and arc[a, COUNT] > 2:
                _generalise(t, a, squares, bits, band, smooth, tolerance, metres, x, y, before, after, own, heap)
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
            # Each smoothed corner is up to four points; and a ring, at most one for each arc, is closed.
            region[k, SPACE] += (4 if smooth else 1) * arc[a, COUNT] + 1
        if arc[a, USES] == 0:
            forget_arc(t, a)


@compiled
def _generalise(t, a, squares, bits, band, smooth, tolerance, metres, x, y, before, after, own, heap):  # type: ignore[no-untyped-def]
    """Simplify and smooth an arc, and correct what its regions measure."""
    vertex, arc = t.vertex, t.arc
    head, n = arc[a, HEAD], arc[a, COUNT]
    loop = arc[a, TAIL] == head
    at = head
    for k in range(n):
        own[k], x[k], y[k] = at, vertex[at, X], vertex[at, Y]
        at = vertex[at, AFTER] if k > 0 or loop else vertex[at, BEFORE]
    if tolerance >= 0:
        metric = metric_at(squares, float(x[n // 2]), float(y[n // 2])) if metres else (1.0, 0.0, 1.0)
        least = _least(t, a, loop)
        arc[a, COUNT] = drop_vertices(x, y, n, loop, least, tolerance, metric, bits, band, before, after, heap)
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
                vertex[own[v], SMOOTH] = 1
                more, longer = _rounding(squares, x[p], y[p], x[v], y[v], x[q], y[q])
                area += more
                perimeter += longer
            v = q
            if v < 0 or v == first:
                break
    # `area` is what goes from the left to the right.
    for side in range(2):
        if arc[a, SIDE + side] >= 0:
            k = root(t.region, arc[a, SIDE + side])
            t.total[k, AREA] += area if side else -area
            t.total[k, PERIMETER] += perimeter
    for k in range(n):
        if after[k] == -2:
            free_row(vertex, t.free, OF_VERTEX, own[k])
    v = first
    while True:
        p, q = before[v], after[v]
        if p >= 0 and q >= 0:
            vertex[own[v], BEFORE], vertex[own[v], AFTER] = own[p], own[q]
        elif p < 0:
            vertex[own[v], BEFORE] = own[q]
        else:
            vertex[own[v], BEFORE] = own[p]
        v = q
        if v < 0 or v == first:
            break
    arc[a, HEAD] = own[first]
    if loop:
        arc[a, TAIL] = own[first]


@compiled
def _least(t, a, loop):  # type: ignore[no-untyped-def]
    """How many vertices an arc must keep, so that it neither vanishes nor lies upon another one."""
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
def forget_arc(t, a):  # type: ignore[no-untyped-def]
    """Give the rows of an arc and its vertices back."""
    vertex, arc, node, free = t.vertex, t.arc, t.node, t.free
    head, tail = arc[a, HEAD], arc[a, TAIL]
    free_row(arc, free, OF_ARC, a)
    if head == tail:
        free_row(vertex, free, OF_VERTEX, vertex[head, BEFORE])
        free[2 * OF_VERTEX] = head
        return
    for own, other in ((head, tail), (tail, head)):
        code = -2 - vertex[own, AFTER]
        n, direction = code >> 2, code & 3
        node[n, ARC + direction] = -1
        if len(t.straight) and vertex[own, BEFORE] == other:
            t.straight[n, 2 * direction], t.straight[n, 2 * direction + 1] = vertex[other, X], vertex[other, Y]
        node[n, ARCS] -= 1
        if node[n, ARCS] == 0:
            free_row(node, free, OF_NODE, n)
    # Its vertices are chained already, but for the first one.
    vertex[head, AFTER] = vertex[head, BEFORE]
    free_row(vertex, free, OF_VERTEX, tail)
    free[2 * OF_VERTEX] = head
