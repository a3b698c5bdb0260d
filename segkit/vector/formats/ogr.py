"""Polygons -> shapefile, GeoPackage and FlatGeobuf, by GDAL."""

from __future__ import annotations

import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import takewhile
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import TYPE_CHECKING, Any

from segkit.errors import UsageError, ways
from segkit.io.geopackage import add_styles
from segkit.vector.formats.base import Found, Plan, Sink

if TYPE_CHECKING:
    import pyproj
    from pyarrow import Schema, Table

# What shapefile readers agree on: bytes of a file, bytes of a text, whole numbers that a float64 holds.
_SHAPEFILE_BYTES = 2**31
_SHAPEFILE_TEXT_BYTES = 254
_SHAPEFILE_INTEGER = 2**53
# GDAL makes an index in memory, beside the polygons that come in: 100 MB, beyond which it takes a third more time.
_SPARING = {"OGR_GPKG_ALLOW_THREADED_RTREE": "NO", "OGR_GPKG_MAX_RAM_USAGE_RTREE": str(2**25)}
_WAY_OUT = "write a GeoPackage (.gpkg) instead"


class _Stream:
    """A layer that GDAL writes in a thread, pulling batches as they come in.

    One call writes it whole, which is what formats need that sort an index at the end, or that cannot append.
    """

    def __init__(self, schema: Schema, write: Callable[[Any], None]) -> None:
        self._queue: Queue[Table | None] = Queue(maxsize=1)
        self._ended = self._aborted = False
        self._error: Exception | None = None
        self._thread = Thread(target=self._run, args=(schema, write))
        self._thread.start()

    def put(self, table: Table) -> None:
        """Hand over polygons; raise what went wrong with earlier ones."""
        if self._error is not None:
            raise self._error
        self._queue.put(table)

    def end(self, *, aborted: bool = False) -> None:
        """Wait until everything is written."""
        self._aborted = aborted
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and not aborted:
            raise self._error

    def _run(self, schema: Schema, write: Callable[[Any], None]) -> None:
        import pyarrow as pa

        try:
            write(pa.RecordBatchReader.from_batches(schema, self._batches()))
        except Exception as error:  # noqa: BLE001, raised again in the thread that hands over
            self._error = error
        while not self._ended:  # whoever waits to hand over is let go
            self._next()

    def _batches(self) -> Iterator[Any]:
        while (table := self._next()) is not None:
            yield from table.to_batches()
        if self._aborted:
            raise RuntimeError("the rest will not come")

    def _next(self) -> Table | None:
        table = self._queue.get()
        self._ended = table is None
        return table


class _Layers:
    """The layers of a file that GDAL writes, one after the other."""

    def __init__(self, plan: Plan, options: Mapping[str, str]) -> None:
        self._plan = plan
        self._options = options
        self._begun: list[str] = []
        self._stream: _Stream | None = None

    def write(self, table: Table, layer: str) -> None:
        if self._stream is None or layer != self._begun[-1]:
            self._turn_to(layer)
        assert self._stream is not None
        self._stream.put(table)

    def finish(self) -> None:
        self._turn_to(None)

    def leave(self, *, aborted: bool = False) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.end(aborted=aborted)

    def _turn_to(self, layer: str | None) -> None:
        """Begin a layer, or go on with it; those before it in the plan that got nothing are made empty."""
        if layer not in self._begun:
            for name in takewhile(lambda name: name != layer, self._plan.layers):
                if name not in self._begun:
                    self._begin(name)
        if layer is not None:
            self._begin(layer)
        else:
            self.leave()

    def _begin(self, layer: str) -> None:
        import pyogrio

        self.leave()
        write = partial(
            pyogrio.write_arrow,
            path=self._plan.path,
            layer=layer,
            geometry_name="geometry",
            geometry_type=self._plan.geometry_type,
            crs=_gdal_crs(self._plan.crs),
            append=layer in self._begun,
            layer_metadata=dict(self._plan.about),
            **self._options,
        )
        self._stream = _Stream(self._plan.schema, write)
        self._begun.append(layer)


