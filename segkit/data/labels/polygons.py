"""Labels in vector files of polygons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.labels.base import PartialLabels
from segkit.errors import DataError, LabelError
from segkit.io.grid import Grid
from segkit.io.polygons import Polygons, project_to_grid, rasterize_shapes, read_polygons
from segkit.recipe.label_source import LabelSource
from segkit.task import BACKGROUND, IGNORE, Task


@dataclass(frozen=True, eq=False)
class _VectorLabels(PartialLabels):
    """Polygons in pixel coordinates of the grid; a pixel is in the polygon that contains its centre.

    Parameters
    ----------
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
                f"{self.name}: polygons of {' and '.join(listed)} overlap in {int(overlap.sum())} pixels, which a "
                f"{self.task.type} task does not allow; rank the classes in labels.priority, correct the polygons, or "
                "use type multilabel"
            )


def open_polygons(
    paths: Sequence[Path],
    source: LabelSource,
    task: Task,
    grid: Grid,
    ignore: Sequence[int],
    classes: tuple[str, ...],
) -> _VectorLabels | None:
    """Open polygon files as labels on a grid; None if no polygon intersects it.

    Raises
    ------
    LabelError
        A file cannot be used as labels of the task.
    """
    k = len(task.classes)
    indices = {BACKGROUND: k} if task.allows_no_class else {}
    indices |= {one.name: position for position, one in enumerate(task.classes)}
    polygons, class_indices, notes = [], [], []
    for path in paths:
        try:
            layer = read_polygons(path, source.layer, option="labels.layer")
            values = None if source.field is None else layer.field_values(source.field)
        except DataError as error:
            raise LabelError(str(error)) from error
        of_layer = _polygon_classes(layer, values, source, task, indices, ignore, classes)
        shapes, near, repaired = project_to_grid(layer, grid)
        polygons.append(shapes)
        class_indices.append(of_layer[near])
        if layer.skipped:
            notes.append(f"{path}: {layer.skipped} features without geometry were skipped")
        if repaired:
            notes.append(f"{path}: {repaired} invalid polygons on this scene were repaired")
    shapes = np.concatenate(polygons)
    if not shapes.size:
        return None
    name = ", ".join(str(path) for path in paths)
    return _VectorLabels(
        name,
        grid,
        task,
        tuple(notes),
        soft=False,
        polygons=shapes,
        class_indices=np.concatenate(class_indices),
        tree=shapely.STRtree(shapes),
        priority=tuple(indices[one] for one in source.priority or ()),
        outside_is_background=source.outside_polygons != "ignore",
        covered=tuple(indices[one] for one in classes),
    )


def _polygon_classes(
    layer: Polygons,
    values: tuple[str | None, ...] | None,
    source: LabelSource,
    task: Task,
    indices: dict[str, int],
    ignore: Iterable[int],
    classes: Sequence[str],
) -> NDArray[np.intp]:
    """Return the class of each polygon of a layer, as `_VectorLabels.class_indices`."""
    path, unlabelled = layer.path, len(task.classes) + 1
    if values is None:
        if len(classes) > 1:
            what = "the task has" if source.classes is None else "these labels cover"
            raise LabelError(
                f"{path}: {what} {len(classes)} classes; set labels.field to the field with the class (fields: "
                f"{', '.join(map(str, layer.attributes)) or 'none'})"
            )
        return np.full(len(layer.shapes), indices[classes[0]], dtype=np.intp)
    if source.values is not None:
        table = {value: unlabelled if name is None else indices[name] for value, name in source.values.items()}
    else:
        by_name = {name: index for name, index in indices.items() if name in (*classes, BACKGROUND)}
        table = {str(code): unlabelled for code in ignore}
        table |= {str(task.background_value): indices[BACKGROUND]} if BACKGROUND in indices else {}
        table |= {str(one.value): indices[one.name] for one in task.classes if one.name in classes} | by_name
    unknown = [value for value in values if value not in table]
    if unknown:
        counts = ", ".join(f"{value!r} ({unknown.count(value)} polygons)" for value in list(dict.fromkeys(unknown))[:5])
        raise LabelError(
            f"{path}: field {source.field!r} has undefined values: {counts}; defined are {', '.join(table)}; map them "
            "in labels.values (null: unlabelled)"
        )
    return np.array([table[value] for value in values if value is not None], dtype=np.intp)
