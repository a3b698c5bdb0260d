"""Plan: what a format is to write, and what of it is found afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyproj
    from pyarrow import Schema, Table

Sink = Callable[["Table", str], None]


@dataclass(frozen=True)
class Plan:
    """What a format is to write.

    Parameters
    ----------
    path
        The unfinished file.
    schema
        Columns, the geometry (WKB) last.
    crs
        Of the polygons as they are written.
    geometry_type
        "Polygon" or "MultiPolygon", which every polygon is; or "Unknown".
    layers
        Their names.
    about
        Where the polygons come from.
    style
        Returns a layer's style, after all polygons are written.
    """

    path: Path
    schema: Schema
    crs: pyproj.CRS | None
    geometry_type: str
    layers: tuple[str, ...]
    about: Mapping[str, str]
    style: Callable[[str], str]


@dataclass(frozen=True)
class Found:
    """What a layer of a written file is when it is opened again."""

    polygons: int
    columns: tuple[str, ...]
    crs: Any


def parts(table: Table, size: int) -> Iterator[Table]:
    """Cut a table into parts of some `size` bytes of geometries, of one row at least; an empty one has none."""
    import pyarrow.compute as pc

    if not table.num_rows:
        return
    lengths = pc.binary_length(table["geometry"]).to_numpy().astype(np.int64)
    part = np.cumsum(lengths) // size
    starts = np.flatnonzero(np.diff(part, prepend=-1))
    for start, end in zip(starts, (*starts[1:], len(part)), strict=True):
        yield table.slice(start, end - start)


def geometries(table: Table) -> NDArray[np.object_]:
    """Return polygons as WKB, (rows,)."""
    return table["geometry"].to_numpy()  # type: ignore[no-any-return]
