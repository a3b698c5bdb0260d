"""Mosaics among the images and labels of a recipe."""

import json

import jsonschema
import pytest
from synthetic import recipe_for

from segkit.errors import RecipeError
from segkit.io.mosaic import Mosaic
from segkit.recipe.schema import Recipe, schema
from segkit.recipe.sources import DatasetSource, LabelSource, MosaicSource


def write_recipe(folder, images, labels):
    recipe = recipe_for(folder, "binary").to_dict()
    recipe["data"]["train"] = {"images": images, "labels": labels}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


@pytest.mark.parametrize(
    "images",
    [
        {"mosaic": "tiles/*.tif"},
        {"mosaic": ["a.tif", "b.tif"], "overlap": "mean"},
        [{"mosaic": "north"}, {"mosaic": "south", "overlap": "first"}],
        [[{"mosaic": "b4"}, {"mosaic": "b8"}], "whole.tif"],
        [["red.tif", {"mosaic": "b8"}]],
    ],
)
def test_mosaics_are_accepted_in_every_form_and_stored_as_given(tmp_path, images):
    """Their paths are relative to the recipe; the JSON schema agrees."""
    recipe = Recipe.load(write_recipe(tmp_path, images, {"mosaic": "labels/*.tif", "overlap": "last"}))
    stored = recipe.to_dict()
    assert Recipe.from_dict(stored) == recipe
    jsonschema.validate(stored, schema())
    text = json.dumps(images).replace(": null", "")
    for name in ("tiles/*.tif", "a.tif", "north", "b4", "b8", "whole.tif", "red.tif"):
        assert (f'"{name}"' in text) == (f'"{tmp_path / name}"' in json.dumps(stored["data"]["train"]["images"]))
    [labels] = recipe.data.train.label_sources
    assert labels.paths == (Mosaic(tmp_path / "labels" / "*.tif", "last"),)


def test_labels_with_keys_hold_a_mosaic_as_their_path(tmp_path):
    labels = {"path": {"mosaic": "labels"}, "nodata": "ignore"}
    recipe = Recipe.load(write_recipe(tmp_path, {"mosaic": "tiles"}, labels))
    [source] = recipe.data.train.label_sources
    assert source.paths == (Mosaic(tmp_path / "labels"),)
    assert source.nodata == "ignore"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"mosaic": 3}, r"images.mosaic: found 3; must be a path or a list of paths"),
        ({"mosaic": []}, r"images.mosaic: is empty"),
        (
            {"mosaic": "tiles", "overlap": "median"},
            r"images.overlap: found \"median\"; must be 'first', 'last' or 'mean'",
        ),
        ({"mosaic": "tiles", "overlaps": "first"}, r"images.overlaps: unknown key; did you mean overlap"),
        (3, r"images: found 3; must be a path, a mosaic, a list of them, or a list of lists"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, images, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.load(write_recipe(tmp_path, images, "labels"))


def test_recipes_without_mosaics_are_stored_as_before(tmp_path):
    """So the fingerprints of models and the keys of caches stay."""
    source = DatasetSource(images=["a.tif", ["b.tif", "c.tif"]], labels="labels")
    stored = source.model_dump(mode="json")
    assert (stored["images"], stored["labels"]) == (["a.tif", ["b.tif", "c.tif"]], "labels")
    assert '"mosaic"' not in json.dumps(recipe_for(tmp_path, "binary").to_dict())


def test_a_source_gets_other_files():
    source = LabelSource(path="labels", nodata="ignore")
    mosaic = Mosaic(["a.tif", "b.tif"], "last")
    assert source.with_files([mosaic]).path == MosaicSource(mosaic=("a.tif", "b.tif"), overlap="last")
    assert source.with_files([mosaic]).paths == (mosaic,)
    assert source.with_files([mosaic]).nodata == "ignore"
