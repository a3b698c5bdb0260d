"""Write shapefiles, GeoPackages and FlatGeobufs with GDAL."""

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

from segkit.errors import UsageError, suggest
from segkit.io.geopackage import add_styles
from segkit.runtime.garbage_collection import pause_collection
from segkit.vector.formats.base import FileSpec, Sink, WrittenLayer

if TYPE_CHECKING:
    import pyproj
    from pyarrow import Schema, Table

# Limits that all shapefile readers support: bytes of a file, bytes of a text, integers that a float64 holds exactly.
_SHAPEFILE_MAX_BYTES = 2**31
_SHAPEFILE_MAX_TEXT_BYTES = 254
_SHAPEFILE_MAX_INTEGER = 2**53
# By default GDAL builds the index in memory while polygons are written, which takes 100 MB, and above that a third more
# time.
_SMALL_INDEX_CONFIG = {"OGR_GPKG_ALLOW_THREADED_RTREE": "NO", "OGR_GPKG_MAX_RAM_USAGE_RTREE": str(2**25)}
_USE_GEOPACKAGE = "write a GeoPackage (.gpkg) instead"


class _Stream:
    """Lets GDAL write a layer in another thread, which takes batches from a queue.

    So one call writes the whole layer. Formats that sort an index at the end or cannot append need this.
    """

    def __init__(self, schema: Schema, write: Callable[[Any], None]) -> None:
        self._queue: Queue[Table | None] = Queue(maxsize=1)
        self._ended = self._aborted = False
        self._error: Exception | None = None
        self._thread = Thread(target=self._run, args=(schema, write))
        self._thread.start()

    def put(self, table: Table) -> None:
        """Hand over polygons; raise the error of earlier ones, if any."""
        if self._error is not None:
            raise self._error
        self._queue.put(table)

    def end(self, *, aborted: bool = False) -> None:
        """Wait until all polygons are written."""
        self._aborted = aborted
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and not aborted:
            raise self._error

    def _run(self, schema: Schema, write: Callable[[Any], None]) -> None:
        import pyarrow as pa

        try:
            write(pa.RecordBatchReader.from_batches(schema, self._batches()))
        except Exception as error:  # noqa: BLE001, raised again by `put` and `end`
            self._error = error
        while not self._ended:  # empty the queue, so that `put` does not block
            self._next()

    def _batches(self) -> Iterator[Any]:
        while (table := self._next()) is not None:
            yield from table.to_batches()
        if self._aborted:
            raise RuntimeError("writing was aborted")

    def _next(self) -> Table | None:
        table = self._queue.get()
        self._ended = table is None
        return table


class _LayerWriter:
    """Writes the layers of a file with GDAL, one after the other."""

    def __init__(self, spec: FileSpec, options: Mapping[str, str]) -> None:
        self._spec = spec
        self._options = options
        self._begun: list[str] = []
        self._stream: _Stream | None = None

    def write(self, table: Table, layer: str) -> None:
        if self._stream is None or layer != self._begun[-1]:
            self._switch_to(layer)
        assert self._stream is not None
        self._stream.put(table)

    def finish(self) -> None:
        self._switch_to(None)

    def close(self, *, aborted: bool = False) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.end(aborted=aborted)

    def _switch_to(self, layer: str | None) -> None:
        """Begin or continue a layer. Earlier layers without polygons are created empty; None creates all of them."""
        if layer not in self._begun:
            for name in takewhile(lambda name: name != layer, self._spec.layers):
                if name not in self._begun:
                    self._begin(name)
        if layer is not None:
            self._begin(layer)
        else:
            self.close()

    def _begin(self, layer: str) -> None:
        import pyogrio

        self.close()
        write = partial(
            pyogrio.write_arrow,
            path=self._spec.path,
            layer=layer,
            geometry_name="geometry",
            geometry_type=self._spec.geometry_type,
            crs=_gdal_crs(self._spec.crs),
            append=layer in self._begun,
            layer_metadata=dict(self._spec.metadata),
            **self._options,
        )
        self._stream = _Stream(self._spec.schema, write)
        self._begun.append(layer)


