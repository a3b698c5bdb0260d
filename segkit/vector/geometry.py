"""Geometry: rings -> shapely polygons, or the well-known binary that files take without any Python object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray

from segkit.errors import OutputError
from segkit.vector.tracing.jit import compiled
from segkit.vector.tracing.rings import Polygons

if TYPE_CHECKING:
    from pyarrow import BinaryArray

# Of OGC 06-103r4, "Simple feature access", section 8: byte order and kind of geometry, and counts.
_HEAD_BYTES, _COUNT_BYTES, _VERTEX_BYTES = 5, 4, 16
_POLYGON, _MULTIPOLYGON = 3, 6
_MOST_BYTES = 2**31 - 1


def shapes(polygons: Polygons, parts: NDArray[np.int64] | None = None) -> NDArray[np.object_]:
    """Build shapely polygons, or multipolygons of the polygons from `parts[i]` to `parts[i + 1]`."""
    offsets = (polygons.ring, polygons.polygon)
    if parts is None:
        return np.asarray(shapely.from_ragged_array(shapely.GeometryType.POLYGON, polygons.vertices, offsets))
    kind = shapely.GeometryType.MULTIPOLYGON
    return np.asarray(shapely.from_ragged_array(kind, polygons.vertices, (*offsets, parts)))


def binary(polygons: Polygons, parts: NDArray[np.int64] | None = None) -> BinaryArray:
    """Write polygons, or multipolygons of the polygons from `parts[i]` to `parts[i + 1]`, as well-known binary.

    Raises
    ------
    OutputError
        It would take more than 2 GB.
    """
    import pyarrow as pa

    rings, vertices = np.diff(polygons.polygon), np.diff(polygons.ring[polygons.polygon])
    size = _HEAD_BYTES + _COUNT_BYTES + _COUNT_BYTES * rings + _VERTEX_BYTES * vertices
    if parts is not None:
        ends = np.concatenate(([0], np.cumsum(size)))[parts]
        size = _HEAD_BYTES + _COUNT_BYTES + np.diff(ends)
    start = np.concatenate(([0], np.cumsum(size)))
    if start[-1] > _MOST_BYTES:
        raise OutputError(
            f"{len(size)} polygons take {start[-1] / 2**30:.1f} GB at once, and a format holds 2 GB in one; "
            "do not dissolve them, or simplify them"
        )
    out = np.empty(start[-1], dtype=np.uint8)
    raw = np.ascontiguousarray(polygons.vertices).view(np.uint8).ravel()
    _write_binary(raw, polygons.ring, polygons.polygon, np.empty(0, dtype=np.int64) if parts is None else parts, out)
    return pa.Array.from_buffers(
        pa.binary(), len(size), [None, pa.py_buffer(start.astype(np.int32)), pa.py_buffer(out)]
    )


def joined(several: Sequence[Polygons]) -> Polygons:
    """Put polygons one after the other."""
    if len(several) == 1:
        return several[0]
    columns = {field.name: [getattr(one, field.name) for one in several] for field in fields(Polygons)}
    whole = {name: np.concatenate(parts) for name, parts in columns.items() if name not in ("ring", "polygon")}
    return Polygons(ring=_appended(columns["ring"]), polygon=_appended(columns["polygon"]), **whole)


def sorted_by_kind(polygons: Polygons) -> Polygons:
    """Bring the polygons of each kind together, in their order."""
    order = np.argsort(polygons.kind, kind="stable")
    rings = _slices(polygons.polygon, order)
    vertices = _slices(polygons.ring, rings)
    columns = {field.name: getattr(polygons, field.name) for field in fields(Polygons)}
    moved = {name: column[order] for name, column in columns.items() if name not in ("vertices", "ring", "polygon")}
    return replace(
        polygons,
        vertices=polygons.vertices[vertices],
        ring=_offsets(np.diff(polygons.ring)[rings]),
        polygon=_offsets(np.diff(polygons.polygon)[order]),
        **moved,
    )


def _slices(starts: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers from starts[i] to starts[i + 1], for each i of an order."""
    size = np.diff(starts)[order]
    return np.repeat(starts[order] - _offsets(size)[:-1], size) + np.arange(size.sum())


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))


def _appended(starts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return _offsets(np.concatenate([np.diff(one) for one in starts]))


@compiled
def _write_binary(raw, ring, polygon, parts, out):  # type: ignore[no-untyped-def]
    n = group = 0
    for p in range(polygon.size - 1):
        while group + 1 < parts.size and parts[group] == p:
            n = _head(out, n, _MULTIPOLYGON, parts[group + 1] - parts[group])
            group += 1
        n = _head(out, n, _POLYGON, polygon[p + 1] - polygon[p])
        for r in range(polygon[p], polygon[p + 1]):
            start, end = ring[r], ring[r + 1]
            n = _number(out, n, end - start)
            for k in range(_VERTEX_BYTES * start, _VERTEX_BYTES * end):
                out[n] = raw[k]
                n += 1


@compiled
def _head(out, n, kind, count):  # type: ignore[no-untyped-def]
    out[n] = 1  # the least byte first
    return _number(out, _number(out, n + 1, kind), count)


@compiled
def _number(out, n, number):  # type: ignore[no-untyped-def]
    for k in range(4):
        out[n + k] = number >> (8 * k) & 255
    return n + 4
