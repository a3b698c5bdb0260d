"""Write GeoParquet 1.1, sorted along a Hilbert curve."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segkit.vector.formats.base import FileSpec, Sink, WrittenLayer, split_table, wkb_array

if TYPE_CHECKING:
    import pyproj
    from pyarrow import Table

# Bytes of polygons that are sorted in memory as one run; that are read at a time from each run when runs are merged;
# that are written as a row group.
_RUN_BYTES = 2**26
_BLOCK_BYTES = 2**20
_GROUP_BYTES = 2**26
_GROUP_ROWS = 65_536
_HILBERT_ORDER = 31
# Polygons with the same centre are sorted by size, so that the order does not depend on the batches.
_SORT_KEYS = [("place", "ascending"), ("pixels", "ascending")]
_SIDES = ("xmin", "ymin", "xmax", "ymax")


@contextmanager
def geoparquet_sink(spec: FileSpec) -> Iterator[Sink]:
    """Write polygons with their bounding boxes, in the order of a Hilbert curve.

    This is an external merge sort: runs that fit into memory are sorted, stored on disk beside the file, and merged.
    """
    import pyarrow as pa
    import shapely
    from pyarrow import ipc, parquet

    bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
    held: list[Table] = []
    runs: list[Iterator[Table]] = []

    def spill_run() -> None:
        """Sort the polygons in memory and store them on disk."""
        run = Path(folder) / f"{len(runs)}.arrow"
        with ipc.new_file(run, held[0].schema) as file:
            for block in _sort_tables(held):
                file.write_table(block)
        runs.append(_read_blocks(run))
        held.clear()

    def write(table: Table, layer: str) -> None:
        box = shapely.bounds(shapely.from_wkb(wkb_array(table)))
        bounds[:2], bounds[2:] = (
            np.fmin(bounds[:2], box[:, :2].min(axis=0)),
            np.fmax(bounds[2:], box[:, 2:].max(axis=0)),
        )
        sides = pa.StructArray.from_arrays([pa.array(side) for side in box.T], _SIDES)
        held.append(
            table.append_column("bbox", sides).append_column("place", pa.array(_hilbert_positions(box, spec.crs)))
        )
        if sum(part.nbytes for part in held) > _RUN_BYTES:
            spill_run()

    with tempfile.TemporaryDirectory(dir=spec.path.parent) as folder:
        yield write
        if held:
            runs.append(_sort_tables(held))
        metadata = dict(spec.metadata) | {"geo": json.dumps(_geo_metadata(spec, bounds))}
        schema = spec.schema.append(pa.field("bbox", pa.struct(dict.fromkeys(_SIDES, pa.float64()))))
        with (
            pa.OSFile(str(spec.path), "wb") as opened,  # closed also if a full disk ends it
            parquet.ParquetWriter(opened, schema.with_metadata(metadata), compression="zstd") as file,
        ):
            for group in _group_rows(_merge_runs(runs)):
                file.write_table(group.select(schema.names), row_group_size=group.num_rows)


def _hilbert_positions(box: NDArray[np.float64], crs: pyproj.CRS | None) -> NDArray[np.int64]:
    """Return the positions of the centres of boxes on a Hilbert curve."""
    # The curve fills the same square for every map, because the extent of the polygons is not known in advance.
    half_side = 2**9 if crs is not None and crs.is_geographic else 2**26
    cells = ((box[:, :2] + box[:, 2:]) / 2 + half_side) * (2**_HILBERT_ORDER / (2 * half_side))
    x, y = np.clip(cells, 0, 2**_HILBERT_ORDER - 1).astype(np.int64).T
    return hilbert(x, y)


def hilbert(x: NDArray[np.int64], y: NDArray[np.int64], order: int = _HILBERT_ORDER) -> NDArray[np.int64]:
    """Return the positions of cells along a Hilbert curve through 2^order x 2^order cells.

    Neighbours on the curve are neighbours in the plane (Warren 2012, "Hacker's Delight", section 16-2). geopandas'
    `GeoSeries.hilbert_distance` has 16 levels at most: in the square used here its cells would be 2 km wide, too coarse
    to sort the polygons of a small map.
    """
    position = np.zeros_like(x)
    for bit in reversed(range(order)):
        right, up = x >> bit & 1, y >> bit & 1
        position = position << 2 | 3 * right ^ up
        mirrored = np.where(right & ~up & 1, 2**order - 1, 0)
        x, y = x ^ mirrored, y ^ mirrored
        x, y = np.where(up, x, y), np.where(up, y, x)
    return position


def _sort_tables(held: Sequence[Table]) -> Iterator[Table]:
    """Yield the rows of tables in the order of the curve, in blocks."""
    import pyarrow as pa

    return split_table(pa.concat_tables(held).sort_by(_SORT_KEYS), _BLOCK_BYTES)


def _read_blocks(run: Path) -> Iterator[Table]:
    import pyarrow as pa
    from pyarrow import ipc

    with pa.OSFile(str(run)) as source, ipc.open_file(source) as file:
        for number in range(file.num_record_batches):
            yield pa.Table.from_batches([file.get_batch(number)])


def _merge_runs(runs: Sequence[Iterator[Table]]) -> Iterator[Table]:
    """Merge sorted runs; memory holds one block of each."""
    import pyarrow as pa

    heads = [(block, run) for run in runs if (block := next(run, None)) is not None]
    while heads:
        # All rows up to the smallest last position are in memory.
        end = min(block["place"][-1].as_py() for block, _ in heads)
        ready, remaining = [], []
        for block, run in heads:
            count = int(np.searchsorted(block["place"].to_numpy(), end, side="right"))
            ready.append(block.slice(0, count))
            rest = block.slice(count) if count < block.num_rows else next(run, None)
            if rest is not None:
                remaining.append((rest, run))
        heads = remaining
        yield pa.concat_tables(ready).sort_by(_SORT_KEYS)


def _geo_metadata(spec: FileSpec, bounds: NDArray[np.float64]) -> dict[str, Any]:
    """Return the metadata of the geometry column (GeoParquet 1.1)."""
    column = {
        "encoding": "WKB",
        "geometry_types": [spec.geometry_type],
        "crs": None if spec.crs is None else spec.crs.to_json_dict(),
        "orientation": "counterclockwise",
        "covering": {"bbox": {side: ["bbox", side] for side in _SIDES}},
    }
    if np.isfinite(bounds).all():
        column["bbox"] = bounds.tolist()
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _group_rows(rows: Iterable[Table]) -> Iterator[Table]:
    """Concatenate tables into row groups."""
    import pyarrow as pa

    group: list[Table] = []
    for table in rows:
        group.append(table)
        if sum(one.num_rows for one in group) >= _GROUP_ROWS or sum(one.nbytes for one in group) >= _GROUP_BYTES:
            yield pa.concat_tables(group)
            group = []
    if group:
        yield pa.concat_tables(group)


def inspect_geoparquet(path: Path, layer: str) -> WrittenLayer:
    """Read back a GeoParquet."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        column = json.loads(file.schema_arrow.metadata[b"geo"])["columns"]["geometry"]
        names = [name for name in file.schema_arrow.names if name not in ("geometry", "bbox")]
        return WrittenLayer(file.metadata.num_rows, tuple(names), column["crs"])
