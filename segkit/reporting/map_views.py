"""Maps: what a report reads of a map and of what is known beside it, closely or from afar."""

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

from segkit.data.area import Area
from segkit.evaluation.worst_windows import Look, Piece
from segkit.inference.summary import Tally
from segkit.io.grid import Grid
from segkit.io.raster import grid_of, open_raster, read_window
from segkit.io.scene import Scene
from segkit.plots.images import View, colored, read_map, spoken
from segkit.reporting.viewer import FIRST_STATE, NOT_KNOWN, NOTHING, Scenery, State
from segkit.runtime.progress import progress
from segkit.task.task import IGNORE, Task
from segkit.vector import polygons

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

T = TypeVar("T")

_READ = 2048  # pixels along a side of what is read at once
_LEAST_CELLS = 4  # a polygon that covers fewer shown pixels joins its neighbour
_MOST_POLYGONS = 4000
_SIMPLER = 0.75  # of a shown pixel: how far outlines may move


@dataclass(frozen=True)
class ShownMap:
    """A map, and what is known beside it, all on its grid.

    Parameters
    ----------
    title
        What a reader calls it.
    path, task
        The map and its classes.
    window
        The part that is shown.
    scene, view
        Its imagery, and how it is shown; without a view, by what is seen of it.
    area
        Where the truth is known, and what it is.
    probabilities
        A raster with a band per class.
    """

    title: str
    path: Path
    task: Task
    window: Window
    scene: Scene | None = None
    view: View | None = None
    area: Area | None = None
    probabilities: Path | None = None

    def planes(self, window: Window) -> NDArray[np.int16]:
        """Return decided categories (P, H, W), `IGNORE` where the map holds no data."""
        return read_map(self.path, self.task, window)

    def truth(self, window: Window, planes: NDArray[np.int16]) -> NDArray[np.int16] | None:
        """Return true categories (P, H, W); None where no labels were given."""
        return None if self.area is None else self.area.truth(window, (planes != IGNORE).any(axis=0))

    def confidence(self, window: Window, planes: NDArray[np.int16]) -> NDArray[np.float32] | None:
        """Return the probability of what was decided (P, H, W), NaN where it is not known; None without a raster.

        A category without a band has what the highest probability leaves.
        """
        if self.probabilities is None:
            return None
        with open_raster(self.probabilities) as dataset:
            stored = read_window(dataset, dataset.indexes, window, masked=True)
            known = ~np.ma.getmaskarray(stored)
            declared = np.array([dataset.scales, dataset.offsets], dtype=np.float32)
            scale, offset = declared[..., None, None]
            chances = np.where(known, np.asarray(stored) * scale + offset, np.float32(np.nan))
            chance = dict(zip(dataset.descriptions, chances, strict=True))
        found = np.full(planes.shape, np.nan, dtype=np.float32)
        for name, plane, category in self.task.scored:
            own = chance.get(name, 1 - chances.max(axis=0) if self.task.planes == 1 else None)
            if own is not None:
                here = planes[plane] == category
                found[plane][here] = own[here]
                if self.task.planes > 1:
                    absent = planes[plane] == 0
                    found[plane][absent] = 1 - own[absent]
        return found

    def look(self, piece: Piece) -> Look:
        """Return what is to be seen in a window; without imagery and view the image is white."""
        planes = self.planes(piece.window)
        truth = self.truth(piece.window, planes)
        assert truth is not None
        image = np.ones((*planes.shape[1:], 3))
        if self.scene is not None and self.view is not None:
            tile = self.scene.read(piece.window)
            image = self.view.image(tile.pixels, tile.valid)
        return Look(piece, image, truth, planes, self.confidence(piece.window, planes))


@dataclass(frozen=True)
class Overview:
    """A map from afar: one of so many pixels of it, and the mean of so many of its imagery.

    Parameters
    ----------
    step
        Pixels of the map along a side of one that is shown.
    grid
        Of what is shown.
    planes, truth, confidence
        As `ShownMap` reads them, (P, H, W).
    pixels, valid
        Of the imagery, (C, H, W) and (H, W); `view` says how it is shown.
    counts
        Of all of the map: `pixels` and `hectares` by class, as `segkit.inference.summary.Tally` counts them.
    """

    step: int
    grid: Grid
    planes: NDArray[np.int16]
    truth: NDArray[np.int16] | None
    confidence: NDArray[np.float32] | None
    pixels: NDArray[np.float32] | None
    valid: NDArray[np.bool_]
    view: View | None
    counts: Mapping[str, Any]


