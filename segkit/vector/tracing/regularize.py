"""Choose right-angled outlines for the objects of some classes, before the rows around them are traced.

A first pass traces the objects of these classes alone. An object's outline is replaced (`right_angles`) if everything
between the old and the new one belongs to the object or to the one region around it. These pixels and those that the
new outline touches are its *corridor*. No other border touches the corridor, corridors of two outlines do not meet, and
the corners of the pixel grid in it count as vertices when other borders are simplified. So they stay outside: a border
that entered the corridor would do so across one of its pixel sides, whose ends are such corners (see `simplify`).

Rows are passed on when all outlines near them are chosen.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from segkit.io.grid import Grid
from segkit.vector.geometry import concatenate_polygons
from segkit.vector.tracing.generalize import NewOutlines
from segkit.vector.tracing.jit import compiled
from segkit.vector.tracing.pixel_measures import PixelMeasures, frame_at, unmeasured_pixels
from segkit.vector.tracing.right_angles import fit_outline, signed_area
from segkit.vector.tracing.rings import Polygons
from segkit.vector.tracing.runs import HeldRows, Runs, in_parts, read_pixels
from segkit.vector.tracing.tracer import Tracer

# Rows are held back for objects of this size; larger ones keep their outline.
MAX_OBJECT_PIXELS = 1024
# A new outline is at most so far from the old one; if none is, and borders may be simplified by more, by that.
MIN_TOLERANCE_PIXELS = 2.0
# Rows are taken in parts of at most this height, so that what is held back has a limit.
_PART_ROWS = 256
_ROUNDING = 1e-9


@dataclass
class OutlineCounts:
    """Numbers of objects with and without a right-angled outline so far."""

    right_angled: int = 0
    kept: int = 0


class Regularizer:
    """Chooses new outlines while rows pass through it, and hands them to the tracer that follows.

    Parameters
    ----------
    tolerance
        Maximum distance between the old and the new outline, in pixels (of their longer side), or in metres if
        `metres`; not below `MIN_TOLERANCE_PIXELS`.
    counts
        Updated with each object.
    """

    def __init__(
        self, grid: Grid, pixel_measures: PixelMeasures, tolerance: float, counts: OutlineCounts, *, metres: bool
    ) -> None:
        self._width, self._height = grid.width, grid.height
        self._counts = counts
        self._tracer = Tracer(grid.width, Affine.identity(), unmeasured_pixels())
        a, b, _, d, e, _ = grid.transform[:6]
        self._flat = (a * a + d * d, a * b + d * e, b * b + e * e)
        self._measures, self._tolerance, self._metres = pixel_measures, tolerance, metres
        sides = frame_at(pixel_measures, grid.width / 2, grid.height / 2, self._flat)
        in_pixels = _in_pixels(tolerance, metres, sides[3]) / min(sides[0], sides[2])
        # Rows that a new outline may lie beyond the old one, with one for what varies within the map.
        self._margin = math.ceil(in_pixels) + 2
        lines = MAX_OBJECT_PIXELS + 2 * _PART_ROWS + 2 * self._margin
        # One bit for each corner of the pixel grid, set in corridors; the line of corners n is in row n modulo lines.
        self._bits = np.zeros((lines, (grid.width + 64) // 64), dtype=np.uint64)
        self._held = HeldRows()
        self._waiting: list[Polygons] = []
        # For the tracer: corridors by line, and new outlines by where their arc ends.
        self._corridors: dict[int, NDArray[np.uint64]] = {}
        self._outlines: list[tuple[int, NDArray[np.float64]]] = []

    def sift(self, runs: Iterator[Runs], chosen: Callable[[], NDArray[np.bool_]]) -> Iterator[Runs]:
        """Yield the rows unchanged, from top to bottom, each when the outlines near it are chosen.

        Parameters
        ----------
        chosen
            Returns whether outlines of each class may change, bool (classes,).
        """
        for part in in_parts(runs, _PART_ROWS):
            self._held.add(part)
            seen = part.top + part.height
            self._waiting.append(self._tracer.trace(part, chosen()))
            if seen == self._height:
                self._waiting.append(self._tracer.finish(seen))
            self._choose(seen, chosen())
            if (rows := self._held.release(self._finish_lines(seen))) is not None:
                yield rows

    def take_outlines(self, top: int, bottom: int) -> NewOutlines:
        """Return the new outlines and corridors on the lines of corners from `top` up to `bottom`, once."""
        corridors = np.zeros((bottom - top, self._bits.shape[1]), dtype=np.uint64)
        for line in range(top, bottom):
            if (row := self._corridors.pop(line, None)) is not None:
                corridors[line - top] = row
        taken = []
        while self._outlines and self._outlines[0][0] < bottom * (self._width + 1):
            taken.append(heapq.heappop(self._outlines))
        return NewOutlines(
            corridors,
            np.array([end for end, _ in taken], dtype=np.int64),
            np.cumsum([0, *(len(corners) for _, corners in taken)]),
            np.concatenate([np.empty((0, 2)), *(corners for _, corners in taken)]),
        )

    def _choose(self, seen: int, chosen: NDArray[np.bool_]) -> None:
        """Choose outlines for the waiting objects around which all rows were seen."""
        waiting = concatenate_polygons(self._waiting)
        _, bottom = _extent(waiting)
        ready = len(bottom)
        if seen < self._height:
            ready = int(np.searchsorted(bottom, seen - self._margin, side="right"))
        self._waiting = [waiting.take(ready, len(bottom))]
        if not ready:
            return
        objects, runs = waiting.take(0, ready), self._held.all()
        end, start = np.empty(objects.ring.size, dtype=np.int64), np.zeros(objects.ring.size, dtype=np.int64)
        corners = np.empty(objects.vertices.shape)
        rings, right_angled = _choose_outlines(
            objects.vertices, objects.ring, objects.polygon,
            runs.row, runs.first, runs.class_index, runs.top, runs.width, chosen,
            self._measures, self._flat, self._tolerance, self._metres, self._margin, self._bits,
            end, start, corners,
        )  # fmt: skip
        for k in range(rings):
            heapq.heappush(self._outlines, (int(end[k]), corners[start[k] : start[k + 1]].copy()))
        self._counts.right_angled += right_angled
        self._counts.kept += ready - right_angled

    def _finish_lines(self, seen: int) -> int:
        """Keep the corridors on lines that no other can reach any more; returns the row up to which there are none."""
        lines = self._height + 1
        if seen < self._height:
            first, bottom = _extent(self._waiting[0])
            open_row = max(self._tracer.first_open_row(seen), seen - MAX_OBJECT_PIXELS)
            lines = int(min([open_row, *first[bottom - first <= MAX_OBJECT_PIXELS]])) - self._margin
        for line in range(self._held.passed, lines):
            row = self._bits[line % len(self._bits)]
            if row.any():
                self._corridors[line] = row.copy()
                row[:] = 0
        return min(lines, self._height)


def _extent(polygons: Polygons) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first row of each polygon, and the row after its last one."""
    if not len(polygons.class_index):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    y, outer = polygons.vertices[:, 1], polygons.polygon[:-1]
    low, high = (reduce(y, polygons.ring[:-1])[outer] for reduce in (np.minimum.reduceat, np.maximum.reduceat))
    return low.astype(np.int64), high.astype(np.int64)


