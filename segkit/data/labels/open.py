"""Open the labels of a scene: rasters of codes, masks or fractions, polygons, and points.

Every label pixel is a class, background, or unlabelled (`IGNORE`). Each source is read as *partial labels*: of each
class whether it is present (or its fraction), or unlabelled. So several sources can be merged before the `Task` turns
partial labels into targets.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from segkit.data.labels.base import Labels, PartialLabels
from segkit.data.labels.codes import open_codes
from segkit.data.labels.features import open_features
from segkit.data.labels.fractions import open_fractions
from segkit.data.labels.label_file import inspect_label_file, label_file_meets
from segkit.data.labels.merge import MergedLabels
from segkit.errors import LabelError
from segkit.io.grid import Grid
from segkit.io.points import POINT_TABLE_SUFFIXES, is_point_table
from segkit.io.remote import as_path
from segkit.io.vector import VECTOR_SUFFIXES, is_vector
from segkit.recipe.label_source import LabelSource
from segkit.task import BACKGROUND, Task

_KEYS_OF_FEATURES = (
    "layer", "field", "priority", "outside_polygons", "radius", "x", "y", "crs", "date_field",
)  # fmt: skip


def has_features(path: Path) -> bool:
    """Return whether a label file has polygons or points, by its extension; otherwise it is a raster."""
    return is_vector(path) or is_point_table(path)


def open_labels(
    source: LabelSource | Sequence[LabelSource],
    task: Task,
    grid: Grid,
    *,
    ignore: Sequence[int] = (),
    resample: bool = False,
    shared: Collection[str] = (),
) -> Labels | None:
    """Open the labels of a scene.

    With several sources, a class is labelled where a source that covers it is labelled. With mutually exclusive
    classes, one that is present makes all others absent, and a pixel is background if all classes are absent.

    Parameters
    ----------
    source
        One or several; the `path` of each is one raster file, or one or more vector files or tables of points.
    task
        Defines codes, names and targets.
    grid
        The grid of the scene.
    ignore
        Codes of unlabelled pixels.
    resample
        Whether to warp rasters on another grid to `grid` by nearest neighbour.
    shared
        Paths of rasters that serve several scenes, and need not intersect this one.

    Returns
    -------
    The labels, or None if no polygon, point or shared raster intersects the scene and there are no other labels.

    Raises
    ------
    MissingFileError
        A file does not exist.
    GridError
        The labels are on another grid, or only one of labels and scene has a CRS.
    LabelError
        A layer, field, value or geometry cannot be used, or options contradict each other.
    """
    sources = [source] if isinstance(source, LabelSource) else source
    if len({one.fractions for one in sources}) > 1:
        fractions, codes = (next(one for one in sources if one.fractions is soft) for soft in (True, False))
        raise LabelError(
            f"{_paths(fractions)[0]} holds fractions, {_paths(codes)[0]} does not; either all labels of a scene are "
            "fractions, or none"
        )
    opened = [_open(one, task, grid, ignore, resample, shared) for one in sources]
    parts = tuple(part for part in opened if part is not None)
    if len(parts) < 2:
        return parts[0] if parts else None
    names, notes = " and ".join(part.name for part in parts), tuple(note for part in parts for note in part.notes)
    ambiguities = tuple(ambiguity for part in parts for ambiguity in part.ambiguities)
    return MergedLabels(names, grid, task, notes, parts[0].soft, parts, ambiguities=ambiguities)


def _paths(source: LabelSource) -> list[Path]:
    return [as_path(path) for path in source.paths]


def _open(
    source: LabelSource, task: Task, grid: Grid, ignore: Sequence[int], resample: bool, shared: Collection[str]
) -> PartialLabels | None:
    paths = _paths(source)
    classes = _covered_classes(source, task, paths[0])
    if all(has_features(path) for path in paths):
        if source.fractions:
            raise LabelError(f"{paths[0]}: fractions is only for rasters with one band per class; remove it")
        if source.nodata is not None:
            raise LabelError(f"{paths[0]}: nodata is only for label rasters; remove it")
        return open_features(paths, source, task, grid, ignore, classes)
    if len(paths) > 1:
        raise LabelError(f"{paths[0]} and {paths[1]}: a scene has one label raster, or vector files; give one file")
    for key in _KEYS_OF_FEATURES:
        if getattr(source, key) is not None and not (key == "outside_polygons" and source.fractions):
            suffixes = ", ".join((*VECTOR_SUFFIXES, *POINT_TABLE_SUFFIXES))
            raise LabelError(f"{paths[0]}: {key} is only for vector labels ({suffixes}); remove it")
    if os.fspath(paths[0]) in shared and not label_file_meets(paths[0], grid):
        return None
    in_color = any(key.startswith("#") for key in source.values or ())
    file, notes = inspect_label_file(paths[0], grid, len(classes), resample=resample, in_color=in_color)
    return (open_fractions if source.fractions else open_codes)(file, source, task, ignore, classes, notes)


def _covered_classes(source: LabelSource, task: Task, path: Path) -> tuple[str, ...]:
    """Return the classes that a source covers, in its order; refuse names that are not classes of the task."""
    names = [one.name for one in task.classes]
    classes = tuple(names) if source.classes is None else source.classes
    allowed = names + [BACKGROUND] * bool(source.fractions and task.background)
    for key, found, known in (
        ("classes", classes, allowed),
        ("priority", source.priority or (), [*classes, BACKGROUND]),
        (
            "values",
            [name for name in (source.values or {}).values() if name],
            [*classes] + [BACKGROUND] * task.allows_no_class,
        ),
    ):
        for name in found:
            if name not in known:
                raise LabelError(f"{path}: labels.{key} lists {name!r}; possible names are {', '.join(known)}")
    if source.other_values == BACKGROUND and not task.allows_no_class:
        raise LabelError(
            f"{path}: labels.other_values is background, which the task does not have; set it to ignore, or list all "
            "values in labels.values"
        )
    if len(set(classes)) < len(classes):
        raise LabelError(f"{path}: labels.classes lists a class twice ({', '.join(classes)}); list each once")
    return classes
