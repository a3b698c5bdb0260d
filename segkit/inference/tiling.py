"""Plan: which windows along an axis the network sees, and where neighbours hand over to each other.

A scene is predicted by windows whose places are the product of two axes, and a window's weight is w(row) * w(column).
Along an axis, w is 1 where a window decides alone, 0 where it has no say, and goes from one to the other in a
transition that it shares with one neighbour, whose weight there is 1 - w. So weights sum to one everywhere, up to the
rim, without a division and without an accumulator as large as the scene.

Rows of windows are gathered into bands. A band is predicted on its own, by whoever and whenever: what it finishes is
its body, and the transitions at its two ends are left to be summed with its neighbours'.
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

# Columns that are worked at once: a wider scene is done group by group, so that memory does not follow its width.
_COLUMNS_AT_ONCE = 2**14
# Pixels of a band, up to twice as many: seconds on a GPU, half a minute on a CPU.
_BAND_PIXELS = 2**25


@dataclass(frozen=True)
class Span:
    """One window along one axis, in pixels of the scene.

    Parameters
    ----------
    origin
        First pixel that the network sees, a multiple of its stride.
    start, stop
        The pixels that the window has a say in, half-open; inside the scene and inside the window.
    rise, fall
        Lengths of the transitions at their two ends, shared with the neighbours; 0 at the scene's rim.
    """

    origin: int
    start: int
    stop: int
    rise: int
    fall: int

    @property
    def end(self) -> int:
        """End of the pixels that are finished when this window and those before it are done."""
        return self.stop - self.fall


@dataclass(frozen=True)
class Axis:
    """The windows along one axis.

    Parameters
    ----------
    length
        Pixels of each window, a multiple of the stride; the last window may reach beyond the scene.
    ramp
        Pixels of each transition.
    spans
        In order; from `start` to `end` they cover the axis once.
    """

    length: int
    ramp: int
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Band:
    """Neighbouring rows of windows, over the whole width of the scene.

    Parameters
    ----------
    index
        From 0, from the top.
    spans
        The rows of windows.
    """

    index: int
    spans: tuple[Span, ...]

    @property
    def start(self) -> int:
        """First row of the scene that this band finishes; the `spans[0].rise` rows before are shared."""
        return self.spans[0].start + self.spans[0].rise

    @property
    def stop(self) -> int:
        """End of the rows that this band finishes; the `spans[-1].fall` rows after are shared."""
        return self.spans[-1].end


@dataclass(frozen=True)
class Tiling:
    """How a scene is cut into windows."""

    rows: Axis
    columns: Axis

    @property
    def pixel_cost(self) -> float:
        """Pixels that the network computes by pixels of the scene, if every window holds data."""
        cost = 1.0
        for axis in (self.rows, self.columns):
            cost *= len(axis.spans) * axis.length / axis.spans[-1].stop
        return cost

    @property
    def whole(self) -> Band:
        """All rows of windows as one band."""
        return Band(0, self.rows.spans)

    @functools.cached_property
    def bands(self) -> tuple[Band, ...]:
        """The bands, of as many rows of windows each as can be, and of some millions of pixels."""
        number = len(self.rows.spans)
        wanted = max(1, min(number, self.rows.spans[-1].stop * self.columns.spans[-1].stop // _BAND_PIXELS))
        bands: list[Band] = []
        spans: list[Span] = []
        for count, span in enumerate(self.rows.spans, 1):
            spans.append(span)
            band = Band(len(bands), tuple(spans))
            # Where transitions touch, a row of windows may finish nothing by itself.
            if band.stop > band.start and count * wanted >= (len(bands) + 1) * number:
                bands.append(band)
                spans = []
        if spans:
            last = bands.pop()
            bands.append(Band(last.index, (*last.spans, *spans)))
        return tuple(bands)

    @property
    def groups(self) -> tuple[tuple[Span, ...], ...]:
        """The columns of windows that are worked at once, from left to right."""
        groups: list[list[Span]] = [[]]
        for span in self.columns.spans:
            if groups[-1] and span.stop - groups[-1][0].start > _COLUMNS_AT_ONCE:
                groups.append([])
            groups[-1].append(span)
        return tuple(map(tuple, groups))


def plan_tiling(
    grid: Grid, tile: int, overlap: int, stride: int, *, ramp: int | None = None, fixed: bool = False
) -> Tiling:
    """Plan the windows of a scene; the parameters are those of `plan_axis`."""
    rows, columns = (plan_axis(size, tile, overlap, stride, ramp=ramp, fixed=fixed) for size in grid.shape)
    return Tiling(rows, columns)


def check_tiling(tile: int, overlap: int, stride: int) -> None:
    """Refuse a tiling that leaves no room for transitions, or no way forward.

    Raises
    ------
    UsageError
        `overlap` is negative or more than half of `tile`, or both fit into one stride of the network.
    """
    if tile < 1 or overlap < 0 or 2 * overlap > tile:
        raise UsageError(
            f"tile {tile} with overlap {overlap}: a tile has at least 1 pixel, and at most half of it "
            "overlaps the next; make the tile larger or the overlap smaller"
        )
    if overlap and tile <= stride:
        raise UsageError(
            f"tile {tile} with overlap {overlap}: the network works in steps of {stride} pixels, and overlapping tiles "
            "are larger than one step; make the tile larger"
        )


def plan_axis(size: int, tile: int, overlap: int, stride: int, *, ramp: int | None = None, fixed: bool = False) -> Axis:
    """Spread windows evenly over an axis.

    As few windows as possible, and those as short as possible: an axis that fits into one window has one, no larger
    than it must be.

    Parameters
    ----------
    size
        Pixels of the axis.
    tile
        Pixels of a window at most, rounded up to the stride.
    overlap
        Pixels that neighbours share at least.
    stride
        Of the network; every window starts on a multiple of it, seen from the scene's rim.
    ramp
        Pixels of a transition, by default `overlap`; fewer where it would meet the next one. It lies in the middle of
        what neighbours share, where both see furthest.
    fixed
        Whether windows are never shorter than `tile`, be the axis as short as it may.

    Raises
    ------
    UsageError
        See `check_tiling`.
    """
    check_tiling(tile, overlap, stride)
    length = _round_up(tile, stride)
    steps = _steps(size, length, overlap, stride)
    if not fixed:
        lengths = range(stride, length + 1, stride)
        length = next(shorter for shorter in lengths if _steps(size, shorter, overlap, stride) <= steps)
    last = _round_up(max(size - length, 0), stride)
    steps = int(_steps(size, length, overlap, stride))
    origins = [last // stride * i // steps * stride for i in range(steps + 1)] if steps else [0]
    room = ((after - before) // 2 for before, after in zip(origins, origins[2:], strict=False))
    ramp = min([overlap if ramp is None else ramp, *room])
    cuts = [(origin + length + following - ramp) // 2 for origin, following in pairwise(origins)]
    spans = (
        Span(origin, start, stop, ramp if start else 0, ramp if stop < size else 0)
        for origin, start, stop in zip(origins, [0, *cuts], [*(cut + ramp for cut in cuts), size], strict=True)
    )
    return Axis(length, ramp, tuple(spans))


def _steps(size: int, length: int, overlap: int, stride: int) -> float:
    """Return how many windows of `length` follow the first one, infinity where they cannot reach the end."""
    last = _round_up(max(size - length, 0), stride)
    step = (length - overlap) // stride * stride
    if not last:
        return 0
    return -(-last // step) if step > 0 else math.inf


def fade(ramp: int) -> NDArray[np.float32]:
    """Return the rising weights of a transition, float32 (ramp,) inside 0..1: half a Hann window, sin^2."""
    middles = (np.arange(ramp) + 0.5) / max(ramp, 1)
    return np.asarray(np.sin(np.pi / 2 * middles) ** 2, dtype=np.float32)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
