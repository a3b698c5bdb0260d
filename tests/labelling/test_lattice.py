"""Windows side by side, and what is measured in them."""

import numpy as np
import pytest
from places import UTM
from rasterio.windows import Window
from synthetic import write_raster

from segkit.errors import GridError, UsageError
from segkit.io.grid import Grid
from segkit.io.scene import Scene
from segkit.labelling.lattice import Lattice, describe_windows


def grid(height, width, crs="EPSG:32722"):
    from rasterio.crs import CRS

    return Grid(height, width, UTM, None if crs is None else CRS.from_string(crs))


@pytest.mark.parametrize(("height", "width", "size"), [(100, 70, 32), (32, 33, 32), (20, 90, 32), (9, 9, 32)])
def test_windows_are_inside_and_apart(height, width, size):
    lattice = Lattice.from_size(grid(height, width), f"{size}px", "a")
    covered = np.zeros((height, width), dtype=int)
    windows = [lattice.window(index) for index in range(len(lattice))]
    for window in windows:
        covered[window.toslices()] += 1
        assert (window.height, window.width) == (min(size, height), min(size, width))
    assert covered.sum() == len(windows) * windows[0].height * windows[0].width
    assert covered.max() == 1
    assert len(windows) == max(1, height // size) * max(1, width // size)


def test_sizes_in_metres_follow_the_pixels_on_the_ground():
    lattice = Lattice.from_size(grid(100, 100), "320m", "a")
    assert (lattice.height, lattice.width) == (32, 32)
    with pytest.raises(GridError):
        Lattice.from_size(grid(100, 100, None), "320m", "a")
    for size in ("32", "7px", "40m"):
        with pytest.raises(UsageError):
            Lattice.from_size(grid(100, 100), size, "a")


def test_sums_of_any_blocks_add_up():
    lattice = Lattice(grid(50, 67), 12, 16)
    values = np.random.default_rng(0).random((50, 67))
    total = np.zeros(lattice.shape)
    for top, bottom in ((0, 7), (7, 30), (30, 50)):
        for left, right in ((0, 1), (1, 40), (40, 67)):
            window = Window(left, top, right - left, bottom - top)
            rows, columns, sums = lattice.sums(values[top:bottom, left:right], window)
            total[rows, columns] += sums
    expected = [values[lattice.window(index).toslices()].sum() for index in range(len(lattice))]
    np.testing.assert_allclose(total.ravel(), expected)


def test_windows_are_described_by_their_valid_pixels(tmp_path):
    random = np.random.default_rng(1)
    pixels = random.integers(1, 1000, (2, 40, 56)).astype(np.uint16)
    pixels[:, :20, :10] = 0
    scene = Scene.from_files(write_raster(tmp_path / "a.tif", pixels, nodata=0))
    lattice = Lattice(scene.grid, 16, 16)
    valid, features = describe_windows(scene, lattice, lambda step: None)
    for index in range(len(lattice)):
        rows, columns = lattice.window(index).toslices()
        part = np.where(pixels[:, rows, columns] > 0, pixels[:, rows, columns], np.nan).astype(float)
        assert valid[index] == np.isfinite(part[0]).mean()
        texture = [np.nanmean(np.abs(np.diff(part, axis=axis)), axis=(1, 2)) for axis in (1, 2)]
        expected = [np.nanmean(part, axis=(1, 2)), np.nanstd(part, axis=(1, 2)), np.mean(texture, axis=0)]
        np.testing.assert_allclose(features[index], np.concatenate(expected), rtol=1e-5)
