"""Closed regions as rings of vertices: `Polygons`."""

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
    FIRST_SIDE,
    FOUR,
    HEAD,
    NEXT,
    NEXT_IN_REGION,
    OF_REGION,
    SEEN,
    SMOOTH,
    TAIL,
    TOUCHES_FOUR,
    UNWANTED,
    USES,
    X,
    Y,
    free_row,
)
from segkit.vector.tracing.union_find import root


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


@compiled
def write_rings(t, closed, transform, turned, vertices, ring, polygon):  # type: ignore[no-untyped-def]
    """Write the rings of regions and forget these; return how many vertices and rings there are."""
    arc, region = t.arc, t.region
    n = rings = 0
    for number in range(closed.size):
        k = closed[number]
        polygon[number] = rings
        outer = rings
        code = region[k, FIRST_SIDE]
        while code >= 0:
            if not arc[code >> 1, SEEN] >> (code & 1) & 1:
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
            code = arc[code >> 1, NEXT + (code & 1)]
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
    code = region[k, FIRST_SIDE]
    while code >= 0:
        a = code >> 1
        code = arc[a, NEXT + (code & 1)]
        if arc[a, SEEN] & TOUCHES_FOUR:
            for end in (arc[a, HEAD], arc[a, TAIL]):
                n = (-2 - vertex[end, AFTER]) >> 2
                if node[n, EDGES] != FOUR:
                    continue  # it is not asked what is around it, and may name regions that are gone
                for m in range(AROUND, AROUND + 4):
                    if node[n, m] >= 0 and root(region, node[n, m]) == k:
                        node[n, m] = UNWANTED  # its number will be another region's
        arc[a, USES] -= 1
        if arc[a, USES] == 0:
            forget_arc(t, a)
    kin = region[k, NEXT_IN_REGION]
    while kin != k:
        after = region[kin, NEXT_IN_REGION]
        free_row(region, t.free, OF_REGION, kin)
        kin = after
    free_row(region, t.free, OF_REGION, k)


@compiled
def _walk(t, k, code, transform, vertices, n):  # type: ignore[no-untyped-def]
    """Write a ring around region k, which lies on the right; return the end of it and whether it is the outer one."""
    arc, node, vertex = t.arc, t.node, t.vertex
    start, start_code = n, code
    twice = 0.0
    while True:
        a, side = code >> 1, code & 1
        arc[a, SEEN] |= 1 << side
        # An arc runs with its right side on the right.
        forward = side == 1
        at, end = (arc[a, HEAD], arc[a, TAIL]) if forward else (arc[a, TAIL], arc[a, HEAD])
        onwards, back = (AFTER, BEFORE) if forward else (BEFORE, AFTER)
        loop = at == end
        before, after = (vertex[at, back], vertex[at, onwards]) if loop else (-1, vertex[at, BEFORE])
        while True:
            x, y = float(vertex[at, X]), float(vertex[at, Y])
            if not vertex[at, SMOOTH]:
                vertices[n, 0] = transform[0] * x + transform[1] * y + transform[2]
                vertices[n, 1] = transform[3] * x + transform[4] * y + transform[5]
                n += 1
            else:
                px, py = float(vertex[before, X]), float(vertex[before, Y])
                qx, qy = float(vertex[after, X]), float(vertex[after, Y])
                n = _point(vertices, n, px + x, py + y, 2.0, transform)
                n = _point(
                    vertices, n, NEAR * px + OWN * x + FAR * qx, NEAR * py + OWN * y + FAR * qy, WHOLE, transform
                )
                n = _point(
                    vertices, n, FAR * px + OWN * x + NEAR * qx, FAR * py + OWN * y + NEAR * qy, WHOLE, transform
                )
                if not vertex[after, SMOOTH]:
                    n = _point(vertices, n, x + qx, y + qy, 2.0, transform)
            twice += x * vertex[after, Y] - vertex[after, X] * y
            before, at = at, after
            if at == end:
                break
            after = vertex[at, onwards]
        if loop:
            break
        m = -2 - vertex[end, AFTER]
        m, heading = m >> 2, ((m & 3) + 2) & 3
        edges, right, left = node[m, EDGES], (heading + 1) & 3, (heading + 3) & 3
        ahead = node[m, AROUND + heading]
        # Where the region meets itself diagonally, ahead on the left, turning right would join its outer ring and a
        # hole into one ring that touches itself.
        if edges == FOUR and ahead >= 0 and root(t.region, ahead) == k:
            direction = left
        elif edges >> right & 1:
            direction = right
        elif edges >> heading & 1:
            direction = heading
        else:
            direction = left
        # From its tail an arc runs backwards, with its left side on the right.
        code = node[m, ARC + direction] ^ 1
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
