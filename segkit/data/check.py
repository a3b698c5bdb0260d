"""Check the data of a recipe before training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.amount import describe_few_steps
from segkit.data.applicability import compare_scenes, describe_unlike_samples
from segkit.data.area import LabelledArea
from segkit.data.band_values import BandRanges, describe_rim_values, find_rim_value
from segkit.data.band_warnings import (
    describe_alpha_bands,
    describe_index_units,
    describe_partial_layers,
    looks_like_imagery,
)
from segkit.data.examination import (
    ClassCount,
    Examination,
    class_counts,
    count_scenes,
    examine,
    proximity_warnings,
    scene_problems,
)
from segkit.data.leakage import SceneProximity
from segkit.data.overlaps import add_up, describe_contradictions, render_table
from segkit.data.pairing import PairedFiles, Sample, describe_unlabelled, pair_files
from segkit.data.split import SceneCounts, resolve_split
from segkit.errors import SegkitError
from segkit.io.grid import Grid, crs_name
from segkit.io.paths import PathLike
from segkit.io.scene import Scene
from segkit.plots.text import format_percent
from segkit.recipe.schema import Data, Recipe
from segkit.recipe.sources import DatasetSource
from segkit.recipe.splits import SpatialSplit
from segkit.runtime.tables import format_table
from segkit.task import BACKGROUND, CoOccurrence, Task

_FILE = "\0"  # in the place of a file's name, to find equal notes
_MAX_LISTED = 40  # lines per list in the text; the report itself holds all


@dataclass(frozen=True)
class SceneCheck:
    """Facts about one scene.

    Parameters
    ----------
    part
        "train" or "val".
    valid, labelled
        Pixels with data; those of them with a label.
    classes
        Counts of valid labelled pixels.
    ranges
        Minimum, mean and maximum of each band; None if the scene could not be read.
    appearance_distance
        Of a scene that only validates: how far it is from the training scenes, see `TrainingScenes`.
    together
        How often overlapping classes share a pixel; None if it could not be read.
    """

    part: str
    name: str
    paths: tuple[Path, ...]
    grid: Grid
    bands: tuple[str, ...]
    valid: int
    labelled: int
    classes: tuple[ClassCount, ...]
    ranges: BandRanges | None = field(default=None, compare=False)  # means depend on the order of summation
    appearance_distance: float | None = None
    together: CoOccurrence | None = field(default=None, compare=False)

    @property
    def pixels(self) -> int:
        """Number of pixels of the scene."""
        return self.grid.height * self.grid.width

    def summary(self) -> dict[str, Any]:
        """Return the facts as a JSON value."""
        return {
            "name": self.name,
            "part": self.part,
            "paths": [str(path) for path in self.paths],
            "rows": self.grid.height,
            "columns": self.grid.width,
            "crs": crs_name(self.grid.crs),
            "bands": list(self.bands),
            "valid": self.valid,
            "labelled": self.labelled,
            "classes": [asdict(one) for one in self.classes],
            "appearance_distance": self.appearance_distance,
        }


@dataclass(frozen=True)
class Report:
    """The data of a recipe: scenes, class counts, and problems.

    Parameters
    ----------
    recipe
        With the default block and gap of its split filled in.
    scenes
        Facts about each scene that could be opened.
    unmatched
        Images without a label and labels without an image.
    notes, warnings, problems
        Messages. `problems` stop `segkit train`, `warnings` may be intended.
    nearest
        Pairs of a training and a validation scene less than a tile apart, those with the most shared pixels first;
        otherwise the nearest pair, if any. If `data.val` names scenes or rows, before training excludes their ground.
    trains, validates
        Class counts after the split.
    """

    recipe: Recipe
    scenes: tuple[SceneCheck, ...]
    unmatched: tuple[Path, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    problems: tuple[str, ...]
    nearest: tuple[SceneProximity, ...] = ()
    trains: tuple[ClassCount, ...] = ()
    validates: tuple[ClassCount, ...] = ()

    def classes(self, part: str) -> tuple[ClassCount, ...]:
        """Return the class counts of all scenes of "train" or "val"."""
        columns = zip(*(scene.classes for scene in self.scenes if scene.part == part), strict=True)
        return tuple(
            ClassCount(each[0].name, sum(one.pixels for one in each), sum(one.known for one in each))
            for each in columns
        )

    def together(self, part: str) -> CoOccurrence:
        """Return how often overlapping classes share a pixel in all scenes of "train" or "val"."""
        return add_up(self.recipe.task, (scene.together for scene in self.scenes if scene.part == part))

    def summary(self) -> dict[str, Any]:
        """Return the report as a JSON value: the scenes, the classes of each side, and the messages."""
        return {
            "name": self.recipe.name,
            "task": self.recipe.task.type,
            "scenes": [scene.summary() for scene in self.scenes],
            "training": [asdict(one) for one in self.trains],
            "validation": [asdict(one) for one in self.validates],
            "co_occurrence": {part: self.together(part).table() for part in self._overlapping_parts()},
            "unmatched": [str(path) for path in self.unmatched],
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "problems": list(self.problems),
        }

    def render(self) -> str:
        """Return the report as plain text."""
        task = self.recipe.task
        head = f"{self.recipe.name}: {task.type} task, {task.head} head, {task.channels} channels"
        return "\n".join(
            [head, *self._parts(), *self._co_occurrence(), *self._bands(), *self._scenes(), *self._findings()]
        )

    def _overlapping_parts(self) -> list[str]:
        """Return the parts whose labels have several classes that may overlap."""
        return list(dict.fromkeys(scene.part for scene in self.scenes)) if self.recipe.task.n_targets > 1 else []

    def _co_occurrence(self) -> Iterator[str]:
        for part in self._overlapping_parts():
            yield from ("", *render_table(part, self.together(part)))

    def _parts(self) -> Iterator[str]:
        for part in dict.fromkeys(scene.part for scene in self.scenes):
            scenes = [scene for scene in self.scenes if scene.part == part]
            read = [scene for scene in scenes if scene.ranges is not None]
            pixels = sum(scene.pixels for scene in read)
            valid, labelled = sum(scene.valid for scene in read), sum(scene.labelled for scene in read)
            shares = f"{_percent(valid, pixels)} valid, {_percent(labelled, pixels)} labelled"
            yield ""
            if unread := len(scenes) - len(read):
                yield f"{part}: {_count(unread, 'scene')} or the labels could not be read, see the problems below"
            if not read:
                continue
            yield f"{part}: {_count(len(read), 'scene')}, {pixels:,} pixels, {shares}"
            yield format_table(
                ("  class", "pixels", "share"),
                [(f"  {one.name}", f"{one.pixels:,}", _percent(one.pixels, one.known)) for one in self.classes(part)],
            )
        if isinstance(self.recipe.data.val, SpatialSplit):
            rule = self.recipe.data.val
            share = f"{100 * rule.fraction:.0f} %" if rule.fold is None else f"fold {rule.fold}"
            units = {"block": f"blocks of {rule.block} pixels", "appearance": "scenes ordered by appearance"}
            units["point"] = f"groups of points within {rule.distance or 0:g} m of each other"
            what = units.get(rule.by, f"{rule.by}s")
            share = share if rule.values is None else f"{rule.field} {' or '.join(rule.values)}"
            gap = "" if rule.gap is None else f" with a gap of {_count(rule.gap, 'pixel')}"
            yield f"val: {share} of train, in {what}{gap}"
        if self.trains and any(one.known for one in self.validates):
            yield ""
            yield format_table(
                ("after the split", "training", "share", "validation", "share"),
                [
                    (
                        f"  {one.name}",
                        *(
                            text
                            for side in (one, other)
                            for text in (f"{side.pixels:,}", _percent(side.pixels, side.known))
                        ),
                    )
                    for one, other in zip(self.trains, self.validates, strict=True)
                ],
            )
        if self.nearest:
            one = self.nearest[0]
            ground = "" if one.metres is None else f" ({one.metres:,.0f} m)"
            apart = _count(round(one.pixels), "pixel")
            yield f"distance of training and validation: {apart}{ground}, {one.shared:,} shared pixels"
        distances = [scene.appearance_distance for scene in self.scenes if scene.appearance_distance is not None]
        if distances:
            compared = f"{len(distances)} validation scene{'s' * (len(distances) != 1)}"
            yield (
                f"difference in appearance of {compared} from training: median {np.median(distances):.1f}, largest "
                f"{max(distances):.1f} (1 is usual among training scenes)"
            )

    def _bands(self) -> Iterator[str]:
        """Yield the range of each band over all scenes, if these have the same bands."""
        found = [scene for scene in self.scenes if scene.ranges is not None and scene.ranges.number.any()]
        if not found or len({len(scene.bands) for scene in found}) > 1:
            return
        total = BandRanges(len(found[0].bands))
        for scene in found:
            assert scene.ranges is not None
            total.merge(scene.ranges)
        names = [
            name if len({scene.bands[at] for scene in found}) == 1 else f"band {at + 1}"
            for at, name in enumerate(found[0].bands)
        ]
        rows = []
        for at, name in enumerate(names[:_MAX_LISTED]):
            known = total.number[at] > 0
            values = (total.min[at], total.mean[at], total.max[at])
            rows.append((name, *(f"{value:.6g}" if known else "-" for value in values)))
        yield ""
        yield format_table(("band", "minimum", "mean", "maximum"), rows)
        yield from _more(names)

    def _scenes(self) -> Iterator[str]:
        if not self.scenes:
            return
        yield ""
        header = ["scene", "", "rows", "columns", "pixel", "CRS", "bands", "valid", "labelled"]
        has_distance = any(scene.appearance_distance is not None for scene in self.scenes)
        header += ["appearance"] * has_distance
        rows = []
        for scene in self.scenes[:_MAX_LISTED]:
            grid = scene.grid
            size = _pixel_size(grid)
            read = scene.pixels if scene.ranges is not None else 0
            shares = _percent(scene.valid, read), _percent(scene.labelled, read)
            shape = str(grid.height), str(grid.width)
            row = [scene.name, scene.part, *shape, size, crs_name(grid.crs), str(len(scene.bands)), *shares]
            distance = "" if scene.appearance_distance is None else f"{scene.appearance_distance:.1f}"
            rows.append(row + [distance] * has_distance)
        yield format_table(header, rows)
        yield from _more(self.scenes)

    def _findings(self) -> Iterator[str]:
        for title, found in (
            ("no matching image or label", [str(path) for path in self.unmatched]),
            ("notes", self.notes),
            ("warnings", self.warnings),
            ("problems", self.problems),
        ):
            if found:
                yield from ("", f"{title}:", *(f"  {line}" for line in found[:_MAX_LISTED]), *_more(found))
        yield ""
        yield f"problems: {len(self.problems)}, warnings: {len(self.warnings)}"


def check(recipe: Recipe | PathLike, *, show_progress: bool = False) -> Report:
    """Check all data that a recipe would train and validate on; it is read window by window.

    Problems of all scenes are collected in the report, not raised.

    Parameters
    ----------
    recipe
        A recipe or its file.
    show_progress
        Whether to show progress on stderr.

    Raises
    ------
    UsageError
        The recipe's file does not exist, or is not a valid recipe.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    original, data, task = recipe, recipe.data, recipe.task
    samples, unmatched, problems = _open_samples(data, task)
    try:
        recipe = resolve_split(recipe, samples["train"])
    except SegkitError as error:
        problems.append(str(error))
    all_samples = [(part, sample) for part, of_part in samples.items() for sample in of_part]
    scene_counts, unreadable = count_scenes([sample for _, sample in all_samples], recipe, show_progress=show_progress)
    problems += unreadable
    scenes = [
        _check_scene(part, sample, one, task) for (part, sample), one in zip(all_samples, scene_counts, strict=True)
    ]
    found = Examination(recipe)
    contradictions = [
        text
        for scene, (_, sample) in zip(scenes, all_samples, strict=True)
        for text in describe_contradictions("" if sample.labels is None else sample.labels.name, scene.together)
    ]
    imagery_warnings = list(_imagery_warnings([sample.scene for _, sample in all_samples], scene_counts))
    notes = list(_notes(all_samples))
    if not problems:
        found = examine(
            recipe,
            samples["train"],
            samples["val"],
            scene_counts=scene_counts,
            measure=True,
            show_progress=show_progress,
        )
        problems += found.problems
        problems += [] if found.error is None else [str(found.error)]
        distances = {id(area.sample): one for area, one in zip(found.validation, found.distances, strict=True)}
        scenes = [
            replace(scene, appearance_distance=distances.get(id(sample)))
            for scene, (_, sample) in zip(scenes, all_samples, strict=True)
        ]
        notes += _unlike_scenes(found)
    else:
        problems += scene_problems([sample for _, sample in all_samples], scene_counts)
    network_warnings, network_problems = _check_network(recipe, samples["train"], found.training, _labelled(found))
    problems += network_problems
    report = Report(
        recipe, tuple(scenes), tuple(unmatched), tuple(notes), (), tuple(problems), found.nearest,
        () if found.statistics is None else class_counts(found.statistics.counts, task),
        () if found.validation_counts is None else class_counts(found.validation_counts, task),
    )  # fmt: skip
    return replace(
        report,
        warnings=(
            *imagery_warnings,
            *contradictions,
            *found.warnings,
            *_warnings(report),
            *network_warnings,
            *proximity_warnings(_without_default_gap(original, samples["train"]), found.nearest),
        ),
    )


