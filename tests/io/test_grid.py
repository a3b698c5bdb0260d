import itertools
import math

import numpy as np
import pyproj
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.windows import Window

from segkit.errors import GridError
from segkit.io.grid import Grid, crs_name, to_equal_area

UTM = CRS.from_epsg(32622)
GRID = Grid(12, 17, Affine(30, 0, 600_000, 0, -30, 200_000), UTM)
LOCAL = CRS.from_wkt('LOCAL_CS["the site",UNIT["metre",1]]')
PLACES = {
    "degrees": (4326, Affine(9e-5, 0, -60, 0, -9e-5, -3)),
    "SIRGAS": (4674, Affine(2.7e-4, 0, -50, 0, -2.7e-4, -11)),
    "coarse degrees": (4326, Affine(1, 0, 10, 0, -1, 68)),
    "antimeridian": (4326, Affine(0.25, 0, 179.5, 0, -0.25, -16)),
    "0 to 360": (4326, Affine(90, 0, 0, 0, -15, 60)),
    "whole world": (4326, Affine(90, 0, -180.5, 0, -15, 60)),
    "grads from Paris": (4807, Affine(0.01, 0, 2, 0, -0.01, 50)),
    "Web Mercator": (3857, Affine(10, 0, -6_000_000, 0, -10, 8_000_000)),
    "Web Mercator's edge": (3857, Affine(1000, 0, 20_035_508.342, 0, -1000, 2_000_000)),
    "UTM": (32622, Affine(30, 0, 300_000, 0, -30, 9_000_000)),
    "UTM at the antimeridian": (32701, Affine(1000, 0, 165_000, 0, -1000, 8_000_000)),
    "rotated": (32622, GRID.transform @ Affine.rotation(33)),
    "south-up": (32622, Affine(30, 0, 600_000, 0, 30, 200_000)),
    "feet": (2263, Affine(100, 0, 980_000, 0, -100, 200_000)),
    "Antarctica at 180 degrees": (3031, Affine(1000, 0, -2000, 0, -1000, -1_200_000)),
}


def on_the_ground(grid, row, column, steps=400):
    """Hectares of one pixel: a geodesic polygon along its densified outline."""
    crs = pyproj.CRS.from_wkt(grid.crs.to_wkt())
    shares = np.arange(steps) / steps
    zero, one = np.zeros(steps), np.ones(steps)
    columns = column + np.concatenate([shares, one, 1 - shares, zero])
    rows = row + np.concatenate([zero, shares, one, 1 - shares])
    x, y = grid.transform @ (columns, rows)
    a, b = crs.ellipsoid.semi_major_metre, crs.ellipsoid.semi_minor_metre
    degrees = pyproj.CRS.from_proj4(f"+proj=longlat +a={a!r} +b={b!r} +no_defs")
    lon, lat = pyproj.Transformer.from_crs(crs, degrees, always_xy=True).transform(x, y)
    geod = pyproj.Geod(a=a, b=b)
    return abs(geod.polygon_area_perimeter(lon, lat)[0]) / 10_000


@pytest.mark.parametrize(("epsg", "transform"), PLACES.values(), ids=PLACES)
def test_hectares_are_those_of_geodesic_polygons(epsg, transform):
    grid = Grid(4, 4, transform, CRS.from_epsg(epsg))
    expected = [[on_the_ground(grid, row, column) for column in range(4)] for row in range(4)]
    np.testing.assert_allclose(grid.hectares(), expected, rtol=2e-6)


@given(st.integers(0, 11), st.integers(0, 16), st.integers(1, 12), st.integers(1, 17))
def test_hectares_of_a_window_are_those_of_the_whole(row, column, height, width):
    grid = Grid(12, 17, Affine(0.5, 0, 170, 0, -0.5, 40), CRS.from_epsg(4326))
    height, width = min(height, 12 - row), min(width, 17 - column)
    here = grid.hectares()[row : row + height, column : column + width]
    np.testing.assert_allclose(grid.hectares(Window(column, row, width, height)), here, rtol=1e-9)


def test_the_antimeridian_does_not_cut_the_cylinder():
    longitudes = np.arange(178, 183, 0.5)
    x, y = to_equal_area(CRS.from_epsg(4326), longitudes, np.full(longitudes.size, -17.0))
    np.testing.assert_allclose(np.diff(x), np.radians(0.5) * 6_378_137)
    assert np.ptp(y) == 0


def test_the_world_has_the_area_of_the_ellipsoid():
    f = 1 / 298.257223563
    e = math.sqrt(f * (2 - f))
    surface = 2 * math.pi * 6_378_137.0**2 * (1 + (1 - e * e) / e * math.atanh(e))
    for left in (-180, 0, -180.5):
        grid = Grid(18, 36, Affine(10, 0, left, 0, -10, 90), CRS.from_epsg(4326))
        assert grid.hectares().sum() * 10_000 == pytest.approx(surface, rel=1e-12)


@pytest.mark.parametrize(("crs", "words"), [(None, "without a CRS"), (LOCAL, "the site has no ellipsoid")])
def test_without_a_place_on_the_ground_there_is_no_area(crs, words):
    grid = Grid(2, 2, Affine.identity(), crs)
    with pytest.raises(GridError, match=words):
        grid.hectares()
    with pytest.raises(ValueError, match=words):
        to_equal_area(crs, np.zeros(1), np.zeros(1))


