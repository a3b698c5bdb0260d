"""Pipeline: a band of a map -> its polygons, in batches, from top to bottom.

What a band goes through: runs of equal pixels (`runs`), without small regions and holes where that is wanted (`sieve`),
with the probabilities inside (`confidence`); regions and the arcs between them, simplified (`arcs`, `simplify`) and
measured (`pixel_measures`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from segkit.errors import UsageError
from segkit.io import quantities
from segkit.io.class_table import MapClass
from segkit.io.grid import Grid
from segkit.io.quantities import Quantity
from segkit.io.raster import grid_of
from segkit.runtime.prefetch import ahead
from segkit.vector.geometry import joined
from segkit.vector.tracing.confidence import Chances, Confidence
from segkit.vector.tracing.generalize import Generalisation
from segkit.vector.tracing.pixel_measures import Squares, length_at, measure_runs
from segkit.vector.tracing.rings import Polygons
from segkit.vector.tracing.runs import Codes, Runs, plain_nodata, read_runs
from segkit.vector.tracing.sieve import Sieve
from segkit.vector.tracing.tracer import Tracer

# A batch has at least as many polygons or vertices, but for the last one.
_BATCH_POLYGONS = 20_000
_BATCH_VERTICES = 2_000_000
# Parts of a map that are read ahead.
_AHEAD = 4
# Areas are compared in square centimetres, as whole numbers, so that their sums do not depend on the order.
_PER_SQUARE_METRE = 10_000
# The sides of a pixel are compared with three digits.
_SIDE = 1000


@dataclass(frozen=True)
class Options:
    """How a map's regions are generalised; by default not at all.

    Parameters
    ----------
    min_area
        Smaller regions become part of a neighbour.
    fill_holes
        Smaller holes become part of what is around them.
    simplify
        How far a border may move.
    smooth
        Whether corners are rounded.
    """

    min_area: Quantity | None = None
    fill_holes: Quantity | None = None
    simplify: Quantity | None = None
    smooth: bool = False

    @classmethod
    def of(cls, *, min_area: str | None, fill_holes: str | None, simplify: str | None, smooth: bool) -> Options:
        """Read sizes and distances with their units.

        Raises
        ------
        UsageError
            One has none.
        """
        return cls(
            None if min_area is None else quantities.area(min_area, "min_area"),
            None if fill_holes is None else quantities.area(fill_holes, "fill_holes"),
            None if simplify is None else quantities.length(simplify, "simplify"),
            smooth,
        )

    def check(self, *, placed: bool) -> None:
        """Raise a UsageError where something is in metres and the map has no place on the ground."""
        for name in ("min_area", "fill_holes", "simplify"):
            quantity: Quantity | None = getattr(self, name)
            if quantity is not None and not quantity.pixels and not placed:
                raise UsageError(
                    f"{name}: the map has no place on the ground, so nothing has a size there; write pixels: 12px"
                )


@dataclass
class Kinds:
    """The classes of a band, in the order in which their codes turn up, and how many pixels have them."""

    choose: Callable[[int], MapClass | None]
    codes: list[int] = field(default_factory=list)
    classes: list[MapClass | None] = field(default_factory=list)
    pixels: list[int] = field(default_factory=list)

    def meet(self, code: int) -> None:
        """Take up a new code."""
        self.codes.append(code)
        self.classes.append(self.choose(code))
        self.pixels.append(0)

    def count(self, runs: Runs) -> None:
        """Count the pixels of runs."""
        there = runs.kind >= 0
        counts = np.bincount(runs.kind[there], runs.lengths()[there], minlength=len(self.codes))
        for kind, number in enumerate(counts.tolist()):
            self.pixels[kind] += int(number)

    def share(self, code: int) -> float:
        """Return the share of a code among the pixels that hold data."""
        return self.pixels[self.codes.index(code)] / sum(self.pixels)

    @property
    def wanted(self) -> NDArray[np.bool_]:
        """Whether polygons of each kind are."""
        return np.array([one is not None for one in self.classes], dtype=bool)


def trace_band(
    dataset: DatasetReader,
    band: int,
    kinds: Kinds,
    squares: Squares,
    options: Options,
    confidence: Confidence | None,
    advance: Callable[[float], None],
    *,
    block: tuple[int, int] | None = None,
) -> Generator[Polygons]:
    """Yield a band's polygons in one or more batches, in the order in which they end.

    Parameters
    ----------
    kinds
        Is filled with what turns up, before the first polygons of it come; these count in it.
    squares
        What the map's pixels measure on the ground.
    advance
        Called with the rows done.
    block
        Rows and columns that are read at once. It does not change the result.

    Raises
    ------
    DataError
        A value is no 32-bit number, or a class has no probabilities.
    RasterError
        A file is damaged.
    """
    grid = grid_of(dataset)
    codes = Codes(plain_nodata(dataset, band), kinds.meet)
    form = Generalisation(smooth=options.smooth)
    if options.simplify is not None:
        form = Generalisation(options.simplify.number, not options.simplify.pixels, options.smooth)
    # Read and unpacked in a thread of its own, which ends before anybody closes the map.
    with closing(ahead(read_runs(dataset, band, codes, block=block), depth=_AHEAD)) as reading:
        runs = _told(reading, kinds, advance)
        for quantity, holes in ((options.min_area, False), (options.fill_holes, True)):
            if quantity is not None:
                runs = _sifted(runs, grid, squares, quantity, kinds, holes=holes)
        tracer = Tracer(grid.width, grid.transform, squares, form)
        parts = (
            ((some, None) for some in runs) if confidence is None else confidence.along(runs, kinds.classes, advance)
        )
        yield from _batches(_traced(tracer, parts, kinds, grid.height))


def _told(runs: Iterator[Runs], kinds: Kinds, advance: Callable[[float], None]) -> Iterator[Runs]:
    for some in runs:
        kinds.count(some)
        yield some
        advance(some.height)


def _traced(
    tracer: Tracer, parts: Iterator[tuple[Runs, Chances | None]], kinds: Kinds, height: int
) -> Iterator[Polygons]:
    for some, chances in parts:
        yield tracer.trace(some, kinds.wanted, chances)
    yield tracer.finish(height)


def _batches(some: Iterator[Polygons]) -> Iterator[Polygons]:
    waiting: list[Polygons] = []
    for polygons in some:
        waiting.append(polygons)
        if (
            sum(len(one.kind) for one in waiting) >= _BATCH_POLYGONS
            or sum(len(one.vertices) for one in waiting) >= _BATCH_VERTICES
        ):
            yield joined(waiting)
            waiting = []
    if waiting:
        yield joined(waiting)


def _sifted(
    runs: Iterator[Runs], grid: Grid, squares: Squares, quantity: Quantity, kinds: Kinds, *, holes: bool
) -> Iterator[Runs]:
    """Yield rows without small regions, or without small holes."""
    if quantity.pixels:
        least, smallest = math.ceil(quantity.number), 1.0
    else:
        least = round(quantity.number * _PER_SQUARE_METRE)
        # Of the places where squares were measured, and perhaps half of that between them.
        areas = squares.field[:, 0, 0, 0] * _PER_SQUARE_METRE / 2
        smallest = float(np.min(areas, where=np.isfinite(areas), initial=np.inf))
    rows = grid.height if smallest <= 0 else min(grid.height, math.ceil(least / smallest))
    sieve = Sieve(grid.width, least, _sides(grid, squares), holes=holes, rows=rows)
    done = 0
    for some in runs:
        sizes = some.lengths()
        if not quantity.pixels:
            area = measure_runs(squares, some).area * _PER_SQUARE_METRE
            # What has no size is not small.
            sizes = np.where(np.isnan(area), least, np.rint(np.nan_to_num(area))).astype(np.int64)
        done += some.height
        sifted = sieve.sift(some, sizes, np.array(kinds.codes, dtype=np.int32), end=done == grid.height)
        if sifted.height:
            yield sifted


def _sides(grid: Grid, squares: Squares) -> tuple[int, int]:
    """Return the lengths of a pixel's upper and left side in the middle of the map, by which borders are compared."""
    middle = grid.width / 2, grid.height / 2
    upper, left = length_at(squares, *middle, 1.0, 0.0), length_at(squares, *middle, 0.0, 1.0)
    if not (math.isfinite(upper) and math.isfinite(left)):
        upper, left = grid.pixel_size
    longest = max(upper, left)
    return max(1, round(upper / longest * _SIDE)), max(1, round(left / longest * _SIDE))
