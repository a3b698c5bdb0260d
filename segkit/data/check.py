"""Check: what a recipe would train on, and what is wrong with it, before hours are spent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from segkit.data.leakage import Nearness, nearest
from segkit.data.pairing import Sample, pair
from segkit.data.split import Area, Survey, count_categories, divide, fitted, read_pieces, survey
from segkit.data.statistics import Statistics
from segkit.errors import DataError, SegkitError, ways
from segkit.io.cover import Cover
from segkit.io.grid import Grid, crs_name
from segkit.io.raster import PathLike, open_raster
from segkit.recipe.schema import Recipe, Source, Split
from segkit.runtime.progress import progress
from segkit.task.task import BACKGROUND, Task

_WINDOW = 1024  # pixels; memory does not grow with the scene
_LISTED = 40  # scenes and files in a text; the report itself holds all


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
class SceneCheck:
    """What was found in one scene.

    Parameters
    ----------
    part
        "train" or "val".
    valid, labelled
        Pixels that hold data; those of them whose label is known.
    classes
        Counted over valid pixels.
    """

    part: str
    name: str
    paths: tuple[Path, ...]
    grid: Grid
    bands: tuple[str, ...]
    valid: int
    labelled: int
    classes: tuple[ClassCount, ...]


@dataclass(frozen=True)
class Report:
    """What a recipe would train on; `problems` are errors, `warnings` may be meant.

    `nearest` holds the pairs of scenes in which what trains comes within a tile of what validates, those that share
    most first; else the nearest pair, where there is one. Where `data.val` names scenes or rows, it is measured as if
    training left nothing out.
    """

    recipe: Recipe
    scenes: tuple[SceneCheck, ...]
    unmatched: tuple[Path, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    problems: tuple[str, ...]
    nearest: tuple[Nearness, ...] = ()
    trains: tuple[ClassCount, ...] = ()
    validates: tuple[ClassCount, ...] = ()

    def classes(self, part: str) -> tuple[ClassCount, ...]:
        """Sum the classes over the scenes of "train" or "val"."""
        columns = zip(*(scene.classes for scene in self.scenes if scene.part == part), strict=True)
        return tuple(
            ClassCount(each[0].name, sum(one.pixels for one in each), sum(one.known for one in each))
            for each in columns
        )

    def render(self) -> str:
        """Return the report as plain text."""
        task = self.recipe.task
        head = f"{self.recipe.name}: {task.type} task, {task.head} head, {task.channels} channels"
        return "\n".join([head, *self._parts(), *self._scenes(), *self._findings()])

    def _parts(self) -> Iterator[str]:
        for part in dict.fromkeys(scene.part for scene in self.scenes):
            mine = [scene for scene in self.scenes if scene.part == part]
            pixels = sum(scene.grid.height * scene.grid.width for scene in mine)
            valid, labelled = sum(scene.valid for scene in mine), sum(scene.labelled for scene in mine)
            shares = f"{_percent(valid, pixels)} hold data, {_percent(labelled, pixels)} are labelled"
            yield ""
            yield f"{part}: {len(mine)} scenes, {pixels:,} pixels; {shares}"
            yield from _columns(
                [("  class", "pixels", "share")]
                + [(f"  {one.name}", f"{one.pixels:,}", _percent(one.pixels, one.known)) for one in self.classes(part)]
            )
        if isinstance(self.recipe.data.val, Split):
            rule = self.recipe.data.val
            share = f"{rule.fraction:.0%}" if rule.fold is None else f"fold {rule.fold}"
            what = f"{rule.by}s" if rule.by != "block" else f"blocks of {rule.block} pixels"
            share = share if rule.values is None else f"{rule.field} {' or '.join(rule.values)}"
            gap = "" if rule.gap is None else f" with a gap of {rule.gap} pixels"
            yield f"val: {share} of train, in {what}{gap}"
        if self.trains and any(one.known for one in self.validates):
            yield ""
            yield from _columns(
                [("after split and gap", "trains", "validates")]
                + [
                    (f"  {one.name}", f"{one.pixels:,}", f"{other.pixels:,}")
                    for one, other in zip(self.trains, self.validates, strict=True)
                ]
            )
        if self.nearest:
            one = self.nearest[0]
            ground = "" if one.metres is None else f" ({one.metres:,.0f} m)"
            yield f"nearest training and validation: {one.pixels:,.0f} pixels apart{ground}, {one.shared:,} shared"

    def _scenes(self) -> Iterator[str]:
        if not self.scenes:
            return
        yield ""
        rows = [("scene", "", "rows", "columns", "pixel", "CRS", "bands", "valid", "labelled")]
        for scene in self.scenes[:_LISTED]:
            grid, pixels = scene.grid, scene.grid.height * scene.grid.width
            size = " x ".join(f"{side:.4g}" for side in grid.pixel_size)
            shares = _percent(scene.valid, pixels), _percent(scene.labelled, pixels)
            shape = str(grid.height), str(grid.width)
            rows.append((scene.name, scene.part, *shape, size, crs_name(grid.crs), str(len(scene.bands)), *shares))
        yield from _columns(rows)
        yield from _more(self.scenes)

    def _findings(self) -> Iterator[str]:
        for title, found in (
            ("without a partner", [str(path) for path in self.unmatched]),
            ("notes", self.notes),
            ("warnings", self.warnings),
            ("problems", self.problems),
        ):
            if found:
                yield from ("", f"{title}:", *(f"  {line}" for line in found[:_LISTED]), *_more(found))
        yield ""
        yield f"problems: {len(self.problems)}, warnings: {len(self.warnings)}"


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


def check(recipe: Recipe | PathLike, *, show_progress: bool = False) -> Report:
    """Read all that a recipe would train and validate on, window by window.

    Problems of every scene are collected; nothing is raised for them.

    Parameters
    ----------
    recipe
        A recipe or its file.
    show_progress
        Whether progress goes to stderr.

    Raises
    ------
    UsageError
        The recipe's file is not there, or is no recipe.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    given, data, task = recipe, recipe.data, recipe.task
    parts = {"train": data.train} | ({"val": data.val} if isinstance(data.val, Source) else {})
    problems: list[str] = []
    unmatched: list[Path] = []
    samples: dict[str, list[Sample]] = {"train": [], "val": []}
    for part, source in parts.items():
        try:
            pairing = pair(source)
        except SegkitError as error:
            problems.append(str(error))
            continue
        unmatched += pairing.unmatched
        for each in pairing.pairs:
            try:
                sample = each.open(data, task)
            except SegkitError as error:
                problems.append(str(error))
                continue
            if sample.labels is None:
                unmatched.append(each.images[0])
            else:
                samples[part].append(sample)
        if not problems and not samples[part]:
            problems.append(f"data.{part}: no scene has labels; images and labels pair by file stem")
    try:
        recipe = fitted(recipe, samples["train"])
    except SegkitError as error:
        problems.append(str(error))
    everything = [(part, sample) for part, own in samples.items() for sample in own]
    surveys, broken = _surveyed([sample for _, sample in everything], recipe, show_progress=show_progress)
    problems += broken
    scenes = [_scene(part, sample, one, task) for (part, sample), one in zip(everything, surveys, strict=True)]
    found = Examination(recipe)
    network: list[str] = []
    if not problems:
        found = examine(
            recipe, samples["train"], samples["val"], surveys=surveys, measure=True, show_progress=show_progress
        )
        problems += found.problems
        problems += [] if found.fatal is None else [str(found.fatal)]
        network, wrong = _network(recipe, found.training)
        problems += wrong
    else:
        problems += _of_scenes([sample for _, sample in everything], surveys)
    report = Report(
        recipe, tuple(scenes), tuple(unmatched), tuple(_notes(everything)), (), tuple(problems), found.near,
        () if found.statistics is None else class_counts(found.statistics.counts, task),
        () if found.held is None else class_counts(found.held, task),
    )  # fmt: skip
    return replace(report, warnings=(*_warnings(report), *network, *_close(given, found.near)))


