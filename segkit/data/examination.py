"""Checks of what a recipe trains and validates on, for check, train and compare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segkit.data.amount import describe_little_left, describe_outside
from segkit.data.appearance import appearance_features
from segkit.data.area import LabelledArea, count_categories, read_tiles
from segkit.data.leakage import SceneProximity, find_nearest_pairs
from segkit.data.pairing import Sample
from segkit.data.split import SceneCounts, count_scene, resolve_split, train_val_split
from segkit.data.statistics import BandMoments, Statistics
from segkit.errors import DataError, SegkitError, suggest
from segkit.io.cover import PixelRegion
from segkit.models.training_scenes import TrainingScenes
from segkit.recipe.schema import Data, Recipe
from segkit.recipe.splits import SpatialSplit
from segkit.runtime.progress import progress
from segkit.task import BACKGROUND, Task

_WINDOW_PX = 1024  # side; bounds the memory for large scenes


@dataclass(frozen=True)
class ClassCount:
    """Pixels of a class or of background, and the labelled pixels of its target."""

    name: str
    pixels: int
    known: int

    @property
    def share(self) -> float | None:
        """`pixels` / `known`; None if no pixel is labelled."""
        return self.pixels / self.known if self.known else None


@dataclass(frozen=True)
class Examination:
    """The training and validation areas of a recipe, and problems with them; made by `examine`.

    Parameters
    ----------
    recipe
        With the default block and gap of its split filled in.
    training, validation
        Empty if there is an `error`.
    statistics
        Of the training areas; None if there is an `error`.
    validation_counts
        int64 (T, K): labelled validation pixels of each category of each target.
    training_scenes
        How the training scenes look; None if there are fewer than two, or most look the same.
    distances
        Of each validation area: how far its scene is from the training scenes in appearance, see
        `TrainingScenes.distances`; None if it is unknown, or the scene also trains.
    nearest
        As `Report.nearest`; of a spatial split, which never leaks, only on request.
    problems
        Probable mistakes; training would be possible.
    warnings
        What may be intended: few labels, classes without any, much background.
    error
        Why training is impossible.
    """

    recipe: Recipe
    training: tuple[LabelledArea, ...] = ()
    validation: tuple[LabelledArea, ...] = ()
    statistics: Statistics | None = None
    validation_counts: NDArray[np.int64] | None = None
    training_scenes: TrainingScenes | None = None
    distances: tuple[float | None, ...] = ()
    nearest: tuple[SceneProximity, ...] = ()
    problems: tuple[str, ...] = ()
    error: SegkitError | None = None
    warnings: tuple[str, ...] = ()

    def require_trainable(self, *, force: bool) -> Statistics:
        """Return the statistics of the training areas; raise if there is a problem.

        Parameters
        ----------
        force
            Whether to ignore problems; impossible trainings still raise.

        Raises
        ------
        SegkitError
            With the message that `check` shows.
        """
        if self.error is not None and (force or not self.problems):
            raise self.error
        if self.problems and not force:
            more = len(self.problems) - 1 + (self.error is not None)
            others = f" (and {more} more, which segkit check lists)" if more else ""
            advice = suggest("train anyway (--force)") if self.error is None else ""
            raise DataError(f"{self.problems[0]}{others}{advice}")
        assert self.statistics is not None
        return self.statistics


def examine(
    recipe: Recipe,
    training: Sequence[Sample],
    validation: Sequence[Sample] = (),
    *,
    scene_counts: Sequence[SceneCounts | None] | None = None,
    measure: bool = False,
    show_progress: bool = False,
) -> Examination:
    """Split the samples of a recipe, count both sides, and collect problems.

    `check`, `train` and `compare` all use this, so their messages agree.

    Parameters
    ----------
    training, validation
        The samples of `data.train`, and of `data.val` if that is a source.
    scene_counts
        Of all samples, if already counted.
    measure
        Whether to measure the distance between both sides also for a spatial split, which never shares ground.
    show_progress
        Whether to show progress on stderr.
    """
    samples, task = [*training, *validation], recipe.task
    problems: list[str] = []
    try:
        recipe = resolve_split(recipe, training)
        if scene_counts is None:
            scene_counts, _ = count_scenes(samples, recipe, show_progress=show_progress, fail_fast=True)
        problems += [*scene_problems(samples, scene_counts), *_unused_keys(recipe.data, samples)]
        require_same_bands(samples)
        counted = [one for one in scene_counts if one is not None]
        train_areas, val_areas = train_val_split(recipe, training, validation, counted[: len(training)])
    except SegkitError as error:
        return Examination(recipe, problems=tuple(problems), error=error)
    nearest: list[SceneProximity] = []
    if measure or not isinstance(recipe.data.val, SpatialSplit):
        nearest = _measure_leakage(recipe, train_areas, val_areas)
        problems += _leakage_problems(nearest)
    try:
        statistics = Statistics.from_areas(train_areas, task, show_progress=show_progress)
    except SegkitError as error:
        # Without a training pixel there is no distance.
        nearest = nearest if not isinstance(recipe.data.val, SpatialSplit) else []
        return Examination(recipe, nearest=tuple(nearest), problems=tuple(problems), error=error)
    val_counts = np.zeros(statistics.counts.shape, dtype=np.int64)
    for _, targets, _ in read_tiles(val_areas):
        val_counts += count_categories(targets, task).reshape(val_counts.shape)
    no_validation = None
    if val_areas and not val_counts.any():
        no_validation = DataError(
            "no validation pixel: no pixel of the validation scenes has both data and a label; correct the labels or "
            "data.val"
        )
    in_scenes = np.sum([one.counts.sum(axis=0) for one in counted[: len(training)]], axis=0).reshape(val_counts.shape)
    in_training, in_all = class_counts(statistics.counts, task), class_counts(in_scenes, task)
    missing_problems, warnings = _missing_classes(in_training, in_all, recipe.data.val)
    problems += missing_problems
    in_validation = class_counts(val_counts, task)
    if val_areas:
        names, trains, validates, labelled = (
            [one.name for one in in_all],
            *([one.pixels for one in side] for side in (in_training, in_validation)),
            sum(one.pixels for one in (*in_all, *(in_validation if validation else ()))),
        )
        warnings += describe_little_left(names, trains, validates, labelled)
    if in_all[0].name == BACKGROUND:
        found = describe_outside(training, in_all[0].pixels, in_all[0].known, others=len(task.classes))
        warnings += [] if found is None else [found]
    training_scenes, distances = _compare_appearance(
        train_areas, val_areas, {sample.scene.paths: one.moments for sample, one in zip(samples, counted, strict=True)}
    )
    return Examination(
        recipe,
        tuple(train_areas),
        tuple(val_areas),
        statistics,
        val_counts,
        training_scenes,
        distances,
        tuple(nearest),
        tuple(problems),
        no_validation,
        tuple(warnings),
    )


def _compare_appearance(
    training: Sequence[LabelledArea],
    validation: Sequence[LabelledArea],
    moments: Mapping[tuple[Path, ...], BandMoments],
) -> tuple[TrainingScenes | None, tuple[float | None, ...]]:
    """Return how the training scenes look, and the distance of each validation area's scene; see `Examination`."""
    trains = dict.fromkeys(area.sample.scene.paths for area in training)
    described = TrainingScenes.from_features(appearance_features([moments[paths] for paths in trains]))
    scenes = [area.sample.scene.paths for area in validation]
    if described is None or not scenes:
        return described, (None,) * len(scenes)
    found = described.distances(appearance_features([moments[paths] for paths in scenes])).tolist()
    return described, tuple(None if paths in trains else one for paths, one in zip(scenes, found, strict=True))


