"""Units and no data that files do not declare are applied as if they did."""

import itertools

import numpy as np
import pytest
from affine import Affine
from synthetic import write_raster

from segkit.errors import RasterError
from segkit.io.grid import Grid
from segkit.io.pixel_rules import PixelRules
from segkit.io.scene import Scene

RANDOM = np.random.default_rng(3)


@pytest.fixture
def pixels():
    """Three bands with 0 and -5 here and there, in all bands of the first column and the last row."""
    made = RANDOM.integers(1, 50, (3, 9, 11)).astype(np.int16)
    made[RANDOM.random(made.shape) < 0.2] = 0
    made[RANDOM.random(made.shape) < 0.2] = -5
    made[:, :, 0], made[:, -1] = 0, -5
    return made


def same(one, other):
    np.testing.assert_array_equal(one.pixels, other.pixels)
    np.testing.assert_array_equal(one.valid, other.valid)


@pytest.mark.parametrize("dtype", ["int16", "float32", "float64", "int32"])
def test_a_no_data_value_of_the_recipe_is_read_as_if_the_file_declared_it(tmp_path, pixels, dtype):
    """Oracle: the same file with the declaration."""
    plain = write_raster(tmp_path / "plain.tif", pixels.astype(dtype))
    declared = write_raster(tmp_path / "declared.tif", pixels.astype(dtype), nodata=-5)
    expected = Scene.from_files(declared).read()
    assert 0 < expected.valid.sum() < expected.valid.size
    same(Scene.from_files(plain, rules=PixelRules(nodata=(-5,))).read(), expected)
    for file in (plain, declared):  # both values, whichever is declared
        tile = Scene.from_files(file, rules=PixelRules(nodata=(0, -5))).read()
        absent = np.isin(pixels, (0, -5))
        np.testing.assert_array_equal(tile.valid, ~absent.all(axis=0))
        np.testing.assert_array_equal(np.isnan(tile.pixels), absent)


def test_the_lowest_number_of_a_float_type_can_be_no_data(tmp_path):
    for dtype in ("float32", "float64"):
        stored = np.full((2, 3, 4), 7, dtype=dtype)
        stored[:, 0] = np.finfo(dtype).min
        path = write_raster(tmp_path / f"{dtype}.tif", stored)
        tile = Scene.from_files(path, rules=PixelRules(nodata=(float(np.finfo(dtype).min),))).read()
        assert not tile.valid[0].any()
        assert tile.valid[1:].all()


def test_values_are_stored_values_times_scale_plus_offset(tmp_path, pixels):
    path = write_raster(tmp_path / "a.tif", pixels)
    scene = Scene.from_files(path, bands=(3, 1), rules=PixelRules(scale=(0.5, 2.0), offset=(1.0, -3.0), nodata=(-5,)))
    stored = Scene.from_files(path, bands=(3, 1), rules=PixelRules(nodata=(-5,))).read()
    tile = scene.read()
    np.testing.assert_array_equal(tile.valid, stored.valid)
    np.testing.assert_allclose(tile.pixels[0], stored.pixels[0] * 0.5 + 1)
    np.testing.assert_allclose(tile.pixels[1], stored.pixels[1] * 2 - 3)
    one = Scene.from_files(path, rules=PixelRules(offset=(-1000,))).read()
    np.testing.assert_array_equal(one.pixels, pixels - 1000.0)


def test_a_declared_scale_and_the_same_scale_of_the_recipe_give_the_same_values(tmp_path, pixels):
    import rasterio

    path = write_raster(tmp_path / "a.tif", pixels)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (1e-4,) * 3, (-0.1,) * 3
    same(
        Scene.from_files(path, scaled=True).read(),
        Scene.from_files(path, rules=PixelRules(scale=(1e-4,), offset=(-0.1,))).read(),
    )


def test_decibels_of_power_and_amplitude(tmp_path):
    power = np.array([[0.001, 0.01, 1, 100]], dtype=np.float32)
    path = write_raster(tmp_path / "a.tif", np.stack([power, np.sqrt(power), power]))
    tile = Scene.from_files(path, rules=PixelRules(decibels=("power", "amplitude", None))).read()
    np.testing.assert_allclose(tile.pixels[:2], [[[-30, -20, 0, 20]]] * 2, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(tile.pixels[2], power)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_what_has_no_logarithm_is_not_valid(tmp_path, dtype):
    stored = np.full((2, 2, 3), 4, dtype=dtype)
    stored[0, 0, 0] = 0
    path = write_raster(tmp_path / "a.tif", stored)
    tile = Scene.from_files(path, rules=PixelRules(decibels=("power",))).read()
    assert tile.valid.tolist() == [[False, True, True], [True] * 3]
    assert not np.isinf(tile.pixels).any()


def test_resampling_does_not_mix_no_data_with_data(tmp_path):
    """Oracle: the same file with the declaration."""
    stored = np.full((1, 20, 20), 100, dtype=np.float32)
    stored[:, :, :7] = -9999
    paths = [
        write_raster(tmp_path / "plain.tif", stored),
        write_raster(tmp_path / "declared.tif", stored, nodata=-9999),
    ]
    first = write_raster(tmp_path / "grid.tif", np.ones((1, 12, 12), dtype=np.float32), left=500_014)
    rules = PixelRules(nodata=(-9999,))
    found = [Scene.from_files([first, path], bands=(2,), resample=True, rules=rules).read() for path in paths]
    same(*found)
    assert 0 < found[0].valid.sum() < found[0].valid.size
    np.testing.assert_array_equal(np.unique(found[0].pixels[0][found[0].valid]), [100])
    other = write_raster(tmp_path / "other.tif", stored, nodata=0)
    with (
        pytest.raises(RasterError, match="-9999 and 0 mean no data, but only one value can when a file is resampled"),
        Scene.from_files([first, other], bands=(2,), resample=True, rules=rules).open(),
    ):
        pass


def test_the_number_of_values_is_that_of_the_bands(tmp_path, pixels):
    path = write_raster(tmp_path / "a.tif", pixels)
    for key in ("scale", "offset"):
        with pytest.raises(RasterError, match=rf"a\.tif: {key} has 2 values, but 3 bands are read"):
            Scene.from_files(path, rules=PixelRules(**{key: (1.0, 2.0)}))


def test_windows_have_the_values_of_the_whole(tmp_path, pixels):
    path = write_raster(tmp_path / "a.tif", pixels)
    scene = Scene.from_files(path, rules=PixelRules(scale=(2.0,), nodata=(0, -5)))
    whole = scene.read()
    grid = Grid(9, 11, Affine.identity(), None)
    with scene.open() as reader:
        for window in itertools.islice(grid.tiles(4), 9):
            part = reader.read(window)
            np.testing.assert_array_equal(part.pixels, whole.pixels[:, *window.toslices()])
            np.testing.assert_array_equal(part.valid, whole.valid[window.toslices()])
