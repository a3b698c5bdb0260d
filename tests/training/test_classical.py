import json
import sys

import numpy as np
import pytest
import rasterio
import torch
from safetensors.torch import load_file, save_file
from synthetic import recipe_for, write_pair, write_pairs, write_raster

from segkit.data.areas import open_areas
from segkit.errors import DataError, ModelFileError, RecipeError, UsageError
from segkit.evaluation.evaluate import evaluate
from segkit.inference.predict import predict
from segkit.models.segmenter import load
from segkit.recipe.schema import CLASSICAL, Recipe
from segkit.reporting.sections import _training_section
from segkit.training.compare import compare
from segkit.training.cross_validation import cross_validate
from segkit.training.train import train

SMALL = {"forest": {"n_estimators": 10}, "boosting": {"max_iter": 5}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory)


def classical(folder, kind="binary", architecture="forest", *, train=(), **model):
    options = SMALL.get(architecture, {}) | model.pop("options", {})
    raw = recipe_for(folder, kind).to_dict()
    raw["train"] = {"tile_size": 32, "device": "cpu"} | dict(train)
    raw["model"] = {"architecture": architecture, "options": options, **model}
    return Recipe.from_dict(raw)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("lda", "binary"), ("svm", "multiclass"), ("forest", "multilabel"), ("boosting", "multiclass")],
)
def test_a_learner_is_trained_saved_and_predicts_like_a_network(data, tmp_path, architecture, kind):
    features = {"texture": [3], "indices": [[1, 2]]}
    run = train(classical(data[kind], kind, architecture, features=features), tmp_path / "run")
    assert run.metrics["mean_iou"] > 0.9
    assert {path.name for path in run.folder.iterdir()} == {"model.safetensors", "metrics.json", "recipe.yaml"}
    assert json.loads((run.folder / "metrics.json").read_text()) == run.metrics
    assert Recipe.load(run.folder / "recipe.yaml").model.architecture == architecture
    scene = data[kind] / "images" / "a.tif"
    maps = []
    for name, settings in (("whole", {}), ("tiles", {"tile": 24})):
        probabilities = tmp_path / f"{name}-p.tif"
        predict(run.model, scene, tmp_path / f"{name}.tif", probabilities=probabilities, device="cpu", **settings)
        with rasterio.open(tmp_path / f"{name}.tif") as map_, rasterio.open(probabilities) as file:
            maps.append((map_.read(), file.read()))
    np.testing.assert_array_equal(maps[0][0], maps[1][0])
    assert np.abs(maps[0][1].astype(int) - maps[1][1]).max() <= 1
    again = load(run.model)
    assert again.fingerprint() == load(run.model).fingerprint()
    again.save(tmp_path / "again.safetensors")
    scores = [
        evaluate(model, scene, data[kind] / "labels" / "a.tif", device="cpu")
        for model in (run.model, tmp_path / "again.safetensors")
    ]
    assert scores[0] == scores[1]
    assert scores[0]["mean_iou"] > 0.9


def test_texture_tells_classes_apart_that_single_pixels_do_not(tmp_path):
    write_pair(tmp_path, "binary", "a", height=128, width=128)
    with rasterio.open(tmp_path / "labels" / "a.tif") as labels:
        rough = labels.read(1) == 7
    random = np.random.default_rng(0)
    pixels = 500 + random.normal(0, 1, (3, 128, 128)) * np.where(rough, 60, 20) * random.choice([-1, 1], (3, 128, 128))
    write_raster(tmp_path / "images" / "a.tif", pixels.astype(np.float32))
    plain, texture = (
        train(classical(tmp_path, architecture="lda", **model), tmp_path / name)
        for name, model in (("pixels", {}), ("texture", {"features": {"texture": [5]}}))
    )
    assert plain.metrics["mean_iou"] < 0.6
    assert texture.metrics["mean_iou"] > 0.8
    # Tiles overlap by as much as the texture needs, and no more: the map is that of one window, to the last bit.
    maps = []
    for tile in (None, 20, 33):
        predict(texture.model, tmp_path / "images" / "a.tif", tmp_path / f"{tile}.tif", tile=tile, device="cpu")
        with rasterio.open(tmp_path / f"{tile}.tif") as map_:
            maps.append(map_.read())
    assert 0.2 < (maps[0] == 7).mean() < 0.8
    np.testing.assert_array_equal(maps[1], maps[0])
    np.testing.assert_array_equal(maps[2], maps[0])


@pytest.mark.parametrize("architecture", CLASSICAL)
def test_a_sigmoid_head_has_the_same_probabilities(data, tmp_path, architecture):
    """Log odds, where softmax has log probabilities."""
    models = []
    for head in ("softmax", "sigmoid"):
        recipe = classical(data["multiclass"], "multiclass", architecture, train={"calibrate": False})
        recipe = Recipe.from_dict(recipe.to_dict() | {"task": recipe.to_dict()["task"] | {"head": head}})
        models.append(load(train(recipe, tmp_path / head).model))
    tile = torch.randn(1, 3, 8, 8) * 60 + 550, torch.ones(1, 8, 8, dtype=torch.bool)
    softmax, sigmoid = (model.task.probabilities(model(*tile)) for model in models)
    torch.testing.assert_close(softmax[:, 1:], sigmoid, atol=1e-5, rtol=0)