def _measure_leakage(
    recipe: Recipe, training: Sequence[LabelledArea], validation: Sequence[LabelledArea]
) -> list[SceneProximity]:
    """Measure the distance of both sides; of other validation scenes, before their ground is excluded from training."""
    if not isinstance(recipe.data.val, SpatialSplit):
        training = [replace(area, exclude=PixelRegion()) for area in training]
    return find_nearest_pairs(training, validation, recipe.train.tile_size)


def require_same_bands(samples: Sequence[Sample]) -> None:
    """Raise a DataError if scenes differ in their number of bands."""
    examples: dict[int, Path] = {}
    for sample in samples:
        examples.setdefault(len(sample.scene.bands), sample.scene.paths[0])
    if len(examples) > 1:
        counts = ", ".join(f"{path} has {count}" for count, path in examples.items())
        raise DataError(f"scenes differ in their number of bands: {counts}; select common bands in data.bands")


def count_scenes(
    samples: Sequence[Sample], recipe: Recipe, *, show_progress: bool, fail_fast: bool = False
) -> tuple[list[SceneCounts | None], list[str]]:
    """Count scenes, and collect the errors of those that cannot be read; `fail_fast` raises the first one."""
    scene_counts: list[SceneCounts | None] = []
    errors = []
    total = sum(sample.scene.grid.height * sample.scene.grid.width for sample in samples)
    with progress("checking", total / 1e6, "Mpx", show=show_progress) as advance:
        for sample in samples:
            try:
                scene_counts.append(
                    count_scene(
                        sample,
                        recipe.task,
                        recipe.data.val,
                        size=_WINDOW_PX,
                        advance=lambda count: advance(count / 1e6),
                    )
                )
            except SegkitError as error:
                if fail_fast:
                    raise
                scene_counts.append(None)
                errors.append(str(error))
    return scene_counts, errors


def scene_problems(samples: Sequence[Sample], scene_counts: Sequence[SceneCounts | None]) -> Iterator[str]:
    """Yield problems of single scenes."""
    for sample, found in zip(samples, scene_counts, strict=True):
        assert sample.labels is not None
        for ambiguity in sample.labels.ambiguities:
            yield (
                f"{ambiguity}; set labels.nodata: code if these pixels have that code, or labels.nodata: ignore if "
                "they are unlabelled"
            )
        if found is not None and not found.labelled:
            why = "none of its valid pixels is labelled" if found.valid else "has no valid pixel"
            yield f"{sample.scene.paths[0]}: {why}; correct the labels, or remove the scene"


