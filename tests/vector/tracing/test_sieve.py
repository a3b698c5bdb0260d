"""Small regions and holes, against their definitions."""

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from reference import NODATA, PATTERNS, contacts, filled, image_of, labels, maps, merged, traced

from segkit.io.grid import Grid
from segkit.vector.geometry import to_shapely

blocks = st.tuples(st.integers(1, 7), st.integers(1, 7))


@settings(max_examples=100)
@given(maps(14), st.integers(0, 14), blocks)
def test_small_regions_go_where_their_border_is_longest(codes, least, block):
    found = image_of(traced(codes, min_area=f"{least}px", block=block), codes)
    np.testing.assert_array_equal(found, merged(codes, least))


@settings(max_examples=100)
@given(maps(14), st.integers(0, 14), blocks)
def test_small_holes_are_filled(codes, least, block):
    found = image_of(traced(codes, fill_holes=f"{least}px", block=block), codes)
    np.testing.assert_array_equal(found, filled(codes, least))


@pytest.mark.parametrize("codes", PATTERNS.values(), ids=PATTERNS.keys())
@pytest.mark.parametrize("least", [2, 5, 100])
def test_patterns(codes, least):
    found = image_of(traced(codes, min_area=f"{least}px", block=(1, 1)), codes)
    np.testing.assert_array_equal(found, merged(codes, least))
    found = image_of(traced(codes, fill_holes=f"{least}px", block=(1, 1)), codes)
    np.testing.assert_array_equal(found, filled(codes, least))


def small_rings(polygons, codes, least):
    """Inner rings of less than `least` pixels that have no data in none of theirs."""
    rings = [shapely.polygons(ring) for polygon in polygons for ring in polygon.interiors]
    return [ring for ring in rings if ring.area < least and not shapely.contains(ring, unknown(codes)).any()]


def unknown(codes):
    """Squares of the pixels without data."""
    polygons, own = traced(np.where(codes == NODATA, 1, 0).astype(np.uint8))
    return to_shapely(polygons)[own == 1]


@settings(max_examples=80)
@given(maps(14), st.integers(1, 14), st.integers(1, 14))
def test_nothing_small_is_left(codes, least, hole):
    polygons, own = traced(codes, min_area=f"{least}px", fill_holes=f"{hole}px")
    built = to_shapely(polygons)
    image = labels(image_of((polygons, own), codes))
    alone = [region for region, others in contacts(image).items() if set(others) == {-1}]
    small = [region for region in np.unique(image[image >= 0]) if np.count_nonzero(image == region) < least]
    assert set(small) <= set(alone)
    assert not small_rings(built, codes, hole)
    np.testing.assert_array_equal(image < 0, codes == NODATA)
    assert polygons.pixels.sum() == np.count_nonzero(codes != NODATA)


@pytest.mark.parametrize("least", [24, 25, 26, 49, 50])
def test_a_hole_in_a_small_ring_is_compared_as_a_whole(least):
    """A ring of 24 pixels around two regions of 12 and 13."""
    codes = np.zeros((20, 20), dtype=np.uint8)
    codes[5:12, 5:12], codes[6:11, 6:11], codes[6:8, 6:11], codes[8, 6:8] = 1, 2, 3, 3
    found = image_of(traced(codes, fill_holes=f"{least}px"), codes)
    np.testing.assert_array_equal(found, filled(codes, least))
    assert (found[6:11, 6:11] == (2 if least < 26 else 1 if least < 50 else 0)).sum() >= 12


def test_borders_are_compared_on_the_ground():
    # A pixel's width above and below, and twice its height at its sides.
    codes = np.array([[1, 1, 1, 1, 1], [2, 2, 0, 2, 2], [3, 3, 3, 3, 3]], dtype=np.uint8)
    flat, tall = Affine(30, 0, 4e5, 0, -10, 5e6), Affine(10, 0, 4e5, 0, -30, 5e6)
    found = [traced(codes, transform=t, crs=CRS.from_epsg(32633), min_area="2px") for t in (flat, tall)]
    assert [sorted(zip(own.tolist(), polygons.pixels.tolist(), strict=True)) for polygons, own in found] == [
        [(1, 6), (2, 2), (2, 2), (3, 5)],
        [(1, 5), (2, 5), (3, 5)],
    ]


def test_the_smallest_goes_first_and_what_has_grown_may_stay():
    # The 3 joins the 2 beside it, which is then large enough; the other way around nothing but 1 would be left.
    codes = np.array([[1, 1, 1, 1, 1], [1, 2, 2, 3, 1], [1, 2, 3, 3, 1], [1, 1, 1, 1, 1]], dtype=np.uint8)
    codes[1, 3] = 2
    codes[2, 3] = 2
    assert sorted(traced(codes, min_area="5px")[0].pixels.tolist()) == [6, 14]


@pytest.mark.parametrize(("size", "count"), [("0.0499ha", 2), ("500.5m2", 1), ("0.0005km2", 2), ("5px", 2), ("6px", 1)])
def test_sizes_are_those_on_the_ground(size, count):
    # Five pixels of 100 m2 in the map; some 500.4 m2 at the edge of the central meridian.
    codes = np.zeros((6, 7), dtype=np.uint8)
    codes[2, 1:6] = 1
    crs, transform = CRS.from_epsg(32633), Affine(10, 0, 5e5, 0, -10, 5e6)
    area = Grid(*codes.shape, transform, crs).hectares()[2, 1:6].sum()
    assert 0.05003 < area < 0.05005
    assert len(traced(codes, crs=crs, transform=transform, min_area=size)[0].class_index) == count
    assert len(traced(codes, crs=crs, transform=transform, fill_holes=size)[0].class_index) == count


def test_in_degrees_a_region_counts_more_towards_the_equator():
    codes = np.zeros((60, 5), dtype=np.uint8)
    codes[5, 2] = codes[55, 2] = 1
    crs, transform = CRS.from_epsg(4326), Affine(1, 0, 10, 0, -1, 70)
    polygons, own = traced(codes, crs=crs, transform=transform, min_area="8000km2")
    assert own.tolist() == [1, 0]
    assert polygons.pixels.tolist() == [1, 299]


def test_where_nothing_has_a_size_nothing_is_small():
    codes = np.zeros((8, 8), dtype=np.uint8)
    codes[4, 4] = 1
    crs, transform = CRS.from_string("+proj=moll +datum=WGS84"), Affine(1e3, 0, 5e7, 0, -1e3, 0)
    assert len(traced(codes, crs=crs, transform=transform, min_area="10000km2")[0].class_index) == 2


def test_no_data_takes_nothing_and_is_not_filled():
    codes = np.full((5, 5), NODATA, dtype=np.uint8)
    codes[1:4, 1:4] = 1
    codes[2, 2] = NODATA
    polygons, _ = traced(codes, min_area="1000px", fill_holes="1000px")
    assert polygons.pixels.tolist() == [8]
    assert shapely.get_num_interior_rings(to_shapely(polygons)).tolist() == [1]
