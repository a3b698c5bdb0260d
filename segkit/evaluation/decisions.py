"""Decisions of a model or a map in labelled areas, block by block, as `segkit predict` makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.area import LabelledArea
from segkit.errors import DataError, suggest
from segkit.inference.blending import Block, predict_blocks
from segkit.inference.runner import open_runner
from segkit.inference.runner_base import Runner
from segkit.inference.settings import PredictOptions, ResolvedSettings, default_batch_size, resolve_settings
from segkit.io.class_table import Legend
from segkit.io.cover import PixelRegion
from segkit.io.file_search import RASTER_SUFFIXES, expand_paths
from segkit.io.paths import PathLike
from segkit.io.raster import open_raster
from segkit.io.remote import as_path
from segkit.models.calibration import Calibration
from segkit.models.graph_model import GraphModel
from segkit.models.segmenter import Segmenter
from segkit.task import LandCoverClass, Task
from segkit.task.array_library import to_numpy

if TYPE_CHECKING:
    from segkit.models.ensemble import AnyModel

_MAP_BLOCK_SIZE = 2048


@dataclass(frozen=True)
class PredictedBlock:
    """Decisions and truth in a window of an area.

    Parameters
    ----------
    window
        Window of the scene.
    decided
        Predicted category indices, int16 (T, H, W).
    truth
        True category indices of the same shape; `IGNORE` where unlabelled, without data or outside the area.
    valid
        bool (H, W): pixels with data; elsewhere `decided` has no meaning.
    """

    window: Window
    decided: NDArray[np.int16]
    truth: NDArray[np.int16]
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class PredictedProbabilities(PredictedBlock):
    """Decisions of a model, with their probabilities.

    Parameters
    ----------
    confidence
        Probability of the decided category, float32 (T, H, W).
    probabilities
        Probability of each channel, float32 (C, H, W).
    """

    confidence: NDArray[np.float32]
    probabilities: NDArray[np.float32]


class ModelPredictor:
    """Predicts labelled areas. Settings that the options leave open are chosen at the first area.

    The network is prepared once; the segmenter's thresholds may change between two areas, its weights and calibration
    may not (see `calibrate`).
    """

    def __init__(self, segmenter: AnyModel, options: PredictOptions | None = None) -> None:
        self.segmenter, self._options = segmenter, options or PredictOptions()
        self._device = self._options.pick_device(segmenter)
        self._optimized: AnyModel | None = None  # in fp32
        self._prepared: tuple[ResolvedSettings, Runner[Any]] | None = None

    @property
    def task(self) -> Task:
        """The segmenter's task with its current thresholds."""
        return self.segmenter.task

    def __call__(self, area: LabelledArea, windows: Sequence[Window] | None = None) -> Iterator[PredictedProbabilities]:
        """Yield the decisions of an area, each pixel of the area once.

        Parameters
        ----------
        windows
            Predict only these windows, with the same results as for the whole area.
        """
        task = self.task
        for block, truth in self.blocks(area, windows):
            probabilities = block.probabilities
            decided = task.decide(probabilities[None])
            confidence = task.confidence(probabilities[None], decided)[0]
            arrays = {"decided": decided[0], "confidence": confidence, "probabilities": probabilities}
            found = {name: to_numpy(one) for name, one in arrays.items()}
            yield PredictedProbabilities(block.window, truth=truth, valid=block.valid, **found)

    def prepare(self, area: LabelledArea) -> tuple[ResolvedSettings, Runner[Any]]:
        """Choose the settings by an area and prepare the network, if this has not been done yet."""
        if self._prepared is None:
            if self._optimized is None:
                _ = self.segmenter.receptive_field  # measured once, not in each copy
                converted = self._options.backend not in (None, "torch") or self.segmenter.backend != "torch"
                self._optimized = self.segmenter
                if not converted and not isinstance(self.segmenter, GraphModel):
                    self._optimized = self.segmenter.optimized_for_inference(torch.device(str(self._device)), "fp32")
            settings = resolve_settings(self._optimized, area.sample.scene, self._options, area.region)
            tta = settings.tta is not None
            runner = open_runner(self._optimized, self._device, settings.precision, backend=settings.backend, tta=tta)
            self._prepared = settings, runner
        return self._prepared

    def calibrate(self, calibration: Calibration | None) -> None:
        """Set the segmenter's calibration; settings that depend on the network are chosen again. None: no change.

        The models of an ensemble have their own.
        """
        if calibration is not None:
            for one in (self.segmenter, self._optimized):
                if isinstance(one, Segmenter):
                    one.set_calibration(calibration)
            self._prepared = None

    def blocks(
        self, area: LabelledArea, windows: Sequence[Window] | None = None
    ) -> Iterator[tuple[Block, NDArray[np.int16]]]:
        """Yield blocks of probabilities and their true category indices, int16 (T, H, W)."""
        segmenter, scene = self.segmenter, area.sample.scene
        region = area.region if windows is None else _Intersection(area.region, PixelRegion(tuple(windows)))
        settings, runner = self.prepare(area)
        tiling = settings.tiling(scene.grid, segmenter.stride)
        batch = self._options.batch_size or default_batch_size(segmenter, settings, tiling, self._device)
        with closing(predict_blocks(runner, scene, tiling, batch=batch, region=region)) as blocks:
            for block in blocks:
                if block.valid.any():
                    yield block, area.read_truth(block.window, block.valid)


