"""Polygons on a grid: labels, areas of interest and split polygons are read, projected, repaired and rasterised here.

A pixel is in a polygon that holds its centre.
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
from segkit.io.files import existing
from segkit.io.grid import Grid, crs_name
from segkit.io.vector import read_layer

if TYPE_CHECKING:
    import pandas

_POLYGON_TYPES = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
# A straight edge bends when it is reprojected; pieces of a kilometre stay within centimetres of the true line.
_LONGEST_EDGE_M, _LONGEST_EDGE_DEG = 1_000.0, 0.01


@dataclass(frozen=True, eq=False)
class Polygons:
    """Polygons of one layer of a vector file.

    Parameters
    ----------
    path
        The file.
    crs
        None where the file names none.
    shapes
        Polygons and multipolygons in two dimensions; none of them is empty.
    attributes
        A row for each.
    skipped
        Features without a geometry, which are left out.
    """

    path: Path
    crs: CRS | None
    shapes: NDArray[Any]
    attributes: pandas.DataFrame
    skipped: int

    def warn(self) -> None:
        """Warn of features without a geometry, which are left out, and of polygons that are invalid and repaired."""
        invalid = int((~shapely.is_valid(self.shapes)).sum())
        if self.skipped:
            warnings.warn(f"{self.path}: {self.skipped} features have no geometry; skipped", stacklevel=3)
        if invalid:
            warnings.warn(f"{self.path}: {invalid} polygons are invalid; repaired", stacklevel=3)

    def texts(self, field: str) -> tuple[str | None, ...]:
        """Return a field's values as a recipe would write them: whole numbers are whole in every type, null is None.

        Raises
        ------
        DataError
            There is no such field.
        """
        fields = [str(name) for name in self.attributes]
        if field not in fields:
            raise DataError(f"{self.path}: field {field!r} is not there; its fields are {', '.join(fields) or 'none'}")
        return tuple(_text(value) for value in self.attributes[field].to_numpy())


def read_polygons(path: str | Path, layer: str | None = None, *, option: str | None = None) -> Polygons:
    """Read the polygons of one layer of a vector file; the last files are kept until they change.

    Parameters
    ----------
    layer
        Its name; by default the only layer with geometries.
    option
        Where the user names a layer, for messages.

    Raises
    ------
    MissingFileError
        Nothing is there.
    DataError
        The file cannot be read, has several layers and none is named, or holds points or lines.
    """
    facts = existing(path, "vector file").stat()
    return _read(Path(path), layer, option, (facts.st_mtime_ns, facts.st_size))


@functools.lru_cache(maxsize=8)  # one file serves many scenes
def _read(path: Path, layer: str | None, option: str | None, stamp: tuple[int, int]) -> Polygons:
    found = read_layer(path, layer, option=option)
    if found.geometries is None:
        raise DataError(f"{path}: layer {layer!r} is a table without geometries; name a layer of polygons")
    there = ~(shapely.is_missing(found.geometries) | shapely.is_empty(found.geometries))
    types = shapely.get_type_id(found.geometries)
    for other in np.unique(types[there & ~np.isin(types, _POLYGON_TYPES)]):
        name = next(one.geom_type for one in found.geometries[there & (types == other)])
        raise DataError(
            f"{path}: {int((types[there] == other).sum())} of {there.sum()} geometries are of type {name}; only "
            "polygons cover pixels: buffer points and lines, or remove them"
        )
    return Polygons(
        path,
        found.crs,
        found.geometries[there],
        found.attributes[there].reset_index(drop=True),
        int((~there).sum()),
    )


def _text(value: Any) -> str | None:
    if value is None or value != value:
        return None
    return str(int(value)) if isinstance(value, float | np.floating) and value.is_integer() else str(value).strip()


def on_grid(polygons: Polygons, grid: Grid) -> tuple[NDArray[Any], NDArray[np.intp], int]:
    """Take the polygons that may meet a grid to its pixel coordinates, and make them valid.

    Edges are straight in the polygons' own CRS. In pixel coordinates x is the column, y the row, and a pixel's centre
    lies at .5.

    Returns
    -------
    shapes
        Valid polygons and multipolygons.
    numbers
        Which of `polygons.shapes` each of them is.
    repaired
        How many of them were not valid.

    Raises
    ------
    GridError
        Only one of both has a CRS, or a polygon reaches where the grid's CRS has no coordinates.
    """
    if (polygons.crs is None) != (grid.crs is None):
        raise GridError(
            f"{polygons.path} has CRS {crs_name(polygons.crs)}, the scene {crs_name(grid.crs)}; assign the one that is "
            "missing"
        )
    bounds, to_grid = grid.bounds, None
    if polygons.crs is not None and grid.crs is not None and polygons.crs != grid.crs:
        to_grid = pyproj.Transformer.from_crs(polygons.crs.to_wkt(), grid.crs.to_wkt(), always_xy=True)
        bounds = to_grid.transform_bounds(*bounds, direction="INVERSE")
    near = _meeting(polygons.shapes, bounds)
    shapes = polygons.shapes[near]
    if polygons.crs is not None and to_grid is not None:
        geographic = polygons.crs.is_geographic
        edge = _LONGEST_EDGE_DEG if geographic else _LONGEST_EDGE_M / polygons.crs.linear_units_factor[1]
        shapes = shapely.segmentize(_around(shapes, bounds), edge)
        shapes = shapely.transform(shapes, to_grid.transform, interleaved=False)
    found = shapely.bounds(shapes[~shapely.is_empty(shapes)]).reshape(-1, 4)
    lost = int((~np.isfinite(found).all(axis=1)).sum())
    if lost:
        raise GridError(
            f"{polygons.path}: {lost} polygons reach where {crs_name(grid.crs)} has no coordinates; cut them to the "
            "scene's surroundings"
        )
    shapes = moved(shapes, ~grid.transform)
    meets = _meeting(shapes, (0, 0, grid.width, grid.height))
    shapes, near = shapes[meets], near[meets]
    invalid = ~shapely.is_valid(shapes)
    shapes[invalid] = shapely.make_valid(shapes[invalid], method="structure", keep_collapsed=False)
    left = ~shapely.is_empty(shapes)  # a polygon that was but a line
    return shapes[left], near[left], int(invalid.sum())


def _meeting(shapes: NDArray[Any], bounds: tuple[float, float, float, float]) -> NDArray[np.intp]:
    """Return which shapes' boxes meet (left, bottom, right, top); left > right where the antimeridian lies between."""
    x0, y0, x1, y1 = shapely.bounds(shapes).reshape(-1, 4).T
    left, bottom, right, top = bounds
    across = (x1 >= left) & (x0 <= right) if left <= right else (x1 >= left) | (x0 <= right)
    return np.flatnonzero(across & (y1 >= bottom) & (y0 <= top))


