"""What a format has to write (`FileSpec`), and what is read back (`WrittenLayer`)."""

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
class FileSpec:
    """What a format has to write.

    Parameters
    ----------
    path
        The unfinished file.
    schema
        Columns; the geometry (WKB) is the last one.
    crs
        CRS of the written polygons.
    geometry_type
        "Polygon" or "MultiPolygon" if all geometries have this type, otherwise "Unknown".
    layers
        Names of the layers.
    metadata
        Provenance of the polygons.
    style
        Returns the QGIS style of a layer; called after all polygons are written.
    """

    path: Path
    schema: Schema
    crs: pyproj.CRS | None
    geometry_type: str
    layers: tuple[str, ...]
    metadata: Mapping[str, str]
    style: Callable[[str], str]


@dataclass(frozen=True)
class WrittenLayer:
    """Content of a layer of a written file, read back."""

    polygons: int
    columns: tuple[str, ...]
    crs: Any


def split_table(table: Table, size: int) -> Iterator[Table]:
    """Yield parts of a table with about `size` bytes of geometries each and at least one row."""
    import pyarrow.compute as pc

    if not table.num_rows:
        return
    lengths = pc.binary_length(table["geometry"]).to_numpy().astype(np.int64)
    part = np.cumsum(lengths) // size
    starts = np.flatnonzero(np.diff(part, prepend=-1))
    for start, end in zip(starts, (*starts[1:], len(part)), strict=True):
        yield table.slice(start, end - start)


def wkb_array(table: Table) -> NDArray[np.object_]:
    """Return a table's geometries as WKB, (rows,)."""
    return table["geometry"].to_numpy()  # type: ignore[no-any-return]
