"""Choose the split, the network and the length of a training for the data of a recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from segkit.data.drafting.label_draft import LabelDraft
from segkit.data.examination import Examination, examine
from segkit.data.pairing import Sample
from segkit.data.split import SceneCounts
from segkit.errors import SegkitError
from segkit.io.grid import Grid
from segkit.recipe.schema import Recipe

_SMALL_NETWORK = {
    "architecture": "unet", "encoder": "resnet18",
    "options": {"encoder_depth": 3, "decoder_channels": [64, 32, 16]},
}  # fmt: skip
_LARGE_NETWORK = {"architecture": "unet", "encoder": "resnet34"}
_BATCH = 8
_FEW_PIXELS, _MANY_PIXELS = 20_000, 10_000_000  # labelled training pixels
# Steps of the whole training that fewer labelled training pixels than this need.
_STEPS = ((_FEW_PIXELS, 600), (1_000_000, 800), (math.inf, 1_500))
_SPARSE_SHARE = 0.3  # labelled pixels: below it they are islands, and small tiles hold them
_MANY_BANDS = 20
_RARE_SHARE = 0.05
_POINT_PIXELS = 10  # points nearer than this are one group
_MIN_SCENES = 4  # whole scenes validate if there are as many


@dataclass(frozen=True)
class Plan:
    """Sections of a recipe, each key with the comment that explains it.

    Parameters
    ----------
    val, model, train
        {key: value} of data.val, model and train. `val` is None if no split leaves each class on both sides.
    why
        {section.key or section: comment}.
    examination
        Of the split.
    """

    val: dict[str, Any] | None
    model: dict[str, Any]
    train: dict[str, Any]
    why: Mapping[str, str]
    examination: Examination


def plan_training(
    raw: Mapping[str, Any], samples: Sequence[Sample], counts: Sequence[SceneCounts], draft: LabelDraft
) -> Plan:
    """Return a split that leaves each class on both sides, and a network and a training that fit the labels.

    Parameters
    ----------
    raw
        The recipe without val, model and train.
    samples, counts
        The labelled scenes, and their pixels.

    Raises
    ------
    SegkitError
        The data cannot be trained on.
    """
    grids = [sample.scene.grid for sample in samples]
    valid, labelled = sum(one.valid for one in counts), sum(one.labelled for one in counts)
    tile = _tile_size(grids, labelled / max(valid, 1))
    val, examination = _choose_split(raw, samples, draft, grids, tile)
    training = examination.statistics
    assert training is not None
    pixels = int(training.counts.sum(axis=-1).max())
    network, train, why = _choose_training(pixels, tile, len(samples[0].scene.bands), training.counts)
    if val is None:
        train["checkpoint"] = "last"
        why["val"] = "no split leaves training and validation pixels of every class, so all labels train"
    elif examination.validation_counts is not None and examination.validation_counts.sum() < _FEW_PIXELS:
        train["checkpoint"] = "last"
        why["train.checkpoint"] = "the best epoch of few validation pixels would be chance"
    return Plan(val, network, train, why, examination)


def with_split(
    raw: Mapping[str, Any], val: Mapping[str, Any] | None = None, train: Mapping[str, Any] = MappingProxyType({})
) -> Recipe:
    """Return the recipe with a split; by default all scenes train."""
    without = {"checkpoint": "last"} if val is None else {}
    return Recipe.from_dict({**raw, "data": {**raw["data"], "val": val}, "train": {**train, **without}})


def _tile_size(grids: Sequence[Grid], share: float) -> int:
    """Return the side of training tiles: 256, less for small scenes, 64 for sparse labels."""
    side = int(np.median([min(grid.shape) for grid in grids]))
    largest = 64 if share < _SPARSE_SHARE else 256
    return int(np.clip(side // 32 * 32, 32, largest))


def _choose_split(
    raw: Mapping[str, Any], samples: Sequence[Sample], draft: LabelDraft, grids: Sequence[Grid], tile: int
) -> tuple[dict[str, Any] | None, Examination]:
    """Return the first split without problems, and its examination."""
    failures: list[SegkitError] = []
    for val in _splits(raw, draft, grids, tile):
        try:
            found = examine(with_split(raw, val, {"tile_size": tile}), samples)
            found.require_trainable(force=False)
        except SegkitError as error:
            failures.append(error)
            continue
        if found.error is None:
            rule = found.recipe.data.val
            resolved = {key: value for key in ("block", "gap") if (value := getattr(rule, key, None)) is not None}
            return (None if val is None else val | resolved), found
    raise failures[-1]


def _splits(
    raw: Mapping[str, Any], draft: LabelDraft, grids: Sequence[Grid], tile: int
) -> Iterator[dict[str, Any] | None]:
    """Yield splits, the most independent one first; None last."""
    labels = raw["data"]["train"]["labels"]
    paths = labels.get("path")
    if draft.unit == "polygon" and isinstance(paths, str):
        layer = {"layer": labels["layer"]} if "layer" in labels else {}
        for seed in range(3):
            yield {"by": "polygon", "polygons": paths, **layer, "fraction": 0.25, "seed": seed}
    if draft.unit == "point" and all(grid.crs is not None for grid in grids):
        metres = _POINT_PIXELS * float(np.median([max(grid.pixel_metres()) for grid in grids]))
        yield {"by": "point", "distance": float(f"{metres:.2g}"), "fraction": 0.2}
    if len(grids) >= _MIN_SCENES:
        for seed in range(3):
            yield {"by": "scene", "fraction": 0.2, "seed": seed}
    block = max(512, 4 * tile)
    yield {"by": "block", "fraction": 0.2}
    while block >= 16:
        block //= 2
        yield {"by": "block", "fraction": 0.25, "block": block}
    yield None


def _choose_training(
    pixels: int, tile: int, bands: int, counts: Any
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Return the keys of model and train for a number of labelled training pixels, and comments."""
    why: dict[str, str] = {}
    model: dict[str, Any] = dict(_LARGE_NETWORK if pixels >= _MANY_PIXELS else _SMALL_NETWORK)
    why["model"] = (
        "a large network for many labelled pixels"
        if pixels >= _MANY_PIXELS
        else f"a small network, for {pixels:,} labelled training pixels"
    )
    if pixels < _MANY_PIXELS:
        why["model.architecture"] = "or a classical learner, in place of this section: model: {architecture: svm}"
    if pixels < _FEW_PIXELS or bands > _MANY_BANDS:
        model["pixel_branch"] = True
        why["model.pixel_branch"] = "averaged with a linear discriminant of single pixels, which helps with few labels"
    natural = math.ceil(pixels / (_BATCH * tile**2))
    epochs = 30 if pixels < _FEW_PIXELS else 40
    total = next(steps for most, steps in _STEPS if pixels < most)
    steps = max(natural, math.ceil(total / epochs))
    train: dict[str, Any] = {"tile_size": tile, "batch_size": _BATCH, "epochs": epochs}
    why["train.epochs"] = f"{epochs * steps:,} steps in all; fewer epochs for a first try"
    if steps > natural:
        train["steps_per_epoch"] = steps
        once = f"{natural} step{'s' * (natural != 1)}"
        why["train.steps_per_epoch"] = f"{once} would cover the labelled area once, too few to learn from"
    train |= {"learning_rate": 0.001, "augment": "default", "seed": 0}
    why["train.tile_size"] = "pixels; larger tiles see more around a pixel and need more memory"
    shares = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)
    if (shares[counts > 0] < _RARE_SHARE).any():
        train["class_balanced_sampling"] = 0.5
        why["train.class_balanced_sampling"] = "rare classes are shown more often"
    return model, train, why
