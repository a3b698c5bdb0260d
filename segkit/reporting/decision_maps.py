"""Write the predictions of an evaluation as maps, so that a report predicts every area only once."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from rasterio.windows import Window

from segkit.data.area import LabelledArea
from segkit.evaluation.decisions import PredictedBlock, PredictedProbabilities
from segkit.inference.outputs import RASTER_OUTPUTS, OutputRequest
from segkit.io.class_table import map_tags
from segkit.io.cog import MapProfile, MapStrip, MapWriter, build_cog, open_strip_writer
from segkit.models.segmenter import Segmenter
from segkit.reporting.map_views import ReportMap, select_display_bands


class DecisionMapWriter:
    """Writes a map and a raster of probabilities of each area; they are complete when the `with` block ends.

    Parameters
    ----------
    folder
        For the rasters.
    segmenter
        The model; its normalisation is the contrast stretch of the imagery.

    Attributes
    ----------
    maps
        The maps in the order of the areas.
    """

    def __init__(self, folder: Path, segmenter: Segmenter) -> None:
        self.maps: list[ReportMap] = []
        self._folder, self._task = folder, segmenter.task
        self._mean, self._std = (buffer.flatten().tolist() for buffer in (segmenter.mean, segmenter.std))
        self._open = ExitStack()
        self._writers: dict[str, MapWriter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish_area()
        self._open.__exit__(kind, error, traceback)

    def add(self, area: LabelledArea, part: PredictedBlock) -> None:
        """Write a part of an area; the parts of one area must come in sequence."""
        assert isinstance(part, PredictedProbabilities)
        if not self.maps or self.maps[-1].area is not area:
            self._finish_area()
            self._open_writers(area)
        task = self._task
        compute = RASTER_OUTPUTS["probabilities"].compute
        assert compute is not None
        probabilities = compute(task, torch.from_numpy(part.probabilities), torch.from_numpy(part.decided), ()).numpy()
        for name, array in (("map", part.decided), ("probabilities", probabilities)):
            self._writers[name].write(RASTER_OUTPUTS[name].values(task, array, part.valid), part.window)

    def _open_writers(self, area: LabelledArea) -> None:
        number, scene = len(self.maps), area.sample.scene
        for name in ("map", "probabilities"):
            writer = open_strip_writer(self._folder / f"{name}{number}.part.tif", scene.grid, self._profile(name))
            self._writers[name] = self._open.enter_context(writer)
        imagery, rendering = select_display_bands(scene, self._mean, self._std)
        self.maps.append(
            ReportMap(
                scene.name,
                self._folder / f"map{number}.tif",
                self._task,
                _bounding_window(area),
                imagery,
                rendering,
                area,
                self._folder / f"probabilities{number}.tif",
            )
        )

    def _finish_area(self) -> None:
        """Convert the strips of the last area to COGs."""
        self._open.close()
        if not self.maps:
            return
        last = self.maps[-1].area
        assert last is not None
        grid, number = last.sample.scene.grid, len(self.maps) - 1
        for name in self._writers:
            parts = [MapStrip(self._folder / f"{name}{number}.part.tif", 0)]
            build_cog(self._folder / f"{name}{number}.tif", grid, self._profile(name), parts)

    def _profile(self, name: str) -> MapProfile:
        return OutputRequest(name).profile(self._task, map_tags(self._task.type, self._task.legend))


def _bounding_window(area: LabelledArea) -> Window:
    """Return the smallest window that contains all windows of an area."""
    top = min(int(window.row_off) for window in area.windows)
    left = min(int(window.col_off) for window in area.windows)
    bottom = max(int(window.row_off + window.height) for window in area.windows)
    right = max(int(window.col_off + window.width) for window in area.windows)
    return Window(left, top, right - left, bottom - top)
