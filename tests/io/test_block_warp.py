"""A raster on another grid has the same pixels whatever window is read."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from places import UTM
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform
from rasterio.windows import Window

from segkit.io.block_warp import WarpedFile, warp_file
from segkit.io.grid import Grid
from segkit.io.scene import Scene

RANDOM = np.random.default_rng(3)
GRID = Grid(150, 170, UTM, CRS.from_epsg(32722))
STEP = 0.00027  # degrees, about 30 m


def write_degrees(path, nodata=-9999, bands=2):
    """Random values on a grid of 30 m pixels in degrees around `GRID`, with no data in places."""
    x, y = transform(GRID.crs, "EPSG:4326", [GRID.bounds[0]], [GRID.bounds[3]])
    place = Affine(STEP, 0, x[0] - 7 * STEP, 0, -STEP, y[0] + 7 * STEP)
    pixels = RANDOM.normal(500, 100, (bands, 70, 75)).astype(np.float32)
    pixels[0, 20:25, 30:40] = nodata
    profile = {"driver": "GTiff", "count": bands, "height": 70, "width": 75, "dtype": "float32"}
    with rasterio.open(path, "w", **profile, crs="EPSG:4326", transform=place, nodata=nodata) as dataset:
        dataset.write(pixels)
    return path


@pytest.mark.parametrize("resampling", [Resampling.bilinear, Resampling.nearest, Resampling.cubic, Resampling.average])
def test_pixels_are_those_of_gdal_and_do_not_depend_on_the_window(tmp_path, monkeypatch, resampling):
    """Oracle: GDAL with exact coordinates, on the whole grid at once."""
    monkeypatch.setattr("segkit.io.block_warp._BLOCK_PX", 64)
    monkeypatch.setattr("segkit.io.block_warp._CACHE_BYTES", 0)
    path = write_degrees(tmp_path / "degrees.tif")
    options = {"crs": GRID.crs, "transform": GRID.transform, "height": GRID.height, "width": GRID.width}
    with (
        rasterio.open(path) as dataset,
        WarpedVRT(dataset, **options, resampling=resampling, tolerance=1e-7) as exact,
    ):
        truth, masks = exact.read(), exact.read_masks()
        warped = WarpedFile(dataset, GRID, [1, 2], resampling, None)
        whole = warped.read([1, 2], window=GRID.full_window)
        known = np.stack([warped.read_masks(band, window=GRID.full_window) for band in (1, 2)]) > 0
        same = np.isclose(whole, truth, atol=8) | ~known | (masks == 0)  # values differ by 100 from pixel to pixel
        assert same.mean() > 0.99
        assert (known == (masks > 0)).mean() > 0.99
        again = WarpedFile(dataset, GRID, [2], resampling, None)
        for _ in range(12):
            row, column = RANDOM.integers(0, 140, 2)
            height, width = RANDOM.integers(1, [GRID.height - row + 1, GRID.width - column + 1])
            window = Window(int(column), int(row), int(width), int(height))
            inside = np.s_[row : row + height, column : column + width]
            np.testing.assert_array_equal(again.read([2], window=window)[0], whole[1][inside])
            np.testing.assert_array_equal(warped.read_masks(1, window=window) > 0, known[0][inside])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("masked", [False, True])
def test_there_is_no_data_beyond_the_raster_and_where_it_is_masked(tmp_path, dtype, masked):
    """GDAL knows that of unsigned types only."""
    path = tmp_path / "part.tif"
    profile = {"driver": "GTiff", "count": 1, "dtype": dtype, "height": 20, "width": 30, "crs": GRID.crs}
    place = GRID.transform @ Affine.translation(10, 20) @ Affine.scale(2)
    with rasterio.open(path, "w", **profile, transform=place) as dataset:
        dataset.write(np.full((1, 20, 30), 7, dtype=dtype))
        if masked:
            dataset.write_mask(np.arange(30)[None].repeat(20, 0) < 25)
    with rasterio.open(path) as dataset:
        found = WarpedFile(dataset, GRID, [1], Resampling.nearest, None).read_masks(1, window=GRID.full_window) > 0
    expected = np.zeros(GRID.shape, dtype=bool)
    expected[20:60, 10 : 60 if masked else 70] = True
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("hidden_by", ["mask", "alpha", "alpha and a declared value", "mask and an impossible value"])
def test_a_mask_and_a_no_data_value_both_count(tmp_path, hidden_by):
    """GDAL alone applies one of them, and makes 1 of a no-data value of 0 that an alpha band shows."""
    pixels, shown = np.full((1, 20, 30), 7, dtype=np.uint8), np.full((20, 30), 255, dtype=np.uint8)
    pixels[:, :5] = 0
    shown[:, 20:] = 0
    is_alpha, declared = "alpha" in hidden_by, 0 if "declared" in hidden_by else None
    profile = {"driver": "GTiff", "count": 1 + is_alpha, "dtype": "uint8", "height": 20, "width": 30, "crs": GRID.crs}
    place = GRID.transform @ Affine.scale(2)
    with rasterio.open(tmp_path / "a.tif", "w", **profile, transform=place, nodata=declared, alpha="yes") as dataset:
        dataset.write(np.concatenate([pixels, shown[None]]) if is_alpha else pixels)
        if not is_alpha:
            dataset.write_mask(shown)
    given = None if "declared" in hidden_by else -9999 if "impossible" in hidden_by else 0
    expected = np.ones((20, 30), dtype=bool)
    expected[:5] = given == -9999
    if declared is None:  # the declared value takes precedence over an alpha band, as on the file's own grid
        expected[:, 20:] = False
    with rasterio.open(tmp_path / "a.tif") as dataset:
        warped = warp_file(dataset, GRID, [1], Resampling.bilinear, given)
        known = warped.read_masks(1, window=GRID.full_window)[:40:2, :60:2] > 0
        values = warped.read([1], window=GRID.full_window)[0, :40:2, :60:2]
    np.testing.assert_array_equal(known, expected)
    assert {*values[expected & (np.arange(20) > 5)[:, None]]} == {7}
    if given != -9999:
        assert {*values[expected]} == {7}


def test_resampled_files_of_a_scene_have_no_seams(tmp_path):
    """GDAL's own pixels depend on the window: with it, this test fails."""
    first = tmp_path / "first.tif"
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": GRID.height, "width": GRID.width}
    with rasterio.open(first, "w", **profile, crs=GRID.crs, transform=GRID.transform) as dataset:
        dataset.write(np.ones((1, *GRID.shape), dtype=np.uint8))
    scene = Scene.from_files([first, write_degrees(tmp_path / "degrees.tif")], resample=True)
    whole = scene.read()
    with scene.open() as reader:
        for row in range(0, GRID.height, 37):
            window = Window(3, row, 101, 29)
            tile, inside = reader.read(window), np.s_[row : row + 29, 3:104]
            rows = GRID.height - row
            np.testing.assert_array_equal(tile.pixels[:, :rows], whole.pixels[:, *inside][:, :rows])
