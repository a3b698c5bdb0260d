"""Precision, recall and F1 of objects (connected regions), from int64 counts that are summed over scenes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segkit.evaluation.metrics import float_or_none, precision_recall_f1
from segkit.io.quantities import Quantity
from segkit.task import IGNORE, Task
from segkit.vector.tracing.pixel_measures import PixelMeasures, measure_runs
from segkit.vector.tracing.runs import Runs

_STRIP_PIXELS = 2**20  # pixels that are labelled at once
# Areas are integers, so that their sums do not depend on the order.
_SQUARE_CM_PER_SQUARE_METRE = 10_000

# Rows of int64 tables with one column per object: category, pixels, size in pixels or in square centimetres.
_CATEGORY, _PIXELS, _SIZE = range(3)
# Rows of tables with one column per pair of overlapping objects: predicted and true object, common pixels.
_DECIDED, _TRUE, _COMMON = range(3)


class Objects:
    """Precision, recall and F1 of the objects of each class.

    Objects are regions of a class with pixels connected through their sides, like the polygons of a map, in the
    predictions and in the truth. Both are cut at unlabelled pixels and pixels without data. Background has no objects.
    A predicted and a true object match if their IoU is above 0.5, so each has at most one match (Kirillov et al. 2019,
    "Panoptic Segmentation").

    Rows are added from top to bottom, any number at a time. Memory holds some rows, the objects that reach the last row
    or overlap one that does, and their pairs.

    Parameters
    ----------
    task
        Defines targets and categories.
    size
        Minimum object size. Smaller objects are not counted, but may match one that is.

    Attributes
    ----------
    counts
        int64 (scored categories, 4): predicted objects, matched predicted objects, true objects, matched true objects.
    """

    def __init__(self, task: Task, size: Quantity) -> None:
        self._task, self.size = task, size
        self.counts: NDArray[np.int64] = np.zeros((len(task.scored_categories), 4), dtype=np.int64)
        self._min_size = math.ceil(size.number) if size.pixels else round(size.number * _SQUARE_CM_PER_SQUARE_METRE)
        self._targets: list[_TargetObjects] = []
        self._top = 0

    def add(
        self,
        decided: NDArray[np.integer[Any]],
        truth: NDArray[np.integer[Any]],
        measures: PixelMeasures | None = None,
        *,
        end: bool,
    ) -> None:
        """Add the next rows of a scene.

        Parameters
        ----------
        decided, truth
            Category indices (T, H, W); `IGNORE` in the truth where unlabelled.
        measures
            Pixel areas of the scene; required if `size` is an area on the ground.
        end
            Whether these are the scene's last rows.
        """
        assert self.size.pixels or measures is not None
        measures = None if self.size.pixels else measures
        height, width = truth.shape[1:]
        if not self._targets:
            first_category = int(self._task.allows_no_class)  # category 0 is background or absent
            self._targets = [_TargetObjects(width, first_category, self._min_size) for _ in range(self._task.n_targets)]
        rows = max(1, _STRIP_PIXELS // width)
        for start in range(0, height, rows):
            part = slice(start, start + rows)
            for number, target in enumerate(self._targets):
                true = truth[number, part]
                target.add_rows(
                    np.where(true == IGNORE, IGNORE, decided[number, part]), true, measures, self._top + start
                )
                self._count(number, *target.pop_finished(end=end and start + rows >= height))
        self._top += height
        if end:
            self._targets, self._top = [], 0

    def _count(self, target: int, *sides: tuple[NDArray[np.int64], NDArray[np.bool_]]) -> None:
        """Count predicted and true objects of a target, each given as a table and a mask of matched objects."""
        for column, (table, matched) in zip((0, 2), sides, strict=True):
            large = table[_SIZE] >= self._min_size
            for offset, selected in enumerate((large, large & matched)):
                per_category = np.bincount(table[_CATEGORY, selected], minlength=len(self._task.categories))
                for index, (_, category_target, category) in enumerate(self._task.scored_categories):
                    if category_target == target:
                        self.counts[index, column + offset] += per_category[category]

    def per_class(self) -> dict[str, dict[str, float | int | None]]:
        """Return ``object_precision``, ``object_recall``, ``object_f1``, ``objects`` and ``objects_decided`` by name.

        Precision is the share of predicted objects that match, recall that of true objects, F1 that of both together
        (the harmonic mean, if no object is below the minimum size). None if undefined, and for background.
        """
        per_class: dict[str, dict[str, float | int | None]] = {}
        for (name, _, category), counts in zip(self._task.scored_categories, self.counts.tolist(), strict=True):
            decided, matched_decided, true, matched_true = counts
            ratios = precision_recall_f1(matched_decided, decided, matched_true, true)
            scores: dict[str, float | int | None] = {
                f"object_{key}": float_or_none(value) for key, value in ratios.items()
            }
            scores |= {"objects": true, "objects_decided": decided}
            background = category < int(self._task.allows_no_class)
            per_class[name] = dict.fromkeys(scores) if background else scores
        return per_class


class _OpenObjects:
    """Predicted or true objects of a target that are not yet finished, and the last row."""

    def __init__(self, width: int, first_category: int, min_size: int) -> None:
        self._first_category, self._min_size = first_category, min_size
        self._row = np.full((1, width), IGNORE)
        self._label = np.full(1, -1)  # object number of each run of the row
        self.table = np.zeros((3, 0), dtype=np.int64)

    def add_rows(self, rows: NDArray[np.integer[Any]], measures: PixelMeasures | None, top: int) -> _LabelledRows:
        """Label the objects of rows (H, W) that start at row `top` of the scene."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        lines = np.concatenate([self._row.astype(rows.dtype), rows])
        run_starts = np.ones(lines.shape, dtype=bool)
        np.not_equal(lines[:, 1:], lines[:, :-1], out=run_starts[:, 1:])
        starts = np.flatnonzero(run_starts)
        category = lines.ravel()[starts].astype(np.int32)
        # Runs of the row before have their objects. Other runs of a class become nodes numbered after these objects.
        above, n_before = self._label.size, self.table.shape[1]
        inside = np.flatnonzero(category[above:] >= self._first_category)
        size = n_before + inside.size
        node = np.full(starts.size, -1)
        node[:above], node[above + inside] = self._label, np.arange(n_before, size)
        # Wherever a run starts in one of two rows, it adjoins the run at that column of the other row.
        place = np.flatnonzero(run_starts[:-1] | run_starts[1:])
        upper = np.cumsum(run_starts[:-1].ravel()[place]) - 1
        lower = np.cumsum(run_starts[1:].ravel()[place]) - 1 + above
        same = (category[upper] == category[lower]) & (category[upper] >= self._first_category)
        edges = np.ones(np.count_nonzero(same), dtype=bool)
        graph = coo_array((edges, (node[upper[same]], node[lower[same]])), shape=(size, size))
        n_objects, component = connected_components(graph, directed=False)
        first_column = (starts[above:] % rows.shape[1]).astype(np.int32)
        counts = np.cumsum(np.count_nonzero(run_starts[1:], axis=1))
        runs = Runs(top, np.append(0, counts), first_column, category[above:], rows.shape[1])
        table = np.zeros((3, n_objects), dtype=np.int64)
        table[_CATEGORY, component] = np.append(self.table[_CATEGORY], category[above:][inside])
        pixels = runs.lengths()
        for row, values in (
            (_PIXELS, pixels),
            (_SIZE, pixels if measures is None else self._run_areas(runs, measures)),
        ):
            np.add.at(table[row], component, np.append(self.table[row], values[inside]))
        label = np.append(component, -1)[node]
        last = np.count_nonzero(run_starts[-1])
        self._row, self._label, self.table = lines[-1:].copy(), label[-last:].copy(), table
        return _LabelledRows(run_starts[1:], category[above:], label[above:], component[:n_before])

    def _run_areas(self, runs: Runs, measures: PixelMeasures) -> NDArray[np.int64]:
        area = measure_runs(measures, runs).area * _SQUARE_CM_PER_SQUARE_METRE
        # Runs whose area is NaN count as large.
        return np.where(np.isnan(area), self._min_size, np.rint(np.nan_to_num(area)).astype(np.int64))

    @property
    def reaches_last_row(self) -> NDArray[np.bool_]:
        """Objects with pixels in the last row, which may grow; bool (objects,)."""
        mask = np.zeros(self.table.shape[1], dtype=bool)
        mask[self._label[self._label >= 0]] = True
        return mask

    def keep_only(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Remove objects outside a mask (objects,); return each object's new number, -1 if removed."""
        number = np.where(mask, np.cumsum(mask) - 1, -1)
        self.table = self.table[:, mask]
        self._label = np.append(number, -1)[self._label]
        return number


@dataclass(frozen=True)
class _LabelledRows:
    """Labelled rows: starts of runs (H, W), category and object of each run, new numbers of the previous objects."""

    run_starts: NDArray[np.bool_]
    category: NDArray[np.int32]
    label: NDArray[np.int64]
    renumbered: NDArray[np.int32]


class _TargetObjects:
    """Predicted and true objects of a target, and the pairs of them that overlap."""

    def __init__(self, width: int, first_category: int, min_size: int) -> None:
        self._layers = tuple(_OpenObjects(width, first_category, min_size) for _ in range(2))
        self._pairs = np.zeros((3, 0), dtype=np.int64)

    def add_rows(
        self,
        decided: NDArray[np.integer[Any]],
        truth: NDArray[np.integer[Any]],
        measures: PixelMeasures | None,
        top: int,
    ) -> None:
        """Label rows (H, W) and pair their objects."""
        predicted, true = (
            layer.add_rows(rows, measures, top) for layer, rows in zip(self._layers, (decided, truth), strict=True)
        )
        place = np.flatnonzero(predicted.run_starts | true.run_starts)
        predicted_run, true_run = (np.cumsum(side.run_starts.ravel()[place]) - 1 for side in (predicted, true))
        same = (predicted.category[predicted_run] == true.category[true_run]) & (predicted.label[predicted_run] >= 0)
        common = np.diff(place, append=truth.size)
        pairs = np.stack([predicted.label[predicted_run[same]], true.label[true_run[same]], common[same]])
        before = np.stack(
            [
                predicted.renumbered[self._pairs[_DECIDED]],
                true.renumbered[self._pairs[_TRUE]],
                self._pairs[_COMMON],
            ]
        )
        predicted_object, true_object, common = np.concatenate([before, pairs], axis=1)
        n_true = self._layers[1].table.shape[1]
        keys, column = np.unique(predicted_object * n_true + true_object, return_inverse=True)
        self._pairs = np.zeros((3, keys.size), dtype=np.int64)
        if keys.size:
            self._pairs[_DECIDED], self._pairs[_TRUE] = np.divmod(keys, n_true)
        np.add.at(self._pairs[_COMMON], column, common)

    def pop_finished(self, *, end: bool) -> list[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
        """Remove and return the finished predicted and true objects: for each side a table and a mask of matches."""
        members = self._pairs[_DECIDED], self._pairs[_TRUE]
        growing = [layer.reaches_last_row & (not end) for layer in self._layers]
        grows = [mask[member] for mask, member in zip(growing, members, strict=True)]
        pixels = sum(layer.table[_PIXELS, member] for layer, member in zip(self._layers, members, strict=True))
        common = self._pairs[_COMMON]
        matches = 3 * common > pixels  # IoU > 1/2
        undecided = grows[0] & grows[1]
        for side, other in ((0, 1), (1, 0)):
            # A finished object may still match an object that consists of several growing parts, not connected so far.
            # It matches if its pixels are fewer than 3 common - pixels of the other object, which is the sum of this
            # term over the parts: at most the sum over the parts for which it is positive.
            pair = np.flatnonzero(~grows[side] & grows[other])
            finished = members[side][pair]
            term = 3 * common[pair] - self._layers[other].table[_PIXELS, members[other][pair]]
            most = np.zeros(growing[side].size, dtype=np.int64)
            np.add.at(most, finished, np.maximum(term, 0))
            undecided[pair] = most[finished] > self._layers[side].table[_PIXELS, finished]
        sides, numbers = [], []
        for layer, mask, member in zip(self._layers, growing, members, strict=True):
            matched, kept = np.zeros(mask.size, dtype=bool), mask.copy()
            matched[member[matches]] = True
            kept[member[undecided]] = True
            sides.append((layer.table[:, ~kept], matched[~kept]))
            numbers.append(layer.keep_only(kept)[member[undecided]])
        self._pairs = np.stack([*numbers, common[undecided]])
        return sides
