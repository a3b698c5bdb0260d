"""Polygons and areas of doubtful labels, and how much of each class is doubtful in each part of a scene."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.auditing.findings import Doubts, SceneDoubts
from segkit.auditing.scenes import AuditedScene
from segkit.auditing.squares import Squares
from segkit.errors import GridError
from segkit.io.class_table import MapClass
from segkit.io.grid import Grid
from segkit.task import IGNORE
from segkit.vector.geometry import to_shapely
from segkit.vector.tracing.pipeline import BandClasses, VectorizeOptions, trace_band
from segkit.vector.tracing.pixel_measures import PixelMeasures, fit_pixel_measures, unmeasured_pixels

_MIN_PART_PX = 64  # side of a part of a scene: squares that the intervals draw
_M2_PER_HECTARE = 10_000.0


@dataclass(frozen=True)
class Outline:
    """The polygon of a doubtful segment or region.

    Parameters
    ----------
    target
        Its target.
    whole
        Whether it is a whole segment of labels, or a region in one.
    index
        Its index in the doubts of the scene.
    polygon
        In the CRS of the scene.
    hectares
        True area; NaN if the scene has no CRS.
    """

    target: int
    whole: bool
    index: int
    polygon: Any
    hectares: float


class PartCounts:
    """Labelled pixels of each part of a scene by target, label and category, int64 (parts, T, K, K).

    The category is the one that a label confidently should be, or that of the label. Parts are squares.
    """

    def __init__(self, grid: Grid, targets: int, categories: int) -> None:
        self._squares, self._categories = Squares(grid.shape, _MIN_PART_PX), categories
        self.counts = np.zeros((self._squares.number, targets, categories, categories), dtype=np.int64)

    def add(self, top: int, target: int, labels: NDArray[np.int64], categories: NDArray[np.int64]) -> None:
        """Count rows (H, W) of a target that start at row `top` of the scene; labels are `IGNORE` where not known."""
        row, column = np.nonzero(labels != IGNORE)
        part = self._squares.find(row + top, column)
        size = self._categories
        cell = (part * size + labels[row, column]) * size + categories[row, column]
        counted = np.bincount(cell, minlength=len(self.counts) * size * size)
        self.counts[:, target] += counted.reshape(-1, size, size)


def trace_doubts(scene: AuditedScene, doubts: SceneDoubts, folder: Path) -> tuple[list[Outline], NDArray[np.int64]]:
    """Return the outlines of the listed doubts of a scene, and the counts of its parts (see `PartCounts`).

    Parameters
    ----------
    folder
        For a temporary file.
    """
    try:
        measures = fit_pixel_measures(scene.grid)
    except GridError:
        measures = unmeasured_pixels()
    counts = PartCounts(scene.grid, scene.task.n_targets, len(scene.task.categories))
    outlines: list[Outline] = []
    for target, (segments, regions) in enumerate(zip(doubts.segments, doubts.regions, strict=True)):
        places = [np.flatnonzero(each.listed) for each in (segments, regions)]
        path = folder / "numbers.tif"
        _write_numbers(path, scene, target, (segments, regions), counts)
        for number, polygon, hectares in _trace(path, scene.grid, measures):
            whole = number <= len(places[0])
            index = places[0][number - 1] if whole else places[1][number - 1 - len(places[0])]
            outlines.append(Outline(target, whole, int(index), polygon, hectares))
    return outlines, counts.counts


def _write_numbers(
    path: Path, scene: AuditedScene, target: int, both: tuple[Doubts, Doubts], counts: PartCounts
) -> None:
    """Write a raster with the number of the listed doubt at each pixel, 0 at others; and count parts on the way."""
    first = 1
    numbers = []
    for doubts in both:  # the last entry is for pixels in no segment, whose number is -1
        found = np.where(doubts.listed, np.cumsum(doubts.listed) + first - 1, 0)
        first += int(doubts.listed.sum())
        numbers.append(np.append(found, 0))
    profile = {
        "driver": "GTiff",
        "count": 1,
        "dtype": "int32",
        "nodata": 0,
        "compress": "deflate",
        "bigtiff": "if_safer",
    }
    with rasterio.open(
        path, "w", height=scene.grid.height, width=scene.grid.width, crs=scene.grid.crs,
        transform=scene.grid.transform, **profile,
    ) as file:  # fmt: skip
        for strip in scene.strips():
            stored = scene.numbers.read(strip.top, strip.top + strip.rows.stop)
            labels = strip.labels[target].astype(np.int64)
            categories, written = labels.copy(), np.zeros(labels.shape, dtype=np.int32)
            for half, doubts in enumerate(both):
                provisional = stored[half * scene.task.n_targets + target]
                segment = doubts.segments.find(provisional.astype(np.int64) - 1)
                written += numbers[half][segment].astype(np.int32)
                error = np.append(doubts.errors, -1)[segment]
                categories = np.where(error >= 0, error, categories)
            counts.add(strip.top, target, labels, categories)
            file.write(written[None], window=Window(0, strip.top, *written.shape[::-1]))


def _trace(path: Path, grid: Grid, measures: PixelMeasures) -> Iterator[tuple[int, Any, float]]:
    """Yield the number, the polygon and the hectares of each region of a raster."""
    with rasterio.open(path) as dataset:
        classes = BandClasses(lambda code: MapClass(str(code), code))
        with closing(trace_band(dataset, 1, classes, measures, VectorizeOptions(), None, lambda _: None)) as traced:
            for polygons in traced:
                for index, polygon, area in zip(
                    polygons.class_index.tolist(), to_shapely(polygons), polygons.area.tolist(), strict=True
                ):
                    yield classes.codes[index], polygon, area / _M2_PER_HECTARE
