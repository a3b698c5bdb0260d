"""Write a recipe for images and labels: what is in the files decides, and every assumption is said."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkit.data.band_values import BandRanges
from segkit.data.drafting.codes import count_codes, draft_codes
from segkit.data.drafting.compose import LABELS_TO_DRAW, compose_placeholder, compose_recipe, what_to_draw
from segkit.data.drafting.fields import draft_features
from segkit.data.drafting.imagery_keys import draft_imagery
from segkit.data.drafting.images import DataSource, find_source
from segkit.data.drafting.label_draft import LabelDraft, class_rows
from segkit.data.drafting.plan import plan_training, with_split
from segkit.data.examination import ClassCount, class_counts, count_scenes
from segkit.data.labels.open import has_features
from segkit.data.pairing import Sample, open_samples, pair_files
from segkit.data.split import SceneCounts
from segkit.errors import DataError, GridError, UsageError
from segkit.io.files import atomic_write, check_distinct, check_output
from segkit.io.grid import Grid, crs_name
from segkit.io.paths import PathLike, list_files
from segkit.io.remote import as_path
from segkit.io.scene import Scene
from segkit.recipe.imagery import open_scene
from segkit.recipe.schema import Data, Recipe
from segkit.recipe.sources import DatasetSource
from segkit.recipe.yaml import parse_yaml, resolve_paths

_SUFFIXES = (".yaml", ".yml")
_PLACEHOLDERS = ("forest", "water", "other_land")


@dataclass(frozen=True)
class Draft:
    """A recipe that was written for images and labels.

    Parameters
    ----------
    path
        The recipe's file.
    recipe
        What it says.
    images, labels, task
        One line each: what was found, and why this task. `labels` and `task` are None without labels.
    notes
        What was assumed.
    to_do
        What to draw, if there are no labels.
    trains, validates
        Class counts of both sides of the split; empty without labels.
    """

    path: Path
    recipe: Recipe
    images: str
    labels: str | None
    task: str | None
    notes: tuple[str, ...]
    to_do: tuple[str, ...] = ()
    trains: tuple[ClassCount, ...] = ()
    validates: tuple[ClassCount, ...] = ()

    def render(self) -> str:
        """Return what was found and assumed as plain text, with the next commands."""
        lines = [f"images: {self.images}"]
        lines += [f"labels: {self.labels}", f"task: {self.task}"] if self.labels else []
        if self.trains:
            counts = ", ".join(
                f"{one.name} {one.pixels:,} + {other.pixels:,}"
                for one, other in zip(self.trains, self.validates or self.trains, strict=True)
            )
            lines.append(f"pixels that train + validate: {counts}" if self.validates else f"pixels: {counts}")
        lines += ["assumed:", *(f"  - {note}" for note in self.notes)] if self.notes else []
        lines += ["", *self.to_do, "", f"recipe {self.path} (with placeholders)"] if self.to_do else []
        if not self.to_do:
            lines += ["", f"recipe {self.path}; next:", f"  segkit check {self.path}", f"  segkit train {self.path}"]
        return "\n".join(lines)


def init(
    images: PathLike,
    labels: PathLike | None = None,
    output: PathLike = "recipe.yaml",
    *,
    field: str | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Draft:
    """Write a commented recipe for images and labels, which `segkit check` accepts.

    Parameters
    ----------
    images
        A file, a folder or a glob. Files that lie side by side, several dates of one place, and bands in separate files
        are recognised.
    labels
        A file, a folder or a glob: rasters of codes, of colours or of a mask for each class, polygons, or points.
        Without labels the recipe has placeholders and says what to draw.
    output
        The recipe.
    field
        Field with the class of polygons or points; by default one whose values repeat.
    overwrite
        Whether an existing recipe may be replaced.
    show_progress
        Whether to show progress on stderr.

    Raises
    ------
    UsageError
        The output exists, or `field` is given without polygons or points.
    SegkitError
        The files cannot be read, paired, or trained on.
    """
    target = check_output(output, overwrite=overwrite)
    if target.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"{target}: a recipe ends in .yaml or .yml; name it so")
    source = find_source(os.fspath(images), None if labels is None else os.fspath(labels))
    if not source.labels:
        return _draft_unlabelled(str(as_path(images)), source, target, field)
    pairing = pair_files(DatasetSource.model_validate(source.keys()))
    paired = [pair for pair in pairing.pairs if pair.labels]
    label_paths = list(dict.fromkeys(as_path(path) for pair in paired for each in pair.labels for path in each.paths))
    check_distinct([target], [file for pair in paired for file in (*pair.images, *label_paths)])
    scenes = [open_scene(pair.images, _AS_STORED, vrt=None, name=pair.name) for pair in paired]
    draft = _draft_labels(label_paths, [scene.grid for scene in scenes], field, show_progress=show_progress)
    imagery, imagery_notes = draft_imagery(scenes)
    raw = {
        "name": _name_of(source),
        "task": draft.task,
        "data": {"train": source.keys() | {"labels": source.labels | draft.labels}, **imagery, "ignore": draft.ignore},
    }
    samples, raw, grid_notes = _open(raw)
    samples, counts, raw, band_notes = _count(samples, raw, show_progress=show_progress)
    plan = plan_training(raw, samples, counts, draft)
    notes = (
        *source.notes,
        *_describe_unmatched(pairing.unmatched),
        *imagery_notes,
        *band_notes,
        *draft.notes,
        *grid_notes,
        *_shared_labels(samples),
    )
    facts = _describe_images(source, samples[0].scene, len(paired))
    found = _describe_labels(label_paths, draft)
    text = compose_recipe(raw, plan, draft, facts, found, notes, target)
    recipe = _store(text, target)
    assert plan.examination.statistics is not None
    task, validation = recipe.task, plan.examination.validation_counts
    return Draft(
        target, recipe, facts, found, f"{draft.task['type']}: {draft.reason}", notes,
        trains=class_counts(plan.examination.statistics.counts, task),
        validates=() if plan.val is None or validation is None else class_counts(validation, task),
    )  # fmt: skip


_AS_STORED = Data.model_construct(train=None)  # the default keys of imagery


def _draft_labels(
    paths: Sequence[Path], grids: Sequence[Grid], field: str | None, *, show_progress: bool
) -> LabelDraft:
    if all(has_features(path) for path in paths):
        return draft_features(paths, grids, field)
    if field is not None:
        raise UsageError(f"{paths[0]}: --field is for polygons and points, and the labels are rasters; leave it out")
    if any(has_features(path) for path in paths):
        raise DataError(f"{paths[0].parent}: holds label rasters and vector files; give one kind")
    return draft_codes(count_codes(paths, show_progress=show_progress))


def _open(raw: dict[str, Any]) -> tuple[list[Sample], dict[str, Any], list[str]]:
    """Open the labelled scenes; files on other grids are resampled, which is noted."""
    try:
        return _open_samples(raw), raw, []
    except GridError as error:
        raw = _with_data(raw, resample=True)
        note = f"files on another grid are resampled ({str(error).partition(';')[0]})"
        return _open_samples(raw), raw, [note]


def _open_samples(raw: dict[str, Any]) -> list[Sample]:
    recipe = with_split(raw)
    return list(open_samples(recipe.data.train, recipe.data, recipe.task).samples)


def _with_data(raw: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {**raw, "data": {**raw["data"], **keys}}


def _count(
    samples: list[Sample], raw: dict[str, Any], *, show_progress: bool
) -> tuple[list[Sample], list[SceneCounts], dict[str, Any], list[str]]:
    """Count the pixels of the scenes; bands without a value, or with a single one, are left out, which is noted."""
    counted, _ = count_scenes(samples, with_split(raw), show_progress=show_progress, fail_fast=True)
    counts = [one for one in counted if one is not None]
    ranges = BandRanges(len(samples[0].scene.bands))
    for one in counts:
        ranges.merge(one.ranges)
    useful = (ranges.number > 0) & (ranges.min < ranges.max)
    if useful.all() or not useful.any():
        return samples, counts, raw, []
    bands = samples[0].scene.bands
    left = [str(band) for band, use in zip(bands, useful, strict=True) if not use]
    raw = _with_data(raw, bands=[band for band, use in zip(bands, useful, strict=True) if use])
    note = f"left out: band {', '.join(left)}, with no value or the same one at all pixels"
    return _open_samples(raw), counts, raw, [note]


def _shared_labels(samples: Sequence[Sample]) -> list[str]:
    """Return a note if the same labels serve scenes of the same ground, which may be of other dates."""
    seen = Counter((_label_names(sample), sample.scene.grid.bounds) for sample in samples)
    number = max(seen.values())
    if number == 1:
        return []
    return [
        f"the same labels serve {number} scenes of the same ground; if the land has changed, list the images that fit"
    ]


def _label_names(sample: Sample) -> tuple[str, ...]:
    return tuple(str(path) for source in sample.label_sources for path in source.paths)


def _name_of(source: DataSource) -> str:
    """Return a name for the recipe: that of the folder of the images, or of the folder above images/."""
    folder = source.facts[0].path.absolute().parent
    names = [part for part in (folder.name, folder.parent.name) if part.lower() not in ("images", "image", "tiles")]
    return names[0] if names and names[0] else "landcover"


def _describe_images(source: DataSource, scene: Scene, number: int) -> str:
    """Return one line about the images: number, size, bands, type, no data."""
    first, grid = source.facts[0], scene.grid
    sizes = {each.grid.shape for each in source.facts} if len(scene.paths) == 1 and number > 1 else {grid.shape}
    rows, columns = (sorted({size[axis] for size in sizes}) for axis in (0, 1))
    size = " x ".join(str(side[0]) if len(side) == 1 else f"{side[0]} to {side[-1]}" for side in (rows, columns))
    try:
        metres = f" of {min(grid.pixel_metres()):.3g} m"
    except GridError:
        metres = ""
    names = [] if all(name.isdecimal() for name in scene.band_names) else list(scene.band_names)
    listed = f" ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})" if names else ""
    nodata = "no declared no-data value" if first.nodata is None else f"no data {first.nodata:g}"
    bands = f"{len(scene.bands)} band{'s' * (len(scene.bands) != 1)} {first.dtype}{listed}"
    return (
        f"{number} scene{'s' * (number != 1)}, {size} pixels{metres}, {crs_name(grid.crs)}; {bands}"
        f"{', alpha' if first.alpha else ''}; {nodata}"
    )


def _describe_unmatched(paths: Sequence[Path]) -> list[str]:
    if not paths:
        return []
    files = f"{len(paths)} file{'s have' if len(paths) > 1 else ' has'}"
    return [f"{files} no matching image or label, such as {paths[0]}; labels are paired with images by file name"]


def _describe_labels(paths: Sequence[Path], draft: LabelDraft) -> str:
    what = str(paths[0]) if len(paths) == 1 else f"{len(paths)} files, such as {paths[0]}"
    return f"{what}: {', '.join(f'{name} {count}' for name, count in draft.counts.items())}"


def _store(text: str, target: Path) -> Recipe:
    """Write a recipe, if it is valid."""
    recipe = Recipe.from_dict(resolve_paths(parse_yaml(text, str(target)), target.absolute().parent))
    with atomic_write(target) as part:
        part.write_text(text, encoding="utf-8")
    return recipe


def _draft_unlabelled(images: str, source: DataSource, target: Path, field: str | None) -> Draft:
    """Write a recipe with a placeholder for the labels."""
    if field is not None:
        raise UsageError("--field names the class of labels, and there are none; give LABELS, too")
    keys = source.keys()
    pairing = pair_files(DatasetSource.model_validate(keys))
    check_distinct([target], [file for pair in pairing.pairs for path in pair.images for file in list_files(path)])
    scenes = [open_scene(pair.images, _AS_STORED, vrt=None, name=pair.name) for pair in pairing.pairs]
    imagery, notes = draft_imagery(scenes)
    grid = scenes[0].grid
    labels = {
        "path": os.fspath(target.parent / LABELS_TO_DRAW), "field": "class", "outside_polygons": "ignore"
    }  # fmt: skip
    facts = _describe_images(source, scenes[0], len(scenes))
    to_do = what_to_draw(images, crs_name(grid.crs), labels["path"], target)
    task: dict[str, Any] = {
        "type": "multiclass",
        "background": False,
        "classes": class_rows(_PLACEHOLDERS, range(1, len(_PLACEHOLDERS) + 1)),
    }
    raw = {"name": _name_of(source), "task": task, "data": {"train": keys | {"labels": labels}, **imagery}}
    text = compose_placeholder(raw, facts, (*source.notes, *notes), to_do, target)
    return Draft(target, _store(text, target), facts, None, None, (*source.notes, *notes), to_do)
