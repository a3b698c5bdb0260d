"""Touching objects that are split, against h-maxima by their definition; whatever blocks a map is read in."""

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from reference import NODATA, NORTH_UP, image_of, labels, maps, same_polygons, traced
from scipy import ndimage

from segkit.vector.geometry import to_shapely
from segkit.vector.tracing.splitter import MAX_AREA_PIXELS, SplitCounts
from segkit.vector.tracing.watershed import smooth

BOUNDARY = 2
HOW = [{}, {"simplify": "1.5px"}, {"simplify": "3px", "smooth": True, "regularize": (1,)}, {"min_area": "5px"}]


def discs(*several, shape=(100, 100)):
    """Draw discs of (row, column, radius)."""
    rows, columns = np.indices(shape)
    return sum(((rows - r) ** 2 + (columns - c) ** 2 <= q * q).astype(np.uint8) for r, c, q in several).clip(max=1)


def pair(seed):
    """Return discs that overlap by up to 30 % of the smaller radius, or are apart, in any direction."""
    random = np.random.default_rng(seed)
    one, other = random.uniform(6, 14, 2)
    step = (one + other - random.uniform(-0.1, 0.3) * min(one, other)) / 2 * np.exp(1j * random.uniform(0, 2 * np.pi))
    middle = complex(*random.uniform(49.5, 50.5, 2))
    return [((middle + s).real, (middle + s).imag, q) for s, q in ((step, one), (-step, other))]


@st.composite
def crowds(draw):
    """Draw discs of class 1 that may touch, in ground (0) with specks of other classes and nodata."""
    height, width = draw(st.integers(12, 40)), draw(st.integers(12, 40))
    place = st.tuples(st.integers(0, height), st.integers(0, width))
    several = draw(st.lists(st.tuples(place, st.floats(2, 9)), min_size=1, max_size=9))
    codes = discs(*((*at, radius) for at, radius in several), shape=(height, width))
    for row, column in draw(st.lists(place, max_size=6)):
        codes[row : row + 1, column : column + 2] = draw(st.sampled_from([0, 1, BOUNDARY, NODATA]))
    return codes


def count_maxima(inside, depth, level=None):
    """Return the number of maxima higher than `depth` of the distance to the outline, or of another level."""
    level = ndimage.distance_transform_edt(np.pad(inside, 1)) if level is None else np.pad(level * inside, 1)
    high = level - depth
    while True:  # reconstruction by dilation
        higher = np.minimum(ndimage.grey_dilation(high, footprint=ndimage.generate_binary_structure(2, 1)), level)
        if (higher == high).all():
            break
        high = higher
    high = np.where(np.pad(inside, 1), high, -np.inf)
    found = 0
    around = ndimage.grey_dilation(high, footprint=ndimage.generate_binary_structure(2, 1))
    for value in np.unique(high[np.pad(inside, 1)]):
        plateaus, count = ndimage.label(high == value)
        found += sum((around[plateaus == k] <= value).all() for k in range(1, count + 1))
    return found


def check(codes, classes=(1,), **how):
    """State what must hold of a map with split objects; return the result, counts, and the same without splitting."""
    counts = SplitCounts()
    result = polygons, own = traced(codes, split=classes, split_counts=counts, **how)
    whole, whole_codes = traced(codes, **{k: v for k, v in how.items() if not k.startswith(("split", "boundary"))})
    built = to_shapely(polygons)
    assert shapely.is_valid(built).all()
    assert shapely.coverage_is_valid(built)
    assert shapely.area(built).sum() == pytest.approx(shapely.area(to_shapely(whole)).sum())
    assert len(own) - len(whole_codes) == counts.objects - counts.areas or "boundary_class" in how
    return result, counts, (whole, whole_codes)


@settings(max_examples=40, deadline=None)
@given(crowds() | maps(14), st.sampled_from([0.83, 1.37, 2.21]))
def test_there_is_a_polygon_for_each_maximum(codes, depth):
    result, _, whole = check(codes, split_depth=f"{depth}px")
    (polygons, own), before = result, labels(codes)
    np.testing.assert_array_equal(image_of(result, codes), image_of(whole, codes))
    inside = to_shapely(polygons)[own == 1]
    areas = [before == number for number in np.unique(before[codes == 1])]
    assert len(inside) == sum(count_maxima(area, depth) for area in areas)


@settings(max_examples=15, deadline=None)
@given(crowds(), st.sampled_from(HOW), st.tuples(st.integers(1, 9), st.integers(1, 60)), st.booleans())
def test_blocks_do_not_change_the_result(codes, how, block, by_boundary):
    how = how | ({"boundary_class": BOUNDARY} if by_boundary else {"split_depth": "0.6px"})
    result, _, _ = check(codes, **how)
    assert same_polygons(result, traced(codes, split=(1,), block=block, **how))


class Probabilities:
    """In place of a file: the same values for each class."""

    def __init__(self, values):
        self.values = values

    def read(self, one, window):
        return self.values[window.toslices()]

    def along(self, passed, classes, advance, *, colours):
        return ((part, None) for part in passed)


