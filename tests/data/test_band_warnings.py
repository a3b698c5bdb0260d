"""One warning about all alpha bands that look like imagery, with the line to write."""

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from synthetic import recipe_for, segmenter, write_raster

from segkit.data.band_warnings import (
    describe_alpha_bands,
    describe_index_units,
    describe_partial_layers,
    describe_unmatched_bands,
)
from segkit.errors import RasterError
from segkit.inference.predict import predict
from segkit.io.derived_bands import BandFormula
from segkit.io.layers import Layer
from segkit.io.pixel_rules import PixelRules
from segkit.io.scene import Scene
from segkit.recipe.schema import Recipe
from segkit.training.train import train

RANDOM = np.random.default_rng(4)
RGBA = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)


def write(path, *, mask=False, left=500_000):
    pixels = RANDOM.integers(1, 255, (4, 40, 40), dtype=np.uint8)
    if mask:
        pixels[3] = np.where(RANDOM.random((40, 40)) < 0.3, 0, 255)
    write_raster(path, pixels, left=left)
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = RGBA
    return path


def test_one_warning_names_the_recipe_line(tmp_path):
    scenes = [Scene.from_files(write(tmp_path / f"{number}.tif", mask=number == 0)) for number in range(4)]
    (text,) = describe_alpha_bands(scenes)
    assert text.startswith(
        f"3 files, for example {tmp_path / '1.tif'}: band 4 is tagged as alpha and read as a mask, but"
    )
    assert "if it is imagery, set data.bands: [1, 2, 3, 4]" in text
    (one,) = describe_alpha_bands(scenes[1:2])
    assert one.startswith(f"{tmp_path / '1.tif'}: band 4 is tagged")
    assert not [*describe_alpha_bands(scenes[:1])]


