"""Labels: rasters of codes, masks or fractions, and polygons, read as a task's target planes on a scene's grid.

Every label pixel is a class, background, or not known (`IGNORE`). What each source says is written as *claims*: of each
class whether it is there (or how much of it), or nothing. So several sources are joined before the `Task`, which knows
what planes it has and which classes exclude each other, turns claims into planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segkit.data.labels.base import Labels, PartialLabels
from segkit.data.labels.codes import label_file, open_codes
from segkit.data.labels.fractions import open_fractions
from segkit.data.labels.merge import MergedLabels
from segkit.data.labels.polygons import open_polygons
from segkit.errors import LabelError
from segkit.io.grid import Grid
from segkit.io.remote import located
from segkit.io.vector import VECTOR_SUFFIXES, is_vector
from segkit.recipe.schema import LabelSource
from segkit.task.task import BACKGROUND, Task


def open_labels(
    source: LabelSource | Sequence[LabelSource],
    task: Task,
    grid: Grid,
    *,
    ignore: Sequence[int] = (),
    resample: bool = False,
) -> Labels | None:
    """Open the labels of a scene.

    Where there are several sources, each class is known where one that speaks for it knows it. Classes that exclude
    each other deny each other: where one is there, no other is, and background is where all are denied.

    Parameters
    ----------
    source
        One or several; the `path` of each is one raster file, or one or more vector files.
    task
        Whose codes, names and planes they have.
    grid
        The scene's.
    ignore
        Codes that mean "not known".
    resample
        Whether a raster on another grid is brought to `grid` by nearest neighbour.

    Returns
    -------
    The labels, or None where no polygon meets the scene, and there are no others.

    Raises
    ------
    MissingFileError
        A file is not there.
    GridError
        The labels lie on another grid, or in no known place on it.
    LabelError
        A layer, field, value or geometry that cannot be used, or instructions that contradict each other.
    """
    sources = [source] if isinstance(source, LabelSource) else source
    if len({one.fractions for one in sources}) > 1:
        some, others = (next(one for one in sources if one.fractions is soft) for soft in (True, False))
        raise LabelError(
            f"{_paths(some)[0]} holds fractions, {_paths(others)[0]} does not; the labels of a scene are all "
            "fractions, or none of them is"
        )
    opened = [_open(one, task, grid, ignore, resample) for one in sources]
    parts = tuple(part for part in opened if part is not None)
    if len(parts) < 2:
        return parts[0] if parts else None
    names, notes = " and ".join(part.name for part in parts), tuple(note for part in parts for note in part.notes)
    doubts = tuple(doubt for part in parts for doubt in part.doubts)
    return MergedLabels(names, grid, task, notes, parts[0].soft, parts, doubts=doubts)


def _paths(source: LabelSource) -> list[Path]:
    return [located(path) for path in source.paths]


def _open(source: LabelSource, task: Task, grid: Grid, ignore: Sequence[int], resample: bool) -> PartialLabels | None:
    paths = _paths(source)
    classes = _covered_classes(source, task, paths[0])
    if all(is_vector(path) for path in paths):
        if source.fractions:
            raise LabelError(f"{paths[0]}: fractions is for rasters of one band per class; remove it")
        if source.nodata is not None:
            raise LabelError(f"{paths[0]}: nodata is for label rasters; remove it")
        return open_polygons(paths, source, task, grid, ignore, classes)
    if len(paths) > 1:
        raise LabelError(f"{paths[0]} and {paths[1]}: a scene has one label raster, or vector files; name one file")
    for key in ("layer", "field", "priority", "outside"):
        if getattr(source, key) is not None and not (key == "outside" and source.fractions):
            raise LabelError(f"{paths[0]}: {key} is for vector labels ({', '.join(VECTOR_SUFFIXES)}); remove it")
    file, notes = label_file(paths[0], grid, len(classes), resample=resample)
    return (open_fractions if source.fractions else open_codes)(file, source, task, ignore, classes, notes)


def _covered_classes(source: LabelSource, task: Task, path: Path) -> tuple[str, ...]:
    """Return the classes that a source speaks for, in its order; refuse names that the task does not have."""
    names = [one.name for one in task.classes]
    classes = tuple(names) if source.classes is None else source.classes
    own = names + [BACKGROUND] * bool(source.fractions and task.background)
    for key, found, known in (
        ("classes", classes, own),
        ("priority", source.priority or (), [*classes, BACKGROUND]),
        (
            "values",
            [name for name in (source.values or {}).values() if name],
            [*classes] + [BACKGROUND] * task.has_none,
        ),
    ):
        for name in found:
            if name not in known:
                raise LabelError(
                    f"{path}: labels.{key} names {name!r}, these labels speak for {', '.join(known)}; correct it"
                )
    if len(set(classes)) < len(classes):
        raise LabelError(f"{path}: labels.classes names a class twice ({', '.join(classes)}); name each once")
    return classes
