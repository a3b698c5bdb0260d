"""What a recipe trains and validates on: counted once, with what is wrong with it. For check, train and compare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segkit.data.area import Area, count_categories, read_pieces
from segkit.data.leakage import Nearness, nearest
from segkit.data.pairing import Sample
from segkit.data.split import Survey, divide, fitted, survey
from segkit.data.statistics import Statistics
from segkit.errors import DataError, SegkitError, ways
from segkit.io.cover import Cover
from segkit.recipe.schema import Recipe, Split
from segkit.runtime.progress import progress
from segkit.task.task import BACKGROUND, Task

_WINDOW = 1024  # pixels; memory does not grow with the scene


@dataclass(frozen=True)
class ClassCount:
    """Pixels of a class, or of background, among those where it is known."""

    name: str
    pixels: int
    known: int

    @property
    def share(self) -> float | None:
        """`pixels` / `known`; None where nothing is known."""
        return self.pixels / self.known if self.known else None


@dataclass(frozen=True)
class Examination:
    """What a recipe trains and validates on, and what is wrong with it; made by `examine`.

    Parameters
    ----------
    recipe
        With the block and the gap that its split has.
    training, validation
        Empty where `fatal` says why.
    statistics
        Of the training areas; None where `fatal` says why.
    held
        int64 (P, K): known pixels of each category of each plane that validate.
    near
        As `Report.nearest`; of a split, which never leaks, only where it was asked for.
    problems
        What is most probably not meant, though it could be trained.
    fatal
        Why nothing can be trained.
    """

    recipe: Recipe
    training: tuple[Area, ...] = ()
    validation: tuple[Area, ...] = ()
    statistics: Statistics | None = None
    held: NDArray[np.int64] | None = None
    near: tuple[Nearness, ...] = ()
    problems: tuple[str, ...] = ()
    fatal: SegkitError | None = None

    def refuse(self, *, force: bool) -> Statistics:
        """Return the statistics of the training areas, unless something is wrong.

        Parameters
        ----------
        force
            Whether problems are put up with; what cannot be trained stays an error.

        Raises
        ------
        SegkitError
            What `check` tells, in the same words.
        """
        if self.fatal is not None and (force or not self.problems):
            raise self.fatal
        if self.problems and not force:
            more = len(self.problems) - 1 + (self.fatal is not None)
            others = f" (and {more} more, which segkit check lists)" if more else ""
            advice = ways("train all the same (--force)") if self.fatal is None else ""
            raise DataError(f"{self.problems[0]}{others}{advice}")
        assert self.statistics is not None
        return self.statistics


def examine(
    recipe: Recipe,
    training: Sequence[Sample],
    validation: Sequence[Sample] = (),
    *,
    surveys: Sequence[Survey | None] | None = None,
    measure: bool = False,
    show_progress: bool = False,
) -> Examination:
    """Divide what a recipe names, count what is left on both sides, and say what is wrong with it.

    Training and `check` ask the same here, so that they say the same.

    Parameters
    ----------
    training, validation
        The samples of `data.train`, and of `data.val` where that has its own.
    surveys
        Of all of them, if there are any already.
    measure
        Whether it is measured how near the sides come also of a split, which never shares ground.
    show_progress
        Whether progress goes to stderr.
    """
    samples, task = [*training, *validation], recipe.task
    problems: list[str] = []
    try:
        recipe = fitted(recipe, training)
        if surveys is None:
            surveys, _ = survey_sample(samples, recipe, show_progress=show_progress, stop=True)
        problems += scene_problems(samples, surveys)
        check_bands(samples)
        counted = [one for one in surveys if one is not None]
        trains, validates = divide(recipe, training, validation, counted[: len(training)])
    except SegkitError as error:
        return Examination(recipe, problems=tuple(problems), fatal=error)
    near: list[Nearness] = []
    if measure or not isinstance(recipe.data.val, Split):
        shown = trains
        if not isinstance(recipe.data.val, Split):
            shown = [replace(area, hidden=Cover()) for area in trains]
        near = nearest(shown, validates, recipe.train.tile_size)
        problems += _leaks(near)
    try:
        statistics = Statistics.of(trains, task, show_progress=show_progress)
    except SegkitError as error:
        # Nothing is far from what does not train.
        near = near if not isinstance(recipe.data.val, Split) else []
        return Examination(recipe, near=tuple(near), problems=tuple(problems), fatal=error)
    held = np.zeros(statistics.counts.shape, dtype=np.int64)
    for _, planes, _ in read_pieces(validates):
        held += count_categories(planes, task).reshape(held.shape)
    fatal = None
    if validates and not held.any():
        fatal = DataError(
            "nothing validates: no pixel of the validation scenes holds data and has a known label; correct the "
            "labels or data.val"
        )
    there = np.sum([one.counts.sum(axis=0) for one in counted[: len(training)]], axis=0).reshape(held.shape)
    problems += _classes_missing(class_counts(statistics.counts, task), class_counts(there, task))
    return Examination(recipe, tuple(trains), tuple(validates), statistics, held, tuple(near), tuple(problems), fatal)


def check_bands(samples: Sequence[Sample]) -> None:
    """Raise a DataError where scenes differ in their number of bands."""
    examples: dict[int, Path] = {}
    for sample in samples:
        examples.setdefault(len(sample.scene.bands), sample.scene.paths[0])
    if len(examples) > 1:
        counts = ", ".join(f"{path} has {count}" for count, path in examples.items())
        raise DataError(f"scenes differ in their number of bands: {counts}; choose common ones in data.bands")


def survey_sample(
    samples: Sequence[Sample], recipe: Recipe, *, show_progress: bool, stop: bool = False
) -> tuple[list[Survey | None], list[str]]:
    """Survey scenes, and say which cannot be read; or raise that of the first one."""
    surveys: list[Survey | None] = []
    found = []
    total = sum(sample.scene.grid.height * sample.scene.grid.width for sample in samples)
    with progress("checking", total / 1e6, "Mpx", show=show_progress) as advance:
        for sample in samples:
            try:
                surveys.append(
                    survey(
                        sample, recipe.task, recipe.data.val, size=_WINDOW, advance=lambda count: advance(count / 1e6)
                    )
                )
            except SegkitError as error:
                if stop:
                    raise
                surveys.append(None)
                found.append(str(error))
    return surveys, found


def scene_problems(samples: Sequence[Sample], surveys: Sequence[Survey | None]) -> Iterator[str]:
    """Say of each scene what is wrong with it alone."""
    for sample, found in zip(samples, surveys, strict=True):
        assert sample.labels is not None
        for doubt in sample.labels.doubts:
            yield f"{doubt}; set labels.nodata: code if such pixels are that, or labels.nodata: ignore if nobody knows"
        if found is not None and not found.labelled:
            why = "no label is known where it holds data" if found.valid else "it holds no data"
            yield f"{sample.scene.paths[0]}: {why}; correct the labels, or leave it out"


def class_counts(counts: NDArray[np.int64], task: Task) -> tuple[ClassCount, ...]:
    """Name the counts (planes, categories)."""
    return tuple(
        ClassCount(name, int(counts[plane, category]), int(counts[plane].sum()))
        for name, plane, category in task.scored
    )


def _classes_missing(trains: Iterable[ClassCount], there: Iterable[ClassCount]) -> Iterator[str]:
    """Say which classes do not train, after split and gap, and why: `there` is what all training scenes hold."""
    for one, whole in zip(trains, there, strict=True):
        if one.known and one.pixels == one.known:
            yield f"every known training pixel is {one.name!r}; there is nothing to tell it from"
        elif one.pixels or one.name == BACKGROUND:
            continue
        elif whole.pixels:
            yield (
                f"class {one.name!r} does not train: all of its {whole.pixels:,} pixels validate or lie in the gap; "
                "make data.val.block or data.val.gap smaller, try another data.val.seed, or add scenes that show it"
            )
        else:
            yield f"class {one.name!r} never occurs in training; add scenes that show it, or remove it"


def _leaks(near: Sequence[Nearness]) -> list[str]:
    """Say where validation is not independent: in a file that trains, or on ground that does."""
    same = dict.fromkeys(each.training for each in near if each.shared and each.training == each.validation)
    found = [
        f"{path} is named to train and to validate, so none of its pixels would train; name it once, or let data.val "
        "split the training scenes"
        for path in same
    ]
    pairs = [each for each in near if each.shared and not {each.training, each.validation} & {*same}]
    if pairs:
        one = pairs[0]
        more = f"; {len(pairs) - 1} more pairs of scenes do" if len(pairs) > 1 else ""
        found.append(
            f"{one.training} trains and {one.validation} validates, and they share ground ({one.shared} pixels){more}: "
            "it would not train, and what trains beside it would make scores too good; take one out, or let data.val "
            "split the training scenes, which keeps a gap"
        )
    return found


def proximity_warnings(recipe: Recipe, near: Sequence[Nearness]) -> Iterator[str]:
    """Say where what trains comes so near to what validates that scores are rather too good; not of a chosen gap."""
    size, rule = recipe.train.tile_size, recipe.data.val
    pairs = [each for each in near if not each.shared and each.pixels < size]
    if pairs and not (isinstance(rule, Split) and rule.gap is None):
        one = pairs[0]
        apart = f"{one.pixels:,.0f} pixels from where" if one.pixels >= 1 else "right beside what"
        more = f" ({len(pairs) - 1} more pairs of scenes are as near)" if len(pairs) > 1 else ""
        advice = "make data.val.gap larger" if isinstance(rule, Split) else "keep scenes apart, or let data.val split"
        yield (
            f"{one.training} trains {apart} {one.validation} validates, less than a tile ({size}){more}: neighbours "
            f"are alike, and scores a little too good; {advice}"
        )
