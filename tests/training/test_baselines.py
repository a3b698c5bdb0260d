import numpy as np
import pytest
import rasterio
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from synthetic import recipe_for, segmenter, write_pair, write_raster

from segkit.data.area import full_areas
from segkit.data.pairing import open_samples
from segkit.data.statistics import Statistics
from segkit.models.segmenter import Segmenter
from segkit.training.baselines import compare_with_baseline, fit_baseline, score_baselines


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
    found = score_baselines(weighted, areas, areas, counts)["linear_discriminant"]
    assert found == pytest.approx(expected["linear_discriminant"], abs=1e-3)


def test_without_a_pixel_of_complete_bands_there_is_no_score(tmp_path, monkeypatch):
    write_pair(tmp_path, "binary", "a")
    model, areas, counts = opened(tmp_path, "binary")
    monkeypatch.setattr("segkit.training.discriminant.read_labelled_pixels", lambda *_: iter(()))
    found = score_baselines(model, areas, areas, counts)["linear_discriminant"]
    assert set(found.values()) == {None}


@pytest.mark.parametrize(("ours", "theirs", "warned"), [(0.5, 0.5, True), (0.6, 0.5, False), (0.5, None, False)])
@pytest.mark.parametrize("architecture", ["unet", "forest", "lda"])
def test_what_is_not_better_is_warned_of(tmp_path, ours, theirs, warned, architecture):
    model = segmenter(tmp_path)
    if architecture != "unet":
        kind = model.recipe.model.model_validate({"architecture": architecture})
        model.recipe = model.recipe.model_copy(update={"model": kind})
    model.metrics = {"mean_iou": ours, "baselines": {"linear_discriminant": {"mean_iou": theirs}}}
    found = compare_with_baseline(model)
    assert (found is not None) == (warned and architecture != "lda")
    if found:
        assert ("network" in found) == (architecture == "unet")
