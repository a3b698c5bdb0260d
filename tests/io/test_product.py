"""Products are scenes: bands of several resolutions on one grid, in the same units whatever their version is."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
from products import LEFT, NAME, TOP, item, random_bands, write_item, write_safe
from rasterio.windows import Window
from synthetic import write_raster

from segkit.errors import DataError, GridError, RasterError, UsageError
from segkit.io.pixel_rules import PixelRules
from segkit.io.product import Product, as_image, find_products
from segkit.io.quality_mask import MASK_PRESETS, QualityMask
from segkit.io.scene import Scene

SCL = QualityMask(MASK_PRESETS["sentinel2_scl"])


@pytest.fixture(scope="module")
def bands():
    return random_bands(["B01", "B02", "B04", "B08", "B11", "AOT", "SCL"])


@pytest.fixture(scope="module")
def safe(tmp_path_factory, bands):
    return write_safe(tmp_path_factory.mktemp("products"), bands)


def bilinear(pixels, factor):
    """Pixels as values at their centres, linear in between, constant beyond the outer centres."""
    height, width = pixels.shape

    def axis(size):
        at = np.clip((np.arange(size * factor) + 0.5) / factor - 0.5, 0, size - 1)
        low = np.minimum(at.astype(int), size - 2)
        return low, at - low

    (rows, down), (columns, right) = axis(height), axis(width)
    upper = pixels[rows][:, columns] * (1 - right) + pixels[rows][:, columns + 1] * right
    lower = pixels[rows + 1][:, columns] * (1 - right) + pixels[rows + 1][:, columns + 1] * right
    return upper * (1 - down)[:, None] + lower * down[:, None]


def test_the_grid_is_that_of_the_finest_band_that_is_used(safe):
    for names, resolution in ((["B04", "B11"], 10), (["B11"], 20), (["B01"], 60)):
        grid = Scene.from_files(safe, bands=names).grid
        assert (grid.transform.a, grid.transform.c, grid.transform.f) == (resolution, LEFT, TOP)
        assert grid.shape == (600 // resolution,) * 2
        assert str(grid.crs) == "EPSG:32632"


def test_bands_of_other_resolutions_are_resampled(safe, bands):
    wanted = ["B04", "B11", "B01"]
    repeated = [np.kron(bands[key], np.ones((size, size))) for key, size in ((("B11", 20), 2), (("B01", 60), 6))]
    between = [bilinear(bands["B11", 20], 2), bilinear(bands["B01", 60], 6)]
    for method, expected, error in (("nearest", repeated, 0), ("bilinear", between, 0.5)):  # GDAL rounds integers
        tile = Scene.from_files(safe, bands=wanted, resampling=method).read()
        assert tile.valid.all()
        np.testing.assert_array_equal(tile.pixels[0], bands["B04", 10] - 1000.0)
        np.testing.assert_allclose(tile.pixels[1:], np.array(expected) - 1000, rtol=0, atol=error + 1e-6)


def test_finer_bands_are_averaged(safe, bands):
    tile = Scene.from_files(safe, bands=["B08", "B11"], resolution=20, resampling="average").read()
    means = bands["B08", 10].reshape(30, 2, 30, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(tile.pixels[0], means - 1000, rtol=0, atol=0.5)
    np.testing.assert_array_equal(tile.pixels[1], bands["B11", 20] - 1000.0)


def test_files_with_the_resolution_are_preferred(tmp_path):
    random = np.random.default_rng(3)
    bands = {("B04", size): random.integers(1100, 9000, (600 // size,) * 2, dtype=np.uint16) for size in (10, 20, 60)}
    safe = write_safe(tmp_path, bands)
    for size in (10, 20, 60):
        tile = Scene.from_files(safe, bands=["B04"], resolution=size).read()
        np.testing.assert_array_equal(tile.pixels[0], bands["B04", size] - 1000.0)
    fine = Scene.from_files(safe, bands=["B04"], resolution=15, resampling="nearest")  # from the 10 m file
    assert fine.grid.shape == (40, 40)
    assert {*fine.read().pixels.ravel()} <= {*(bands["B04", 10] - 1000.0).ravel()}
    assert Scene.from_files(safe, bands=["B04"], resolution=7).grid.shape == (86, 86)  # of 85.7, no ground is lost
    with pytest.raises(RasterError, match="10 x 10 pixels of 60 are smaller than one of 700"):
        Scene.from_files(safe, bands=["B04"], resolution=700)


@pytest.mark.parametrize(("method", "resolution"), [("bilinear", None), ("bilinear", 25), ("average", 20)])
def test_pixels_do_not_depend_on_the_window(safe, method, resolution):
    scene = Scene.from_files(safe, mask=SCL, resolution=resolution, resampling=method)
    whole = scene.read()
    random = np.random.default_rng(0)
    with scene.open() as reader:
        for _ in range(15):
            top, bottom = sorted(random.integers(0, scene.grid.height + 1, 2))
            left, right = sorted(random.integers(0, scene.grid.width + 1, 2))
            tile = reader.read(Window(left, top, right - left, bottom - top))
            np.testing.assert_array_equal(tile.pixels, whole.pixels[:, top:bottom, left:right])
            np.testing.assert_array_equal(tile.valid, whole.valid[top:bottom, left:right])


def test_a_product_is_a_stack_of_its_files(safe):
    """Files given by hand, with the offset that the metadata declare, give the same pixels."""
    files = [next(safe.rglob(f"*_{name}m.jp2")) for name in ("B04_10", "B11_20")]
    stack = Scene.from_files(files, resample=True, rules=PixelRules(offset=(-1000,), nodata=(0,))).read()
    product = Scene.from_files(safe, bands=["B04", "B11"]).read()
    np.testing.assert_array_equal(product.pixels, stack.pixels)


def test_products_of_all_baselines_have_the_same_units(tmp_path, bands):
    reflectance = {key: pixels - np.uint16(1000) for key, pixels in bands.items() if key[0][0] == "B"}
    old = write_safe(tmp_path, reflectance, baseline="02.14")
    new = write_safe(tmp_path, {key: pixels + np.uint16(1000) for key, pixels in reflectance.items()})
    for scaled, factor in ((False, 1), (True, 1e-4)):
        tiles = [Scene.from_files(path, bands=["B04", "B11"], scaled=scaled).read().pixels for path in (old, new)]
        np.testing.assert_allclose(tiles[0], tiles[1], rtol=1e-6)
        np.testing.assert_allclose(tiles[0][0], reflectance["B04", 10] * factor, rtol=1e-6)


def test_given_units_must_not_contradict_the_metadata(tmp_path, bands):
    old, new = (write_safe(tmp_path, bands, baseline=each) for each in ("02.14", "05.11"))

    def read(path, *scale_offset, **more):
        scale, offset = ((value,) for value in scale_offset)
        return Scene.from_files(path, bands=["B04"], rules=PixelRules(scale, offset, **more)).read().pixels[0]

    np.testing.assert_allclose(read(new, 1, -1000), bands["B04", 10] - 1000.0)
    np.testing.assert_allclose(read(new, 1e-4, -0.1), bands["B04", 10] / 1e4 - 0.1, atol=1e-6)
    for path, scale, offset in ((old, 1, -1000), (new, 1, 0), (new, 1e-4, 0)):
        with pytest.raises(RasterError, match="is to be added to stored values"):
            read(path, scale, offset)
    np.testing.assert_array_equal(read(new, 1, 0, for_these_scenes=True), bands["B04", 10])


def test_nodata_of_the_metadata_is_no_data(tmp_path, bands):
    bands = {key: pixels.copy() for key, pixels in bands.items()}
    bands["B04", 10][5:8, :] = 0
    bands["B11", 20][10, 20] = 0
    safe = write_safe(tmp_path, bands)
    expected = np.ones((60, 60), dtype=bool)
    expected[5:8] = False
    expected[20:22, 40:42] = False
    tile = Scene.from_files(safe, bands=["B04", "B11"], resampling="nearest").read()
    np.testing.assert_array_equal(tile.valid, expected)
    mixed = Scene.from_files(safe, bands=["B04", "B11"]).read()
    assert mixed.pixels[1][mixed.valid].min() >= 100  # a neighbour that is no data does not lower a mean


def test_the_scene_classification_is_the_quality_band(safe, bands):
    scene = Scene.from_files(safe, bands=["B04"], mask=SCL)
    cloud = np.isin(np.kron(bands["SCL", 20], np.ones((2, 2))), SCL.rule.values)
    np.testing.assert_array_equal(scene.read().valid, ~cloud)
    assert scene.name == safe.stem


def test_codes_are_not_averaged(safe, bands):
    tile = Scene.from_files(safe, bands=["B04", "SCL", "B11"]).read()
    np.testing.assert_array_equal(tile.pixels[1], np.kron(bands["SCL", 20], np.ones((2, 2))))


def test_without_bands_the_spectral_ones_are_used(safe):
    assert Scene.from_files(safe).band_names == ("B01", "B02", "B04", "B08", "B11")
    assert Scene.from_files(safe, bands=["red", "nir", "swir16"]).band_names == ("B04", "B08", "B11")
    assert Scene.from_files(safe, bands=[3, 1]).band_names == ("B04", "B01")
    assert Scene.from_files(safe, bands=["SCL"]).read().pixels.max() <= 11  # codes, without an offset
    trained = Scene.from_files(safe, trained=["swir16", "red"])
    assert trained.read().pixels.shape == (2, 60, 60)
    np.testing.assert_array_equal(trained.read().pixels, Scene.from_files(safe, bands=["B11", "B04"]).read().pixels)
    with pytest.raises(RasterError, match=r"SAFE: has no band 'B12'; its bands are B01, B02, B04"):
        Scene.from_files(safe, bands=["B12"])


def test_only_files_that_are_used_must_be_there(tmp_path, bands):
    safe = write_safe(tmp_path, bands)
    next(safe.rglob("*_B11_20m.jp2")).unlink()
    assert Scene.from_files(safe, bands=["B04"]).read().valid.all()
    for wanted in (None, ["B04", "B11"], [1]):
        with pytest.raises(RasterError, match=r"is incomplete, GRANULE\S+_B11_20m.jp2 is missing"):
            Scene.from_files(safe, bands=wanted)


def test_other_files_are_stacked_on_products(tmp_path, safe, bands):
    with rasterio.open(next(safe.rglob("*_B04_10m.jp2"))) as dataset:
        profile = dataset.profile | {"driver": "GTiff", "dtype": "float32"}
    height = np.random.default_rng(1).random((1, 60, 60), dtype=np.float32)
    with rasterio.open(tmp_path / "height.tif", "w", **profile) as dataset:
        dataset.write(height)
    scene = Scene.from_files([safe, tmp_path / "height.tif"], bands=["B11", "height", "B04"], resampling="nearest")
    pixels = scene.read().pixels
    np.testing.assert_array_equal(pixels[1], height[0])
    np.testing.assert_array_equal(pixels[2], bands["B04", 10] - 1000.0)
    with pytest.raises(GridError, match="lie on different grids"):
        Scene.from_files([safe, write_raster(tmp_path / "elsewhere.tif", height)])


def test_products_can_be_sent_to_other_processes(safe):
    for path in (Product(safe), *Product(safe).select(_all(), 10)):
        again = pickle.loads(pickle.dumps(path))
        assert again == path
        assert hash(again) == hash(path)
        assert again.files == path.files
    scene = Scene.from_files(safe)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(scene)).read().pixels, scene.read().pixels)
    assert Product(safe).absolute() == Product(safe.absolute())


def test_changed_files_are_noticed(tmp_path, bands):
    safe = write_safe(tmp_path, bands)
    before = Product(safe).describe()
    assert Product(safe).describe() == before
    file = next(safe.rglob("*_B04_10m.jp2"))
    file.write_bytes(file.read_bytes() + b"\0")
    assert Product(safe).describe() != before


def test_names_of_products(tmp_path, safe):
    product = Product(safe)
    assert (product.stem, product.suffix, product.parent) == (NAME.format("0511"), ".SAFE", safe.parent)
    assert [str(one) for one in find_products(safe / "MTD_MSIL2A.xml")] == [str(safe)]
    assert find_products(tmp_path) is None
    assert find_products(Path("a.tif")) is None
    scenes = {"type": "FeatureCollection", "features": [item({}, "a"), item({}, "../b/c")]}
    path = write_item(tmp_path / "items.json", {})
    path.write_text(json.dumps(scenes))
    assert [one.stem for one in find_products(path)] == ["a", "_b_c"]
    assert str(find_products(path)[0]) == f"{path} (a)"
    with pytest.raises(UsageError, match="holds 2 items of STAC"):
        as_image(path)
    with pytest.raises(DataError, match="has no item 'd' any more"):
        _ = Product(path, "d").bands


def _all():
    from segkit.io.band_choice import WantedBands

    return WantedBands()
