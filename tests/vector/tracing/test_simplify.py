"""Simplified and smoothed borders: whatever is asked for, the map stays a valid coverage."""

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from reference import NORTH_UP, PATTERNS, image_of, labels, maps, nodes, options, traced

from segkit.vector.geometry import to_shapely


def check(codes, **how):
    """State what must hold of a map that was generalised in this way, against the same one without simplification."""
    polygons, own = traced(codes, **how)
    exact, exact_codes = traced(codes, **(how | {"simplify": None, "smooth": False}))
    built, before = to_shapely(polygons), to_shapely(exact)
    assert own.tolist() == exact_codes.tolist()  # no region is lost
    np.testing.assert_array_equal(polygons.pixels, exact.pixels)
    assert shapely.is_valid(built).all()
    assert (shapely.area(built) > 0).all()
    assert shapely.coverage_is_valid(built)
    assert shapely.union_all(built).equals(shapely.union_all(before))  # the rim has not moved
    kept = nodes(labels(image_of((exact, exact_codes), codes)))
    placed = {~NORTH_UP @ xy for xy in shapely.get_coordinates(built).tolist()}
    assert kept <= placed
    if how.get("simplify") and not how.get("smooth"):
        assert placed <= {~NORTH_UP @ xy for xy in shapely.get_coordinates(before).tolist()}
        tolerance = float(how["simplify"].removesuffix("px"))
        for one, other in zip(built, before, strict=True):
            assert shapely.hausdorff_distance(one.boundary, other.boundary) <= tolerance + 1e-9
    return built, before


@settings(max_examples=150)
@given(maps(16), st.sampled_from(options()))
def test_it_stays_a_valid_coverage(codes, how):
    check(codes, **how)


