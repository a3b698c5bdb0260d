"""Plan: which windows along an axis the network sees, and where neighbours hand over to each other.

A scene is predicted by windows whose places are the product of two axes, and a window's weight is w(row) * w(column).
Along an axis, w is 1 where a window decides alone, 0 where it has no say, and goes from one to the other in a
transition that it shares with one neighbour, whose weight there is 1 - w. So weights sum to one everywhere, up to the
rim, without a division and without an accumulator as large as the scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from segkit.errors import UsageError


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
        Pixels of each window, a multiple of the stride; the last window may reach beyond the scene by less than one.
    ramp
        Pixels of each transition.
    spans
        In order; from `start` to `end` they cover the axis once.
    """

    length: int
    ramp: int
    spans: tuple[Span, ...]


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


def plan_axis(size: int, tile: int, overlap: int, stride: int) -> Axis:
    """Spread windows of `tile` pixels, rounded up to the stride, evenly over an axis of `size` pixels.

    Neighbours share at least `overlap` pixels. A transition lies in the middle of what they share, where both see
    furthest; it has `overlap` pixels, or fewer where it would meet the next one. An axis that fits into one window has
    one, no larger than it must be.

    Raises
    ------
    UsageError
        See `check_tiling`.
    """
    check_tiling(tile, overlap, stride)
    length = _round_up(min(tile, size), stride)
    last = _round_up(max(size - length, 0), stride)
    longest = (length - overlap) // stride * stride
    steps = -(-last // longest) if last else 0
    origins = [last // stride * i // steps * stride for i in range(steps + 1)] if steps else [0]
    ramp = min([overlap, *((after - before) // 2 for before, after in zip(origins, origins[2:], strict=False))])
    cuts = [(origin + length + following - ramp) // 2 for origin, following in pairwise(origins)]
    spans = (
        Span(origin, start, stop, ramp if start else 0, ramp if stop < size else 0)
        for origin, start, stop in zip(origins, [0, *cuts], [*(cut + ramp for cut in cuts), size], strict=True)
    )
    return Axis(length, ramp, tuple(spans))


def fade(ramp: int) -> NDArray[np.float32]:
    """Return the rising weights of a transition, float32 (ramp,) inside 0..1: half a Hann window, sin^2."""
    middles = (np.arange(ramp) + 0.5) / max(ramp, 1)
    return np.asarray(np.sin(np.pi / 2 * middles) ** 2, dtype=np.float32)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