def _without_default_gap(recipe: Recipe, samples: Sequence[Sample]) -> Recipe:
    """Return the recipe without the gap of its split if it is as wide as the default, or wider."""
    rule = recipe.data.val
    if not samples or not isinstance(rule, SpatialSplit) or rule.gap is None:
        return recipe
    without = rule.model_copy(update={"gap": None})
    opened = recipe.model_copy(update={"data": recipe.data.model_copy(update={"val": without})})
    resolved = resolve_split(opened, samples).data.val
    assert isinstance(resolved, SpatialSplit)
    assert resolved.gap is not None
    return opened if rule.gap >= resolved.gap else recipe


def _open_samples(data: Data, task: Task) -> tuple[dict[str, list[Sample]], list[Path], list[str]]:
    """Open the labelled samples of "train" and "val"; return them, unmatched files, and problems."""
    problems: list[str] = []
    unmatched: list[Path] = []
    samples: dict[str, list[Sample]] = {"train": [], "val": []}
    sources = {"train": data.train} | ({"val": data.val} if isinstance(data.val, DatasetSource) else {})
    for part, source in sources.items():
        try:
            pairing = pair_files(source)
        except SegkitError as error:
            problems.append(str(error))
            continue
        unmatched += pairing.unmatched
        before = len(problems)
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
        if len(problems) == before and not samples[part]:
            problems.append(f"data.{part}: {_describe_unlabelled(pairing)}")
    return samples, unmatched, problems