@settings(max_examples=100)
@given(maps(), st.floats(0, 12), st.booleans(), st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_with_any_tolerance(codes, tolerance, smooth, block):
    check(codes, simplify=f"{tolerance:.3f}px", smooth=smooth, block=block)


@pytest.mark.parametrize("codes", PATTERNS.values(), ids=PATTERNS.keys())
@pytest.mark.parametrize("smooth", [False, True])
def test_patterns(codes, smooth):
    check(codes, simplify="100px", smooth=smooth)
    check(codes, smooth=smooth)


def test_noise_keeps_its_detail_where_it_must():
    codes = np.random.default_rng(3).integers(0, 3, (60, 60), dtype=np.uint8)
    built, before = check(codes, simplify="5px")
    assert shapely.get_num_coordinates(built).sum() < 0.95 * shapely.get_num_coordinates(before).sum()


def test_the_column_does_not_matter():
    """Columns are kept as bits of words."""
    noise, found = np.random.default_rng(3).integers(1, 4, (40, 40), dtype=np.uint8), []
    for left in (1, 40, 64, 130):
        codes = np.zeros((42, 180), dtype=np.uint8)
        codes[1:-1, left : left + 40] = noise
        polygons, own = traced(codes, simplify="3px")
        inside = shapely.transform(to_shapely(polygons)[own > 0], lambda at, by=left: at - (NORTH_UP.a * by, 0))
        found.append(sorted(shapely.to_wkb(inside)))
    assert found[0] == found[1] == found[2] == found[3]


def staircase(size):
    rows, columns = np.indices((size, size))
    return (columns > rows).astype(np.uint8)


def test_a_staircase_becomes_a_line():
    # Its corners lie half a pixel's diagonal off the line, all on one side of what goes from end to end.
    built, before = check(staircase(40), simplify="0.8px")
    assert shapely.get_num_coordinates(before).min() > 80
    assert shapely.get_num_coordinates(built).max() <= 7
    built, _ = check(staircase(40), simplify="0.6px")
    assert shapely.get_num_coordinates(built).max() > 20


@pytest.mark.parametrize(("tolerance", "stays"), [("1.95px", True), ("2px", False), ("2.05px", False)])
def test_a_step_stays_where_it_is_larger_than_the_tolerance(tolerance, stays):
    codes = np.zeros((12, 30), dtype=np.uint8)
    codes[6:] = 1
    codes[4:6, 10:20] = 1  # two pixels high
    built, _ = check(codes, simplify=tolerance)
    assert (shapely.get_num_coordinates(built).min() - 1 > 4) == stays


def test_two_borders_between_two_nodes_do_not_become_one():
    codes = np.ones((7, 9), dtype=np.uint8)
    codes[3:] = 2
    codes[2, 2:7] = codes[3, 3:6] = 3  # a lens on the border
    built, _ = check(codes, simplify="50px")
    assert len(built) == 3


def test_loops_keep_three_corners():
    codes = np.zeros((12, 12), dtype=np.uint8)
    codes[2:10, 2:10] = 1
    codes[4:8, 4:8] = 2
    built, _ = check(codes, simplify="50px")
    assert sorted(shapely.get_num_coordinates(built).tolist()) == [4, 4 + 5, 5 + 5]


def test_smoothing_rounds_corners():
    codes = np.zeros((12, 12), dtype=np.uint8)
    codes[3:9, 3:9] = 1
    [inner, outer], _ = check(codes, smooth=True)
    assert shapely.polygons(outer.exterior).equals(shapely.box(10, 38, 22, 50))
    # Each corner loses 11 / 108 of the triangle with its neighbours.
    assert inner.area == pytest.approx(36 - 4 * 11 / 108 * 18)
    assert shapely.get_num_coordinates(inner) == 4 * 3 + 1
    places = shapely.get_coordinates(inner) - (13, 41)
    assert {(3.0, 0.0), (0.0, 3.0), (6.0, 3.0), (3.0, 6.0)} <= set(map(tuple, places.tolist()))
    rounded = places[np.hypot(*(places - (6, 6)).T) < 1.5]
    np.testing.assert_allclose(sorted(rounded.tolist()), [[14 / 3, 17 / 3], [17 / 3, 14 / 3]])


def test_a_corner_with_something_in_it_is_not_rounded():
    codes = np.zeros((12, 12), dtype=np.uint8)
    codes[1:11, 1:11] = 1
    codes[2, 2] = 2
    built, _ = check(codes, smooth=True)
    largest = built[shapely.area(built).argmax()]
    assert (11.0, 49.0) in set(map(tuple, shapely.get_coordinates(largest.exterior).tolist()))


def test_a_distance_on_the_ground_is_one_in_pixels():
    codes = np.random.default_rng(5).integers(0, 2, (12, 12), dtype=np.uint8)
    codes = np.kron(codes, np.ones((5, 5), dtype=np.uint8))
    for code, transform, metres in (
        (32633, Affine(10, 0, 5e5, 0, -10, 5e6), 10 / 0.9996),
        (3857, Affine(10, 0, 0, 0, -10, 8_399_738), 5.007),  # at 60 degrees north
    ):
        crs = CRS.from_epsg(code)
        for pixels in (0.5, 0.9, 1.5, 2.5):
            in_pixels = traced(codes, crs=crs, transform=transform, simplify=f"{pixels}px")[0]
            on_ground = traced(codes, crs=crs, transform=transform, simplify=f"{pixels * metres:.3f}m")[0]
            np.testing.assert_array_equal(in_pixels.vertices, on_ground.vertices)


def test_in_degrees_a_pixel_is_narrower_than_high():
    # A tooth one pixel wide on the ground is half as wide as it is high: it may go where half of it may.
    codes = np.zeros((30, 30), dtype=np.uint8)
    codes[:, 15:] = 1
    codes[10:12, 15:17] = 0
    codes = np.ascontiguousarray(codes)
    crs, transform = CRS.from_epsg(4326), Affine(1e-4, 0, 10, 0, -1e-4, 60)
    width = 2 * 1e-4 * 111_320 * 0.5
    narrow = traced(codes, crs=crs, transform=transform, simplify=f"{width * 1.05:.3f}m")[0]
    turned = traced(codes.T.copy(), crs=crs, transform=transform, simplify=f"{width * 1.05:.3f}m")[0]
    assert len(narrow.vertices) < len(turned.vertices)
