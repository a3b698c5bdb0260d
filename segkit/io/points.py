"""Points from vector files and CSV tables, as pixels of a grid."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import CRSError
from rasterio.crs import CRS

from segkit.errors import DataError, GridError
from segkit.io.csv_table import CsvTable, read_csv
from segkit.io.features import Features
from segkit.io.files import require_file
from segkit.io.grid import Grid

POINT_TABLE_SUFFIXES = (".csv",)

_POINT_TYPES = (shapely.GeometryType.POINT, shapely.GeometryType.MULTIPOINT)
# Names of the columns with coordinates, in the order x, y.
_COORDINATE_COLUMNS = (("x", "y"), ("lon", "lat"), ("longitude", "latitude"), ("easting", "northing"))
_CIRCLE_EDGES = 128
# Polygons of this radius contain the circle, so that pixels at exactly the radius are inside.
_CIRCUMSCRIBED = 1 / np.cos(np.pi / _CIRCLE_EDGES)


class Points(Features):
    """Points of one layer or table; a multipoint is several points with the same attributes."""


@dataclass(frozen=True)
class PointColumns:
    """How to read points from a CSV file.

    Parameters
    ----------
    x, y
        Columns with the coordinates; by default x and y, lon and lat, longitude and latitude, or easting and northing.
    crs
        CRS of the coordinates, such as "EPSG:4326".
    keys
        Names of the options or keys for these, for messages.
    """

    x: str | None = None
    y: str | None = None
    crs: str | None = None
    keys: tuple[str, str, str] = ("labels.x", "labels.y", "labels.crs")


def is_point_table(path: Path) -> bool:
    """Return whether a file is a table of points, by its extension."""
    return path.suffix.lower() in POINT_TABLE_SUFFIXES


def has_points(features: Features) -> bool:
    """Return whether features are points; they may be mixed with others, which `as_points` refuses."""
    return bool(np.isin(shapely.get_type_id(features.shapes), _POINT_TYPES).any())


def as_points(features: Features) -> Points:
    """Return features as points, multipoints as several.

    Raises
    ------
    DataError
        One is not a point.
    """
    others = ~np.isin(shapely.get_type_id(features.shapes), _POINT_TYPES)
    if others.any():
        kind = features.shapes[others][0].geom_type
        raise DataError(
            f"{features.path}: {int((~others).sum())} of {others.size} geometries are points, {int(others.sum())} have "
            f"other types ({kind}); a file holds either points or polygons: write them to two files and list both as "
            "label sources"
        )
    shapes, numbers = shapely.get_parts(features.shapes, return_index=True)
    attributes = features.attributes.iloc[numbers].reset_index(drop=True)
    return Points(features.path, features.crs, shapes, attributes, features.skipped)


def read_point_table(path: str | Path, columns: PointColumns) -> Points:
    """Read points from a CSV file. Recently read files are cached until they change.

    Rows without coordinates are left out and counted.

    Raises
    ------
    MissingFileError
        It does not exist.
    DataError
        It is not a table with these columns, a coordinate is not a number, or the CRS is missing or unknown.
    """
    facts = require_file(path, "table of points").stat()
    return _read_table(Path(path), columns, (facts.st_mtime_ns, facts.st_size))


@functools.lru_cache(maxsize=8)  # one file serves many scenes
def _read_table(path: Path, columns: PointColumns, stamp: tuple[int, int]) -> Points:
    import pandas

    table = read_csv(path, "table of points")
    x, y = find_coordinate_columns(table, columns)
    if columns.crs is None:
        raise DataError(
            f"{path}: a table of points has no CRS; set {columns.keys[2]}, for example EPSG:4326 for longitude and "
            "latitude in degrees"
        )
    located = [row for row in table.rows if row.cells[x] or row.cells[y]]
    rule = "it must be a coordinate; leave both coordinates empty if there are none"
    coordinates = np.array([(row.number(x, rule), row.number(y, rule)) for row in located]).reshape(-1, 2)
    others = [name for name in table.columns if name not in (x, y)]
    attributes = pandas.DataFrame(
        {name: [row.cells[name] or None for row in located] for name in others}, index=range(len(located)), dtype=object
    )
    return Points(
        path, parse_crs(columns.crs, f"{path}: {columns.keys[2]}"), shapely.points(coordinates), attributes,
        len(table.rows) - len(located),
    )  # fmt: skip


def find_coordinate_columns(table: CsvTable, columns: PointColumns) -> tuple[str, str]:
    """Return the names of the columns with x and y.

    Raises
    ------
    DataError
        They are not there, or it is not clear which they are.
    """
    listed = ", ".join(table.columns) or "none"
    if columns.x is not None and columns.y is not None:
        for key, name in zip(columns.keys, (columns.x, columns.y), strict=False):
            if name not in table.columns:
                raise DataError(f"{table.path}: {key} is {name!r}, but its columns are {listed}; correct it")
        return columns.x, columns.y
    lower = {name.lower(): name for name in table.columns}
    pairs = [(lower[x], lower[y]) for x, y in _COORDINATE_COLUMNS if x in lower and y in lower]
    if len(pairs) != 1:
        found = "no columns with coordinates" if not pairs else "several pairs of columns with coordinates"
        raise DataError(
            f"{table.path}: has {found} (its columns are {listed}); set {columns.keys[0]} and {columns.keys[1]} to "
            "their names"
        )
    return pairs[0]


def parse_crs(text: str, source: str) -> CRS:
    """Return the CRS of a text such as "EPSG:4326" or WKT.

    Raises
    ------
    DataError
        It is unknown; `source` is named.
    """
    try:
        return CRS.from_wkt(pyproj.CRS.from_user_input(text).to_wkt())
    except CRSError as error:
        raise DataError(f"{source} is {text!r}, which is not a CRS; write it as EPSG:4326 or as WKT") from error


def draw_points(points: Points, grid: Grid, radius: float | None = None) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Return the pixels of points on a grid, as polygons in its pixel coordinates.

    A point has the pixel that contains it (on an edge between two pixels, the one to the right or below); and, with a
    radius, all pixels whose centre is at most that far away.

    Parameters
    ----------
    radius
        In metres on the ground.

    Returns
    -------
    shapes
        Polygons: a square for each point near the grid, and a disc with a radius.
    numbers
        Index of each shape's point in `points.shapes`.

    Raises
    ------
    GridError
        Only one of the two has a CRS, or there is a radius and no CRS.
    """
    points.require_crs_as(grid)
    x, y = shapely.get_coordinates(points.shapes).T
    if points.crs is not None and grid.crs is not None and points.crs != grid.crs:
        x, y = pyproj.Transformer.from_crs(points.crs.to_wkt(), grid.crs.to_wkt(), always_xy=True).transform(x, y)
    a, b, c, d, e, f, *_ = ~grid.transform
    columns, rows = a * x + b * y + c, d * x + e * y + f  # infinite outside the domain of the grid's CRS
    around = 0.0
    if radius is not None:
        _require_metres(points, grid)
        around = 2 * radius / min(grid.pixel_metres()) + 1  # twice, because pixels may have different sizes
    with np.errstate(invalid="ignore"):
        near = (
            (columns >= -around) & (columns < grid.width + around) & (rows >= -around) & (rows < grid.height + around)
        )
    numbers = np.flatnonzero(near)
    columns, rows = columns[numbers], rows[numbers]
    shapes = shapely.box(np.floor(columns), np.floor(rows), np.floor(columns) + 1, np.floor(rows) + 1)
    if radius is not None and numbers.size:
        shapes = np.concatenate([shapes, _discs(grid, columns, rows, radius)])
        numbers = np.concatenate([numbers, numbers])
    left, top, right, bottom = shapely.bounds(shapes).reshape(-1, 4).T
    meets = (right > 0) & (bottom > 0) & (left < grid.width) & (top < grid.height)
    return np.asarray(shapes, dtype=object)[meets], numbers[meets]


