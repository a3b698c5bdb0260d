import pytest
import yaml
from synthetic import recipe_for

from segkit.errors import RecipeError
from segkit.recipe.features import CLASSICAL, ignored_train_keys
from segkit.recipe.schema import Model, Recipe, Train


def with_model(tmp_path, **model):
    return Recipe.from_dict(recipe_for(tmp_path, "binary").to_dict() | {"model": model})


@pytest.mark.parametrize("architecture", CLASSICAL)
def test_a_stored_recipe_has_the_keys_of_its_kind(tmp_path, architecture):
    recipe = with_model(tmp_path, architecture=architecture, features={"texture": [3], "indices": [["nir", 1]]})
    assert set(recipe.to_dict()["model"]) == {"architecture", "options", "features"}
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    network = recipe_for(tmp_path, "binary")
    assert set(network.to_dict()["model"]) == set(Model.model_fields) - {"features"}
    assert Recipe.from_dict(yaml.safe_load(yaml.safe_dump(network.to_dict()))) == network


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"architecture": "forest", "encoder": "resnet34"}, "model: encoder is for networks, and forest is none"),
        ({"architecture": "lda", "encoder_weights": "imagenet"}, "model: encoder_weights is for networks, and lda"),
        ({"architecture": "unet", "features": {}}, "model: features are for lda, svm, forest, boosting; unet is"),
        ({"features": {"texture": [4]}}, "model.features: texture has a side of 4 pixels; use an odd number"),
        ({"features": {"texture": [1]}}, "model.features.texture.0: found 1"),
        ({"features": {"texture": [3, 3]}}, "model.features: texture lists 3 twice"),
        ({"features": {"indices": [[1, 2], [1, 2]]}}, "model.features: indices lists 1 and 2 twice"),
        ({"features": {"indices": [["a", "a"]]}}, "model.features: indices has a pair of the same band, a"),
        ({"features": {"indices": [[1]]}}, "model.features: indices has a list of 1 bands .1.; give pairs"),
        ({"features": {"indices": [[1, 2, 3]]}}, "model.features: indices has a list of 3 bands"),
        ({"features": {"indices": [[1, 0]]}}, "model.features.indices.0.1: found 0"),
        ({"features": {"indices": [[1, True]]}}, "model.features.indices.0.1: found true"),
        ({"features": {"glcm": [3]}}, "model.features.glcm: unknown key"),
    ],
)
def test_keys_that_do_not_fit_are_refused(tmp_path, model, message):
    with pytest.raises(RecipeError, match=message):
        with_model(tmp_path, **{"architecture": "forest"} | model)


@pytest.mark.parametrize(
    ("baselines", "message"),
    [
        (["lda", "knn"], "train.baselines.1: found .knn.; must be 'lda', 'svm', 'forest' or 'boosting'"),
        (["svm", "lda", "svm"], "train.baselines: lists svm twice; remove one of them"),
        ("lda", "train.baselines: found .lda.; must be a list"),
    ],
)
def test_baselines_are_learners_each_once(tmp_path, baselines, message):
    with pytest.raises(RecipeError, match=message):
        recipe_for(tmp_path, "binary", train={"baselines": baselines})


def test_keys_without_effect_are_those_that_were_given():
    assert ignored_train_keys(Train()) == ()
    given = Train(epochs=40, seed=3, tile_size=64, loss={"pixel": 1.0})
    assert ignored_train_keys(given) == ("epochs", "loss")
    stored = Train.model_validate_json(given.model_dump_json())
    assert ignored_train_keys(stored) == ("loss",)  # a stored recipe has all keys, also with their defaults


def test_without_validation_no_epoch_has_to_be_chosen(tmp_path):
    raw = with_model(tmp_path, architecture="svm").to_dict()
    raw["data"]["val"] = None
    assert Recipe.from_dict(raw).data.val is None