@contextmanager
def _driven(plan: Plan, **options: str) -> Iterator[Sink]:
    layers = _Layers(plan, options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")  # the missing areas say so already
        try:
            yield layers.write
            layers.finish()
        except BaseException:
            layers.leave(aborted=True)
            raise


def _gdal_crs(crs: pyproj.CRS | None) -> str | None:
    """Name a CRS as GDAL reads it best: by its code, where it has one."""
    if crs is None:
        return None
    code = crs.to_epsg(min_confidence=100)
    return f"EPSG:{code}" if code else str(crs.to_wkt())


@contextmanager
def flatgeobuf(plan: Plan) -> Iterator[Sink]:
    """Write a FlatGeobuf, whose index puts the polygons in order."""
    with _driven(plan, driver="FlatGeobuf") as write:
        yield write


@contextmanager
def geopackage(plan: Plan) -> Iterator[Sink]:
    """Write layers with an index, and the styles that QGIS shows them in."""
    import pyarrow as pa
    import pyogrio

    twins = [name for name in plan.layers if sum(name.lower() == other.lower() for other in plan.layers) > 1]
    if twins:
        raise UsageError(
            f"{plan.path.name}: a GeoPackage cannot hold {' and '.join(twins)} as layers, whose names differ in "
            "upper and lower case only" + ways("write a GeoParquet (.parquet) instead", "rename a class (--names)")
        )
    with _configured(_SPARING), _driven(plan, driver="GPKG") as write:
        yield write
    # The table in which QGIS keeps styles, as QGIS makes it.
    always = {"f_table_catalog": "", "f_table_schema": "", "f_geometry_column": "geom", "styleName": "classes"}
    always |= {"styleSLD": "", "description": "written by segkit", "owner": "", "ui": ""}
    now = datetime.now(UTC)
    rows = [
        always | {"f_table_name": layer, "styleQML": plan.style(layer), "useAsDefault": True, "update_time": now}
        for layer in plan.layers
    ]
    if not add_styles(plan.path, rows):
        pyogrio.write_arrow(pa.Table.from_pylist(rows), plan.path, layer="layer_styles", driver="GPKG", FID="id")


@contextmanager
def _configured(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set options of the GDAL that pyogrio has, for a while."""
    import pyogrio

    before = {name: pyogrio.get_gdal_config_option(name) for name in wanted}
    pyogrio.set_gdal_config_options(dict(wanted))
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options(before)


@contextmanager
def shapefile(plan: Plan) -> Iterator[Sink]:
    """Write a shapefile, unless it would cut something."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyproj.exceptions import CRSError

    name, numbers = plan.path.name, len(plan.schema) - 2
    try:
        if plan.crs is not None:
            plan.crs.to_wkt("WKT1_ESRI")
    except CRSError:
        advice = ways(_WAY_OUT, "use --to-crs")
        raise UsageError(f"{name}: a shapefile has no way to say this CRS{advice}") from None
    rows, longest, shapes = 0, 80, 100  # a text field's least width, a file's header

    def checked(table: Table, layer: str) -> None:
        nonlocal rows, longest, shapes
        for field, column in zip(plan.schema, table.columns, strict=True):
            if pa.types.is_string(field.type) and table.num_rows:
                longest = max(longest, pc.max(pc.binary_length(column)).as_py())
            if pa.types.is_integer(field.type) and pc.any(pc.greater(pc.abs(column), _SHAPEFILE_INTEGER)).as_py():
                raise UsageError(f"{name}: {field.name} goes beyond 2^53, which a shapefile would round; {_WAY_OUT}")
        if longest > _SHAPEFILE_TEXT_BYTES:
            raise UsageError(
                f"{name}: a class name takes {longest} bytes, a shapefile holds {_SHAPEFILE_TEXT_BYTES}; {_WAY_OUT}"
            )
        rows += table.num_rows
        # A record has what WKB has, and 43 bytes more.
        shapes += pc.sum(pc.binary_length(table["geometry"])).as_py() + 43 * table.num_rows
        size = max(shapes, rows * (24 * numbers + longest))
        if size >= _SHAPEFILE_BYTES:
            raise UsageError(
                f"{name}: the first {rows:,} polygons take {size / 2**30:.1f} GB, a shapefile holds 2 GB; {_WAY_OUT}"
            )
        write(table, layer)

    with _driven(plan, driver="ESRI Shapefile", encoding="UTF-8") as write:
        yield checked


def look_ogr(path: Path, layer: str) -> Found:
    """Open a layer again, as GDAL sees it."""
    import pyogrio

    info = pyogrio.read_info(path, layer=layer, force_feature_count=True)
    return Found(int(info["features"]), tuple(info["fields"]), info["crs"])


def look_shapefile(path: Path, layer: str) -> Found:
    """Open a shapefile again and compare its files' lengths with their headers."""
    found = look_ogr(path, layer)
    # GDAL is silent about a disk that is full when it writes the last bytes; headers tell how long the files should be.
    for ending in (".shp", ".shx"):
        with path.with_suffix(ending).open("rb") as file:
            words = int.from_bytes(file.read(28)[24:], "big")
            size = file.seek(0, os.SEEK_END)
        if size != 2 * words or (ending == ".shx" and size != 100 + 8 * found.polygons):
            raise OSError(f"{path.with_suffix(ending).name} is cut short")
    with path.with_suffix(".dbf").open("rb") as file:
        head = file.read(12)
        rows, start, row = (int.from_bytes(head[i:j], "little") for i, j in ((4, 8), (8, 10), (10, 12)))
        if rows != found.polygons or file.seek(0, os.SEEK_END) < start + rows * row:
            raise OSError(f"{path.with_suffix('.dbf').name} is cut short")
    return found


def look_geopackage(path: Path, layer: str) -> Found:
    """Open a layer again and count its rows and those of its index."""
    found = look_ogr(path, layer)
    # GDAL is silent about an index that could not be written, and its count is a note.
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        for table in (layer, f"rtree_{layer}_geom_rowid"):
            quoted = table.replace('"', '""')
            (count,) = database.execute(f'SELECT count(*) FROM "{quoted}"').fetchone()  # noqa: S608, quoted
            if count != found.polygons:
                raise OSError(f"{table} has {count} rows, its layer {found.polygons} polygons")
    return found


def look_flatgeobuf(path: Path, layer: str) -> Found:
    """Open a FlatGeobuf again and read its last polygon."""
    import pyogrio

    found = look_ogr(path, layer)
    if found.polygons:
        # The count stands before the polygons, so the last one shows whether all are there.
        pyogrio.raw.read(path, layer=layer, fids=[found.polygons - 1])
    return found
