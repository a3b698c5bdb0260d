"""Blending: a scene goes through the network window by window and comes out as finished blocks of probabilities.

Windows are worked row by row (`tiling`). Of what is not finished, only strips are carried: the columns that the next
window of the row will blend with, and the rows that the next row of windows will. So memory depends on tile, channels
and the columns that are worked at once, not on the scene.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor

from segkit.errors import ways
from segkit.inference.runner import NotFinite, Runner
from segkit.inference.tiling import Band, Span, Tiling, fade
from segkit.io.region import Region
from segkit.io.scene import Scene, Tile
from segkit.runtime.prefetch import ahead

T = TypeVar("T")
Part = Literal["body", "top", "bottom"]


@dataclass(frozen=True)
class Block:
    """A part of a scene.

    Parameters
    ----------
    window
        Where it lies in the scene.
    probabilities
        float32 (C, H, W), 0 to 1, on the device of the network; meaningless where `valid` is false.
    valid
        bool (H, W): pixels that hold data and lie in the region.
    part
        "body" is finished. "top" and "bottom" are the transitions that a band shares with the ones before and after
        it: their probabilities are this band's share, and the sum of both shares is finished.
    """

    window: Window
    probabilities: Tensor
    valid: NDArray[np.bool_]
    part: Part = "body"


def predict_blocks(
    runner: Runner,
    scene: Scene,
    tiling: Tiling,
    band: Band | None = None,
    *,
    batch: int,
    region: Region | None = None,
    late: bool = False,
) -> Generator[Block]:
    """Predict a scene, or a band of it, and yield each of its pixels exactly once.

    The scene is opened and read in a thread of its own, ahead of the network. What lies beyond its rim is its
    reflection. Windows without a valid pixel are not computed. Close the generator (`contextlib.closing`) where it may
    be left early, so that the thread ends with it.

    Parameters
    ----------
    batch
        Windows of one forward pass.
    region
        Outside of it no pixel is valid, and what does not meet it is not read. The network still sees its surroundings.

    late
        Whether a GPU may go on before it is known that its windows hold finite numbers: what was yielded last counts
        only when the generator has ended.

    Raises
    ------
    RasterError
        While iterating: a file is damaged.
    NotFinite
        While iterating: the network gives no finite numbers for a window.
    TileTooLarge
        While iterating: a window does not fit into the device's memory.
    """
    band = band or tiling.whole
    blend = _Blend(runner.channels, tiling, band, runner.device)
    # The threads of a network on a CPU wait for each other: one that shares its core slows down all.
    reading = ahead(_read(scene, tiling, band, region, batch), depth=1, yielding=runner.device.type == "cpu")
    finite = _Finite(runner, scene, late=late)
    with closing(reading) as groups:
        for group in groups:
            yield from _computed(runner, blend, finite, group)
    finite.check()


def _computed(runner: Runner, blend: _Blend, finite: _Finite, group: Sequence[_Seen]) -> Generator[Block]:
    """Take windows through the network; what is large of them is gone when the next ones are."""
    with_data = [seen for seen in group if seen.tile is not None]
    computed: Iterator[Tensor] = iter(())
    if with_data:
        probabilities = runner([seen.tile for seen in group if seen.tile is not None])
        finite.add(with_data, probabilities)
        computed = iter(probabilities)
        del probabilities
    for seen in group:
        yield from blend.add(seen, None if seen.tile is None else next(computed))


class _Finite:
    """Refuses windows for which the network gives no finite numbers."""

    def __init__(self, runner: Runner, scene: Scene, *, late: bool) -> None:
        self._runner, self._scene = runner, scene
        self._left = int(late and runner.device.type == "cuda")
        self._waiting: deque[tuple[Sequence[_Seen], Callable[[], dict[str, NDArray[Any]]]]] = deque()

    def add(self, windows: Sequence[_Seen], probabilities: Tensor) -> None:
        """Take what the runner gave for windows with data, and check it, or where that may be late, what came before.

        Raises
        ------
        NotFinite
            There are no finite numbers for a window.
        """
        # The runner leaves NaN in all of such a window, so that one pixel tells.
        self._waiting.append((windows, fetched({"corner": probabilities[:, 0, 0, 0]})))
        self.check(self._left)

    def check(self, left: int = 0) -> None:
        """Check all that came but the last `left`; raises as `add`."""
        while len(self._waiting) > left:
            windows, corners = self._waiting.popleft()
            for seen, corner in zip(windows, corners()["corner"], strict=True):
                if np.isnan(corner):
                    raise self._refusal(seen)

    def _refusal(self, seen: _Seen) -> NotFinite:
        tile, (height, width) = seen.tile, self._scene.grid.shape
        assert tile is not None
        bottom, right = (
            min(span.origin + length, size) - 1
            for span, length, size in zip((seen.row, seen.column), tile.valid.shape, (height, width), strict=True)
        )
        values = tile.pixels[:, tile.valid]
        precision = self._runner.precision
        advice = (
            f"; its pixel values go from {np.nanmin(values):g} to {np.nanmax(values):g}: if one of them means no data, "
            "declare it (gdal_edit.py -a_nodata VALUE FILE); if they are right, train the model again"
            if precision == "fp32"
            else ways("compute in fp32 (--precision fp32)", "train again with a lower train.learning_rate")
        )
        return NotFinite(
            f"{self._scene.paths[0]}: in {precision} the network gives NaN or infinite values for the window of rows "
            f"{seen.row.origin} to {bottom} and columns {seen.column.origin} to {right}{advice}"
        )


def fetched(tensors: Mapping[str, Tensor]) -> Callable[[], dict[str, NDArray[Any]]]:
    """Start to bring tensors to main memory; the function returned waits for them."""
    if not any(tensor.is_cuda for tensor in tensors.values()):
        return lambda: {name: tensor.numpy() for name, tensor in tensors.items()}
    copies = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
        for name, tensor in tensors.items()
    }
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()

    def wait() -> dict[str, NDArray[Any]]:
        arrived.synchronize()
        return {name: copy.numpy() for name, copy in copies.items()}

    return wait


@dataclass(frozen=True)
class _Seen:
    """A window as the network gets it, and which of the pixels that it has a say in are wanted, bool (H, W)."""

    row: Span
    column: Span
    tile: Tile | None
    valid: NDArray[np.bool_]


def _read(scene: Scene, tiling: Tiling, band: Band, region: Region | None, batch: int) -> Generator[list[_Seen]]:
    """Read the windows of a band, `batch` at a time."""
    rows, columns = tiling.rows, tiling.columns
    with scene.open() as reader:

        def look(row: Span, column: Span) -> _Seen:
            nothing = _Seen(row, column, None, np.zeros((row.stop - row.start, column.stop - column.start), dtype=bool))
            wanted = None if region is None else region.mask(_window(row.start, row.stop, column.start, column.stop))
            if wanted is not None and not wanted.any():
                return nothing
            bottom = min(row.origin + rows.length, scene.grid.height)
            right = min(column.origin + columns.length, scene.grid.width)
            tile = reader.read(_window(row.origin, bottom, column.origin, right))
            valid = _own(tile.valid, row, column)
            valid = valid if wanted is None else valid & wanted
            if not valid.any():
                return nothing
            return _Seen(row, column, tile.padded(rows.length, columns.length), valid)

        windows = (look(row, column) for group in tiling.groups for row in band.spans for column in group)
        while group := list(islice(windows, batch)):
            yield group


class _Blend:
    """Blends each window with its neighbours before it and holds back what those after it will finish."""

    def __init__(self, channels: int, tiling: Tiling, band: Band, device: torch.device) -> None:
        self._band = band
        self._row_fade = torch.from_numpy(fade(tiling.rows.ramp)).to(device)[:, None]
        self._column_fade = torch.from_numpy(fade(tiling.columns.ramp)).to(device)
        self._zero = torch.zeros((channels, 1, 1), device=device)
        # Held back for the window to the right, by row of windows, and for the one below, by column of windows.
        self._left: dict[int, Tensor] = {}
        self._above: dict[int, Tensor] = {}

    @torch.inference_mode()
    def add(self, seen: _Seen, probabilities: Tensor | None) -> list[Block]:
        """Take a window's probabilities (C, H, W), which are overwritten, and return what it finishes and shares.

        None stands for a window none of whose pixels is wanted. What its neighbours held back for it is not either.
        """
        row, column = seen.row, seen.column
        left, above = self._left.pop(row.origin, None), self._above.pop(column.origin, None)
        if probabilities is None:
            own = self._zero.expand(-1, row.end - row.start, column.end - column.start)
            below = None
        else:
            own = _own(probabilities, row, column)
            own, right = _hand_over(own, 2, column, self._column_fade, left)
            own, below = _hand_over(own, 1, row, self._row_fade, above)
            if right is not None:
                self._left[row.origin] = right

        def block(top: int, bottom: int, what: Tensor, part: Part = "body") -> Block:
            window = _window(row.start + top, row.start + bottom, column.start, column.end)
            return Block(window, what, seen.valid[top:bottom, : column.end - column.start], part)

        finished = row.end - row.start
        shared = row.rise if row is self._band.spans[0] else 0
        blocks = [block(shared, finished, own[:, shared:])]
        if shared:
            blocks.append(block(0, shared, own[:, :shared], "top"))
        if below is not None and row is self._band.spans[-1]:
            blocks.append(block(finished, finished + row.fall, below, "bottom"))
        elif below is not None:
            self._above[column.origin] = below
        return blocks


def _hand_over(
    own: Tensor, axis: int, span: Span, weights: Tensor, carried: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Blend the start of a window with what its neighbour carried, and split off what it carries itself."""
    if span.rise:
        start = own.narrow(axis, 0, span.rise).mul_(weights)
        if carried is not None:
            start.add_(carried)
    finished = span.end - span.start
    held = own.narrow(axis, finished, span.fall) * (1 - weights) if span.fall else None
    return own.narrow(axis, 0, finished), held


def _own(array: T, row: Span, column: Span) -> T:
    """Cut what a window has a say in out of the window, (..., H, W)."""
    rows = slice(row.start - row.origin, row.stop - row.origin)
    return array[..., rows, column.start - column.origin : column.stop - column.origin]  # type: ignore[index, no-any-return]


def _window(top: int, bottom: int, left: int, right: int) -> Window:
    return Window(left, top, right - left, bottom - top)
