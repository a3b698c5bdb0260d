"""Prediction of bands of rows into files, and of the seams between them.

A band is predicted independently of its neighbours, here or on another machine. For the rows that it shares with them
it stores its weighted probabilities as float32. A seam sums those of two bands and decides the classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.inference.blending import Block, BlockPart, fetch_async, predict_blocks
from segkit.inference.outputs import OutputRequest, compute_outputs
from segkit.inference.runner_base import Runner
from segkit.inference.summary import ClassTally
from segkit.inference.tiling import Band, Tiling
from segkit.io.cog import MapProfile, MapWriter, open_strip_writer
from segkit.io.grid import Grid
from segkit.io.raster import open_raster, read_window
from segkit.io.region import Region
from segkit.io.scene import Scene
from segkit.io.unreadable import UnreadableBlock, blocks_to_json
from segkit.models.applicability_index import ApplicabilityIndex
from segkit.runtime.prefetch import background_writer
from segkit.task import Task
from segkit.task.array_library import as_array, library_of, like, to_numpy

# Columns of a seam that are merged at a time, and rows of a block that are written at a time.
_SEAM_CHUNK_COLUMNS, _WRITE_CHUNK_ROWS = 4096, 256


def predict_band(
    runner: Runner[Any],
    scene: Scene,
    tiling: Tiling,
    band: Band,
    folder: Path,
    outputs: Sequence[OutputRequest],
    *,
    batch: int,
    region: Region | None = None,
    index: ApplicabilityIndex | None = None,
    advance: Callable[[float], None] = lambda step: None,
) -> dict[str, Any]:
    """Predict a band into files in `folder`: one per raster output, and the probabilities shared with neighbours.

    Parameters
    ----------
    index
        For outputs that are computed from pixels.
    advance
        Called with the millions of pixels of each step.

    Returns
    -------
    dict
        Counts of the finished pixels, see `ClassTally.counts`; and of those of the `index`, see `_IndexWriter.counts`.
        Blocks of the scene that could not be read are in `unreadable`, if there are any.
    """
    task, grid = runner.task, scene.grid
    blended = [one for one in outputs if not one.output.from_pixels]
    first, last = band.spans[0], band.spans[-1]
    shared = {"top": (first.start, first.blend_before), "bottom": (last.finished_stop, last.blend_after)}
    lost: list[UnreadableBlock] = []
    blocks = predict_blocks(
        runner, scene, tiling, band, batch=batch, region=region, index=index, late=True, unreadable=lost
    )
    with ExitStack() as stack:
        out = stack.enter_context(_OutputWriter(folder, task, grid, band.start, band.stop, blended))
        of_index = [
            stack.enter_context(_IndexWriter(folder, task, grid, first.start, band.stop, one, index.threshold))
            for one in outputs
            if one.output.from_pixels and index is not None
        ]
        strips = {
            part: stack.enter_context(
                open_strip_writer(folder / f"{part}.tif", _row_grid(grid, row, rows), _strip_profile(runner))
            )
            for part, (row, rows) in shared.items()
            if rows
        }

        def write(block: DecidedBlock) -> None:
            arrays = block.arrays()
            if block.dissimilarity is not None:
                for writer in of_index:
                    writer.write(block.dissimilarity, block.valid, block.window)
            if block.part == "body":
                out.write(arrays, block.valid, block.window)
            else:
                strips[block.part].write(arrays["share"], _relative_to_row(block.window, shared[block.part][0]))

        # Counting and compression must not delay the network, whose threads on a CPU wait for each other.
        submit = stack.enter_context(background_writer(write, low_priority=runner.device.type == "cpu"))
        for block in stack.enter_context(closing(decide_blocks(task, blocks, blended))):
            submit(block)
            if block.part != "bottom":
                advance(block.valid.size / 1e6)
    counts = out.tally.counts()
    for writer in of_index:
        counts |= writer.counts()
    return counts | ({"unreadable": blocks_to_json(lost)} if lost else {})


def merge_seam(
    upper: Path,
    lower: Path,
    task: Task,
    grid: Grid,
    row: int,
    rows: int,
    folder: Path,
    outputs: Sequence[OutputRequest],
    *,
    by_torch: bool = True,
) -> dict[str, Any]:
    """Decide the rows that two bands share, and write them to files in `folder`, one per blended raster output.

    Parameters
    ----------
    upper, lower
        Shared probabilities: "bottom.tif" of the upper band, "top.tif" of the lower one.
    grid
        Grid of the scene; the seam has `rows` rows from `row` on.
    by_torch
        Whether torch computes the outputs, as it did for the bands; else numpy.

    Returns
    -------
    dict
        Counts of the seam, see `ClassTally.counts`.
    """
    outputs = [one for one in outputs if not one.output.from_pixels]
    with (
        _OutputWriter(folder, task, grid, row, row + rows, outputs) as out,
        open_raster(upper) as bottom,
        open_raster(lower) as top,
    ):
        for column in range(0, grid.width, _SEAM_CHUNK_COLUMNS):
            window = Window(column, 0, min(_SEAM_CHUNK_COLUMNS, grid.width - column), rows)
            probabilities = read_window(bottom, bottom.indexes, window) + read_window(top, top.indexes, window)
            valid = ~np.isnan(probabilities[0])
            if valid.any():
                arrays = compute_outputs(task, as_array(np.nan_to_num(probabilities), by_torch=by_torch), outputs)
                scene_window = Window(column, row, window.width, rows)
                out.write({name: to_numpy(array) for name, array in arrays.items()}, valid, scene_window)
    return out.tally.counts()


class _OutputWriter(ExitStack):
    """Writes and counts the raster outputs of some rows of a scene, window by window."""

    def __init__(
        self, folder: Path, task: Task, grid: Grid, start: int, stop: int, outputs: Sequence[OutputRequest]
    ) -> None:
        super().__init__()
        self.tally = ClassTally(task, grid)
        self._folder, self._task, self._start, self._outputs = folder, task, start, outputs
        self._grid = _row_grid(grid, start, stop - start)

    def __enter__(self) -> Self:
        super().__enter__()
        self._writers = [
            (one, self.enter_context(_open_writer(self._folder, self._grid, self._task, one))) for one in self._outputs
        ]
        return self

    def write(self, arrays: Mapping[str, NDArray[Any]], valid: NDArray[np.bool_], window: Window) -> None:
        """Write the result of `compute_outputs` for a window of the scene."""
        for top in range(0, len(valid), _WRITE_CHUNK_ROWS):
            rows = slice(top, top + _WRITE_CHUNK_ROWS)
            if not valid[rows].any():
                continue
            chunk = Window(window.col_off, window.row_off + top, window.width, len(valid[rows]))
            self.tally.add(arrays["targets"][:, rows], valid[rows], chunk)
            for one, writer in self._writers:
                array = arrays.get(one.name, arrays["targets"])[:, rows]
                values = one.output.values(self._task, array, valid[rows])
                writer.write(values, _relative_to_row(chunk, self._start))


class _IndexWriter(ExitStack):
    """Writes an output that is computed from pixels, and counts those outside the area of applicability."""

    def __init__(
        self, folder: Path, task: Task, grid: Grid, start: int, stop: int, output: OutputRequest, threshold: float
    ) -> None:
        super().__init__()
        self._task, self._start, self._output, self._threshold = task, start, output, threshold
        self._folder, self._grid = folder, _row_grid(grid, start, stop - start)
        self._outside = 0

    def __enter__(self) -> Self:
        super().__enter__()
        self._writer = self.enter_context(_open_writer(self._folder, self._grid, self._task, self._output))
        return self

    def write(self, index: NDArray[np.float32], valid: NDArray[np.bool_], window: Window) -> None:
        """Write the index (H, W) of a window of the scene."""
        self._outside += int((index > self._threshold).sum())
        values = self._output.output.values(self._task, index[None], valid)
        self._writer.write(values, _relative_to_row(window, self._start))

    def counts(self) -> dict[str, int]:
        """Return `outside`: the number of pixels outside the area of applicability."""
        return {"outside": self._outside}


def _open_writer(folder: Path, grid: Grid, task: Task, output: OutputRequest) -> AbstractContextManager[MapWriter]:
    return open_strip_writer(folder / f"{output.name}.tif", grid, output.profile(task, {}))


@dataclass(frozen=True)
class DecidedBlock:
    """A block that is being copied to main memory; `arrays` waits for the copy."""

    window: Window
    valid: NDArray[np.bool_]
    part: BlockPart
    dissimilarity: NDArray[np.float32] | None
    arrays: Callable[[], dict[str, NDArray[Any]]]


def decide_blocks(task: Task, blocks: Generator[Block], outputs: Sequence[OutputRequest]) -> Generator[DecidedBlock]:
    """Decide blocks on the device, so that only the raster outputs are copied from a GPU."""
    waiting: deque[DecidedBlock] = deque()
    with closing(blocks):
        for block in blocks:
            if block.part == "body":
                arrays = compute_outputs(task, block.probabilities, outputs) if block.valid.any() else {}
            else:
                valid = like(block.valid, block.probabilities)
                arrays = {"share": library_of(block.probabilities).where(valid, block.probabilities, float("nan"))}
            decided = DecidedBlock(block.window, block.valid, block.part, block.dissimilarity, fetch_async(arrays))
            waiting.append(decided)
            # Keep one block back: a GPU gets its next windows before the host waits for this block.
            if len(waiting) > 1:
                yield waiting.popleft()
    yield from waiting


def _strip_profile(runner: Runner[Any]) -> MapProfile:
    return MapProfile(np.dtype("float32"), float("nan"), runner.channel_names, {})


def _row_grid(grid: Grid, row: int, rows: int) -> Grid:
    return grid.subgrid(Window(0, row, grid.width, rows))


def _relative_to_row(window: Window, row: int) -> Window:
    return Window(window.col_off, window.row_off - row, window.width, window.height)
