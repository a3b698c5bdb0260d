"""Read polygons, project them to a grid, repair and rasterise them: for labels, areas of interest and splits.

A pixel is in a polygon if its centre is.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.windows import Window

from segkit.errors import DataError, GridError
from segkit.io.files import require_file
from segkit.io.grid import Grid, crs_name
from segkit.io.vector import read_layer

if TYPE_CHECKING:
    import pandas

_POLYGON_TYPES = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
# A straight edge becomes curved when it is reprojected; pieces of 1 km stay within centimetres of the true line.
_MAX_EDGE_M, _MAX_EDGE_DEG = 1_000.0, 0.01


@dataclass(frozen=True, eq=False)
class Polygons:
    """Polygons of one layer of a vector file.

    Parameters
    ----------
    path
        The file.
    crs
        None if the file has none.
    shapes
        Polygons and multipolygons in two dimensions, none empty.
    attributes
        One row for each shape.
    skipped
        Number of features without a geometry, which are left out.
    """

    path: Path
    crs: CRS | None
    shapes: NDArray[Any]
    attributes: pandas.DataFrame
    skipped: int

    def warn_of_repairs(self) -> None:
        """Warn of features without a geometry, which are left out, and of invalid polygons, which are repaired."""
        invalid = int((~shapely.is_valid(self.shapes)).sum())
        if self.skipped:
            warnings.warn(f"{self.path}: {self.skipped} features have no geometry; skipped", stacklevel=3)
        if invalid:
            warnings.warn(f"{self.path}: {invalid} polygons are invalid; repaired", stacklevel=3)

    def field_values(self, field: str) -> tuple[str | None, ...]:
        """Return the values of a field as text, as in a recipe: 1.0 is "1", null is None.

        Raises
        ------
        DataError
            The field does not exist.
        """
        fields = [str(name) for name in self.attributes]
        if field not in fields:
            raise DataError(f"{self.path}: has no field {field!r}; its fields are {', '.join(fields) or 'none'}")
        return tuple(_text(value) for value in self.attributes[field].to_numpy())


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
    facts = require_file(path, "vector file").stat()
    return _read(Path(path), layer, option, (facts.st_mtime_ns, facts.st_size))


@functools.lru_cache(maxsize=8)  # one file serves many scenes
def _read(path: Path, layer: str | None, option: str | None, stamp: tuple[int, int]) -> Polygons:
    found = read_layer(path, layer, option=option)
    if found.geometries is None:
        raise DataError(f"{path}: layer {layer!r} is a table without geometries; give a layer of polygons")
    present = ~(shapely.is_missing(found.geometries) | shapely.is_empty(found.geometries))
    types = shapely.get_type_id(found.geometries)
    for other in np.unique(types[present & ~np.isin(types, _POLYGON_TYPES)]):
        name = next(one.geom_type for one in found.geometries[present & (types == other)])
        raise DataError(
            f"{path}: {int((types[present] == other).sum())} of {present.sum()} geometries have the type {name}, but "
            "only polygons are used; buffer points and lines, or remove them"
        )
    return Polygons(
        path,
        found.crs,
        found.geometries[present],
        found.attributes[present].reset_index(drop=True),
        int((~present).sum()),
    )


def _text(value: Any) -> str | None:
    if value is None or value != value:
        return None
    return str(int(value)) if isinstance(value, float | np.floating) and value.is_integer() else str(value).strip()


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
    if (polygons.crs is None) != (grid.crs is None):
        raise GridError(
            f"{polygons.path} has CRS {crs_name(polygons.crs)}, the scene {crs_name(grid.crs)}; assign the missing one"
        )
    bounds, to_grid = grid.bounds, None
    if polygons.crs is not None and grid.crs is not None and polygons.crs != grid.crs:
        to_grid = pyproj.Transformer.from_crs(polygons.crs.to_wkt(), grid.crs.to_wkt(), always_xy=True)
        bounds = to_grid.transform_bounds(*bounds, direction="INVERSE")
    near = _boxes_intersecting(polygons.shapes, bounds)
    shapes = polygons.shapes[near]
    if polygons.crs is not None and to_grid is not None:
        geographic = polygons.crs.is_geographic
        edge = _MAX_EDGE_DEG if geographic else _MAX_EDGE_M / polygons.crs.linear_units_factor[1]
        shapes = shapely.segmentize(_clip_to_surroundings(shapes, bounds), edge)
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
