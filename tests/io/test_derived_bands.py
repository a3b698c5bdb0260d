"""Bands that are computed from others: where their inputs are found, and what is no data."""

import numpy as np
import pytest
import rasterio
from places import SHARED
from rasterio.windows import Window
from synthetic import write_raster

from segkit.errors import RasterError
from segkit.io.derived_bands import BandFormula
from segkit.io.pixel_rules import PixelRules
from segkit.io.scene import Scene

RANDOM = np.random.default_rng(2)
SHAPE = (30, 40)
NDVI = BandFormula("NDVI", "(N - R) / (N + R)", (("N", "nir"), ("R", "red")))
SAVI = BandFormula("SAVI", "(1 + L) * (N - R) / (N + R + L)", NDVI.bands, (("L", 0.5),))


def write(path, names, pixels=None, **options):
    pixels = RANDOM.integers(1, 3000, (len(names), *SHAPE)).astype(np.uint16) if pixels is None else pixels
    write_raster(path, pixels, **options)
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = names
    return path


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read().astype(np.float64)


def ndvi(red, nir):
    with np.errstate(all="ignore"):
        return (nir - red) / (nir + red)


def test_indices_follow_the_bands_and_may_use_others(tmp_path):
    path = write(tmp_path / "a.tif", ("B02", "B03", "B04", "B08"))
    _, green, red, nir = read(path)
    scene = Scene.from_files(path, bands=("green", "nir"), indices=[NDVI, SAVI])
    assert scene.band_names == ("B03", "B08", "NDVI", "SAVI")
    assert scene.bands == (2, 4, 5, 6)
    tile = scene.read()
    np.testing.assert_array_equal(tile.pixels[:2], [green, nir])
    np.testing.assert_allclose(tile.pixels[2], ndvi(red, nir), rtol=1e-6)
    np.testing.assert_allclose(tile.pixels[3], 1.5 * (nir - red) / (nir + red + 0.5), rtol=1e-6)
    assert tile.valid.all()
    plain = scene.without_derived()
    assert (plain.bands, plain.band_names) == ((2, 4), ("B03", "B08"))
    np.testing.assert_array_equal(plain.read().pixels, tile.pixels[:2])
    np.testing.assert_array_equal(scene.with_bands([(6, "SAVI")]).read().pixels, tile.pixels[3:])


def test_windows_are_parts_of_the_whole(tmp_path):
    path = write(tmp_path / "a.tif", ("red", "nir"))
    scene = Scene.from_files(path, bands=("red",), indices=[NDVI])
    whole = scene.read()
    with scene.open() as reader:
        for window in (Window(5, 7, 11, 13), Window(-4, 20, 60, 30)):
            tile = reader.read(window)
            rows, columns = np.mgrid[window.row_off : window.row_off + window.height, window.col_off : window.col_off + window.width]  # fmt: skip  # noqa: E501
            inside = (rows >= 0) & (rows < SHAPE[0]) & (columns >= 0) & (columns < SHAPE[1])
            np.testing.assert_array_equal(tile.pixels[:, inside], whole.pixels[:, rows[inside], columns[inside]])
            assert np.isnan(tile.pixels[:, ~inside]).all()
            np.testing.assert_array_equal(tile.valid, inside)


def test_an_index_is_no_data_where_an_input_is_or_where_it_is_not_defined(tmp_path):
    """The rule of bands: a pixel stays valid if another band has data there, whether the input is read or not."""
    pixels = RANDOM.integers(1, 3000, (3, *SHAPE)).astype(np.int16)
    pixels[:, 0] = -9999  # all bands
    pixels[1, 1] = -9999  # an input
    pixels[1:, 2] = 0  # 0 / 0
    pixels[1, 3], pixels[2, 3] = 5, -5  # x / 0
    path = write(tmp_path / "a.tif", ("green", "red", "nir"), pixels, nodata=-9999)
    for bands in (("green",), ("green", "red"), ("green", "red", "nir")):
        tile = Scene.from_files(path, bands=bands, indices=[NDVI]).read()
        np.testing.assert_array_equal(tile.valid, np.arange(SHAPE[0])[:, None].repeat(SHAPE[1], 1) > 0)
        np.testing.assert_array_equal(np.isnan(tile.pixels[-1]), np.arange(SHAPE[0])[:, None].repeat(SHAPE[1], 1) < 4)
        np.testing.assert_allclose(tile.pixels[-1, 4:], ndvi(*pixels[1:, 4:].astype(float)), rtol=1e-6)
        assert not np.isinf(tile.pixels).any()


def test_an_input_that_the_mask_of_its_file_hides_is_no_data(tmp_path):
    red, nir = (write(tmp_path / f"{name}.tif", (name,)) for name in ("red", "nir"))
    with rasterio.open(nir, "r+") as dataset:
        dataset.write_mask(np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE) % 3 > 0)
        hidden = dataset.read_masks(1) == 0
    tile = Scene.from_files([red, nir], bands=("red",), indices=[NDVI]).read()
    np.testing.assert_array_equal(np.isnan(tile.pixels[1]), hidden)
    assert tile.valid.all()