def _around(shapes: NDArray[Any], bounds: tuple[float, float, float, float]) -> NDArray[Any]:
    """Cut what reaches far beyond bounds: a projection has no coordinates, or wrong ones, far from where it is used."""
    left, bottom, right, top = bounds
    width, height = right - left, top - bottom
    if not (width >= 0 and np.isfinite(width + height)):  # the antimeridian lies between
        return shapes
    around = shapely.box(left - width, bottom - height, right + width, top + height)
    far = ~shapely.covered_by(shapely.box(*shapely.bounds(shapes).reshape(-1, 4).T), around)
    shapes = shapes.copy()
    shapes[far] = shapely.make_valid(shapes[far], method="structure", keep_collapsed=False)
    shapes[far] = shapely.intersection(shapes[far], around)
    return shapes


def moved(shapes: NDArray[Any], transform: Affine) -> NDArray[Any]:
    """Apply an affine transform to shapes."""
    a, b, c, d, e, f, *_ = transform
    result = shapely.transform(shapes, lambda x, y: (a * x + b * y + c, d * x + e * y + f), interleaved=False)
    return np.asarray(result, dtype=object)


def rasterised(shapes: Iterable[Any], window: Window) -> NDArray[np.bool_]:
    """Return true where the centre of a pixel of a window lies in one of the shapes, bool (H, W).

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
