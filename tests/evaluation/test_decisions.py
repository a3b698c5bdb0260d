"""Predictions of labelled areas; test_evaluate.py compares them with passes over whole scenes."""

import copy

import numpy as np
import pytest
from synthetic import recipe_for, segmenter, write_pair

from segkit.data.areas import open_areas
from segkit.evaluation.decisions import ModelPredictor
from segkit.inference.settings import PredictOptions
from segkit.models import segmenter as segmenters
from segkit.models.calibration import Calibration


@pytest.fixture
def made(tmp_path):
    """A model and the areas of a scene."""
    write_pair(tmp_path, "multiclass", "a", height=64, width=96)
    recipe = recipe_for(tmp_path, "multiclass", data={"val": None}, train={"checkpoint": "last"})
    return segmenter(tmp_path, "multiclass"), open_areas(recipe)[0]


def probabilities(predictor, areas):
    return [part.probabilities for area in areas for part in predictor(area)]


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_a_calibrated_predictor_is_as_a_new_one_and_is_prepared_once(made, monkeypatch, precision):
    model, areas = made
    folds, fold = [], segmenters.fold_batch_norm
    monkeypatch.setattr(segmenters, "fold_batch_norm", lambda *given: folds.append(1) or fold(*given))
    options = PredictOptions(device="cpu", precision=precision)
    predictor = ModelPredictor(model, options)
    before = probabilities(predictor, areas)
    channels = model.task.channels
    predictor.calibrate(Calibration(scale=(0.5,) * channels, shift=tuple(np.linspace(-1, 1, channels).tolist())))
    after = probabilities(predictor, areas)
    assert len(folds) == 1
    expected = probabilities(ModelPredictor(copy.deepcopy(model), options), areas)
    for one, other, uncalibrated in zip(after, expected, before, strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.abs(one - uncalibrated).max() > 0.05


def test_no_calibration_changes_nothing(made):
    model, areas = made
    predictor = ModelPredictor(model, PredictOptions(device="cpu", precision="fp32"))
    before = predictor.prepare(areas[0])
    predictor.calibrate(None)
    assert model.calibration is None
    assert predictor.prepare(areas[0]) is before