def _unused_keys(data: Data, samples: Sequence[Sample]) -> Iterator[str]:
    """Yield that keys about products are given, if no scene is one."""
    if data.resolution is not None and not any(sample.scene.is_of_products for sample in samples):
        yield (
            f"data.resolution is {data.resolution:g}, but only products (SAFE, STAC) are read in another resolution, "
            "and no scene is one; remove it"
        )


def class_counts(counts: NDArray[np.int64], task: Task) -> tuple[ClassCount, ...]:
    """Return counts (targets, categories) by class name."""
    return tuple(
        ClassCount(name, int(counts[target, category]), int(counts[target].sum()))
        for name, target, category in task.scored_categories
    )


def _missing_classes(
    training: Iterable[ClassCount], in_scenes: Iterable[ClassCount], rule: object
) -> tuple[list[str], list[str]]:
    """Return problems and warnings about classes that have no training pixel after the split, and why.

    It is a warning if another fold trains the class, or if no scene shows it: that of another area may.

    Parameters
    ----------
    in_scenes
        Counts before the split.
    rule
        `data.val` of the recipe.
    """
    problems, warnings = [], []
    for one, before in zip(training, in_scenes, strict=True):
        if one.known and one.pixels == one.known:
            problems.append(f"all labelled training pixels are {one.name!r}; add labelled pixels without it")
        elif one.pixels or one.name == BACKGROUND:
            continue
        elif before.pixels:
            text = (
                f"class {one.name!r} has no training pixel: all of its {before.pixels:,} pixels are in validation "
                "areas or in the gap"
            )
            if isinstance(rule, SpatialSplit) and rule.fold is not None:
                warnings.append(f"{text} of fold {rule.fold}, so this model cannot map it; other folds train it")
            else:
                problems.append(f"{text}; {_split_advice(rule)}, or add scenes with it")
        else:
            warnings.append(
                f"class {one.name!r} does not occur in the training scenes, so it is never mapped; add scenes with it, "
                "or remove it unless it is for other areas"
            )
    return problems, warnings


def _split_advice(rule: object) -> str:
    """Return what to change in `data.val` so that a class is on both sides."""
    if not isinstance(rule, SpatialSplit):
        return "validate on other scenes (data.val)"
    if rule.values is not None:
        return "make data.val.gap smaller, choose other data.val.values"
    if rule.by == "appearance":  # nothing is drawn, so a seed would change nothing
        part = "data.val.fraction" if rule.fold is None else "data.val.fold, or another number of folds"
        return f"make data.val.gap smaller, try another {part}, split at random (data.val.by: scene)"
    sizes = "data.val.block or data.val.gap" if rule.by == "block" else "data.val.gap"
    return f"make {sizes} smaller, try another data.val.seed"


def _leakage_problems(nearest: Sequence[SceneProximity]) -> list[str]:
    """Return where validation is not independent: in the same files as training, or on the same ground."""
    same = dict.fromkeys(each.training for each in nearest if each.shared and each.training == each.validation)
    found = [
        f"{path} is listed for both training and validation, so none of its pixels would be used for training; list it "
        "once, or let data.val split the training scenes"
        for path in same
    ]
    pairs = [each for each in nearest if each.shared and not {each.training, each.validation} & {*same}]
    if pairs:
        one = pairs[0]
        more = f" ({_more_pairs(pairs)} overlapping)" if len(pairs) > 1 else ""
        found.append(
            f"training scene {one.training} and validation scene {one.validation} overlap in {one.shared} pixels{more};"
            " these would be excluded from training, and their neighbours make scores too good; remove one scene, or "
            "let data.val split the training scenes, which keeps a gap"
        )
    return found


def proximity_warnings(recipe: Recipe, nearest: Sequence[SceneProximity]) -> Iterator[str]:
    """Warn if training and validation pixels are less than a tile apart, unless the gap is the default."""
    tile_size, rule = recipe.train.tile_size, recipe.data.val
    pairs = [each for each in nearest if not each.shared and each.pixels < tile_size]
    if pairs and not (isinstance(rule, SpatialSplit) and rule.gap is None):
        one = pairs[0]
        distance = f"{one.pixels:,.0f} pixels apart" if one.pixels >= 1 else "adjacent"
        more = f" ({_more_pairs(pairs)} less than a tile apart)" if len(pairs) > 1 else ""
        advice = (
            "leave data.val.gap out, or make it larger"
            if isinstance(rule, SpatialSplit)
            else "use scenes that are further apart, or let data.val split the training scenes"
        )
        yield (
            f"training pixels in {one.training} and validation pixels in {one.validation} are {distance}, less than a "
            f"tile ({tile_size}){more}; scores may be slightly too good; {advice}"
        )


def _more_pairs(pairs: Sequence[SceneProximity]) -> str:
    return f"{len(pairs) - 1} more pair{'s' * (len(pairs) > 2)} of scenes {'are' if len(pairs) > 2 else 'is'}"
