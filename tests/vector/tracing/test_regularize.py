"""Right-angled outlines of objects in a map: whatever lies around them, the map stays a valid coverage."""

from functools import partial

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from reference import NODATA, maps, same_polygons, traced
from shapely import affinity

from segkit.vector.geometry import to_shapely
from segkit.vector.tracing.regularize import MAX_OBJECT_PIXELS, OutlineCounts, Regularizer
from segkit.vector.tracing.right_angles import MAX_AREA_CHANGE

SIMPLIFIED = [{}, {"simplify": "1px"}, {"simplify": "5px"}, {"smooth": True}, {"simplify": "2px", "smooth": True}]


def building(size, degrees, at, wing=1.0):
    """A rectangle, or an L if `wing` is less than 1, around (column, row)."""
    corners = [(0, 0), (1, 0), (1, 0.5), (wing, 0.5), (wing, 1), (0, 1)]
    shape = affinity.scale(shapely.Polygon(corners[:2] + corners[-2:] if wing == 1 else corners), size, 0.8 * size)
    return affinity.translate(affinity.rotate(shape, degrees, origin="center"), *(np.array(at) - 0.5))


def drawn(shapes, height, width):
    return rasterio.features.rasterize([(one, 1) for one in shapes], (height, width), dtype="uint8")


@st.composite
def towns(draw):
    """Draw rotated buildings (1) that may touch, in ground (0) with rectangles of 2, specks and nodata."""
    height, width = draw(st.integers(20, 50)), draw(st.integers(20, 50))
    place = st.tuples(st.integers(0, width), st.integers(0, height))
    found = np.zeros((height, width), dtype=np.uint8)
    for column, row in draw(st.lists(place, max_size=3)):
        found[row : row + 9, column : column + 12] = 2
    for at in draw(st.lists(place, max_size=6)):
        shape = building(draw(st.integers(4, 20)), draw(st.integers(0, 89)), at, draw(st.sampled_from([0.5, 1.0])))
        found[drawn([shape], height, width) == 1] = 1
    for column, row in draw(st.lists(place, max_size=8)):
        found[row : row + 1, column : column + 1] = draw(st.sampled_from([0, 1, 2, NODATA]))
    return found


def check(codes, classes=(1,), **how):
    """State what must hold of a map with right-angled outlines, against the same one with exact outlines."""
    counts = OutlineCounts()
    polygons, own = traced(codes, regularize=classes, outline_counts=counts, **how)
    exact, exact_codes = traced(codes)
    built, before = to_shapely(polygons), to_shapely(exact)
    assert own.tolist() == exact_codes.tolist()  # no region is lost
    np.testing.assert_array_equal(polygons.pixels, exact.pixels)
    assert shapely.is_valid(built).all()
    assert shapely.coverage_is_valid(built)
    assert shapely.area(built).sum() == pytest.approx(shapely.area(before).sum())  # of the whole map
    assert shapely.union_all(built, grid_size=1e-6).equals(shapely.union_all(before))  # its rim has not moved
    assert counts.right_angled + counts.kept == np.isin(own, classes).sum()
    return counts, built, before, own


@settings(max_examples=40, deadline=None)
@given(towns(), st.sampled_from(SIMPLIFIED), st.sampled_from([(1,), (1, 2), (0, 1, 2)]))
def test_it_stays_a_valid_coverage(codes, how, classes):
    check(codes, classes, **how)


@settings(max_examples=40, deadline=None)
@given(maps(16), st.sampled_from(SIMPLIFIED))
def test_noise_stays_a_valid_coverage(codes, how):
    check(codes, (0, 1, 2), **how)


@settings(max_examples=12, deadline=None)
@given(towns(), st.sampled_from(SIMPLIFIED), st.tuples(st.integers(1, 9), st.integers(1, 60)))
def test_blocks_do_not_change_the_result(codes, how, block):
    assert same_polygons(traced(codes, regularize=(1,), **how), traced(codes, regularize=(1,), block=block, **how))


