"""Boundaries: whether borders lie where they should, in int64 counts that add up over strips and scenes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segkit.io.distance import near
from segkit.task.task import IGNORE, Task


class Boundaries:
    """Boundary IoU and F1 of each scored category, within a width on the ground.

    The boundary band of a mask are its pixels whose centre is within the width of a pixel that is known not to be of
    it. Boundary IoU is the IoU of the decided and the true band (Cheng et al. 2021, "Boundary IoU", with a fixed
    width). The contour are the mask's pixels beside one that is known not to be of it; precision is the share of the
    decided contour within the width of the true one, recall the share of the true one within the width of the decided
    one. The edge of a scene, of no data and of what is not known is no boundary.

    Parameters
    ----------
    task
        Names planes and categories.
    metres
        The width.

    Attributes
    ----------
    counts
        int64 (scored categories, 6): pixels of both bands, of either; of the decided contour, of it near the true one;
        of the true contour, of it near the decided one.
    """

    def __init__(self, task: Task, metres: float) -> None:
        self._task, self.metres = task, metres
        self.counts: NDArray[np.int64] = np.zeros((len(task.scored), 6), dtype=np.int64)

    def halo(self, pixel: tuple[float, float]) -> tuple[int, int]:
        """Return how many columns and rows around a part decide about it, for pixels of so many metres."""
        return math.ceil(self.metres / pixel[0]) + 1, math.ceil(self.metres / pixel[1]) + 1

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
            Category indices (P, H, W) of the part with its halo; `IGNORE` in the truth where it is not known.
        pixel
            Metres of a pixel along a row and along a column.
        counted
            Rows and columns of the part itself.
        """
        for at, (_, plane, category) in enumerate(self._task.scored):
            known = truth[plane] != IGNORE
            said, true = (decided[plane] == category) & known, (truth[plane] == category) & known
            if not (said.any() or true.any()):
                continue
            bands = [near(known & ~mask, self.metres, pixel) & mask for mask in (said, true)]
            contours = [_contour(mask, known) for mask in (said, true)]
            around = [near(contour, self.metres, pixel) for contour in contours]
            found = (
                bands[0] & bands[1], bands[0] | bands[1],
                contours[0], contours[0] & around[1],
                contours[1], contours[1] & around[0],
            )  # fmt: skip
            self.counts[at] += [np.count_nonzero(each[counted]) for each in found]

    def merge(self, other: Boundaries) -> None:
        """Add what another one of the same task and width counted."""
        self.counts += other.counts

    def per_class(self) -> dict[str, dict[str, float | None]]:
        """Return ``boundary_iou`` and ``boundary_f1`` by name; None where there is no boundary."""
        found: dict[str, dict[str, float | None]] = {}
        for (name, _, _), (both, either, said, right, true, hit) in zip(
            self._task.scored, self.counts.tolist(), strict=True
        ):
            precision, recall = right / said if said else None, hit / true if true else None
            if precision is None and recall is None:
                score = None
            else:
                together = (precision or 0.0) + (recall or 0.0)
                score = 2 * (precision or 0.0) * (recall or 0.0) / together if together else 0.0
            found[name] = {"boundary_iou": both / either if either else None, "boundary_f1": score}
        return found


def _contour(mask: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask's pixels that have a side in common with one that is known not to be of it."""
    outside = known & ~mask
    beside = np.zeros_like(mask)
    beside[1:] |= outside[:-1]
    beside[:-1] |= outside[1:]
    beside[:, 1:] |= outside[:, :-1]
    beside[:, :-1] |= outside[:, 1:]
    return mask & beside
