"""Write closed regions as rings of vertices (`Polygons`)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from segkit.vector.tracing.generalize import forget_arc
from segkit.vector.tracing.jit import compiled
from segkit.vector.tracing.simplify import FAR, NEAR, OWN, WHOLE
from segkit.vector.tracing.tables import (
    AFTER,
    ARC,
    AROUND,
    BEFORE,
    EDGES,
    EXACT,
    FIRST_SIDE,
    FOUR,
    HEAD,
    NEXT,
    NEXT_IN_REGION,
    NOT_SELECTED,
    OF_REGION,
    REGIONS_LEFT,
    ROUNDED,
    SMOOTH,
    TAIL,
    TOUCHES_FOUR,
    VISITED,
    X,
    Y,
    free_row,
)
from segkit.vector.tracing.union_find import root


@dataclass(frozen=True)
class Polygons:
    """Regions as closed rings in CRS coordinates, with their attributes.

    Outer rings are counter-clockwise and holes clockwise, with x to the right and y upwards.

    Parameters
    ----------
    vertices
        float64 (vertices, 2): the first vertex of each ring is repeated as its last.
    ring
        int64 (rings + 1,): start of each ring's vertices.
    polygon
        int64 (polygons + 1,): start of each polygon's rings; the outer ring is the first one.
    class_index
        int32 (polygons,): index in `pipeline.BandClasses`.
    pixels, confidence_count
        int64 (polygons,): number of pixels, and of pixels with a probability.
    area, perimeter, confidence_sum
        float64 (polygons,): m2 and m on the ground, and the sum of the probabilities.
    """

    vertices: NDArray[np.float64]
    ring: NDArray[np.int64]
    polygon: NDArray[np.int64]
    class_index: NDArray[np.int32]
    pixels: NDArray[np.int64]
    confidence_count: NDArray[np.int64]
    area: NDArray[np.float64]
    perimeter: NDArray[np.float64]
    confidence_sum: NDArray[np.float64]

    def take(self, start: int, end: int) -> Polygons:
        """Return the polygons from index `start` up to `end`."""
        first, last = self.polygon[start], self.polygon[end]
        vertices = slice(self.ring[first], self.ring[last])
        columns = {field.name: getattr(self, field.name)[start:end] for field in fields(self)[3:]}
        return Polygons(
            self.vertices[vertices],
            self.ring[first : last + 1] - vertices.start,
            self.polygon[start : end + 1] - first,
            **columns,
        )


@compiled
def write_rings(t, closed, transform, flipped, vertices, ring, polygon):
    """Write the rings of regions and free the regions; return the numbers of vertices and rings."""
    arc, region = t.arc, t.region
    n = rings = 0
    for number in range(closed.size):
        k = closed[number]
        polygon[number] = rings
        outer = rings
        code = region[k, FIRST_SIDE]
        while code >= 0:
            if not arc[code >> 1, VISITED] >> (code & 1) & 1:
                ring[rings] = n
                n, outside = _walk_ring(t, k, code, transform, vertices, n)
                if not flipped:
                    low, high = ring[rings], n - 1
                    while low < high:
                        for axis in range(2):
                            vertices[low, axis], vertices[high, axis] = vertices[high, axis], vertices[low, axis]
                        low, high = low + 1, high - 1
                if outside:
                    outer = rings
                rings += 1
            code = arc[code >> 1, NEXT + (code & 1)]
        ring[rings] = n
        first = polygon[number]
        if outer > first:
            start, middle, end = ring[first], ring[outer], ring[outer + 1]
            outer_vertices = vertices[middle:end].copy()
            for m in range(middle - 1, start - 1, -1):
                vertices[m + end - middle, 0], vertices[m + end - middle, 1] = vertices[m, 0], vertices[m, 1]
            for m in range(end - middle):
                vertices[start + m, 0], vertices[start + m, 1] = outer_vertices[m, 0], outer_vertices[m, 1]
            for m in range(outer, first, -1):
                ring[m] = ring[m - 1] + end - middle
    polygon[closed.size] = rings
    ring[rings] = n
    for k in closed:
        _forget_region(t, k)
    return n, rings


@compiled
def _forget_region(t, k):
    arc, node, region, vertex = t.arc, t.node, t.region, t.vertex
    code = region[k, FIRST_SIDE]
    while code >= 0:
        a = code >> 1
        code = arc[a, NEXT + (code & 1)]
        if arc[a, VISITED] & TOUCHES_FOUR:
            for end in (arc[a, HEAD], arc[a, TAIL]):
                n = (-2 - vertex[end, AFTER]) >> 2
                if node[n, EDGES] != FOUR:
                    continue  # its neighbours are not needed, and may be freed regions
                for m in range(AROUND, AROUND + 4):
                    if node[n, m] >= 0 and root(region, node[n, m]) == k:
                        node[n, m] = NOT_SELECTED  # the row will be reused by another region
        arc[a, REGIONS_LEFT] -= 1
        if arc[a, REGIONS_LEFT] == 0:
            forget_arc(t, a)
    merged = region[k, NEXT_IN_REGION]
    while merged != k:
        after = region[merged, NEXT_IN_REGION]
        free_row(region, t.free, OF_REGION, merged)
        merged = after
    free_row(region, t.free, OF_REGION, k)


@compiled
def _walk_ring(t, k, code, transform, vertices, n):
    """Write a ring around region k, which is on the right; return its end and whether it is the outer ring."""
    arc, node, vertex = t.arc, t.node, t.vertex
    start, start_code = n, code
    twice = 0.0
    while True:
        a, side = code >> 1, code & 1
        arc[a, VISITED] |= 1 << side
        # Forwards, the arc has its right side on the right.
        forward = side == 1
        at, end = (arc[a, HEAD], arc[a, TAIL]) if forward else (arc[a, TAIL], arc[a, HEAD])
        onwards, back = (AFTER, BEFORE) if forward else (BEFORE, AFTER)
        loop = at == end
        before, after = (vertex[at, back], vertex[at, onwards]) if loop else (-1, vertex[at, BEFORE])
        while True:
            x, y = _place(t, at)
            if vertex[at, SMOOTH] != ROUNDED:
                vertices[n, 0] = transform[0] * x + transform[1] * y + transform[2]
                vertices[n, 1] = transform[3] * x + transform[4] * y + transform[5]
                n += 1
            else:
                px, py = float(vertex[before, X]), float(vertex[before, Y])
                qx, qy = _place(t, after)
                n = _point(vertices, n, px + x, py + y, 2.0, transform)
                n = _point(
                    vertices, n, NEAR * px + OWN * x + FAR * qx, NEAR * py + OWN * y + FAR * qy, WHOLE, transform
                )
                n = _point(
                    vertices, n, FAR * px + OWN * x + NEAR * qx, FAR * py + OWN * y + NEAR * qy, WHOLE, transform
                )
                if not vertex[after, SMOOTH]:
                    n = _point(vertices, n, x + qx, y + qy, 2.0, transform)
            qx, qy = _place(t, after)
            twice += x * qy - qx * y
            before, at = at, after
            if at == end:
                break
            after = vertex[at, onwards]
        if loop:
            break
        m = -2 - vertex[end, AFTER]
        m, heading = m >> 2, ((m & 3) + 2) & 3
        edges, right, left = node[m, EDGES], (heading + 1) & 3, (heading + 3) & 3
        region_ahead = node[m, AROUND + heading]
        # If the region touches itself diagonally, ahead on the left, a right turn would merge its outer ring and a hole
        # into one ring that touches itself.
        if edges == FOUR and region_ahead >= 0 and root(t.region, region_ahead) == k:
            direction = left
        elif edges >> right & 1:
            direction = right
        elif edges >> heading & 1:
            direction = heading
        else:
            direction = left
        # From its tail, the arc is followed backwards, with its left side on the right.
        code = node[m, ARC + direction] ^ 1
        if code == start_code:
            break
    vertices[n] = vertices[start]
    return n + 1, twice > 0


@compiled
def _place(t, v):
    """Return column and row of a vertex."""
    if t.vertex[v, SMOOTH] == EXACT:
        return t.place[v, 0], t.place[v, 1]
    return float(t.vertex[v, X]), float(t.vertex[v, Y])


@compiled
def _point(vertices, n, x, y, share, transform):
    x, y = x / share, y / share
    vertices[n, 0] = transform[0] * x + transform[1] * y + transform[2]
    vertices[n, 1] = transform[3] * x + transform[4] * y + transform[5]
    return n + 1
