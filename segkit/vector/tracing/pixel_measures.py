"""Areas and side lengths of a map's pixels on the ellipsoid.

Both vary so smoothly that a polynomial of degree 4 over a square of pixels is accurate to 1e-8. The map is divided into
the largest squares for which this holds: a UTM scene is one square, a world map at 1 km about a thousand. So
coordinates are transformed at some points of a square only, not at every vertex.
"""

from __future__ import annotations

from itertools import pairwise
from math import comb
from typing import NamedTuple

import numpy as np
import pyproj
from numpy.typing import NDArray
from pyproj.exceptions import ProjError

from segkit.errors import GridError
from segkit.io.grid import Grid, crs_name, to_equal_area
from segkit.vector.tracing.jit import compiled
from segkit.vector.tracing.runs import Runs

# Measures of a pixel: its area, the lengths of its upper and left side, and their inner product, which is 0 if they
# meet at a right angle.
_AREA, _UPPER, _LEFT, _INNER = _FIELDS = range(4)
# There is one more row of upper sides than of pixels, and one more column of left sides.
_MORE_ROWS, _MORE_COLUMNS = (0, 1, 0, 0), (0, 0, 1, 0)
_DEGREE = 4
_NODES = _DEGREE + 1
# Maximum relative error of the polynomials of a square, at points between their nodes.
_TOLERANCE = 1e-8
# Coordinates have too few digits to measure shorter distances with this accuracy.
_MIN_MEASURED_METRES = 10.0
# Longer sides are measured in pieces, because they are not geodesics.
_MAX_PIECE_METRES = 20_000.0
_MAX_PIECES = 16
_MAX_CELLS = 512
_EARTH_RADIUS_METRES = 6_371_007.0


class PixelMeasures(NamedTuple):
    """The polynomials, as arrays for compiled functions.

    Parameters
    ----------
    cells
        int32 (rows, columns): the square of each cell of `cell` x `cell` pixels; it includes the lines below the last
        row and right of the last column.
    cell
        Side of a cell in pixels.
    place
        float64 (squares, 3): first row, first column and side in pixels of each square.
    field
        float64 (squares, 4, 5, 5): coefficients of w ** i * u ** j, where w and u are row and column in the square
        divided by its side. In m2, m, m, m2. NaN outside the domain of the CRS.
    sums
        float64 (squares, 2, 5, 6): antiderivatives of area and upper side: the difference of the values at two u is the
        sum over the pixels between.
    """

    cells: NDArray[np.int32]
    cell: int
    place: NDArray[np.float64]
    field: NDArray[np.float64]
    sums: NDArray[np.float64]


class RunMeasures(NamedTuple):
    """Areas and lengths of runs on the ground, in square metres and metres.

    Parameters
    ----------
    area
        (runs,): area.
    left
        (runs,): length of the pixel side at the run's start.
    upper, lower
        (runs,): distance from the row's first column to the run's start, along the upper and lower side of the row.
    end
        (rows, 3): `left`, `upper` and `lower` at the end of each row.
    """

    area: NDArray[np.float64]
    left: NDArray[np.float64]
    upper: NDArray[np.float64]
    lower: NDArray[np.float64]
    end: NDArray[np.float64]