def _network(recipe: Recipe, training: Sequence[Area]) -> tuple[list[str], list[str]]:
    """Return warnings and problems of the network: tiles that are small against it, and one that cannot be built."""
    from segkit.data.datasets import suitable_tile_size
    from segkit.models.segmenter import Segmenter

    if not training:
        return [], []
    bands = training[0].sample.scene.band_names
    try:
        segmenter = Segmenter(recipe, [0.0] * len(bands), [1.0] * len(bands), bands, pretrained=False)
    except SegkitError as error:
        return [], [str(error)]
    _, warning = suitable_tile_size(segmenter, training)
    return [] if warning is None else [warning], []


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
            surveys, _ = _surveyed(samples, recipe, show_progress=show_progress, stop=True)
        problems += _of_scenes(samples, surveys)
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


def _surveyed(
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


def _scene(part: str, sample: Sample, found: Survey | None, task: Task) -> SceneCheck:
    """Describe a scene; nothing is counted where it could not be read."""
    counts = np.zeros((task.planes, len(task.categories)), dtype=np.int64)
    valid = labelled = 0
    if found is not None:
        counts, valid, labelled = found.counts.sum(axis=0).reshape(counts.shape), found.valid, found.labelled
    scene = sample.scene
    classes = class_counts(counts, task)
    return SceneCheck(part, scene.name, scene.paths, scene.grid, scene.band_names, valid, labelled, classes)


def _of_scenes(samples: Sequence[Sample], surveys: Sequence[Survey | None]) -> Iterator[str]:
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


def _close(recipe: Recipe, near: Sequence[Nearness]) -> Iterator[str]:
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


def _notes(samples: Iterable[tuple[str, Sample]]) -> Iterator[str]:
    for _, sample in samples:
        assert sample.labels is not None
        yield from sample.labels.notes
        first = 1
        for path in sample.scene.paths:
            with open_raster(path) as dataset:
                for band, interpretation in enumerate(dataset.colorinterp, first):
                    if interpretation == ColorInterp.alpha and band not in sample.scene.bands:
                        yield f"{path}: band {band} is alpha and serves as mask; list it in data.bands if it is imagery"
                first += dataset.count


def _warnings(report: Report) -> Iterator[str]:
    scenes, size = report.scenes, report.recipe.train.tile_size
    largest = max((max(scene.grid.shape) for scene in scenes), default=size)
    if largest < size:
        yield f"train.tile_size is {size}, the largest scene has {largest} pixels a side; tiles are padded with no data"
    homeless = [scene.name for scene in scenes if scene.grid.crs is None]
    if homeless:
        yield f"no CRS in {_some(homeless)}; a map of them cannot tell areas or lie in a GIS"
    for one in report.trains:
        if one.name == BACKGROUND and one.known and not one.pixels:
            yield "background never occurs in training; without any, set task.background: false"
    for one, trains in zip(report.validates, report.trains, strict=True):
        if one.known and trains.pixels and not one.pixels:
            yield f"{one.name!r} never occurs in validation; its IoU and F1 will be undefined, and no part of the means"


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more scenes" if len(names) > 3 else "")


def _more(items: Sequence[object]) -> list[str]:
    return [f"  ... and {len(items) - _LISTED} more"] if len(items) > _LISTED else []


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Align rows of text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        rest = (text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))
        yield "  ".join([row[0].ljust(widths[0]), *rest]).rstrip()
