"""Ground that need not be labelled: polygons, windows of earlier suggestions, and the labels of a recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.labels.open import has_features
from segkit.data.pairing import Sample, pair_files
from segkit.errors import UsageError
from segkit.io.cover import PixelRegion, grids_within, window_polygon
from segkit.io.grid import Grid
from segkit.io.paths import PathLike
from segkit.io.polygons import Polygons, project_to_grid, read_polygons
from segkit.io.remote import as_path, is_remote
from segkit.io.vector import is_vector, layer_names
from segkit.labelling.work_file import WINDOWS
from segkit.recipe.schema import Recipe
from segkit.recipe.sources import DatasetSource
from segkit.task import IGNORE

_MARGIN_PX = 0.01  # windows that only share an edge with a polygon are not on its ground


class KnownGround(Protocol):
    """Ground that is labelled, or that somebody labels already."""

    def covers_any(self, grid: Grid, windows: Sequence[Window]) -> NDArray[np.bool_]:
        """Return which windows of a grid have a pixel on this ground."""


@dataclass(frozen=True)
class PolygonGround:
    """The ground of polygons."""

    polygons: Polygons

    def covers_any(self, grid: Grid, windows: Sequence[Window]) -> NDArray[np.bool_]:
        """Return which windows share ground with a polygon."""
        shapes, _, _ = project_to_grid(self.polygons, grid)
        boxes = shapely.buffer([window_polygon(one) for one in windows], -_MARGIN_PX, join_style="mitre")
        found = np.zeros(len(windows), dtype=bool)
        found[shapely.STRtree(shapes).query(boxes, predicate="intersects")[0]] = True
        return found


@dataclass(frozen=True)
class LabelGround:
    """The labelled pixels of a scene of a recipe."""

    sample: Sample

    def covers_any(self, grid: Grid, windows: Sequence[Window]) -> NDArray[np.bool_]:
        """Return which windows show a labelled pixel."""
        own = self.sample.scene.grid
        if grid.describe_difference(own) is None:
            return np.array([self._labelled(window).any() for window in windows], dtype=bool)
        if not grids_within([grid, own], 0):
            return np.zeros(len(windows), dtype=bool)
        return np.array([self._shares(grid, own, window) for window in windows], dtype=bool)

    def _shares(self, grid: Grid, own: Grid, window: Window) -> bool:
        region = PixelRegion((window,)).reprojected(grid, own)
        if not region:
            return False
        left, top, right, bottom = shapely.total_bounds(region.shapes)
        left, top = max(0, math.floor(left)), max(0, math.floor(top))
        right, bottom = min(own.width, math.ceil(right)), min(own.height, math.ceil(bottom))
        if left >= right or top >= bottom:
            return False
        part = Window(left, top, right - left, bottom - top)
        return bool((self._labelled(part) & region.mask(part)).any())

    def _labelled(self, window: Window) -> NDArray[np.bool_]:
        assert self.sample.labels is not None
        labelled: NDArray[np.bool_] = (self.sample.labels.read(window) != IGNORE).any(axis=0)
        return labelled


def read_labelled(path: PathLike) -> PolygonGround:
    """Read polygons of labelled ground: all windows of an earlier suggestion, or the polygons of another vector file.

    Raises
    ------
    UsageError
        It is not a vector file.
    DataError
        It cannot be read, or has no polygons.
    """
    if not is_vector(path):
        raise UsageError(f"--labelled {path}: must be polygons; rasters of labels are given by their recipe (--recipe)")
    layer = WINDOWS if WINDOWS in layer_names(path) else None
    return PolygonGround(read_polygons(str(path), layer))


def recipe_ground(recipe: Recipe) -> tuple[list[LabelGround], list[Path]]:
    """Return the labelled ground of a recipe, and its label files that do not exist yet.

    Raises
    ------
    SegkitError
        A scene or label cannot be opened.
    """
    found: list[LabelGround] = []
    missing: list[Path] = []
    for source in (recipe.data.train, recipe.data.val):
        if isinstance(source, DatasetSource):
            kept, absent = _existing_labels(source)
            missing += absent
            found += _open(kept, recipe) if kept is not None else []
    return found, missing


def _existing_labels(source: DatasetSource) -> tuple[DatasetSource | None, list[Path]]:
    """Return a source with the label sources whose vector files exist (None without any), and the other files."""
    kept, missing = [], []
    for labels in source.label_sources:
        files = [as_path(path) for path in labels.paths]
        absent = [file for file in files if has_features(file) and not is_remote(file) and not _exists(file)]
        missing += absent
        kept += [] if absent else [labels]
    if not kept:
        return (source if source.table is not None and not source.label_sources else None), missing
    return source.model_copy(update={"labels": tuple(kept)}), missing


def _exists(file: Path) -> bool:
    return any(file.parent.glob(file.name)) if set(file.name) & set("*?[") else file.exists()


def _open(source: DatasetSource, recipe: Recipe) -> list[LabelGround]:
    opened = (files.open(recipe.data, recipe.task) for files in pair_files(source).pairs)
    return [LabelGround(sample) for sample in opened if sample.labels is not None]
