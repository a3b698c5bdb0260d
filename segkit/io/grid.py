"""Grid: shape, transform and CRS of a raster, and windows that cover it.

Coordinates follow GDAL: rows run down, columns run right, a pixel is an area, and `transform` maps the (column, row) of
a pixel's upper-left corner to CRS coordinates. Windows are rasterio's.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyproj
from affine import Affine
from numpy.typing import NDArray
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.windows import Window

from segkit.errors import GridError

# Transforms count as equal if they move no corner of the raster by more than this many pixels.
_MAX_SHIFT_PX = 1e-3


@dataclass(frozen=True)
class Grid:
    """Shape, affine transform and CRS of a raster.

    Parameters
    ----------
    height, width
        Rows and columns, at least 1.
    transform
        Affine from (column, row) to CRS coordinates; may be rotated or south-up.
    crs
        None if the raster declares none.
    georeferenced
        False if the raster has no transform; `transform` is then the one with which programs display it.
    """

    height: int
    width: int
    transform: Affine
    crs: CRS | None
    georeferenced: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.height, self.width

    @property
    def full_window(self) -> Window:
        """The window of the whole grid."""
        return Window(0, 0, self.width, self.height)

    @property
    def has_location(self) -> bool:
        """Whether the transform gives a location; a missing transform and the identity do not."""
        return self.georeferenced and not self.transform.is_identity

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) of the outermost corners in CRS units, also for rotated and south-up grids."""
        corners = [self.transform @ (c, r) for c in (0, self.width) for r in (0, self.height)]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def pixel_size(self) -> tuple[float, float]:
        """Lengths of a pixel's sides along a row and along a column, in CRS units."""
        t = self.transform
        return float(np.hypot(t.a, t.d)), float(np.hypot(t.b, t.e))

    def subgrid(self, window: Window) -> Grid:
        """Return the grid of a window, which may extend beyond this grid."""
        shift = Affine.translation(window.col_off, window.row_off)
        return Grid(int(window.height), int(window.width), self.transform @ shift, self.crs)

    def describe_difference(self, other: Grid) -> str | None:
        """Describe how `other` differs from this grid; None if they are equal to a thousandth of a pixel.

        The transforms of two grids without a location are not compared.
        """
        found = []
        if self.shape != other.shape:
            found.append(f"{self.height} x {self.width} against {other.height} x {other.width} pixels")
        if self.crs != other.crs:
            found.append(f"CRS {crs_name(self.crs)} against {crs_name(other.crs)}")
        elif (self.has_location or other.has_location) and not self._has_same_corners(other):
            found.append(f"transform {_format_transform(self.transform)} against {_format_transform(other.transform)}")
        return "; ".join(found) or None

    def _has_same_corners(self, other: Grid) -> bool:
        to_pixel = ~self.transform
        height, width = max(self.height, other.height), max(self.width, other.width)
        for corner in ((0, 0), (width, 0), (0, height), (width, height)):
            column, row = to_pixel @ (other.transform @ corner)
            if max(abs(column - corner[0]), abs(row - corner[1])) > _MAX_SHIFT_PX:
                return False
        return True

    def position_in(self, other: Grid) -> tuple[int, int] | None:
        """Return the row and column of `other` at which this grid's first pixel lies.

        They may lie outside of `other`. The result is None if the grids have different CRSs or pixels, to a thousandth
        of a pixel, or one has no location.
        """
        if self.crs != other.crs or not (self.has_location and other.has_location):
            return None
        to_other = ~other.transform @ self.transform
        column, row = round(to_other.c), round(to_other.f)
        for corner in ((0, 0), (self.width, 0), (0, self.height), (self.width, self.height)):
            x, y = to_other @ corner
            if max(abs(x - corner[0] - column), abs(y - corner[1] - row)) > _MAX_SHIFT_PX:
                return None
        return row, column

    def tiles(self, size: int) -> Iterator[Window]:
        """Return the windows of at most `size` x `size` pixels that cover the grid once, row by row."""
        return split_window(self.full_window, size)

    def hectares(self, window: Window | None = None) -> NDArray[np.float64]:
        """Return the true area of each pixel of a window (default: the whole grid), in hectares, float64 (H, W).

        The corners of each pixel are projected to an equal-area cylinder on the ellipsoid of the CRS, so degrees, Web
        Mercator and UTM all give the area on the ground. NaN outside the area of the CRS.

        Raises
        ------
        GridError
            The CRS is missing, or is a local one.
        """
        part = self.subgrid(window or self.full_window)
        columns, rows = np.meshgrid(np.arange(part.width + 1.0), np.arange(part.height + 1.0))
        t = part.transform
        x, y = to_equal_area(part.crs, t.a * columns + t.b * rows + t.c, t.d * columns + t.e * rows + t.f)
        around = 2 * np.pi * _require_ellipsoid(part.crs)[1]
        # The shoelace formula over a quadrilateral: half the cross product of its diagonals.
        with np.errstate(invalid="ignore"):  # infinite outside the area of the CRS
            dx1, dy1 = x[1:, 1:] - x[:-1, :-1], y[1:, 1:] - y[:-1, :-1]
            dx2, dy2 = x[1:, :-1] - x[:-1, 1:], y[1:, :-1] - y[:-1, 1:]
            for dx in (dx1, dx2):
                dx -= around * np.rint(dx / around)  # a step across the antimeridian of the cylinder
        return np.asarray(np.abs(dx1 * dy2 - dx2 * dy1) / 2 / 10_000, dtype=np.float64)

    def pixel_metres(self, window: Window | None = None) -> tuple[float, float]:
        """Return the lengths of a pixel's sides in the centre of a window, along a row and along a column, in metres.

        Raises
        ------
        GridError
            The CRS is missing or local, or does not extend there.
        """
        window = window or self.full_window
        crs, _, _ = _require_ellipsoid(self.crs)
        row, column = window.row_off + window.height / 2, window.col_off + window.width / 2
        corners = [self.transform @ (column + right, row + below) for right, below in ((0, 0), (1, 0), (0, 1))]
        x, y = _to_degrees(crs.to_wkt()).transform([x for x, _ in corners], [y for _, y in corners])
        geod = crs.get_geod()
        if geod is None or not np.isfinite([*x, *y]).all():
            raise GridError(f"{crs_name(self.crs)} has no place on the ground there")
        sides = geod.inv([x[0], x[0]], [y[0], y[0]], x[1:], y[1:])[2]
        return float(sides[0]), float(sides[1])


