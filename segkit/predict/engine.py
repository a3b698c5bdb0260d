"""Engine: a scene goes through the network window by window and comes out as finished blocks of probabilities.

Windows are worked row by row (`plan`). Of what is not finished, only two strips are carried: the columns that the next
window of the row will blend with, and, over the scene's width, the rows that the next row of windows will. So memory
depends on tile, channels and the width of the scene, not on its height.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor

from segkit.errors import UsageError
from segkit.predict.device import pick_device, pick_precision
from segkit.predict.plan import Axis, Span, check_tiling, fade, plan_axis
from segkit.predict.region import Region
from segkit.raster import Scene, Tile

if TYPE_CHECKING:
    from segkit.model import Segmenter

T = TypeVar("T")

# Window pixels of one forward pass, where no batch size is given: a CPU gains nothing from more.
_PIXELS_AT_ONCE = {"cpu": 2**20, "cuda": 2**22}


@dataclass(frozen=True)
class Block:
    """A finished part of a scene.

    Parameters
    ----------
    window
        Where it lies in the scene.
    probabilities
        float32 (C, H, W), 0 to 1, on the device of the network; meaningless where `valid` is false.
    valid
        bool (H, W): pixels that hold data and lie in the region.
    """

    window: Window
    probabilities: Tensor
    valid: NDArray[np.bool_]


def predict_blocks(
    model: Segmenter,
    scene: Scene,
    *,
    tile: int = 1024,
    overlap: int = 128,
    batch: int | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
    region: Region | None = None,
) -> Generator[Block]:
    """Predict a scene and yield each of its pixels exactly once, as blocks that are finished, row by row of windows.

    The scene is opened and read in a thread of its own, ahead of the network. What lies beyond its rim is its
    reflection. Windows without a valid pixel are not computed. The model is moved to the device and stays there. Close
    the generator (`contextlib.closing`) where it may be left early, so that the thread ends with it.

    Parameters
    ----------
    tile, overlap
        Pixels along a side of a window, and how many of them neighbours share at least.
    batch
        Windows of one forward pass.
    device
        "auto", "cpu", "cuda" or "cuda:N".
    precision
        "auto", "fp32" or "bf16".
    region
        Outside of it no pixel is valid, and what does not meet it is not read. The network still sees its surroundings.

    Raises
    ------
    UsageError
        An option cannot be met.
    ModelFileError
        The scene does not have the model's bands.
    RasterError
        While iterating: a file is damaged.
    """
    model.check_scene(scene)
    check_tiling(tile, overlap, model.stride)
    if batch is not None and batch < 1:
        raise UsageError(f"batch is {batch}; at least 1 window is computed at a time")
    where = pick_device(device)
    rows = plan_axis(scene.grid.height, tile, overlap, model.stride)
    columns = plan_axis(scene.grid.width, tile, overlap, model.stride)
    batch = batch or max(1, _PIXELS_AT_ONCE[where.type] // (rows.length * columns.length))
    return _blocks(model, scene, rows, columns, region, batch, where, pick_precision(precision, where))


def ahead(items: Generator[T], depth: int) -> Generator[T]:
    """Yield what `items` yields; it runs in a thread of its own, at most `depth` items ahead.

    What it opens, it also closes in that thread, in particular when this generator is closed early. Its exceptions are
    raised here.
    """
    end = object()
    with ThreadPoolExecutor(1) as thread:
        waiting: deque[Future[T | object]] = deque(thread.submit(next, items, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, items, end))
                yield item  # type: ignore[misc]
        finally:
            for future in waiting:
                future.cancel()
            thread.submit(items.close).result()


@dataclass(frozen=True)
class _Seen:
    """A window as the network gets it, and which of the pixels that it finishes are wanted."""

    row: Span
    column: Span
    tile: Tile | None
    valid: NDArray[np.bool_]


def _blocks(
    model: Segmenter,
    scene: Scene,
    rows: Axis,
    columns: Axis,
    region: Region | None,
    batch: int,
    device: torch.device,
    precision: str,
) -> Generator[Block]:
    training = model.training
    model.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    blend = _Blend(model.task.channels, rows, columns, device)
    try:
        with closing(ahead(_read(scene, rows, columns, region, batch), depth=2)) as groups:
            for group in groups:
                tiles = [seen.tile for seen in group if seen.tile is not None]
                computed = iter(_probabilities(model, tiles, device, precision) if tiles else ())
                for seen in group:
                    probabilities = None if seen.tile is None else next(computed)
                    yield Block(
                        _window(seen.row.start, seen.row.end, seen.column.start, seen.column.end),
                        blend.add(probabilities, seen.row, seen.column),
                        seen.valid,
                    )
    finally:
        model.train(training)


def _read(scene: Scene, rows: Axis, columns: Axis, region: Region | None, batch: int) -> Generator[list[_Seen]]:
    """Read the scene's windows, `batch` at a time."""
    with scene.open() as reader:

        def look(row: Span, column: Span) -> _Seen:
            nothing = _Seen(row, column, None, np.zeros((row.end - row.start, column.end - column.start), dtype=bool))
            wanted = None if region is None else region.mask(_window(row.start, row.stop, column.start, column.stop))
            if wanted is not None and not wanted.any():
                return nothing
            bottom = min(row.origin + rows.length, scene.grid.height)
            right = min(column.origin + columns.length, scene.grid.width)
            tile = reader.read(_window(row.origin, bottom, column.origin, right))
            valid = tile.valid[row.start - row.origin : row.stop - row.origin][
                :, column.start - column.origin : column.stop - column.origin
            ]
            valid = valid if wanted is None else valid & wanted
            if not valid.any():
                return nothing
            beyond = ((0, row.origin + rows.length - bottom), (0, column.origin + columns.length - right))
            tile = Tile(
                np.pad(tile.pixels, ((0, 0), *beyond), mode="reflect"), np.pad(tile.valid, beyond, mode="reflect")
            )
            return _Seen(row, column, tile, valid[: row.end - row.start, : column.end - column.start])

        windows = (look(row, column) for row in rows.spans for column in columns.spans)
        while group := list(islice(windows, batch)):
            yield group


