"""Read polygons, project them to a grid, repair and rasterise them: for labels, areas of interest and splits.

A pixel is in a polygon if its centre is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.windows import Window

from segkit.errors import DataError, GridError
from segkit.io.features import Features, read_features, require_types
from segkit.io.grid import Grid, crs_name, to_equal_area

_POLYGON_TYPES = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
# A straight edge becomes curved when it is reprojected; pieces of 1 km stay within centimetres of the true line.
_MAX_EDGE_M, _MAX_EDGE_DEG = 1_000.0, 0.01
_MAX_PIECES = 10**7  # of a polygon; the coast of Norway has 100,000 of 1 km
_M2_PER_HA = 10_000
_PIECES_PER_SIDE = 64  # of a square, when its area is computed in another projection


class Polygons(Features):
    """Polygons and multipolygons of one layer of a vector file."""

    def warn_of_repairs(self) -> None:
        """Warn of features without a geometry, which are left out, and of invalid polygons, which are repaired."""
        invalid = int((~shapely.is_valid(self.shapes)).sum())
        if self.skipped:
            warnings.warn(f"{self.path}: {self.skipped} features have no geometry; skipped", stacklevel=3)
        if invalid:
            warnings.warn(f"{self.path}: {invalid} polygons are invalid; repaired", stacklevel=3)


def read_polygons(path: str | Path, layer: str | None = None, *, option: str | None = None) -> Polygons:
    """Read the polygons of one layer of a vector file. Recently read files are cached until they change.

    Parameters
    ----------
    layer
        Its name; by default the only layer with geometries.
    option
        Option or key that names the layer, for messages.

    Raises
    ------
    MissingFileError
        The file does not exist.
    DataError
        The file is unreadable, has several layers and no `layer` is given, or has points or lines.
    """
    return as_polygons(read_features(path, layer, option=option))


def as_polygons(features: Features) -> Polygons:
    """Return features as polygons.

    Raises
    ------
    DataError
        One is a point or a line.
    """
    require_types(features, _POLYGON_TYPES, "only polygons are used; buffer points and lines, or remove them")
    return Polygons(features.path, features.crs, features.shapes, features.attributes, features.skipped)


def project_to_grid(polygons: Polygons, grid: Grid) -> tuple[NDArray[Any], NDArray[np.intp], int]:
    """Transform the polygons that may overlap a grid to its pixel coordinates, and make them valid.

    Edges are straight in the CRS of the polygons. In pixel coordinates x is the column, y the row, and pixel centres
    are at .5.

    Returns
    -------
    shapes
        Valid polygons and multipolygons.
    numbers
        Index of each shape in `polygons.shapes`.
    repaired
        Number of shapes that were invalid.

    Raises
    ------
    GridError
        Only one of the two has a CRS, or a polygon reaches beyond the domain of the grid's CRS.
    """
    polygons.require_crs_as(grid)
    bounds, to_grid = grid.bounds, None
    if polygons.crs is not None and grid.crs is not None and polygons.crs != grid.crs:
        to_grid = pyproj.Transformer.from_crs(polygons.crs.to_wkt(), grid.crs.to_wkt(), always_xy=True)
        bounds = to_grid.transform_bounds(*bounds, direction="INVERSE")
    near = _boxes_intersecting(polygons.shapes, bounds)
    shapes = polygons.shapes[near]
    if polygons.crs is not None and to_grid is not None:
        shapes = _segmentize(polygons.path, _clip_to_surroundings(shapes, bounds), _max_edge(polygons.crs))
        shapes = shapely.transform(shapes, to_grid.transform, interleaved=False)
    found = shapely.bounds(shapes[~shapely.is_empty(shapes)]).reshape(-1, 4)
    lost = int((~np.isfinite(found).all(axis=1)).sum())
    if lost:
        raise GridError(
            f"{polygons.path}: {lost} polygons reach beyond the domain of {crs_name(grid.crs)}; clip them to the "
            "surroundings of the scene"
        )
    shapes = apply_affine(shapes, ~grid.transform)
    meets = _boxes_intersecting(shapes, (0, 0, grid.width, grid.height))
    shapes, near = shapes[meets], near[meets]
    invalid = ~shapely.is_valid(shapes)
    shapes[invalid] = shapely.make_valid(shapes[invalid], method="structure", keep_collapsed=False)
    not_empty = ~shapely.is_empty(shapes)  # a polygon that is only a line becomes empty
    return shapes[not_empty], near[not_empty], int(invalid.sum())


def true_hectares(polygons: Polygons) -> NDArray[np.float64]:
    """Return the area of each polygon on the ellipsoid of its CRS in hectares, float64 (N,); edges as in its CRS.

    Raises
    ------
    GridError
        The CRS is missing, or is a local one.
    """
    shapes = shapely.make_valid(polygons.shapes, method="structure", keep_collapsed=False)
    # Edges become curves, also short ones: at 80 degrees north an edge of 600 m is 5 cm away from a straight line.
    edges = np.minimum(_max_edge(polygons.crs), np.sqrt(shapely.area(shapes)) / _PIECES_PER_SIDE)
    shapes = _segmentize(polygons.path, shapes, np.where(edges > 0, edges, np.inf))
    flat = [shapely.transform(each, partial(to_equal_area, polygons.crs), interleaved=False) for each in shapes]
    return np.asarray(shapely.area(np.array(flat, dtype=object)) / _M2_PER_HA, dtype=np.float64).reshape(-1)


def _segmentize(path: Path, shapes: NDArray[Any], edges: NDArray[np.float64] | float) -> Any:
    """Divide the edges of shapes into pieces of at most these lengths.

    Raises
    ------
    DataError
        One would have too many pieces, as with damaged coordinates.
    """
    pieces = shapely.length(shapes) / edges
    if not (pieces <= _MAX_PIECES).all():
        worst = shapely.bounds(shapes[np.argmax(np.nan_to_num(pieces, nan=np.inf))])
        extent = ", ".join(f"{value:.6g}" for value in worst)
        raise DataError(
            f"{path}: a polygon reaches from {extent} (x, y, x, y), which are no coordinates in its CRS; correct the "
            "CRS or the polygon"
        )
    return shapely.segmentize(shapes, edges)


def _max_edge(crs: CRS | None) -> float:
    """Return the length of edges in units of a CRS up to which a reprojected edge stays straight."""
    if crs is None:
        return np.inf
    return _MAX_EDGE_DEG if crs.is_geographic else _MAX_EDGE_M / float(crs.linear_units_factor[1])


def _boxes_intersecting(shapes: NDArray[Any], bounds: tuple[float, float, float, float]) -> NDArray[np.intp]:
    """Return the shapes with bounds that meet (left, bottom, right, top); left > right across the antimeridian."""
    x0, y0, x1, y1 = shapely.bounds(shapes).reshape(-1, 4).T
    left, bottom, right, top = bounds
    across = (x1 >= left) & (x0 <= right) if left <= right else (x1 >= left) | (x0 <= right)
    return np.flatnonzero(across & (y1 >= bottom) & (y0 <= top))


def _clip_to_surroundings(shapes: NDArray[Any], bounds: tuple[float, float, float, float]) -> NDArray[Any]:
    """Clip shapes that reach far beyond bounds, where a projection has no coordinates or wrong ones."""
    left, bottom, right, top = bounds
    width, height = right - left, top - bottom
    if not (width >= 0 and np.isfinite(width + height)):  # across the antimeridian
        return shapes
    surroundings = shapely.box(left - width, bottom - height, right + width, top + height)
    far = ~shapely.covered_by(shapely.box(*shapely.bounds(shapes).reshape(-1, 4).T), surroundings)
    shapes = shapes.copy()
    shapes[far] = shapely.make_valid(shapes[far], method="structure", keep_collapsed=False)
    shapes[far] = shapely.intersection(shapes[far], surroundings)
    return shapes


def apply_affine(shapes: NDArray[Any], transform: Affine) -> NDArray[Any]:
    """Apply an affine transform to shapes."""
    a, b, c, d, e, f, *_ = transform
    result = shapely.transform(shapes, lambda x, y: (a * x + b * y + c, d * x + e * y + f), interleaved=False)
    return np.asarray(result, dtype=object)


def rasterize_shapes(shapes: Iterable[Any], window: Window) -> NDArray[np.bool_]:
    """Return which pixels of a window have their centre in one of the shapes, bool (H, W).

    Parameters
    ----------
    shapes
        In pixel coordinates of the grid that the window is of.
    """
    mask = np.zeros((int(window.height), int(window.width)), dtype=bool)
    drawn = list(shapes)
    if drawn:
        mask |= rasterize(
            drawn, mask.shape, transform=Affine.translation(window.col_off, window.row_off), dtype="uint8"
        ).astype(bool)
    return mask
