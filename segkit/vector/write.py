"""Polygons -> files. A format is one row of `FORMATS`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.errors import OutputError, UsageError
from segkit.files import staged

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

# What shapefile readers agree on.
_SHAPEFILE_BYTES = 2**31
_SHAPEFILE_TEXT_BYTES = 254


@dataclass(frozen=True)
class Format:
    """How a file is written.

    Parameters
    ----------
    write
        Called with the polygons, the path and the layer's name; refuses, before writing, what the format cannot hold.
    count
        Polygons in a layer of a written file, called with its path and the layer's name.
    layered
        Whether a file can hold several layers.
    companions
        Endings of files beside it that belong to it and would be wrong about a new one.
    """

    write: Callable[[GeoDataFrame, Path, str], None]
    count: Callable[[Path, str], int]
    layered: bool = False
    companions: tuple[str, ...] = ()


def format_of(path: Path) -> Format:
    """Return the format that a path's ending names.

    Raises
    ------
    UsageError
        It names none.
    """
    try:
        return FORMATS[path.suffix]
    except KeyError:
        raise UsageError(
            f"{path}: polygons are not written as {path.suffix or 'a file without ending'}; "
            f"use one of {', '.join(FORMATS)}"
        ) from None


def write_polygons(frame: GeoDataFrame, path: Path, *, layers: Sequence[str] = ()) -> None:
    """Write polygons under another name, re-open and count them, and rename.

    Parameters
    ----------
    layers
        Classes of which each becomes a layer of its own where the format has layers.

    Raises
    ------
    UsageError
        The ending names no format, or the format cannot hold the polygons.
    OutputError
        The file could not be written, or does not read back.
    """
    from pyarrow import ArrowException

    form = format_of(path)
    parts = {name: frame[frame["class"] == name] for name in layers} if layers and form.layered else {path.stem: frame}
    with staged(path) as part:
        try:
            for name, polygons in parts.items():
                form.write(polygons, part, name)
            found = {name: form.count(part, name) for name in parts}
        except (OSError, RuntimeError, ArrowException) as error:  # pyogrio's errors are RuntimeErrors
            raise OutputError(f"{path} could not be written: {error}") from error
        for name, polygons in parts.items():
            if found[name] != len(polygons):
                raise OutputError(
                    f"{path}: {len(polygons)} polygons were written and {found[name]} read back; is the disk full?"
                )
        stale = [ending for ending in form.companions if not part.with_suffix(ending).exists()]
    for ending in stale:
        path.with_suffix(ending).unlink(missing_ok=True)


def _write_ogr(frame: GeoDataFrame, path: Path, layer: str, *, driver: str, **options: Any) -> None:
    import pyogrio

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")  # the missing areas say so already
        pyogrio.write_dataframe(frame, path, layer=layer, driver=driver, geometry_type="Polygon", **options)


def _count_ogr(path: Path, layer: str) -> int:
    import pyogrio

    return int(pyogrio.read_info(path, layer=layer, force_feature_count=True)["features"])


def _write_shapefile(frame: GeoDataFrame, path: Path, layer: str) -> None:
    import shapely

    way_out = "write a GeoPackage (.gpkg) instead"
    longest = frame["class"].str.encode("utf-8").str.len().max() if len(frame) else 0
    if longest > _SHAPEFILE_TEXT_BYTES:
        raise UsageError(
            f"{path.name}: a class name takes {longest} bytes, a shapefile holds {_SHAPEFILE_TEXT_BYTES}; {way_out}"
        )
    rings = len(frame) + int(shapely.get_num_interior_rings(frame.geometry).sum())
    vertices = int(shapely.get_num_coordinates(frame.geometry).sum())
    # A polygon's header and box, its rings' starts, x and y; and its row of numbers and text.
    shapes, rows = 52 * len(frame) + 4 * rings + 16 * vertices, len(frame) * (100 + max(80, longest))
    if max(shapes, rows) >= _SHAPEFILE_BYTES:
        raise UsageError(
            f"{path.name}: {len(frame)} polygons with {vertices} vertices take {max(shapes, rows) / 2**30:.1f} GB, "
            f"a shapefile holds 2 GB; {way_out}"
        )
    _write_ogr(frame, path, layer, driver="ESRI Shapefile", encoding="UTF-8")


def _write_geojson(frame: GeoDataFrame, path: Path, layer: str) -> None:
    if frame.crs is None:
        raise UsageError(
            f"{path.name}: GeoJSON holds longitude and latitude, and the map has no CRS; "
            "assign one (gdal_edit.py -a_srs) or use another format"
        )
    _write_ogr(frame, path, layer, driver="GeoJSON", RFC7946="YES")


def _write_parquet(frame: GeoDataFrame, path: Path, layer: str) -> None:
    frame.to_parquet(path, index=False, schema_version="1.1.0", write_covering_bbox=True)


def _count_parquet(path: Path, layer: str) -> int:
    from pyarrow.parquet import read_metadata

    return int(read_metadata(path).num_rows)


FORMATS = {
    ".shp": Format(_write_shapefile, _count_ogr, companions=(".prj", ".qix", ".sbn", ".sbx", ".shp.xml")),
    ".gpkg": Format(
        partial(_write_ogr, driver="GPKG"),
        _count_ogr,
        layered=True,
        companions=(".gpkg-wal", ".gpkg-shm", ".gpkg-journal"),
    ),
    ".parquet": Format(_write_parquet, _count_parquet),
    ".fgb": Format(partial(_write_ogr, driver="FlatGeobuf"), _count_ogr),
    ".geojson": Format(_write_geojson, _count_ogr),
}
