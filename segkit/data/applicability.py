"""Compare scenes with what a model was trained on, from a small sample of their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.area import LabelledArea
from segkit.errors import GridError
from segkit.io.cover import PixelRegion
from segkit.io.grid import lattice_windows
from segkit.io.raster import open_raster
from segkit.io.region import Region
from segkit.io.scene import Scene
from segkit.models.training_pixels import TrainingPixels, evenly_spaced

# A scene is sampled in windows of this side on a square lattice; on a finer one if all of these hold no data.
_WINDOW_PX = 32
_LATTICES = (4, 12)
_MAX_SCENES = 200  # of a training
# A scene is unlike the training data if more of its pixels lie outside the area of applicability. Of 20 held-out tiles
# of two random folds of Amazon imagery, 27 % at most do; of the same tiles with reversed bands, 38 to 100 %
# (docs/applicability.md).
_MAX_SHARE_OUTSIDE = 1 / 3
_MAX_RESOLUTION_RATIO = 1.25
_MIN_FACTOR = 3.0  # between medians, to name it in a message
_MAX_LISTED_SCENES = 3


@dataclass(frozen=True)
class SceneComparison:
    """How a scene differs from the training data.

    Parameters
    ----------
    scene
        Name for messages.
    share_outside
        Share of the sampled pixels outside the area of applicability; None if no pixel was compared.
    findings
        Texts; empty if the scene is like the training data.
    """

    scene: str
    share_outside: float | None
    findings: tuple[str, ...]


def describe_training_pixels(areas: Sequence[LabelledArea]) -> TrainingPixels | None:
    """Describe the pixels that areas train on for the model file; None if they are too few.

    Pixels of the same scenes that validate, or lie in the gap, are not used.
    """
    areas_by_scene: dict[tuple[Path, ...], list[LabelledArea]] = {}
    for area in areas:
        areas_by_scene.setdefault(area.sample.scene.paths, []).append(area)
    groups_of_areas = list(areas_by_scene.values())
    groups_of_areas = [groups_of_areas[at] for at in evenly_spaced(len(groups_of_areas), _MAX_SCENES)]
    scenes = [areas[0].sample.scene for areas in groups_of_areas]
    windows = [sample_pixels(areas[0].sample.scene, _TrainingRegion(areas)) for areas in groups_of_areas]
    # The windows of a single scene are groups of their own.
    groups = [np.concatenate(found) for found in windows if found] if len(scenes) > 1 else windows[0]
    facts = [_declared(scene) for scene in scenes]
    sides = [side for scene in scenes if (side := _resolution(scene)) is not None]
    return TrainingPixels.from_samples(
        groups,
        [dtype for dtypes, _ in facts for dtype in dtypes],
        [pair for _, scaling in facts for pair in scaling],
        (min(sides), max(sides)) if sides else None,
    )


@dataclass(frozen=True)
class _TrainingRegion:
    """The pixels of one scene that areas train on."""

    areas: Sequence[LabelledArea]

    def mask(self, window: Window) -> NDArray[np.bool_]:
        """Return which pixels of a window are in an area and not excluded from it, bool (H, W)."""
        trains = np.zeros((int(window.height), int(window.width)), dtype=bool)
        for area in self.areas:
            trains |= PixelRegion(area.windows).mask(window) & ~area.exclude.mask(window)
        return trains


def compare_scene(training: TrainingPixels, scene: Scene, region: Region | None = None) -> SceneComparison:
    """Compare a scene with training data, from a small sample of its pixels.

    Parameters
    ----------
    region
        The area of interest: only pixels in it are sampled.
    """
    findings, share = [], None
    if windows := sample_pixels(scene, region):
        pixels = np.concatenate(windows)
        share = training.share_outside(pixels)
        if share > _MAX_SHARE_OUTSIDE:
            findings.append(
                f"{share:.0%} of its pixels are unlike the training pixels{_describe_shift(training, pixels)}"
            )
    dtypes, scaling = _declared(scene)
    other = sorted(set(scaling) - set(training.scaling))
    if other and not scene.scaled:
        scale, offset = other[0]
        findings.append(
            f"it declares scale {scale:g} and offset {offset:g}, the training files did not (stored values are used; "
            "data.apply_scale_offset)"
        )
    if findings and not set(dtypes) & set(training.dtypes):
        findings.append(f"it holds {', '.join(dtypes)}, the training files {', '.join(training.dtypes)}")
    side = _resolution(scene)
    if side is not None and training.resolution is not None:
        low, high = training.resolution
        if not low / _MAX_RESOLUTION_RATIO <= side <= high * _MAX_RESOLUTION_RATIO:
            known = f"{low:.3g}" if high < 1.01 * low else f"{low:.3g} to {high:.3g}"
            findings.append(f"its pixels are {side:.3g} m wide, in training {known} m")
    return SceneComparison(str(scene.paths[0]), share, tuple(findings))


def compare_with_models(
    trainings: Sequence[TrainingPixels], scene: Scene, region: Region | None = None
) -> SceneComparison:
    """Compare a scene with the training data of several models that predict together: with that most like it."""
    comparisons = [compare_scene(training, scene, region) for training in trainings]
    return min(comparisons, key=lambda one: (one.share_outside or 0, len(one.findings)))


def describe_unlike_scenes(comparisons: Sequence[SceneComparison]) -> str | None:
    """Return one warning about all scenes that are unlike the training data; None if there are none."""
    unlike = sorted((each for each in comparisons if each.findings), key=lambda each: -(each.share_outside or 0))
    if not unlike:
        return None
    listed = "; ".join(f"{each.scene}: {', '.join(each.findings)}" for each in unlike[:_MAX_LISTED_SCENES])
    if len(unlike) > _MAX_LISTED_SCENES:
        listed += f"; and {len(unlike) - _MAX_LISTED_SCENES} more"
    which = (
        "the scene differs"
        if len(comparisons) == 1
        else f"{len(unlike)} of {len(comparisons)} scenes differ{'s' * (len(unlike) == 1)}"
    )
    return (
        f"{which} from what the model was trained on, so the map may be wrong: {listed}. Check units, offsets, band "
        "order and season, or train with scenes like these"
    )


def sample_pixels(scene: Scene, region: Region | None = None) -> list[NDArray[np.float32]]:
    """Return the pixels of small windows on a lattice that have data in all bands, one array (n, C) per window."""
    found: list[NDArray[np.float32]] = []
    with scene.open() as reader:
        for number in _LATTICES:
            for window in lattice_windows(scene.grid, number, _WINDOW_PX):
                tile = reader.read(window)
                usable = tile.valid & np.isfinite(tile.pixels).all(axis=0)
                if region is not None:
                    usable &= region.mask(window)
                if usable.any():
                    found.append(tile.pixels[:, usable].T)
            if found:
                break
    return found


def _declared(scene: Scene) -> tuple[list[str], list[tuple[float, float]]]:
    """Return the data types, and the pairs of scale and offset, that the files of a scene declare."""
    dtypes: list[str] = []
    scaling: list[tuple[float, float]] = []
    for path in scene.paths:
        with open_raster(path, vrt=scene.vrt) as dataset:
            dtypes += dataset.dtypes
            scaling += zip(dataset.scales, dataset.offsets, strict=True)
    return list(dict.fromkeys(dtypes)), list(dict.fromkeys(scaling))


def _resolution(scene: Scene) -> float | None:
    """Return the mean side of a pixel on the ground in metres; None if the CRS does not say."""
    try:
        return float(np.sqrt(np.prod(scene.grid.pixel_metres())))
    except GridError:
        return None


def _describe_shift(training: TrainingPixels, pixels: NDArray[np.float32]) -> str:
    """Return how the values differ, if all bands differ in about the same way; else an empty text."""
    theirs, ours = np.array(training.median), np.median(pixels, axis=0)
    if (theirs > 0).all() and (ours > 0).all():
        factors = ours / theirs
        middle = float(np.median(factors))
        if (middle > _MIN_FACTOR or middle < 1 / _MIN_FACTOR) and factors.max() < 2 * factors.min():
            factor, which = (middle, "larger") if middle > 1 else (1 / middle, "smaller")
            return f" (values are about {_two_digits(factor)} times {which})"
    offsets = ours - theirs
    middle = float(np.median(offsets))
    spread = np.array(training.high) - np.array(training.low)
    if np.abs(offsets - middle).max() < 0.25 * abs(middle) and abs(middle) > 0.1 * np.median(spread):
        return f" (values are about {_two_digits(abs(middle))} {'higher' if middle > 0 else 'lower'} in all bands)"
    return ""


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):,g}"
