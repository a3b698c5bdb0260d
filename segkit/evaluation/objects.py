"""Objects: whether regions are found as a whole, in int64 counts that add up over scenes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segkit.io.quantities import Quantity
from segkit.task.task import IGNORE, Task
from segkit.vector.tracing.pixel_measures import Squares, measure_runs
from segkit.vector.tracing.runs import Runs

_WORK_PIXELS = 2**20  # that are labelled at once
# Areas are compared in square centimetres, as whole numbers, so that their sums do not depend on the order.
_PER_SQUARE_METRE = 10_000

# Tables of int64, a column each. Of an object: its category, its pixels, its size in pixels or square centimetres.
_KIND, _PIXELS, _SIZE = range(3)
# Of a pair: the decided and the true object, and the pixels that they have in common.
_DECIDED, _TRUE, _COMMON = range(3)


class Objects:
    """Precision, recall and F1 of the objects of each class.

    Objects are regions of a class whose pixels are connected through their sides, as polygons are, of what was decided
    and of the truth, both only where the truth is known: at the edge of what is not, and of no data, an object ends.
    Background is no object. A decided and a true one match where their IoU is above one half, so that none has two
    partners (Kirillov et al. 2019, "Panoptic Segmentation").

    Rows come from top to bottom and may be cut anywhere. Memory holds some of them, the objects that reach into the
    last one or wait for a partner that does, and the pairs of these that overlap.

    Parameters
    ----------
    task
        Names planes and categories.
    size
        Smaller objects are not counted, but may be the partner of one that is.

    Attributes
    ----------
    counts
        int64 (scored categories, 4): decided objects, those of them that match; true objects, those of them that match.
    """

    def __init__(self, task: Task, size: Quantity) -> None:
        self._task, self.size = task, size
        self.counts: NDArray[np.int64] = np.zeros((len(task.scored), 4), dtype=np.int64)
        self._least = math.ceil(size.number) if size.pixels else round(size.number * _PER_SQUARE_METRE)
        self._planes: list[_Plane] = []
        self._top = 0

    def add(
        self,
        decided: NDArray[np.integer[Any]],
        truth: NDArray[np.integer[Any]],
        ground: Squares | None = None,
        *,
        end: bool,
    ) -> None:
        """Take the next rows of a scene.

        Parameters
        ----------
        decided, truth
            Category indices (P, H, W); `IGNORE` in the truth where it is not known.
        ground
            What the scene's pixels measure; needed where `size` is an area on the ground.
        end
            Whether these rows are the scene's last ones.
        """
        assert self.size.pixels or ground is not None
        ground = None if self.size.pixels else ground
        height, width = truth.shape[1:]
        if not self._planes:
            first = int(self._task.has_none)  # category 0 is in no class
            self._planes = [_Plane(width, first, self._least) for _ in range(self._task.planes)]
        rows = max(1, _WORK_PIXELS // width)
        for start in range(0, height, rows):
            part = slice(start, start + rows)
            for number, plane in enumerate(self._planes):
                true = truth[number, part]
                plane.take_in(np.where(true == IGNORE, IGNORE, decided[number, part]), true, ground, self._top + start)
                self._count(number, *plane.settled(end=end and start + rows >= height))
        self._top += height
        if end:
            self._planes, self._top = [], 0

    def _count(self, plane: int, *sides: tuple[NDArray[np.int64], NDArray[np.bool_]]) -> None:
        """Count decided and true objects of a plane: their table, and which of them match."""
        for column, (table, match) in zip((0, 2), sides, strict=True):
            large = table[_SIZE] >= self._least
            for more, which in enumerate((large, large & match)):
                found = np.bincount(table[_KIND, which], minlength=len(self._task.categories))
                for at, (_, own, category) in enumerate(self._task.scored):
                    if own == plane:
                        self.counts[at, column + more] += found[category]

    def per_class(self) -> dict[str, dict[str, float | int | None]]:
        """Return ``object_precision``, ``object_recall``, ``object_f1``, ``objects`` and ``objects_decided`` by name.

        Precision is the share of the decided objects that match, recall that of the true ones, F1 that of both
        together: where no object is too small to be counted, it is the harmonic mean. None where there is none, and
        for background.
        """
        found: dict[str, dict[str, float | int | None]] = {}
        for (name, _, category), counts in zip(self._task.scored, self.counts.tolist(), strict=True):
            decided, right, true, hit = counts
            scores: dict[str, float | int | None] = {
                "object_precision": right / decided if decided else None,
                "object_recall": hit / true if true else None,
                "object_f1": (right + hit) / (decided + true) if decided + true else None,
                "objects": true,
                "objects_decided": decided,
            }
            background = category < int(self._task.has_none)
            found[name] = dict.fromkeys(scores) if background else scores
        return found


class _Layer:
    """Objects of decided, or of true, categories, as far as they are not settled; and the last row."""

    def __init__(self, width: int, first: int, least: int) -> None:
        self._first, self._least = first, least
        self._row = np.full((1, width), IGNORE)
        self._label = np.full(1, -1)  # of the row's runs
        self.table = np.zeros((3, 0), dtype=np.int64)

    def take_in(self, rows: NDArray[np.integer[Any]], ground: Squares | None, top: int) -> _Taken:
        """Label rows (H, W), of which the first one has the number `top`."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        lines = np.concatenate([self._row.astype(rows.dtype), rows])
        new = np.ones(lines.shape, dtype=bool)
        np.not_equal(lines[:, 1:], lines[:, :-1], out=new[:, 1:])
        starts = np.flatnonzero(new)
        kind = lines.ravel()[starts].astype(np.int32)
        # The runs of the row before are known; the others that are of a class are numbered after what there is.
        above, had = self._label.size, self.table.shape[1]
        inside = np.flatnonzero(kind[above:] >= self._first)
        size = had + inside.size
        node = np.full(starts.size, -1)
        node[:above], node[above + inside] = self._label, np.arange(had, size)
        # Where a run starts in one of two rows, it lies beside the one that is there in the other.
        place = np.flatnonzero(new[:-1] | new[1:])
        upper = np.cumsum(new[:-1].ravel()[place]) - 1
        lower = np.cumsum(new[1:].ravel()[place]) - 1 + above
        same = (kind[upper] == kind[lower]) & (kind[upper] >= self._first)
        sides = np.ones(np.count_nonzero(same), dtype=bool)
        graph = coo_array((sides, (node[upper[same]], node[lower[same]])), shape=(size, size))
        many, part = connected_components(graph, directed=False)
        first = (starts[above:] % rows.shape[1]).astype(np.int32)
        counts = np.cumsum(np.count_nonzero(new[1:], axis=1))
        runs = Runs(top, np.append(0, counts), first, kind[above:], rows.shape[1])
        table = np.zeros((3, many), dtype=np.int64)
        table[_KIND, part] = np.append(self.table[_KIND], runs.kind[inside])
        pixels = runs.lengths()
        for row, values in ((_PIXELS, pixels), (_SIZE, pixels if ground is None else self._measured(runs, ground))):
            np.add.at(table[row], part, np.append(self.table[row], values[inside]))
        label = np.append(part, -1)[node]
        last = np.count_nonzero(new[-1])
        self._row, self._label, self.table = lines[-1:].copy(), label[-last:].copy(), table
        return _Taken(new[1:], runs.kind, label[above:], part[:had])

    def _measured(self, runs: Runs, ground: Squares) -> NDArray[np.int64]:
        area = measure_runs(ground, runs).area * _PER_SQUARE_METRE
        # What has no size is not small.
        return np.where(np.isnan(area), self._least, np.rint(np.nan_to_num(area)).astype(np.int64))

    @property
    def open(self) -> NDArray[np.bool_]:
        """Which objects reach into the last row."""
        found = np.zeros(self.table.shape[1], dtype=bool)
        found[self._label[self._label >= 0]] = True
        return found

    def keep(self, which: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Forget the other objects; return the new numbers of these."""
        number = np.where(which, np.cumsum(which) - 1, -1)
        self.table = self.table[:, which]
        self._label = np.append(number, -1)[self._label]
        return number


@dataclass(frozen=True)
class _Taken:
    """Rows of a layer: where a run starts (H, W), each one's category and object, and what objects became."""

    new: NDArray[np.bool_]
    kind: NDArray[np.int32]
    label: NDArray[np.int64]
    became: NDArray[np.int32]


class _Plane:
    """Both layers of a plane, and the pairs of their objects that overlap."""

    def __init__(self, width: int, first: int, least: int) -> None:
        self._layers = _Layer(width, first, least), _Layer(width, first, least)
        self._pairs = np.zeros((3, 0), dtype=np.int64)

    def take_in(
        self, decided: NDArray[np.integer[Any]], truth: NDArray[np.integer[Any]], ground: Squares | None, top: int
    ) -> None:
        """Label rows (H, W) and pair their objects."""
        said, true = (
            layer.take_in(rows, ground, top) for layer, rows in zip(self._layers, (decided, truth), strict=True)
        )
        place = np.flatnonzero(said.new | true.new)
        run, other = (np.cumsum(one.new.ravel()[place]) - 1 for one in (said, true))
        same = (said.kind[run] == true.kind[other]) & (said.label[run] >= 0)
        common = np.diff(place, append=truth.size)
        pairs = np.stack([said.label[run[same]], true.label[other[same]], common[same]])
        before = np.stack([said.became[self._pairs[_DECIDED]], true.became[self._pairs[_TRUE]], self._pairs[_COMMON]])
        one, other, common = np.concatenate([before, pairs], axis=1)
        many = self._layers[1].table.shape[1]
        keys, at = np.unique(one * many + other, return_inverse=True)
        self._pairs = np.zeros((3, keys.size), dtype=np.int64)
        if keys.size:
            self._pairs[_DECIDED], self._pairs[_TRUE] = np.divmod(keys, many)
        np.add.at(self._pairs[_COMMON], at, common)

    def settled(self, *, end: bool) -> list[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
        """Forget decided and true objects that cannot change any more; return their tables, and which of them match."""
        ends = self._pairs[_DECIDED], self._pairs[_TRUE]
        opened = [layer.open & (not end) for layer in self._layers]
        grows = [one[at] for one, at in zip(opened, ends, strict=True)]
        pixels = sum(layer.table[_PIXELS, at] for layer, at in zip(self._layers, ends, strict=True))
        common = self._pairs[_COMMON]
        matches = 3 * common > pixels  # IoU > 1/2; while one of both grows they wait
        waits = grows[0] & grows[1]
        for side, other in ((0, 1), (1, 0)):
            # An object that is done with may have a partner of which several parts are open and not joined yet. Its own
            # pixels must be fewer than 3 common - pixels of that partner, which is the sum of the same of its parts, so
            # at most that of all parts where it is above 0.
            pair = np.flatnonzero(~grows[side] & grows[other])
            own, more = ends[side][pair], 3 * common[pair] - self._layers[other].table[_PIXELS, ends[other][pair]]
            most = np.zeros(opened[side].size, dtype=np.int64)
            np.add.at(most, own, np.maximum(more, 0))
            waits[pair] = most[own] > self._layers[side].table[_PIXELS, own]
        found, numbers = [], []
        for layer, one, at in zip(self._layers, opened, ends, strict=True):
            match, stay = np.zeros(one.size, dtype=bool), one.copy()
            match[at[matches]] = True
            stay[at[waits]] = True
            found.append((layer.table[:, ~stay], match[~stay]))
            numbers.append(layer.keep(stay)[at[waits]])
        self._pairs = np.stack([*numbers, common[waits]])
        return found