@contextmanager
def _gdal_sink(spec: FileSpec, **options: str) -> Iterator[Sink]:
    layers = _LayerWriter(spec, options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")  # the user was warned of empty areas
        try:
            yield layers.write
            layers.finish()
        except BaseException:
            layers.close(aborted=True)
            raise


def _gdal_crs(crs: pyproj.CRS | None) -> str | None:
    """Return a CRS as GDAL reads it best: its EPSG code if it has one, otherwise WKT."""
    if crs is None:
        return None
    code = crs.to_epsg(min_confidence=100)
    return f"EPSG:{code}" if code else str(crs.to_wkt())


@contextmanager
def flatgeobuf_sink(spec: FileSpec) -> Iterator[Sink]:
    """Write a FlatGeobuf; its index determines the order of the polygons."""
    with _gdal_sink(spec, driver="FlatGeobuf") as write:
        yield write


@contextmanager
def geopackage_sink(spec: FileSpec) -> Iterator[Sink]:
    """Write layers with a spatial index and their QGIS styles."""
    with pause_collection():
        import pyarrow as pa
        import pyogrio

    twins = [name for name in spec.layers if sum(name.lower() == other.lower() for other in spec.layers) > 1]
    if twins:
        raise UsageError(
            f"{spec.path.name}: a GeoPackage cannot hold {' and '.join(twins)} as layers, whose names differ in "
            "upper and lower case only"
            + suggest("write a GeoParquet (.parquet) instead", "rename a class (--class-names)")
        )
    with _gdal_config(_SMALL_INDEX_CONFIG), _gdal_sink(spec, driver="GPKG") as write:
        yield write
    # The style table, as QGIS creates it.
    always = {"f_table_catalog": "", "f_table_schema": "", "f_geometry_column": "geom", "styleName": "classes"}
    always |= {"styleSLD": "", "description": "written by segkit", "owner": "", "ui": ""}
    now = datetime.now(UTC)
    rows = [
        always | {"f_table_name": layer, "styleQML": spec.style(layer), "useAsDefault": True, "update_time": now}
        for layer in spec.layers
    ]
    if not add_styles(spec.path, rows):
        pyogrio.write_arrow(pa.Table.from_pylist(rows), spec.path, layer="layer_styles", driver="GPKG", FID="id")


@contextmanager
def _gdal_config(settings: Mapping[str, str]) -> Iterator[None]:
    """Set options of pyogrio's GDAL while the block runs."""
    import pyogrio

    before = {name: pyogrio.get_gdal_config_option(name) for name in settings}
    pyogrio.set_gdal_config_options(dict(settings))
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options(before)


@contextmanager
def shapefile_sink(spec: FileSpec) -> Iterator[Sink]:
    """Write a shapefile; raise a UsageError if it would truncate anything."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyproj.exceptions import CRSError

    name, numbers = spec.path.name, len(spec.schema) - 2
    try:
        if spec.crs is not None:
            spec.crs.to_wkt("WKT1_ESRI")
    except CRSError:
        advice = suggest(_USE_GEOPACKAGE, "use --to-crs")
        raise UsageError(f"{name}: a shapefile cannot hold this CRS{advice}") from None
    rows, longest, shapes = 0, 80, 100  # minimum width of a text field, size of the file header

    def check_and_write(table: Table, layer: str) -> None:
        nonlocal rows, longest, shapes
        for field, column in zip(spec.schema, table.columns, strict=True):
            if pa.types.is_string(field.type) and table.num_rows:
                longest = max(longest, pc.max(pc.binary_length(column)).as_py())
            if pa.types.is_integer(field.type) and pc.any(pc.greater(pc.abs(column), _SHAPEFILE_MAX_INTEGER)).as_py():
                raise UsageError(
                    f"{name}: {field.name} exceeds 2^53, and a shapefile would round it; {_USE_GEOPACKAGE}"
                )
        if longest > _SHAPEFILE_MAX_TEXT_BYTES:
            raise UsageError(
                f"{name}: a class name takes {longest} bytes, a shapefile holds {_SHAPEFILE_MAX_TEXT_BYTES}; "
                + _USE_GEOPACKAGE
            )
        rows += table.num_rows
        # A record is at most 43 bytes longer than WKB.
        shapes += pc.sum(pc.binary_length(table["geometry"])).as_py() + 43 * table.num_rows
        size = max(shapes, rows * (24 * numbers + longest))
        if size >= _SHAPEFILE_MAX_BYTES:
            raise UsageError(
                f"{name}: the first {rows:,} polygons take {size / 2**30:.1f} GB, a shapefile holds 2 GB; "
                + _USE_GEOPACKAGE
            )
        write(table, layer)

    with _gdal_sink(spec, driver="ESRI Shapefile", encoding="UTF-8") as write:
        yield check_and_write


def inspect_ogr(path: Path, layer: str) -> WrittenLayer:
    """Read back a layer with GDAL."""
    import pyogrio

    info = pyogrio.read_info(path, layer=layer, force_feature_count=True)
    return WrittenLayer(int(info["features"]), tuple(info["fields"]), info["crs"])


def inspect_shapefile(path: Path, layer: str) -> WrittenLayer:
    """Read back a shapefile and compare the lengths of its files with their headers."""
    found = inspect_ogr(path, layer)
    # GDAL reports no error if the disk is full when it writes the last bytes; the headers have the expected lengths.
    for ending in (".shp", ".shx"):
        with path.with_suffix(ending).open("rb") as file:
            words = int.from_bytes(file.read(28)[24:], "big")
            size = file.seek(0, os.SEEK_END)
        if size != 2 * words or (ending == ".shx" and size != 100 + 8 * found.polygons):
            raise OSError(f"{path.with_suffix(ending).name} is truncated")
    with path.with_suffix(".dbf").open("rb") as file:
        head = file.read(12)
        rows, start, row = (int.from_bytes(head[i:j], "little") for i, j in ((4, 8), (8, 10), (10, 12)))
        if rows != found.polygons or file.seek(0, os.SEEK_END) < start + rows * row:
            raise OSError(f"{path.with_suffix('.dbf').name} is truncated")
    return found


def inspect_geopackage(path: Path, layer: str) -> WrittenLayer:
    """Read back a layer; count its rows and those of its index."""
    found = inspect_ogr(path, layer)
    # GDAL reports no error if the index could not be written, and its feature count is only stored metadata.
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        for table in (layer, f"rtree_{layer}_geom_rowid"):
            quoted = table.replace('"', '""')
            (count,) = database.execute(f'SELECT count(*) FROM "{quoted}"').fetchone()  # noqa: S608, quoted
            if count != found.polygons:
                raise OSError(f"{table} has {count} rows, its layer {found.polygons} polygons")
    return found


def inspect_flatgeobuf(path: Path, layer: str) -> WrittenLayer:
    """Read back a FlatGeobuf and its last polygon."""
    import pyogrio

    found = inspect_ogr(path, layer)
    if found.polygons:
        # The header has the count, so only the last polygon shows whether the file is complete.
        pyogrio.raw.read(path, layer=layer, fids=[found.polygons - 1])
    return found
