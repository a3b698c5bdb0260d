"""Projection: polygons of a map in another CRS, still fitting each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import CRSError

from segkit.errors import GridError, UsageError
from segkit.io.grid import Grid, crs_name

# How far a straight edge may stray from where the map's edge lies: in pixels of the map, and what PROJ's inverses miss.
_STRAY_PIXELS = 0.001
_STRAY_METRES = 1e-4
_SHORT_PIXELS = 2
# What a CRS tears is never straight; so many cuts make any other edge so.
_MOST_PIECES = 64
_ROUNDS = 8
# Pieces of edges are short enough that a step in longitude says which way around the globe it goes.
_PIECE_METRES = 1e6
_EARTH_RADIUS_METRES = 6_371_007.0
# Longitudes are multiples of this, some 12 nanometres, so that adding or taking away a turn loses no bit.
_GRAIN = 2.0**-43
_ON_THE_LINE = 1e-9


class Projection:
    """Takes polygons of a map to another CRS.

    A vertex that polygons share is one place afterwards, too, and an edge that they share is cut at the same places
    where a straight line in the new CRS would stray from it. So a coverage stays one. Where longitudes end, polygons
    are cut in parts (RFC 7946, section 3.1.9), and what surrounds a pole is closed along it.

    Parameters
    ----------
    grid
        The map's.
    target
        As PROJ reads it: "EPSG:4326".
    decimals
        What coordinates are rounded to.

    Raises
    ------
    UsageError
        The map has no CRS, or `target` is none in which maps are drawn.
    """

    def __init__(self, grid: Grid, target: str, *, decimals: int | None = None) -> None:
        if grid.crs is None:
            raise UsageError(
                f"the map has no CRS, so it has no place in {target}; assign one first (gdal_edit.py -a_srs)"
            )
        try:
            self.crs = pyproj.CRS.from_user_input(target)
        except CRSError as error:
            raise UsageError(f"{target} is no CRS that PROJ knows ({error}); name one such as EPSG:4326") from error
        if not (self.crs.is_geographic or self.crs.is_projected):
            raise UsageError(f"{target} ({self.crs.type_name}) is no CRS to draw maps in; name one such as EPSG:4326")
        source = pyproj.CRS.from_wkt(grid.crs.to_wkt())
        self._names = crs_name(grid.crs), self.crs.to_string()
        self._transformer = pyproj.Transformer.from_crs(source, self.crs, always_xy=True)
        self._decimals = decimals
        self._pixel = min(grid.pixel_size)
        _, unit = grid.crs.units_factor
        metre = 1 / (unit * (_EARTH_RADIUS_METRES if source.is_geographic else 1))
        self._piece = _PIECE_METRES * metre
        self._stray = max(_STRAY_PIXELS * self._pixel, _STRAY_METRES * metre)
        self._half_here, self._half = _half_turn(source), _half_turn(self.crs)

    @property
    def splits(self) -> bool:
        """Whether polygons may come out in several parts."""
        return bool(self._half)

    def __call__(self, polygons: NDArray[Any]) -> NDArray[np.object_]:
        """Return the polygons (or multipolygons) in the new CRS; outer rings are and stay counter-clockwise.

        Raises
        ------
        GridError
            A polygon has no place there, or comes out torn or folded.
        """
        if not len(polygons):
            return np.asarray(polygons, dtype=object)
        polygons = shapely.orient_polygons(polygons)
        kind, vertices, (rings, *parts) = shapely.to_ragged_array(polygons, include_z=False)
        vertices, moved, rings = self._bent(vertices, rings)
        moved = self._rounded(moved)
        found = np.asarray(shapely.from_ragged_array(kind, moved, (rings, *parts)), dtype=object)
        if self._half:
            for number in self._across(moved, rings, parts):
                try:
                    found[number] = self._split(found[number])
                except shapely.errors.GEOSException:
                    self._refuse("comes out torn or folded", shapely.get_coordinates(polygons[number])[0])
        if self._decimals is not None:
            found = np.asarray(shapely.transform(found, lambda xy: np.round(xy, self._decimals)), dtype=object)
        each, owner = shapely.get_parts(found, return_index=True)
        torn = ~shapely.is_valid(each) | ~shapely.is_ccw(shapely.get_exterior_ring(each))
        if torn.any():
            self._refuse("comes out torn or folded", shapely.get_coordinates(polygons[owner[torn.argmax()]])[0])
        return found

    def _bent(
        self, vertices: NDArray[np.float64], rings: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Cut edges until they are straight lines in the new CRS; return vertices here, there, and starts of rings."""
        moved = self._moved(vertices)
        edge = np.delete(np.arange(len(vertices)), rings[1:] - 1)
        for _ in range(_ROUNDS):
            # Seen from the same end whichever neighbour asks, so that both get the same bits.
            here, there = vertices[edge], vertices[edge + 1]
            turned = (there[:, 0] < here[:, 0]) | ((there[:, 0] == here[:, 0]) & (there[:, 1] < here[:, 1]))
            first, last = edge + turned, edge + ~turned
            count = self._pieces(vertices[first], vertices[last], moved[first], moved[last])
            cut = count > 1
            if not cut.any():
                break
            pieces = np.ones(len(vertices), dtype=np.int64)
            pieces[edge] = count
            place = np.concatenate(([0], np.cumsum(pieces)))
            of = np.repeat(np.arange(len(vertices)), pieces)
            number = np.arange(place[-1]) - place[of]
            new = np.flatnonzero(number)
            at = np.searchsorted(edge, of[new])
            share = np.where(turned[at], count[at] - number[new], number[new]) / count[at]
            start, end = vertices[first[at]], vertices[last[at]]
            vertices, moved = vertices[of], moved[of]
            vertices[new] = start + share[:, None] * (end - start)
            moved[new] = self._moved(vertices[new])
            rings = place[rings]
            edge = np.flatnonzero(pieces[of] > 1)
        return vertices, moved, rings

    def _pieces(
        self,
        here: NDArray[np.float64],
        there: NDArray[np.float64],
        here_moved: NDArray[np.float64],
        there_moved: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """In how many pieces edges are to be cut."""
        length = np.hypot(*(there - here).T)
        across = (there - here)[:, ::-1] * (1, -1) / length[:, None]
        step = self._on_globe(there_moved - here_moved, self._half)
        stray = np.zeros(len(here))
        for share in (0.5, 0.25, 0.75):
            # A short edge bends to one side only.
            seen = np.flatnonzero((length > _SHORT_PIXELS * self._pixel) | (share == 0.5))
            # Where the straight line is in the map.
            x, y = (here_moved[seen] + share * step[seen]).T
            back = np.column_stack(self._transformer.transform(x, y, direction="INVERSE"))
            with np.errstate(invalid="ignore"):  # infinite where the map's CRS has no place
                off = np.abs((self._on_globe(back - here[seen], self._half_here) * across[seen]).sum(axis=1))
            stray[seen] = np.fmax(stray[seen], np.where(np.isfinite(off), off, 0))
        # A piece of n strays by the square of n less.
        bent = np.clip(np.ceil(np.sqrt(stray / self._stray)), 1, _MOST_PIECES)
        bent[length < self._stray] = 1
        return np.maximum(bent, np.ceil(length / self._piece)).astype(np.int64)  # type: ignore[no-any-return]

    def _moved(self, vertices: NDArray[np.float64]) -> NDArray[np.float64]:
        """Take vertices to the new CRS, (n, 2)."""
        moved = np.column_stack(self._transformer.transform(*vertices.T))
        lost = ~np.isfinite(moved).all(axis=1)
        if lost.any():
            self._refuse("has no place", vertices[lost.argmax()])
        return moved

    def _rounded(self, moved: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._decimals is not None:
            moved = np.round(moved, self._decimals)
        if self._half:
            x = np.round(moved[:, 0] / _GRAIN) * _GRAIN
            moved[:, 0] = np.where(np.abs(np.abs(x) - self._half) < _ON_THE_LINE, np.copysign(self._half, x), x)
        return moved

    @staticmethod
    def _on_globe(steps: NDArray[np.float64], half: float) -> NDArray[np.float64]:
        """Take the short way around the globe, where x is a longitude."""
        if half:
            steps[:, 0] -= 2 * half * np.rint(steps[:, 0] / (2 * half))
        return steps

    def _across(
        self, moved: NDArray[np.float64], rings: NDArray[np.int64], parts: Sequence[NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        """Numbers of the polygons that reach across the line where longitudes end, or to a pole."""
        off = np.abs(moved[:, 0]) > self._half
        off |= np.abs(moved[:, 1]) > self._half / 2 - _ON_THE_LINE
        off[:-1] |= np.abs(np.diff(moved[:, 0])) > self._half
        number = np.flatnonzero(off)
        for starts in (rings, *parts):
            number = np.unique(np.searchsorted(starts, number, side="right") - 1)
        return number

    def _split(self, polygon: Any) -> Any:
        """Cut a polygon whose longitudes run on at the line where longitudes end."""
        whole = []
        for part in shapely.get_parts(polygon):
            outer, *holes = (self._flat(ring, hole=number > 0) for number, ring in enumerate(shapely.get_rings(part)))
            whole.append(shapely.difference(outer, shapely.union_all(holes)) if holes else outer)
        pieces = [piece for one in whole for piece in shapely.get_parts(one) if piece.geom_type == "Polygon"]
        pieces = shapely.orient_polygons(pieces)
        return pieces[0] if len(pieces) == 1 else shapely.multipolygons(pieces)

    def _flat(self, ring: Any, *, hole: bool) -> Any:
        """Return what a ring encloses, in parts between the ends of longitudes."""
        turn, pole = 2 * self._half, self._half / 2
        vertices = self._around_poles(shapely.get_coordinates(ring)[:-1])
        x, y = vertices.T
        steps = self._on_globe(np.column_stack((np.roll(x, -1) - x, y)), self._half)[:, 0]
        # Along a pole the inside, on the left, is in the west at the north pole and in the east at the south pole.
        at_pole = (np.abs(y) == pole) & (np.abs(np.roll(y, -1)) == pole)
        steps = np.where(at_pole, np.where(y > 0, -(-steps % turn), steps % turn), steps)
        x = x[0] + np.concatenate(([0], np.cumsum(steps)))
        line = np.column_stack((x, np.append(y, y[0])))
        if around := np.rint((x[-1] - x[0]) / turn):
            # What surrounds a pole is closed along it: eastwards, the north pole is on the left.
            end = pole if (around > 0) != hole else -pole
            line = np.vstack((line, (x[-1], end), (x[0], end), line[0]))
        line = self._crossed(line)
        polygon = shapely.Polygon(line)
        first, last = np.floor((line[:, 0].min() + self._half) / turn), np.ceil((line[:, 0].max() - self._half) / turn)
        pieces = []
        for number in range(int(first), int(last) + 1):
            strip = shapely.box(number * turn - self._half, -turn, number * turn + self._half, turn)
            piece = shapely.intersection(polygon, strip)
            pieces.append(shapely.transform(piece, lambda xy, shift=number * turn: xy - (shift, 0)))
        return shapely.union_all(pieces)

    def _around_poles(self, vertices: NDArray[np.float64]) -> NDArray[np.float64]:
        """Make two vertices of each pole in an open ring: one below the vertex before, one below the vertex after."""
        pole = self._half / 2
        x, y = vertices.T
        near = np.copysign(pole, y)
        at_pole = np.abs(y - near) < _ON_THE_LINE
        vertices[at_pole, 1] = near[at_pole]
        following = np.roll(np.arange(len(x)), -1)
        alone = np.flatnonzero(at_pole & ~np.roll(at_pole, 1) & ~np.roll(at_pole, -1))
        steps = np.abs(self._on_globe(vertices[following] - vertices, self._half)[:, 0])
        through = np.flatnonzero(
            (steps > self._half - 1e-6) & (np.abs(y) > 0.8 * pole) & ~at_pole & ~at_pole[following]
        )
        if not (alone.size or through.size):
            return vertices
        before, after = x[alone - 1], x[following[alone]]
        pairs = [
            np.column_stack((after, near[alone])),
            np.column_stack((x[through], near[through])),
            np.column_stack((x[following[through]], near[through])),
        ]
        vertices[alone, 0] = before
        return np.insert(vertices, np.concatenate((alone, through, through)) + 1, np.vstack(pairs), axis=0)

    def _crossed(self, line: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give a line vertices where it crosses an end of longitudes, the same ones in whichever direction it runs."""
        turn = 2 * self._half
        low, high = np.minimum(line[:-1, 0], line[1:, 0]), np.maximum(line[:-1, 0], line[1:, 0])
        first = (np.floor((low + self._half) / turn) + 0.5) * turn
        places: list[int] = []
        crossings: list[tuple[float, float]] = []
        for edge in np.flatnonzero(first < high).tolist():
            west, east = sorted(line[edge : edge + 2].tolist())
            ends = np.arange(first[edge], high[edge], turn)
            new = [(x, west[1] + (east[1] - west[1]) * ((x - west[0]) / (east[0] - west[0]))) for x in ends.tolist()]
            places += [edge + 1] * len(new)
            crossings += new if line[edge, 0] < line[edge + 1, 0] else new[::-1]
        return np.insert(line, places, crossings, axis=0) if places else line

    def _refuse(self, how: str, vertex: NDArray[np.float64]) -> NoReturn:
        here, there = self._names
        raise GridError(
            f"the polygon at {vertex[0]:.10g}, {vertex[1]:.10g} ({here}) {how} in {there}; "
            "choose a CRS that covers the whole map, or keep the map's own"
        )


def crs_of(grid: Grid) -> pyproj.CRS | None:
    """Return a grid's CRS as pyproj has it."""
    return None if grid.crs is None else pyproj.CRS.from_wkt(grid.crs.to_wkt())


def _half_turn(crs: pyproj.CRS) -> float:
    """Half a turn in the unit of longitudes, 180 or 200; 0 where coordinates are no longitudes."""
    return float(round(np.pi / crs.axis_info[0].unit_conversion_factor, 6)) if crs.is_geographic else 0.0