def town(height=150, width=150, seed=2):
    """Return a map with buildings at least 5 pixels apart, and their shapes."""
    random, shapes = np.random.default_rng(seed), []
    while len(shapes) < 14:
        at = random.uniform(20, (width - 20, height - 20))
        one = building(random.uniform(14, 26), random.uniform(0, 90), at, random.choice([0.5, 1.0]))
        if all(one.distance(other) > 5 for other in shapes):
            shapes.append(one)
    return drawn(shapes, height, width), [affinity.affine_transform(one, [1, 0, 0, -1, 10, 50]) for one in shapes]


@pytest.mark.parametrize("how", SIMPLIFIED)
def test_buildings_get_the_corners_of_the_true_shapes(how):
    codes, shapes = town()
    counts, built, before, own = check(codes, **how)
    assert (counts.right_angled, counts.kept) == (len(shapes), 0)
    gain = []
    for found, pixels in zip(built[own == 1], before[own == 1], strict=True):
        [shape] = [one for one in shapes if one.intersects(pixels)]
        assert shapely.get_num_coordinates(found) == shapely.get_num_coordinates(shape)
        assert abs(found.area / pixels.area - 1) <= MAX_AREA_CHANGE
        assert shapely.hausdorff_distance(found.boundary, pixels.boundary, densify=0.1) <= 2 + 0.5**0.5
        overlap = [one.intersection(shape).area / one.union(shape).area for one in (found, pixels)]
        gain.append(overlap[0] - overlap[1])
    assert np.mean(gain) > 0.01


def test_areas_and_lengths_are_those_of_the_new_outline():
    codes, _ = town()
    polygons, _ = traced(codes, regularize=(1,), crs=CRS.from_epsg(32633))
    built = to_shapely(polygons)
    exact, _ = traced(codes, crs=CRS.from_epsg(32633))
    pixel = exact.area.sum() / codes.size
    np.testing.assert_allclose(polygons.area, shapely.area(built) * pixel, rtol=1e-5)
    np.testing.assert_allclose(polygons.perimeter, shapely.length(built) * pixel**0.5, rtol=1e-3)


def test_courtyards_and_what_stands_in_them():
    yard = building(40, 25, (50, 50))
    codes = drawn([yard], 100, 100)
    codes[drawn([affinity.scale(yard, 0.6, 0.6)], 100, 100) == 1] = 0
    counts, built, _, own = check(codes)
    assert (counts.right_angled, counts.kept) == (1, 0)
    [house] = built[own == 1]
    assert [len(ring.coords) for ring in (house.exterior, *house.interiors)] == [5, 5]
    codes[drawn([affinity.scale(yard, 0.25, 0.25)], 100, 100) == 1] = 1
    counts, built, _, own = check(codes, simplify="1px")
    assert (counts.right_angled, counts.kept) == (2, 0)


def test_neighbours_in_the_way_keep_the_outline():
    house = building(24, 30, (40, 40))
    free = drawn([house], 80, 80)
    outline = free.astype(bool)
    beside = np.zeros_like(outline)
    beside[1:] = outline[:-1]
    touching, rim = free.copy(), free.copy()
    touching[np.argwhere(beside & ~outline)[0][0] :, :20] = 2
    touching[np.nonzero(beside & ~outline)] = 2
    rim[:, :30] = NODATA
    assert check(free)[0] == OutlineCounts(1, 0)
    for codes in (touching, rim):
        for how in SIMPLIFIED:
            counts, built, _, _ = check(codes, **how)
            assert counts.right_angled == 0
            ordinary = to_shapely(traced(codes, **how)[0])
            assert shapely.equals_identical(built, ordinary).all()


def facing(seed):
    """Return a map with two houses that lack the corners that face each other."""
    random, codes = np.random.default_rng(seed), np.zeros((60, 80), dtype=np.uint8)
    for degrees, sign in ((135, -1), (-45, 1)):
        corner = 40 + sign * random.uniform(-0.5, 1), 30 + random.uniform(-1, 1)
        house = shapely.box(*corner, *(corner + random.uniform(11, 20, 2)))
        house = affinity.rotate(house, degrees + random.uniform(-20, 20), origin=corner)
        codes[drawn([house.difference(shapely.Point(corner).buffer(random.uniform(1, 2.8)))], 60, 80) == 1] = 1
    return codes


@pytest.mark.parametrize("seed", [413, 774])
def test_of_two_outlines_that_would_cross_one_is_chosen(seed):
    assert check(facing(seed))[0] == OutlineCounts(1, 1)


