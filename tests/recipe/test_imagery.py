"""Keys that say how scenes are read, and what a user gives for other scenes in their place."""

import numpy as np
import pytest
import rasterio
from products import random_bands, write_safe
from synthetic import recipe_for, write_pair, write_raster

from segkit.data.areas import examine_recipe
from segkit.data.pairing import open_samples
from segkit.errors import DataError, RasterError, RecipeError, UsageError
from segkit.io.pixel_rules import AS_STORED, PixelRules
from segkit.io.quality_mask import MASK_PRESETS, MaskRule, QualityMask
from segkit.recipe.imagery import Imagery, change_imagery, open_scene, pixel_rules
from segkit.recipe.schema import Recipe

ROW = {"shift": " -1000 ", "factors": "0.1 0.2;0.3", "empty": "", "text": "high", "zero": "0"}


def imagery(**keys):
    """Imagery as a recipe has it."""
    return Imagery.model_validate(keys)


def test_nothing_changes_by_default():
    assert pixel_rules(Imagery(), {}, "scene") == AS_STORED
    assert Imagery().quality_mask is None


@pytest.mark.parametrize(
    ("keys", "rules"),
    [
        ({"nodata": -9999}, PixelRules(nodata=(-9999,))),
        ({"nodata": [0, -9999]}, PixelRules(nodata=(0, -9999))),
        ({"scale": 0.5, "offset": [1, 2]}, PixelRules(scale=(0.5,), offset=(1, 2))),
        ({"decibels": "power"}, PixelRules(decibels=("power",))),
        ({"decibels": ["power", None]}, PixelRules(decibels=("power", None))),
        ({"offset": {"column": "shift"}}, PixelRules(offset=(-1000,))),
        ({"scale": {"column": "factors"}}, PixelRules(scale=(0.1, 0.2, 0.3))),
    ],
)
def test_keys_become_rules(keys, rules):
    assert pixel_rules(imagery(**keys), ROW, "scene") == rules


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"offset": {"column": "none"}}, r"scene: its offset is to be read from the column 'none' .*--offset"),
        ({"offset": {"column": "empty"}}, "the column 'empty' of the table holds ''; data.offset needs a number there"),
        ({"offset": {"column": "text"}}, "holds 'high'"),
        ({"scale": {"column": "zero"}}, "data.scale needs a number other than 0 there"),
    ],
)
def test_a_column_must_hold_numbers(keys, words):
    with pytest.raises(DataError, match=words):
        pixel_rules(imagery(**keys), ROW, "scene")


@pytest.mark.parametrize(
    ("keys", "mask"),
    [
        ("sentinel2_scl", QualityMask(MASK_PRESETS["sentinel2_scl"])),
        ({"preset": "fmask", "band": 8}, QualityMask(MASK_PRESETS["fmask"], (8,))),
        ({"values": [2, 4], "band": ["a", 3]}, QualityMask(MaskRule((2, 4)), ("a", 3))),
        ({"bits": [3], "file": "{name}_qa.tif"}, QualityMask(MaskRule(bits=(3,)), file="{name}_qa.tif")),
        (
            {"preset": "planet_udm2", "replace": {"a": "b"}},
            QualityMask(MASK_PRESETS["planet_udm2"], replace=(("a", "b"),)),
        ),
        (
            {"bits": [3], "file": "{name}_qa.tif", "per": "scene"},
            QualityMask(MaskRule(bits=(3,)), file="{name}_qa.tif", per_file=False),
        ),
    ],
)
def test_masks(keys, mask):
    assert imagery(mask=keys).quality_mask == mask


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"apply_scale_offset": True, "offset": -1000}, "data: apply_scale_offset takes scale and offset from"),
        ({"mask": {"preset": "fmask", "per": "scene"}}, "per is for masks in files of their own"),
        ({"scale": 0}, "data: a scale of 0 makes all values equal"),
        ({"scale": "2"}, "data.scale: found \"2\"; must be a number, a number for each band, or"),
        ({"offset": {"colum": "a"}}, "data.offset.colum: unknown key; did you mean column?"),
        ({"nodata": []}, "data.nodata: is empty"),
        ({"decibels": "linear"}, "data.decibels: found \"linear\""),
        ({"mask": "scl"}, "data.mask: found \"scl\"; must be 'sentinel2_scl', "),
        ({"mask": {"band": 8}}, "data.mask: give either preset, or values or bits"),
        ({"mask": {"preset": "fmask", "values": [1]}}, "data.mask: give either preset, or values or bits"),
        ({"mask": {"values": [1]}}, "data.mask: band is missing"),
        ({"mask": {"values": [1], "file": "a", "replace": {"a": "b"}}}, "file and replace both name the file"),
        ({"mask": {"bits": [40], "band": 1}}, "data.mask.bits.0: found 40"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, keys, words):
    with pytest.raises(RecipeError, match=words):
        recipe_for(tmp_path, "binary", data=keys)