def _require_metres(points: Points, grid: Grid) -> None:
    """Raise a GridError if lengths on a grid are not known in metres."""
    crs = None if grid.crs is None else pyproj.CRS.from_wkt(grid.crs.to_wkt())
    if crs is None or crs.geodetic_crs is None or crs.get_geod() is None:
        found = "no CRS" if crs is None else f"the CRS {crs.name}, which has no place on the ground"
        raise GridError(f"{points.path}: the radius of points is in metres, but the scene has {found}; remove it")


def _discs(grid: Grid, columns: NDArray[np.float64], rows: NDArray[np.float64], radius: float) -> NDArray[Any]:
    """Return discs around points, given by columns and rows; ellipses if pixels are not square."""
    assert grid.crs is not None
    crs = pyproj.CRS.from_wkt(grid.crs.to_wkt())
    geod = crs.get_geod()
    assert geod is not None
    to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    t = grid.transform

    def degrees(columns: NDArray[np.float64], rows: NDArray[np.float64]) -> tuple[Any, Any]:
        return to_degrees.transform(t.a * columns + t.b * rows + t.c, t.d * columns + t.e * rows + t.f)

    here, right, below = degrees(columns, rows), degrees(columns + 1, rows), degrees(columns, rows + 1)
    sides = [geod.inv(*here, *other)[2] for other in (right, below)]
    angles = np.arange(_CIRCLE_EDGES) * (2 * np.pi / _CIRCLE_EDGES)
    outline = _CIRCUMSCRIBED * radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    centres = np.stack([columns, rows], axis=-1)[:, None]
    return np.asarray(shapely.polygons(centres + outline / np.stack(sides, axis=-1)[:, None]), dtype=object)
