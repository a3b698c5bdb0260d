"""Transform polygons to another CRS so that neighbours still share their borders."""

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

# Maximum distance between a straight edge and the true edge: in map pixels, but not below the error of PROJ's inverses.
_MAX_DEVIATION_PIXELS = 0.001
_MAX_DEVIATION_METRES = 1e-4
_SHORT_EDGE_PIXELS = 2
# Limits of the subdivision of an edge. Only where a CRS is discontinuous would an edge need more.
_MAX_PIECES = 64
_MAX_ROUNDS = 8
# Pieces are short enough that a step in longitude is unambiguous around the globe.
_MAX_PIECE_METRES = 1e6
_EARTH_RADIUS_METRES = 6_371_007.0
# Longitudes are rounded to multiples of this, about 12 nm, so that adding or subtracting 360 degrees is exact.
_LONGITUDE_STEP = 2.0**-43
_EDGE_TOLERANCE = 1e-9


class Projection:
    """Transforms polygons of a map to another CRS; a coverage stays a coverage.

    A vertex shared by two polygons stays one point. If a straight edge would deviate from the true line in the new CRS,
    vertices are inserted, the same ones for both polygons. Polygons are split at the antimeridian (RFC 7946, section
    3.1.9), and polygons around a pole are closed along it.

    Parameters
    ----------
    grid
        The map's grid.
    target
        A CRS in any form that PROJ accepts, such as "EPSG:4326".
    decimals
        Decimals to which coordinates are rounded.

    Raises
    ------
    UsageError
        The map has no CRS, or `target` is not a geographic or projected CRS.
    """

    def __init__(self, grid: Grid, target: str, *, decimals: int | None = None) -> None:
        if grid.crs is None:
            raise UsageError(
                f"the map has no CRS, so it cannot be transformed to {target}; assign one first (gdal_edit.py -a_srs)"
            )
        try:
            self.crs = pyproj.CRS.from_user_input(target)
        except CRSError as error:
            raise UsageError(f"{target} is not a CRS that PROJ knows ({error}); give one such as EPSG:4326") from error
        if not (self.crs.is_geographic or self.crs.is_projected):
            raise UsageError(
                f"{target} ({self.crs.type_name}) is neither a geographic nor a projected CRS; "
                "give one such as EPSG:4326"
            )
        source = pyproj.CRS.from_wkt(grid.crs.to_wkt())
        self._names = crs_name(grid.crs), self.crs.to_string()
        self._transformer = pyproj.Transformer.from_crs(source, self.crs, always_xy=True)
        self._decimals = decimals
        self._pixel = min(grid.pixel_size)
        _, unit = grid.crs.units_factor
        metre = 1 / (unit * (_EARTH_RADIUS_METRES if source.is_geographic else 1))
        self._max_piece = _MAX_PIECE_METRES * metre
        self._max_deviation = max(_MAX_DEVIATION_PIXELS * self._pixel, _MAX_DEVIATION_METRES * metre)
        self._source_half_turn, self._half_turn = _half_turn_of(source), _half_turn_of(self.crs)

    @property
    def splits(self) -> bool:
        """Whether a polygon may become several parts."""
        return bool(self._half_turn)

    def __call__(self, polygons: NDArray[Any]) -> NDArray[np.object_]:
        """Return the polygons (or multipolygons) in the new CRS; outer rings are counter-clockwise.

        Raises
        ------
        GridError
            A polygon has no coordinates in the new CRS, or becomes invalid.
        """
        if not len(polygons):
            return np.asarray(polygons, dtype=object)
        polygons = shapely.orient_polygons(polygons)
        kind, vertices, (rings, *parts) = shapely.to_ragged_array(polygons, include_z=False)
        vertices, transformed, rings = self._densify(vertices, rings)
        transformed = self._round(transformed)
        found = np.asarray(shapely.from_ragged_array(kind, transformed, (rings, *parts)), dtype=object)
        if self._half_turn:
            for number in self._find_crossing(transformed, rings, parts):
                try:
                    found[number] = self._split(found[number])
                except shapely.errors.GEOSException:
                    self._refuse("becomes invalid", shapely.get_coordinates(polygons[number])[0])
        if self._decimals is not None:
            found = np.asarray(shapely.transform(found, lambda xy: np.round(xy, self._decimals)), dtype=object)
        each, owner = shapely.get_parts(found, return_index=True)
        torn = ~shapely.is_valid(each) | ~shapely.is_ccw(shapely.get_exterior_ring(each))
        if torn.any():
            self._refuse("becomes invalid", shapely.get_coordinates(polygons[owner[torn.argmax()]])[0])
        return found

    def transform_points(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return points (n, 2) of the map's CRS in the new one; longitudes are from -180 to 180 degrees.

        Raises
        ------
        GridError
            A point has no coordinates in the new CRS.
        """
        transformed = self._transform(points)
        if self._half_turn:
            turn = 2 * self._half_turn
            x = transformed[:, 0]
            transformed[:, 0] = np.where(np.abs(x) > self._half_turn, x - turn * np.rint(x / turn), x)
        return transformed if self._decimals is None else np.round(transformed, self._decimals)

    def _densify(
        self, vertices: NDArray[np.float64], rings: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Split edges until they are straight lines in the new CRS.

        Returns the vertices in both CRSs, (n, 2), and the start of each ring.
        """
        transformed = self._transform(vertices)
        edge = np.delete(np.arange(len(vertices)), rings[1:] - 1)
        for _ in range(_MAX_ROUNDS):
            # Both neighbours compute from the same end of the edge, so that they get identical coordinates.
            start, end = vertices[edge], vertices[edge + 1]
            backwards = (end[:, 0] < start[:, 0]) | ((end[:, 0] == start[:, 0]) & (end[:, 1] < start[:, 1]))
            first, last = edge + backwards, edge + ~backwards
            count = self._count_pieces(vertices[first], vertices[last], transformed[first], transformed[last])
            cut = count > 1
            if not cut.any():
                break
            pieces = np.ones(len(vertices), dtype=np.int64)
            pieces[edge] = count
            offset = np.concatenate(([0], np.cumsum(pieces)))
            source = np.repeat(np.arange(len(vertices)), pieces)
            number = np.arange(offset[-1]) - offset[source]
            new = np.flatnonzero(number)
            at = np.searchsorted(edge, source[new])
            share = np.where(backwards[at], count[at] - number[new], number[new]) / count[at]
            start, end = vertices[first[at]], vertices[last[at]]
            vertices, transformed = vertices[source], transformed[source]
            vertices[new] = start + share[:, None] * (end - start)
            transformed[new] = self._transform(vertices[new])
            rings = offset[rings]
            edge = np.flatnonzero(pieces[source] > 1)
        return vertices, transformed, rings

    def _count_pieces(
        self,
        start: NDArray[np.float64],
        end: NDArray[np.float64],
        start_transformed: NDArray[np.float64],
        end_transformed: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """Return the number of pieces that each edge needs, int64 (n,)."""
        length = np.hypot(*(end - start).T)
        normal = (end - start)[:, ::-1] * (1, -1) / length[:, None]
        step = self._shortest_steps(end_transformed - start_transformed, self._half_turn)
        deviation = np.zeros(len(start))
        for share in (0.5, 0.25, 0.75):
            # A short edge bends to one side only, so its middle is enough.
            measured = np.flatnonzero((length > _SHORT_EDGE_PIXELS * self._pixel) | (share == 0.5))
            # The same point of the straight line, back in the map's CRS.
            x, y = (start_transformed[measured] + share * step[measured]).T
            back = np.column_stack(self._transformer.transform(x, y, direction="INVERSE"))
            with np.errstate(invalid="ignore"):  # infinite if the map's CRS has no coordinates there
                off = np.abs(
                    (self._shortest_steps(back - start[measured], self._source_half_turn) * normal[measured]).sum(
                        axis=1
                    )
                )
            deviation[measured] = np.fmax(deviation[measured], np.where(np.isfinite(off), off, 0))
        # With n pieces, the deviation is n^2 times smaller.
        pieces = np.clip(np.ceil(np.sqrt(deviation / self._max_deviation)), 1, _MAX_PIECES)
        pieces[length < self._max_deviation] = 1
        return np.maximum(pieces, np.ceil(length / self._max_piece)).astype(np.int64)  # type: ignore[no-any-return]

    def _transform(self, vertices: NDArray[np.float64]) -> NDArray[np.float64]:
        """Transform vertices (n, 2) to the new CRS."""
        transformed = np.column_stack(self._transformer.transform(*vertices.T))
        lost = ~np.isfinite(transformed).all(axis=1)
        if lost.any():
            self._refuse("has no coordinates", vertices[lost.argmax()])
        return transformed

    def _round(self, transformed: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._decimals is not None:
            transformed = np.round(transformed, self._decimals)
        if self._half_turn:
            x = np.round(transformed[:, 0] / _LONGITUDE_STEP) * _LONGITUDE_STEP
            transformed[:, 0] = np.where(
                np.abs(np.abs(x) - self._half_turn) < _EDGE_TOLERANCE, np.copysign(self._half_turn, x), x
            )
        return transformed

    @staticmethod
    def _shortest_steps(steps: NDArray[np.float64], half: float) -> NDArray[np.float64]:
        """Reduce steps in longitude to the shorter way around the globe."""
        if half:
            steps[:, 0] -= 2 * half * np.rint(steps[:, 0] / (2 * half))
        return steps

    def _find_crossing(
        self, transformed: NDArray[np.float64], rings: NDArray[np.int64], parts: Sequence[NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        """Return the indices of polygons that cross the antimeridian or touch a pole."""
        off = np.abs(transformed[:, 0]) > self._half_turn
        off |= np.abs(transformed[:, 1]) > self._half_turn / 2 - _EDGE_TOLERANCE
        off[:-1] |= np.abs(np.diff(transformed[:, 0])) > self._half_turn
        number = np.flatnonzero(off)
        for starts in (rings, *parts):
            number = np.unique(np.searchsorted(starts, number, side="right") - 1)
        return number

    def _split(self, polygon: Any) -> Any:
        """Split a polygon at the antimeridian."""
        outlines = []
        for part in shapely.get_parts(polygon):
            outer, *holes = (self._unwrap(ring, hole=number > 0) for number, ring in enumerate(shapely.get_rings(part)))
            outlines.append(shapely.difference(outer, shapely.union_all(holes)) if holes else outer)
        pieces = [piece for one in outlines for piece in shapely.get_parts(one) if piece.geom_type == "Polygon"]
        pieces = shapely.orient_polygons(pieces)
        return pieces[0] if len(pieces) == 1 else shapely.multipolygons(pieces)

    def _unwrap(self, ring: Any, *, hole: bool) -> Any:
        """Return the area inside a ring, split at the antimeridian."""
        turn, pole = 2 * self._half_turn, self._half_turn / 2
        vertices = self._duplicate_pole_vertices(shapely.get_coordinates(ring)[:-1])
        x, y = vertices.T
        steps = self._shortest_steps(np.column_stack((np.roll(x, -1) - x, y)), self._half_turn)[:, 0]
        # The inside is on the left, so a step along a pole goes west at the north pole and east at the south pole.
        at_pole = (np.abs(y) == pole) & (np.abs(np.roll(y, -1)) == pole)
        steps = np.where(at_pole, np.where(y > 0, -(-steps % turn), steps % turn), steps)
        x = x[0] + np.concatenate(([0], np.cumsum(steps)))
        line = np.column_stack((x, np.append(y, y[0])))
        if turns := np.rint((x[-1] - x[0]) / turn):
            # A ring around a pole is closed along it; going east, the north pole is on the left.
            end = pole if (turns > 0) != hole else -pole
            line = np.vstack((line, (x[-1], end), (x[0], end), line[0]))
        line = self._insert_crossings(line)
        polygon = shapely.Polygon(line)
        first, last = (
            np.floor((line[:, 0].min() + self._half_turn) / turn),
            np.ceil((line[:, 0].max() - self._half_turn) / turn),
        )
        pieces = []
        for number in range(int(first), int(last) + 1):
            strip = shapely.box(number * turn - self._half_turn, -turn, number * turn + self._half_turn, turn)
            piece = shapely.intersection(polygon, strip)
            pieces.append(shapely.transform(piece, lambda xy, shift=number * turn: xy - (shift, 0)))
        return shapely.union_all(pieces)

    def _duplicate_pole_vertices(self, vertices: NDArray[np.float64]) -> NDArray[np.float64]:
        """Replace each vertex at a pole by two, at the longitudes of the vertices before and after it."""
        pole = self._half_turn / 2
        x, y = vertices.T
        near = np.copysign(pole, y)
        at_pole = np.abs(y - near) < _EDGE_TOLERANCE
        vertices[at_pole, 1] = near[at_pole]
        following = np.roll(np.arange(len(x)), -1)
        alone = np.flatnonzero(at_pole & ~np.roll(at_pole, 1) & ~np.roll(at_pole, -1))
        steps = np.abs(self._shortest_steps(vertices[following] - vertices, self._half_turn)[:, 0])
        through = np.flatnonzero(
            (steps > self._half_turn - 1e-6) & (np.abs(y) > 0.8 * pole) & ~at_pole & ~at_pole[following]
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

    def _insert_crossings(self, line: NDArray[np.float64]) -> NDArray[np.float64]:
        """Insert vertices where a line crosses the antimeridian; they do not depend on the line's direction."""
        turn = 2 * self._half_turn
        low, high = np.minimum(line[:-1, 0], line[1:, 0]), np.maximum(line[:-1, 0], line[1:, 0])
        first = (np.floor((low + self._half_turn) / turn) + 0.5) * turn
        positions: list[int] = []
        crossings: list[tuple[float, float]] = []
        for edge in np.flatnonzero(first < high).tolist():
            west, east = sorted(line[edge : edge + 2].tolist())
            ends = np.arange(first[edge], high[edge], turn)
            new = [(x, west[1] + (east[1] - west[1]) * ((x - west[0]) / (east[0] - west[0]))) for x in ends.tolist()]
            positions += [edge + 1] * len(new)
            crossings += new if line[edge, 0] < line[edge + 1, 0] else new[::-1]
        return np.insert(line, positions, crossings, axis=0) if positions else line

    def _refuse(self, problem: str, vertex: NDArray[np.float64]) -> NoReturn:
        source, target = self._names
        raise GridError(
            f"the polygon at {vertex[0]:.10g}, {vertex[1]:.10g} ({source}) {problem} in {target}; "
            "choose a CRS that covers the whole map, or keep the map's own"
        )


def crs_of(grid: Grid) -> pyproj.CRS | None:
    """Return a grid's CRS as a pyproj CRS."""
    return None if grid.crs is None else pyproj.CRS.from_wkt(grid.crs.to_wkt())


def _half_turn_of(crs: pyproj.CRS) -> float:
    """Return half a turn in the unit of longitudes, 180 or 200; 0 if the CRS is not geographic."""
    return float(round(np.pi / crs.axis_info[0].unit_conversion_factor, 6)) if crs.is_geographic else 0.0