def test_units_apply_before_the_formula(tmp_path):
    path = write(tmp_path / "a.tif", ("red", "nir"))
    red, nir = read(path) * 0.0001 - 0.1
    rules = PixelRules(scale=(0.0001,), offset=(-0.1,))
    tile = Scene.from_files(path, bands=("red",), rules=rules, indices=[SAVI]).read()
    np.testing.assert_allclose(tile.pixels[1], 1.5 * (nir - red) / (nir + red + 0.5), rtol=1e-4, atol=1e-6)
    each = PixelRules(scale=(0.0001, 0.0002))
    tile = Scene.from_files(path, rules=each, indices=[NDVI]).read()
    np.testing.assert_allclose(tile.pixels[2], ndvi(*(read(path) * [[[1]], [[2]]])), rtol=1e-5)
    wider = write(tmp_path / "b.tif", ("green", "red", "nir"))
    with pytest.raises(RasterError, match=r"NDVI needs band 3 \(N\), which is not .* scale, .*add it to data.bands"):
        Scene.from_files(wider, bands=("green", "red"), rules=each, indices=[NDVI])


def test_each_date_gives_an_index(tmp_path):
    paths = [write(tmp_path / f"{date}.tif", ("B03", "B04", "B8A")) for date in ("may", "june")]
    tile = Scene.from_files(paths, bands=(1,), indices=[NDVI]).read()
    scene = Scene.from_files(paths, bands=(1,), indices=[NDVI])
    assert scene.band_names == ("may:B03", "may:NDVI", "june:NDVI")
    for pixels, path in zip(tile.pixels[1:], paths, strict=True):
        np.testing.assert_allclose(pixels, ndvi(*read(path)[1:]), rtol=1e-6)


def test_bands_in_files_of_their_own_make_one_index(tmp_path):
    paths = [write(tmp_path / f"LC08_SR_{name}.tif", (None,)) for name in ("B4", "B5")]
    scene = Scene.from_files(paths, indices=[NDVI])
    assert scene.band_names == ("LC08_SR_B4:1", "LC08_SR_B5:1", "NDVI")
    np.testing.assert_allclose(scene.read().pixels[2], ndvi(*(read(path)[0] for path in paths)), rtol=1e-6)


def test_bands_are_given_by_number_or_name(tmp_path):
    path = write(tmp_path / "a.tif", ("x", "y", "z"))
    x, _, z = read(path)
    for bands in ((("N", 3), ("R", 1)), (("N", "z"), ("R", "x"))):
        made = Scene.from_files(path, indices=[BandFormula("own", NDVI.formula, bands)])
        np.testing.assert_allclose(made.read().pixels[3], ndvi(x, z), rtol=1e-6)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("red", "green"), r"has no band 'nir', which data.indices needs for NDVI; its bands are red, green"),
        (("nir", "B04", "B04", "B05"), r"has 2 bands that may be called 'red'.*\(bands: {R: NUMBER}\)"),
        ((None, None), r"has no band 'nir'.*; name the bands in data.band_names"),
    ],
)
def test_a_band_that_is_not_found_is_named(tmp_path, names, words):
    with pytest.raises(RasterError, match=words):
        Scene.from_files(write(tmp_path / "a.tif", names), indices=[NDVI])
    with pytest.raises(RasterError, match="no band 9"):
        Scene.from_files(tmp_path / "a.tif", indices=[BandFormula("x", "a / b", (("a", 1), ("b", 9)))])


def test_a_model_finds_its_bands_in_any_order_and_without_names(tmp_path):
    """Inputs are the bands that are read as those of the model."""
    pixels = RANDOM.integers(1, 3000, (3, *SHAPE)).astype(np.uint16)
    known = Scene.from_files(write(tmp_path / "a.tif", ("green", "red", "nir"), pixels), indices=[NDVI])
    other = write(tmp_path / "b.tif", ("nir", "blue", "green", "red"), pixels[[2, 0, 0, 1]])
    unnamed = write(tmp_path / "c.tif", (None, None, None), pixels)
    for path in (other, unnamed):
        scene = Scene.from_files(path, trained=known.band_names, indices=[NDVI])
        np.testing.assert_array_equal(scene.read().pixels, known.read().pixels)
    by_number = BandFormula("own", NDVI.formula, (("N", 3), ("R", 2)))
    trained = Scene.from_files(tmp_path / "a.tif", bands=(2, 3), indices=[by_number])
    scene = Scene.from_files(other, bands=(2, 3), trained=trained.band_names, indices=[by_number])
    np.testing.assert_array_equal(scene.read().pixels, trained.read().pixels)


def test_a_model_of_one_date_has_the_indices_of_all_dates(tmp_path):
    paths = [write(tmp_path / f"{date}.tif", ("B03", "B04", "B8A")) for date in ("may", "june")]
    trained = Scene.from_files(paths, bands=(2, 3), indices=[NDVI])
    again = Scene.from_files(paths, bands=(2, 3), trained=trained.band_names, indices=[NDVI])
    assert again.band_names == ("may:B04", "may:B8A", "may:NDVI", "june:NDVI") == trained.band_names
    np.testing.assert_array_equal(again.read().pixels, trained.read().pixels)


@pytest.mark.skipif(not (SHARED / "slovenia").is_dir(), reason="the shared files are not here")
def test_dates_of_real_imagery():
    paths = [SHARED / "slovenia" / f"S2L1C_{date}.tif" for date in ("20150711", "20150830")]
    scene = Scene.from_files(paths, bands=("S2L1C_20150711:B02",), indices=[NDVI])
    for found, path in zip(scene.read().pixels[1:], paths, strict=True):
        bands = read(path)
        np.testing.assert_allclose(found, ndvi(bands[3], bands[7]), rtol=1e-6)


@pytest.mark.skipif(not (SHARED / "leipzig").is_dir(), reason="the shared files are not here")
def test_an_index_that_was_published_with_the_imagery():
    path = SHARED / "leipzig" / "leipzig_raster.tif"
    tile = Scene.from_files(path, indices=[NDVI]).read()
    np.testing.assert_allclose(tile.pixels[8], tile.pixels[7], atol=1e-6)