@compiled
def _in_pixels(tolerance, metres, side):
    return max(tolerance / side if metres else tolerance, MIN_TOLERANCE_PIXELS)


@compiled
def _choose_outlines(
    vertices, ring, polygon, row, first, class_index, top, width, chosen, pixel_measures, flat, tolerance, metres,
    margin, bits, end, start, corners,
):  # fmt: skip
    """Choose outlines for objects; return the numbers of new rings and of objects whose rings are all new.

    `end`, `start` and `corners` are filled as in `NewOutlines`.
    """
    rings = right_angled = 0
    for number in range(polygon.size - 1):
        direction, all_new = np.nan, True
        for k in range(polygon[number], polygon[number + 1]):
            x, y = vertices[ring[k] : ring[k + 1] - 1, 0].copy(), vertices[ring[k] : ring[k + 1] - 1, 1].copy()
            left, upper = int(x.min()) - margin - 1, int(y.min()) - margin - 1
            columns, rows = int(x.max()) + margin + 1 - left, int(y.max()) + margin + 1 - upper
            if max(columns, rows) - 2 * margin - 2 > MAX_OBJECT_PIXELS:
                all_new = False
                break
            pixels = read_pixels(row, first, class_index, top, width, left, upper, columns, rows)
            # The first pixel of the ring in raster order, and the one above it.
            at = int(np.argmin(y * (width + 1.0) + x))
            c, r = int(x[at]) - left, int(y[at]) - upper
            inner, outer = pixels[r, c], pixels[r - 1, c]
            if k > polygon[number] and inner >= 0 and chosen[inner]:
                continue  # the outline of an object in a hole is that object's
            a, b, d, side = frame_at(pixel_measures, x.mean(), y.mean(), flat)
            frame, largest = (a, b, d), _in_pixels(tolerance, metres, side)
            direction, newx, newy = fit_outline(x, y, frame, MIN_TOLERANCE_PIXELS, direction)
            if newx.size == 0 and largest > MIN_TOLERANCE_PIXELS:
                direction, newx, newy = fit_outline(x, y, frame, largest, direction)
            fits = 0 < newx.size <= x.size and inner >= 0 and outer >= 0
            # The rows around it were seen and are still held.
            fits = fits and newx.min() >= left + 2 and newx.max() <= left + columns - 2
            fits = fits and newy.min() >= upper + 2 and newy.max() <= upper + rows - 2
            if not (
                fits and _claim(x - left, y - upper, newx - left, newy - upper, pixels, inner, outer, left, upper, bits)
            ):
                all_new = False
                continue
            at = int(np.argmax(y * (width + 1.0) + x))
            end[rings] = int(y[at]) * (width + 1) + int(x[at])
            start[rings + 1] = start[rings] + newx.size
            # As the arc of this ring runs: upwards from its lower right corner.
            backwards = signed_area(newx, newy) > 0
            for m in range(newx.size):
                n = start[rings] + (newx.size - 1 - m if backwards else m)
                corners[n, 0], corners[n, 1] = newx[m], newy[m]
            rings += 1
        right_angled += all_new
    return rings, right_angled


