"""Bootstrap intervals: how much scores would vary with other scenes, or with other parts of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.evaluation.metrics import Confusion, category_counts, class_scores, ratio
from segkit.task import Task

_MIN_SCENES = 10  # with fewer, blocks are resampled
_N_RESAMPLES = 1000
_PERCENTILES = (2.5, 97.5)


class BootstrapIntervals:
    """Confusion matrices by scene and by block, and bootstrap intervals (Efron and Tibshirani 1993, percentile method).

    Pixels of a scene are not independent. With ten scenes or more, whole scenes are drawn with replacement; otherwise
    blocks, which are still dependent, so their intervals are somewhat too narrow.

    `scipy.stats.bootstrap` is not used: it would gather the matrices of every resample, where one product of weights
    and matrices does, and it gives NaN for a score that is undefined in a single resample.

    Parameters
    ----------
    task
        As for `segkit.evaluation.metrics.Confusion`.
    block
        Side of a block in pixels.
    """

    def __init__(self, task: Task, block: int = 512) -> None:
        self._task, self.block = task, block
        self._counts: dict[tuple[int, int, int], NDArray[np.int64]] = {}

    def add(
        self, scene: int, window: Window, decided: NDArray[np.integer[Any]], truth: NDArray[np.integer[Any]]
    ) -> None:
        """Count a window of a scene: category indices (T, H, W), `IGNORE` in the truth where unlabelled."""
        top, left = int(window.row_off), int(window.col_off)
        bottom, right = top + truth.shape[1], left + truth.shape[2]
        for row in range(top // self.block, -(-bottom // self.block)):
            for column in range(left // self.block, -(-right // self.block)):
                rows = slice(max(row * self.block - top, 0), (row + 1) * self.block - top)
                columns = slice(max(column * self.block - left, 0), (column + 1) * self.block - left)
                part = Confusion(self._task)
                part.add(decided[:, rows, columns], truth[:, rows, columns])
                if part.counts.any():
                    key = scene, row, column
                    self._counts[key] = self._counts.get(key, 0) + part.counts

    def intervals(self, seed: int = 0) -> dict[str, Any] | None:
        """Return 95 % intervals of the scores; None if there are fewer than two units.

        An interval is [low, high], or None if the score is undefined. ``unit`` is "scene" or "block", ``units`` the
        number of units.
        """
        scenes = {scene for scene, _, _ in self._counts}
        by_scene = len(scenes) >= _MIN_SCENES
        units: dict[Any, NDArray[np.int64]] = {}
        for key, counts in self._counts.items():
            unit = key[0] if by_scene else key
            units[unit] = units.get(unit, 0) + counts
        if len(units) < 2:
            return None
        found = score_intervals(self._task, np.stack(list(units.values())), seed)
        return {"unit": "scene" if by_scene else "block", "units": len(units), **found}


def score_intervals(task: Task, counts: NDArray[np.int64], seed: int = 0) -> dict[str, Any]:
    """Return 95 % intervals of the scores of all units together, and ``per_class``; None where a score is undefined.

    Parameters
    ----------
    task
        The task of the units.
    counts
        int64 (units, T, K, K): the confusion matrices of units, which are drawn with replacement.
    seed
        Of the draw.
    """
    units = len(counts)
    random = np.random.default_rng(seed)
    times_drawn = random.multinomial(units, np.full(units, 1 / units), size=_N_RESAMPLES)
    totals, classes = _scores(task, np.tensordot(times_drawn, counts, axes=1))  # (resamples, T, K, K)
    return {
        **{key: _interval(values) for key, values in totals.items()},
        "per_class": {
            name: {key: _interval(values) for key, values in scores.items()} for name, scores in classes.items()
        },
    }


def _scores(
    task: Task, counts: NDArray[np.int64]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, dict[str, NDArray[np.float64]]]]:
    """Return overall scores and scores by class of matrices (N, T, K, K): arrays (N,), NaN where undefined."""
    correct = np.trace(counts, axis1=2, axis2=3).sum(axis=1)
    totals = {"overall_accuracy": ratio(correct, counts.sum(axis=(1, 2, 3)))}
    classes = {name: class_scores(*pixels) for name, pixels in category_counts(task, counts)}
    for mean_key, key in (("mean_iou", "iou"), ("macro_f1", "f1")):
        values = np.stack([scores[key] for scores in classes.values()])
        totals[mean_key] = ratio(np.nansum(values, axis=0), np.isfinite(values).sum(axis=0))
    return totals, classes


def _interval(values: NDArray[np.float64]) -> list[float] | None:
    defined = values[np.isfinite(values)]
    return np.percentile(defined, _PERCENTILES).tolist() if len(defined) else None