@pytest.mark.parametrize("gap", [1, 2, 3, 5])
def test_houses_side_by_side(gap):
    """Whatever their distance, their outlines do not meet; with room between them, all become right-angled."""
    for degrees in (0, 12, 31, 45):
        row = shapely.multipolygons([shapely.box(k, 30, k + 14, 48) for k in (10, 24 + gap, 38 + 2 * gap)])
        codes = drawn(shapely.get_parts(affinity.rotate(row, degrees, origin="center")), 80, 80)
        counts, _, _, _ = check(codes, simplify="2px", smooth=True)
        assert gap < 5 or counts == OutlineCounts(3, 0)


def in_a_moat(seed):
    """Return a map with a house (1) that lacks some corners, in a narrow ring of ground (0) with bays, within 2."""
    random = np.random.default_rng(seed)
    size, degrees, wing = random.uniform(10, 26), random.uniform(0, 90), random.choice([0.5, 1])
    house = built = building(size, degrees, (30, 30), wing)
    corners = shapely.points(house.exterior.coords)
    for corner in corners[: random.integers(0, 5)]:
        built = built.difference(corner.buffer(random.uniform(1, 3)))
    moat = house.buffer(random.uniform(1.5, 3), join_style=str(random.choice(["mitre", "round"])))
    for corner in corners:
        if random.random() < 0.5:
            moat = moat.union(corner.buffer(random.uniform(2, 6)))
    codes = np.where(drawn([moat], 60, 60), 0, 2).astype(np.uint8)
    codes[drawn([built], 60, 60) == 1] = 1
    return codes


@pytest.mark.parametrize(("seed", "top"), [(49, 0), (116, 0), (142, 0), (328, 0), (367, 0), (400, 0), (49, 1100)])
def test_simplified_borders_keep_out_of_corridors(seed, top, monkeypatch):
    """These maps were found by search: only the corridor keeps the simplified border away from the new outline."""
    codes = np.pad(in_a_moat(seed), ((top, 0), (0, 0)))
    assert check(codes, simplify="6px")[0] == OutlineCounts(1, 0)

    def take_without_corridors(regularizer, top, bottom, take=Regularizer.take_outlines):
        outlines = take(regularizer, top, bottom)
        return outlines._replace(corridors=np.zeros_like(outlines.corridors))

    monkeypatch.setattr(Regularizer, "take_outlines", take_without_corridors)
    assert not shapely.is_valid(to_shapely(traced(codes, regularize=(1,), simplify="6px")[0])).all()


@pytest.mark.parametrize("how", [{}, {"simplify": "2px", "smooth": True}])
def test_where_arcs_are_cut_between_strips_nothing_shows(how):
    """Other borders have a node every 1024 rows; outlines of buildings do not."""
    codes, _ = town()
    for top in (1024 - 75, 1024 - 62):
        below = np.pad(codes, ((top, 30), (0, 0)))
        counts, built, _, own = check(below, **how)
        assert counts == OutlineCounts(14, 0)
        alone, alone_codes = traced(codes, regularize=(1,), **how)
        moved = shapely.transform(built[own == 1], partial(np.add, (0, top)))
        assert shapely.equals_exact(moved, to_shapely(alone)[alone_codes == 1], 1e-9).all()


def test_objects_above_the_limit_keep_their_outline():
    codes = np.zeros((MAX_OBJECT_PIXELS + 30, 30), dtype=np.uint8)
    codes[10 : MAX_OBJECT_PIXELS + 10, 5:15] = 1
    assert check(codes)[0] == OutlineCounts(1, 0)
    codes[MAX_OBJECT_PIXELS + 10, 5:15] = 1
    codes[20:40, 20:26] = 1
    assert check(codes)[0] == OutlineCounts(1, 1)
    assert check(codes.T.copy())[0] == OutlineCounts(1, 1)


def test_only_chosen_classes_change():
    codes, _ = town()
    codes[(codes == 1) & (np.indices(codes.shape)[1] > 75)] = 2
    counts, built, before, own = check(codes, (2,))
    assert shapely.equals(built[own == 1], before[own == 1]).all()
    assert counts.right_angled > 2
    assert np.count_nonzero(~shapely.equals(built[own == 2], before[own == 2])) == counts.right_angled
