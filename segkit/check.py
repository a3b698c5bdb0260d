"""Check: what a recipe would train on, and what is wrong with it, before hours are spent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from segkit.data.cover import Cover
from segkit.data.nearness import Nearness, nearest
from segkit.data.sources import Sample, pair
from segkit.data.split import count_categories, divide, whole
from segkit.errors import SegkitError
from segkit.grid import Grid, crs_name
from segkit.progress import progress
from segkit.raster import open_raster
from segkit.recipe import Recipe, Source, Split
from segkit.task import BACKGROUND, IGNORE, Task

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
            gap = self.recipe.train.tile_size if rule.gap is None else rule.gap
            yield f"val: {share} of train, in {what} with a gap of {gap} pixels"
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


def check(recipe: Recipe, *, show_progress: bool = False) -> Report:
    """Read all that a recipe would train and validate on, window by window.

    Problems of every scene are collected; nothing is raised for them.

    Parameters
    ----------
    recipe
        What to check.
    show_progress
        Whether progress goes to stderr.
    """
    data, task = recipe.data, recipe.task
    parts = {"train": data.train} | ({"val": data.val} if isinstance(data.val, Source) else {})
    problems: list[str] = []
    unmatched: list[Path] = []
    samples: list[tuple[str, Sample]] = []
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
                samples.append((part, sample))
        if not problems and not any(owner == part for owner, _ in samples):
            problems.append(f"{part}: no scene has labels")

    scenes = []
    total = sum(sample.scene.grid.height * sample.scene.grid.width for _, sample in samples)
    with progress("checking", total, "pixels", show=show_progress) as advance:
        for part, sample in samples:
            scene, found = _scan(part, sample, task, advance)
            scenes.append(scene)
            problems += found
    report = Report(recipe, tuple(scenes), tuple(unmatched), tuple(_notes(samples)), (), ())
    problems += _bands_differ(scenes)
    near: list[Nearness] = []
    if not problems:
        problems += _classes_missing(report.classes("train"), task)
        try:
            near = _nearest(recipe, samples)
        except SegkitError as error:
            problems.append(str(error))
    problems += _leaks(near)
    warnings = (*_warnings(recipe, report), *_close(recipe, near))
    return Report(recipe, report.scenes, report.unmatched, report.notes, warnings, tuple(problems), tuple(near))


def _scan(part: str, sample: Sample, task: Task, advance: Callable[[float], None]) -> tuple[SceneCheck, list[str]]:
    """Count a scene's valid and labelled pixels and classes, as far as it can be read; also say what is wrong."""
    scene, (area,) = sample.scene, whole([sample])
    counts = np.zeros((task.planes, len(task.categories)), dtype=np.int64)
    valid = labelled = 0
    found = []
    with scene.open() as reader:
        for window in scene.grid.tiles(_WINDOW):
            try:
                shown = reader.read(window).valid
                planes = area.truth(window, shown)
            except SegkitError as error:
                found.append(str(error))
                break
            valid += int(shown.sum())
            labelled += int((planes != IGNORE).any(axis=0).sum())
            counts += count_categories(planes, task).reshape(counts.shape)
            advance(window.height * window.width)
    result = SceneCheck(
        part, scene.name, scene.paths, scene.grid, scene.band_names, valid, labelled, class_counts(counts, task)
    )
    if not found and not labelled:
        why = "no label is known where it holds data" if valid else "it holds no data"
        found.append(f"{scene.paths[0]}: {why}; correct the labels, or leave it out")
    return result, found


def class_counts(counts: NDArray[np.int64], task: Task) -> tuple[ClassCount, ...]:
    """Name the counts (planes, categories)."""
    return tuple(
        ClassCount(name, int(counts[plane, category]), int(counts[plane].sum()))
        for name, plane, category in task.scored
    )


def _classes_missing(classes: Iterable[ClassCount], task: Task) -> list[str]:
    found = []
    for one in classes:
        if one.known and one.pixels == one.known:
            found.append(f"every known training pixel is {one.name!r}; there is nothing to tell it from")
        elif not one.pixels and one.name != BACKGROUND:
            found.append(f"class {one.name!r} never occurs in training; add scenes that show it, or remove it")
    return found


def _bands_differ(scenes: Sequence[SceneCheck]) -> list[str]:
    examples = {len(scene.bands): scene.paths[0] for scene in reversed(scenes)}
    if len(examples) < 2:
        return []
    counts = ", ".join(f"{count} in {path}" for count, path in sorted(examples.items()))
    return [f"scenes differ in their number of bands ({counts}); choose common ones under data.bands"]


def _nearest(recipe: Recipe, samples: Sequence[tuple[str, Sample]]) -> list[Nearness]:
    sides = [[sample for owner, sample in samples if owner == part] for part in ("train", "val")]
    training, validation = divide(recipe, *sides)
    if not isinstance(recipe.data.val, Split):
        training = [replace(area, hidden=Cover()) for area in training]
    return nearest(training, validation, recipe.train.tile_size)


def _leaks(near: Sequence[Nearness]) -> list[str]:
    """Say where validation is not independent: on ground that trains, or right beside it."""
    found = []
    for what, pairs in (
        ("share ground", [each for each in near if each.shared]),
        ("touch", [each for each in near if not each.shared and each.pixels < 1]),
    ):
        if pairs:
            one = pairs[0]
            shared = f" ({one.shared:,} pixels)" if one.shared else ""
            more = f"; {len(pairs) - 1} more pairs of scenes do" if len(pairs) > 1 else ""
            found.append(
                f"{one.training} trains and {one.validation} validates, and they {what}{shared}{more}: scores would be "
                "too good; take one out, or let data.val split the training scenes, which keeps a gap"
            )
    return found


def _close(recipe: Recipe, near: Sequence[Nearness]) -> Iterator[str]:
    size = recipe.train.tile_size
    pairs = [each for each in near if not each.shared and 1 <= each.pixels < size]
    if pairs:
        one = pairs[0]
        yield (
            f"{one.training} trains {one.pixels:,.0f} pixels from where {one.validation} validates, less than a tile "
            f"({size}): neighbours are alike, and scores a little too good; a larger data.val.gap, or none given, helps"
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


def _warnings(recipe: Recipe, report: Report) -> Iterator[str]:
    scenes, size = report.scenes, recipe.train.tile_size
    largest = max((max(scene.grid.shape) for scene in scenes), default=size)
    if largest < size:
        yield f"train.tile_size is {size}, the largest scene has {largest} pixels a side; tiles are padded with no data"
    homeless = [scene.name for scene in scenes if scene.grid.crs is None]
    if homeless:
        yield f"no CRS in {_some(homeless)}; a map of them cannot tell areas or lie in a GIS"
    for one in report.classes("train"):
        if one.name == BACKGROUND and one.known and not one.pixels:
            yield "background never occurs in training; without any, set task.background: false"
    if isinstance(recipe.data.val, Source):
        for one in report.classes("val"):
            if not one.pixels and one.known:
                yield f"{one.name!r} never occurs in validation; its score will be undefined"


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