def _describe_unlabelled(pairing: PairedFiles) -> str:
    """Return why no scene has labels."""
    labelled = [pair for pair in pairing.pairs if pair.labels]
    if not labelled:
        return "no scene has labels; images and labels are paired by file name"
    try:
        return describe_unlabelled(labelled[0])
    except SegkitError as error:
        return str(error)


def _labelled(found: Examination) -> int:
    """Return the labelled training pixels; of overlapping classes those of the class with most."""
    return 0 if found.statistics is None else int(found.statistics.counts.sum(axis=-1).max())


def _check_network(
    recipe: Recipe, samples: Sequence[Sample], training: Sequence[LabelledArea], pixels: int
) -> tuple[list[str], list[str]]:
    """Return warnings and problems of the model: tiles too small for it, few steps, or keys that cannot be used.

    Parameters
    ----------
    samples, training
        Training samples, and their areas if they could be examined.
    pixels
        Labelled training pixels.
    """
    from segkit.data.datasets import suitable_tile_size
    from segkit.models.model_check import build_model, check_model_keys

    try:
        check_model_keys(recipe)
        if not samples:
            return [], []
        segmenter = build_model(recipe, samples[0].scene.band_names)
    except SegkitError as error:
        return [], [str(error)]
    if not training or recipe.model.is_classical:
        return [], []
    tile_size, warning = suitable_tile_size(segmenter, training)
    few_steps = describe_few_steps(recipe.train, tile_size, pixels)
    return [text for text in (warning, few_steps) if text is not None], []


