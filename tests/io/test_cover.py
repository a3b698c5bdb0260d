import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.windows import Window

from segkit.io.cover import PixelRegion, grids_within, lie_side_by_side, overlap
from segkit.io.grid import Grid

UTM, NEXT, DEGREES = (CRS.from_epsg(code) for code in (32622, 32623, 4326))
WINDOWS = st.builds(Window, st.integers(-9, 50), st.integers(-9, 50), st.integers(1, 30), st.integers(1, 30))
STAR = shapely.Polygon([(3.2, 4.1), (21.7, 8.3), (30.4, 33.9), (12.6, 20.2), (5.1, 29.4)])


def centres(window):
    rows, columns = np.mgrid[: int(window.height), : int(window.width)]
    return columns + window.col_off + 0.5, rows + window.row_off + 0.5


def grid(left=600_000.0, top=1_000_000.0, height=60, width=80, pixel=10.0, crs=UTM, transform=None):
    return Grid(height, width, transform or Affine(pixel, 0, left, 0, -pixel, top), crs)


def there(crs, pixel=10.0):
    """About the ground of `grid()` in another CRS."""
    left, top = pyproj.Transformer.from_crs(UTM.to_wkt(), crs.to_wkt(), always_xy=True).transform(600_000, 1_000_000)
    return grid(left, top, pixel=pixel, crs=crs)


@given(windows=st.lists(WINDOWS, max_size=4), drawn=st.booleans(), window=WINDOWS)
def test_a_pixel_is_covered_where_its_centre_is(windows, drawn, window):
    cover = PixelRegion(tuple(windows), (STAR,) if drawn else ())
    x, y = centres(window)
    expected = np.zeros(x.shape, dtype=bool)
    for shape in [shapely.box(w.col_off, w.row_off, w.col_off + w.width, w.row_off + w.height) for w in windows]:
        expected |= shapely.contains_xy(shape, x, y)
    if drawn:
        expected |= shapely.contains_xy(STAR, x, y)
    np.testing.assert_array_equal(cover.mask(window), expected)
    assert bool(cover) == bool(windows or drawn)


@given(gap=st.integers(0, 12))
@settings(max_examples=20)
def test_what_has_grown_lies_within_the_gap(gap):
    around = Window(-30, -30, 100, 100)
    far = shapely.distance(STAR, shapely.points(*centres(around)))
    grown = PixelRegion((), (STAR,)).buffered(gap).mask(around)
    assert grown[far <= gap].all() if gap else True
    assert not grown[far > gap * 1.01].any()
    assert PixelRegion((Window(5, 7, 3, 2),)).buffered(gap).windows == (
        Window(5 - gap, 7 - gap, 3 + 2 * gap, 2 + 2 * gap),
    )


@pytest.mark.parametrize(
    "other",
    [
        grid(left=600_200.0, top=999_900.0),
        grid(left=600_205.0, pixel=5.0),
        grid(transform=Affine(8, 3, 600_100, 3, -8, 1_000_050)),
        there(NEXT),
        there(DEGREES, pixel=0.0001),
    ],
    ids=["shifted", "finer", "rotated", "next zone", "degrees"],
)
@pytest.mark.parametrize(
    "cover", [PixelRegion((Window(20, 10, 31, 25),)), PixelRegion((), (STAR,))], ids=["window", "polygon"]
)
def test_the_same_ground_on_another_grid(cover, other):
    """Oracle: each pixel centre of the other grid, taken to the first one."""
    own = grid()
    found = cover.reprojected(own, other).mask(other.full_window)
    x, y = other.transform @ centres(other.full_window)
    x, y = pyproj.Transformer.from_crs(other.crs.to_wkt(), own.crs.to_wkt(), always_xy=True).transform(x, y)
    x, y = ~own.transform @ (x, y)
    expected = np.any([shapely.contains_xy(shape, x, y) for shape in cover.shapes], axis=0)
    edge = np.any([shapely.distance(shape.boundary, shapely.points(x, y)) < 0.02 for shape in cover.shapes], axis=0)
    assert expected.any()
    np.testing.assert_array_equal(found[~edge], expected[~edge])


def test_what_has_no_place_in_the_other_crs_is_left_out():
    view = Grid(10, 10, Affine(1000, 0, 0, 0, -1000, 0), CRS.from_proj4("+proj=ortho +lat_0=0 +lon_0=0"))
    behind = grid(left=179.0, top=0.0, pixel=0.001, crs=DEGREES)
    assert not PixelRegion((Window(0, 0, 20, 20),)).reprojected(behind, view)


@given(shift=st.integers(-150, 150), gap=st.integers(0, 40))
def test_grids_are_near_where_the_gap_bridges_them(shift, gap):
    grids = [grid(), grid(left=600_000 + 10 * shift), grid(left=900_000)]
    apart = max(0, abs(shift) - 80)
    # Both grow, so that the gap of either suffices.
    assert grids_within(grids, gap) == ([(0, 1)] if apart <= 2 * gap else [])


def test_near_in_other_crs_and_across_the_antimeridian():
    here = grid()
    zone = there(NEXT)
    east = grid(left=833_500.0, top=100_000.0, crs=CRS.from_epsg(32660))  # its last columns lie beyond 180 degrees
    west = grid(left=166_200.0, top=100_000.0, crs=CRS.from_epsg(32601))
    assert grids_within([here, zone, east], 0) == [(0, 1)]
    assert grids_within([here, zone, east, west], 10) == [(0, 1), (2, 3)]


def test_who_has_no_place_is_near_nobody():
    homeless = Grid(60, 80, Affine.identity(), None)
    assert grids_within([homeless, homeless, grid(), grid()], 5) == [(2, 3)]
    local = grid(crs=None)
    assert grids_within([local, grid(left=600_100, crs=None)], 5) == [(0, 1)]
    assert grids_within([local, grid(), grid(crs=NEXT)], 5) == []


def test_overlap_is_in_the_windows_own_rows_and_columns():
    array = np.zeros((50, 50), dtype=bool)
    array[10:30, 5:20] = True
    window = Window(12, 22, 30, 20)
    cut = np.zeros((20, 30), dtype=bool)
    cut[overlap(Window(5, 10, 15, 20), window)] = True
    np.testing.assert_array_equal(cut, array[window.toslices()])


def test_grids_lie_side_by_side_if_edges_connect_them_all_without_overlap():
    quarters = [grid(600_000 + x, 1_000_000 - y) for x in (0, 800) for y in (0, 600)]
    assert lie_side_by_side(quarters)
    assert lie_side_by_side(quarters[:3])
    assert not lie_side_by_side(quarters[:1])
    assert not lie_side_by_side([quarters[0], quarters[3]])  # only a corner
    assert not lie_side_by_side([*quarters, grid(600_000 + 2400)])  # one is apart
    assert not lie_side_by_side([*quarters, grid(600_000 + 790)])  # one overlaps
    assert not lie_side_by_side([*quarters, grid(600_003 + 1600)])  # another lattice
    assert not lie_side_by_side([quarters[0], grid(600_000 + 800, crs=NEXT)])
