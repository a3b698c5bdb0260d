"""Check: what a recipe would train on, and what is wrong with it, before hours are spent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rasterio.enums import ColorInterp

from segkit.data.area import Area
from segkit.data.examination import (
    ClassCount,
    Examination,
    class_counts,
    examine,
    proximity_warnings,
    scene_problems,
    survey_sample,
)
from segkit.data.leakage import Nearness
from segkit.data.pairing import Sample, pair
from segkit.data.split import Survey, fitted
from segkit.errors import SegkitError
from segkit.io.grid import Grid, crs_name
from segkit.io.raster import PathLike, open_raster
from segkit.recipe.schema import Recipe, Source, Split
from segkit.task.task import BACKGROUND, Task

_LISTED = 40  # scenes and files in a text; the report itself holds all


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
    surveys, broken = survey_sample([sample for _, sample in everything], recipe, show_progress=show_progress)
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
        problems += scene_problems([sample for _, sample in everything], surveys)
    report = Report(
        recipe, tuple(scenes), tuple(unmatched), tuple(_notes(everything)), (), tuple(problems), found.near,
        () if found.statistics is None else class_counts(found.statistics.counts, task),
        () if found.held is None else class_counts(found.held, task),
    )  # fmt: skip
    return replace(report, warnings=(*_warnings(report), *network, *proximity_warnings(given, found.near)))


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


def _scene(part: str, sample: Sample, found: Survey | None, task: Task) -> SceneCheck:
    """Describe a scene; nothing is counted where it could not be read."""
    counts = np.zeros((task.planes, len(task.categories)), dtype=np.int64)
    valid = labelled = 0
    if found is not None:
        counts, valid, labelled = found.counts.sum(axis=0).reshape(counts.shape), found.valid, found.labelled
    scene = sample.scene
    classes = class_counts(counts, task)
    return SceneCheck(part, scene.name, scene.paths, scene.grid, scene.band_names, valid, labelled, classes)


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
