"""Compare scenes with what a model was trained on, from a small sample of their pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.area import LabelledArea
from segkit.errors import GridError
from segkit.io.cover import PixelRegion
from segkit.io.grid import lattice_windows
from segkit.io.mosaic_dataset import MosaicDataset
from segkit.io.product_band import ProductFile
from segkit.io.raster import open_raster
from segkit.io.region import Region
from segkit.io.scene import Scene
from segkit.models.ensemble import members
from segkit.models.training_pixels import TrainingPixels, evenly_spaced

if TYPE_CHECKING:
    from segkit.models.ensemble import AnyModel

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
# For comparing the scenes of a recipe with each other: parts of the training scenes, and pixels of each scene.
_MAX_PARTS, _MAX_COMPARED_PIXELS = 10, 500


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
    return _describe([_SceneFacts.read(one[0].sample.scene, _TrainingRegion(one)) for one in groups_of_areas])


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


@dataclass(frozen=True)
class _SceneFacts:
    """What is compared of a scene.

    Parameters
    ----------
    windows
        Sampled pixels, arrays (n, C).
    dtypes, scaling
        See `_declared`.
    resolution
        See `_resolution`.
    """

    scene: Scene
    windows: tuple[NDArray[np.float32], ...]
    dtypes: tuple[str, ...]
    scaling: tuple[tuple[float, float], ...]
    resolution: float | None

    @classmethod
    def read(cls, scene: Scene, region: Region | None = None) -> _SceneFacts:
        windows = tuple(sample_pixels(scene, region))
        dtypes, scaling = _declared(scene)
        return cls(scene, windows, tuple(dtypes), tuple(scaling), _resolution(scene))

    @property
    def pixels(self) -> NDArray[np.float32] | None:
        """All sampled pixels, (n, C); None if there are none."""
        return np.concatenate(self.windows) if self.windows else None


def compare_scene(training: TrainingPixels, scene: Scene, region: Region | None = None) -> SceneComparison:
    """Compare a scene with training data, from a small sample of its pixels.

    Parameters
    ----------
    region
        The area of interest: only pixels in it are sampled.
    """
    return _compare([training], _SceneFacts.read(scene, region))


def compare_with_model(model: AnyModel, scene: Scene, region: Region | None = None) -> SceneComparison | None:
    """Compare a scene with the training data of a model, or of several that predict together.

    A pixel is outside the area of applicability of several models if it is outside for each of them. Everything else is
    compared with the training data that are most like the scene.

    Returns
    -------
    None if no model holds training pixels, or the scene does not have the model's bands.
    """
    trainings = [one.training_pixels for one in members(model) if one.training_pixels is not None]
    if not trainings or len(scene.bands) != model.bands:
        return None
    return _compare(trainings, _SceneFacts.read(scene, region))


def compare_scenes(training: Sequence[Scene], others: Sequence[Scene]) -> list[SceneComparison]:
    """Compare the scenes of a recipe: training scenes with each other, and other scenes with the training scenes.

    Each training scene is compared with those of the other parts, of which there are ten at most.

    Parameters
    ----------
    training, others
        Scenes with the same number of bands.

    Returns
    -------
    Of the training scenes, then of the others; empty if there are too few training pixels.
    """
    facts = [_thinned(_SceneFacts.read(scene)) for scene in training]
    compared: dict[int, SceneComparison] = {}
    parts = min(len(facts), _MAX_PARTS)
    for part in range(parts if parts > 1 else 0):
        rest = [one for number, one in enumerate(facts) if number % parts != part]
        described = _describe(rest)
        if described is None:
            continue
        for number in range(part, len(facts), parts):
            # How much scenes differ cannot be known from one scene.
            one = facts[number] if len(rest) > 1 else replace(facts[number], windows=())
            compared[number] = _compare([described], one)
    everything = _describe(facts) if others else None
    of_others = () if everything is None else (_compare([everything], _SceneFacts.read(scene)) for scene in others)
    return [*(compared[number] for number in sorted(compared)), *of_others]


def _describe(facts: Sequence[_SceneFacts]) -> TrainingPixels | None:
    """Describe scenes as training data; the windows of a single scene are groups of their own."""
    groups = [one.pixels for one in facts] if len(facts) > 1 else [window for one in facts for window in one.windows]
    sides = [one.resolution for one in facts if one.resolution is not None]
    return TrainingPixels.from_samples(
        [group for group in groups if group is not None],
        [dtype for one in facts for dtype in one.dtypes],
        [pair for one in facts for pair in one.scaling],
        (min(sides), max(sides)) if sides else None,
    )


def _thinned(facts: _SceneFacts) -> _SceneFacts:
    """Return facts with fewer pixels, so that many scenes fit into memory."""
    step = -(-sum(map(len, facts.windows)) // _MAX_COMPARED_PIXELS) or 1
    return replace(facts, windows=tuple(window[::step].copy() for window in facts.windows))


def _compare(trainings: Sequence[TrainingPixels], facts: _SceneFacts) -> SceneComparison:
    pixels = facts.pixels
    share = None
    if pixels is not None:
        share = float(np.logical_and.reduce([one.is_outside(pixels) for one in trainings]).mean())
    findings = min((tuple(_findings(one, facts, pixels, share)) for one in trainings), key=len)
    return SceneComparison(str(facts.scene.paths[0]), share, findings)


def _findings(
    training: TrainingPixels, facts: _SceneFacts, pixels: NDArray[np.float32] | None, share: float | None
) -> Iterator[str]:
    """Yield how a scene differs from training data; `share` of its pixels are outside."""
    unlike = share is not None and share > _MAX_SHARE_OUTSIDE
    if unlike and pixels is not None:
        yield f"{share:.0%} of its pixels are unlike the training pixels{_describe_shift(training, pixels)}"
    other = sorted({*facts.scaling} - {*training.scaling})
    # A scale or offset that the user gives is in place of the declared one.
    undeclared = bool(other) and not (facts.scene.scaled or facts.scene.rules.has_scaling)
    if undeclared:
        scale, offset = other[0]
        yield (
            f"it declares scale {scale:g} and offset {offset:g}, the training files did not (stored values are used; "
            "data.apply_scale_offset)"
        )
    if (unlike or undeclared) and not {*facts.dtypes} & {*training.dtypes}:
        yield f"it holds {', '.join(facts.dtypes)}, the training files {', '.join(training.dtypes)}"
    side = facts.resolution
    if side is not None and training.resolution is not None:
        low, high = training.resolution
        if not low / _MAX_RESOLUTION_RATIO <= side <= high * _MAX_RESOLUTION_RATIO:
            known = f"{low:.3g}" if high < 1.01 * low else f"{low:.3g} to {high:.3g}"
            yield f"its pixels are {side:.3g} m wide, in training {known} m"


def describe_unlike_scenes(comparisons: Sequence[SceneComparison]) -> str | None:
    """Return one warning about all scenes that are unlike the training data; None if there are none."""
    unlike = [one for one in comparisons if one.findings]
    if not unlike:
        return None
    which = "the scene differs" if len(comparisons) == 1 else _count_differing(unlike, comparisons)
    return (
        f"{which} from what the model was trained on, so the map may be wrong: {_list_scenes(unlike)}. Check units, "
        "offsets, band order and season, or train with scenes like these"
    )


def describe_unlike_samples(comparisons: Sequence[SceneComparison]) -> str | None:
    """Return one note about the scenes of a recipe that differ from its training scenes; None if there are none."""
    unlike = [one for one in comparisons if one.findings]
    if not unlike:
        return None
    return (
        f"{_count_differing(unlike, comparisons)} from the other training scenes: {_list_scenes(unlike)}. If that is "
        "not intended, check units, offsets and band order"
    )


def _count_differing(unlike: Sequence[SceneComparison], comparisons: Sequence[SceneComparison]) -> str:
    return f"{len(unlike)} of {len(comparisons)} scenes differ{'s' * (len(unlike) == 1)}"


def _list_scenes(unlike: Sequence[SceneComparison]) -> str:
    """Return the findings of scenes, those with the most pixels outside first."""
    ordered = sorted(unlike, key=lambda each: -(each.share_outside or 0))
    listed = "; ".join(f"{each.scene}: {', '.join(each.findings)}" for each in ordered[:_MAX_LISTED_SCENES])
    return listed + (f"; and {len(ordered) - _MAX_LISTED_SCENES} more" if len(ordered) > _MAX_LISTED_SCENES else "")


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
    """Return the data types, and the pairs of scale and offset, that the files of a scene declare.

    Of products whose values are scaled, the pairs are those of their metadata.
    """
    dtypes: list[str] = []
    scaling: list[tuple[float, float]] = []
    for path in scene.paths:
        with open_raster(path, vrt=scene.vrt) as dataset:
            for part in dataset.layout.tiles if isinstance(dataset, MosaicDataset) else [dataset]:
                dtypes += part.dtypes
                pairs = list(zip(part.scales, part.offsets, strict=True))
                if scene.scaled and isinstance(path, ProductFile):
                    declared = [path.declared(dataset, number, scaled=True) for number in dataset.indexes]
                    pairs = [pair for pair in declared if pair is not None]
                scaling += pairs
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
