"""The footprint of a grid in longitude and latitude (WGS 84), as GeoJSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
from numpy.typing import NDArray
from pyproj.exceptions import ProjError

from segkit.io.grid import Grid

if TYPE_CHECKING:
    from shapely import Polygon

_EDGE_POINTS = 21  # of each side; straight lines of a CRS are curves in another one
_TOLERANCE = 1e-5  # of the diagonal, by which vertices may be left out
_DIGITS = 7  # about a centimetre


def find_footprint(grid: Grid) -> tuple[dict[str, Any], list[float]] | None:
    """Return the outline of a grid, and its bounding box [west, south, east, north] in degrees.

    A grid that crosses the antimeridian has two polygons, and a box whose west is larger than its east, as RFC 7946
    (sections 3.1.9 and 5.2) has it. The footprint of a grid around a pole is all that lies beyond its lowest latitude.

    Returns
    -------
    None if the grid has no CRS or no location, or does not lie where its CRS is defined.
    """
    outline = _outline(grid)
    if outline is None:
        return None
    import shapely

    longitude, latitude = outline
    south, north = float(latitude.min()), float(latitude.max())
    if abs(longitude[-1] - longitude[0]) > 180:  # all the way around
        south, north = (south, 90.0) if latitude.mean() > 0 else (-90.0, north)
        return _finish(shapely.box(-180.0, south, 180.0, north), (-180.0, south, 180.0, north))
    longitude = longitude - 360 * math.floor((longitude.min() + 180) / 360)
    west, east = float(longitude.min()), float(longitude.max())
    polygon = shapely.Polygon(np.column_stack([longitude, latitude]))
    polygon = polygon.simplify(_TOLERANCE * math.hypot(east - west, north - south))
    if east - west >= 360:
        return _finish(polygon, (-180.0, south, 180.0, north))
    return _finish(polygon, (west, south, east if east <= 180 else east - 360, north))


def _outline(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return the closed outline in degrees, with longitudes that do not jump; None if it has no place."""
    if grid.crs is None or not grid.has_location:
        return None
    along = np.linspace(0, 1, _EDGE_POINTS)[:-1]
    zero, one = np.zeros_like(along), np.ones_like(along)
    columns = grid.width * np.concatenate([along, one, 1 - along, zero, [0]])
    rows = grid.height * np.concatenate([zero, along, one, 1 - along, [0]])
    t = grid.transform
    x, y = t.a * columns + t.b * rows + t.c, t.d * columns + t.e * rows + t.f
    try:
        to_degrees = pyproj.Transformer.from_crs(pyproj.CRS.from_wkt(grid.crs.to_wkt()), 4326, always_xy=True)
        longitude, latitude = to_degrees.transform(x, y)
    except ProjError:  # of a local CRS
        return None
    if not (np.isfinite(longitude).all() and np.isfinite(latitude).all()):
        return None
    return np.unwrap(longitude, period=360), np.clip(latitude, -90, 90)


def _finish(polygon: Polygon, bbox: tuple[float, ...]) -> tuple[dict[str, Any], list[float]]:
    """Split a polygon at the antimeridian, orient its rings, and round."""
    import shapely
    from shapely import affinity
    from shapely.geometry.polygon import orient

    parts = [polygon]
    if polygon.bounds[2] > 180:
        inside = polygon.intersection(shapely.box(-180, -90, 180, 90))
        beyond = polygon.intersection(shapely.box(180, -90, 540, 90))
        parts = [inside, affinity.translate(beyond, -360)]
    rings = [
        [shapely.get_coordinates(orient(each).exterior).round(_DIGITS).tolist()]
        for part in parts
        for each in shapely.get_parts(part)
        if each.geom_type == "Polygon" and each.area
    ]
    geometry = (
        {"type": "Polygon", "coordinates": rings[0]}
        if len(rings) == 1
        else {"type": "MultiPolygon", "coordinates": rings}
    )
    return geometry, [round(value, _DIGITS) for value in bbox]
