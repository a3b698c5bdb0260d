"""Check: what a recipe would train on, and what is wrong with it, before hours are spent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from segkit.data.sources import Sample, pair
from segkit.data.split import count_categories, split
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
    """What a recipe would train on; `problems` are errors, `warnings` may be meant."""

    recipe: Recipe
    scenes: tuple[SceneCheck, ...]
    unmatched: tuple[Path, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    problems: tuple[str, ...]

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
            yield f"val: {rule.fraction:.0%} of train, in blocks of {rule.block} pixels with a gap of {rule.gap}"

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
    problems += _bands_differ(scenes) + _leaks(samples)
    if not problems:
        problems += _classes_missing(report.classes("train"), task)
    if not problems and isinstance(data.val, Split):
        try:
            split([sample for _, sample in samples], task, data.val)
        except SegkitError as error:
            problems.append(str(error))
    warnings = tuple(_warnings(recipe, report))
    return Report(recipe, report.scenes, report.unmatched, report.notes, warnings, tuple(problems))


def _scan(part: str, sample: Sample, task: Task, advance: Callable[[float], None]) -> tuple[SceneCheck, list[str]]:
    """Count a scene's valid and labelled pixels and classes, as far as it can be read; also say what is wrong."""
    scene, labels = sample.scene, sample.labels
    assert labels is not None
    counts = np.zeros((task.planes, len(task.categories)), dtype=np.int64)
    valid = labelled = 0
    found = []
    with scene.open() as reader:
        for window in scene.grid.tiles(_WINDOW):
            try:
                shown = reader.read(window).valid
                planes = np.where(shown, labels.read(window), np.int16(IGNORE))
            except SegkitError as error:
                found.append(str(error))
                break
            valid += int(shown.sum())
            labelled += int((planes != IGNORE).any(axis=0).sum())
            counts += count_categories(planes, task).reshape(counts.shape)
            advance(window.height * window.width)
    result = SceneCheck(
        part, scene.name, scene.paths, scene.grid, scene.band_names, valid, labelled, _class_counts(counts, task)
    )
    if not found and not labelled:
        why = "no label is known where it holds data" if valid else "it holds no data"
        found.append(f"{scene.paths[0]}: {why}; correct the labels, or leave it out")
    return result, found


def _class_counts(counts: NDArray[np.int64], task: Task) -> tuple[ClassCount, ...]:
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


def _leaks(samples: Iterable[tuple[str, Sample]]) -> list[str]:
    users: dict[Path, set[str]] = {}
    for part, sample in samples:
        for path in sample.scene.paths:
            users.setdefault(path.resolve(), set()).add(part)
    return [f"{path} both trains and validates; take it out of one" for path, parts in users.items() if len(parts) > 1]


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
    yield from _shared_ground(recipe, scenes)


def _shared_ground(recipe: Recipe, scenes: Sequence[SceneCheck]) -> Iterator[str]:
    """Warn of scenes on the same ground, of which one may train while the other validates."""
    by_place = isinstance(recipe.data.val, Split)
    for crs in dict.fromkeys(scene.grid.crs for scene in scenes if scene.grid.crs is not None):
        mine = [scene for scene in scenes if scene.grid.crs == crs]
        # Neighbours share an edge; half a pixel less and they share nothing.
        boxes = [shapely.box(*scene.grid.bounds).buffer(-min(scene.grid.pixel_size) / 2) for scene in mine]
        pairs = [
            (mine[a], mine[b])
            for a, b in shapely.STRtree(boxes).query(boxes, predicate="intersects").T
            if a < b and (by_place or mine[a].part != mine[b].part)
        ]
        if pairs:
            one, other = pairs[0]
            yield (
                f"{len(pairs)} pairs of scenes share ground ({one.paths[0]} and {other.paths[0]}); what trains in one "
                "may validate in the other: give data.val scenes elsewhere"
            )


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
