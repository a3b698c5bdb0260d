import json

import numpy as np
import pytest
import rasterio
from scipy import ndimage

from segkit.auditing.folds import open_folds
from segkit.errors import DataError, UsageError
from segkit.recipe.schema import Recipe
from segkit.training.cross_validation import cross_validate

BLOCKS = {"by": "block", "block": 24, "gap": 3}


def change(recipe, folder=None, **data):
    raw = recipe.to_dict()
    raw["data"] |= data
    return Recipe.from_dict(raw)


def open_all(recipe, folder, *, folds=3, learner="lda", run=None):
    return open_folds(
        recipe, folder, folds=folds, learner=learner, run=run, cache=None, overwrite=False, show_progress=False
    )


@pytest.mark.parametrize(("val", "unit"), [(BLOCKS, "block"), (None, "scene")])
def test_no_model_sees_a_label_that_it_predicts_or_its_gap(planted, tmp_path, monkeypatch, val, unit):
    """Every labelled pixel is predicted once; pixels that train keep the gap from those that are predicted."""
    seen = []
    monkeypatch.setattr("segkit.auditing.folds.fit_learners", lambda segmenter, areas, *_: seen.append(areas))
    folds = open_all(change(planted.recipe, val=val), tmp_path)
    assert folds.describe() == f"3 folds of {unit}s"
    predicted = {sample.scene.name: np.zeros(sample.scene.grid.shape, dtype=int) for sample in folds.samples}
    for prediction in folds.predictions(show_progress=False):
        tests = {name: np.zeros(mask.shape, dtype=bool) for name, mask in predicted.items()}
        for area in prediction.areas:
            tests[area.sample.scene.name] |= area.region.mask(area.sample.scene.grid.full_window)
        for area in seen[-1]:
            near = ndimage.binary_dilation(tests[area.sample.scene.name], np.ones((3, 3)), iterations=3)
            for window in area.windows:
                tile, targets = area.sample.scene.read(window), area.labels.read(window)
                area.mask(tile, targets, window)
                assert not (tile.valid & near[window.toslices()]).any()
        for name, mask in tests.items():
            predicted[name] += mask
    assert len(seen) == 3
    for mask in predicted.values():
        assert (mask == 1).all()


def test_scenes_of_data_val_are_predicted_by_a_model_of_all_training_scenes(planted, tmp_path, monkeypatch):
    monkeypatch.setattr("segkit.auditing.folds.fit_learners", lambda *_: None)
    images, labels = ([str(planted.folder / what / f"{name}.tif") for name in "abc"] for what in ("images", "labels"))
    others = [str(planted.folder / what / "d.tif") for what in ("images", "labels")]
    recipe = change(
        planted.recipe,
        train={"images": images, "labels": labels},
        val={"images": [others[0]], "labels": [others[1]]},
    )
    folds = open_all(recipe, tmp_path)
    *_, last = folds.predictions(show_progress=False)
    assert [area.sample.scene.name for area in last.areas] == ["d"]
    assert [area.sample.scene.name for area in last.examination.training] == ["a", "b", "c"]


def test_the_models_of_a_cross_validation_are_used_unless_labels_have_changed(planted, tmp_path, monkeypatch):
    raw = change(planted.recipe, val={"by": "scene"}).to_dict()
    raw["model"] = {"architecture": "lda"}
    recipe = Recipe.from_dict(raw)
    monkeypatch.setattr("segkit.training.results.draw_worst_windows", lambda *_, **__: None)
    run = cross_validate(recipe, tmp_path / "run", folds=2).folder
    folds = open_all(recipe, tmp_path, run=run)
    found = list(folds.predictions(show_progress=False))
    assert sorted(area.sample.scene.name for one in found for area in one.areas) == ["a", "b", "c", "d"]
    with pytest.raises(UsageError, match=r"another data\.ignore than the recipe has"):
        open_all(change(recipe, ignore=[255, 9]), tmp_path, run=run)
    with rasterio.open(planted.folder / "labels" / "a.tif", "r+") as file:
        before = file.read(1)
        file.write(np.where(before == 1, 2, before), 1)
    try:
        with pytest.raises(DataError, match="the labels have changed since this fold was trained"):
            list(open_all(recipe, tmp_path, run=run).predictions(show_progress=False))
    finally:
        with rasterio.open(planted.folder / "labels" / "a.tif", "r+") as file:
            file.write(before, 1)
    (run / "fold1of2" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="fold 1 of 2 is not finished"):
        open_all(recipe, tmp_path, run=run)


def test_a_classical_recipe_has_no_network(planted, tmp_path):
    raw = planted.recipe.to_dict() | {"model": {"architecture": "lda"}}
    with pytest.raises(UsageError, match="which is no network"):
        open_all(Recipe.from_dict(raw), tmp_path, learner="network")
    with pytest.raises(UsageError, match="is not a finished cross-validation: it has no folds"):
        open_all(planted.recipe, tmp_path, run=tmp_path / "none")


def test_networks_are_trained_in_folders_without_choosing_by_validation(planted, tmp_path, monkeypatch):
    plans, matrices = [], []

    def run_trial(plan, **_):
        plans.append(plan)
        plan.folder.mkdir(parents=True, exist_ok=True)
        (plan.folder / "metrics.json").write_text(json.dumps({"confusion": {"matrix": matrices}}))

    monkeypatch.setattr("segkit.auditing.folds.run_trial", run_trial)
    monkeypatch.setattr("segkit.auditing.folds.load", lambda path: None)
    monkeypatch.setattr("segkit.auditing.folds.ModelPredictor", lambda model: model)
    raw = planted.recipe.to_dict()
    raw["train"] |= {"checkpoint": "best", "calibrate": True}
    raw["data"]["val"] = BLOCKS
    list(open_all(Recipe.from_dict(raw), tmp_path, folds=2, learner="network").predictions(show_progress=False))
    assert [plan.folder for plan in plans] == [tmp_path / "fold0of2", tmp_path / "fold1of2"]
    for plan in plans:
        assert plan.recipe.train.checkpoint == "last"
        assert not plan.recipe.train.calibrate
        assert plan.recipe.model.architecture == "unet"
    matrices[:] = np.eye(4, dtype=int).tolist()  # of an earlier, interrupted audit of other labels
    with pytest.raises(DataError, match=r"fold0of2: the labels have changed since .* \(--overwrite\)"):
        list(open_all(Recipe.from_dict(raw), tmp_path, folds=2, learner="network").predictions(show_progress=False))
