"""Prediction of a scene into arrays: the same windows, row bands and seams as in files, without a journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.inference.bands import decide_blocks
from segkit.inference.blending import predict_blocks
from segkit.inference.outputs import OutputRequest, compute_outputs
from segkit.inference.runner_base import Runner
from segkit.inference.summary import ClassTally
from segkit.inference.tiling import Band, Tiling
from segkit.io.grid import Grid
from segkit.io.region import Region
from segkit.io.scene import Scene
from segkit.task import Task
from segkit.task.array_library import as_array, to_numpy


class OutputSink(Protocol):
    """Takes the raster outputs of a scene, window by window."""

    def write(self, arrays: dict[str, NDArray[Any]], valid: NDArray[np.bool_], window: Window) -> None:
        """Take the result of `compute_outputs` for a window of the scene with a valid pixel; each pixel comes once."""


class OutputArrays:
    """The raster outputs of a scene as arrays, and the counts of their classes.

    Attributes
    ----------
    values
        {name of an output: stored values (bands, H, W)}; no data where nothing was written.
    """

    def __init__(self, task: Task, grid: Grid, outputs: Sequence[OutputRequest]) -> None:
        self._task, self._outputs = task, outputs
        self._tally = ClassTally(task, grid)
        self.values: dict[str, NDArray[Any]] = {}
        for one in outputs:
            profile = one.profile(task, {})
            shape = len(profile.band_names), *grid.shape
            self.values[one.name] = np.full(shape, profile.nodata, dtype=profile.dtype)

    @property
    def counts(self) -> dict[str, Any]:
        """See `ClassTally.counts`."""
        return self._tally.counts()

    def write(self, arrays: dict[str, NDArray[Any]], valid: NDArray[np.bool_], window: Window) -> None:
        """Write the result of `compute_outputs` for a window of the scene."""
        self._tally.add(arrays["targets"], valid, window)
        for one in self._outputs:
            array = arrays.get(one.name, arrays["targets"])
            self.values[one.name][:, *window.toslices()] = one.output.values(self._task, array, valid)


def predict_into(
    sink: OutputSink,
    runner: Runner[Any],
    scene: Scene,
    tiling: Tiling,
    outputs: Sequence[OutputRequest],
    *,
    batch: int,
    region: Region | None = None,
    advance: Callable[[float], None] = lambda step: None,
) -> None:
    """Predict a scene, band by band, into a sink; the pixels are those of the files of `predict_band` and `merge_seam`.

    Besides what the sink keeps, memory holds a batch of windows and the probabilities of one seam.

    Parameters
    ----------
    sink
        Gets each block of pixels once it is finished.
    outputs
        None of them computed from pixels.
    advance
        Called with the millions of pixels of each step.
    """
    above: NDArray[np.float32] | None = None
    for band in tiling.bands:
        shared = _SharedRows(runner.channels, band, scene.grid.width)
        blocks = predict_blocks(runner, scene, tiling, band, batch=batch, region=region, late=True)
        with closing(decide_blocks(runner.task, blocks, outputs)) as decided:
            for block in decided:
                if block.part == "body":
                    if block.valid.any():
                        sink.write(block.arrays(), block.valid, block.window)
                else:
                    shared.add(block.part, block.arrays()["share"], block.window)
                if block.part != "bottom":
                    advance(block.valid.size / 1e6)
        if above is not None and len(shared.top[0]):
            _decide_seam(sink, runner, above + shared.top, band.spans[0].start, outputs)
        above = shared.bottom


class _SharedRows:
    """Weighted probabilities that a band shares with its neighbours, float32 (channels, rows, W); NaN is no data."""

    def __init__(self, channels: int, band: Band, width: int) -> None:
        first, last = band.spans[0], band.spans[-1]
        self._starts = {"top": first.start, "bottom": last.finished_stop}
        nan = np.float32(np.nan)
        self.top = np.full((channels, first.blend_before, width), nan)
        self.bottom = np.full((channels, last.blend_after, width), nan)

    def add(self, part: str, share: NDArray[np.float32], window: Window) -> None:
        rows = self.top if part == "top" else self.bottom
        top, left = int(window.row_off) - self._starts[part], int(window.col_off)
        rows[:, top : top + int(window.height), left : left + int(window.width)] = share


def _decide_seam(
    sink: OutputSink,
    runner: Runner[Any],
    probabilities: NDArray[np.float32],
    row: int,
    outputs: Sequence[OutputRequest],
) -> None:
    valid = ~np.isnan(probabilities[0])
    if valid.any():
        found = compute_outputs(
            runner.task, as_array(np.nan_to_num(probabilities), by_torch=runner.backend == "torch"), outputs
        )
        window = Window(0, row, probabilities.shape[2], probabilities.shape[1])
        sink.write({name: to_numpy(one) for name, one in found.items()}, valid, window)