def test_out_of_the_crs_there_is_no_area():
    far = Grid(2, 2, Affine(1e9, 0, 0, 0, -1e9, 0), CRS.from_proj4("+proj=ortho +lat_0=0 +lon_0=0"))
    assert np.isnan(far.hectares()).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 15))
def test_tiles_cover_each_pixel_once(height, width, size):
    grid = Grid(height, width, GRID.transform, UTM)
    seen = np.zeros(grid.shape, dtype=int)
    for window in grid.tiles(size):
        assert 0 < window.height <= min(size, height - window.row_off)
        assert 0 < window.width <= min(size, width - window.col_off)
        rows, columns = window.toslices()
        seen[rows, columns] += 1
    assert (seen == 1).all()


@given(*[st.integers(-20, 20)] * 4, st.floats(-180, 180))
def test_a_part_keeps_its_pixels_where_they_are(left, top, column, row, degrees):
    grid = Grid(12, 17, GRID.transform @ Affine.rotation(degrees), UTM)
    part = grid.subgrid(Window(left, top, 5, 7))
    assert part.shape == (7, 5)
    assert part.crs == grid.crs
    assert part.transform @ (column, row) == pytest.approx(grid.transform @ (left + column, top + row), abs=1e-6)
    assert grid.subgrid(grid.full_window) == grid


@pytest.mark.parametrize("turn", [0, 33, 90, 200])
@pytest.mark.parametrize("down", [-30, 30])
def test_bounds_hold_every_corner_and_no_more(turn, down):
    grid = Grid(3, 5, Affine(30, 0, 600_000, 0, down, 200_000) @ Affine.rotation(turn), UTM)
    x, y = np.array([grid.transform @ corner for corner in itertools.product((0, 5), (0, 3))]).T
    assert grid.bounds == (x.min(), y.min(), x.max(), y.max())
    assert grid.pixel_size == pytest.approx((30, 30))


def test_equal_grids_have_no_difference():
    for grid in (GRID, Grid(3, 4, Affine.identity(), None)):
        shift = Affine.translation(5e-4, -5e-4)  # half a thousandth of a pixel
        assert grid.describe_difference(Grid(grid.height, grid.width, grid.transform @ shift, grid.crs)) is None


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Grid(12, 18, GRID.transform, UTM), "12 x 17 against 12 x 18 pixels"),
        (Grid(12, 17, GRID.transform, None), "CRS EPSG:32622 against none"),
        (Grid(12, 17, GRID.transform, LOCAL), "CRS EPSG:32622 against the site"),
        (
            Grid(12, 17, GRID.transform @ Affine.translation(0, 0.002), UTM),
            "transform (30, 0, 600000, 0, -30, 200000) against (30, 0, 600000, 0, -30, 199999.94)",
        ),
        (Grid(13, 17, GRID.transform, CRS.from_epsg(4326)), "12 x 17 against 13 x 17 pixels; CRS EPSG:32622 against"),
    ],
)
def test_a_difference_is_named(other, words):
    assert words in GRID.describe_difference(other)


def test_a_pixel_size_that_adds_up_is_a_difference():
    """A pixel that is a ten-thousandth longer is the same at the first pixel and another at the hundredth."""
    long = Grid(1, 100, GRID.transform, UTM)
    assert long.describe_difference(Grid(1, 100, GRID.transform @ Affine.scale(1.0001, 1), UTM))
    other = Grid(1, 5, GRID.transform @ Affine.scale(1.0001, 1), UTM)
    assert long.subgrid(Window(0, 0, 5, 1)).describe_difference(other) is None


def test_names_of_crs():
    assert crs_name(UTM) == "EPSG:32622"
    assert crs_name(None) == "none"
    assert crs_name(LOCAL) == "the site"


def test_a_grid_is_frozen():
    with pytest.raises(AttributeError):
        GRID.width = 3


def test_pixels_in_metres():
    """A degree of latitude at the equator is 110,574 m, one of longitude 111,320 m (WGS 84)."""
    crs = CRS.from_epsg(4326)
    grid = Grid(2, 2, Affine(1e-3, 0, 10, 0, -1e-3, 1e-3), crs)
    assert grid.pixel_metres() == pytest.approx((111.320, 110.574), rel=1e-4)
    north = Grid(2, 2, Affine(1e-3, 0, 10, 0, -1e-3, 60.001), crs)
    assert north.pixel_metres() == pytest.approx((55.80, 111.41), rel=1e-3)
    utm = Grid(8, 8, Affine(0, 20, 500_000, 10, 0, 0), CRS.from_epsg(32632))  # rows run north
    assert utm.pixel_metres(Window(0, 0, 1, 1)) == pytest.approx((10.004, 20.008), rel=1e-4)
    with pytest.raises(GridError):
        Grid(8, 8, Affine.identity(), None).pixel_metres()


@given(
    row=st.integers(-30, 30),
    column=st.integers(-30, 30),
    angle=st.sampled_from([0, 33]),
    off=st.sampled_from([0, 1e-5, 0.3]),
)
def test_the_position_of_a_grid_in_another(row, column, angle, off):
    other = Grid(20, 30, Affine(10, 0, 600_000, 0, -10, 9_000_000) @ Affine.rotation(angle), CRS.from_epsg(32622))
    grid = Grid(7, 9, other.transform @ Affine.translation(column + off, row), other.crs)
    assert grid.position_in(other) == (None if off > 1e-3 else (row, column))
    coarse = Grid(7, 9, grid.transform @ Affine.scale(1.001), grid.crs)
    assert coarse.position_in(other) is None
    assert Grid(7, 9, grid.transform, None).position_in(other) is None
