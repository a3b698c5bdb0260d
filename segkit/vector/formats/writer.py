"""Polygons -> files, in batches. A format is one row of `FORMATS`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from glob import escape
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segkit.errors import OutputError, OutputExistsError, UsageError, ways
from segkit.io.class_table import Legend, MapClass
from segkit.io.files import check_output, hindrance, staged, writing_to
from segkit.io.geopackage import begin, verify
from segkit.io.grid import Grid
from segkit.io.raster import PathLike
from segkit.vector.formats.base import Found, Plan, Sink, geometries, parts
from segkit.vector.formats.geojson import geojson
from segkit.vector.formats.geoparquet import geoparquet, look_geoparquet
from segkit.vector.formats.ogr import (
    flatgeobuf,
    geopackage,
    look_flatgeobuf,
    look_geopackage,
    look_ogr,
    look_shapefile,
    shapefile,
)
from segkit.vector.formats.qgis_style import is_ours, qml

if TYPE_CHECKING:
    import pyproj
    from geopandas import GeoDataFrame
    from pyarrow import Schema, Table

# Bytes of geometries that are converted at a time.
_PART_BYTES = 2**25


@dataclass(frozen=True)
class Format:
    """How a file is written.

    Parameters
    ----------
    sink
        Called with a plan, gives a function that takes polygons and their layer's name; it refuses, before writing,
        what the format cannot hold. On leaving, the file is complete.
    look
        Opens a written layer again, called with its path and name.
    layered
        Whether a file can hold several layers.
    lonlat
        Whether the format holds longitude and latitude (WGS 84) with seven decimals and nothing else.
    siblings
        Endings of other files that it is made of.
    companions
        Endings of files beside it that belong to it and would be wrong about a new one.
    """

    sink: Callable[[Plan], AbstractContextManager[Sink]]
    look: Callable[[Path, str], Found]
    layered: bool = False
    lonlat: bool = False
    siblings: tuple[str, ...] = ()
    companions: tuple[str, ...] = ()


FORMATS = {
    ".shp": Format(
        shapefile,
        look_shapefile,
        siblings=(".dbf", ".shx", ".prj", ".cpg"),
        companions=(".prj", ".qix", ".sbn", ".sbx", ".shp.xml"),
    ),
    ".gpkg": Format(geopackage, look_geopackage, layered=True, companions=(".gpkg-wal", ".gpkg-shm", ".gpkg-journal")),
    ".parquet": Format(geoparquet, look_geoparquet),
    ".fgb": Format(flatgeobuf, look_flatgeobuf),
    ".geojson": Format(geojson, look_ogr, lonlat=True),
}


def format_of(path: Path) -> Format:
    """Return the format that a path's ending names.

    Raises
    ------
    UsageError
        It names none.
    """
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise UsageError(
            f"{path}: polygons are not written as {path.suffix or 'a file without ending'}; "
            f"use one of {', '.join(FORMATS)}"
        ) from None


def check_target(path: PathLike, *, overwrite: bool) -> tuple[Path, Format]:
    """Return a path that can be written to and its format.

    Raises
    ------
    UsageError, OutputExistsError
        The output cannot be written, has an unknown ending, or it or one of its files is there and `overwrite` is
        false.
    """
    target = check_output(path, overwrite=overwrite)
    form = format_of(target)
    siblings = [ending.upper() if target.suffix.isupper() else ending for ending in form.siblings]
    there = [file.name for ending in siblings if (file := target.with_suffix(ending)).exists()]
    if there and not overwrite:
        raise OutputExistsError(
            f"{target}: {', '.join(there)} would be replaced, too"
            + ways("add --overwrite to do that", "name another file")
        )
    return target, form


@contextmanager
def writing(
    path: PathLike,
    grid: Grid,
    legend: Legend,
    *,
    layers: Sequence[str] = (),
    confidence: bool = False,
    multi: bool = False,
    to_crs: str | None = None,
    tags: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Iterator[Writer]:
    """Write a map's polygons in batches: under another name, re-opened and compared, renamed.

    When the block raises, nothing under the final name has changed. A style for QGIS (.qml) is put beside the file,
    unless one is there that segkit did not write.

    Parameters
    ----------
    path
        Its ending names the format (see `FORMATS`).
    grid
        The map's: polygons come in its CRS.
    legend
        The map's, for the style.
    layers
        Class names that each become a layer, empty or not, where the format has layers; in this order.
    confidence
        Whether batches have the column `mean_conf`.
    multi
        Whether batches hold multipolygons.
    to_crs
        What polygons are transformed to, as PROJ reads it: "EPSG:4326". Areas and perimeters stay.
    tags
        The map's own metadata (`dataset.tags()`), for what the file says about where it comes from.
    overwrite
        Whether a file of this name is replaced; of a GeoPackage, only the layers that are written.

    Yields
    ------
    Writer
        `write(batch, layer)` takes polygons, any number of times.

    Raises
    ------
    UsageError, OutputExistsError
        The output cannot be written, has an unknown ending, or is there and `overwrite` is false; or its format cannot
        hold the polygons.
    GridError
        A polygon has no place in `to_crs`.
    OutputError
        The file could not be written, or does not read back.
    """
    target, form = check_target(path, overwrite=overwrite)
    move, crs, splits = _projection(target, form, grid, to_crs)
    met = {one for one in legend.classes if not one.background}

    def style(layer: str) -> str:
        shown = [one for one in legend.classes if one in met]
        shown += sorted(met.difference(shown), key=lambda one: one.value)
        return qml((one for one in shown if layer in (one.name, target.stem)), see_through=legend.multilabel)

    with staged(target) as named, ExitStack() as stack:
        # GDAL knows some formats by an ending in small letters only.
        part = named.with_suffix(named.suffix.lower())
        names = tuple(layers) if form.layered and layers else (target.stem,)
        kept = begin(target, part, names) if form.layered else {}
        plan = Plan(
            part,
            _schema(confidence),
            crs,
            "Unknown" if form.lonlat else "MultiPolygon" if multi or splits else "Polygon",
            names,
            _about(legend, tags or {}),
            style,
        )
        with _told(target):
            sink = stack.enter_context(form.sink(plan))
        writer = Writer(plan, sink, legend, met, move)
        yield writer
        with _told(target):
            stack.close()
            _verify(plan, form, writer.counts, target.name)
            verify(part, names, kept)
            beside = target.with_suffix(".qml")
            if is_ours(beside) or not beside.exists():
                part.with_suffix(".qml").write_text(style(target.stem), encoding="utf-8")
        companions = form.companions
        if part != named:
            companions += tuple(ending.upper() for ending in companions)
            _rename(part, named)
        stale = [ending for ending in companions if not named.with_suffix(ending).exists()]
    for ending in stale:
        target.with_suffix(ending).unlink(missing_ok=True)


def _rename(part: Path, named: Path) -> None:
    """Give a file that was written with an ending in small letters the ending that was asked for, and so its set."""
    for file in list(part.parent.glob(f"{escape(part.stem)}.*")):
        if file != part and named.suffix.isupper() and file.suffix != ".qml":
            file.replace(file.with_suffix(file.suffix.upper()))
    part.replace(named)


class Writer:
    """Takes polygons in batches; made by `writing`."""

    def __init__(
        self,
        plan: Plan,
        sink: Sink,
        legend: Legend,
        met: set[MapClass],
        move: Callable[[NDArray[Any]], NDArray[Any]] | None,
    ) -> None:
        self.counts = dict.fromkeys(plan.layers, 0)
        self._plan = plan
        self._sink = sink
        self._legend = legend
        self._met = met
        self._move = move

    def write(self, batch: GeoDataFrame | Table, layer: str | None = None) -> None:
        """Write polygons.

        Parameters
        ----------
        batch
            Columns class_id (int32), class (str), area_ha, pixels (int64), perim_m, mean_conf (with `confidence`) and
            geometry, in any order. Outer rings run counter-clockwise, holes clockwise. A GeoDataFrame, or, which is
            faster, a pyarrow Table whose `geometry` is WKB (binary) and whose nulls stand for NaN. Memory holds two
            batches or so: some ten thousand polygons each are quick and small.
        layer
            One of `layers`, where they were given. Batches of one layer should follow each other.
        """
        import pyarrow.compute as pc

        if len(self._plan.layers) == 1:
            layer = self._plan.layers[0]
        if layer not in self.counts:
            raise ValueError(f"{layer!r} is no layer of {self._plan.path.name}; it has {', '.join(self.counts)}")
        table = _as_table(batch, self._plan.schema)
        if not self._legend.multilabel:
            self._met.update(self._legend.class_of(1, value) for value in pc.unique(table["class_id"]).to_pylist())
        for part in parts(table, _PART_BYTES):
            if self._move is not None or self._plan.geometry_type == "MultiPolygon":
                part = self._moved(part)
            with _told(self._plan.path):
                self._sink(part, layer)
            self.counts[layer] += part.num_rows

    def _moved(self, table: Table) -> Table:
        import pyarrow as pa
        import shapely

        polygons = shapely.from_wkb(geometries(table))
        if self._move is not None:
            polygons = self._move(polygons)
        if self._plan.geometry_type == "MultiPolygon":
            single = shapely.get_type_id(polygons) == shapely.GeometryType.POLYGON
            polygons[single] = shapely.multipolygons(polygons[single][:, None])
        return table.set_column(table.num_columns - 1, "geometry", pa.array(shapely.to_wkb(polygons), pa.binary()))


def _schema(confidence: bool) -> Schema:
    import pyarrow as pa

    columns = {"class_id": pa.int32(), "class": pa.string(), "area_ha": pa.float64(), "pixels": pa.int64()}
    columns |= {"perim_m": pa.float64()} | ({"mean_conf": pa.float64()} if confidence else {})
    return pa.schema(columns | {"geometry": pa.binary()})


def _as_table(batch: GeoDataFrame | Table, schema: Schema) -> Table:
    """Bring a batch into a schema; NaN becomes null."""
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
    target: Path, form: Format, grid: Grid, to_crs: str | None
) -> tuple[Callable[[NDArray[Any]], NDArray[Any]] | None, pyproj.CRS | None, bool]:
    """Return what moves polygons (None where they stay), their CRS, and whether they may come out in several parts."""
    from segkit.vector.reproject import Projection, crs_of

    if form.lonlat:
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
    projection = Projection(grid, to_crs, decimals=7 if form.lonlat else None)
    return projection, projection.crs, projection.splits


def _about(legend: Legend, tags: Mapping[str, str]) -> dict[str, str]:
    """Say where polygons come from."""
    about = {"segkit_map": Path(legend.map_name).name}
    about |= {key: tags[key] for key in ("segkit_model",) if key in tags}
    if "segkit_date" in tags:
        about["segkit_map_date"] = tags["segkit_date"]
    return about | {"segkit_version": version("segkit"), "segkit_date": datetime.now(UTC).isoformat(timespec="seconds")}


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what libraries raise while they write into one error of ours."""
    from pyarrow import ArrowException

    with writing_to(
        path, RuntimeError, ArrowException, sqlite3.Error, name=path.name
    ):  # pyogrio's errors are RuntimeErrors
        yield


def _verify(plan: Plan, form: Format, counts: Mapping[str, int], name: str) -> None:
    """Open a written file again and compare it with what was to be written."""
    columns = tuple(plan.schema.names[:-1])
    for layer, count in counts.items():
        found = form.look(plan.path, layer)
        if found.polygons != count:
            raise OutputError(
                f"{name}: {count} polygons were written and {found.polygons} read back{hindrance(plan.path.parent)}"
            )
        if count and found.columns != columns:
            raise OutputError(f"{name}: the columns {', '.join(columns)} read back as {', '.join(found.columns)}")
        if plan.crs is not None and not _same_crs(plan.crs, found.crs):
            raise OutputError(
                f"{name}: the CRS {plan.crs.name} does not read back" + ways("write another format", "use --to-crs")
            )


def _same_crs(expected: pyproj.CRS, found: Any) -> bool:
    import pyproj

    if found is None:
        return False
    crs = pyproj.CRS.from_user_input(found)
    # A shapefile keeps what Esri's WKT says, which is less than all.
    return bool(crs.equals(expected, ignore_axis_order=True)) or crs.to_wkt("WKT1_ESRI") == expected.to_wkt("WKT1_ESRI")