@settings(max_examples=30, deadline=None)
@given(
    crowds() | maps(14),
    st.integers(0, 999),
    st.sampled_from([0.03, 0.11]),
    st.tuples(st.integers(1, 9), st.integers(1, 60)),
)
def test_there_is_a_polygon_for_each_maximum_of_the_probability(codes, seed, depth, block):
    values = ndimage.gaussian_filter(np.random.default_rng(seed).random(codes.shape), 1)
    how = {"split_by": "probabilities", "split_depth": str(depth), "confidence": Probabilities(values)}
    (polygons, own), _, _ = check(codes, **how)
    regions, inside = labels(codes), to_shapely(polygons)[own == 1]
    areas = [np.pad(regions == number, 1) for number in np.unique(regions[codes == 1])]
    levels = [smooth(np.pad(values, 1), area)[1:-1, 1:-1] for area in areas]
    expected = sum(count_maxima(area[1:-1, 1:-1], depth, level) for area, level in zip(areas, levels, strict=True))
    assert len(inside) == expected
    assert same_polygons((polygons, own), traced(codes, split=(1,), block=block, **how))


def test_discs_that_touch_are_counted():
    several = [pair(seed) for seed in range(60)] + [pair(seed)[:1] for seed in range(30)]
    found = [np.count_nonzero(traced(discs(*one), split=(1,))[1] == 1) for one in several]
    assert found == [len(one) for one in several]


@settings(max_examples=30, deadline=None)
@given(crowds() | maps(14))
def test_boundaries_go_to_objects_and_keep_them_apart(codes):
    (polygons, own), _, _ = check(codes, boundary_class=BOUNDARY)
    objects, count = ndimage.label(codes == 1)
    areas, _ = ndimage.label(np.isin(codes, (1, BOUNDARY)))
    with_objects = np.isin(areas, areas[codes == 1]) & (areas > 0)
    expected = np.where(with_objects, 1, codes)
    np.testing.assert_array_equal(image_of((polygons, own), codes), expected)
    assert (own == 1).sum() == count
    for one in to_shapely(polygons)[own == 1]:
        assert len(set(objects[image_of_one(one, codes)].tolist()) - {0}) == 1


def image_of_one(polygon, codes):
    rows, columns = np.indices(codes.shape)
    x, y = NORTH_UP @ (columns.ravel() + 0.5, rows.ravel() + 0.5)
    return shapely.contains_xy(polygon, x, y).reshape(codes.shape)


def test_boundary_pixels_go_to_the_nearest_object():
    """Also to one of another class; and without a way to an object, they stay."""
    seeds = [(15, 12, 6), (15, 60, 9), (72, 25, 8)]
    codes = np.full((100, 100), BOUNDARY, dtype=np.uint8)
    for code, one in zip((1, 1, 3), seeds, strict=True):
        codes[discs(one) == 1] = code
    codes[:, 98] = 0
    result, counts, _ = check(codes, (1, 3), boundary_class=BOUNDARY)
    assert counts == SplitCounts(1, 3, 0)
    distance = np.array([ndimage.distance_transform_edt(discs(one) == 0) for one in seeds])
    chosen = np.zeros(codes.shape)
    for one in to_shapely(result[0]):
        inside = image_of_one(one, codes)
        [number] = [k for k, seed in enumerate(seeds) if inside[seed[:2]]] or [-1]
        chosen[inside] = distance[number][inside]
    np.testing.assert_allclose(chosen[:, :98], distance.min(axis=0)[:, :98], atol=1.5)
    assert (image_of(result, codes)[:, 99] == BOUNDARY).all()


def test_no_part_is_smaller_than_the_smallest_area():
    codes = discs((20, 12, 8), (20, 26, 7), (20, 37, 5))
    crs = CRS.from_epsg(32633)
    for least, count in ((None, 3), ("45px", 3), ("90px", 2), ("250px", 1), ("0.0090ha", 2)):
        where = {"crs": crs} if least == "0.0090ha" else {}
        (polygons, own), _, _ = check(codes, min_area=least, split_depth="1px", **where)
        assert (own == 1).sum() == count
        assert least is None or polygons.pixels.min() >= {3: 45, 2: 90, 1: 250}[count]


def test_distances_are_those_on_the_ground():
    codes, crs = discs((20, 12, 8), (20, 25, 7)), CRS.from_epsg(32633)
    wide = np.kron(codes, np.ones((1, 3), dtype=np.uint8))
    for image, width in ((codes, 9), (wide, 3)):
        where = {"crs": crs, "transform": Affine(width, 0, 5e5, 0, -9, 5e6)}
        found = [(check(image, split_depth=depth, **where)[0][1] == 1).sum() for depth in ("9m", "60m")]
        assert found == [2, 1]


def test_large_areas_stay_whole():
    codes = np.zeros((MAX_AREA_PIXELS + 20, 40), dtype=np.uint8)
    codes[8 : MAX_AREA_PIXELS + 8, 10:13] = 1
    codes[100:130, 5:30] = 1
    codes[900:940, 5:30] = 1
    _, counts, _ = check(codes)
    assert counts == SplitCounts(1, 2, 0)
    codes[MAX_AREA_PIXELS + 8, 10:13] = 1
    for image in (codes, codes.T.copy()):
        _, counts, _ = check(image)
        assert counts == SplitCounts(0, 0, 1)