def split_window(window: Window, size: int) -> Iterator[Window]:
    """Split a window into windows of at most `size` x `size` pixels, row by row."""
    bottom, right = int(window.row_off + window.height), int(window.col_off + window.width)
    for row in range(int(window.row_off), bottom, size):
        for column in range(int(window.col_off), right, size):
            yield Window(column, row, min(size, right - column), min(size, bottom - row))


def lattice_windows(grid: Grid, number: int, side: int) -> list[Window]:
    """Return up to `number` x `number` evenly spaced windows that do not overlap, of `side` pixels (maximum)."""
    spans = []
    for size in grid.shape:
        length = min(side, size)
        count = max(1, min(number, size // length))
        spans.append([(int((at + 0.5) * size / count - length / 2), length) for at in range(count)])
    return [Window(left, top, width, height) for top, height in spans[0] for left, width in spans[1]]


def to_equal_area(
    crs: CRS | None, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Project CRS coordinates to metres on an equal-area cylinder on the ellipsoid of the CRS.

    Areas in the result are areas on the ellipsoid (Lambert's cylindrical equal-area projection with the authalic
    latitude; Snyder 1987, "Map Projections: A Working Manual", section 10). Meridians and parallels stay straight, so
    pixels of a geographic grid keep their area, however long their edges are. The cylinder is cut opposite to the mean
    longitude of the coordinates; x jumps by its circumference there.

    Raises
    ------
    GridError
        The CRS is missing, or is a local one.
    """
    earth_crs, *axes = _require_ellipsoid(crs)
    # Centred on the coordinates, so that the antimeridian does not cut them.
    return _to_cylinder(earth_crs.to_wkt(), *axes, _middle_longitude(earth_crs, x, y)).transform(x, y)


def _require_ellipsoid(crs: CRS | None) -> tuple[pyproj.CRS, float, float]:
    """Return the CRS and the semi-axes of its ellipsoid in metres; raise a GridError if it has none."""
    if crs is None:
        raise GridError("without a CRS there are no true areas; assign one first (gdal_edit.py -a_srs)")
    found = _parse_crs(crs.to_wkt())
    if found.ellipsoid is None:
        raise GridError(f"the CRS {found.name} has no ellipsoid, which true areas need; warp to another CRS")
    return found, found.ellipsoid.semi_major_metre, found.ellipsoid.semi_minor_metre


def _middle_longitude(crs: pyproj.CRS, x: NDArray[np.float64], y: NDArray[np.float64]) -> int:
    if not np.size(x):
        return 0
    longitude = float(np.mean(x))
    if not crs.is_geographic:
        longitude, _ = _to_degrees(crs.to_wkt()).transform(longitude, np.mean(y))
    return round(longitude) if np.isfinite(longitude) else 0


@functools.lru_cache(maxsize=64)
def _parse_crs(wkt: str) -> pyproj.CRS:
    return pyproj.CRS.from_wkt(wkt)


@functools.lru_cache(maxsize=64)
def _to_degrees(wkt: str) -> pyproj.Transformer:
    crs = _parse_crs(wkt)
    return pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)


@functools.lru_cache(maxsize=64)
def _to_cylinder(wkt: str, a: float, b: float, middle: int) -> pyproj.Transformer:
    # Without a datum there is no datum shift: same ellipsoid, same latitudes.
    cylinder = pyproj.CRS.from_proj4(f"+proj=cea +lat_ts=0 +lon_0={middle} +a={a!r} +b={b!r} +units=m +no_defs")
    return pyproj.Transformer.from_crs(_parse_crs(wkt), cylinder, always_xy=True)


@functools.lru_cache(maxsize=64)
def find_crs_problem(wkt: str) -> str | None:
    """Return why coordinates in a CRS cannot be converted to degrees, as with damaged parameters; None if they can."""
    try:
        if _parse_crs(wkt).geodetic_crs is not None:
            _to_degrees(wkt)
    except ProjError as error:
        return (str(error).strip().splitlines() or ["unknown"])[0]
    return None


def crs_name(crs: CRS | None) -> str:
    """Return the EPSG code of a CRS as "EPSG:32622", else its name, else "none"."""
    if crs is None:
        return "none"
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else _parse_crs(crs.to_wkt()).name


def _format_transform(transform: Affine) -> str:
    return "(" + ", ".join(f"{value:.10g}" for value in tuple(transform)[:6]) + ")"
