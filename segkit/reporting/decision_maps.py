"""Kept: maps of what a model decides while it is scored, so that it is decided once."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch
from rasterio.windows import Window

from segkit.data.area import Area
from segkit.evaluation.decisions import Decided, Predicted
from segkit.inference.outputs import PRODUCTS
from segkit.io.cog import MapFormat, MapWriter, Part, assemble, writing_part
from segkit.models.segmenter import Segmenter
from segkit.reporting.map_views import ShownMap, narrowed


class Kept:
    """Writes a map and a raster of probabilities for each area; they are whole when the block ends.

    Parameters
    ----------
    folder
        Where they go.
    segmenter
        What decides; its normalisation is how imagery is shown.

    Attributes
    ----------
    maps
        In the order of the areas.
    """

    def __init__(self, folder: Path, segmenter: Segmenter) -> None:
        self.maps: list[ShownMap] = []
        self._folder, self._task = folder, segmenter.task
        self._mean, self._std = (buffer.flatten().tolist() for buffer in (segmenter.mean, segmenter.std))
        self._open = ExitStack()
        self._writers: dict[str, MapWriter] = {}

    def __enter__(self) -> Kept:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        self._open.__exit__(kind, error, traceback)

    def add(self, area: Area, part: Decided) -> None:
        """Write a part of an area; all parts of one come after each other."""
        assert isinstance(part, Predicted)
        if not self.maps or self.maps[-1].area is not area:
            self._finish()
            self._begin(area)
        task = self._task
        shares = PRODUCTS["probabilities"].compute
        assert shares is not None
        stored = shares(task, torch.from_numpy(part.probabilities), torch.from_numpy(part.planes)).numpy()
        for name, source in (("map", part.planes), ("probabilities", stored)):
            self._writers[name].write(PRODUCTS[name].values(task, source, part.valid), part.window)

    def _begin(self, area: Area) -> None:
        number, scene = len(self.maps), area.sample.scene
        for name in ("map", "probabilities"):
            writing = writing_part(self._folder / f"{name}{number}.part.tif", scene.grid, self._format(name))
            self._writers[name] = self._open.enter_context(writing)
        chances = self._folder / f"probabilities{number}.tif"
        path, (imagery, view) = self._folder / f"map{number}.tif", narrowed(scene, self._mean, self._std)
        self.maps.append(ShownMap(scene.name, path, self._task, _around(area), imagery, view, area, chances))

    def _finish(self) -> None:
        """Make whole what is written of the last area."""
        self._open.close()
        if not self.maps:
            return
        last = self.maps[-1].area
        assert last is not None
        grid, number = last.sample.scene.grid, len(self.maps) - 1
        for name in self._writers:
            parts = [Part(self._folder / f"{name}{number}.part.tif", 0)]
            assemble(self._folder / f"{name}{number}.tif", grid, self._format(name), parts)

    def _format(self, name: str) -> MapFormat:
        tags = {"segkit_type": self._task.type, "segkit_classes": json.dumps(self._task.legend)}
        return PRODUCTS[name].format(self._task, tags)


def _around(area: Area) -> Window:
    """Return the smallest window that holds all that counts."""
    top = min(int(window.row_off) for window in area.windows)
    left = min(int(window.col_off) for window in area.windows)
    bottom = max(int(window.row_off + window.height) for window in area.windows)
    right = max(int(window.col_off + window.width) for window in area.windows)
    return Window(left, top, right - left, bottom - top)