def overview(shown: ShownMap, budget: int, *, show_progress: bool = False) -> Overview:
    """Read all of what is shown of a map, and keep about `budget` pixels of it."""
    frame = shown.window
    step = max(1, math.ceil(math.sqrt(frame.width * frame.height / budget)))
    height, width = -(-int(frame.height) // step), -(-int(frame.width) // step)
    task, scene = shown.task, shown.scene
    with open_raster(shown.path) as dataset:
        whole = grid_of(dataset)
    grid = Grid(height, width, whole.part(frame).transform @ Affine.scale(step), whole.crs)
    planes = np.full((task.planes, height, width), IGNORE, dtype=np.int16)
    truth = None if shown.area is None else planes.copy()
    confidence = None if shown.probabilities is None else np.full(planes.shape, np.nan, dtype=np.float32)
    pixels = None if scene is None else np.zeros((len(scene.bands), height, width), dtype=np.float32)
    valid, tally = np.zeros((height, width), dtype=bool), Tally(task, whole)
    side = max(1, _READ // step) * step
    with ExitStack() as stack:
        advance = stack.enter_context(progress("look at", frame.width * frame.height / 1e6, "Mpx", show=show_progress))
        reader = None if scene is None else stack.enter_context(scene.open())
        for place in Grid(int(frame.height), int(frame.width), grid.transform, grid.crs).tiles(side):
            window = Window(frame.col_off + place.col_off, frame.row_off + place.row_off, place.width, place.height)
            some = _every(int(place.height), step), _every(int(place.width), step)
            top, left = int(place.row_off) // step, int(place.col_off) // step
            to = slice(None), slice(top, top + len(some[0])), slice(left, left + len(some[1]))
            near = np.ix_(np.arange(task.planes), *some)
            decided = shown.planes(window)
            tally.add(np.where(decided == IGNORE, 0, decided), (decided != IGNORE).all(axis=0), window)
            planes[to] = decided[near]
            if truth is not None:
                truth[to] = shown.truth(window, decided)[near]  # type: ignore[index]
            if confidence is not None:
                confidence[to] = shown.confidence(window, decided)[near]  # type: ignore[index]
            if reader is not None and pixels is not None:
                tile = reader.read(window)
                pixels[to], valid[to[1:]] = _means(tile.pixels, tile.valid, step)
            advance(place.width * place.height / 1e6)
    view = None
    if scene is None:
        valid = (planes != IGNORE).any(axis=0)
    elif pixels is not None:
        view = shown.view or _view(scene, pixels, valid)
    return Overview(step, grid, planes, truth, confidence, pixels, valid, view, tally.counts())


def _every(length: int, step: int) -> NDArray[np.intp]:
    """Return the middle one of each `step` places; of the last few, which may be less, the last one at most."""
    return np.minimum(np.arange(0, length, step) + step // 2, length - 1)


def _means(
    pixels: NDArray[np.float32], valid: NDArray[np.bool_], step: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the means of known pixels over cells of `step` x `step`, NaN where there are none, and where there are."""
    if step == 1:
        return pixels, valid
    rows, columns = (np.arange(0, length, step) for length in valid.shape)

    def summed(values: NDArray[Any]) -> NDArray[np.float64]:
        down = np.add.reduceat(values, rows, axis=-2, dtype=np.float64)
        return np.asarray(np.add.reduceat(down, columns, axis=-1))

    known = valid & np.isfinite(pixels)
    with np.errstate(invalid="ignore"):
        means = summed(np.where(known, pixels, 0)) / summed(known)
    return means.astype(np.float32), summed(valid) > 0


def narrowed(scene: Scene, mean: Sequence[float] = (), std: Sequence[float] = ()) -> tuple[Scene, View | None]:
    """Return the bands of a scene that are shown, and how, where mean and deviation of all bands are known."""
    unknown = (0.0,) * len(scene.bands)
    view = View.of(scene.band_names, mean or unknown, std or unknown)
    places = sorted(set(view.bands))

    def kept(values: Sequence[T]) -> tuple[T, ...]:
        return tuple(values[place - 1] for place in places)

    red, green, blue = (places.index(band) + 1 for band in view.bands)
    part = replace(scene, bands=kept(scene.bands), band_names=kept(scene.band_names))
    own = View((red, green, blue), kept(view.names), kept(view.mean), kept(view.std))
    return part, own if mean else None


def _view(scene: Scene, pixels: NDArray[np.float32], valid: NDArray[np.bool_]) -> View:
    """Return how pixels (C, H, W) of a narrowed scene are shown."""
    seen = np.ma.masked_invalid(pixels[:, valid].astype(np.float64))
    mean, std = (np.ma.filled(each, 0).tolist() for each in (seen.mean(axis=1), seen.std(axis=1)))
    return View.of(scene.band_names, mean, std)


class States:
    """What a pixel may be: first each class of a task, then combinations of overlapping ones as they are met."""

    def __init__(self) -> None:
        self._places: dict[State, int] = {}

    @property
    def states(self) -> list[State]:
        """All that there are so far."""
        return list(self._places)

    def of(self, planes: NDArray[np.int16], task: Task, valid: NDArray[np.bool_]) -> NDArray[np.uint16]:
        """Return what each pixel of planes (P, H, W) is, as `segkit.reporting.viewer.Scenery` has it."""
        for _, plane, category in task.scored:
            alone = np.zeros(task.planes, dtype=np.int16)
            alone[plane] = category
            self._number(alone, task)
        kinds, place = np.unique(planes.reshape(len(planes), -1), axis=1, return_inverse=True)
        numbers = [self._number(kind, task) for kind in kinds.T]
        found = np.array(numbers, dtype=np.uint16)[place].reshape(planes.shape[1:])
        return np.where(valid, found, np.uint16(NOTHING))

    def _number(self, kind: NDArray[np.int16], task: Task) -> int:
        if (kind == IGNORE).all():
            return NOT_KNOWN
        state = _state(kind, task)
        return FIRST_STATE + self._places.setdefault(state, len(self._places))


def _state(kind: NDArray[np.int16], task: Task) -> State:
    names = [spoken(name) for name, plane, category in task.scored if kind[plane] == category]
    name = " + ".join(names) or "none of the classes"
    nothing = not names or (task.planes == 1 and task.background and kind[0] == 0)
    if (kind == IGNORE).any():
        name += " (others not known)"
    color = colored(kind[:, None, None], task)[0, 0]
    return State(name, "#" + "".join(f"{round(255 * part):02x}" for part in color), background=bool(nothing))


def scenery(shown: ShownMap, seen: Overview, states: States, note: str = "") -> Scenery:
    """Return a map as the viewer shows it, with its polygons."""
    decided_here = (seen.planes != IGNORE).any(axis=0)
    confidence = None
    if seen.confidence is not None:
        # Of overlapping classes that which is least sure.
        confidence = np.where(decided_here, np.nan_to_num(seen.confidence, nan=2).min(axis=0), np.nan)
        confidence = np.where(confidence > 1, np.nan, confidence).astype(np.float32)
    image = None
    if seen.pixels is not None and seen.view is not None:
        image = np.round(255 * seen.view.image(seen.pixels, seen.valid)).astype(np.uint8)
    truth = None
    if seen.truth is not None:
        truth = states.of(seen.truth, shown.task, seen.valid)
    outlines, told = _outlines(shown, seen)
    every = "" if seen.step == 1 else f"One of {seen.step} x {seen.step} pixels is shown."
    caption = "" if seen.view is None else f"Image: {seen.view.caption}."
    return Scenery(
        shown.title,
        seen.grid,
        image,
        seen.valid,
        truth,
        states.of(seen.planes, shown.task, decided_here),
        confidence,
        outlines,
        " ".join(part for part in (note, every, caption, told) if part),
    )


def _outlines(shown: ShownMap, seen: Overview) -> tuple[GeoDataFrame | None, str]:
    """Return the polygons of what is shown, no finer than it, and what is left out of them."""
    step = seen.step
    least = _LEAST_CELLS * step * step
    with warnings.catch_warnings():
        # Of a 0 that nothing names; the report shows its pixels, and has no option for its polygons.
        warnings.filterwarnings("ignore", message=".*: value 0 .* was taken for background")
        found = polygons(
            shown.path,
            probabilities=shown.probabilities,
            min_area=None if step == 1 else f"{least}px",
            simplify=f"{_SIMPLER * step:g}px",
        )
    told = [] if step == 1 else [f"regions of less than {least} pixels have joined their neighbours"]
    if len(found) > _MOST_POLYGONS:
        told.append(f"the {_MOST_POLYGONS:,} largest of {len(found):,} are shown")
        found = found.nlargest(_MOST_POLYGONS, "pixels")
    found["class"] = found["class"].map(spoken)
    return (found if len(found) else None), f"Polygons: {'; '.join(told)}." if told and len(found) else ""