@compiled
def _claim(x, y, newx, newy, pixels, inner, outer, left, upper, bits):
    """Mark the corridor of a new outline, in a window, if nothing else touches it; return whether this was so."""
    rows, columns = pixels.shape
    inside = _pixels_inside(x, y, rows, columns)
    corridor = np.zeros((rows + 1, columns + 1), dtype=np.bool_)
    changed = inside != _pixels_inside(newx, newy, rows, columns)
    for r in range(rows):
        for c in range(columns):
            if changed[r, c]:
                corridor[r, c] = corridor[r, c + 1] = corridor[r + 1, c] = corridor[r + 1, c + 1] = True
    n = newx.size
    for k in range(n):
        m = k + 1 if k + 1 < n else 0
        _mark_touched(newx[k], newy[k], newx[m], newy[m], corridor)
    for r in range(rows + 1):
        for c in range(columns + 1):
            if not corridor[r, c]:
                continue
            if r == 0 or c == 0 or r == rows or c == columns:
                return False
            for i in range(r - 1, r + 1):
                for j in range(c - 1, c + 1):
                    if pixels[i, j] != (inner if inside[i, j] else outer):
                        return False
            if (
                inside[r, c] == inside[r - 1, c - 1]
                and inside[r, c - 1] == inside[r - 1, c]
                and inside[r, c] != inside[r - 1, c]
            ):
                return False  # the outline touches itself
            if bits[(upper + r) % len(bits), (left + c) >> 6] >> np.uint64((left + c) & 63) & np.uint64(1):
                return False
    for r in range(rows + 1):
        for c in range(columns + 1):
            if corridor[r, c]:
                bits[(upper + r) % len(bits), (left + c) >> 6] |= np.uint64(1) << np.uint64((left + c) & 63)
    return True


@compiled
def _pixels_inside(x, y, rows, columns):
    """Return whether the centre of each pixel is inside an outline, bool (rows, columns)."""
    inside = np.zeros((rows, columns), dtype=np.bool_)
    n = x.size
    for k in range(n):
        m = k + 1 if k + 1 < n else 0
        low, high = min(y[k], y[m]), max(y[k], y[m])
        for r in range(max(0, int(np.ceil(low - 0.5))), min(rows, int(np.ceil(high - 0.5)))):
            crossing = x[k] + (x[m] - x[k]) * ((r + 0.5 - y[k]) / (y[m] - y[k]))
            c = max(0, int(np.ceil(crossing - 0.5)))
            if c < columns:
                inside[r, c] = not inside[r, c]
    for r in range(rows):
        for c in range(1, columns):
            inside[r, c] = inside[r, c] != inside[r, c - 1]
    return inside


@compiled
def _mark_touched(x0, y0, x1, y1, corridor):
    """Mark the corners of the pixels that an edge crosses, or of the pixel sides along which it runs."""
    if y0 > y1:
        x0, y0, x1, y1 = x1, y1, x0, y0
    for r in range(_floor(y0), max(_ceil(y1), _floor(y0) + 1)):
        low, high = max(y0, float(r)), min(y1, r + 1.0)
        one = x0 + (x1 - x0) * ((low - y0) / (y1 - y0)) if y1 > y0 else x0
        other = x0 + (x1 - x0) * ((high - y0) / (y1 - y0)) if y1 > y0 else x1
        for c in range(_floor(min(one, other)), _ceil(max(one, other)) + 1):
            for line in range(_floor(low), _ceil(high) + 1):
                corridor[line, c] = True


@compiled
def _floor(x):
    """Round down, with room for rounding errors except at whole numbers."""
    return int(x) if x == np.floor(x) else int(np.floor(x - _ROUNDING))


@compiled
def _ceil(x):
    return int(x) if x == np.floor(x) else int(np.ceil(x + _ROUNDING))
