"""Which bands of a scene are read, and which alpha bands are imagery."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp
from synthetic import write_raster

from segkit.errors import GridError, RasterError
from segkit.io.alpha_bands import has_varying_values
from segkit.io.scene import Scene

RANDOM = np.random.default_rng(2)
RGBN = ("red", "green", "blue", "nir")


def write(path, pixels, names=None, *, alpha=None):
    write_raster(path, np.asarray(pixels, dtype=np.uint8))
    with rasterio.open(path, "r+") as dataset:
        if alpha is not None:
            colours = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined][: len(pixels)]
            colours[alpha - 1] = ColorInterp.alpha
            dataset.colorinterp = colours
        if names:
            dataset.descriptions = names
    return path


@pytest.fixture
def pixels():
    return RANDOM.integers(1, 255, (4, 30, 40), dtype=np.uint8)


def test_bands_by_name_are_those_of_the_numbers(tmp_path, pixels):
    path = write(tmp_path / "a.tif", pixels, ("B08", "B04", "B03", "B02"))
    scene = Scene.from_files(path, bands=("red", "B8"))
    assert (scene.bands, scene.band_names) == ((2, 1), ("B04", "B08"))
    np.testing.assert_array_equal(scene.read().pixels, pixels[[1, 0]])
    mixed = Scene.from_files(path, bands=(4, "green"))
    assert mixed.bands == (4, 3)


def test_names_of_the_recipe_replace_those_of_the_files(tmp_path, pixels):
    path = write(tmp_path / "a.tif", pixels)
    scene = Scene.from_files(path, bands=("nir", "red"), band_names=RGBN)
    assert (scene.bands, scene.band_names) == ((4, 1), ("nir", "red"))
    assert Scene.from_files(path, band_names=RGBN).band_names == RGBN  # the fourth is tagged as alpha by default
    assert Scene.from_files(path, band_names=(*RGBN[:3], "mask")).band_names == RGBN[:3]
    with pytest.raises(RasterError, match=r"a\.tif: data\.band_names names 2 bands, there are 4"):
        Scene.from_files(path, band_names=("red", "nir"))


def test_files_of_several_resolutions_are_told_apart_by_their_names_in_any_order(tmp_path, pixels):
    """As in a Sentinel-2 product; the first file gives the grid."""
    files, expected = [], []
    for band, name, step in ((0, "B02", 1), (1, "B08", 1), (2, "B11", 2)):
        coarse = pixels[band, ::step, ::step]
        path = tmp_path / f"T33TWM_20230601T100601_{name}_{10 * step}m.tif"
        with rasterio.open(write_raster(path, coarse), "r+") as dataset:
            dataset.transform = dataset.transform @ Affine.scale(step)
        files.append(path)
        expected.append(coarse)
    scene = Scene.from_files(files, resample=True)
    assert scene.grid.shape == (30, 40)
    first = scene.read().pixels
    np.testing.assert_array_equal(first[:2], expected[:2])
    for order in ((1, 0, 2), (1, 2, 0), (0, 2, 1)):
        other = Scene.from_files([files[at] for at in order], trained=scene.band_names, resample=True)
        assert other.grid == scene.grid
        np.testing.assert_array_equal(other.read().pixels, first)
    coarse_first = Scene.from_files(files[::-1], trained=scene.band_names, resample=True)
    assert coarse_first.grid.shape == (15, 20)
    np.testing.assert_array_equal(coarse_first.read().pixels[2], expected[2])
    with pytest.raises(GridError, match=r"a scene has one grid; .*set data\.resample: true"):
        Scene.from_files(files)


def test_a_name_that_no_band_or_several_bands_have_is_refused(tmp_path, pixels):
    path = write(tmp_path / "a.tif", pixels, ("red", "Red", "B1", "x"))
    with pytest.raises(RasterError, match=r"a\.tif: has no band 'swir16'; its bands are red, Red, B1, x; .*band_names"):
        Scene.from_files(path, bands=("swir16",))
    with pytest.raises(RasterError, match="has 2 bands that may be called 'RED'"):
        Scene.from_files(path, bands=("RED",))


def test_colours_name_the_bands_of_a_photograph(tmp_path, pixels):
    path = write(tmp_path / "a.tif", pixels[:3])
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    assert Scene.from_files(path, bands=("blue", "red")).band_names == ("blue", "red")
    assert Scene.from_files(path).band_names == ("1", "2", "3")  # as before


def test_the_bands_of_a_model_are_found_in_any_order(tmp_path, pixels):
    """By the names in the files, then by those of the recipe; else the numbers of the recipe count."""
    named = write(tmp_path / "named.tif", pixels[::-1], ("B02", "B03", "B04", "B08")[::-1])
    plain = write(tmp_path / "plain.tif", pixels)
    trained = ("blue", "green", "red", "nir")
    scene = Scene.from_files(named, bands=(1, 2, 3, 4), band_names=trained, trained=trained)
    assert (scene.bands, scene.band_names) == ((4, 3, 2, 1), trained)
    assert Scene.from_files(plain, band_names=trained, trained=trained[::-1]).bands == (4, 3, 2, 1)
    assert Scene.from_files(plain, bands=(2, 1), trained=("a", "b")).bands == (2, 1)
    five = write(tmp_path / "five.tif", np.concatenate([pixels, pixels[:1]]))
    assert len(Scene.from_files(five, band_names=trained, trained=trained).bands) == 5  # the names are of other files


def test_an_alpha_band_with_varying_values_is_imagery_for_a_model_that_needs_it(tmp_path, pixels):
    pixels[3, :10] = 0
    path = write(tmp_path / "a.tif", pixels, alpha=4)
    default = Scene.from_files(path)
    assert (default.bands, [one.place for one in default.alpha_masks]) == ((1, 2, 3), [4])
    assert not default.read().valid[:10].any()
    scene = Scene.from_files(path, trained=("1", "2", "3", "4"))
    assert (scene.bands, [one.place for one in scene.alpha_imagery]) == ((1, 2, 3, 4), [4])
    tile = scene.read()
    assert tile.valid.all()
    np.testing.assert_array_equal(tile.pixels, pixels)
    assert Scene.from_files(path, trained=("1", "2", "3")).bands == (1, 2, 3)
    asked = Scene.from_files(path, bands=(1, 2, 3, 4))
    assert asked.alpha_masks == asked.alpha_imagery == ()


def test_a_mask_is_no_imagery(tmp_path, pixels):
    pixels[3] = np.where(RANDOM.random((30, 40)) < 0.3, 0, 255)
    path = write(tmp_path / "a.tif", pixels, alpha=4)
    scene = Scene.from_files(path, trained=("1", "2", "3", "4"))
    assert (scene.bands, scene.alpha_imagery) == ((1, 2, 3), ())
    assert not has_varying_values(path, 4)
    pixels[3, 0, :20] = np.arange(20)  # a smoothed edge
    assert not has_varying_values(write(tmp_path / "b.tif", pixels, alpha=4), 4)
    assert has_varying_values(path, 1)