class MapReader:
    """Reads the decisions of maps block by block; the areas' scenes are the maps."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, area: LabelledArea) -> Iterator[PredictedBlock]:
        """Yield the decisions of an area, each pixel once.

        Raises
        ------
        LabelError
            A code of the map is not in its class table.
        """
        scene = area.sample.scene
        with scene.open() as reader:
            for window in scene.grid.tiles(_MAP_BLOCK_SIZE):
                tile = reader.read(window)
                if not tile.valid.any():
                    continue
                codes = np.where(tile.valid, np.nan_to_num(tile.pixels), 0).astype(np.int64)
                if self.task.n_targets > 1:
                    decided = self.task.encode_masks(codes, source=scene.paths[0])
                else:
                    # Any defined code, for pixels without data.
                    codes[:, ~tile.valid] = self.task.classes[0].value
                    decided = self.task.encode(codes[0], source=scene.paths[0])
                yield PredictedBlock(window, decided, area.read_truth(window, tile.valid), tile.valid)


def map_task(path: PathLike, class_names: PathLike | None = None) -> Task:
    """Return a task with the classes in a map's class table.

    Parameters
    ----------
    path
        A map, or a folder of maps with the same classes.
    class_names
        A file of class names, for maps without a class table.

    Raises
    ------
    DataError
        The file is not a map or has no class table.
    """
    file = as_path(path)
    if file.is_dir():
        file = expand_paths(file, "maps", RASTER_SUFFIXES)[0]
    with open_raster(file) as dataset:
        legend = Legend.from_dataset(dataset, class_names)
    known = legend.classes or tuple(legend.value_table.values())
    none = [one for one in known if one.background]
    classes = tuple(LandCoverClass(one.name, one.value, one.color) for one in known if not one.background)
    if not classes:
        raise DataError(f"{file}: lists no classes" + suggest("give their names (--class-names)"))
    if legend.multilabel:
        return Task("multilabel", classes)
    if len(classes) == 1 and none:
        return Task("binary", classes, background_value=none[0].value)
    return Task("multiclass", classes, background=bool(none), background_value=none[0].value if none else 0)


@dataclass(frozen=True)
class _Intersection:
    """The intersection of two regions."""

    one: PixelRegion
    other: PixelRegion

    def mask(self, window: Window) -> NDArray[np.bool_]:
        return self.one.mask(window) & self.other.mask(window)
