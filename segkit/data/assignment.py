"""Assign the units of a split (blocks, scenes or polygons) to training and validation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segkit.data.appearance import cut_end, cut_folds, order_by_appearance
from segkit.errors import DataError
from segkit.recipe.splits import SpatialSplit

_N_DRAWS = 200  # random splits; the one with the most even class shares is used


def choose_validation(
    counts: NDArray[np.float64],
    rule: SpatialSplit,
    *,
    by_value: NDArray[np.bool_] | None = None,
    features: NDArray[np.float64] | None = None,
) -> NDArray[np.intp]:
    """Return the indices of the units to validate on.

    Parameters
    ----------
    counts
        (units, T * K): labelled pixels of each category of each target.
    by_value
        Units that `rule.values` chooses, if it is given.
    features
        (units, 2 * bands): their appearance, if the rule splits by it; see `describe_appearance`.

    Raises
    ------
    DataError
        There are too few units with labelled pixels.
    """
    labelled = np.flatnonzero(counts.sum(axis=1))
    _require_enough_units(len(labelled), rule)
    if by_value is not None:
        if not (by_value & (counts.sum(axis=1) > 0)).any():
            raise DataError(
                f"{rule.polygons or 'the labels'}: no {rule.by} with {rule.field} {join_values(rule)} contains a "
                "labelled pixel; correct data.val.values"
            )
        return np.flatnonzero(by_value)
    number, folds = (0, 0) if rule.fold is None else map(int, rule.fold.split("/"))
    if features is not None:
        labelled = labelled[order_by_appearance(features[labelled])]
        ordered = counts[labelled]
        selected = cut_folds(ordered.sum(axis=1), folds) == number if folds else cut_end(ordered, rule.fraction)
    elif folds:
        selected = _assign_folds(counts[labelled], folds, rule.seed) == number
    else:
        selected = _draw_validation(counts[labelled], rule.fraction, rule.seed)
    chosen: NDArray[np.intp] = labelled[selected]
    return chosen


def join_values(rule: SpatialSplit) -> str:
    """Return the values of a rule as text: "a or b"."""
    return " or ".join(rule.values or ())


def _require_enough_units(units: int, rule: SpatialSplit) -> None:
    what = {
        "block": f"blocks of {rule.block} x {rule.block} pixels hold",
        "scene": "scenes (or groups of overlapping scenes) hold",
        "appearance": "scenes (or groups of overlapping scenes) hold",
        "polygon": f"polygons of {rule.polygons} hold",
        "point": f"groups of label points within {rule.distance or 0:g} m of each other hold",
    }[rule.by]
    needed = 2 if rule.fold is None else int(rule.fold.partition("/")[2])
    if rule.values is None and units < needed:
        smaller = {"block": "make data.val.block smaller", "point": "make data.val.distance smaller"}
        advice = smaller.get(rule.by, "set data.val.by: block")
        raise DataError(
            f"data.val: {units} {what} valid labelled pixels, a split needs {needed}; {advice}, or give data.val other "
            "images and labels"
        )


def _draw_validation(counts: NDArray[np.float64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Draw rows of `counts` (units, categories) that hold about `fraction` of every category."""
    random = np.random.default_rng(seed)
    pixels = counts.sum(axis=1) / counts.sum()
    best, lowest = np.zeros(len(counts), dtype=bool), (np.inf, np.inf)
    for _ in range(_N_DRAWS):
        order = random.permutation(len(counts))
        share = np.cumsum(pixels[order])
        number = min(max(1, int(np.argmin(np.abs(share - fraction))) + 1), len(counts) - 1)
        drawn = np.zeros(len(counts), dtype=bool)
        drawn[order[:number]] = True
        if (imbalance := _imbalance(counts, drawn, fraction)) < lowest:
            best, lowest = drawn, imbalance
    return best


def _assign_folds(counts: NDArray[np.float64], folds: int, seed: int) -> NDArray[np.intp]:
    """Assign each row of `counts` (units, categories) to one of n folds with about equal shares of every category."""
    random = np.random.default_rng(seed)
    pixels = counts.sum(axis=1)
    best, lowest = np.zeros(len(counts), dtype=np.intp), (np.inf, np.inf)
    for _ in range(_N_DRAWS):
        fold_of, fold_pixels = np.zeros(len(counts), dtype=np.intp), np.zeros(folds)
        order = random.permutation(len(counts))
        for turn, unit in enumerate(order):
            # First one unit for each fold; then always the fold with the fewest pixels.
            fold_of[unit] = turn if turn < folds else int(np.argmin(fold_pixels))
            fold_pixels[fold_of[unit]] += pixels[unit]
        each = np.array([_imbalance(counts, fold_of == fold, 1 / folds) for fold in range(folds)])
        if (imbalance := tuple(each.sum(axis=0))) < lowest:
            best, lowest = fold_of, imbalance
    return best


def _imbalance(counts: NDArray[np.float64], selected: NDArray[np.bool_], fraction: float) -> tuple[float, float]:
    """Return the number of categories on one side only, and the summed deviation of shares from a fraction."""
    total = counts.sum(axis=0)
    inside = counts[selected].sum(axis=0)
    present = total > 0
    one_sided = present & ((inside == 0) | (inside == total))
    return float(one_sided.sum()), float(np.abs(inside[present] / total[present] - fraction).sum())
