"""Layers: rasters that cover scenes, on any grid."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from places import SHARED
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from synthetic import cut_raster, write_raster

from segkit.errors import GridError, MissingFileError, RasterError
from segkit.io.layers import Layer
from segkit.io.mosaic import Mosaic
from segkit.io.pixel_rules import PixelRules
from segkit.io.scene import Scene

RANDOM = np.random.default_rng(4)
SHAPE = (60, 80)


@pytest.fixture
def image(tmp_path):
    return write_raster(tmp_path / "image.tif", RANDOM.integers(1, 99, (2, *SHAPE)).astype(np.uint16))


def write_coarse(path, *, nodata=None, rows=30, columns=40, shift=(-95, 105), bands=1):
    """Heights on pixels of 30 m around the image."""
    pixels = RANDOM.normal(500, 50, (bands, rows, columns)).astype(np.float32)
    place = Affine(30, 0, 500_000 + shift[0], 0, -30, 9_000_000 + shift[1])
    write_raster(path, pixels, nodata=nodata)
    with rasterio.open(path, "r+") as dataset:
        dataset.transform = place
    return path


@pytest.mark.parametrize("resampling", ["bilinear", "nearest", "cubic", "average"])
def test_a_layer_is_on_the_grid_of_the_scene(tmp_path, image, resampling):
    dem = write_coarse(tmp_path / "dem.tif")
    scene = Scene.from_files(image, layers=[Layer("elevation", dem, resampling=resampling)])
    assert (scene.bands, scene.band_names) == ((1, 2, 3), ("1", "2", "elevation"))
    tile = scene.read()
    with (
        rasterio.open(dem) as dataset,
        WarpedVRT(
            dataset, crs=scene.grid.crs, transform=scene.grid.transform, height=SHAPE[0], width=SHAPE[1],
            resampling=Resampling[resampling],
        ) as truth,
    ):  # fmt: skip
        np.testing.assert_allclose(tile.pixels[2], truth.read(1), rtol=1e-6)
    assert tile.valid.all()
    with scene.open() as reader:
        part = reader.read(Window(11, 7, 30, 20))
    np.testing.assert_array_equal(part.pixels, tile.pixels[:, 7:27, 11:41])
    assert scene.without_derived().band_names == ("1", "2")


def test_pixels_where_a_layer_has_no_data_are_not_valid(tmp_path, image):
    dem = write_raster(tmp_path / "dem.tif", np.arange(SHAPE[0] * SHAPE[1], dtype=np.float32).reshape(SHAPE))
    with rasterio.open(dem, "r+") as dataset:
        dataset.write(np.where(dataset.read() < 500, -32768, dataset.read()))
    for rules in (PixelRules(), PixelRules(nodata=(600,), scale=(2,))):  # those of the images
        tile = Scene.from_files(image, rules=rules, layers=[Layer("elevation", dem, nodata=(-32768,))]).read()
        values = np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE)
        np.testing.assert_array_equal(tile.valid, values >= 500)
        np.testing.assert_array_equal(tile.pixels[2], np.where(values < 500, np.nan, values))


def test_a_layer_may_end_within_the_scene(tmp_path, image):
    dem = write_coarse(tmp_path / "half.tif", columns=15)
    scene = Scene.from_files(image, layers=[Layer("elevation", dem)])
    tile = scene.read()
    columns = np.flatnonzero(tile.valid.any(axis=0))
    edge = (15 * 30 - 95) // 10
    assert abs(columns.max() - edge) <= 1
    np.testing.assert_array_equal(tile.valid, ~np.isnan(tile.pixels[2]))
    assert scene.layers[0].covered == pytest.approx(edge / SHAPE[1], abs=0.03)


def test_a_layer_elsewhere_or_missing_is_named(tmp_path, image):
    far = write_coarse(tmp_path / "far.tif", shift=(900_000, 0))
    with pytest.raises(GridError, match=r"layer 'elevation' does not cover .*image\.tif: .*far\.tif has the extent.*--layer elevation=FILE"):  # fmt: skip  # noqa: E501
        Scene.from_files(image, layers=[Layer("elevation", far)])
    with pytest.raises(
        MissingFileError, match=r"none\.tif: no such file; it is the layer 'elevation'; name it \(--layer"
    ):
        Scene.from_files(image, layers=[Layer("elevation", tmp_path / "none.tif")])
    with pytest.raises(RasterError, match="band 3 was asked for"):
        Scene.from_files(image, layers=[Layer("elevation", far.with_name("image.tif"), bands=(3,))])
    without = write_raster(tmp_path / "without.tif", np.ones((5, 5), dtype=np.float32), crs=None)
    with pytest.raises(GridError, match="one of them has no CRS"):
        Scene.from_files(image, layers=[Layer("elevation", without)])


def test_bands_of_a_layer_are_called_after_it(tmp_path, image):
    terrain = write_coarse(tmp_path / "terrain.tif", bands=3)
    with rasterio.open(terrain, "r+") as dataset:
        dataset.descriptions = ("height", "slope", None)
    everything = Scene.from_files(image, layers=[Layer("terrain", terrain)])
    assert everything.band_names[2:] == ("terrain:height", "terrain:slope", "terrain:3")
    one = Scene.from_files(image, layers=[Layer("terrain", terrain, bands=("slope",))])
    assert one.band_names[2:] == ("terrain",)
    np.testing.assert_array_equal(one.read().pixels[2], everything.read().pixels[3])
    with everything.with_bands([(4, "terrain:slope"), (1, "1")]).open() as reader:
        tile = reader.read(everything.grid.full_window)
    np.testing.assert_array_equal(tile.pixels, everything.read().pixels[[3, 0]])


def test_a_layer_in_tiles_is_that_in_one_file(tmp_path, image):
    dem = write_coarse(tmp_path / "dem.tif", nodata=-1)
    tiles = cut_raster(dem, tmp_path / "tiles", [11], [17, 25])
    whole, parts = (Scene.from_files(image, layers=[Layer("elevation", path)]).read() for path in (dem, Mosaic(tiles)))
    np.testing.assert_allclose(parts.pixels, whole.pixels, rtol=1e-6)
    np.testing.assert_array_equal(parts.valid, whole.valid)


def test_a_model_does_not_look_for_layers_in_the_images(tmp_path, image):
    """Bands of a model are found by name; those of layers are none of them."""
    with rasterio.open(image, "r+") as dataset:
        dataset.descriptions = ("red", "nir")
        pixels = dataset.read()
    dem = write_coarse(tmp_path / "dem.tif")
    swapped = write_raster(tmp_path / "swapped.tif", pixels[::-1])
    with rasterio.open(swapped, "r+") as dataset:
        dataset.descriptions = ("nir", "red")
    layers = [Layer("elevation", dem)]
    known = Scene.from_files(image, layers=layers)
    other = Scene.from_files(swapped, trained=known.band_names, layers=layers)
    assert other.band_names == known.band_names
    np.testing.assert_array_equal(other.read().pixels, known.read().pixels)


@pytest.mark.skipif(not (SHARED / "slovenia").is_dir(), reason="the shared files are not here")
def test_a_real_elevation_model_that_was_moved_to_another_projection(tmp_path):
    """A model of 25 m pixels in degrees, made from that on the grid of the image, is within metres of it."""
    folder = SHARED / "slovenia"
    with (
        rasterio.open(folder / "DEM.tif") as dataset,
        WarpedVRT(dataset, crs="EPSG:4326", resampling=Resampling.average, src_nodata=-1, nodata=-1) as degrees,
    ):
        truth = dataset.read(1)
        height, width = degrees.height // 3, degrees.width // 3
        pixels = degrees.read(out_shape=(1, height, width), resampling=Resampling.average)
        place = degrees.transform @ Affine.scale(degrees.width / width, degrees.height / height)
    profile = {"driver": "GTiff", "count": 1, "height": height, "width": width, "dtype": "float32", "nodata": -1}
    with rasterio.open(tmp_path / "dem.tif", "w", **profile, crs="EPSG:4326", transform=place) as dataset:
        dataset.write(pixels)
    tile = Scene.from_files(folder / "S2L1C_20150711.tif", layers=[Layer("elevation", tmp_path / "dem.tif")]).read()
    assert tile.valid.mean() > 0.95
    difference = (tile.pixels[13] - truth)[tile.valid]
    assert abs(np.median(difference)) < 1
    assert np.abs(difference).mean() < 4
