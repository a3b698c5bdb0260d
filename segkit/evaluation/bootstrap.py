"""Resampling: how far scores would move with other scenes, or other parts of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.evaluation.metrics import Confusion
from segkit.task.task import Task

_FEW_SCENES = 10  # of fewer, blocks are drawn
_DRAWS = 1000
_BOUNDS = (2.5, 97.5)  # percentiles


class Resampling:
    """Counts by scene and by block, and bootstrap intervals over them (Efron and Tibshirani 1993, percentile method).

    Pixels of a scene are alike, so they are no sample: whole scenes are drawn with replacement, where there are at
    least ten, else blocks, which are too small to be independent and make the intervals somewhat too narrow.

    Parameters
    ----------
    task
        As for `segkit.evaluation.metrics.Confusion`.
    block
        Pixels along a side of a block.
    """

    def __init__(self, task: Task, block: int = 512) -> None:
        self._task, self.block = task, block
        self._counts: dict[tuple[int, int, int], NDArray[np.int64]] = {}

    def add(
        self, scene: int, window: Window, decided: NDArray[np.integer[Any]], truth: NDArray[np.integer[Any]]
    ) -> None:
        """Count a window of a scene: category indices (P, H, W), `IGNORE` in the truth where it is not known."""
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
        """Return 95 % intervals, as [low, high] or None where a score is undefined; None where there are too few units.

        ``unit`` is "scene" or "block", ``units`` how many were drawn from.
        """
        scenes = {scene for scene, _, _ in self._counts}
        by_scene = len(scenes) >= _FEW_SCENES
        units: dict[Any, NDArray[np.int64]] = {}
        for key, counts in self._counts.items():
            unit = key[0] if by_scene else key
            units[unit] = units.get(unit, 0) + counts
        if len(units) < 2:
            return None
        random = np.random.default_rng(seed)
        drawn = random.multinomial(len(units), np.full(len(units), 1 / len(units)), size=_DRAWS)
        stacked = np.stack(list(units.values()))
        counts = np.tensordot(drawn, stacked, axes=1)  # (draws, P, K, K)
        totals, classes = self._scores(counts)
        return {
            "unit": "scene" if by_scene else "block",
            "units": len(units),
            **{key: _interval(values) for key, values in totals.items()},
            "per_class": {
                name: {key: _interval(values) for key, values in scores.items()} for name, scores in classes.items()
            },
        }

    def _scores(
        self, counts: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, dict[str, NDArray[np.float64]]]]:
        """Return scores of many matrices (N, P, K, K) at once, in all and by class, NaN where they are undefined."""
        classes: dict[str, dict[str, NDArray[np.float64]]] = {}
        with np.errstate(invalid="ignore", divide="ignore"):
            right = np.trace(counts, axis1=2, axis2=3).sum(axis=1)
            totals = {"overall_accuracy": right / counts.sum(axis=(1, 2, 3))}
            for name, plane, category in self._task.scored:
                hit = counts[:, plane, category, category]
                called, support = counts[:, plane, :, category].sum(axis=1), counts[:, plane, category].sum(axis=1)
                there = np.where(support > 0, 1.0, np.nan)  # as in `Confusion.per_class`
                classes[name] = {
                    "iou": there * hit / (called + support - hit),
                    "f1": there * 2 * hit / (called + support),
                    "precision": hit / called,
                    "recall": hit / support,
                }
            for key, one in (("mean_iou", "iou"), ("macro_f1", "f1")):
                rows = np.stack([scores[one] for scores in classes.values()])
                defined = np.isfinite(rows)
                totals[key] = np.where(defined, rows, 0).sum(axis=0) / defined.sum(axis=0)
        return totals, classes


def _interval(values: NDArray[np.float64]) -> list[float] | None:
    defined = values[np.isfinite(values)]
    return np.percentile(defined, _BOUNDS).tolist() if len(defined) else None