def fit_pixel_measures(grid: Grid) -> PixelMeasures:
    """Fit polynomials to the areas and side lengths of a grid's pixels on the ellipsoid of its CRS.

    Areas are those of `Grid.hectares`: of the pixel's outline in a cylindrical equal-area projection. Lengths are
    geodesic.

    Raises
    ------
    GridError
        The CRS is missing or does not locate the pixels on the ground.
    """
    fitter = _PolynomialFit(grid)
    longest = max(grid.shape) + 1
    cell = 1 << ((longest - 1) // _MAX_CELLS).bit_length()
    cells = np.zeros((grid.height // cell + 1, grid.width // cell + 1), dtype=np.int32)
    side = max(cell, 1 << (longest - 1).bit_length())
    corners, found, numbered = np.zeros((1, 2), dtype=np.int64), [], 0
    while len(corners):
        fields, good = fitter.fit(corners, side)
        good |= side == cell
        for number, (top, left) in enumerate(corners[good] // cell, numbered):
            cells[top : top + side // cell, left : left + side // cell] = number
        numbered += int(np.count_nonzero(good))
        found.append((np.column_stack((corners[good], np.full(np.count_nonzero(good), side))), fields[good]))
        side //= 2
        quarters = np.array([(0, 0), (0, side), (side, 0), (side, side)])
        corners = (corners[~good, None] + quarters).reshape(-1, 2)
        corners = corners[(corners <= grid.shape).all(axis=1)]
    places, polynomials = (np.concatenate(part) for part in zip(*found, strict=True))
    return _squares(cells, cell, places.astype(np.float64), polynomials)


def unmeasured_pixels() -> PixelMeasures:
    """Return measures for a map without a usable CRS: all are NaN."""
    unknown = np.full((1, len(_FIELDS), _NODES, _NODES), np.nan)
    return _squares(np.zeros((1, 1), dtype=np.int32), 2**40, np.array([[0.0, 0.0, 1.0]]), unknown)


def measure_runs(pixel_measures: PixelMeasures, runs: Runs) -> RunMeasures:
    """Return the areas and lengths of runs; NaN outside the domain of the CRS."""
    area, left, upper, lower = (np.empty(runs.first.size) for _ in range(4))
    end = np.empty((runs.height, 3))
    _measure_runs(pixel_measures, runs.top, runs.row, runs.first, runs.width, area, left, upper, lower, end)
    return RunMeasures(area, left, upper, lower, end)


def _squares(
    cells: NDArray[np.int32], cell: int, place: NDArray[np.float64], field: NDArray[np.float64]
) -> PixelMeasures:
    """Add the antiderivatives: polynomials whose steps from pixel to pixel are the fields."""
    step = 1 / place[:, 2, None, None]
    sums = np.zeros((len(place), 2, _NODES, _NODES + 1))
    for power in range(_DEGREE, -1, -1):
        # (u + step)^k - u^k has the term comb(k, power) step^(k - power) u^power.
        above = np.zeros((len(place), 2, _NODES))
        for k in range(power + 2, _NODES + 1):
            above += sums[..., k] * comb(k, power) * step ** (k - power)
        sums[..., power + 1] = (field[:, :2, :, power] - above) / ((power + 1) * step)
    return PixelMeasures(cells, cell, place, field, sums)


class _PolynomialFit:
    """Measures single pixels of a grid and fits polynomials to them."""

    def __init__(self, grid: Grid) -> None:
        if grid.crs is None:
            raise GridError("without a CRS there are no true areas; assign one first (gdal_edit.py -a_srs)")
        crs = pyproj.CRS.from_wkt(grid.crs.to_wkt())
        self._grid = grid
        try:
            to_equal_area(grid.crs, np.empty(0), np.empty(0))
            self._to_lonlat = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
        except (ValueError, ProjError) as error:
            raise GridError(
                f"the CRS {crs_name(grid.crs)} does not locate the pixels on the ground ({error})"
            ) from error
        assert crs.ellipsoid is not None  # checked by to_equal_area
        self._geod = crs.get_geod()
        self._around = 2 * np.pi * crs.ellipsoid.semi_major_metre
        _, factor = grid.crs.units_factor
        self._pole = np.pi / 2 / factor if grid.crs.is_geographic else np.inf
        metres = max(grid.pixel_size) * factor * (_EARTH_RADIUS_METRES if grid.crs.is_geographic else 1)
        # Small pixels are measured as a block of several, centred on the pixel.
        self._span = max(1.0, np.ceil(_MIN_MEASURED_METRES / metres))
        self._pieces = min(_MAX_PIECES, int(np.ceil(metres * self._span / _MAX_PIECE_METRES)))

    def fit(self, corners: NDArray[np.int64], side: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the coefficients (n, 4, 5, 5) for squares with the given first rows and columns (n, 2).

        Also returns whether they are accurate (n,); they are if a square lies outside the domain of the CRS.
        """
        found = np.full((len(corners), len(_FIELDS), _NODES, _NODES), np.nan)
        good = np.ones(len(corners), dtype=bool)
        empty = np.zeros(len(corners), dtype=bool)
        for field in _FIELDS:
            last = np.array(self._grid.shape) - 1 + (_MORE_ROWS[field], _MORE_COLUMNS[field])
            # Not beyond the map, which may be outside the domain of the CRS.
            start = np.minimum(corners[good], last)
            spans = np.minimum(side - 1, last - start) / side
            places = [spans[..., None] * shares for shares in (_ROOTS, _BETWEEN)]
            at_nodes, between = self._measure_at(field, start, side, places)
            powers, powers_between = (at[..., None] ** np.arange(_NODES) for at in places)
            # A single row or column has a constant value.
            powers[spans == 0] = np.eye(_NODES)
            from_values = np.linalg.inv(powers)
            from_values[spans == 0, 1:] = 0
            coefficients = from_values[:, 0] @ at_nodes @ from_values[:, 1].swapaxes(1, 2)
            found[good, field] = coefficients
            off = np.abs(powers_between[:, 0] @ coefficients @ powers_between[:, 1].swapaxes(1, 2) - between).max(
                axis=(1, 2)
            )
            size = np.abs(between).max(axis=(1, 2))
            if field == _INNER:
                size = np.maximum(size, np.abs(found[good, _AREA, 0, 0]))
            if field == _AREA:
                empty = np.asarray(np.isnan(at_nodes).all(axis=(1, 2)) & np.isnan(between).all(axis=(1, 2)))
            good[np.flatnonzero(good)] = off <= _TOLERANCE * size  # False if NaN
        found[~good] = np.nan
        return found, good | empty

    def _measure_at(
        self, field: int, start: NDArray[np.int64], side: int, places: list[NDArray[np.float64]]
    ) -> list[NDArray[np.float64]]:
        """Measure pixels of squares (n,) at sets of points (n, 2, m), in parts of a side; each result is (n, m, m)."""
        if side == 1:
            value = self._measure(field, *start.T.astype(np.float64))[:, None, None]
            return [np.broadcast_to(value, (len(start), points.shape[-1], points.shape[-1])) for points in places]
        at = [np.moveaxis(start[..., None] + side * points, 1, 0) for points in places]
        meshes = [np.broadcast_arrays(rows[:, :, None], columns[:, None, :]) for rows, columns in at]
        # In one call, because each call of the transformation has a start-up time.
        values = self._measure(field, *(np.concatenate([mesh[axis].ravel() for mesh in meshes]) for axis in (0, 1)))
        ends = np.cumsum([mesh[0].size for mesh in meshes])[:-1]
        return [points.reshape(mesh[0].shape) for points, mesh in zip(np.split(values, ends), meshes, strict=True)]

    def _measure(self, field: int, r: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
        """Measure the pixels, or their sides, with first corners at rows and columns (n,)."""
        if field == _AREA:
            return self._measure_area(r, c)
        if field == _UPPER:
            return self._measure_length(r, c, 0, 1)
        if field == _LEFT:
            return self._measure_length(r, c, 1, 0)
        # Lines through the centre of the pixel.
        upper, left = self._measure_length(r + 0.5, c, 0, 1), self._measure_length(r, c + 0.5, 1, 0)
        return (self._measure_length(r, c, 1, 1) ** 2 - upper**2 - left**2) / 2

    def _measure_area(self, r: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
        low, high = 0.5 - self._span / 2, 0.5 + self._span / 2
        corners = [self._to_crs(r + i, c + j) for i, j in ((low, low), (low, high), (high, high), (high, low))]
        x, y = to_equal_area(self._grid.crs, *(np.stack(axis) for axis in zip(*corners, strict=True)))
        # The shoelace formula over a quadrilateral: half the cross product of its diagonals.
        with np.errstate(invalid="ignore"):  # infinite outside the domain of the CRS
            dx1, dx2 = x[2] - x[0], x[3] - x[1]
            for dx in (dx1, dx2):
                dx -= self._around * np.rint(dx / self._around)  # a step across the antimeridian of the projection
            return np.asarray(np.abs(dx1 * (y[3] - y[1]) - dx2 * (y[2] - y[0])) / 2 / self._span**2)

    def _measure_length(
        self, r: NDArray[np.float64], c: NDArray[np.float64], down: int, right: int
    ) -> NDArray[np.float64]:
        """Return geodesic lengths from pixel corners to the next corners down, right or diagonally."""
        geod = self._geod
        assert geod is not None  # the CRS has an ellipsoid
        steps = np.linspace(0.5 - self._span / 2, 0.5 + self._span / 2, self._pieces + 1)
        places = [self._to_lonlat.transform(*self._to_crs(r + down * step, c + right * step)) for step in steps]
        found = np.zeros(r.shape)
        for one, other in pairwise(places):
            # The geodesic solver is very slow for NaN.
            known = np.isfinite([*one, *other]).all(axis=0)
            found[~known] = np.nan
            found[known] += geod.inv(*(axis[known] for axis in (*one, *other)))[2]
        return np.asarray(found / self._span)

    def _to_crs(
        self, r: NDArray[np.float64], c: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        t = self._grid.transform
        x, y = t.a * c + t.b * r + t.c, t.d * c + t.e * r + t.f
        # A latitude beyond a pole by rounding is at the pole.
        return x, np.where(np.abs(np.abs(y) - self._pole) < 1e-9 * self._pole, np.copysign(self._pole, y), y)


# Chebyshev nodes, and points between them, from 0 to 1.
_ROOTS = (1 - np.cos((2 * np.arange(_NODES) + 1) * np.pi / (2 * _NODES))) / 2
_BETWEEN = np.concatenate(([0.0], (_ROOTS[1:] + _ROOTS[:-1]) / 2, [1.0]))


@compiled
def _measure_runs(pixel_measures, top, row, first, width, area, left, upper, lower, end):
    height = row.size - 1
    cells = pixel_measures.cells.shape[1]
    # The squares along this row and the next one (alternately): the square of each cell, and the number of squares
    # before it outside the domain; their polynomials in u, and the sums before them.
    at, lost = np.zeros((2, cells), dtype=np.int64), np.zeros((2, cells + 1), dtype=np.int64)
    start, scale = np.zeros((2, cells)), np.zeros((2, cells))
    sums, side, base = np.zeros((2, cells, 2, _NODES + 1)), np.zeros((2, cells, _NODES)), np.zeros((2, cells, 2))
    for r in range(height + 1):
        turn = (top + r) & 1
        line = pixel_measures.cells[min((top + r) // pixel_measures.cell, pixel_measures.cells.shape[0] - 1)]
        n = 0
        for k in range(cells):
            if k == 0 or line[k] != line[k - 1]:
                square = line[k]
                start[turn, n], scale[turn, n] = pixel_measures.place[square, 1], 1 / pixel_measures.place[square, 2]
                w = (top + r - pixel_measures.place[square, 0]) * scale[turn, n]
                missing = np.isnan(pixel_measures.field[square, 0, 0, 0])
                lost[turn, n + 1] = lost[turn, n] + missing
                for f in range(2):
                    for j in range(_NODES + 1):
                        sums[turn, n, f, j] = 0.0 if missing else _value(pixel_measures.sums[square, f, :, j], w)
                    base[turn, n, f] = 0.0
                    if n > 0:
                        u = (start[turn, n] - start[turn, n - 1]) * scale[turn, n - 1]
                        base[turn, n, f] = base[turn, n - 1, f] + _sum(sums[turn, n - 1, f], u)
                for j in range(_NODES):
                    side[turn, n, j] = _value(pixel_measures.field[square, _LEFT, :, j], w)
                n += 1
            at[turn, k] = n - 1
        if r > 0:
            # The lower side of the previous row is the upper side of this one.
            for j in range(row[r - 1], row[r]):
                n = at[turn, first[j] // pixel_measures.cell]
                lower[j] = base[turn, n, 1] + _sum(sums[turn, n, 1], (first[j] - start[turn, n]) * scale[turn, n])
            n = at[turn, width // pixel_measures.cell]
            end[r - 1, 2] = base[turn, n, 1] + _sum(sums[turn, n, 1], (width - start[turn, n]) * scale[turn, n])
        if r == height:
            break
        here = 0.0
        for j in range(row[r], row[r + 1] + 1):
            before, last = here, j == row[r + 1]
            c = width if last else first[j]
            n = at[turn, c // pixel_measures.cell]
            u = (c - start[turn, n]) * scale[turn, n]
            here = base[turn, n, 0] + _sum(sums[turn, n, 0], u)
            along = base[turn, n, 1] + _sum(sums[turn, n, 1], u)
            down = _value(side[turn, n], u)
            if last:
                end[r, 0], end[r, 1] = down, along
            else:
                left[j], upper[j] = down, along
            if j > row[r]:
                area[j - 1] = here - before
                if lost[turn, n + 1] > lost[turn, at[turn, first[j - 1] // pixel_measures.cell]]:
                    area[j - 1] = left[j - 1] = np.nan


@compiled
def _value(a, x):
    return (((a[4] * x + a[3]) * x + a[2]) * x + a[1]) * x + a[0]


@compiled
def _sum(a, x):
    return ((((a[5] * x + a[4]) * x + a[3]) * x + a[2]) * x + a[1]) * x


@compiled
def area_at(pixel_measures, x, y):
    """Return the area in square metres of a pixel centred at (column, row)."""
    # The index of a pixel is that of its first corner.
    return _field_at(pixel_measures, _AREA, x - 0.5, y - 0.5)


@compiled
def length_at(pixel_measures, x, y, dx, dy):
    """Return the length in metres of a line of (dx, dy) pixels centred at (column, row)."""
    if dy == 0:
        return abs(dx) * _field_at(pixel_measures, _UPPER, x - 0.5, y)
    if dx == 0:
        return abs(dy) * _field_at(pixel_measures, _LEFT, x, y - 0.5)
    e, f, g = metric_at(pixel_measures, x, y)
    return np.sqrt(e * dx * dx + 2 * f * dx * dy + g * dy * dy)


@compiled
def metric_at(pixel_measures, x, y):
    """Return (e, f, g) at (column, row): the squared length of (dx, dy) pixels is e dx dx + 2 f dx dy + g dy dy m2."""
    upper, left = _field_at(pixel_measures, _UPPER, x - 0.5, y), _field_at(pixel_measures, _LEFT, x, y - 0.5)
    return upper * upper, _field_at(pixel_measures, _INNER, x - 0.5, y - 0.5), left * left


@compiled
def frame_at(pixel_measures, x, y, flat):
    """Return the shape of a pixel at (column, row), and the length of its longer side in metres.

    The pixel's sides are (a, 0) and (b, d), in units of the longer side. `flat` is its metric (as of `metric_at`) in
    the CRS, where it has no measures on the ground.
    """
    e, f, g = metric_at(pixel_measures, x, y)
    if np.isnan(e + f + g):
        e, f, g = flat
    longest = np.sqrt(max(e, g))
    a = np.sqrt(e)
    b = f / a
    return a / longest, b / longest, np.sqrt(g - b * b) / longest, longest


@compiled
def _field_at(pixel_measures, f, x, y):
    square = pixel_measures.cells[max(0, int(y)) // pixel_measures.cell, max(0, int(x)) // pixel_measures.cell]
    place = pixel_measures.place[square]
    w, u = (y - place[0]) / place[2], (x - place[1]) / place[2]
    total = 0.0
    for i in range(_DEGREE, -1, -1):
        total = total * w + _value(pixel_measures.field[square, f, i], u)
    return total