def test_a_recipe_with_these_keys_is_the_same_after_storing(tmp_path):
    made = recipe_for(
        tmp_path, "binary",
        data={"nodata": [0, -1], "scale": {"column": "s"}, "offset": [1, 2], "mask": {"bits": [1], "file": "a"}},
    )  # fmt: skip
    assert Recipe.from_dict(made.to_dict()) == made


def test_what_is_given_for_other_scenes_replaces_the_key():
    trained = imagery(apply_scale_offset=True, nodata=0, bands=[1, 2])
    assert change_imagery(trained, {"nodata": None}) == trained
    assert change_imagery(trained, {"nodata": [5.0]}) == trained.model_copy(update={"nodata": (5.0,)})
    changed = change_imagery(trained, {"offset": -1000})
    assert (changed.offset, changed.apply_scale_offset, changed.bands) == (-1000, False, (1, 2))
    assert pixel_rules(changed, {}, "scene").for_these_scenes
    assert not pixel_rules(change_imagery(trained, {"nodata": 1}), {}, "scene").for_these_scenes
    with pytest.raises(UsageError, match="a scale of 0"):
        change_imagery(trained, {"scale": 0})


def test_units_given_for_a_product_replace_those_of_its_metadata(tmp_path):
    safe = write_safe(tmp_path, random_bands(["B04"], side=6), baseline="02.14")
    trained = imagery(offset=-1000)  # of files of later baselines
    with pytest.raises(RasterError, match=r"SAFE: scale 1 and offset -1000 are given for B04.*leave scale"):
        open_scene(safe, trained)
    stored = open_scene(safe, imagery()).read().pixels
    np.testing.assert_array_equal(open_scene(safe, change_imagery(trained, {"offset": 0})).read().pixels, stored)
    np.testing.assert_array_equal(open_scene(safe, change_imagery(trained, {"offset": 5})).read().pixels, stored + 5)


def test_a_resolution_is_for_products(tmp_path):
    write_pair(tmp_path, "binary", "a")
    recipe = recipe_for(tmp_path, "binary", data={"resolution": 20})
    with pytest.raises(DataError, match=r"data.resolution is 20, but only products \(SAFE, STAC\)"):
        examine_recipe(recipe).require_trainable(force=False)
    for keys, words in (({"resolution": 0}, "data.resolution"), ({"resampling": "cubic"}, "data.resampling: found")):
        with pytest.raises(RecipeError, match=words):
            recipe_for(tmp_path, "binary", data=keys)


def test_a_mask_is_given_by_its_file_its_meaning_or_both():
    beside = imagery(mask={"preset": "sentinel2_scl", "replace": {"a": "b"}, "band": 2})
    inside = imagery(mask={"values": [2, 4], "band": 8})
    assert change_imagery(beside, {"mask": {"file": "/x.tif"}}).quality_mask == QualityMask(
        MASK_PRESETS["sentinel2_scl"], (2,), "/x.tif"
    )
    assert change_imagery(inside, {"mask": {"file": "/x.tif"}}).quality_mask == QualityMask(
        MaskRule((2, 4)), file="/x.tif"
    )
    assert change_imagery(inside, {"mask": {"preset": "fmask"}}).quality_mask == QualityMask(MASK_PRESETS["fmask"])
    assert change_imagery(Imagery(), {"mask": {"file": "/x.tif", "preset": "fmask"}}).quality_mask == QualityMask(
        MASK_PRESETS["fmask"], file="/x.tif"
    )
    with pytest.raises(UsageError, match=r"nothing says which values of this mask mean not valid.*add --mask-preset"):
        change_imagery(Imagery(), {"mask": {"file": "/x.tif"}})


def test_scenes_of_a_table_have_units_of_their_own(tmp_path):
    """The second scene is the first one plus 1000, as Sentinel-2 of another processing baseline."""
    for name in "ab":
        write_pair(tmp_path, "binary", name, height=32, width=32)
    with rasterio.open(tmp_path / "images/b.tif", "r+") as dataset:
        dataset.write(dataset.read() + np.uint16(1000) * (dataset.read() != 0))
    (tmp_path / "scenes.csv").write_text(
        "image,label,shift\nimages/a.tif,labels/a.tif,0\nimages/b.tif,labels/b.tif,-1000\n"
    )
    recipe = recipe_for(
        tmp_path, "binary", data={"train": {"table": str(tmp_path / "scenes.csv")}, "offset": {"column": "shift"}}
    )
    one, other = (sample.scene.read() for sample in open_samples(recipe.data.train, recipe.data, recipe.task).samples)
    np.testing.assert_array_equal(one.pixels, other.pixels)
    with pytest.raises(DataError, match="its offset is to be read from the column 'shift'"):
        open_scene(tmp_path / "images/a.tif", recipe.data)
    other = open_scene(tmp_path / "images/b.tif", change_imagery(recipe.data, {"offset": -1000})).read()
    np.testing.assert_array_equal(one.pixels, other.pixels)


def test_messages_name_the_scene(tmp_path):
    path = write_raster(tmp_path / "lake.tif", np.ones((2, 3, 3)))
    with pytest.raises(DataError, match=r"lake\.tif: its scale"):
        open_scene([path], imagery(scale={"column": "x"}))
