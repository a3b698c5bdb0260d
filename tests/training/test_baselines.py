import numpy as np
import pytest
import rasterio
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from synthetic import recipe_for, segmenter, write_pair, write_raster

from segkit.data.area import full_areas
from segkit.data.pairing import open_samples
from segkit.data.statistics import Statistics
from segkit.evaluation.decisions import ModelPredictor
from segkit.inference.settings import PredictOptions
from segkit.models.segmenter import Segmenter
from segkit.recipe.schema import Recipe
from segkit.training.baselines import BASELINE_SCORES, compare_with_baselines, fit_baseline, score_baselines
from segkit.training.classical import fit_learners
from segkit.training.scoring import calibrate_and_score


def opened(folder, kind, **changes):
    """A segmenter of a network, the areas of its data, and the label counts."""
    recipe = recipe_for(folder, kind, **changes)
    areas = full_areas(open_samples(recipe.data.train, recipe.data, recipe.task).samples)
    statistics = Statistics.from_areas(areas, recipe.task)
    return Segmenter(recipe, statistics.mean, statistics.std, ("r", "g", "b")), areas, statistics.counts


def test_probabilities_are_those_of_sklearn(tmp_path):
    write_pair(tmp_path, "multiclass", "a")
    with rasterio.open(tmp_path / "images" / "a.tif") as images:
        pixels = images.read().astype(np.float32)
    pixels += np.random.default_rng(0).normal(0, 60, pixels.shape)  # classes overlap
    write_raster(tmp_path / "images" / "a.tif", pixels.astype(np.float32))
    model, areas, counts = opened(tmp_path, "multiclass")
    found = fit_baseline(model, areas, counts)
    tile, targets = areas[0].sample.scene.read(), areas[0].labels.read(areas[0].windows[0])
    areas[0].mask(tile, targets, areas[0].windows[0])
    labelled = targets[0] >= 0
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    oracle.fit(tile.pixels[:, labelled].T.astype(np.float64), targets[0, labelled])
    expected = oracle.predict_proba(tile.pixels[:, labelled].T.astype(np.float64))
    with torch.inference_mode():
        logits = found(torch.from_numpy(tile.pixels)[None], torch.from_numpy(tile.valid)[None])
    probabilities = found.task.probabilities(logits)[0].numpy()[:, labelled].T
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert 0.6 < (expected.argmax(axis=1) == targets[0, labelled]).mean() < 0.98


def test_a_baseline_has_no_weights_of_classes_and_no_features(tmp_path):
    """It is always the same, so that runs can be compared."""
    write_pair(tmp_path, "multiclass", "a")
    plain, areas, counts = opened(tmp_path, "multiclass")
    expected = score_baselines(plain, areas, areas, counts)
    changes = {"model": {"features": {"texture": [3]}}, "train": {"class_weights": {"water": 50.0}}}
    recipe = recipe_for(tmp_path, "multiclass", train=changes["train"])
    model = recipe.model.model_validate({"architecture": "lda", **changes["model"]})
    weighted = Segmenter(recipe.model_copy(update={"model": model}), [500.0] * 3, [50.0] * 3, ("r", "g", "b"))
    found = score_baselines(weighted, areas, areas, counts)["lda"]
    assert found == pytest.approx(expected["lda"], abs=1e-3)


def test_without_a_pixel_of_complete_bands_there_is_no_score(tmp_path, monkeypatch):
    write_pair(tmp_path, "binary", "a")
    model, areas, counts = opened(tmp_path, "binary")
    monkeypatch.setattr("segkit.training.discriminant.read_labelled_pixels", lambda *_: iter(()))
    found = score_baselines(model, areas, areas, counts)["lda"]
    assert set(found.values()) == {None}


@pytest.mark.parametrize(("ours", "theirs", "warned"), [(0.5, 0.5, True), (0.6, 0.5, False), (0.5, None, False)])
@pytest.mark.parametrize("architecture", ["unet", "forest", "lda"])
def test_what_is_not_better_is_warned_of(tmp_path, ours, theirs, warned, architecture):
    model = segmenter(tmp_path)
    if architecture != "unet":
        kind = model.recipe.model.model_validate({"architecture": architecture})
        model.recipe = model.recipe.model_copy(update={"model": kind})
    model.metrics = {"mean_iou": ours, "baselines": {"lda": {"mean_iou": theirs}}}
    found = compare_with_baselines(model)
    assert (found is not None) == (warned and architecture != "lda")
    if found:
        assert ("network" in found) == (architecture == "unet")


def test_the_best_baseline_is_named(tmp_path):
    model = segmenter(tmp_path)
    scores = {"forest": {"mean_iou": 0.7}, "boosting": {"mean_iou": None}, "linear_discriminant": {"mean_iou": 0.6}}
    model.metrics = {"mean_iou": 0.65, "baselines": scores}
    assert "not better than the random forest of single pixels (0.7000)" in compare_with_baselines(model)
    forest = model.recipe.model.model_validate({"architecture": "forest"})
    model.recipe = model.recipe.model_copy(update={"model": forest})
    assert compare_with_baselines(model) is None
    model.metrics["mean_iou"] = 0.55
    assert "the linear discriminant of single pixels (0.6000); add labels" in compare_with_baselines(model)
    model.metrics["baselines"] = {}
    assert compare_with_baselines(model) is None


def test_every_baseline_of_the_recipe_is_scored_as_a_model_of_its_own(tmp_path):
    write_pair(tmp_path, "multiclass", "a")
    model, areas, counts = opened(tmp_path, "multiclass", train={"baselines": ["svm", "boosting"]})
    found = score_baselines(model, areas, areas, counts)
    assert list(found) == ["svm", "boosting"]
    for learner, scores in found.items():
        raw = model.recipe.to_dict() | {"model": {"architecture": learner}}
        alone = Segmenter(
            Recipe.from_dict(raw), model.mean.flatten().tolist(), model.std.flatten().tolist(), model.band_names
        ).eval()
        fit_learners(alone, areas, counts, None)
        expected = calibrate_and_score(ModelPredictor(alone, PredictOptions(device="cpu")), areas)
        assert scores == {key: expected[key] for key in BASELINE_SCORES}
        assert scores["mean_iou"] > 0.9


def test_a_learner_that_cannot_be_fitted_has_no_scores(tmp_path):
    write_pair(tmp_path, "binary", "a")
    with rasterio.open(tmp_path / "labels" / "a.tif") as labels:
        codes = labels.read()
    write_raster(tmp_path / "labels" / "a.tif", np.full_like(codes, 7))
    model, areas, counts = opened(tmp_path, "binary", train={"baselines": ["forest"]})
    assert score_baselines(model, areas, areas, counts) == {"forest": dict.fromkeys(BASELINE_SCORES)}