def _imagery_warnings(scenes: Sequence[Scene], scene_counts: Sequence[SceneCounts | None]) -> Iterator[str]:
    """Yield warnings about the imagery of the scenes that could be read."""
    readable = [scene for scene, found in zip(scenes, scene_counts, strict=True) if found is not None]
    at_rims = [one for scene in readable if (one := find_rim_value(scene)) is not None]
    yield from describe_rim_values(at_rims, readable[0].rules.nodata if readable else ())
    yield from describe_alpha_bands(readable)
    yield from describe_partial_layers(readable)
    if (units := describe_index_units(readable)) is not None:
        yield units


def _unlike_scenes(found: Examination) -> list[str]:
    """Return a note about the scenes that differ from the training scenes in units, resolution or appearance."""
    trains, validates = (
        {area.sample.scene.paths: area.sample.scene for area in areas} for areas in (found.training, found.validation)
    )
    others = [scene for paths, scene in validates.items() if paths not in trains]
    note = describe_unlike_samples(compare_scenes([*trains.values()], others))
    return [] if note is None else [note]


def _check_scene(part: str, sample: Sample, found: SceneCounts | None, task: Task) -> SceneCheck:
    """Return the facts about a scene; counts are 0 if it could not be read."""
    counts = np.zeros((task.n_targets, len(task.categories)), dtype=np.int64)
    valid = labelled = 0
    if found is not None:
        counts, valid, labelled = found.counts.sum(axis=0).reshape(counts.shape), found.valid, found.labelled
    scene = sample.scene
    classes = class_counts(counts, task)
    ranges, together = (None, None) if found is None else (found.ranges, found.together)
    return SceneCheck(
        part, scene.name, scene.paths, scene.grid, scene.band_names, valid, labelled, classes, ranges, together=together
    )


