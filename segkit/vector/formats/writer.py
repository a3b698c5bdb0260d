"""Write polygons to files in batches. A format is one row of `FORMATS`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segkit.errors import OutputError, OutputExistsError, UsageError, suggest
from segkit.io.class_table import Legend, MapClass
from segkit.io.files import as_output_error, atomic_write, check_output, not_as_written
from segkit.io.geopackage import check_vector_path, copy_without_layers, layer_name, verify_copy
from segkit.io.grid import Grid
from segkit.io.paths import PathLike
from segkit.io.qml import write_style
from segkit.runtime.version import VERSION
from segkit.vector.formats.base import FileSpec, Sink, WrittenLayer, split_table, wkb_array
from segkit.vector.formats.geojson import geojson_sink
from segkit.vector.formats.geoparquet import geoparquet_sink, inspect_geoparquet
from segkit.vector.formats.ogr import (
    flatgeobuf_sink,
    geopackage_sink,
    inspect_flatgeobuf,
    inspect_geopackage,
    inspect_ogr,
    inspect_shapefile,
    shapefile_sink,
)
from segkit.vector.formats.qgis_style import qml

if TYPE_CHECKING:
    import pyproj
    from geopandas import GeoDataFrame
    from pyarrow import Schema, Table

    from segkit.vector.reproject import Projection

# Bytes of geometries to convert at a time.
_PART_BYTES = 2**25


@dataclass(frozen=True)
class Format:
    """A vector format.

    Parameters
    ----------
    sink
        Context manager: takes a file spec and yields a function that writes polygons to a layer. The function raises a
        UsageError, before writing, if the format cannot hold the polygons. On exit the file is complete.
    inspect
        Reads back a written layer, given path and layer name.
    has_layers
        Whether a file can hold several layers.
    lonlat_only
        Whether the format holds only longitude and latitude (WGS 84), with seven decimals.
    siblings
        Extensions of the other files of the format.
    companions
        Extensions of files beside it that would be wrong for a new file, such as indexes; they are removed.
    """

    sink: Callable[[FileSpec], AbstractContextManager[Sink]]
    inspect: Callable[[Path, str], WrittenLayer]
    has_layers: bool = False
    lonlat_only: bool = False
    siblings: tuple[str, ...] = ()
    companions: tuple[str, ...] = ()


FORMATS = {
    ".shp": Format(
        shapefile_sink,
        inspect_shapefile,
        siblings=(".dbf", ".shx", ".prj", ".cpg"),
        companions=(".prj", ".qix", ".sbn", ".sbx", ".shp.xml"),
    ),
    ".gpkg": Format(geopackage_sink, inspect_geopackage, has_layers=True),
    ".parquet": Format(geoparquet_sink, inspect_geoparquet),
    ".fgb": Format(flatgeobuf_sink, inspect_flatgeobuf),
    ".geojson": Format(geojson_sink, inspect_ogr, lonlat_only=True),
}


def find_format(path: Path) -> Format:
    """Return the format of a path, by its extension.

    Raises
    ------
    UsageError
        The extension is unknown.
    """
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise UsageError(
            f"{path}: polygons cannot be written as {path.suffix or 'a file without extension'}; "
            f"use one of {', '.join(FORMATS)}"
        ) from None


def check_target(path: PathLike, *, overwrite: bool) -> tuple[Path, Format]:
    """Check that an output can be written; return its path and format.

    Raises
    ------
    UsageError, OutputExistsError
        The output cannot be written, has an unknown extension, or it or one of its files exists and `overwrite` is
        false.
    """
    target = check_output(path, overwrite=overwrite)
    format_ = find_format(target)
    check_vector_path(target)
    siblings = [ending.upper() if target.suffix.isupper() else ending for ending in format_.siblings]
    existing = [file.name for ending in siblings if (file := target.with_suffix(ending)).exists()]
    if existing and not overwrite:
        raise OutputExistsError(
            f"{target}: {', '.join(existing)} would be replaced, too"
            + suggest("add --overwrite to do that", "name another file")
        )
    return target, format_


@contextmanager
def open_writer(
    path: PathLike,
    grid: Grid,
    legend: Legend,
    *,
    layers: Sequence[str] = (),
    confidence: bool = False,
    attributes: Sequence[str] = (),
    multi: bool = False,
    to_crs: str | None = None,
    tags: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Iterator[Writer]:
    """Write a map's polygons in batches to a temporary file, verify it, and rename it.

    If the block raises, the output is unchanged. A QGIS style (.qml) is written beside the file, unless there is one
    that segkit did not write.

    Parameters
    ----------
    path
        Its extension selects the format (see `FORMATS`).
    grid
        The map's grid; the polygons are in its CRS.
    legend
        The map's legend, for the style.
    layers
        Class names, each of which becomes a layer, in this order, if the format has layers; a layer may be empty.
    confidence
        Whether batches have the column `mean_conf`.
    attributes
        Names in `segkit.vector.batch.ATTRIBUTES`, whose columns batches have.
    multi
        Whether batches hold multipolygons.
    to_crs
        Target CRS in any form that PROJ accepts, such as "EPSG:4326". Areas and perimeters stay as they are.
    tags
        The map's metadata (`dataset.tags()`), for the provenance of the polygons.
    overwrite
        Replace an existing file; in a GeoPackage, only the written layers.

    Yields
    ------
    Writer
        `write(batch, layer)` takes polygons, any number of times.

    Raises
    ------
    UsageError, OutputExistsError
        The output cannot be written, has an unknown extension, or exists and `overwrite` is false; or its format cannot
        hold the polygons.
    GridError
        A polygon has no coordinates in `to_crs`.
    OutputError
        The file could not be written, or reads back differently.
    """
    target, format_ = check_target(path, overwrite=overwrite)
    project, crs, splits = _projection(target, format_, grid, to_crs)
    used_classes = {one for one in legend.classes if not one.background}
    own_layer = layer_name(target) if format_.has_layers else target.stem

    def style(layer: str) -> str:
        ordered = [one for one in legend.classes if one in used_classes]
        ordered += sorted(used_classes.difference(ordered), key=lambda one: one.value)
        return qml((one for one in ordered if layer in (one.name, own_layer)), translucent=legend.multilabel)

    with atomic_write(target) as named, ExitStack() as stack:
        # For some formats GDAL needs an extension in lower case.
        part = named.with_suffix(named.suffix.lower())
        names = tuple(layers) if format_.has_layers and layers else (own_layer,)
        other_contents = copy_without_layers(target, part, names) if format_.has_layers else {}
        spec = FileSpec(
            part,
            _schema(confidence, attributes),
            crs,
            "Unknown" if format_.lonlat_only else "MultiPolygon" if multi or splits else "Polygon",
            names,
            _provenance(legend, tags or {}),
            style,
        )
        with _as_write_error(target):
            sink = stack.enter_context(format_.sink(spec))
        writer = Writer(spec, sink, legend, used_classes, project)
        yield writer
        with _as_write_error(target):
            stack.close()
            _verify(spec, format_, writer.counts, target.name)
            verify_copy(part, names, other_contents)
            write_style(style(own_layer), part.with_suffix(".qml"), target.with_suffix(".qml"))
        companions = format_.companions
        if part != named:
            companions += tuple(ending.upper() for ending in companions)
            _rename(part, named)
        stale = [ending for ending in companions if not named.with_suffix(ending).exists()]
    for ending in stale:
        target.with_suffix(ending).unlink(missing_ok=True)


def _rename(part: Path, named: Path) -> None:
    """Give a file, and its siblings, the letter case of the requested extension."""
    for file in list(part.parent.glob(f"{escape(part.stem)}.*")):
        if file != part and named.suffix.isupper() and file.suffix != ".qml":
            file.replace(file.with_suffix(file.suffix.upper()))
    part.replace(named)


class Writer:
    """Takes polygons in batches; made by `open_writer`.

    Attributes
    ----------
    projection
        Transforms the geometries of batches, which are in the map's CRS; None if they stay as they are.
    """

    def __init__(
        self,
        spec: FileSpec,
        sink: Sink,
        legend: Legend,
        used_classes: set[MapClass],
        projection: Projection | None,
    ) -> None:
        self.counts = dict.fromkeys(spec.layers, 0)
        self._spec = spec
        self._sink = sink
        self._legend = legend
        self._used_classes = used_classes
        self.projection = projection

    def write(self, batch: GeoDataFrame | Table, layer: str | None = None) -> None:
        """Write polygons.

        Parameters
        ----------
        batch
            Columns class_id (int32), class (str), area_ha, pixels (int64), perim_m, mean_conf (with `confidence`),
            those of `attributes` (centroids in the CRS of `projection`) and geometry, in any order. Outer rings are
            counter-clockwise, holes clockwise. A GeoDataFrame or, faster, a pyarrow Table whose `geometry` is WKB
            (binary) and whose nulls stand for NaN. Memory holds about two batches; some ten thousand polygons per batch
            are fast and small.
        layer
            One of `layers`, if given. Batches of one layer should follow each other.
        """
        import pyarrow.compute as pc

        if len(self._spec.layers) == 1:
            layer = self._spec.layers[0]
        if layer not in self.counts:
            raise ValueError(f"{layer!r} is not a layer of {self._spec.path.name}; it has {', '.join(self.counts)}")
        table = _as_table(batch, self._spec.schema)
        if not self._legend.multilabel:
            self._used_classes.update(
                self._legend.class_of(1, value) for value in pc.unique(table["class_id"]).to_pylist()
            )
        for part in split_table(table, _PART_BYTES):
            if self.projection is not None or self._spec.geometry_type == "MultiPolygon":
                part = self._project_table(part)
            with _as_write_error(self._spec.path):
                self._sink(part, layer)
            self.counts[layer] += part.num_rows

    def _project_table(self, table: Table) -> Table:
        import pyarrow as pa
        import shapely

        polygons = shapely.from_wkb(wkb_array(table))
        if self.projection is not None:
            polygons = self.projection(polygons)
        if self._spec.geometry_type == "MultiPolygon":
            single = shapely.get_type_id(polygons) == shapely.GeometryType.POLYGON
            polygons[single] = shapely.multipolygons(polygons[single][:, None])
        return table.set_column(table.num_columns - 1, "geometry", pa.array(shapely.to_wkb(polygons), pa.binary()))


def _schema(confidence: bool, attributes: Sequence[str]) -> Schema:
    import pyarrow as pa

    from segkit.vector.batch import attribute_names

    columns = {"class_id": pa.int32(), "class": pa.string(), "area_ha": pa.float64(), "pixels": pa.int64()}
    columns |= {"perim_m": pa.float64()} | ({"mean_conf": pa.float64()} if confidence else {})
    columns |= dict.fromkeys(attribute_names(attributes), pa.float64())
    return pa.schema(columns | {"geometry": pa.binary()})


def _as_table(batch: GeoDataFrame | Table, schema: Schema) -> Table:
    """Convert a batch to a schema; NaN becomes null."""
    import pyarrow as pa
    import shapely

    columns = []
    for field in schema:
        column = batch[field.name]
        if isinstance(batch, pa.Table):
            column = column.cast(field.type)
            if pa.types.is_floating(field.type):
                column = pa.array(column.to_numpy(), from_pandas=True)
        elif field.name == "geometry":
            column = pa.array(shapely.to_wkb(np.asarray(column)), field.type)
        else:
            column = pa.array(column, field.type, from_pandas=True)
        columns.append(column)
    return pa.table(columns, schema=schema)


def _projection(
    target: Path, format_: Format, grid: Grid, to_crs: str | None
) -> tuple[Projection | None, pyproj.CRS | None, bool]:
    """Return what transforms polygons (None: no change), their CRS, and whether it may split polygons."""
    from segkit.vector.reproject import Projection, crs_of

    if format_.lonlat_only:
        if grid.crs is None:
            raise UsageError(
                f"{target.name}: GeoJSON holds longitude and latitude, and the map has no CRS; "
                "assign one (gdal_edit.py -a_srs) or use another format"
            )
        if to_crs is not None and Projection(grid, to_crs).crs != Projection(grid, "EPSG:4326").crs:
            raise UsageError(f"{target.name}: GeoJSON holds EPSG:4326 and not {to_crs}; write another format")
        to_crs = "EPSG:4326"
    if to_crs is None:
        return None, crs_of(grid), False
    projection = Projection(grid, to_crs, decimals=7 if format_.lonlat_only else None)
    return projection, projection.crs, projection.splits


def _provenance(legend: Legend, tags: Mapping[str, str]) -> dict[str, str]:
    """Return the provenance of the polygons."""
    metadata = {"segkit_map": Path(legend.map_name).name}
    metadata |= {key: tags[key] for key in ("segkit_model",) if key in tags}
    if "segkit_date" in tags:
        metadata["segkit_map_date"] = tags["segkit_date"]
    return metadata | {"segkit_version": VERSION, "segkit_date": datetime.now(UTC).isoformat(timespec="seconds")}


@contextmanager
def _as_write_error(path: Path) -> Iterator[None]:
    """Raise errors of the libraries that write as OutputError."""
    from pyarrow import ArrowException

    with as_output_error(
        path, RuntimeError, ArrowException, sqlite3.Error, name=path.name
    ):  # pyogrio's errors are RuntimeErrors
        yield


def _verify(spec: FileSpec, format_: Format, counts: Mapping[str, int], name: str) -> None:
    """Read back a written file and compare it with its spec."""
    columns = tuple(spec.schema.names[:-1])
    for layer, count in counts.items():
        found = format_.inspect(spec.path, layer)
        if found.polygons != count:
            difference = f"{count} polygons were written and {found.polygons} read back"
            raise not_as_written(spec.path, difference, name=name)
        if count and found.columns != columns:
            raise OutputError(f"{name}: the columns {', '.join(columns)} read back as {', '.join(found.columns)}")
        if spec.crs is not None and not _same_crs(spec.crs, found.crs):
            raise OutputError(
                f"{name}: the CRS {spec.crs.name} does not read back" + suggest("write another format", "use --to-crs")
            )


def _same_crs(expected: pyproj.CRS, found: Any) -> bool:
    import pyproj

    if found is None:
        return False
    crs = pyproj.CRS.from_user_input(found)
    # A shapefile has Esri's WKT, which holds less than the CRS.
    return bool(crs.equals(expected, ignore_axis_order=True)) or crs.to_wkt("WKT1_ESRI") == expected.to_wkt("WKT1_ESRI")
