"""Labels in vector files of polygons or points, and in tables of points."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.labels.base import PartialLabels
from segkit.errors import DataError, LabelError, suggest
from segkit.io.features import Features, read_features
from segkit.io.grid import Grid
from segkit.io.points import (
    PointColumns,
    Points,
    as_points,
    draw_points,
    has_points,
    is_point_table,
    read_point_table,
)
from segkit.io.polygons import Polygons, as_polygons, project_to_grid, rasterize_shapes
from segkit.io.vector import VECTOR_SUFFIXES
from segkit.recipe.label_source import LabelSource
from segkit.runtime.tables import list_some
from segkit.task import BACKGROUND, IGNORE, Task

_MAX_LISTED_VALUES = 12  # in a message


@dataclass(frozen=True, eq=False)
class _VectorLabels(PartialLabels):
    """Polygons in pixel coordinates of the grid; a pixel is in the polygon that contains its centre.

    Parameters
    ----------
    kind
        What the polygons were made from: "polygons" or "points".
    polygons, class_indices
        The polygons and the class of each: the position of a class, k for background, k + 1 for unlabelled.
    tree
        Spatial index of the polygons.
    priority
        Class indices, highest first.
    outside_is_background
        Whether pixels outside all polygons are labelled, with all classes absent.
    covered
        Positions of the classes that these labels cover.
    """

    kind: str
    polygons: NDArray[Any]
    class_indices: NDArray[np.intp]
    tree: shapely.STRtree
    priority: tuple[int, ...]
    outside_is_background: bool
    covered: tuple[int, ...]

    def _partial_labels(self, window: Window) -> NDArray[np.int16]:
        k = len(self.task.classes)
        top, left, shape = window.row_off, window.col_off, (window.height, window.width)
        masks = np.zeros((k + 2, *shape), dtype=bool)
        near = self.tree.query(shapely.box(left, top, left + window.width, top + window.height))
        for index in np.unique(self.class_indices[near]):
            masks[index] = rasterize_shapes(self.polygons[near[self.class_indices[near] == index]], window)
        labelled = ~masks[k + 1] & (masks.any(axis=0) | self.outside_is_background)
        present = masks[: k + 1]
        if self.task.n_targets == 1:
            self._resolve_overlaps(present, labelled)
        covered = np.isin(np.arange(k), self.covered)[:, None, None]
        return np.where(labelled & covered, present[:k], IGNORE).astype(np.int16)

    def _resolve_overlaps(self, present: NDArray[np.bool_], labelled: NDArray[np.bool_]) -> None:
        """Keep one class per pixel by priority, in place; refuse other overlaps."""
        taken = np.zeros_like(labelled)
        for index in (*self.priority, *(index for index in range(len(present)) if index not in self.priority)):
            present[index] &= ~taken
            if index in self.priority:
                taken |= present[index]
        overlap = labelled & (present.sum(axis=0) > 1)
        if overlap.any():
            names = [one.name for one in self.task.classes] + [BACKGROUND]
            listed = [name for name, mask in zip(names, present, strict=True) if (mask & overlap).any()]
            raise LabelError(
                f"{self.name}: {self.kind} of {' and '.join(listed)} overlap in {int(overlap.sum())} pixels, which a "
                f"{self.task.type} task does not allow; rank the classes in labels.priority, correct the {self.kind}, "
                "or use type multilabel"
            )


def read_label_features(path: Path, source: LabelSource) -> Polygons | Points:
    """Read the polygons or points of one file of a label source; recently read files are cached.

    Raises
    ------
    MissingFileError
        The file does not exist.
    LabelError
        It cannot be read, or an option of the source does not fit it.
    """
    try:
        if is_point_table(path):
            if source.layer is not None:
                raise LabelError(f"{path}: layer is only for vector files ({', '.join(VECTOR_SUFFIXES)}); remove it")
            return read_point_table(path, PointColumns(source.x, source.y, source.crs))
        for key in ("x", "y", "crs"):
            if getattr(source, key) is not None:
                raise LabelError(f"{path}: {key} is only for tables of points (.csv); remove it")
        features = read_features(path, source.layer, option="labels.layer")
        found = as_points(features) if has_points(features) else as_polygons(features)
    except DataError as error:
        raise LabelError(str(error)) from error
    if source.radius is not None and isinstance(found, Polygons):
        raise LabelError(f"{path}: radius is only for points, and it has polygons; remove it")
    return found


def open_features(
    paths: Sequence[Path],
    source: LabelSource,
    task: Task,
    grid: Grid,
    ignore: Sequence[int],
    classes: tuple[str, ...],
) -> _VectorLabels | None:
    """Open files of polygons or of points as labels on a grid; None if none of them intersects it.

    Raises
    ------
    LabelError
        A file cannot be used as labels of the task.
    """
    k = len(task.classes)
    indices = {BACKGROUND: k} if task.allows_no_class else {}
    indices |= {one.name: position for position, one in enumerate(task.classes)}
    layers = [read_label_features(path, source) for path in paths]
    has_polygons = _are_polygons(layers, source)
    polygons, class_indices, notes = [], [], []
    for layer in layers:
        of_layer = _feature_classes(layer, source, task, indices, ignore, classes)
        used = _in_period(layer, source)
        if isinstance(layer, Points):
            (shapes, near), repaired = draw_points(layer, grid, source.radius), 0
        else:
            shapes, near, repaired = project_to_grid(layer, grid)
        polygons.append(shapes[used[near]])
        class_indices.append(of_layer[near[used[near]]])
        if layer.skipped:
            notes.append(f"{layer.path}: features without geometry are skipped ({layer.skipped:,})")
        if not used.all():
            notes.append(f"{layer.path}: {int((~used).sum())} of {used.size} features are not of labels.period")
        if repaired:
            notes.append(f"{layer.path}: {repaired} invalid polygons on this scene were repaired")
    shapes = np.concatenate(polygons)
    if not shapes.size:
        return None
    return _VectorLabels(
        ", ".join(str(path) for path in paths),
        grid,
        task,
        tuple(notes),
        soft=False,
        kind="polygons" if has_polygons else "points",
        polygons=shapes,
        class_indices=np.concatenate(class_indices),
        tree=shapely.STRtree(shapes),
        priority=tuple(indices[one] for one in source.priority or ()),
        outside_is_background=has_polygons and source.outside_polygons != "ignore",
        covered=tuple(indices[one] for one in classes),
    )


def _are_polygons(layers: Sequence[Polygons | Points], source: LabelSource) -> bool:
    """Return whether files have polygons, not points; refuse files of both kinds, and options that do not fit."""
    kinds = {isinstance(layer, Polygons): layer.path for layer in layers}
    if len(kinds) > 1:
        raise LabelError(f"{kinds[True]} has polygons, {kinds[False]} has points; list them as two label sources")
    if False in kinds and source.outside_polygons == "background":
        raise LabelError(
            f"{kinds[False]}: has points, which say nothing about other pixels; remove labels.outside_polygons, "
            "and give points of background"
        )
    return True in kinds


def _in_period(layer: Features, source: LabelSource) -> NDArray[np.bool_]:
    """Return which features have a date in `source.period`; all without a period."""
    if source.date_field is None or source.period is None:
        return np.ones(len(layer.shapes), dtype=bool)
    used = []
    first, last = source.period
    for value in _field_values(layer, source.date_field):
        date = re.match(r"[0-9]{4}(-[0-9]{2}(-[0-9]{2})?)?(?![0-9])", value or "")
        if value is not None and date is None:
            raise LabelError(
                f"{layer.path}: {source.date_field} is {value!r}; dates are written as 2021-06-30, 2021-06 or 2021"
            )
        if date is not None and len(date[0]) < max(len(first), len(last)):
            raise LabelError(
                f"{layer.path}: {source.date_field} is {date[0]}, which is less exact than labels.period ({first} to "
                f"{last}); give the period as exactly as the dates"
            )
        used.append(date is not None and first <= date[0][: len(first)] and date[0][: len(last)] <= last)
    return np.array(used, dtype=bool)


def _field_values(layer: Features, field: str) -> tuple[str | None, ...]:
    try:
        return layer.field_values(field)
    except DataError as error:
        raise LabelError(str(error)) from error


def _feature_classes(
    layer: Polygons | Points,
    source: LabelSource,
    task: Task,
    indices: dict[str, int],
    ignore: Iterable[int],
    classes: Sequence[str],
) -> NDArray[np.intp]:
    """Return the class of each feature of a layer, as `_VectorLabels.class_indices`."""
    path, unlabelled = layer.path, len(task.classes) + 1
    if source.field is None and source.other_values is not None:
        raise LabelError(f"{path}: labels.other_values is for values of a field; set labels.field, or remove it")
    if source.field is None:
        if len(classes) > 1:
            what = "the task has" if source.classes is None else "these labels cover"
            raise LabelError(
                f"{path}: {what} {len(classes)} classes; labels.field must name the field with the class (fields: "
                f"{', '.join(map(str, layer.attributes)) or 'none'}){suggest('add --field NAME')}"
            )
        return np.full(len(layer.shapes), indices[classes[0]], dtype=np.intp)
    if source.values is not None:
        table = {value: unlabelled if name is None else indices[name] for value, name in source.values.items()}
    else:
        by_name = {name: index for name, index in indices.items() if name in (*classes, BACKGROUND)}
        table = {str(code): unlabelled for code in ignore}
        table |= {str(task.background_value): indices[BACKGROUND]} if BACKGROUND in indices else {}
        table |= {str(one.value): indices[one.name] for one in task.classes if one.name in classes} | by_name
    values = [value or "" for value in _field_values(layer, source.field)]
    unknown = Counter(value for value in values if value not in table)
    if unknown and source.other_values is None:
        what = "points" if isinstance(layer, Points) else "polygons"
        counts = [f"{repr(value) if value else 'no value'} ({number})" for value, number in unknown.most_common()]
        raise LabelError(
            f"{path}: field {source.field!r} has undefined values (number of {what}): "
            f"{list_some(counts, _MAX_LISTED_VALUES)}; defined are {list_some(list(table), _MAX_LISTED_VALUES)}; map "
            'them in labels.values (null: unlabelled; "": no value), or set labels.other_values: ignore for all of them'
        )
    others = indices[BACKGROUND] if source.other_values == BACKGROUND else unlabelled
    return np.array([table.get(value, others) for value in values], dtype=np.intp)
