"""Ground: how large a map's pixels are on the ellipsoid, and how long their sides.

Both vary from pixel to pixel, but so smoothly that a polynomial of degree 4 over a square of pixels tells them to a
hundred-millionth. The map is cut into such squares, each as large as that allows: a UTM scene is one square, a world
map of a kilometre some thousand. So a coordinate transformation is needed in some places of a square, not in every
vertex.
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
from segkit.io.grid import Grid, crs_name, equal_area
from segkit.vector.tracing.jit import compiled
from segkit.vector.tracing.runs import Runs

# What is told about a pixel: its area, the lengths of its upper and its left side, and their inner product, which is 0
# where they meet at a right angle.
_AREA, _UPPER, _LEFT, _INNER = _FIELDS = range(4)
# There is one more row of upper sides than of pixels, and one more column of left sides.
_MORE_ROWS, _MORE_COLUMNS = (0, 1, 0, 0), (0, 0, 1, 0)
_DEGREE = 4
_NODES = _DEGREE + 1
# A square is good when its polynomials are, at places between their nodes.
_TOLERANCE = 1e-8
# Coordinates have too few digits to measure less than this as well as that.
_LEAST_METRES = 10.0
# Sides longer than this are measured in pieces, as they are no shortest lines on the ellipsoid.
_PIECE_METRES = 20_000.0
_MOST_PIECES = 16
_MOST_CELLS = 512
_EARTH_RADIUS_METRES = 6_371_007.0


class Squares(NamedTuple):
    """The polynomials, as the kernels take them.

    Parameters
    ----------
    cells
        int32 (rows, columns): which square a cell of `cell` x `cell` pixels lies in; also for the lines below the last
        row and right of the last column.
    cell
        Pixels.
    place
        float64 (squares, 3): each one's first row and column, and the pixels to its side.
    field
        float64 (squares, 4, 5, 5): coefficients of w ** i * u ** j, where w and u are row and column in the square,
        divided by its side. Square metres, metres, metres, square metres. NaN where the CRS has no place.
    sums
        float64 (squares, 2, 5, 6): of area and upper side, such that the value at u less that at an earlier u is the
        sum over the pixels between.
    """

    cells: NDArray[np.int32]
    cell: int
    place: NDArray[np.float64]
    field: NDArray[np.float64]
    sums: NDArray[np.float64]


class Measures(NamedTuple):
    """What runs measure on the ground, in metres and square metres.

    Parameters
    ----------
    area
        (runs,)
    left
        (runs,): the side at each run's start, one pixel long.
    upper, lower
        (runs,): from the row's first column to the run's start, along the row's upper and along its lower side.
    end
        (rows, 3): `left`, `upper` and `lower` at the end of each row.
    """

    area: NDArray[np.float64]
    left: NDArray[np.float64]
    upper: NDArray[np.float64]
    lower: NDArray[np.float64]
    end: NDArray[np.float64]


def ground_of(grid: Grid) -> Squares:
    """Measure a grid's pixels on its CRS's ellipsoid.

    Areas are those of `Grid.hectares`: of the pixels' outlines on a cylinder of equal area. Lengths are geodesic.

    Raises
    ------
    GridError
        The CRS is missing, or does not say where on the ground it is.
    """
    gauge = _Gauge(grid)
    longest = max(grid.shape) + 1
    cell = 1 << ((longest - 1) // _MOST_CELLS).bit_length()
    cells = np.zeros((grid.height // cell + 1, grid.width // cell + 1), dtype=np.int32)
    side = max(cell, 1 << (longest - 1).bit_length())
    corners, found, numbered = np.zeros((1, 2), dtype=np.int64), [], 0
    while len(corners):
        fields, good = gauge.fitted(corners, side)
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


def nowhere() -> Squares:
    """Stand in for the ground where a map has none: all measures are NaN."""
    unknown = np.full((1, len(_FIELDS), _NODES, _NODES), np.nan)
    return _squares(np.zeros((1, 1), dtype=np.int32), 2**40, np.array([[0.0, 0.0, 1.0]]), unknown)


def measure_runs(squares: Squares, runs: Runs) -> Measures:
    """Measure runs on the ground; what has no place there is NaN."""
    area, left, upper, lower = (np.empty(runs.first.size) for _ in range(4))
    end = np.empty((runs.height, 3))
    _measure_runs(squares, runs.top, runs.row, runs.first, runs.width, area, left, upper, lower, end)
    return Measures(area, left, upper, lower, end)


def _squares(cells: NDArray[np.int32], cell: int, place: NDArray[np.float64], field: NDArray[np.float64]) -> Squares:
    """Add the polynomials whose steps from pixel to pixel are the fields."""
    step = 1 / place[:, 2, None, None]
    sums = np.zeros((len(place), 2, _NODES, _NODES + 1))
    for power in range(_DEGREE, -1, -1):
        # (u + step)^k - u^k has the term comb(k, power) step^(k - power) u^power.
        above = np.zeros((len(place), 2, _NODES))
        for k in range(power + 2, _NODES + 1):
            above += sums[..., k] * comb(k, power) * step ** (k - power)
        sums[..., power + 1] = (field[:, :2, :, power] - above) / ((power + 1) * step)
    return Squares(cells, cell, place, field, sums)


class _Gauge:
    """Measures single pixels of a grid."""

    def __init__(self, grid: Grid) -> None:
        if grid.crs is None:
            raise GridError("without a CRS there are no true areas; assign one first (gdal_edit.py -a_srs)")
        crs = pyproj.CRS.from_wkt(grid.crs.to_wkt())
        self._grid = grid
        try:
            equal_area(grid.crs, np.empty(0), np.empty(0))
            self._to_lonlat = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
        except (ValueError, ProjError) as error:
            raise GridError(
                f"the CRS {crs_name(grid.crs)} does not say where on the ground it lies ({error})"
            ) from error
        assert crs.ellipsoid is not None  # equal_area refuses a CRS without
        self._geod = crs.get_geod()
        self._around = 2 * np.pi * crs.ellipsoid.semi_major_metre
        _, factor = grid.crs.units_factor
        self._pole = np.pi / 2 / factor if grid.crs.is_geographic else np.inf
        metres = max(grid.pixel_size) * factor * (_EARTH_RADIUS_METRES if grid.crs.is_geographic else 1)
        # Of small pixels several are measured together, about the one that is meant.
        self._span = max(1.0, np.ceil(_LEAST_METRES / metres))
        self._pieces = min(_MOST_PIECES, int(np.ceil(metres * self._span / _PIECE_METRES)))

    def fitted(self, corners: NDArray[np.int64], side: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the coefficients (n, 4, 5, 5) for squares with these first rows and columns (n, 2).

        And whether they tell what lies in them (n,), be it that nothing has a place there.
        """
        found = np.full((len(corners), len(_FIELDS), _NODES, _NODES), np.nan)
        good = np.ones(len(corners), dtype=bool)
        empty = np.zeros(len(corners), dtype=bool)
        for field in _FIELDS:
            last = np.array(self._grid.shape) - 1 + (_MORE_ROWS[field], _MORE_COLUMNS[field])
            # Not beyond the map, where the CRS may have no place.
            start = np.minimum(corners[good], last)
            spans = np.minimum(side - 1, last - start) / side
            places = [spans[..., None] * shares for shares in (_ROOTS, _BETWEEN)]
            at_nodes, between = self._values(field, start, side, places)
            powers, powers_between = (at[..., None] ** np.arange(_NODES) for at in places)
            # Where there is one row or column, its value is all there is.
            powers[spans == 0] = np.eye(_NODES)
            from_values = np.linalg.inv(powers)
            from_values[spans == 0, 1:] = 0
            own = from_values[:, 0] @ at_nodes @ from_values[:, 1].swapaxes(1, 2)
            found[good, field] = own
            off = np.abs(powers_between[:, 0] @ own @ powers_between[:, 1].swapaxes(1, 2) - between).max(axis=(1, 2))
            size = np.abs(between).max(axis=(1, 2))
            if field == _INNER:
                size = np.maximum(size, np.abs(found[good, _AREA, 0, 0]))
            if field == _AREA:
                empty = np.asarray(np.isnan(at_nodes).all(axis=(1, 2)) & np.isnan(between).all(axis=(1, 2)))
            good[np.flatnonzero(good)] = off <= _TOLERANCE * size  # not where it is NaN
        found[~good] = np.nan
        return found, good | empty

    def _values(
        self, field: int, start: NDArray[np.int64], side: int, places: list[NDArray[np.float64]]
    ) -> list[NDArray[np.float64]]:
        """Measure in squares (n,) at sets of places (n, 2, m), rows and columns in parts of a side: (n, m, m)."""
        if side == 1:
            value = self._field(field, *start.T.astype(np.float64))[:, None, None]
            return [np.broadcast_to(value, (len(start), some.shape[-1], some.shape[-1])) for some in places]
        at = [np.moveaxis(start[..., None] + side * some, 1, 0) for some in places]
        meshes = [np.broadcast_arrays(rows[:, :, None], columns[:, None, :]) for rows, columns in at]
        # In one go, as each takes a transformation's start-up time.
        values = self._field(field, *(np.concatenate([mesh[axis].ravel() for mesh in meshes]) for axis in (0, 1)))
        ends = np.cumsum([mesh[0].size for mesh in meshes])[:-1]
        return [some.reshape(mesh[0].shape) for some, mesh in zip(np.split(values, ends), meshes, strict=True)]

    def _field(self, field: int, r: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
        """Measure the pixels, or their sides, whose first corners lie at rows and columns (n,)."""
        if field == _AREA:
            return self._area(r, c)
        if field == _UPPER:
            return self._length(r, c, 0, 1)
        if field == _LEFT:
            return self._length(r, c, 1, 0)
        # Of lines through the pixel's middle.
        upper, left = self._length(r + 0.5, c, 0, 1), self._length(r, c + 0.5, 1, 0)
        return (self._length(r, c, 1, 1) ** 2 - upper**2 - left**2) / 2

    def _area(self, r: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
        low, high = 0.5 - self._span / 2, 0.5 + self._span / 2
        corners = [self._placed(r + i, c + j) for i, j in ((low, low), (low, high), (high, high), (high, low))]
        x, y = equal_area(self._grid.crs, *(np.stack(axis) for axis in zip(*corners, strict=True)))
        # The shoelace formula over a quadrilateral: half the cross product of its diagonals.
        with np.errstate(invalid="ignore"):  # infinite where the CRS has no place
            dx1, dx2 = x[2] - x[0], x[3] - x[1]
            for dx in (dx1, dx2):
                dx -= self._around * np.rint(dx / self._around)  # a step across the cylinder's cut
            return np.asarray(np.abs(dx1 * (y[3] - y[1]) - dx2 * (y[2] - y[0])) / 2 / self._span**2)

    def _length(self, r: NDArray[np.float64], c: NDArray[np.float64], down: int, right: int) -> NDArray[np.float64]:
        """Geodesic lengths of lines from pixels' corners to the next ones down or to the right, or both."""
        geod = self._geod
        assert geod is not None  # there is an ellipsoid
        steps = np.linspace(0.5 - self._span / 2, 0.5 + self._span / 2, self._pieces + 1)
        places = [self._to_lonlat.transform(*self._placed(r + down * step, c + right * step)) for step in steps]
        found = np.zeros(r.shape)
        for one, other in pairwise(places):
            # What is no number takes the geodesic solver very long.
            known = np.isfinite([*one, *other]).all(axis=0)
            found[~known] = np.nan
            found[known] += geod.inv(*(axis[known] for axis in (*one, *other)))[2]
        return np.asarray(found / self._span)

    def _placed(
        self, r: NDArray[np.float64], c: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        t = self._grid.transform
        x, y = t.a * c + t.b * r + t.c, t.d * c + t.e * r + t.f
        # What is rounded to beyond a pole is at it.
        return x, np.where(np.abs(np.abs(y) - self._pole) < 1e-9 * self._pole, np.copysign(self._pole, y), y)


# Chebyshev's places for nodes, and others between them, over 0 to 1.
_ROOTS = (1 - np.cos((2 * np.arange(_NODES) + 1) * np.pi / (2 * _NODES))) / 2
_BETWEEN = np.concatenate(([0.0], (_ROOTS[1:] + _ROOTS[:-1]) / 2, [1.0]))


@compiled
def _measure_runs(squares, top, row, first, width, area, left, upper, lower, end):  # type: ignore[no-untyped-def]
    height = row.size - 1
    cells = squares.cells.shape[1]
    # The squares along this row and along the next one (turn and turn about): which of them a cell lies in, and how
    # many before it have no place; their polynomials in u, and the sums before them.
    at, lost = np.zeros((2, cells), dtype=np.int64), np.zeros((2, cells + 1), dtype=np.int64)
    start, scale = np.zeros((2, cells)), np.zeros((2, cells))
    sums, side, base = np.zeros((2, cells, 2, _NODES + 1)), np.zeros((2, cells, _NODES)), np.zeros((2, cells, 2))
    for r in range(height + 1):
        turn = (top + r) & 1
        line = squares.cells[min((top + r) // squares.cell, squares.cells.shape[0] - 1)]
        n = 0
        for k in range(cells):
            if k == 0 or line[k] != line[k - 1]:
                square = line[k]
                start[turn, n], scale[turn, n] = squares.place[square, 1], 1 / squares.place[square, 2]
                w = (top + r - squares.place[square, 0]) * scale[turn, n]
                missing = np.isnan(squares.field[square, 0, 0, 0])
                lost[turn, n + 1] = lost[turn, n] + missing
                for f in range(2):
                    for j in range(_NODES + 1):
                        sums[turn, n, f, j] = 0.0 if missing else _value(squares.sums[square, f, :, j], w)
                    base[turn, n, f] = 0.0
                    if n > 0:
                        u = (start[turn, n] - start[turn, n - 1]) * scale[turn, n - 1]
                        base[turn, n, f] = base[turn, n - 1, f] + _sum(sums[turn, n - 1, f], u)
                for j in range(_NODES):
                    side[turn, n, j] = _value(squares.field[square, _LEFT, :, j], w)
                n += 1
            at[turn, k] = n - 1
        if r > 0:
            # Along the lower side of the row before, which is this one's upper side.
            for j in range(row[r - 1], row[r]):
                n = at[turn, first[j] // squares.cell]
                lower[j] = base[turn, n, 1] + _sum(sums[turn, n, 1], (first[j] - start[turn, n]) * scale[turn, n])
            n = at[turn, width // squares.cell]
            end[r - 1, 2] = base[turn, n, 1] + _sum(sums[turn, n, 1], (width - start[turn, n]) * scale[turn, n])
        if r == height:
            break
        here = 0.0
        for j in range(row[r], row[r + 1] + 1):
            before, last = here, j == row[r + 1]
            c = width if last else first[j]
            n = at[turn, c // squares.cell]
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
                if lost[turn, n + 1] > lost[turn, at[turn, first[j - 1] // squares.cell]]:
                    area[j - 1] = left[j - 1] = np.nan


@compiled
def _value(a, x):  # type: ignore[no-untyped-def]
    return (((a[4] * x + a[3]) * x + a[2]) * x + a[1]) * x + a[0]


@compiled
def _sum(a, x):  # type: ignore[no-untyped-def]
    return ((((a[5] * x + a[4]) * x + a[3]) * x + a[2]) * x + a[1]) * x


@compiled
def area_at(squares, x, y):  # type: ignore[no-untyped-def]
    """Return the area of a pixel whose middle were at a place, (column, row), in square metres."""
    # A pixel's number is that of its first corner.
    return _field_at(squares, _AREA, x - 0.5, y - 0.5)


@compiled
def length_at(squares, x, y, dx, dy):  # type: ignore[no-untyped-def]
    """Return the length in metres of a line of (dx, dy) pixels with its middle at a place, (column, row)."""
    if dy == 0:
        return abs(dx) * _field_at(squares, _UPPER, x - 0.5, y)
    if dx == 0:
        return abs(dy) * _field_at(squares, _LEFT, x, y - 0.5)
    e, f, g = metric_at(squares, x, y)
    return np.sqrt(e * dx * dx + 2 * f * dx * dy + g * dy * dy)


@compiled
def metric_at(squares, x, y):  # type: ignore[no-untyped-def]
    """Return (e, f, g) for a place: (dx, dy) pixels there measure e dx dx + 2 f dx dy + g dy dy square metres."""
    upper, left = _field_at(squares, _UPPER, x - 0.5, y), _field_at(squares, _LEFT, x, y - 0.5)
    return upper * upper, _field_at(squares, _INNER, x - 0.5, y - 0.5), left * left


@compiled
def _field_at(squares, f, x, y):  # type: ignore[no-untyped-def]
    square = squares.cells[max(0, int(y)) // squares.cell, max(0, int(x)) // squares.cell]
    place = squares.place[square]
    w, u = (y - place[0]) / place[2], (x - place[1]) / place[2]
    total = 0.0
    for i in range(_DEGREE, -1, -1):
        total = total * w + _value(squares.field[square, f, i], u)
    return total
