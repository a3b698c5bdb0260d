"""Read a map with its imagery, labels and probabilities for a report: at reduced resolution, or single tiles."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.area import LabelledArea
from segkit.evaluation.worst_windows import RankedWindow, WindowView
from segkit.inference.summary import ClassTally
from segkit.io.grid import Grid
from segkit.io.raster import open_raster, read_grid, read_window
from segkit.io.scene import Scene
from segkit.plots.images import BandRendering, block_means, centre_indices, colorize, display_name, read_map
from segkit.reporting.viewer import FIRST_STATE, NODATA, UNLABELLED, PixelState, SceneLayers
from segkit.runtime.progress import progress
from segkit.task import IGNORE, Task
from segkit.vector import polygons

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

T = TypeVar("T")

_READ_SIZE_PX = 2048  # side of the windows that are read
_MIN_POLYGON_CELLS = 4  # polygons of fewer pixels of the overview are merged into a neighbour
_MAX_POLYGONS = 4000
_SIMPLIFY_CELLS = 0.75  # simplification tolerance, in pixels of the overview


@dataclass(frozen=True)
class ReportMap:
    """A map with its imagery, labels and probabilities, all on the map's grid.

    Parameters
    ----------
    title
        Name in the report.
    path, task
        The map and its classes.
    window
        The part that is shown.
    scene, rendering
        Imagery and its contrast stretch; by default the stretch is computed from the pixels that are read.
    area
        The labelled area.
    probabilities
        A raster with a band per class.
    """

    title: str
    path: Path
    task: Task
    window: Window
    scene: Scene | None = None
    rendering: BandRendering | None = None
    area: LabelledArea | None = None
    probabilities: Path | None = None

    def read_decided(self, window: Window) -> NDArray[np.int16]:
        """Return predicted categories (T, H, W), `IGNORE` at nodata pixels of the map."""
        return read_map(self.path, self.task, window)

    def read_truth(self, window: Window, decided: NDArray[np.int16]) -> NDArray[np.int16] | None:
        """Return true categories (T, H, W), `IGNORE` where nothing was predicted; None if there are no labels."""
        return None if self.area is None else self.area.read_truth(window, (decided != IGNORE).any(axis=0))

    def read_confidence(self, window: Window, decided: NDArray[np.int16]) -> NDArray[np.float32] | None:
        """Return probabilities of the predicted categories (T, H, W), NaN if undefined; None if there is no raster.

        The probability of a category without a band is 1 - the highest probability of the others.
        """
        if self.probabilities is None:
            return None
        with open_raster(self.probabilities) as dataset:
            stored = read_window(dataset, dataset.indexes, window, masked=True)
            valid = ~np.ma.getmaskarray(stored)
            scale, offset = np.array([dataset.scales, dataset.offsets], dtype=np.float32)[..., None, None]
            probabilities = np.where(valid, np.asarray(stored) * scale + offset, np.float32(np.nan))
            of_class = dict(zip(dataset.descriptions, probabilities, strict=True))
        confidence = np.full(decided.shape, np.nan, dtype=np.float32)
        for name, target, category in self.task.scored_categories:
            probability = of_class.get(name, 1 - probabilities.max(axis=0) if self.task.n_targets == 1 else None)
            if probability is None:
                continue
            present = decided[target] == category
            confidence[target][present] = probability[present]
            if self.task.n_targets > 1:
                absent = decided[target] == 0
                confidence[target][absent] = 1 - probability[absent]
        return confidence

    def read_window_view(self, ranked_window: RankedWindow) -> WindowView:
        """Return image, truth and prediction of a window; without imagery and rendering the image is white."""
        decided = self.read_decided(ranked_window.window)
        truth = self.read_truth(ranked_window.window, decided)
        assert truth is not None
        image = np.ones((*decided.shape[1:], 3))
        if self.scene is not None and self.rendering is not None:
            tile = self.scene.read(ranked_window.window)
            image = self.rendering.render(tile.pixels, tile.valid)
        return WindowView(ranked_window, image, truth, decided, self.read_confidence(ranked_window.window, decided))


@dataclass(frozen=True)
class Overview:
    """A map at reduced resolution: the centre pixel of each cell, and the cell's mean of the imagery.

    Parameters
    ----------
    step
        Side of a cell in pixels of the map.
    grid
        Grid of the cells.
    decided, truth, confidence
        As `ReportMap` reads them, (T, H, W).
    pixels, valid, rendering
        Imagery (C, H, W), its mask (H, W) and its contrast stretch.
    counts
        `pixels` and `hectares` by class of the whole map, see `segkit.inference.summary.ClassTally`.
    """

    step: int
    grid: Grid
    decided: NDArray[np.int16]
    truth: NDArray[np.int16] | None
    confidence: NDArray[np.float32] | None
    pixels: NDArray[np.float32] | None
    valid: NDArray[np.bool_]
    rendering: BandRendering | None
    counts: Mapping[str, Any]


def read_overview(report_map: ReportMap, max_pixels: int, *, show_progress: bool = False) -> Overview:
    """Read the shown part of a map completely, and reduce it to about `max_pixels` pixels."""
    shown = report_map.window
    step = max(1, math.ceil(math.sqrt(shown.width * shown.height / max_pixels)))
    height, width = -(-int(shown.height) // step), -(-int(shown.width) // step)
    task, scene = report_map.task, report_map.scene
    with open_raster(report_map.path) as dataset:
        map_grid = read_grid(dataset)
    grid = Grid(height, width, map_grid.subgrid(shown).transform @ Affine.scale(step), map_grid.crs)
    decided = np.full((task.n_targets, height, width), IGNORE, dtype=np.int16)
    truth = None if report_map.area is None else decided.copy()
    confidence = None if report_map.probabilities is None else np.full(decided.shape, np.nan, dtype=np.float32)
    pixels = None if scene is None else np.zeros((len(scene.bands), height, width), dtype=np.float32)
    valid, tally = np.zeros((height, width), dtype=bool), ClassTally(task, map_grid)
    size = max(1, _READ_SIZE_PX // step) * step
    with ExitStack() as stack:
        advance = stack.enter_context(progress("read map", shown.width * shown.height / 1e6, "Mpx", show=show_progress))
        reader = None if scene is None else stack.enter_context(scene.open())
        for part in Grid(int(shown.height), int(shown.width), grid.transform, grid.crs).tiles(size):
            window = Window(shown.col_off + part.col_off, shown.row_off + part.row_off, part.width, part.height)
            rows, columns = centre_indices(int(part.height), step), centre_indices(int(part.width), step)
            top, left = int(part.row_off) // step, int(part.col_off) // step
            cells = slice(None), slice(top, top + len(rows)), slice(left, left + len(columns))
            centres = np.ix_(np.arange(task.n_targets), rows, columns)
            in_window = report_map.read_decided(window)
            tally.add(np.where(in_window == IGNORE, 0, in_window), (in_window != IGNORE).all(axis=0), window)
            decided[cells] = in_window[centres]
            if truth is not None:
                truth[cells] = report_map.read_truth(window, in_window)[centres]  # type: ignore[index]
            if confidence is not None:
                confidence[cells] = report_map.read_confidence(window, in_window)[centres]  # type: ignore[index]
            if reader is not None and pixels is not None:
                tile = reader.read(window)
                pixels[cells], valid[cells[1:]] = block_means(tile.pixels, tile.valid, step)
            advance(part.width * part.height / 1e6)
    rendering = None
    if scene is None:
        valid = (decided != IGNORE).any(axis=0)
    elif pixels is not None:
        rendering = report_map.rendering or _rendering_of(scene, pixels, valid)
    return Overview(step, grid, decided, truth, confidence, pixels, valid, rendering, tally.counts())


def select_display_bands(
    scene: Scene, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> tuple[Scene, BandRendering | None]:
    """Return a scene with only the bands that are shown; with mean and std of all bands, also its rendering."""
    zeros = (0.0,) * len(scene.bands)
    of_all = BandRendering.from_statistics(scene.band_names, mean or zeros, std or zeros)
    bands = sorted(set(of_all.bands))

    def select(values: Sequence[T]) -> tuple[T, ...]:
        return tuple(values[band - 1] for band in bands)

    red, green, blue = (bands.index(band) + 1 for band in of_all.bands)
    selected = replace(scene, bands=select(scene.bands), band_names=select(scene.band_names))
    rendering = BandRendering((red, green, blue), select(of_all.names), select(of_all.mean), select(of_all.std))
    return selected, rendering if mean else None


def _rendering_of(scene: Scene, pixels: NDArray[np.float32], valid: NDArray[np.bool_]) -> BandRendering:
    """Return the rendering of a scene by the statistics of these pixels (C, H, W)."""
    values = np.ma.masked_invalid(pixels[:, valid].astype(np.float64))
    mean, std = (np.ma.filled(array, 0).tolist() for array in (values.mean(axis=1), values.std(axis=1)))
    return BandRendering.from_statistics(scene.band_names, mean, std)


class PixelStates:
    """The states of pixels in a report: each class of a task, then the combinations of overlapping classes found."""

    def __init__(self) -> None:
        self._indices: dict[PixelState, int] = {}

    @property
    def states(self) -> list[PixelState]:
        """All states found so far."""
        return list(self._indices)

    def encode(self, targets: NDArray[np.int16], task: Task, valid: NDArray[np.bool_]) -> NDArray[np.uint16]:
        """Return targets (T, H, W) as codes (H, W), see `segkit.reporting.viewer.SceneLayers`; adds new states."""
        for _, target, category in task.scored_categories:
            only_this = np.zeros(task.n_targets, dtype=np.int16)
            only_this[target] = category
            self._code(only_this, task)
        combinations, inverse = np.unique(targets.reshape(len(targets), -1), axis=1, return_inverse=True)
        codes = np.array([self._code(combination, task) for combination in combinations.T], dtype=np.uint16)
        return np.where(valid, codes[inverse].reshape(targets.shape[1:]), np.uint16(NODATA))

    def _code(self, combination: NDArray[np.int16], task: Task) -> int:
        """Return the code of a combination of categories (T,)."""
        if (combination == IGNORE).all():
            return UNLABELLED
        state = _pixel_state(combination, task)
        return FIRST_STATE + self._indices.setdefault(state, len(self._indices))


def _pixel_state(combination: NDArray[np.int16], task: Task) -> PixelState:
    names = [display_name(name) for name, target, category in task.scored_categories if combination[target] == category]
    name = " + ".join(names) or "no class"
    background = not names or (task.n_targets == 1 and task.background and combination[0] == 0)
    if (combination == IGNORE).any():
        name += " (others unlabelled)"
    color = colorize(combination[:, None, None], task)[0, 0]
    return PixelState(name, "#" + "".join(f"{round(255 * part):02x}" for part in color), background=bool(background))


def scene_layers(report_map: ReportMap, overview: Overview, states: PixelStates, note: str = "") -> SceneLayers:
    """Return the layers of a map for the viewer, with its polygons."""
    has_prediction = (overview.decided != IGNORE).any(axis=0)
    confidence = None
    if overview.confidence is not None:
        # The lowest confidence of overlapping classes; 2 stands for NaN.
        lowest = np.nan_to_num(overview.confidence, nan=2).min(axis=0)
        confidence = np.where(has_prediction & (lowest <= 1), lowest, np.nan).astype(np.float32)
    image = None
    if overview.pixels is not None and overview.rendering is not None:
        image = np.round(255 * overview.rendering.render(overview.pixels, overview.valid)).astype(np.uint8)
    truth = None
    if overview.truth is not None:
        truth = states.encode(overview.truth, report_map.task, overview.valid)
    outlines, polygon_note = _read_polygons(report_map, overview)
    step = overview.step
    resolution = "" if step == 1 else f"Reduced resolution: one pixel of {step} x {step} is shown."
    caption = "" if overview.rendering is None else f"Image: {overview.rendering.caption}."
    return SceneLayers(
        report_map.title,
        overview.grid,
        image,
        overview.valid,
        truth,
        states.encode(overview.decided, report_map.task, has_prediction),
        confidence,
        outlines,
        " ".join(part for part in (note, resolution, caption, polygon_note) if part),
    )


def _read_polygons(report_map: ReportMap, overview: Overview) -> tuple[GeoDataFrame | None, str]:
    """Return polygons at the resolution of the overview, and a note on how they were simplified."""
    step = overview.step
    min_pixels = _MIN_POLYGON_CELLS * step * step
    with warnings.catch_warnings():
        # The report has no option for the warning on an undeclared value 0, and shows its pixels anyway.
        warnings.filterwarnings("ignore", message=".*: value 0 .*background")
        frame = polygons(
            report_map.path,
            probabilities=report_map.probabilities,
            min_area=None if step == 1 else f"{min_pixels}px",
            simplify=f"{_SIMPLIFY_CELLS * step:g}px",
        )
    notes = [] if step == 1 else [f"regions smaller than {min_pixels} pixels are merged into a neighbour"]
    if len(frame) > _MAX_POLYGONS:
        notes.append(f"the {_MAX_POLYGONS:,} largest of {len(frame):,} are shown")
        frame = frame.nlargest(_MAX_POLYGONS, "pixels")
    if not len(frame):
        return None, ""
    frame["class"] = frame["class"].map(display_name)
    return frame, f"Polygons: {'; '.join(notes)}." if notes else ""
