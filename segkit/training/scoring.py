"""Calibrate and score a fitted model on the validation areas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segkit.data.area import LabelledArea
from segkit.evaluation.decisions import ModelPredictor
from segkit.models.segmenter import Segmenter


def calibrate_and_score(
    predictor: ModelPredictor, validation: Sequence[LabelledArea], distances: Sequence[float | None] | None = None
) -> dict[str, Any]:
    """Fit calibration and thresholds of a model as its recipe says, and return its scores.

    Parameters
    ----------
    predictor
        Of a single model, which is changed.
    validation
        The validation areas; without any, nothing is fitted and the scores are undefined.
    distances
        Of each area: how far its scene is from the training scenes in appearance; None if unknown.
    """
    # Here, after the training, as it imports numba.
    from segkit.evaluation.evaluate import fit_calibration, fit_thresholds, score_areas

    segmenter = predictor.segmenter
    assert isinstance(segmenter, Segmenter)
    settings, scores_before = segmenter.recipe.train, {}
    if validation and settings.calibrate:
        calibration, uncalibrated = fit_calibration(predictor, validation)
        predictor.calibrate(calibration)
        summary = uncalibrated.summary()
        scores_before = {"ece_uncalibrated": summary["ece"], "mean_iou_uncalibrated": summary["mean_iou"]}
    if validation and settings.fit_thresholds:
        segmenter.set_thresholds(fit_thresholds(predictor, validation))
    return score_areas(predictor, validation, distances) | scores_before
