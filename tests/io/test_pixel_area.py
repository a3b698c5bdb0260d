"""Areas of pixels and classes against the exact area of each pixel."""

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from segkit.io.grid import Grid
from segkit.io.pixel_area import AreaTally

GRIDS = {
    "utm": Grid(200, 300, Affine(30, 0, 500_000, 0, -30, 9_000_000), CRS.from_epsg(32622)),
    "degrees": Grid(150, 400, Affine(1e-3, 0, -60, 0, -1e-3, 70), CRS.from_epsg(4326)),
    "coarse degrees": Grid(180, 360, Affine(1, 0, -180, 0, -1, 90), CRS.from_epsg(4326)),
    "rotated": Grid(120, 130, Affine(7, 4, 400_000, 4, -7, 5_000_000), CRS.from_epsg(32633)),
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_tally_agrees_with_the_exact_area_of_each_pixel(grid):
    random = np.random.default_rng(0)
    targets = random.integers(0, 3, (2, *grid.shape)).astype(np.int16)
    valid = random.random(grid.shape) < 0.9
    whole, in_parts = AreaTally(3, grid, n_targets=2), AreaTally(1, grid, n_targets=2)
    whole.add(targets, valid, grid.full_window)
    in_parts.extend(3)
    for top in range(0, grid.height, 64):
        window = Window(0, top, grid.width, min(64, grid.height - top))
        in_parts.add(targets[:, top : top + 64], valid[top : top + 64], window)
    exact = grid.hectares()
    hectares = [[exact[valid & (target == index)].sum() for index in range(3)] for target in targets]
    pixels = [[(valid & (target == index)).sum() for index in range(3)] for target in targets]
    for tally in (whole, in_parts):
        np.testing.assert_array_equal(tally.pixels, pixels)
        np.testing.assert_allclose(tally.hectares, hectares, rtol=1e-6)


def test_a_grid_without_a_crs_has_pixels_and_no_hectares():
    tally = AreaTally(2, Grid(2, 2, Affine.scale(10), None))
    tally.add([np.array([[0, 1], [1, -1]])], np.array([[True, True], [True, False]]), Window(0, 0, 2, 2))
    assert tally.pixels.tolist() == [[1, 2]]
    assert tally.hectares is None