def _notes(samples: Iterable[tuple[str, Sample]]) -> Iterator[str]:
    """Yield notes on scenes and labels; one that is the same for several files is yielded once, with their number."""
    files: dict[str, list[str]] = {}
    for _, sample in samples:
        assert sample.labels is not None
        for note in sample.labels.notes:
            files.setdefault(note.replace(sample.labels.name, _FILE), []).append(sample.labels.name)
        masks = [band for band in sample.scene.alpha_masks if not looks_like_imagery(band, vrt=sample.scene.vrt)]
        for band in masks:  # there is a warning about the others
            note = f"{_FILE}: band {band.place} is alpha and used as mask; list it in data.bands if it is imagery"
            files.setdefault(note, []).append(str(band.path))
    for index in dict.fromkeys(band.declared for _, sample in samples for band in sample.scene.derived):
        if index.constants:
            constants = ", ".join(f"{name} = {value:g}" for name, value in index.constants)
            yield f"{index.name} is {index.formula}, with {constants} (constants in data.indices)"
    for note, names in files.items():
        number = len(dict.fromkeys(names))
        yield ("" if number == 1 else f"{number} files, for example ") + note.replace(_FILE, names[0])


def _warnings(report: Report) -> Iterator[str]:
    scenes, tile_size = report.scenes, report.recipe.train.tile_size
    largest = max((max(scene.grid.shape) for scene in scenes), default=tile_size)
    if largest < tile_size:
        yield f"train.tile_size is {tile_size}, the largest scene is {largest} pixels wide; tiles are padded"
    without_crs = [scene.name for scene in scenes if scene.grid.crs is None]
    if without_crs:
        yield f"no CRS in {_list_names(without_crs)}; maps of them have no areas in hectares and no place in a GIS"
    for one in report.trains:
        if one.name == BACKGROUND and one.known and not one.pixels:
            yield "no training pixel is background; if every pixel has a class, set task.background: false"
    for one, trains in zip(report.validates, report.trains, strict=True):
        if one.known and trains.pixels and not one.pixels:
            yield f"{one.name!r} does not occur in validation; its IoU and F1 will be undefined"


def _pixels_and_share(one: ClassCount) -> tuple[str, str]:
    return f"{one.pixels:,}", _percent(one.pixels, one.known)


def _percent(part: int, whole: int) -> str:
    return format_percent(part / whole if whole else None)


def _pixel_size(grid: Grid) -> str:
    """Return the sides of a pixel with the unit of the CRS, if it has one: "30 x 30 m"."""
    size = " x ".join(f"{side:.4g}" for side in grid.pixel_size)
    if grid.crs is None:
        return size
    unit = "degree" if grid.crs.is_geographic else grid.crs.linear_units
    return f"{size} {'m' if unit == 'metre' else unit}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more scenes" if len(names) > 3 else "")


def _more(items: Sequence[object]) -> list[str]:
    return [f"  ... and {len(items) - _MAX_LISTED} more"] if len(items) > _MAX_LISTED else []
