"""Tiling: the windows of a scene, and where neighbouring windows are blended.

A scene is covered by the windows of a row axis times those of a column axis. The weight of a window at a pixel is
w(row) * w(column). Along an axis, w is 1 in the middle of a window, 0 near its ends, and in between goes from one to
the other in a blending zone that it shares with one neighbour, whose weight there is 1 - w. So weights sum to one
everywhere, up to the edge of the scene, without a division and without an accumulator as large as the scene.

Neighbouring rows of windows form a band. Bands can be predicted independently, in any order: a band finishes its body,
and the blending zones at its two ends are summed later with those of its neighbours.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from segkit.errors import UsageError
from segkit.io.grid import Grid

# Columns in a group of windows: wider scenes are processed group by group, so that memory does not grow with width.
_MAX_GROUP_COLUMNS = 2**14
# A band has up to twice as many pixels, which take seconds on a GPU and half a minute on a CPU.
_MIN_BAND_PIXELS = 2**25


@dataclass(frozen=True)
class Span:
    """One window along one axis, in pixels of the scene.

    Parameters
    ----------
    origin
        First pixel that the network sees, a multiple of its stride.
    start, stop
        Pixels where the window has a weight above 0, half-open; inside the scene and the window.
    blend_before, blend_after
        Widths of the blending zones at their two ends; 0 at the edge of the scene.
    """

    origin: int
    start: int
    stop: int
    blend_before: int
    blend_after: int

    @property
    def finished_stop(self) -> int:
        """End of the pixels that are finished with this window and those before it."""
        return self.stop - self.blend_after


@dataclass(frozen=True)
class Axis:
    """The windows along one axis.

    Parameters
    ----------
    length
        Pixels of each window, a multiple of the stride; the last window may extend beyond the scene.
    blend_width
        Pixels of each blending zone.
    spans
        In order; from `start` to `finished_stop` they cover the axis once.
    """

    length: int
    blend_width: int
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Band:
    """Neighbouring rows of windows, over the whole width of the scene.

    Parameters
    ----------
    index
        From 0, from the top.
    spans
        Rows of windows.
    """

    index: int
    spans: tuple[Span, ...]

    @property
    def start(self) -> int:
        """First row that this band finishes; it shares the `spans[0].blend_before` rows above."""
        return self.spans[0].start + self.spans[0].blend_before

    @property
    def stop(self) -> int:
        """End of the rows that this band finishes; it shares the `spans[-1].blend_after` rows below."""
        return self.spans[-1].finished_stop


@dataclass(frozen=True)
class Tiling:
    """The windows of a scene."""

    rows: Axis
    columns: Axis

    @property
    def pixel_cost(self) -> float:
        """Pixels in all windows divided by pixels of the scene."""
        cost = 1.0
        for axis in (self.rows, self.columns):
            cost *= len(axis.spans) * axis.length / axis.spans[-1].stop
        return cost

    @property
    def single_band(self) -> Band:
        """All rows of windows as one band."""
        return Band(0, self.rows.spans)

    @functools.cached_property
    def bands(self) -> tuple[Band, ...]:
        """The bands, with rows of windows distributed evenly; about 2^25 to 2^26 pixels each."""
        number = len(self.rows.spans)
        target = max(1, min(number, self.rows.spans[-1].stop * self.columns.spans[-1].stop // _MIN_BAND_PIXELS))
        bands: list[Band] = []
        spans: list[Span] = []
        for count, span in enumerate(self.rows.spans, 1):
            spans.append(span)
            band = Band(len(bands), tuple(spans))
            # If blending zones touch, a single row of windows may finish no pixel.
            if band.stop > band.start and count * target >= (len(bands) + 1) * number:
                bands.append(band)
                spans = []
        if spans:
            last = bands.pop()
            bands.append(Band(last.index, (*last.spans, *spans)))
        return tuple(bands)

    @property
    def column_groups(self) -> tuple[tuple[Span, ...], ...]:
        """The columns of windows that are processed together, from left to right."""
        groups: list[list[Span]] = [[]]
        for span in self.columns.spans:
            if groups[-1] and span.stop - groups[-1][0].start > _MAX_GROUP_COLUMNS:
                groups.append([])
            groups[-1].append(span)
        return tuple(map(tuple, groups))


def plan_tiling(
    grid: Grid, tile: int, overlap: int, stride: int, *, blend_width: int | None = None, fixed: bool = False
) -> Tiling:
    """Plan the windows of a scene; the parameters are those of `plan_axis`."""
    rows, columns = (
        plan_axis(size, tile, overlap, stride, blend_width=blend_width, fixed=fixed) for size in grid.shape
    )
    return Tiling(rows, columns)


def check_tiling(tile: int, overlap: int, stride: int) -> None:
    """Refuse tile sizes and overlaps that leave no pixels between blending zones, or no step between windows.

    Raises
    ------
    UsageError
        `overlap` is negative or more than half of `tile`, or `tile` is not larger than the network's stride.
    """
    if tile < 1 or overlap < 0 or 2 * overlap > tile:
        raise UsageError(
            f"tile {tile} with overlap {overlap}: a tile has at least 1 pixel, and the overlap is at most half of it; "
            "make the tile larger or the overlap smaller"
        )
    if overlap and tile <= stride:
        raise UsageError(
            f"tile {tile} with overlap {overlap}: overlapping tiles must be larger than the stride of the network "
            f"({stride} pixels); make the tile larger"
        )


def plan_axis(
    size: int, tile: int, overlap: int, stride: int, *, blend_width: int | None = None, fixed: bool = False
) -> Axis:
    """Distribute windows evenly over an axis.

    There are as few windows as possible, and they are as short as possible.

    Parameters
    ----------
    size
        Pixels of the axis.
    tile
        Maximum pixels of a window, rounded up to the stride.
    overlap
        Minimum pixels that neighbours share.
    stride
        Stride of the network; windows start at multiples of it, counted from the edge of the scene.
    blend_width
        Pixels of a blending zone, by default `overlap`; fewer if zones would overlap. It is centred in the overlap,
        where both windows have the most context.
    fixed
        Whether windows always have `tile` pixels, even on a shorter axis.

    Raises
    ------
    UsageError
        See `check_tiling`.
    """
    check_tiling(tile, overlap, stride)
    length = _round_up(tile, stride)
    steps = _count_steps(size, length, overlap, stride)
    if not fixed:
        lengths = range(stride, length + 1, stride)
        length = next(shorter for shorter in lengths if _count_steps(size, shorter, overlap, stride) <= steps)
    last = _round_up(max(size - length, 0), stride)
    steps = int(_count_steps(size, length, overlap, stride))
    origins = [last // stride * i // steps * stride for i in range(steps + 1)] if steps else [0]
    available = ((after - before) // 2 for before, after in zip(origins, origins[2:], strict=False))
    width = min([overlap if blend_width is None else blend_width, *available])
    zones = [(origin + length + following - width) // 2 for origin, following in pairwise(origins)]
    spans = (
        Span(origin, start, stop, width if start else 0, width if stop < size else 0)
        for origin, start, stop in zip(origins, [0, *zones], [*(zone + width for zone in zones), size], strict=True)
    )
    return Axis(length, width, tuple(spans))


def _count_steps(size: int, length: int, overlap: int, stride: int) -> float:
    """Return the number of windows after the first one; infinity if they do not reach the end."""
    last = _round_up(max(size - length, 0), stride)
    step = (length - overlap) // stride * stride
    if not last:
        return 0
    return -(-last // step) if step > 0 else math.inf


def blend_weights(width: int) -> NDArray[np.float32]:
    """Return the increasing weights of a blending zone, float32 (width,) between 0 and 1: half a Hann window, sin^2."""
    centres = (np.arange(width) + 0.5) / max(width, 1)
    return np.asarray(np.sin(np.pi / 2 * centres) ** 2, dtype=np.float32)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
