"""Remove vertices of an arc and test its corners for smoothing, so that arcs never touch.

An arc is changed for both of its regions at once, so they stay neighbours. One rule keeps the map a valid coverage: a
vertex v between p and q is removed only if no other remaining vertex lies in the closed triangle p, v, q. An edge that
crosses the new edge p-q enters the triangle there and could leave it only across p-v or v-q, which nothing crosses; so
it would end inside. Vertices are corners of the pixel grid, so one bit per corner shows where they are.
"""

from __future__ import annotations

import numpy as np

from segkit.vector.tracing.heap import pop, push
from segkit.vector.tracing.jit import compiled

# A smoothed corner v between p and q becomes the two points (4 p + 13 v + q) / 18 and (p + 13 v + 4 q) / 18, those at a
# third and two thirds of the parabola from the middle of p-v to the middle of v-q that has v as its control point.
# These parabolas together are a quadratic B-spline, the limit of Chaikin's corner cutting (Chaikin 1974; Riesenfeld
# 1975). Each lies in the triangle of v and the two midpoints.
FAR, OWN, NEAR, WHOLE = 1, 13, 4, 18
# Area that is cut off, as a share of the triangle p, v, q.
CUT = 11 / 108


@compiled
def drop_vertices(x, y, n, loop, min_vertices, tolerance, metric, bits, top, before, after, heap):
    """Remove vertices of an arc, those with the smallest triangle with their neighbours first.

    This is the order of Visvalingam and Whyatt (1993). No removed vertex is further than `tolerance` from the edge that
    replaces it.

    Parameters
    ----------
    x, y
        int (n,): columns and rows of the arc's vertices. Unless the arc is a loop, the first and the last one stay.
    min_vertices
        Minimum number of vertices that stay.
    metric
        (e, f, g): the squared length of (dx, dy) is e dx dx + 2 f dx dy + g dy dy, in the unit of the tolerance.
    bits
        uint64 (rows, words): one bit per corner of the grid from row `top` on, set if it is a vertex.
    before, after
        int (n,): filled with the neighbours of each remaining vertex, -1 beyond an end; `after` is -2 if it is removed.
    heap
        Three int64 arrays (3 n,).

    Returns
    -------
    int
        Number of remaining vertices.
    """
    for k in range(n):
        before[k], after[k] = k - 1, k + 1
    if loop:
        before[0], after[n - 1] = n - 1, 0
    else:
        after[n - 1] = -1
    left = n
    if left <= min_vertices:
        return left
    # Twice the area of each vertex's triangle, as last computed.
    current = np.empty(n, dtype=np.int64)
    waiting = 0
    for v in range(n):
        if before[v] >= 0 and after[v] >= 0:
            current[v] = _triangle(x, y, before[v], v, after[v])
            waiting = push(heap, waiting, current[v], v + (2 << 32), v)
    while waiting > 0 and left > min_vertices:
        area, v = heap[0][0], heap[2][0]
        waiting = pop(heap, waiting)
        if after[v] == -2 or area != current[v]:
            continue
        p, q = before[v], after[v]
        if _strays(x, y, p, q, n, tolerance, metric) or _holds_vertex(bits, top, x[p], y[p], x[v], y[v], x[q], y[q], 1):
            continue
        mark(bits, top, x[v], y[v], False)
        before[q], after[p], after[v] = p, q, -2
        left -= 1
        for w in (p, q):
            if before[w] >= 0 and after[w] >= 0:
                current[w] = _triangle(x, y, before[w], w, after[w])
                # Among equal triangles, the one that replaces the fewest vertices comes first, so that all edges grow
                # evenly.
                span = (after[w] - before[w]) % n
                waiting = push(heap, waiting, current[w], w + (span << 32), w)
    return left


@compiled
def can_smooth(bits, top, px, py, vx, vy, qx, qy):
    """Return whether the triangle of a corner and the midpoints of its edges contains no other vertex."""
    return not _holds_vertex(bits, top, px + vx, py + vy, 2 * vx, 2 * vy, vx + qx, vy + qy, 2)


@compiled
def _triangle(x, y, p, v, q):
    """Return twice the area of a triangle."""
    return abs((x[v] - x[p]) * (y[q] - y[p]) - (x[q] - x[p]) * (y[v] - y[p]))


@compiled
def _strays(x, y, p, q, n, tolerance, metric):
    """Return whether a vertex between p and q is further than the tolerance from the edge p-q."""
    e, f, g = metric
    dx, dy = float(x[q] - x[p]), float(y[q] - y[p])
    length = e * dx * dx + 2 * f * dx * dy + g * dy * dy
    k = p
    while True:
        k = k + 1 if k + 1 < n else 0
        if k == q:
            return False
        ux, uy = float(x[k] - x[p]), float(y[k] - y[p])
        t = (e * ux * dx + f * (ux * dy + uy * dx) + g * uy * dy) / length if length > 0 else 0.0
        t = min(max(t, 0.0), 1.0)
        ux, uy = ux - t * dx, uy - t * dy
        if e * ux * ux + 2 * f * ux * uy + g * uy * uy > tolerance * tolerance:
            return True


@compiled
def mark(bits, top, x, y, is_vertex):
    """Set or clear the bit of a grid corner."""
    bit = np.uint64(1) << np.uint64(x & 63)
    if is_vertex:
        bits[y - top, x >> 6] |= bit
    else:
        bits[y - top, x >> 6] &= ~bit


@compiled
def _holds_vertex(bits, top, ax, ay, bx, by, cx, cy, scale):
    """Return whether the closed triangle a, b, c, in 1 / scale pixels, contains a vertex other than its corners."""
    low, high = min(ay, by, cy), max(ay, by, cy)
    for row in range(-(-low // scale), high // scale + 1):
        y = row * scale
        left, right = 2**62, -(2**62)
        for x0, y0, x1, y1 in ((ax, ay, bx, by), (bx, by, cx, cy), (cx, cy, ax, ay)):
            if y0 == y1:
                if y0 == y:
                    left = min(left, -(-min(x0, x1) // scale))
                    right = max(right, max(x0, x1) // scale)
            elif min(y0, y1) <= y <= max(y0, y1):
                # x0 + (x1 - x0) (y - y0) / (y1 - y0), in pixels, rounded up and down.
                over, under = x0 * (y1 - y0) + (x1 - x0) * (y - y0), (y1 - y0) * scale
                if under < 0:
                    over, under = -over, -under
                left, right = min(left, -(-over // under)), max(right, over // under)
        if left > right:
            continue
        line = bits[row - top]
        for word in range(left >> 6, (right >> 6) + 1):
            found = line[word]
            if found == 0:
                continue
            if word == left >> 6:
                found &= ~np.uint64(0) << np.uint64(left & 63)
            if word == right >> 6:
                found &= ~np.uint64(0) >> np.uint64(63 - (right & 63))
            for cornerx, cornery in ((ax, ay), (bx, by), (cx, cy)):
                if cornery == y and cornerx % scale == 0 and (cornerx // scale) >> 6 == word:
                    found &= ~(np.uint64(1) << np.uint64((cornerx // scale) & 63))
            if found:
                return True
    return False
