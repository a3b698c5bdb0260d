"""Prediction of bands of rows into files, and of the seams between them.

A band is predicted independently of its neighbours, here or on another machine. For the rows that it shares with them
it stores its weighted probabilities as float32. A seam sums those of two bands and decides the classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor

from segkit.inference.blending import Block, BlockPart, fetch_async, predict_blocks
from segkit.inference.outputs import RASTER_OUTPUTS
from segkit.inference.runner import Runner
from segkit.inference.summary import ClassTally
from segkit.inference.tiling import Band, Tiling
from segkit.io.cog import MapProfile, open_strip_writer
from segkit.io.grid import Grid
from segkit.io.raster import open_raster, read_window
from segkit.io.region import Region
from segkit.io.scene import Scene
from segkit.runtime.prefetch import background_writer
from segkit.task import Task

# Columns of a seam that are merged at a time, and rows of a block that are written at a time.
_SEAM_CHUNK_COLUMNS, _WRITE_CHUNK_ROWS = 4096, 256


def predict_band(
    runner: Runner,
    scene: Scene,
    tiling: Tiling,
    band: Band,
    folder: Path,
    outputs: Sequence[str],
    *,
    batch: int,
    region: Region | None = None,
    advance: Callable[[float], None] = lambda step: None,
) -> dict[str, Any]:
    """Predict a band into files in `folder`: one per raster output, and the probabilities shared with neighbours.

    Parameters
    ----------
    outputs
        Keys of `RASTER_OUTPUTS`.
    advance
        Called with the millions of pixels of each step.

    Returns
    -------
    dict
        Counts of the finished pixels, see `ClassTally.counts`.
    """
    task, grid = runner.task, scene.grid
    first, last = band.spans[0], band.spans[-1]
    shared = {"top": (first.start, first.blend_before), "bottom": (last.finished_stop, last.blend_after)}
    blocks = predict_blocks(runner, scene, tiling, band, batch=batch, region=region, late=True)
    with ExitStack() as stack:
        out = stack.enter_context(_OutputWriter(folder, task, grid, band.start, band.stop, outputs))
        strips = {
            part: stack.enter_context(
                open_strip_writer(folder / f"{part}.tif", _row_grid(grid, row, rows), _strip_profile(task))
            )
            for part, (row, rows) in shared.items()
            if rows
        }

        def write(block: _DecidedBlock) -> None:
            arrays = block.arrays()
            if block.part == "body":
                out.write(arrays, block.valid, block.window)
            else:
                strips[block.part].write(arrays["share"], _relative_to_row(block.window, shared[block.part][0]))

        # Counting and compression must not delay the network, whose threads on a CPU wait for each other.
        submit = stack.enter_context(background_writer(write, low_priority=runner.device.type == "cpu"))
        for block in stack.enter_context(closing(_decide_blocks(task, blocks, outputs))):
            submit(block)
            if block.part != "bottom":
                advance(block.valid.size / 1e6)
    return out.tally.counts()


def merge_seam(
    upper: Path,
    lower: Path,
    task: Task,
    grid: Grid,
    row: int,
    rows: int,
    folder: Path,
    outputs: Sequence[str],
) -> dict[str, Any]:
    """Decide the rows that two bands share, and write them to files in `folder`, one per raster output.

    Parameters
    ----------
    upper, lower
        Shared probabilities: "bottom.tif" of the upper band, "top.tif" of the lower one.
    grid
        Grid of the scene; the seam has `rows` rows from `row` on.

    Returns
    -------
    dict
        Counts of the seam, see `ClassTally.counts`.
    """
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
                arrays = _compute_outputs(task, torch.from_numpy(np.nan_to_num(probabilities)), outputs)
                scene_window = Window(column, row, window.width, rows)
                out.write({name: array.numpy() for name, array in arrays.items()}, valid, scene_window)
    return out.tally.counts()


class _OutputWriter(ExitStack):
    """Writes and counts the raster outputs of some rows of a scene, window by window."""

    def __init__(self, folder: Path, task: Task, grid: Grid, start: int, stop: int, outputs: Sequence[str]) -> None:
        super().__init__()
        self.tally = ClassTally(task, grid)
        self._task, self._start = task, start
        self._files = {name: folder / f"{name}.tif" for name in outputs}
        self._grid = _row_grid(grid, start, stop - start)

    def __enter__(self) -> Self:
        super().__enter__()
        self._writers = {
            name: self.enter_context(open_strip_writer(file, self._grid, RASTER_OUTPUTS[name].profile(self._task, {})))
            for name, file in self._files.items()
        }
        return self

    def write(self, arrays: Mapping[str, NDArray[Any]], valid: NDArray[np.bool_], window: Window) -> None:
        """Write the result of `_compute_outputs` for a window of the scene."""
        for top in range(0, len(valid), _WRITE_CHUNK_ROWS):
            rows = slice(top, top + _WRITE_CHUNK_ROWS)
            if not valid[rows].any():
                continue
            chunk = Window(window.col_off, window.row_off + top, window.width, len(valid[rows]))
            self.tally.add(arrays["targets"][:, rows], valid[rows], chunk)
            for name, writer in self._writers.items():
                array = arrays.get(name, arrays["targets"])[:, rows]
                values = RASTER_OUTPUTS[name].values(self._task, array, valid[rows])
                writer.write(values, _relative_to_row(chunk, self._start))


@dataclass(frozen=True)
class _DecidedBlock:
    """A block that is being copied to main memory; `arrays` waits for the copy."""

    window: Window
    valid: NDArray[np.bool_]
    part: BlockPart
    arrays: Callable[[], dict[str, NDArray[Any]]]


def _decide_blocks(task: Task, blocks: Generator[Block], outputs: Sequence[str]) -> Generator[_DecidedBlock]:
    """Decide blocks on the device, so that only the raster outputs are copied from a GPU."""
    waiting: deque[_DecidedBlock] = deque()
    with closing(blocks):
        for block in blocks:
            if block.part == "body":
                tensors = _compute_outputs(task, block.probabilities, outputs) if block.valid.any() else {}
            else:
                valid = torch.from_numpy(np.ascontiguousarray(block.valid)).to(block.probabilities.device)
                tensors = {"share": block.probabilities.where(valid, block.probabilities.new_tensor(float("nan")))}
            waiting.append(_DecidedBlock(block.window, block.valid, block.part, fetch_async(tensors)))
            # Keep one block back: a GPU gets its next windows before the host waits for this block.
            if len(waiting) > 1:
                yield waiting.popleft()
    yield from waiting


@torch.inference_mode()
def _compute_outputs(task: Task, probabilities: Tensor, outputs: Sequence[str]) -> dict[str, Tensor]:
    """Return the decided "targets", and by name the raster outputs that are computed from probabilities."""
    targets = task.decide(probabilities[None])[0]
    tensors = {"targets": targets}
    for name in outputs:
        if compute := RASTER_OUTPUTS[name].compute:
            tensors[name] = compute(task, probabilities, targets)
    return tensors


def _strip_profile(task: Task) -> MapProfile:
    return MapProfile(np.dtype("float32"), float("nan"), task.channel_names, {})


def _row_grid(grid: Grid, row: int, rows: int) -> Grid:
    return grid.subgrid(Window(0, row, grid.width, rows))


def _relative_to_row(window: Window, row: int) -> Window:
    return Window(window.col_off, window.row_off - row, window.width, window.height)
