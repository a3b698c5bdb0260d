"""Polygons -> GeoParquet 1.1, sorted along a Hilbert curve."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segkit.vector.formats.base import Found, Plan, Sink, geometries, parts

if TYPE_CHECKING:
    import pyproj
    from pyarrow import Table

# Bytes of polygons that are held until they are sorted and put aside; read of each such run when runs are merged;
# written as a row group.
_RUN_BYTES = 2**26
_BLOCK_BYTES = 2**20
_GROUP_BYTES = 2**26
_GROUP_ROWS = 65_536
_HILBERT_ORDER = 31
# Polygons about one centre differ in size, so that the order does not depend on the batches.
_ORDER = [("place", "ascending"), ("pixels", "ascending")]
_SIDES = ("xmin", "ymin", "xmax", "ymax")


@contextmanager
def geoparquet(plan: Plan) -> Iterator[Sink]:
    """Write a table with a box of each polygon, in the order of a Hilbert curve.

    Polygons are sorted in runs that fit in memory and wait on the disk, beside the file, until they are merged.
    """
    import pyarrow as pa
    import shapely
    from pyarrow import ipc, parquet

    bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
    held: list[Table] = []
    runs: list[Iterator[Table]] = []

    def put_aside() -> None:
        """Make a sorted run of what is held, on the disk."""
        run = Path(aside) / f"{len(runs)}.arrow"
        with ipc.new_file(run, held[0].schema) as file:
            for block in _sorted(held):
                file.write_table(block)
        runs.append(_blocks(run))
        held.clear()

    def write(table: Table, layer: str) -> None:
        box = shapely.bounds(shapely.from_wkb(geometries(table)))
        bounds[:2], bounds[2:] = (
            np.fmin(bounds[:2], box[:, :2].min(axis=0)),
            np.fmax(bounds[2:], box[:, 2:].max(axis=0)),
        )
        sides = pa.StructArray.from_arrays([pa.array(side) for side in box.T], _SIDES)
        held.append(table.append_column("bbox", sides).append_column("place", pa.array(_place(box, plan.crs))))
        if sum(part.nbytes for part in held) > _RUN_BYTES:
            put_aside()

    with tempfile.TemporaryDirectory(dir=plan.path.parent) as aside:
        yield write
        if held:
            runs.append(_sorted(held))
        about = dict(plan.about) | {"geo": json.dumps(_geo(plan, bounds))}
        schema = plan.schema.append(pa.field("bbox", pa.struct(dict.fromkeys(_SIDES, pa.float64()))))
        with parquet.ParquetWriter(plan.path, schema.with_metadata(about), compression="zstd") as file:
            for group in _gathered(_merged(runs)):
                file.write_table(group.select(schema.names), row_group_size=group.num_rows)


def _place(box: NDArray[np.float64], crs: pyproj.CRS | None) -> NDArray[np.int64]:
    """Return where the centres of boxes lie on a Hilbert curve."""
    # Its square is the same for every map, so that the order does not depend on what else is there.
    reach = 2**9 if crs is not None and crs.is_geographic else 2**26
    cells = ((box[:, :2] + box[:, 2:]) / 2 + reach) * (2**_HILBERT_ORDER / (2 * reach))
    x, y = np.clip(cells, 0, 2**_HILBERT_ORDER - 1).astype(np.int64).T
    return hilbert(x, y)


def hilbert(x: NDArray[np.int64], y: NDArray[np.int64], order: int = _HILBERT_ORDER) -> NDArray[np.int64]:
    """Return the places of cells along a Hilbert curve through 2^order x 2^order of them.

    Neighbours on the curve are neighbours in the plane (Warren 2012, "Hacker's Delight", section 16-2).
    """
    place = np.zeros_like(x)
    for bit in reversed(range(order)):
        right, up = x >> bit & 1, y >> bit & 1
        place = place << 2 | 3 * right ^ up
        mirrored = np.where(right & ~up & 1, 2**order - 1, 0)
        x, y = x ^ mirrored, y ^ mirrored
        x, y = np.where(up, x, y), np.where(up, y, x)
    return place


def _sorted(held: Sequence[Table]) -> Iterator[Table]:
    """Yield the rows of tables in the order of their places, in blocks."""
    import pyarrow as pa

    return parts(pa.concat_tables(held).sort_by(_ORDER), _BLOCK_BYTES)


def _blocks(run: Path) -> Iterator[Table]:
    import pyarrow as pa
    from pyarrow import ipc

    with pa.OSFile(str(run)) as source, ipc.open_file(source) as file:
        for number in range(file.num_record_batches):
            yield pa.Table.from_batches([file.get_batch(number)])


def _merged(runs: Sequence[Iterator[Table]]) -> Iterator[Table]:
    """Merge sorted runs, holding a block of each."""
    import pyarrow as pa

    heads = [(block, run) for run in runs if (block := next(run, None)) is not None]
    while heads:
        # Whatever comes up to the first block's end is here.
        end = min(block["place"][-1].as_py() for block, _ in heads)
        ready, heads_ = [], []
        for block, run in heads:
            count = int(np.searchsorted(block["place"].to_numpy(), end, side="right"))
            ready.append(block.slice(0, count))
            rest = block.slice(count) if count < block.num_rows else next(run, None)
            if rest is not None:
                heads_.append((rest, run))
        heads = heads_
        yield pa.concat_tables(ready).sort_by(_ORDER)


def _geo(plan: Plan, bounds: NDArray[np.float64]) -> dict[str, Any]:
    """Describe the geometry column (GeoParquet 1.1)."""
    column = {
        "encoding": "WKB",
        "geometry_types": [plan.geometry_type],
        "crs": None if plan.crs is None else plan.crs.to_json_dict(),
        "orientation": "counterclockwise",
        "covering": {"bbox": {side: ["bbox", side] for side in _SIDES}},
    }
    if np.isfinite(bounds).all():
        column["bbox"] = bounds.tolist()
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _gathered(rows: Iterable[Table]) -> Iterator[Table]:
    """Gather tables into row groups."""
    import pyarrow as pa

    group: list[Table] = []
    for table in rows:
        group.append(table)
        if sum(one.num_rows for one in group) >= _GROUP_ROWS or sum(one.nbytes for one in group) >= _GROUP_BYTES:
            yield pa.concat_tables(group)
            group = []
    if group:
        yield pa.concat_tables(group)


def look_geoparquet(path: Path, layer: str) -> Found:
    """Open a GeoParquet again."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        column = json.loads(file.schema_arrow.metadata[b"geo"])["columns"]["geometry"]
        names = [name for name in file.schema_arrow.names if name not in ("geometry", "bbox")]
        return Found(file.metadata.num_rows, tuple(names), column["crs"])