def test_a_file_that_was_changed_is_refused(data, tmp_path):
    run = train(classical(data["binary"]), tmp_path / "run")
    with run.model.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    arrays = load_file(run.model)
    arrays["network.targets.0.below"][0] = 0  # an endless walk
    save_file(arrays, tmp_path / "changed.safetensors", header)
    with pytest.raises(ModelFileError, match="its weights do not fit its recipe"):
        load(tmp_path / "changed.safetensors")
    arrays["network.targets.0.threshold"][0] = torch.inf
    save_file(arrays, tmp_path / "changed.safetensors", header)
    with pytest.raises(ModelFileError, match="not finite"):
        load(tmp_path / "changed.safetensors")


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("forest", {"trees": 5}, "model.options.trees: forest has no such option; it has .*n_estimators"),
        ("forest", {"n_jobs": 5}, "model.options.n_jobs: forest has no such option"),
        ("lda", {"shrinkage": 1}, "model.options.shrinkage: lda has no such option; it has max_pixels"),
        ("svm", {"max_pixels": 0}, "model.options.max_pixels: found 0"),
        ("svm", {"C": "much"}, "model.options: svm cannot be fitted: .*'C'"),
        ("forest", {"n_estimators": -1}, "model.options: forest cannot be fitted: .*'n_estimators'"),
    ],
)
def test_options_that_do_not_exist_are_refused(data, tmp_path, architecture, options, message):
    with pytest.raises(RecipeError, match=message):
        train(classical(data["binary"], architecture=architecture, options=options), tmp_path / "run")


def test_what_cannot_be_done_is_said(data, tmp_path):
    recipe = classical(data["binary"])
    with pytest.raises(UsageError, match="forest is fitted in one go, so there is no epoch to resume"):
        train(recipe, tmp_path / "run", resume=True)
    with pytest.raises(RecipeError, match=r"forest is fitted by one process; remove train.devices"):
        train(classical(data["binary"], train={"devices": 2}), tmp_path / "run")
    run = train(recipe, tmp_path / "run")
    with pytest.raises(UsageError, match="bf16 was asked for, but classical learners compute in fp32"):
        predict(run.model, data["binary"] / "images" / "a.tif", tmp_path / "map.tif", precision="bf16")


def test_a_class_without_others_is_named(data, tmp_path):
    write_pair(tmp_path, "multilabel", "a")
    with rasterio.open(tmp_path / "labels" / "a.tif") as labels:
        codes = labels.read()
    codes[1] = np.where(codes[1] == 255, 255, 1)
    write_raster(tmp_path / "labels" / "a.tif", codes)
    with pytest.raises(DataError, match="forest cannot be fitted for class forest: all training pixels are present"):
        train(classical(tmp_path, "multilabel"), tmp_path / "run", force=True)


def test_the_command_says_what_it_used_and_what_has_no_effect(data, tmp_path, capsys):
    recipe = classical(data["binary"], train={"epochs": 3, "augment": "none"}, options={"max_pixels": 1000})
    train(recipe, tmp_path / "run", show_progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert "forest is fitted in one go, without effect of train.epochs, train.augment" in lines
    assert any(line.startswith("forest: fitted to ") and "a sample of the" in line for line in lines)


def test_a_stale_log_of_a_network_is_removed(data, tmp_path):
    for name in ("log.csv", "curves.png"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("old")
    (tmp_path / "run" / "recipe.yaml").write_text("name: old")
    train(classical(data["binary"]), tmp_path / "run", overwrite=True)
    assert not {"log.csv", "curves.png"} & {path.name for path in (tmp_path / "run").iterdir()}


def test_folds_comparisons_and_reports_work(data, tmp_path):
    recipe = classical(data["binary"])
    found = cross_validate(recipe, tmp_path / "folds", folds=2)
    assert found.measures["mean_iou"].mean > 0.9
    predict(tmp_path / "folds", data["binary"] / "images" / "a.tif", tmp_path / "map.tif", device="cpu")
    vary = {"model.options.n_estimators": [1, 5]}
    compared = compare(recipe, tmp_path / "compare", vary=vary, seeds=[0])
    assert [row.variant for row in compared.rows] == ["n_estimators=1", "n_estimators=5"]


def test_a_report_shows_the_learner_and_no_curves(data, tmp_path):
    recipe = classical(data["binary"], features={"texture": [3], "indices": [["1", 2]]})
    run = train(recipe, tmp_path / "run")
    section = _training_section(run.folder, load(run.model), *open_areas(recipe))
    assert section.facts["learner"] == "forest"
    assert section.facts["features"] == ("bands, mean and standard deviation in 3 x 3 pixels, (1 - 2) / (1 + 2)")
    labelled = run.metrics["labelled_pixels"]
    assert section.facts["training"] == f"fitted to {labelled:,} of {labelled:,} labelled pixels"
    assert not section.charts


def test_without_validation_a_learner_is_not_calibrated(data, tmp_path):
    recipe = classical(data["binary"])
    raw = recipe.to_dict()
    raw["data"]["val"] = None
    run = train(Recipe.from_dict(raw), tmp_path / "run")
    assert load(run.model).calibration is None
    assert "baselines" not in run.metrics


def test_without_scikit_learn_only_the_discriminant_can_be_fitted(data, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    train(classical(data["binary"], architecture="lda"), tmp_path / "lda")
    with pytest.raises(ModuleNotFoundError) as found:
        train(classical(data["binary"]), tmp_path / "forest")
    assert found.value.name.partition(".")[0] == "sklearn"
