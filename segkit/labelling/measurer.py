"""What a model says about windows: how uncertain it is, and the polygons of its map."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.inference.device import pick_device
from segkit.inference.outputs import PROBABILITY_STEPS, OutputRequest
from segkit.inference.prediction import map_raster
from segkit.inference.settings import PredictOptions
from segkit.inference.streaming import stream_scene
from segkit.inference.tasks import WorkerContext
from segkit.io.cover import PixelRegion, overlap
from segkit.io.grid import Grid
from segkit.io.scene import Scene
from segkit.labelling.lattice import BAND_STATISTICS, Lattice
from segkit.models.ensemble import members
from segkit.models.segmenter import Segmenter
from segkit.task import Task
from segkit.vector import polygons as trace_polygons

if TYPE_CHECKING:
    from geopandas import GeoDataFrame


_EMBEDDED_AT_ONCE = 8  # windows


class _WindowMeans:
    """Sums a measure of uncertainty over the valid pixels of each window of a lattice."""

    def __init__(self, lattice: Lattice) -> None:
        self._lattice = lattice
        self._total, self._pixels = np.zeros(lattice.shape), np.zeros(lattice.shape)

    def write(self, arrays: dict[str, NDArray[Any]], valid: NDArray[np.bool_], window: Window) -> None:
        """Add a block, see `OutputSink`."""
        measured = np.where(valid, arrays["uncertainty"][0] / np.float32(PROBABILITY_STEPS), np.float32(0))
        for total, values in ((self._total, measured), (self._pixels, valid.astype(np.float32))):
            rows, columns, sums = self._lattice.sums(values, window)
            total[rows, columns] += sums

    def means(self) -> NDArray[np.float64]:
        """Return the mean of each window, 0 without a valid pixel."""
        return (self._total / np.maximum(self._pixels, 1)).ravel()


class _WindowMaps:
    """Keeps the map in some windows."""

    def __init__(self, task: Task, windows: Sequence[Window]) -> None:
        self._task, self._windows = task, windows
        shapes = [(len(task.band_names), int(one.height), int(one.width)) for one in windows]
        self.maps = [np.full(shape, task.nodata, dtype=task.dtype) for shape in shapes]

    def write(self, arrays: dict[str, NDArray[Any]], valid: NDArray[np.bool_], window: Window) -> None:
        """Copy what a block shares with each window, see `OutputSink`."""
        values = self._task.map_values(arrays["targets"], valid)
        for one, map_ in zip(self._windows, self.maps, strict=True):
            inside = overlap(window, one)
            if all(part.start < part.stop for part in inside):
                map_[:, *inside] = values[:, *overlap(one, window)]


@dataclass(frozen=True)
class Measurer:
    """A model that measures how uncertain it is about windows, and draws its map in them.

    Parameters
    ----------
    context, options
        The model, and how it predicts.
    measure
        Key of `UNCERTAINTY_MEASURES`.
    """

    context: WorkerContext
    options: PredictOptions
    measure: str

    @property
    def task(self) -> Task:
        """The classes of the model."""
        return self.context.model.task

    def open_scene(self, files: Sequence[Path]) -> Scene:
        """Open a scene as the model reads it."""
        return self.context.model.open_scene(files)

    @functools.cached_property
    def _network(self) -> Segmenter | None:
        """A network of the model whose features describe windows of any size; None if there is none."""
        for one in members(self.context.model):
            if isinstance(one, Segmenter) and not one.is_classical and one.fixed_window_size is None:
                return copy.deepcopy(one).eval().to(pick_device(self.options.device))
        return None

    @property
    def features(self) -> str:
        """What says how alike windows are."""
        return BAND_STATISTICS if self._network is None else "features of the encoder"

    def embed_windows(
        self, scene: Scene, lattice: Lattice, indices: Sequence[int], advance: Callable[[float], None]
    ) -> NDArray[np.float32] | None:
        """Return the mean features of the encoder in some windows, (windows, F); None of other models than networks."""
        if self._network is None:
            return None
        device = pick_device(self.options.device)
        found = []
        with scene.open() as reader:
            for start in range(0, len(indices), _EMBEDDED_AT_ONCE):
                tiles = [reader.read(lattice.window(index)) for index in indices[start : start + _EMBEDDED_AT_ONCE]]
                pixels = torch.from_numpy(np.stack([tile.pixels for tile in tiles])).to(device)
                valid = torch.from_numpy(np.stack([tile.valid for tile in tiles])).to(device)
                found.append(self._network.embed(pixels, valid).cpu().numpy())
                advance(pixels.shape[0] * lattice.height * lattice.width / 1e6)
        return np.concatenate(found)

    def measure_windows(self, scene: Scene, lattice: Lattice) -> NDArray[np.float64]:
        """Return the mean uncertainty of each window of a scene, 0 to 1; memory holds no map."""
        outputs = (OutputRequest("uncertainty", (self.measure,)),)
        sums, _ = stream_scene(lambda: _WindowMeans(lattice), self.context, scene, self.options, outputs, stacklevel=5)
        return sums.means()

    def draw(self, scene: Scene, windows: Sequence[Window], *, min_area: str, simplify: str) -> list[GeoDataFrame]:
        """Return the polygons of the map in each window, see `segkit.polygons`; they are those of the whole map."""
        found, _ = stream_scene(
            lambda: _WindowMaps(self.task, windows), self.context, scene, self.options, (OutputRequest("map"),),
            region=PixelRegion(tuple(windows)), stacklevel=5,
        )  # fmt: skip
        return [
            _trace(map_, self.task, scene.grid.subgrid(window), min_area, simplify)
            for window, map_ in zip(windows, found.maps, strict=True)
        ]


def _trace(values: NDArray[Any], task: Task, grid: Grid, min_area: str, simplify: str) -> GeoDataFrame:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*area_ha and perim_m are empty")  # these columns are not used
        return trace_polygons(map_raster(values, task, grid), min_area=min_area, simplify=simplify)
