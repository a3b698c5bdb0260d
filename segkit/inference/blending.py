"""Blending: predicts a scene window by window, and yields finished blocks of probabilities.

Windows are predicted row by row (`tiling`). Only the blending zones are kept in memory: columns for the next window of
the row, and rows for the next row of windows. So memory depends on tile, channels and the width of a group of columns,
not on the size of the scene.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.errors import suggest
from segkit.inference.runner_base import NonFiniteLogitsError, Runner
from segkit.inference.tiling import Band, Span, Tiling, blend_weights
from segkit.io.region import Region
from segkit.io.scene import Scene, Tile
from segkit.io.unreadable import UnreadableBlock
from segkit.models.applicability_index import ApplicabilityIndex
from segkit.runtime.prefetch import prefetch
from segkit.task.array_library import library_of, to_numpy, without_gradients

if TYPE_CHECKING:
    from segkit.task.array_library import Array

T = TypeVar("T")
BlockPart = Literal["body", "top", "bottom"]
_PixelIndex = Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.float32]]


@dataclass(frozen=True)
class Block:
    """A block of probabilities.

    Parameters
    ----------
    window
        In pixels of the scene.
    probabilities
        float32 (C, H, W), 0 to 1, all channels of the runner, as it returns them; undefined if `valid` is false.
    valid
        bool (H, W): pixels that have data and are in the region.
    part
        "body" is finished. "top" and "bottom" are the blending zones shared with the bands above and below: their
        probabilities are weighted, and those of both bands have to be summed.
    dissimilarity
        float32 (H, W): the index of `ApplicabilityIndex`, NaN where not valid. Of shared rows the lower band has it
        ("top"). None for "bottom", if no pixel is valid, or if it is not asked for.
    """

    window: Window
    probabilities: Any
    valid: NDArray[np.bool_]
    part: BlockPart = "body"
    dissimilarity: NDArray[np.float32] | None = None


def predict_blocks(
    runner: Runner[Any],
    scene: Scene,
    tiling: Tiling,
    band: Band | None = None,
    *,
    batch: int,
    region: Region | None = None,
    index: ApplicabilityIndex | None = None,
    late: bool = False,
    unreadable: list[UnreadableBlock] | None = None,
) -> Generator[Block]:
    """Predict a scene, or a band of it, and yield each of its pixels once.

    The scene is read ahead in a thread. Beyond its edge it is extended by reflection. Windows without a valid pixel are
    not computed. Use `contextlib.closing` if iteration may stop early, so that the thread ends.

    Parameters
    ----------
    batch
        Windows per forward pass.
    region
        Pixels outside are not valid, and windows outside are not read. The network still sees the pixels around the
        region.
    index
        The dissimilarity index of the blocks' pixels, which is computed while reading ahead.
    late
        Whether a GPU may continue before its windows are checked for NaN; the last blocks are then checked only at the
        end of the iteration.
    unreadable
        To which the blocks are added that could not be read, if the scene skips them.

    Raises
    ------
    RasterError
        While iterating: a file is damaged.
    NonFiniteLogitsError
        While iterating: the network gives NaN or infinite values for a window.
    OutOfMemoryError
        While iterating: a window does not fit into the memory of the device.
    """
    band = band or tiling.single_band
    dissimilarity = None if index is None else functools.partial(index.of_pixels, threads=runner.threads)
    blender = _Blender(runner, tiling, band)
    # The threads of a network on a CPU wait for each other, so one that shares its core slows down all.
    reading = prefetch(
        _read_windows(
            scene,
            tiling,
            band,
            region,
            dissimilarity,
            batch,
            threads=runner.threads,
            unreadable=[] if unreadable is None else unreadable,
        ),
        depth=1,
        low_priority=runner.device.type == "cpu",
    )
    finite = _FiniteCheck(runner, scene, late=late)
    with closing(reading) as groups:
        for group in groups:
            yield from _predict_group(runner, blender, finite, group)
    finite.check()


def _predict_group(
    runner: Runner[Any], blender: _Blender, finite: _FiniteCheck, group: Sequence[_ReadWindow]
) -> Generator[Block]:
    """Predict and blend a batch of windows; its tiles are freed before the next batch."""
    with_data = [one for one in group if one.tile is not None]
    computed: Iterator[Any] = iter(())
    if with_data:
        probabilities = runner([one.tile for one in group if one.tile is not None])
        finite.add(with_data, probabilities)
        computed = iter(probabilities)
        del probabilities
    for one in group:
        yield from blender.add(one, None if one.tile is None else next(computed))


class _FiniteCheck:
    """Raises an error if the network gives NaN or infinite values for a window."""

    def __init__(self, runner: Runner[Any], scene: Scene, *, late: bool) -> None:
        self._runner, self._scene = runner, scene
        self._left = int(late and runner.device.type == "cuda")
        self._waiting: deque[tuple[Sequence[_ReadWindow], Callable[[], dict[str, NDArray[Any]]]]] = deque()

    def add(self, windows: Sequence[_ReadWindow], probabilities: Array) -> None:
        """Add the probabilities of windows with data, and check them, or the ones before if checks may be late.

        Raises
        ------
        NonFiniteLogitsError
            The probabilities of a window are NaN.
        """
        # The runner sets all pixels of such a window to NaN, so one pixel is enough.
        self._waiting.append((windows, fetch_async({"corner": probabilities[:, 0, 0, 0]})))
        self.check(self._left)

    def check(self, left: int = 0) -> None:
        """Check all windows but the last `left` batches; raises as `add`."""
        while len(self._waiting) > left:
            windows, corners = self._waiting.popleft()
            for window, corner in zip(windows, corners()["corner"], strict=True):
                if np.isnan(corner):
                    raise self._error(window)

    def _error(self, window: _ReadWindow) -> NonFiniteLogitsError:
        tile, (height, width) = window.tile, self._scene.grid.shape
        assert tile is not None
        bottom, right = (
            min(span.origin + length, size) - 1
            for span, length, size in zip((window.row, window.column), tile.valid.shape, (height, width), strict=True)
        )
        values = tile.pixels[:, tile.valid]
        precision = self._runner.precision
        advice = (
            f"; its pixel values range from {np.nanmin(values):g} to {np.nanmax(values):g}: if one of them means no "
            "data, declare it (gdal_edit.py -a_nodata VALUE FILE); if they are right, train the model again"
            if precision == "fp32"
            else suggest("compute in fp32 (--precision fp32)", "train again with a lower train.learning_rate")
        )
        return NonFiniteLogitsError(
            f"{self._scene.paths[0]}: in {precision} the network gives NaN or infinite values for the window of rows "
            f"{window.row.origin} to {bottom} and columns {window.column.origin} to {right}{advice}"
        )


def fetch_async(arrays: Mapping[str, Any]) -> Callable[[], dict[str, NDArray[Any]]]:
    """Start copying tensors to main memory; the returned function waits for them and returns arrays."""
    device = next((one.device for one in arrays.values() if getattr(one, "is_cuda", False)), None)
    if device is None:  # an Apple GPU copies at once
        found = {name: to_numpy(one) for name, one in arrays.items()}
        return lambda: found
    import torch

    copies = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
        for name, tensor in arrays.items()
    }
    finished = torch.cuda.Event()  # type: ignore[no-untyped-call]
    finished.record(torch.cuda.current_stream(device))  # by default that of the first device

    def wait() -> dict[str, NDArray[Any]]:
        finished.synchronize()
        return {name: copy.numpy() for name, copy in copies.items()}

    return wait


@dataclass(frozen=True)
class _ReadWindow:
    """A window: its tile, and the mask, bool (H, W), of pixels to predict between `start` and `stop` of its spans.

    The tile is None if no pixel is to be predicted. The dissimilarity index, float32 (h, w), is that of the pixels
    between `start` and `finished_stop`.
    """

    row: Span
    column: Span
    tile: Tile | None
    valid: NDArray[np.bool_]
    dissimilarity: NDArray[np.float32] | None = None


def _read_windows(
    scene: Scene,
    tiling: Tiling,
    band: Band,
    region: Region | None,
    dissimilarity: _PixelIndex | None,
    batch: int,
    *,
    threads: int,
    unreadable: list[UnreadableBlock],
) -> Generator[list[_ReadWindow]]:
    """Read the windows of a band, `batch` at a time; at the end, add the blocks that could not be read.

    GDAL decodes the blocks of a window with several threads.
    """
    rows, columns = tiling.rows, tiling.columns
    with rasterio.Env(GDAL_NUM_THREADS=os.environ.get("GDAL_NUM_THREADS", threads)), scene.open() as reader:

        def read(row: Span, column: Span) -> _ReadWindow:
            no_pixel = np.zeros((row.stop - row.start, column.stop - column.start), dtype=bool)
            empty = _ReadWindow(row, column, None, no_pixel)
            in_region = None if region is None else region.mask(_window(row.start, row.stop, column.start, column.stop))
            if in_region is not None and not in_region.any():
                return empty
            bottom = min(row.origin + rows.length, scene.grid.height)
            right = min(column.origin + columns.length, scene.grid.width)
            tile = reader.read(_window(row.origin, bottom, column.origin, right))
            valid = _crop_to_spans(tile.valid, row, column)
            valid = valid if in_region is None else valid & in_region
            if not valid.any():
                return empty
            index = None
            if dissimilarity is not None:
                height, width = row.finished_stop - row.start, column.finished_stop - column.start
                pixels = _crop_to_spans(tile.pixels, row, column)[:, :height, :width]
                index = dissimilarity(pixels, valid[:height, :width])
            return _ReadWindow(row, column, tile.padded(rows.length, columns.length), valid, index)

        windows = (read(row, column) for group in tiling.column_groups for row in band.spans for column in group)
        while group := list(islice(windows, batch)):
            yield group
        unreadable += reader.unreadable


class _Blender:
    """Blends each window with those above and to the left, and keeps what the following windows need."""

    def __init__(self, runner: Runner[Any], tiling: Tiling, band: Band) -> None:
        self._band = band
        self._row_weights = runner.from_numpy(blend_weights(tiling.rows.blend_width))[:, None]
        self._column_weights = runner.from_numpy(blend_weights(tiling.columns.blend_width))
        self._zero = runner.from_numpy(np.zeros((runner.channels, 1, 1), dtype=np.float32))
        # Kept for the window to the right, by row of windows, and for the one below, by column of windows.
        self._left: dict[int, Any] = {}
        self._above: dict[int, Any] = {}

    def add(self, window: _ReadWindow, probabilities: Array | None) -> list[Block]:
        """Add the probabilities (C, H, W) of a window, which are overwritten, and return the blocks that it completes.

        None stands for a window without valid pixels. The pixels that it shares with neighbours are not valid either.
        """
        with without_gradients(self._zero):
            return self._add(window, probabilities)

    def _add(self, window: _ReadWindow, probabilities: Array | None) -> list[Block]:
        row, column = window.row, window.column
        left, above = self._left.pop(row.origin, None), self._above.pop(column.origin, None)
        if probabilities is None:
            shape = len(self._zero), row.finished_stop - row.start, column.finished_stop - column.start
            blended: Any = library_of(self._zero).broadcast_to(self._zero, shape)
            below = None
        else:
            blended = _crop_to_spans(probabilities, row, column)
            blended, right = _blend_axis(blended, 2, column, self._column_weights, left)
            blended, below = _blend_axis(blended, 1, row, self._row_weights, above)
            if right is not None:
                self._left[row.origin] = right

        def block(top: int, bottom: int, values: Array, part: BlockPart = "body") -> Block:
            place = _window(row.start + top, row.start + bottom, column.start, column.finished_stop)
            valid = window.valid[top:bottom, : column.finished_stop - column.start]
            index = None if part == "bottom" or window.dissimilarity is None else window.dissimilarity[top:bottom]
            return Block(place, values, valid, part, index)

        finished = row.finished_stop - row.start
        shared = row.blend_before if row is self._band.spans[0] else 0
        blocks = [block(shared, finished, blended[:, shared:])]
        if shared:
            blocks.append(block(0, shared, blended[:, :shared], "top"))
        if below is not None and row is self._band.spans[-1]:
            blocks.append(block(finished, finished + row.blend_after, below, "bottom"))
        elif below is not None:
            self._above[column.origin] = below
        return blocks


def _blend_axis(values: Any, axis: int, span: Span, weights: Any, kept: Any | None) -> tuple[Any, Any | None]:
    """Add what was kept of the previous window; return the finished pixels, and what to keep for the next window."""
    if span.blend_before:
        start = _part(values, axis, 0, span.blend_before)
        start *= weights
        if kept is not None:
            start += kept
    finished = span.finished_stop - span.start
    to_keep = _part(values, axis, finished, span.blend_after) * (1 - weights) if span.blend_after else None
    return _part(values, axis, 0, finished), to_keep


def _part(values: Any, axis: int, start: int, length: int) -> Any:
    """Return a view of a part of an axis."""
    return values[(slice(None),) * axis + (slice(start, start + length),)]


def _crop_to_spans(array: T, row: Span, column: Span) -> T:
    """Crop a window (..., H, W) to the pixels between `start` and `stop` of its spans."""
    rows = slice(row.start - row.origin, row.stop - row.origin)
    return array[..., rows, column.start - column.origin : column.stop - column.origin]  # type: ignore[index, no-any-return]


def _window(top: int, bottom: int, left: int, right: int) -> Window:
    return Window(left, top, right - left, bottom - top)
