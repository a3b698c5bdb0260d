"""Convert traced rings to shapely polygons, or to well-known binary without creating Python objects."""

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

# OGC 06-103r4, "Simple feature access", section 8: byte order and geometry type, then counts.
_HEAD_BYTES, _COUNT_BYTES, _VERTEX_BYTES = 5, 4, 16
_POLYGON, _MULTIPOLYGON = 3, 6
_MAX_WKB_BYTES = 2**31 - 1


def to_shapely(polygons: Polygons, parts: NDArray[np.int64] | None = None) -> NDArray[np.object_]:
    """Return shapely polygons, or multipolygons of the polygons from `parts[i]` to `parts[i + 1]`."""
    offsets = (polygons.ring, polygons.polygon)
    if parts is None:
        return np.asarray(shapely.from_ragged_array(shapely.GeometryType.POLYGON, polygons.vertices, offsets))
    geometry_type = shapely.GeometryType.MULTIPOLYGON
    return np.asarray(shapely.from_ragged_array(geometry_type, polygons.vertices, (*offsets, parts)))


def to_wkb(polygons: Polygons, parts: NDArray[np.int64] | None = None) -> BinaryArray:
    """Return polygons, or multipolygons of the polygons from `parts[i]` to `parts[i + 1]`, as well-known binary.

    Raises
    ------
    OutputError
        They take more than 2 GB.
    """
    import pyarrow as pa

    rings, vertices = np.diff(polygons.polygon), np.diff(polygons.ring[polygons.polygon])
    size = _HEAD_BYTES + _COUNT_BYTES + _COUNT_BYTES * rings + _VERTEX_BYTES * vertices
    if parts is not None:
        ends = np.concatenate(([0], np.cumsum(size)))[parts]
        size = _HEAD_BYTES + _COUNT_BYTES + np.diff(ends)
    start = np.concatenate(([0], np.cumsum(size)))
    if start[-1] > _MAX_WKB_BYTES:
        raise OutputError(
            f"{len(size)} polygons take {start[-1] / 2**30:.1f} GB at once, and formats hold 2 GB in one geometry; "
            "simplify them, or do not dissolve them"
        )
    out = np.empty(start[-1], dtype=np.uint8)
    raw = np.ascontiguousarray(polygons.vertices).view(np.uint8).ravel()
    _write_binary(raw, polygons.ring, polygons.polygon, np.empty(0, dtype=np.int64) if parts is None else parts, out)
    return pa.Array.from_buffers(
        pa.binary(), len(size), [None, pa.py_buffer(start.astype(np.int32)), pa.py_buffer(out)]
    )


def concatenate_polygons(several: Sequence[Polygons]) -> Polygons:
    """Concatenate polygons."""
    if len(several) == 1:
        return several[0]
    columns = {field.name: [getattr(one, field.name) for one in several] for field in fields(Polygons)}
    concatenated = {name: np.concatenate(parts) for name, parts in columns.items() if name not in ("ring", "polygon")}
    return Polygons(
        ring=_concatenate_offsets(columns["ring"]), polygon=_concatenate_offsets(columns["polygon"]), **concatenated
    )


def sort_by_class(polygons: Polygons) -> Polygons:
    """Sort polygons by class; the order within a class stays."""
    return take_polygons(polygons, np.argsort(polygons.class_index, kind="stable"))


def take_polygons(polygons: Polygons, order: NDArray[np.int64]) -> Polygons:
    """Return the polygons with these indices, int64 (n,), in this order."""
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
    """Return the indices from starts[i] to starts[i + 1] for each i in `order`."""
    size = np.diff(starts)[order]
    return np.repeat(starts[order] - _offsets(size)[:-1], size) + np.arange(size.sum())


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))


def _concatenate_offsets(starts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return _offsets(np.concatenate([np.diff(one) for one in starts]))


@compiled
def _write_binary(raw, ring, polygon, parts, out):
    n = group = 0
    for p in range(polygon.size - 1):
        while group + 1 < parts.size and parts[group] == p:
            n = _write_head(out, n, _MULTIPOLYGON, parts[group + 1] - parts[group])
            group += 1
        n = _write_head(out, n, _POLYGON, polygon[p + 1] - polygon[p])
        for r in range(polygon[p], polygon[p + 1]):
            start, end = ring[r], ring[r + 1]
            n = _write_number(out, n, end - start)
            for k in range(_VERTEX_BYTES * start, _VERTEX_BYTES * end):
                out[n] = raw[k]
                n += 1


@compiled
def _write_head(out, n, geometry_type, count):
    out[n] = 1  # little-endian
    return _write_number(out, _write_number(out, n + 1, geometry_type), count)


@compiled
def _write_number(out, n, number):
    for k in range(4):
        out[n + k] = number >> (8 * k) & 255
    return n + 4
