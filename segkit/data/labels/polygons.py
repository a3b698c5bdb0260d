"""Labels that are polygons."""

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
from segkit.io.polygons import Polygons, on_grid, rasterised, read_polygons
from segkit.recipe.schema import LabelSource
from segkit.task.task import BACKGROUND, IGNORE, Task


@dataclass(frozen=True, eq=False)
class _VectorLabels(PartialLabels):
    """Polygons in pixel coordinates of the grid; a pixel is in a polygon that holds its centre.

    `kinds` says what each polygon is: a class's position, k for "none of the classes", k + 1 for "not known".
    """

    polygons: NDArray[Any]
    kinds: NDArray[np.intp]
    tree: shapely.STRtree
    priority: tuple[int, ...]
    outside_known: bool
    spoken: tuple[int, ...]

    def _claims(self, window: Window) -> NDArray[np.int16]:
        k = len(self.task.classes)
        top, left, shape = window.row_off, window.col_off, (window.height, window.width)
        covered = np.zeros((k + 2, *shape), dtype=bool)
        near = self.tree.query(shapely.box(left, top, left + window.width, top + window.height))
        for kind in np.unique(self.kinds[near]):
            covered[kind] = rasterised(self.polygons[near[self.kinds[near] == kind]], window)
        known = ~covered[k + 1] & (covered.any(axis=0) | self.outside_known)
        claims = covered[: k + 1]
        if self.task.planes == 1:
            self._settle(claims, known)
        spoken = np.isin(np.arange(k), self.spoken)[:, None, None]
        return np.where(known & spoken, claims[:k], IGNORE).astype(np.int16)

    def _settle(self, claims: NDArray[np.bool_], known: NDArray[np.bool_]) -> None:
        """Leave each pixel to one claim, in place."""
        taken = np.zeros_like(known)
        for kind in (*self.priority, *(kind for kind in range(len(claims)) if kind not in self.priority)):
            claims[kind] &= ~taken
            if kind in self.priority:
                taken |= claims[kind]
        disputed = known & (claims.sum(axis=0) > 1)
        if disputed.any():
            names = [one.name for one in self.task.classes] + [BACKGROUND]
            those = [name for name, claim in zip(names, claims, strict=True) if (claim & disputed).any()]
            raise LabelError(
                f"{self.name}: polygons of {' and '.join(those)} overlap on {int(disputed.sum())} pixels, classes of a "
                f"{self.task.type} task exclude each other; list the winners first under labels.priority, correct the "
                "polygons, or use type multilabel"
            )


def open_polygons(
    paths: Sequence[Path],
    source: LabelSource,
    task: Task,
    grid: Grid,
    ignore: Sequence[int],
    classes: tuple[str, ...],
) -> _VectorLabels | None:
    """Open polygon files as labels on a grid; None if none of their polygons lies on it.

    Raises
    ------
    LabelError
        A file cannot be read as labels of the task.
    """
    k = len(task.classes)
    kinds = {BACKGROUND: k} if task.has_none else {}
    kinds |= {one.name: position for position, one in enumerate(task.classes)}
    polygons, meanings, notes = [], [], []
    for path in paths:
        try:
            layer = read_polygons(path, source.layer, option="labels.layer")
            values = None if source.field is None else layer.texts(source.field)
        except DataError as error:
            raise LabelError(str(error)) from error
        meaning = _meanings(layer, values, source, task, kinds, ignore, classes)
        shapes, near, repaired = on_grid(layer, grid)
        polygons.append(shapes)
        meanings.append(meaning[near])
        if layer.skipped:
            notes.append(f"{path}: {layer.skipped} features have no geometry; skipped")
        if repaired:
            notes.append(f"{path}: {repaired} polygons on this scene were invalid; repaired")
    shapes, meaning = np.concatenate(polygons), np.concatenate(meanings)
    if not shapes.size:
        return None
    name = ", ".join(str(path) for path in paths)
    ranks = tuple(kinds[one] for one in source.priority or ())
    known = source.outside != "ignore"
    spoken = tuple(kinds[name] for name in classes)
    tree = shapely.STRtree(shapes)
    return _VectorLabels(name, grid, task, tuple(notes), False, shapes, meaning, tree, ranks, known, spoken)


def _meanings(
    layer: Polygons,
    values: tuple[str | None, ...] | None,
    source: LabelSource,
    task: Task,
    kinds: dict[str, int],
    ignore: Iterable[int],
    classes: Sequence[str],
) -> NDArray[np.intp]:
    """Say what each polygon of a layer is, as `_VectorLabels.kinds` does."""
    path, not_known = layer.path, len(task.classes) + 1
    if values is None:
        if len(classes) > 1:
            whose = "the task has" if source.classes is None else "these labels speak for"
            raise LabelError(
                f"{path}: {whose} {len(classes)} classes; name the field that tells them apart under "
                f"labels.field (there are {', '.join(map(str, layer.attributes)) or 'none'})"
            )
        return np.full(len(layer.shapes), kinds[classes[0]], dtype=np.intp)
    if source.values is not None:
        table = {value: not_known if name is None else kinds[name] for value, name in source.values.items()}
    else:
        own = {name: kind for name, kind in kinds.items() if name in (*classes, BACKGROUND)}
        table = {str(code): not_known for code in ignore}
        table |= {str(task.background_value): kinds[BACKGROUND]} if BACKGROUND in kinds else {}
        table |= {str(one.value): kinds[one.name] for one in task.classes if one.name in classes} | own
    unknown = [value for value in values if value not in table]
    if unknown:
        counts = ", ".join(f"{value!r} ({unknown.count(value)} polygons)" for value in list(dict.fromkeys(unknown))[:5])
        raise LabelError(
            f"{path}: field {source.field!r} holds {counts}, known are {', '.join(table)}; say under labels.values "
            "which class each is (null: not known)"
        )
    return np.array([table[value] for value in values if value is not None], dtype=np.intp)
