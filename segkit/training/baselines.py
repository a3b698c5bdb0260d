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
from segkit.models.run_folder import baseline_scores
from segkit.models.segmenter import Segmenter
from segkit.recipe.features import full_name
from segkit.recipe.schema import Model
from segkit.training.classical import fit_learners
from segkit.training.scoring import calibrate_and_score

BASELINE_SCORES = ("overall_accuracy", "mean_iou", "macro_f1")


def fit_baseline(
    segmenter: Segmenter, training: Sequence[LabelledArea], counts: NDArray[np.int64], learner: str = "lda"
) -> Segmenter:
    """Return a learner of single pixels with the task, the bands and the normalisation of a segmenter.

    It has the default options, no features but the bands, and no class weights.

    Parameters
    ----------
    training
        The training areas.
    counts
        int64 (T, K): labelled pixels of each category of each target.
    learner
        A `model.architecture`.

    Raises
    ------
    DataError
        No training pixel has data in all bands, or a learner other than lda finds one category only.
    """
    baseline = _make_baseline(segmenter, learner)
    fit_learners(baseline, training, counts, None)
    return baseline


def fit_pixel_branch(segmenter: Segmenter, training: Sequence[LabelledArea], counts: NDArray[np.int64]) -> None:
    """Fit the pixel branch of a segmenter, if it has one (``model.pixel_branch``); parameters as for `fit_baseline`."""
    if segmenter.pixel_branch is not None:
        segmenter.pixel_branch = fit_baseline(segmenter, training, counts).network


def _make_baseline(segmenter: Segmenter, learner: str) -> Segmenter:
    recipe = segmenter.recipe.model_copy(update={"model": Model(architecture=learner)})
    mean, std = segmenter.mean.flatten().tolist(), segmenter.std.flatten().tolist()
    return Segmenter(recipe, mean, std, segmenter.band_names).eval()


def score_baselines(
    segmenter: Segmenter,
    training: Sequence[LabelledArea],
    validation: Sequence[LabelledArea],
    counts: NDArray[np.int64],
    device: str = "cpu",
) -> dict[str, dict[str, float | None]]:
    """Return {learner: {score: value}} of `train.baselines` on the validation areas, for ``metrics.json``.

    A baseline is calibrated and scored like the segmenter: as a model with this `model.architecture`. Its scores are
    None if it cannot be fitted to the training areas. The segmenter's pixel branch is not fitted again.
    """
    scores: dict[str, dict[str, float | None]] = {}
    for learner in segmenter.recipe.train.baselines:
        try:
            if learner == "lda" and segmenter.pixel_branch is not None:
                baseline = _make_baseline(segmenter, learner)
                baseline.network = segmenter.pixel_branch
            else:
                baseline = fit_baseline(segmenter, training, counts, learner)
        except DataError:
            scores[learner] = dict.fromkeys(BASELINE_SCORES)
            continue
        summary = calibrate_and_score(ModelPredictor(baseline, PredictOptions(device=device)), validation)
        scores[learner] = {key: summary[key] for key in BASELINE_SCORES}
    return scores


def compare_with_baselines(segmenter: Segmenter) -> str | None:
    """Return a warning if the mean IoU of a model is not above that of the best baseline; None if it is.

    A classical learner is not compared with the baseline of its own name.
    """
    metrics: Mapping[str, Any] = segmenter.metrics
    model, ours = segmenter.recipe.model, metrics["mean_iou"]
    others = {
        learner: scores["mean_iou"]
        for learner, scores in baseline_scores(metrics).items()
        if learner != model.architecture and scores["mean_iou"] is not None
    }
    best = max(others, key=lambda learner: others[learner], default=None)
    if best is None or ours is None or ours > others[best]:
        return None
    what, advice = (
        "network",
        (
            "a network should be. Try more labels, more steps (train.epochs, train.steps_per_epoch), fewer stages "
            "(model.options.encoder_depth), or a classical learner (model={architecture: svm})"
        ),
    )
    if model.is_classical:
        what, advice = model.architecture, f"add labels, declare features (model.features), or use {best}"
    return (
        f"on the validation areas the {what} (mean IoU {ours:.4f}) is not better than the {full_name(best)} of single "
        f"pixels ({others[best]:.4f}); {advice}"
    )
