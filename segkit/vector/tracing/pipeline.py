"""Trace a band of a map: from pixels to batches of polygons, from top to bottom.

Steps: runs of equal pixels (`runs`); small regions and holes removed if requested (`sieve`); probabilities summed
(`confidence`); touching objects split if requested (`splitter`, `watershed`); right-angled outlines chosen if requested
(`regularize`, `right_angles`); regions and the arcs between them (`sweep`), simplified (`generalize`, `simplify`) and
measured (`pixel_measures`); rings (`rings`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.errors import UsageError
from segkit.io import quantities
from segkit.io.class_table import MapClass
from segkit.io.grid import Grid
from segkit.io.quantities import Quantity
from segkit.io.raster import read_grid
from segkit.runtime.prefetch import prefetch
from segkit.vector.geometry import concatenate_polygons
from segkit.vector.tracing.confidence import Confidence, ConfidenceSums
from segkit.vector.tracing.generalize import Generalisation
from segkit.vector.tracing.pixel_measures import PixelMeasures, length_at, measure_runs
from segkit.vector.tracing.regularize import OutlineCounts, Regularizer
from segkit.vector.tracing.rings import Polygons
from segkit.vector.tracing.runs import Codes, Runs, plain_nodata, read_runs
from segkit.vector.tracing.sieve import Sieve
from segkit.vector.tracing.splitter import ReadProbabilities, SplitCounts, Splitter
from segkit.vector.tracing.tracer import Tracer
from segkit.vector.tracing.watershed import COLOURS

# A batch is complete when it has this many polygons or vertices.
_MIN_BATCH_POLYGONS = 20_000
_MIN_BATCH_VERTICES = 2_000_000
# Parts of a map to read ahead.
_PREFETCH_DEPTH = 4
# Areas are compared as integers in square centimetres, so that sums do not depend on the order.
_CM2_PER_M2 = 10_000
# Lengths of pixel sides are compared as integers; the longer side is 1000.
_SIDE_SCALE = 1000
# Less also splits single objects with rough outlines (figures in docs/vectorize.md).
_DEFAULT_SPLIT_DEPTH = "1.5px"
_DEFAULT_SPLIT_FALL = "0.1"


@dataclass(frozen=True)
class VectorizeOptions:
    """Generalisation of a map's regions; by default none.

    Parameters
    ----------
    min_area
        Smaller regions are merged into a neighbour.
    fill_holes
        Smaller holes are filled.
    simplify
        Maximum distance by which a border may move.
    smooth
        Round corners.
    protect
        Names or values of classes whose regions are not merged, and not filled as holes, however small.
    regularize
        Names or values of classes whose outlines become right-angled.
    split
        Names or values of classes whose touching objects become separate polygons.
    split_depth
        By how much an object narrows where it is split; a number: by how much its probability falls there; None with a
        boundary class.
    boundary_class
        Name or value of the class of boundaries between objects.
    """

    min_area: Quantity | None = None
    fill_holes: Quantity | None = None
    simplify: Quantity | None = None
    smooth: bool = False
    protect: tuple[str, ...] = ()
    regularize: tuple[str, ...] = ()
    split: tuple[str, ...] = ()
    split_depth: Quantity | float | None = None
    boundary_class: str | None = None

    @classmethod
    def from_text(
        cls,
        *,
        min_area: str | None,
        fill_holes: str | None,
        simplify: str | None = None,
        smooth: bool = False,
        protect: Sequence[str | int] = (),
        regularize: Sequence[str | int] = (),
        split: Sequence[str | int] = (),
        split_by: str | None = None,
        split_depth: str | None = None,
        boundary_class: str | int | None = None,
    ) -> VectorizeOptions:
        """Parse areas and distances with their units.

        Raises
        ------
        UsageError
            One is invalid or has no unit, or two options exclude each other.
        """
        boundary = None if boundary_class is None else str(boundary_class)
        return cls(
            None if min_area is None else quantities.parse_area(min_area, "min_area"),
            None if fill_holes is None else quantities.parse_area(fill_holes, "fill_holes"),
            None if simplify is None else quantities.parse_length(simplify, "simplify"),
            smooth,
            tuple(map(str, protect)),
            tuple(map(str, regularize)),
            tuple(map(str, split)),
            _split_depth(split_by, split_depth, boundary, split),
            boundary,
        )

    def check(self, *, has_areas: bool, has_probabilities: bool = False) -> None:
        """Raise a UsageError if a value is in metres or hectares and the map's pixels have no true areas.

        Or if objects are to be split by probabilities, and there are none.
        """
        if isinstance(self.split_depth, float) and not has_probabilities:
            raise UsageError("split_by probabilities: give the probabilities that were written with the map")
        for name in ("min_area", "fill_holes", "simplify", "split_depth"):
            quantity = getattr(self, name)
            if isinstance(quantity, Quantity) and not quantity.pixels and not has_areas:
                raise UsageError(
                    f"{name}: the map has no CRS to measure areas or lengths in; give pixels, such as 12px"
                )


def _split_depth(
    by: str | None, text: str | None, boundary: str | None, split: Sequence[str | int]
) -> Quantity | float | None:
    given = {"split_by": by, "split_depth": text, "boundary_class": boundary}
    options = [name for name, value in given.items() if value is not None]
    if not split:
        if options:
            raise UsageError(f"{options[0]}: no class is split; give the classes, too (split)")
        return None
    if boundary is not None:
        if len(options) > 1:
            raise UsageError(f"{options[0]} and boundary_class: objects are split by one or the other; leave one out")
        return None
    if by not in (None, "shape", "probabilities"):
        raise UsageError(f"split_by {by}: must be shape or probabilities")
    if by == "probabilities":
        return _parse_fall(_DEFAULT_SPLIT_FALL if text is None else text)
    depth = quantities.parse_length(_DEFAULT_SPLIT_DEPTH if text is None else text, "split_depth")
    if depth.number <= 0:
        raise UsageError(f"split_depth {text}: must be above 0")
    return depth


def _parse_fall(text: str) -> float:
    with suppress(ValueError):
        if 0 < (number := float(text)) < 1:
            return number
    raise UsageError(
        f"split_depth {text}: with split_by probabilities, it is how far the probability falls between two objects: "
        "a number above 0 and below 1, such as 0.1"
    )


@dataclass
class BandClasses:
    """The classes of a band, in the order in which their codes first occur, with their pixel counts.

    The position of a class is its class index. `choose` returns the class of a code, or None if it is not selected,
    `is_protected` whether its regions are left as they are, `is_regularized` whether their outlines become
    right-angled, and `split_kind` whether they are split (see `splitter`).
    """

    choose: Callable[[int], MapClass | None]
    is_protected: Callable[[int], bool] = lambda code: False
    is_regularized: Callable[[int], bool] = lambda code: False
    split_kind: Callable[[int], int] = lambda code: 0
    codes: list[int] = field(default_factory=list)
    classes: list[MapClass | None] = field(default_factory=list)
    pixels: list[int] = field(default_factory=list)
    protected: list[bool] = field(default_factory=list)
    regularized: list[bool] = field(default_factory=list)
    split_kinds: list[int] = field(default_factory=list)

    def add_code(self, code: int) -> None:
        """Add a code that occurs for the first time."""
        self.codes.append(code)
        self.classes.append(self.choose(code))
        self.pixels.append(0)
        self.protected.append(self.is_protected(code))
        self.regularized.append(self.is_regularized(code))
        self.split_kinds.append(self.split_kind(code))

    def count(self, runs: Runs) -> None:
        """Count the pixels of runs."""
        valid = runs.class_index >= 0
        counts = np.bincount(runs.class_index[valid], runs.lengths()[valid], minlength=len(self.codes))
        for class_index, count in enumerate(counts.tolist()):
            self.pixels[class_index] += int(count)

    def share(self, code: int) -> float:
        """Return the share of a code among the valid pixels."""
        return self.pixels[self.codes.index(code)] / sum(self.pixels)

    @property
    def selected(self) -> NDArray[np.bool_]:
        """Whether each class is selected, bool (classes,)."""
        return np.array([one is not None for one in self.classes], dtype=bool)


def trace_band(
    dataset: DatasetReader,
    band: int,
    band_classes: BandClasses,
    pixel_measures: PixelMeasures,
    options: VectorizeOptions,
    confidence: Confidence | None,
    advance: Callable[[float], None],
    *,
    block: tuple[int, int] | None = None,
    outline_counts: OutlineCounts | None = None,
    split_counts: SplitCounts | None = None,
) -> Generator[Polygons]:
    """Yield a band's polygons in one or more batches, in the order in which they end.

    Parameters
    ----------
    band_classes
        Filled with the classes of the band; a class is added before its first polygons are yielded.
    pixel_measures
        Areas and side lengths of the map's pixels on the ground.
    advance
        Called with the number of rows done.
    block
        Rows and columns to read at once. This does not change the result.
    outline_counts
        Updated with the objects whose outlines should become right-angled.
    split_counts
        Updated with the areas that should be split.

    Raises
    ------
    DataError
        A value does not fit into 32 bits, or a class has no probabilities.
    RasterError
        A file is damaged.
    """
    grid = read_grid(dataset)
    generalisation = Generalisation(smooth=options.smooth)
    if options.simplify is not None:
        generalisation = Generalisation(options.simplify.number, not options.simplify.pixels, options.smooth)
    sieved = sieve_band(dataset, band, band_classes, pixel_measures, options, advance, block=block)
    with closing(sieved) as runs:
        take_outlines = None
        passed: Iterator[Runs] = runs
        colours = 1
        if options.split:
            colours = COLOURS
            splitter = Splitter(
                grid,
                pixel_measures,
                options.split_depth,
                options.min_area,
                split_counts or SplitCounts(),
                _reader(confidence, band_classes) if isinstance(options.split_depth, float) else None,
            )
            passed = splitter.sift(passed, lambda: np.array(band_classes.split_kinds, dtype=np.int32))
        if options.regularize:
            tolerance, metres = generalisation.tolerance or 0.0, generalisation.metres
            regularizer = Regularizer(grid, pixel_measures, tolerance, outline_counts or OutlineCounts(), metres=metres)
            take_outlines = regularizer.take_outlines
            passed = regularizer.sift(
                passed, lambda: np.repeat(np.array(band_classes.regularized, dtype=bool), colours)
            )
        tracer = Tracer(grid.width, grid.transform, pixel_measures, generalisation, take_outlines)
        parts = (
            ((part, None) for part in passed)
            if confidence is None
            else confidence.along(passed, band_classes.classes, advance, colours=colours)
        )
        for polygons in _batches(_trace_parts(tracer, parts, band_classes, grid.height, colours)):
            yield replace(polygons, class_index=polygons.class_index // colours)


def _reader(confidence: Confidence | None, band_classes: BandClasses) -> ReadProbabilities:
    def read(class_index: int, window: Window) -> NDArray[np.float64] | None:
        one = band_classes.classes[class_index]
        return None if confidence is None or one is None else confidence.read(one, window)

    return read


def sieve_band(
    dataset: DatasetReader,
    band: int,
    band_classes: BandClasses,
    pixel_measures: PixelMeasures,
    options: VectorizeOptions,
    advance: Callable[[float], None],
    *,
    block: tuple[int, int] | None = None,
) -> Generator[Runs]:
    """Yield a band as runs, from top to bottom, without small regions and holes; the parameters are as above."""
    grid = read_grid(dataset)
    codes = Codes(plain_nodata(dataset, band), band_classes.add_code)
    # Another thread reads and decompresses; it ends before the map is closed.
    with closing(prefetch(read_runs(dataset, band, codes, block=block), depth=_PREFETCH_DEPTH)) as reading:
        runs = _count_pixels(reading, band_classes, advance)
        for quantity, holes in ((options.min_area, False), (options.fill_holes, True)):
            if quantity is not None:
                runs = _apply_sieve(runs, grid, pixel_measures, quantity, band_classes, holes=holes)
        yield from runs


def _count_pixels(runs: Iterator[Runs], band_classes: BandClasses, advance: Callable[[float], None]) -> Iterator[Runs]:
    for part in runs:
        band_classes.count(part)
        yield part
        advance(part.height)


def _trace_parts(
    tracer: Tracer,
    parts: Iterator[tuple[Runs, ConfidenceSums | None]],
    band_classes: BandClasses,
    height: int,
    colours: int,
) -> Iterator[Polygons]:
    for runs, confidence_sums in parts:
        yield tracer.trace(runs, np.repeat(band_classes.selected, colours), confidence_sums)
    yield tracer.finish(height)


def _batches(parts: Iterator[Polygons]) -> Iterator[Polygons]:
    """Concatenate parts into batches of the minimum size."""
    waiting: list[Polygons] = []
    for polygons in parts:
        waiting.append(polygons)
        if (
            sum(len(one.class_index) for one in waiting) >= _MIN_BATCH_POLYGONS
            or sum(len(one.vertices) for one in waiting) >= _MIN_BATCH_VERTICES
        ):
            yield concatenate_polygons(waiting)
            waiting = []
    if waiting:
        yield concatenate_polygons(waiting)


def _apply_sieve(
    runs: Iterator[Runs],
    grid: Grid,
    pixel_measures: PixelMeasures,
    quantity: Quantity,
    band_classes: BandClasses,
    *,
    holes: bool,
) -> Iterator[Runs]:
    """Yield rows without small regions, or with `holes` without small holes."""
    if quantity.pixels:
        min_size, smallest = math.ceil(quantity.number), 1.0
    else:
        min_size = round(quantity.number * _CM2_PER_M2)
        # Half the smallest area at the origins of the squares: a lower bound for the pixels between them.
        areas = pixel_measures.field[:, 0, 0, 0] * _CM2_PER_M2 / 2
        smallest = float(np.min(areas, where=np.isfinite(areas), initial=np.inf))
    rows = grid.height if smallest <= 0 else min(grid.height, math.ceil(min_size / smallest))
    sieve = Sieve(grid.width, min_size, _relative_sides(grid, pixel_measures), holes=holes, rows=rows)
    done = 0
    for part in runs:
        sizes = part.lengths()
        if not quantity.pixels:
            area = measure_runs(pixel_measures, part).area * _CM2_PER_M2
            # A run without a known area is not small.
            sizes = np.where(np.isnan(area), min_size, np.rint(np.nan_to_num(area))).astype(np.int64)
        # A region that is protected is not small.
        protected = np.array([*band_classes.protected, False])[part.class_index]
        sizes = np.where(protected, np.maximum(sizes, min_size), sizes)
        done += part.height
        sifted = sieve.sift(part, sizes, np.array(band_classes.codes, dtype=np.int32), end=done == grid.height)
        if sifted.height:
            yield sifted


def _relative_sides(grid: Grid, pixel_measures: PixelMeasures) -> tuple[int, int]:
    """Return the relative lengths of a pixel's upper and left side in the middle of the map, to compare borders."""
    middle = grid.width / 2, grid.height / 2
    upper, left = length_at(pixel_measures, *middle, 1.0, 0.0), length_at(pixel_measures, *middle, 0.0, 1.0)
    if not (math.isfinite(upper) and math.isfinite(left)):
        upper, left = grid.pixel_size
    longest = max(upper, left)
    return max(1, round(upper / longest * _SIDE_SCALE)), max(1, round(left / longest * _SIDE_SCALE))