def _probabilities(model: Segmenter, tiles: Sequence[Tile], device: torch.device, precision: str) -> Tensor:
    """Return the network's probabilities for tiles of one size, float32 (N, C, H, W)."""
    pixels = torch.from_numpy(np.stack([tile.pixels for tile in tiles]))
    valid = torch.from_numpy(np.stack([tile.valid for tile in tiles]))
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(pixels.to(device), valid.to(device))
        return model.task.probabilities(logits)


class _Blend:
    """Blends each window with its neighbours before it and holds back what those after it will finish."""

    def __init__(self, channels: int, rows: Axis, columns: Axis, device: torch.device) -> None:
        self._row_fade = torch.from_numpy(fade(rows.ramp)).to(device)[:, None]
        self._column_fade = torch.from_numpy(fade(columns.ramp)).to(device)
        width = columns.spans[-1].stop
        self._above = torch.zeros((channels, rows.ramp, width), device=device)
        self._before = torch.zeros(channels, 1, 1, device=device)

    def add(self, probabilities: Tensor | None, row: Span, column: Span) -> Tensor:
        """Take a window's probabilities (C, H, W), which are overwritten, and return those that it finishes.

        None stands for a window none of whose pixels matters: they are 0.
        """
        above = self._above[:, :, column.start : column.end]
        with torch.inference_mode():
            if probabilities is None:
                above.zero_()
                self._before = self._before.new_zeros(())
                return above.new_zeros(()).expand(len(above), row.end - row.start, column.end - column.start)
            own = probabilities[:, row.start - row.origin : row.stop - row.origin]
            own = own[:, :, column.start - column.origin : column.stop - column.origin]
            own, self._before = _hand_over(own, 2, column, self._column_fade, self._before)
            own, below = _hand_over(own, 1, row, self._row_fade, above)
            if row.fall:
                above.copy_(below)
            return own


def _hand_over(own: Tensor, axis: int, span: Span, weights: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    """Blend the start of a window with what its neighbour carried, and split off what it carries itself."""
    if span.rise:
        own.narrow(axis, 0, span.rise).mul_(weights).add_(carried)
    finished = span.end - span.start
    return own.narrow(axis, 0, finished), own.narrow(axis, finished, span.fall) * (1 - weights[: span.fall])


def _window(top: int, bottom: int, left: int, right: int) -> Window:
    return Window(left, top, right - left, bottom - top)