def test_files_that_cannot_be_read_are_left_to_others(tmp_path):
    path = write(tmp_path / "a.tif")
    scene = Scene.from_files(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(RasterError):
        scene.read()
    assert not [*describe_alpha_bands([scene])]


@pytest.mark.parametrize(
    ("trained", "names", "warned"),
    [
        (("blue", "nir"), ("B8", "B2"), True),  # of which sensor?
        (("blue", "nir"), ("B08", "B02"), False),
        (("blue", "nir"), (None, None), False),
        (("1", "2"), ("B8", "B2"), False),
        (("2015:B2", "2015:B8"), ("B2", "B8"), False),
        (("red", "nir"), ("red", "elevation"), True),
    ],
)
def test_names_that_do_not_tell_the_bands_are_one_warning(tmp_path, trained, names, warned):
    scenes = []
    for name in "ab":
        path = write_raster(tmp_path / f"{name}.tif", np.ones((2, 8, 8)))
        with rasterio.open(path, "r+") as dataset:
            dataset.descriptions = names
        scenes.append(Scene.from_files(path, trained=trained))
    text = describe_unmatched_bands(trained, scenes)
    if not warned:
        assert text is None
        return
    assert text.startswith(
        f"2 scenes, for example {tmp_path / 'a.tif'}: the names of its bands ({', '.join(names)}) do"
    )
    assert f"those of the model ({', '.join(trained)})" in text


def test_training_warns(tmp_path):
    for number, name in enumerate("ab"):
        write(tmp_path / f"images/{name}.tif", left=500_000 + 10_000 * number)
        labels = np.where(RANDOM.random((40, 40)) < 0.5, 7, 0).astype(np.uint8)
        write_raster(tmp_path / f"labels/{name}.tif", labels, left=500_000 + 10_000 * number)
    raw = recipe_for(tmp_path, "binary").to_dict() | {"model": {"architecture": "lda"}}
    raw["data"] |= {"val": None, "cache": 0}
    raw["train"] = {"checkpoint": "last", "device": "cpu"}
    with pytest.warns(
        UserWarning, match=r"^2 files, for example .*a\.tif: band 4 is tagged as alpha and read as a mask"
    ):
        train(Recipe.from_dict(raw), tmp_path / "run")


def test_prediction_reads_the_fourth_band_and_says_so_once(tmp_path):
    """Oracle: the same pixels with a band 4 that is not tagged."""
    paths = [write(tmp_path / f"{name}.tif", left=left) for name, left in (("a", 500_000), ("b", 510_000))]
    plain = tmp_path / "plain.tif"
    with rasterio.open(paths[0]) as dataset:
        profile, pixels = dataset.profile | {"photometric": "MINISBLACK"}, dataset.read()
    with rasterio.open(plain, "w", **profile) as dataset:
        dataset.write(pixels)
        dataset.colorinterp = [ColorInterp.gray, *[ColorInterp.undefined] * 3]
    model = segmenter(tmp_path, bands=4)
    model.band_names, model._receptive_field = ("1", "2", "3", "4"), 40
    options = {"precision": "fp32", "device": "cpu", "tile": 64, "overlap": 8}
    with pytest.warns(
        UserWarning, match=r"^2 files, for example .*a\.tif: band 4 is tagged as alpha, but.* it is read"
    ):
        predict(model, paths, tmp_path / "maps/", **options)
    predict(model, plain, tmp_path / "plain_map.tif", **options)
    with rasterio.open(tmp_path / "maps/a.tif") as one, rasterio.open(tmp_path / "plain_map.tif") as other:
        np.testing.assert_array_equal(one.read(), other.read())


NDVI = BandFormula("NDVI", "(N - R) / (N + R)", (("N", 2), ("R", 1)))
SAVI = BandFormula("SAVI", "(1 + L) * (N - R) / (N + R + L)", NDVI.bands, (("L", 0.5),))


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda dataset: None, "set data.scale: 0.0001"),
        (lambda dataset: setattr(dataset, "scales", (1e-4, 1e-4)), "set data.apply_scale_offset: true"),
        (lambda dataset: setattr(dataset, "descriptions", ("SR_B4", "SR_B5")), "0.0000275 and data.offset: -0.2"),
    ],
)  # fmt: skip
def test_indices_of_reflectance_get_reflectance(tmp_path, change, advice):
    """One warning for all scenes; none if the units are right, or the index does not depend on them."""
    paths = [
        write_raster(tmp_path / f"{name}.tif", RANDOM.integers(100, 9000, (2, 70, 70), dtype=np.uint16))
        for name in "ab"
    ]
    for path in paths:
        with rasterio.open(path, "r+") as dataset:
            change(dataset)
    text = describe_index_units([Scene.from_files(path, indices=[NDVI, SAVI]) for path in paths])
    assert text.startswith(
        f"SAVI needs reflectance (0 to 1), but the mean of the bands of 2 scenes, for example {paths[0]} is 4"
    )
    assert advice in text
    assert describe_index_units([Scene.from_files(paths[0], indices=[NDVI])]) is None
    scaled = Scene.from_files(paths[0], indices=[SAVI], rules=PixelRules(scale=(0.0001,)))
    assert describe_index_units([scaled]) is None


def test_values_of_8_bits_are_no_reflectance(tmp_path):
    path = write_raster(tmp_path / "a.tif", RANDOM.integers(1, 255, (2, 70, 70), dtype=np.uint8))
    assert "or leave these indices out" in describe_index_units([Scene.from_files(path, indices=[SAVI])])


def test_a_layer_that_covers_a_part_is_named_once(tmp_path):
    part = write_raster(tmp_path / "part.tif", np.ones((40, 20), dtype=np.float32))
    whole = write_raster(tmp_path / "whole.tif", np.ones((40, 40), dtype=np.float32))
    layers = [Layer("part", part), Layer("whole", whole)]
    scenes = [Scene.from_files(write(tmp_path / f"{name}.tif"), layers=layers) for name in "ab"]
    (text,) = describe_partial_layers(scenes)
    assert text == (
        f"{part}: the layer 'part' covers only 50% of 2 scenes, for example {tmp_path / 'a.tif'}; the rest is no data"
    )
