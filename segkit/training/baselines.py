"""Classical learners of single pixels: baselines without spatial context, which a network should beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segkit.data.area import LabelledArea
from segkit.errors import DataError
from segkit.evaluation.decisions import ModelPredictor
from segkit.inference.settings import PredictOptions
from segkit.models.segmenter import Segmenter
from segkit.recipe.schema import Model
from segkit.training.classical import fit_learners
from segkit.training.scoring import calibrate_and_score

LINEAR_DISCRIMINANT = "linear_discriminant"  # in metrics.json
BASELINE_SCORES = ("overall_accuracy", "mean_iou", "macro_f1")
_ARCHITECTURES = {LINEAR_DISCRIMINANT: "lda"}


def fit_baseline(segmenter: Segmenter, training: Sequence[LabelledArea], counts: NDArray[np.int64]) -> Segmenter:
    """Return a linear discriminant with the task, the bands and the normalisation of a segmenter.

    Parameters
    ----------
    training
        The training areas.
    counts
        int64 (T, K): labelled pixels of each category of each target.

    Raises
    ------
    DataError
        No training pixel has data in all bands.
    """
    recipe = segmenter.recipe.model_copy(update={"model": Model(architecture=_ARCHITECTURES[LINEAR_DISCRIMINANT])})
    mean, std = segmenter.mean.flatten().tolist(), segmenter.std.flatten().tolist()
    baseline = Segmenter(recipe, mean, std, segmenter.band_names).eval()
    fit_learners(baseline, training, counts, None)
    return baseline


def score_baselines(
    segmenter: Segmenter,
    training: Sequence[LabelledArea],
    validation: Sequence[LabelledArea],
    counts: NDArray[np.int64],
    device: str = "cpu",
) -> dict[str, dict[str, float | None]]:
    """Return {baseline: {score: value}} on the validation areas, for ``metrics.json``.

    A baseline is calibrated and scored like the segmenter: as a model with `model.architecture: lda`. Its scores are
    None if no training pixel has data in all bands.
    """
    try:
        baseline = fit_baseline(segmenter, training, counts)
    except DataError:
        return {LINEAR_DISCRIMINANT: dict.fromkeys(BASELINE_SCORES)}
    summary = calibrate_and_score(ModelPredictor(baseline, PredictOptions(device=device)), validation)
    return {LINEAR_DISCRIMINANT: {key: summary[key] for key in BASELINE_SCORES}}


def compare_with_baseline(segmenter: Segmenter) -> str | None:
    """Return a warning if the mean IoU of a model is not above that of the linear discriminant; None if it is."""
    metrics: Mapping[str, Any] = segmenter.metrics
    model = segmenter.recipe.model
    ours, theirs = metrics["mean_iou"], metrics["baselines"][LINEAR_DISCRIMINANT]["mean_iou"]
    if model.architecture == "lda" or ours is None or theirs is None or ours > theirs:
        return None
    what, advice = (
        "network",
        (
            "a network should be. Try more labels, more steps (train.epochs, train.steps_per_epoch) or fewer stages "
            "(model.options.encoder_depth)"
        ),
    )
    if model.is_classical:
        what, advice = model.architecture, "add labels, declare features (model.features), or use lda"
    return (
        f"on the validation areas the {what} (mean IoU {ours:.4f}) is not better than a linear discriminant of single "
        f"pixels ({theirs:.4f}); {advice}"
    )
