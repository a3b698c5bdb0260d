"""Decisions of a model in labelled areas, streamed, as prediction makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.area import Area
from segkit.data.pairing import RASTER_SUFFIXES, expand
from segkit.errors import DataError, ways
from segkit.inference.blending import Block, predict_blocks
from segkit.inference.device import pick_device
from segkit.inference.runner import Runner
from segkit.inference.settings import Choice, Options, choose, windows_at_once
from segkit.io.class_table import Legend
from segkit.io.cover import Cover
from segkit.io.raster import PathLike, open_raster
from segkit.models.segmenter import Segmenter
from segkit.task.task import LandClass, Task

_MAP_BLOCK = 2048


@dataclass(frozen=True)
class Decided:
    """A part of an area.

    Parameters
    ----------
    window
        Where it lies in the scene.
    planes
        Decided categories, int16 (P, H, W).
    truth
        Target planes of the same shape; `IGNORE` where the label is not known, there is no data, or nothing counts.
    valid
        bool (H, W): where there was something to decide; elsewhere `planes` mean nothing.
    """

    window: Window
    planes: NDArray[np.int16]
    truth: NDArray[np.int16]
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class Predicted(Decided):
    """A part of an area that a model decided, which says how sure it is.

    Parameters
    ----------
    confidence
        Probability of what was decided, float32 (P, H, W).
    probabilities
        Of the channels, float32 (C, H, W).
    """

    confidence: NDArray[np.float32]
    probabilities: NDArray[np.float32]


class Decider:
    """Decides area after area; what the options leave open is chosen at the first one.

    The network is prepared once; the segmenter's thresholds may change between two areas.
    """

    def __init__(self, segmenter: Segmenter, options: Options | None = None) -> None:
        self.segmenter, self._options = segmenter, options or Options()
        self._device = pick_device(self._options.device)
        self._prepared: tuple[Choice, Runner] | None = None

    @property
    def task(self) -> Task:
        """The segmenter's task, with the thresholds that it has now."""
        return self.segmenter.task

    def __call__(self, area: Area, windows: Sequence[Window] | None = None) -> Iterator[Predicted]:
        """Yield the decisions of an area, every pixel that counts once.

        Parameters
        ----------
        windows
            Only what lies in these; it is decided as it is with all of the area.
        """
        task = self.task
        for block, truth in self.blocks(area, windows):
            probabilities = block.probabilities
            planes = task.decide(probabilities[None])
            confidence = task.confidence(probabilities[None], planes)[0].cpu().numpy()
            decided = planes[0].cpu().numpy()
            yield Predicted(block.window, decided, truth, block.valid, confidence, probabilities.cpu().numpy())

    def prepare(self, area: Area) -> tuple[Choice, Runner]:
        """Choose how to predict by what an area shows, and prepare the network, unless that is done already."""
        if self._prepared is None:
            choice = choose(self.segmenter, area.sample.scene, self._options, area.cover)
            runner = Runner(self.segmenter, self._device, choice.precision, tta=choice.tta is not None)
            self._prepared = choice, runner
        return self._prepared

    def blocks(self, area: Area, windows: Sequence[Window] | None = None) -> Iterator[tuple[Block, NDArray[np.int16]]]:
        """Yield what decisions are made of: blocks of probabilities, and their true planes (P, H, W)."""
        segmenter, scene = self.segmenter, area.sample.scene
        region = area.cover if windows is None else _Both(area.cover, Cover(tuple(windows)))
        choice, runner = self.prepare(area)
        tiling = choice.tiling(scene.grid, segmenter.stride)
        batch = self._options.batch or windows_at_once(segmenter, choice, tiling, self._device)
        with closing(predict_blocks(runner, scene, tiling, batch=batch, region=region)) as blocks:
            for block in blocks:
                if block.valid.any():
                    yield block, area.truth(block.window, block.valid)


class MapDecider:
    """Reads the decisions of maps, whose scenes they are, block by block."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, area: Area) -> Iterator[Decided]:
        """Yield the decisions of an area, every pixel once.

        Raises
        ------
        LabelError
            A code that the map's legend does not list.
        """
        scene = area.sample.scene
        with scene.open() as reader:
            for window in scene.grid.tiles(_MAP_BLOCK):
                tile = reader.read(window)
                if not tile.valid.any():
                    continue
                codes = np.where(tile.valid, np.nan_to_num(tile.pixels), 0).astype(np.int64)
                if self.task.planes > 1:
                    planes = self.task.encode_masks(codes, source=scene.paths[0])
                else:
                    # Where there is no data any code that is known will do.
                    codes[:, ~tile.valid] = self.task.classes[0].value
                    planes = self.task.encode(codes[0], source=scene.paths[0])
                yield Decided(window, planes, area.truth(window, tile.valid), tile.valid)


def map_task(path: PathLike, names: PathLike | None = None) -> Task:
    """Return the task whose classes a map lists.

    Parameters
    ----------
    path
        A map, or a folder of maps of one kind.
    names
        A file of class names, for maps that list none.

    Raises
    ------
    DataError
        It is no map, or lists no classes.
    """
    file = Path(path)
    if file.is_dir():
        file = expand(file, "maps", RASTER_SUFFIXES)[0]
    with open_raster(file) as dataset:
        legend = Legend.of(dataset, names)
    known = legend.classes or tuple(legend.known.values())
    none = [one for one in known if one.background]
    classes = tuple(LandClass(one.name, one.value, one.color) for one in known if not one.background)
    if not classes:
        raise DataError(f"{file}: lists no classes" + ways("give their names (--names)"))
    if legend.multilabel:
        return Task("multilabel", classes)
    if len(classes) == 1 and none:
        return Task("binary", classes, background_value=none[0].value)
    return Task("multiclass", classes, background=bool(none), background_value=none[0].value if none else 0)


@dataclass(frozen=True)
class _Both:
    """A region that is what two have in common."""

    one: Cover
    other: Cover

    def mask(self, window: Window) -> NDArray[np.bool_]:
        return self.one.mask(window) & self.other.mask(window)
