"""Where features and a scene lie that do not meet, and what may be wrong with the coordinates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from segkit.io.features import Features
from segkit.io.grid import Grid, crs_name

_WORLD = CRS.from_epsg(4326)


def describe_elsewhere(features: Features, grid: Grid) -> str:
    """Return both extents, and a guess why features do not lie on a grid."""
    if not features.shapes.size:
        return f"{features.path} has no feature with a geometry"
    bounds = shapely.total_bounds(features.shapes)
    found = (
        f"{features.path} has the extent {_format_bounds(bounds)} in {crs_name(features.crs)}, the scene "
        f"{_format_bounds(grid.bounds)} in {crs_name(grid.crs)}"
    )
    in_own = _scene_bounds(grid, features.crs)
    if in_own is not None and features.crs != grid.crs:
        found += f", which is {_format_bounds(in_own)} in {crs_name(features.crs)}"
    return f"{found}; {next(_guesses(features, grid, bounds), 'check the CRS of both, or give other files')}"


def describe_extents(path: Path, label_grid: Grid, grid: Grid) -> str:
    """Return the extents of a label raster and of a scene."""
    return (
        f"{path} has the extent {_format_bounds(label_grid.bounds)} in {crs_name(label_grid.crs)}, the scene "
        f"{_format_bounds(grid.bounds)} in {crs_name(grid.crs)}"
    )


def _guesses(features: Features, grid: Grid, bounds: NDArray[np.float64]) -> Iterator[str]:
    """Yield what would place the features on the scene."""
    left, bottom, right, top = bounds
    swapped = np.array([bottom, left, top, right])
    candidates = {features.crs: "", grid.crs: "", _WORLD: ""}
    for crs in candidates:
        scene = _scene_bounds(grid, crs)
        for swap, box in ((False, bounds), (True, swapped)):
            if scene is None or (crs == features.crs and not swap) or not _meet(box, scene):
                continue
            exchange = "exchange x and y (latitude and longitude) of its coordinates" if swap else ""
            if crs == features.crs:
                yield f"its axes seem to be swapped: {exchange}"
                return
            what = "degrees" if crs is not None and crs.is_geographic else "coordinates of the scene's CRS"
            declared = f"its coordinates look like {what}, not like {crs_name(features.crs)}"
            geojson = " (GeoJSON is always EPSG:4326)" if features.path.suffix.lower() in (".geojson", ".json") else ""
            yield f"{declared}{geojson}: assign {crs_name(crs)} to it" + (f", and {exchange}" if swap else "")
            return


def _scene_bounds(grid: Grid, crs: CRS | None) -> NDArray[np.float64] | None:
    """Return the bounds of a grid in a CRS; None if they are not known."""
    if crs is None or grid.crs is None:
        return None
    if crs == grid.crs:
        return np.array(grid.bounds)
    to_crs = pyproj.Transformer.from_crs(grid.crs.to_wkt(), crs.to_wkt(), always_xy=True)
    bounds = np.array(to_crs.transform_bounds(*grid.bounds))
    return bounds if np.isfinite(bounds).all() else None


def _meet(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    return bool(one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3])


def _format_bounds(bounds: object) -> str:
    return ", ".join(f"{value:.7g}" for value in np.asarray(bounds))
