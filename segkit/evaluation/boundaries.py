"""Boundary IoU and F1, from int64 counts that are summed over strips and scenes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segkit.evaluation.metrics import float_or_none, precision_recall_f1, ratio
from segkit.io.distance import within_distance
from segkit.task import IGNORE, Task


class Boundaries:
    """Boundary IoU and F1 of each scored category, for a boundary width.

    The boundary band of a mask is all its pixels within the width of a labelled pixel outside the mask. Boundary IoU is
    the IoU of the predicted and the true band (Cheng et al. 2021, "Boundary IoU", with a fixed width). The contour is
    all pixels of the mask that share a side with a labelled pixel outside it. Precision is the share of the predicted
    contour within the width of the true one, recall the share of the true contour within the width of the predicted
    one, and F1 their harmonic mean. Edges of the scene, of no data and of unlabelled areas are not boundaries.

    Parameters
    ----------
    task
        Defines targets and categories.
    width
        Boundary width, in the unit of the pixel size that `add` gets: metres or pixels.

    Attributes
    ----------
    counts
        int64 (scored categories, 6), in pixels: intersection and union of the bands; predicted contour, its part near
        the true one; true contour, its part near the predicted one.
    """

    def __init__(self, task: Task, width: float) -> None:
        self._task, self.width = task, width
        self.counts: NDArray[np.int64] = np.zeros((len(task.scored_categories), 6), dtype=np.int64)

    def halo(self, pixel: tuple[float, float]) -> tuple[int, int]:
        """Return the margin (columns, rows) around a part of a scene that its counts depend on.

        Parameters
        ----------
        pixel
            Width and height of a pixel, in the unit of `width`.
        """
        return math.ceil(self.width / pixel[0]) + 1, math.ceil(self.width / pixel[1]) + 1

    def add(
        self,
        decided: NDArray[np.integer[Any]],
        truth: NDArray[np.integer[Any]],
        pixel: tuple[float, float],
        counted: tuple[slice, slice] = (slice(None), slice(None)),
    ) -> None:
        """Count a part of a scene.

        Parameters
        ----------
        decided, truth
            Category indices (T, H, W) of the part with its halo; `IGNORE` in the truth where unlabelled.
        pixel
            Width and height of a pixel, in the unit of `width`.
        counted
            Rows and columns of the part itself.
        """
        for index, (_, target, category) in enumerate(self._task.scored_categories):
            labelled = truth[target] != IGNORE
            predicted, true = (decided[target] == category) & labelled, (truth[target] == category) & labelled
            if not (predicted.any() or true.any()):
                continue
            bands = [within_distance(labelled & ~mask, self.width, pixel) & mask for mask in (predicted, true)]
            contours = [_contour(mask, labelled) for mask in (predicted, true)]
            near = [within_distance(contour, self.width, pixel) for contour in contours]
            masks = (
                bands[0] & bands[1], bands[0] | bands[1],
                contours[0], contours[0] & near[1],
                contours[1], contours[1] & near[0],
            )  # fmt: skip
            self.counts[index] += [np.count_nonzero(mask[counted]) for mask in masks]

    def merge(self, other: Boundaries) -> None:
        """Add the counts of another instance with the same task and width."""
        self.counts += other.counts

    def per_class(self) -> dict[str, dict[str, float | None]]:
        """Return ``boundary_iou`` and ``boundary_f1`` by class name; None if the truth has no boundary of the class."""
        both, either, predicted, matched_predicted, true, matched_true = self.counts.T
        scores = precision_recall_f1(matched_predicted, predicted, matched_true, true)
        precision, recall = np.nan_to_num(scores["precision"]), np.nan_to_num(scores["recall"])
        # The harmonic mean, because both contours do not match the same number of pixels. 0 if nothing matches.
        f1 = np.where(true > 0, np.nan_to_num(ratio(2 * precision * recall, precision + recall)), np.nan)
        iou = np.where(true > 0, ratio(both, either), np.nan)
        return {
            name: {"boundary_iou": float_or_none(overlap), "boundary_f1": float_or_none(score)}
            for (name, _, _), overlap, score in zip(self._task.scored_categories, iou, f1, strict=True)
        }


def _contour(mask: NDArray[np.bool_], labelled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask's pixels that share a side with a labelled pixel outside the mask."""
    outside = labelled & ~mask
    adjacent = np.zeros_like(mask)
    adjacent[1:] |= outside[:-1]
    adjacent[:-1] |= outside[1:]
    adjacent[:, 1:] |= outside[:, :-1]
    adjacent[:, :-1] |= outside[:, 1:]
    return mask & adjacent
