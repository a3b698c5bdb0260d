"""Band: the unit of work. What one band finishes goes into files of its own, and so does what two neighbours share.

A band is predicted by itself, its neighbours done or not, here or on another machine; of the rows that it shares with
them it stores its part of the probabilities as float32. A seam sums two such parts and decides them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor

from segkit.inference.blending import Block, Part, fetched, predict_blocks
from segkit.inference.outputs import PRODUCTS
from segkit.inference.runner import Runner
from segkit.inference.summary import Tally
from segkit.inference.tiling import Band, Tiling
from segkit.io.cog import MapFormat, writing_part
from segkit.io.grid import Grid
from segkit.io.raster import open_raster, read_window
from segkit.io.region import Region
from segkit.io.scene import Scene
from segkit.runtime.prefetch import behind
from segkit.task.task import Task

# Columns of a seam that are decided at once, and rows of a block that are written at once.
_COLUMNS, _ROWS = 4096, 256


def predict_band(
    runner: Runner,
    scene: Scene,
    tiling: Tiling,
    band: Band,
    folder: Path,
    products: Sequence[str],
    *,
    batch: int,
    region: Region | None = None,
    advance: Callable[[float], None] = lambda step: None,
) -> dict[str, Any]:
    """Predict a band into files in `folder`: one a product, and a strip of probabilities where it meets a neighbour.

    Parameters
    ----------
    products
        Keys of `PRODUCTS`.
    advance
        Called with the millions of pixels of each step.

    Returns
    -------
    dict
        The counts of what was decided, as `Tally.counts` gives them.
    """
    task, grid = runner.task, scene.grid
    first, last = band.spans[0], band.spans[-1]
    shared = {"top": (first.start, first.rise), "bottom": (last.end, last.fall)}
    blocks = predict_blocks(runner, scene, tiling, band, batch=batch, region=region, late=True)
    with ExitStack() as stack:
        out = stack.enter_context(_Outputs(folder, task, grid, band.start, band.stop, products))
        strips = {
            part: stack.enter_context(writing_part(folder / f"{part}.tif", _rows(grid, row, rows), _strip(task)))
            for part, (row, rows) in shared.items()
            if rows
        }

        def store(one: _Decided) -> None:
            arrays = one.arrays()
            if one.part == "body":
                out.write(arrays, one.valid, one.window)
            else:
                strips[one.part].write(arrays["share"], _below(one.window, shared[one.part][0]))

        # Counting and packing must not hold up the network, whose threads on a CPU wait for each other.
        put = stack.enter_context(behind(store, yielding=runner.device.type == "cpu"))
        for one in stack.enter_context(closing(_decided(task, blocks, products))):
            put(one)
            if one.part != "bottom":
                advance(one.valid.size / 1e6)
    return out.tally.counts()


def finish_seam(
    upper: Path,
    lower: Path,
    task: Task,
    grid: Grid,
    row: int,
    rows: int,
    folder: Path,
    products: Sequence[str],
) -> dict[str, Any]:
    """Decide the rows that two bands share into files in `folder`, one a product.

    Parameters
    ----------
    upper, lower
        The strips: "bottom.tif" of the upper band, "top.tif" of the lower one.
    grid
        The scene's; the seam has `rows` rows from `row` on.

    Returns
    -------
    dict
        The counts of what was decided, as `Tally.counts` gives them.
    """
    with (
        _Outputs(folder, task, grid, row, row + rows, products) as out,
        open_raster(upper) as bottom,
        open_raster(lower) as top,
    ):
        for column in range(0, grid.width, _COLUMNS):
            window = Window(column, 0, min(_COLUMNS, grid.width - column), rows)
            total = read_window(bottom, bottom.indexes, window) + read_window(top, top.indexes, window)
            valid = ~np.isnan(total[0])
            if valid.any():
                arrays = _compute(task, torch.from_numpy(np.nan_to_num(total)), products)
                place = Window(column, row, window.width, rows)
                out.write({name: array.numpy() for name, array in arrays.items()}, valid, place)
    return out.tally.counts()


class _Outputs(ExitStack):
    """The products of some rows of a scene, written and counted window by window."""

    def __init__(self, folder: Path, task: Task, grid: Grid, start: int, stop: int, products: Sequence[str]) -> None:
        super().__init__()
        self.tally = Tally(task, grid)
        self._task, self._start = task, start
        self._files = {name: folder / f"{name}.tif" for name in products}
        self._grid = _rows(grid, start, stop - start)

    def __enter__(self) -> _Outputs:
        super().__enter__()
        self._writers = {
            name: self.enter_context(writing_part(file, self._grid, PRODUCTS[name].format(self._task, {})))
            for name, file in self._files.items()
        }
        return self

    def write(self, arrays: Mapping[str, NDArray[Any]], valid: NDArray[np.bool_], window: Window) -> None:
        """Write what `_compute` gave for a window of the scene."""
        for top in range(0, len(valid), _ROWS):
            rows = slice(top, top + _ROWS)
            if not valid[rows].any():
                continue
            part = Window(window.col_off, window.row_off + top, window.width, len(valid[rows]))
            self.tally.add(arrays["planes"][:, rows], valid[rows], part)
            for name, writer in self._writers.items():
                source = arrays.get(name, arrays["planes"])[:, rows]
                writer.write(PRODUCTS[name].values(self._task, source, valid[rows]), _below(part, self._start))


@dataclass(frozen=True)
class _Decided:
    """A block on its way to main memory; `arrays` waits for it."""

    window: Window
    valid: NDArray[np.bool_]
    part: Part
    arrays: Callable[[], dict[str, NDArray[Any]]]


def _decided(task: Task, blocks: Generator[Block], products: Sequence[str]) -> Generator[_Decided]:
    """Decide blocks where their probabilities lie, so that only what is written comes back from a GPU."""
    waiting: deque[_Decided] = deque()
    with closing(blocks):
        for block in blocks:
            if block.part == "body":
                tensors = _compute(task, block.probabilities, products) if block.valid.any() else {}
            else:
                valid = torch.from_numpy(np.ascontiguousarray(block.valid)).to(block.probabilities.device)
                tensors = {"share": block.probabilities.where(valid, block.probabilities.new_tensor(float("nan")))}
            waiting.append(_Decided(block.window, block.valid, block.part, fetched(tensors)))
            # One stays behind: a GPU is given its next windows before this one's bytes are waited for.
            if len(waiting) > 1:
                yield waiting.popleft()
    yield from waiting


@torch.inference_mode()
def _compute(task: Task, probabilities: Tensor, products: Sequence[str]) -> dict[str, Tensor]:
    """Return the decided planes and, by name, every product that is more than these."""
    planes = task.decide(probabilities[None])[0]
    computed = {name: compute(task, probabilities, planes) for name in products if (compute := PRODUCTS[name].compute)}
    return {"planes": planes} | computed


def _strip(task: Task) -> MapFormat:
    return MapFormat(np.dtype("float32"), float("nan"), task.channel_names, {})


def _rows(grid: Grid, row: int, rows: int) -> Grid:
    return grid.part(Window(0, row, grid.width, rows))


def _below(window: Window, row: int) -> Window:
    return Window(window.col_off, window.row_off - row, window.width, window.height)
