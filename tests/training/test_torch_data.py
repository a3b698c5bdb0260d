import pickle

import numpy as np
import pytest
import torch
import yaml
from synthetic import recipe_for, write_pairs
from torch.utils.data import DataLoader

from segkit.data.area import count_categories
from segkit.data.areas import examine_recipe
from segkit.data.datasets import TrainDataset
from segkit.data.statistics import class_weights
from segkit.errors import RecipeError, UsageError
from segkit.inference.predict import predict
from segkit.models.segmenter import load
from segkit.recipe.schema import Recipe
from segkit.task import IGNORE
from segkit.training.losses import LOSSES
from segkit.training.torch_data import datasets

CPU = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_pairs(tmp_path_factory, height=80, width=100)


@pytest.fixture(scope="module")
def data(folders):
    return datasets(recipe_for(folders["multiclass"], "multiclass"))


def same(one, other):
    return all(np.array_equal(mine, theirs, equal_nan=True) for mine, theirs in zip(one, other, strict=True))


def test_a_loader_shuffles_tiles_of_segkit_s_own_training(folders, data):
    """Each epoch draws others; the same seed draws the same."""
    recipe = data.recipe
    loader = DataLoader(data.training, batch_size=4, shuffle=True)
    torch.manual_seed(3)
    epochs = [list(loader) for _ in range(2)]
    pixels, valid, targets = epochs[0][0]
    assert pixels.shape == (4, 3, 32, 32)
    assert valid.shape == (4, 32, 32)
    assert targets.shape == (4, 1, 32, 32)
    assert len(data.training) == recipe.train.batch_size * recipe.train.steps_per_epoch
    assert not same(epochs[0][0], epochs[1][0])
    torch.manual_seed(3)
    assert all(same(one, other) for one, other in zip(epochs[0], loader, strict=True))
    examination = examine_recipe(recipe)
    own = TrainDataset.from_areas(examination.training, recipe.train, examination.statistics)
    torch.manual_seed(5)
    item = data.training[0]
    torch.manual_seed(5)
    assert same(item, own[int(torch.randint(2**62, ()))])
    torch.manual_seed(5)
    assert same(item, pickle.loads(pickle.dumps(data.training))[0])  # as a worker process gets it
    assert "12 tiles of 32 px" in repr(data)
    assert (data.mean, data.std) == (examination.statistics.mean, examination.statistics.std)


def test_by_default_an_epoch_covers_the_training_pixels_once(folders):
    recipe = recipe_for(folders["binary"], "binary", train={"steps_per_epoch": None})
    training = datasets(recipe).training
    assert len(training) == round(training._crops.pixels / 32**2)


def test_validation_tiles_hold_each_labelled_pixel_once(folders, data):
    examination = examine_recipe(data.recipe)
    tiles = [area.sample.scene.read() for area in examination.validation]
    truth = {tuple(pixel) for tile in tiles for pixel in tile.pixels[:, tile.valid].T.tolist()}
    counts = 0
    for pixels, valid, targets in data.validation:
        assert pixels.shape[1:] == (32, 32)
        assert (targets.numpy()[:, ~valid.numpy()] == IGNORE).all()
        assert {tuple(pixel) for pixel in pixels[:, valid].T.tolist()} <= truth  # not augmented
        counts = counts + count_categories(targets.numpy(), data.task)
    np.testing.assert_array_equal(counts, examination.validation_counts.ravel())
    with pytest.raises(IndexError, match="tile 99 of"):
        data.validation[99]


def test_a_loop_of_one_s_own_is_saved_and_predicted(folders, data, tmp_path):
    torch.manual_seed(0)
    model = data.new_model()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    losses = []
    for _ in range(4):
        for pixels, valid, targets in DataLoader(data.training, batch_size=6, shuffle=True):
            optimizer.zero_grad()
            loss = data.loss(model(pixels, valid), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert np.mean(losses[-2:]) < 0.8 * losses[0]
    scores = data.score(model, fit=False)
    assert model.calibration is None
    assert scores["mean_iou"] > 0.3
    fitted = data.score(model)
    assert model.calibration is not None
    assert fitted["mean_iou_uncalibrated"] == scores["mean_iou"]
    assert data.score(model)["ece"] == pytest.approx(fitted["ece"])  # fitted anew, not twice
    scene = folders["multiclass"] / "images" / "a.tif"
    model.save(tmp_path / "own.safetensors")
    [summary] = predict(tmp_path / "own.safetensors", scene, tmp_path / "map.tif", **CPU)
    assert summary.share_outside is not None  # training pixels are in the file
    loaded = load(tmp_path / "own.safetensors")
    assert loaded.metrics["mean_iou"] == fitted["mean_iou"]
    assert f"mean IoU {fitted['mean_iou']:.3f}" in repr(loaded)


def test_a_score_without_a_fit_removes_that_before_from_the_file_too(folders, tmp_path):
    data = datasets(recipe_for(folders["multilabel"], "multilabel"))
    torch.manual_seed(0)
    model = data.new_model().eval()
    data.score(model)
    assert model.task.thresholds != data.task.thresholds
    data.score(model, fit=False)
    model.save(tmp_path / "own.safetensors")
    loaded = load(tmp_path / "own.safetensors")
    assert (loaded.task, loaded.calibration) == (model.task, None) == (data.task, None)


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_the_loss_is_that_of_the_recipe(folders, kind):
    recipe = recipe_for(folders[kind], kind, train={"loss": {"pixel": 2, "dice": 1}, "class_weights": "balanced"})
    data = datasets(recipe)
    _, _, targets = data.training[0]
    logits = torch.randn(1, recipe.task.channels, 32, 32)
    weights = class_weights("balanced", examine_recipe(recipe).statistics.counts, recipe.task)
    parts = {name: LOSSES[name](recipe.task, logits, targets[None], weights) for name in ("pixel", "dice")}
    assert data.loss(logits, targets[None]).item() == pytest.approx(2 * parts["pixel"].item() + parts["dice"].item())


def test_a_recipe_may_be_a_path(folders, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_for(folders["binary"], "binary").to_dict()))
    data = datasets(path, overrides=["train.tile_size=48"], fold="0/2")
    assert data.training.tile_size == 48
    assert data.recipe.data.val.fold == "0/2"
    with pytest.warns(UserWarning, match="Using tiles of 32 pixels"):
        assert datasets(path, overrides=["train.tile_size=16"]).validation.tile_size == 32


def test_recipes_without_a_loop_are_refused(folders):
    with pytest.raises(UsageError, match="lda, which is fitted and not trained in a loop"):
        datasets(
            Recipe.from_dict(recipe_for(folders["binary"], "binary").to_dict() | {"model": {"architecture": "lda"}})
        )
    with pytest.raises(RecipeError, match="'nonsense' is not known"):
        datasets(recipe_for(folders["binary"], "binary", train={"loss": {"nonsense": 1}}))
