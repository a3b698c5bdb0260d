"""Split objects that touch: give their pixels different class indices while rows pass through, before they are traced.

A first pass traces areas: connected pixels of one class that is split, or with a boundary class, connected pixels of
all these classes and the boundaries between them. When an area is complete, it is divided into objects (`watershed`)
in a window of its own, so that the result does not depend on how the map is read. Rows are held back meanwhile.

In the rows that leave, each class has `COLOURS` class indices: that of its class times `COLOURS`, and the following
ones. Objects that touch have different ones, so the tracer takes them for regions of different classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.io.grid import Grid
from segkit.io.quantities import Quantity
from segkit.vector.tracing.jit import compiled
from segkit.vector.tracing.pixel_measures import PixelMeasures, area_at, frame_at, unmeasured_pixels
from segkit.vector.tracing.rings import Polygons
from segkit.vector.tracing.runs import HeldRows, Runs, in_parts, read_pixels
from segkit.vector.tracing.tracer import Tracer
from segkit.vector.tracing.watershed import (
    COLOURS,
    colour_parts,
    divide,
    fill,
    grow,
    measure_distance,
    merge_small_parts,
    number_parts,
    smooth,
)

# Rows are held back for areas of this size; larger ones are not split.
MAX_AREA_PIXELS = 1024
# Rows are taken in parts of at most this height, so that what is held back has a limit.
_PART_ROWS = 256
# What a class is: neither, split, or the boundary between objects.
_NEITHER, SPLIT, BOUNDARY = range(3)

# Returns the probabilities of the class with this index in a window, float64 (rows, columns); None if it is not needed.
ReadProbabilities = Callable[[int, Window], NDArray[np.float64] | None]


@dataclass
class SplitCounts:
    """Numbers of areas that were split, of the objects in them, and of areas that were too large, so far."""

    areas: int = 0
    objects: int = 0
    too_large: int = 0


class Splitter:
    """Splits objects while rows pass through it.

    Parameters
    ----------
    depth
        A length: objects are split where they are narrow. Each has a maximum of the distance to the outline that is at
        least so much higher than the place where it touches the next one. A number: the same with the smoothed
        probability of the class. None with a boundary class: objects are then the connected pixels of a class, and each
        boundary pixel becomes part of the nearest one.
    min_size
        Parts that would be smaller stay with a neighbour.
    counts
        Updated with each area.
    read_probabilities
        Needed with a depth that is a number. Areas of classes for which it returns None are not split.
    """

    def __init__(
        self,
        grid: Grid,
        pixel_measures: PixelMeasures,
        depth: Quantity | float | None,
        min_size: Quantity | None,
        counts: SplitCounts,
        read_probabilities: ReadProbabilities | None = None,
    ) -> None:
        self._width, self._height = grid.width, grid.height
        self._counts = counts
        self._tracer = Tracer(grid.width, Affine.identity(), unmeasured_pixels())
        self._measures = pixel_measures
        a, b, _, d, e, _ = grid.transform[:6]
        self._flat = (a * a + d * d, a * b + d * e, b * b + e * e)
        self._depth, self._min_size, self._read_probabilities = depth, min_size, read_probabilities
        self._held = HeldRows()
        # Start, end and class index of changed pixels, in the flattened pixels of the map.
        self._changes: NDArray[np.int64] = np.empty((0, 3), dtype=np.int64)

    def sift(self, runs: Iterator[Runs], kinds: Callable[[], NDArray[np.int32]]) -> Iterator[Runs]:
        """Yield the rows with new class indices, from top to bottom, each when the areas in it are complete.

        Parameters
        ----------
        kinds
            Returns int32 (classes,): `SPLIT`, `BOUNDARY`, or 0 for other classes.
        """
        for part in in_parts(runs, _PART_ROWS):
            self._held.add(part)
            seen, kind = part.top + part.height, np.append(kinds(), np.int32(_NEITHER))
            # Pixels of one area get the same class index; boundaries belong to areas of all classes.
            area = np.where(kind == _NEITHER, -1, 0 if self._depth is None else np.arange(kind.size))
            traced = _recoded(part, area.astype(np.int32)[part.class_index])
            self._split(self._tracer.trace(traced, np.ones(kind.size, dtype=bool)), kind)
            if seen == self._height:
                self._split(self._tracer.finish(seen), kind)
            yield from self._pass_on(seen)

    def _split(self, areas: Polygons, kind: NDArray[np.int32]) -> None:
        """Split areas that are complete, and remember the changed pixels."""
        if not len(areas.class_index):
            return
        runs = self._held.all()
        depth, min_size = self._depth, self._min_size or Quantity(0.0, pixels=True)
        if not isinstance(depth, Quantity):
            depth = Quantity(-1.0 if depth is None else depth, pixels=True)
        first = areas.ring[areas.polygon[:-1]]
        upper_left, lower_right = (of.reduceat(areas.vertices, first).astype(int) for of in (np.minimum, np.maximum))
        small = (lower_right - upper_left).max(axis=1) <= MAX_AREA_PIXELS
        self._counts.too_large += int(np.count_nonzero(~small))
        for chosen, level, left, upper in self._groups(areas.class_index, small, upper_left, lower_right):
            # Allocated memory that is never written to is free.
            changes = np.empty((int(areas.pixels[chosen].sum()), 3), dtype=np.int64)
            changed, split, objects = _split_areas(
                areas.vertices, areas.ring, areas.polygon, np.flatnonzero(chosen),
                runs.row, runs.first, runs.class_index, runs.top, runs.width, kind,
                level, left, upper, depth.number, depth.pixels, min_size.number, min_size.pixels,
                self._measures, self._flat, changes,
            )  # fmt: skip
            self._counts.areas += split
            self._counts.objects += objects
            self._changes = np.concatenate((self._changes, changes[:changed]))

    def _groups(
        self,
        class_index: NDArray[np.int32],
        chosen: NDArray[np.bool_],
        upper_left: NDArray[np.int64],
        lower_right: NDArray[np.int64],
    ) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float64], int, int]]:
        """Yield the chosen areas, bool (areas,), with the probabilities of their class from a left and upper pixel on.

        Without probabilities, they are one group. With them, areas of one class that begin within the same
        `MAX_AREA_PIXELS` columns are read at once.
        """
        if self._read_probabilities is None:
            yield chosen, np.empty((0, 0)), 0, 0
            return
        group = np.stack((class_index, upper_left[:, 0] // MAX_AREA_PIXELS))
        for one in np.unique(group[:, chosen], axis=1).T:
            members = chosen & (group == one[:, None]).all(axis=0)
            (left, upper), (right, lower) = upper_left[members].min(axis=0), lower_right[members].max(axis=0)
            window = Window(int(left), int(upper), int(right - left), int(lower - upper))
            level = self._read_probabilities(int(one[0]), window)
            if level is not None:
                yield members, level, int(left), int(upper)

    def _pass_on(self, seen: int) -> Iterator[Runs]:
        """Yield the held rows that no incomplete area reaches."""
        rows = self._height
        if seen < self._height:
            rows = max(self._tracer.first_open_row(seen), seen - MAX_AREA_PIXELS)
        passed = self._held.release(rows)
        if passed is None:
            return
        here = self._changes[:, 0] < rows * self._width
        changes, self._changes = self._changes[here], self._changes[~here]
        class_index = np.where(passed.class_index < 0, passed.class_index, passed.class_index * COLOURS)
        yield _changed(_recoded(passed, class_index), changes[np.argsort(changes[:, 0])])


def _recoded(runs: Runs, class_index: NDArray[np.int32]) -> Runs:
    """Return runs with other class indices, int32 (runs,); neighbours that became equal are one run."""
    keep = np.diff(class_index, prepend=-2) != 0
    keep[runs.row[:-1]] = True
    row = np.concatenate(([0], np.cumsum(keep)))[runs.row]
    return Runs(runs.top, row, runs.first[keep], class_index[keep], runs.width)


def _changed(runs: Runs, changes: NDArray[np.int64]) -> Runs:
    """Return runs with changes, int64 (changes, 3), in the order of their starts."""
    if not len(changes):
        return runs
    start, end, value = (changes - [runs.top * runs.width, runs.top * runs.width, 0]).T
    old = runs.starts()
    new = np.unique(np.concatenate((old, start, end[end < runs.height * runs.width])))
    class_index = runs.class_index[np.searchsorted(old, new, side="right") - 1]
    change = np.searchsorted(start, new, side="right") - 1
    inside = (change >= 0) & (new < end[change])
    class_index = np.where(inside, value[change], class_index).astype(np.int32)
    row = np.searchsorted(new, np.arange(runs.height + 1) * runs.width)
    return _recoded(Runs(runs.top, row, (new % runs.width).astype(np.int32), class_index, runs.width), class_index)


@compiled
def _split_areas(
    vertices, ring, polygon, chosen, row, first, class_index, top, width, kind,
    level, level_left, level_upper, depth, depth_in_pixels, min_size, in_pixels,
    pixel_measures, flat, changes,
):  # fmt: skip
    """Split areas; return the numbers of changes, of areas that were split, and of their objects.

    A negative depth means that boundary pixels are given to the objects beside them; probabilities (`level`, if not
    empty), that objects are split by these and not by their shape.
    """
    changed = areas = objects = 0
    for k in chosen:
        x, y = (
            vertices[ring[polygon[k]] : ring[polygon[k] + 1], 0],
            vertices[ring[polygon[k]] : ring[polygon[k] + 1], 1],
        )
        left, upper = int(x.min()) - 1, int(y.min()) - 1
        columns, rows = int(x.max()) + 1 - left, int(y.max()) + 1 - upper
        codes = read_pixels(row, first, class_index, top, width, left, upper, columns, rows)
        at = int(np.argmin(y * (width + 1.0) + x))
        start = (int(y[at]) - upper) * columns + int(x[at]) - left
        w, _, h, side = frame_at(pixel_measures, left + columns / 2, upper + rows / 2, flat)
        if depth < 0:
            part = _objects_around_boundaries(codes, start, kind, h, w)
        else:
            inside = _connected(codes.ravel(), start, rows, columns)
            if level.size == 0:
                height, least = measure_distance(inside, h, w), depth if depth_in_pixels else depth / side
            else:
                height, least = (
                    smooth(_cut(level, left - level_left, upper - level_upper, rows, columns), inside),
                    depth,
                )
            part = divide(height, least)
            if number_parts(part) > 1 and min_size > 0:
                merge_small_parts(part, _sizes(part, left, upper, pixel_measures, in_pixels), min_size)
        count = number_parts(part)
        if count > 1:
            areas += 1
            objects += count
        if count > 1 or depth < 0:
            changed = _list_changes(part, codes, kind, colour_parts(part, count), left, upper, width, changes, changed)
    return changed, areas, objects


@compiled
def _cut(level, left, upper, rows, columns):
    """Return a window of values with a margin of NaN, from a pixel before the values on."""
    values = np.full((rows, columns), np.nan)
    values[1:-1, 1:-1] = level[upper + 1 : upper + rows - 1, left + 1 : left + columns - 1]
    return values


@compiled
def _connected(values, start, rows, columns):
    """Return the pixels that are connected with `start` and equal to it, bool (rows, columns)."""
    part = np.zeros((rows, columns), dtype=np.int32)
    fill(values, start, part, 1, np.empty(values.size, dtype=np.int64))
    return part > 0


@compiled
def _objects_around_boundaries(codes, start, kind, height, width):
    """Return objects that are connected with `start` through boundaries, with the nearest boundary pixels, as parts."""
    rows, columns = codes.shape
    values, kinds = codes.ravel(), kind[codes.ravel()]
    area = _connected((kinds > 0).astype(np.int32), start, rows, columns)
    part, stack, count = np.zeros((rows, columns), dtype=np.int32), np.empty(values.size, dtype=np.int64), 0
    for p in np.flatnonzero(area):
        if kinds[p] == SPLIT and part.ravel()[p] == 0:
            count += 1
            fill(values, p, part, count, stack)
    grow(part, area & (part == 0), height, width)
    return part


@compiled
def _sizes(part, left, upper, pixel_measures, in_pixels):
    """Return the number of pixels of each part, or its area in m2; NaN if it is not known."""
    rows, columns = part.shape
    size = np.zeros(part.max() + 1)
    for r in range(rows):
        for c in range(columns):
            if part[r, c]:
                size[part[r, c]] += 1.0 if in_pixels else area_at(pixel_measures, left + c + 0.5, upper + r + 0.5)
    return size


@compiled
def _list_changes(part, codes, kind, colour, left, upper, width, changes, n):
    """List the runs of parts whose class index changes; return the new number of changes."""
    rows, columns = part.shape
    own = np.zeros(colour.size, dtype=np.int64)
    for r in range(rows):
        for c in range(columns):
            if part[r, c] and kind[codes[r, c]] == SPLIT:
                own[part[r, c]] = codes[r, c] * COLOURS + colour[part[r, c]]
    for r in range(rows):
        for c in range(columns):
            value = own[part[r, c]]
            if part[r, c] == 0 or value == codes[r, c] * COLOURS:
                continue
            place = (upper + r) * width + left + c
            if n and changes[n - 1, 1] == place and changes[n - 1, 2] == value and c > 0 and part[r, c - 1]:
                changes[n - 1, 1] = place + 1
            else:
                changes[n, 0], changes[n, 1], changes[n, 2] = place, place + 1, value
                n += 1
    return n
