"""Polygons in another CRS: still a coverage, where they belong, cut where longitudes end."""

from itertools import pairwise

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from segkit.errors import GridError, UsageError
from segkit.io.grid import Grid
from segkit.vector.reproject import Projection

UTM = Grid(400, 400, Affine(10, 0, 500_000, 0, -10, 8_000_000), CRS.from_epsg(32622))
# The pole is the corner of four of its pixels.
ARCTIC = Grid(6, 6, Affine(500_000, 0, -1_500_000, 0, -500_000, 1_500_000), CRS.from_epsg(3413))
ANTARCTIC = Grid(6, 6, Affine(500_000, 0, -1_500_000, 0, -500_000, 1_500_000), CRS.from_epsg(3031))
# 180 degrees is in the middle of it.
FIJI = Grid(40, 40, Affine(5_000, 0, 720_000, 0, -5_000, 8_200_000), CRS.from_epsg(32760))


def rectangles(grid, rows, columns):
    """Polygons between lines of a grid, with vertices where lines cross, as neighbours share them."""
    found = []
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            corners = [(left, top), (left, bottom), (right, bottom), (right, top)]
            found.append(shapely.Polygon([grid.transform @ corner for corner in corners]))
    return np.array(found, dtype=object)


def pixels(grid):
    return rectangles(grid, range(grid.height + 1), range(grid.width + 1))


def bricks(grid, size):
    """Rows of long bricks, each row shifted: borders of one side have no vertex on the other but T-junctions."""
    found = []
    for row in range(grid.height):
        joints = sorted({0, grid.width, *range(size * (row % 3 + 1) // 3, grid.width, size)})
        above = sorted({0, grid.width, *range(size * ((row - 1) % 3 + 1) // 3, grid.width, size)})
        below = sorted({0, grid.width, *range(size * ((row + 1) % 3 + 1) // 3, grid.width, size)})
        for left, right in pairwise(joints):
            top = [x for x in above if left < x < right] if row else []
            bottom = [x for x in below if left < x < right] if row < grid.height - 1 else []
            line = [(left, row), (left, row + 1), *((x, row + 1) for x in bottom), (right, row + 1), (right, row)]
            line += [(x, row) for x in reversed(top)]
            found.append(shapely.Polygon([grid.transform @ corner for corner in line]))
    return np.array(found, dtype=object)


def parts(polygons):
    return shapely.get_parts(polygons)


def check(projection, polygons):
    """State what holds of every result."""
    found = projection(polygons)
    assert len(found) == len(polygons)
    assert shapely.is_valid(found).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(parts(found))).all()
    assert shapely.coverage_is_valid(parts(found))
    return found


def on_the_ground(polygons, crs, centre, *, step):
    """Polygons about a centre, with true areas, whatever CRS they came in; (longitude, latitude) of the centre."""
    ground = f"+proj=laea +lon_0={centre[0]} +lat_0={centre[1]} +datum=WGS84"
    to_ground = pyproj.Transformer.from_crs(crs, ground, always_xy=True)
    return shapely.transform(shapely.segmentize(polygons, step), to_ground.transform, interleaved=False)


def check_ground(grid, polygons, found, centre):
    """The ground that polygons cover in the map is what they cover as longitudes and latitudes."""
    expected = on_the_ground(polygons, grid.crs.to_wkt(), centre, step=grid.pixel_size[0] / 50)
    actual = on_the_ground(found, "EPSG:4326", centre, step=0.2)
    actual = np.array([shapely.union_all(shapely.buffer(parts(one), 1)) for one in actual])
    off = shapely.area(shapely.symmetric_difference(actual, expected)) / shapely.area(expected)
    assert off.max() < 3e-3


@pytest.mark.parametrize("target", ["EPSG:4326", "EPSG:3857", "EPSG:6933", "EPSG:32721", "EPSG:4674"])
def test_vertices_go_where_pyproj_takes_them(target):
    polygons = pixels(UTM.subgrid(next(UTM.tiles(8))))
    expected = shapely.transform(
        polygons, pyproj.Transformer.from_crs(32622, target, always_xy=True).transform, interleaved=False
    )
    found = check(Projection(UTM, target), polygons)
    assert shapely.equals_exact(found, expected, tolerance=1e-9, normalize=True).all()
    assert Projection(UTM, target).crs == pyproj.CRS(target)


@pytest.mark.parametrize("target", ["EPSG:4326", "EPSG:3857", "EPSG:6933"])
def test_long_edges_keep_to_the_curve_and_to_their_neighbours(target):
    wide = Grid(3, 30_000, Affine(10, 0, 400_000, 0, -10, 8_900_000), CRS.from_epsg(32622))
    polygons = bricks(wide, 9_000)
    projection = Projection(wide, target)
    found = check(projection, polygons)
    plain = shapely.transform(
        polygons, pyproj.Transformer.from_crs(32622, target, always_xy=True).transform, interleaved=False
    )
    assert not shapely.coverage_is_valid(plain)  # so that it is the cutting that saves the coverage
    # Back in the map, no edge lies further from where it was than a thousandth of a pixel.
    back = shapely.transform(
        shapely.segmentize(found, 1e-4 if target == "EPSG:4326" else 10),
        pyproj.Transformer.from_crs(target, 32622, always_xy=True).transform,
        interleaved=False,
    )
    assert shapely.hausdorff_distance(back, polygons).max() < 0.01 + 1e-3


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["EPSG:4326", "EPSG:6933", "EPSG:3035"]))
def test_batches_fit_each_other(seed, target):
    """Each polygon projected alone has the same bits as all together."""
    grid = Grid(300, 3_000, Affine(30, 0, 500_000, 0, -30, 8_000_000), CRS.from_epsg(32633))
    random = np.random.default_rng(seed)
    rows = np.unique([0, 300, *random.integers(1, 300, 4)]).tolist()
    columns = np.unique([0, 3_000, *random.integers(1, 3_000, 4)]).tolist()
    polygons = rectangles(grid, rows, columns)
    projection = Projection(grid, target)
    together = check(projection, polygons)
    alone = [projection(polygons[i : i + 1])[0] for i in range(len(polygons))]
    assert all(one.wkb == other.wkb for one, other in zip(together, alone, strict=True))


def test_decimals_are_kept_to():
    found = check(Projection(UTM, "EPSG:4326", decimals=7), pixels(UTM.subgrid(next(UTM.tiles(20)))))
    coordinates = shapely.get_coordinates(found)
    assert (np.round(coordinates, 7) == coordinates).all()


def test_pixels_that_decimals_make_nothing_are_refused():
    tiny = Grid(3, 3, Affine(0.002, 0, 500_000, 0, -0.002, 8_000_000), CRS.from_epsg(32622))
    with pytest.raises(GridError, match=r"the polygon at 500000, 8000000 \(EPSG:32622\) becomes invalid"):
        Projection(tiny, "EPSG:4326", decimals=7)(pixels(tiny))


def test_across_the_antimeridian_polygons_are_cut():
    polygons = pixels(FIJI)
    projection = Projection(FIJI, "EPSG:4326")
    assert projection.splits
    found = check(projection, polygons)
    west, _, east, _ = shapely.bounds(parts(found)).T
    assert west.min() == -180
    assert east.max() == 180
    assert (east - west).max() < 1
    split = shapely.get_num_geometries(found) > 1
    assert split.sum() in range(35, 60)
    check_ground(FIJI, polygons, found, (180, -17))
    # What is cut fits at the cut: the same latitudes on both sides.
    ends = [{y for x, y in shapely.get_coordinates(found) if x == end} for end in (-180, 180)]
    assert ends[0] == ends[1]
    assert len(ends[0]) > 40


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_slanted_edges_are_cut_at_one_place_for_both_neighbours(seed):
    world = Grid(180, 360, Affine(1, 0, 0, 0, -1, 90), CRS.from_epsg(4326))
    points = np.random.default_rng(seed).uniform((140, -60), (220, 60), (30, 2))
    triangles = parts(shapely.delaunay_triangles(shapely.multipoints(points)))
    check(Projection(world, "EPSG:4326"), triangles)


def test_an_edge_that_bends_both_ways_is_cut():
    """Its middle lies on the straight line."""
    grid = Grid(800, 800, Affine(0.01, 0, -4, 0, -0.01, 4), CRS.from_epsg(4326))
    halves = np.array([shapely.Polygon([(-3, -3), (3, 3), corner]) for corner in ((-3, 3), (3, -3))])
    found = check(Projection(grid, "EPSG:3857"), halves)
    back = shapely.transform(
        shapely.segmentize(found, 1000),
        pyproj.Transformer.from_crs(3857, 4326, always_xy=True).transform,
        interleaved=False,
    )
    assert shapely.hausdorff_distance(back, halves).max() < 1.1e-5


def test_a_map_of_longitudes_up_to_360_is_turned_back():
    world = Grid(6, 12, Affine(30, 0, 0, 0, -30, 90), CRS.from_epsg(4326))
    found = check(Projection(world, "EPSG:4326"), pixels(world))
    assert shapely.total_bounds(found).tolist() == [-180, -90, 180, 90]
    assert shapely.area(found).tolist() == [900] * 72
    assert shapely.equals(found[6], shapely.box(-180, 60, -150, 90))
    (wide,) = check(Projection(world, "EPSG:4326"), rectangles(world, [4, 6], [0, 12]))
    assert shapely.area(wide) == 360 * 60


def test_a_map_of_the_world_stays_as_it_is():
    world = Grid(4, 8, Affine(45, 0, -180, 0, -45, 90), CRS.from_epsg(4326))
    polygons = rectangles(world, [0, 1, 4], [0, 8])
    found = check(Projection(world, "EPSG:4326"), polygons)
    assert shapely.equals(found, polygons).all()


@pytest.mark.parametrize("grid", [ARCTIC, ANTARCTIC])
@pytest.mark.parametrize("shift", [(0, 0), (0.5, 0.5), (0.5, 0), (0.2, -0.1)])
@pytest.mark.parametrize("columns", [range(7), [0, 2, 6], [0, 6]])
def test_around_a_pole_polygons_are_closed_along_it(grid, shift, columns):
    """The pole at a corner, inside a pixel, on an edge, anywhere; for pixels and for wide polygons."""
    grid = Grid(6, 6, grid.transform @ Affine.translation(*shift), grid.crs)
    polygons = rectangles(grid, range(7), columns)
    found = check(Projection(grid, "EPSG:4326"), polygons)
    check_ground(grid, polygons, found, (0, 90 if grid.crs == ARCTIC.crs else -90))
    reached = shapely.bounds(found)[:, 3 if grid.crs == ARCTIC.crs else 1]
    assert np.abs(reached).max() == 90


@pytest.mark.parametrize("grid", [ARCTIC, ANTARCTIC])
@pytest.mark.parametrize("shift", [(0, 0), (0.5, 0.5), (0.5, 0), (0.2, -0.1)])
def test_the_last_bit_around_a_pole_is_covered_once(grid, shift):
    grid = Grid(6, 6, grid.transform @ Affine.translation(*shift), grid.crs)
    found = parts(check(Projection(grid, "EPSG:4326"), pixels(grid)))
    end = shapely.box(-180, *((89.999, 180, 90) if grid.crs == ARCTIC.crs else (-90, 180, -89.999)))
    np.testing.assert_allclose(shapely.area(shapely.intersection(found, end)).sum(), 0.36, rtol=1e-9)
    assert shapely.union_all(found).covers(end)


@pytest.mark.parametrize("grid", [ARCTIC, ANTARCTIC])
def test_a_pole_in_a_hole(grid):
    whole, hole = rectangles(grid, [0, 6], [0, 6])[0], rectangles(grid, [1, 4], [2, 5])[0]
    polygons = np.array([shapely.difference(whole, hole), hole])
    ring, cap = found = check(Projection(grid, "EPSG:4326"), polygons)
    check_ground(grid, polygons, found, (0, 90 if grid.crs == ARCTIC.crs else -90))
    assert np.abs(shapely.bounds(cap)).max() == 180
    assert 90 not in np.abs(shapely.bounds(ring)[[1, 3]])


def test_multipolygons_with_holes_keep_their_parts():
    a, b, hole = (
        rectangles(UTM, [0, 9], [0, 9])[0],
        rectangles(UTM, [20, 25], [3, 5])[0],
        rectangles(UTM, [2, 4], [3, 6])[0],
    )
    found = check(Projection(UTM, "EPSG:3857"), np.array([shapely.MultiPolygon([a - hole, b]), hole]))
    assert [len(parts(one)) for one in found] == [2, 1]
    assert len(parts(found[0])[0].interiors) == 1


def test_what_has_no_place_is_reported_with_its_own():
    world = Grid(2, 4, Affine(90, 0, -180, 0, -90, 90), CRS.from_epsg(4326))
    seen = "+proj=ortho +lon_0=135 +lat_0=0"
    with pytest.raises(GridError, match=r"the polygon at -90, 0 \(EPSG:4326\) has no coordinates in .*; choose a CRS"):
        Projection(world, seen)(pixels(world))
    assert shapely.area(Projection(world, seen)(pixels(world)[3:4])) > 0


def test_what_a_projection_tears_is_reported():
    with pytest.raises(GridError, match=r"becomes invalid in EPSG:3857"):
        Projection(FIJI, "EPSG:3857")(pixels(FIJI))


@pytest.mark.parametrize("target", ["EPSG:0", "nonsense", "EPSG:5773", "EPSG:4978"])
def test_a_target_that_is_no_crs_for_maps_is_refused(target):
    with pytest.raises(UsageError, match=target):
        Projection(UTM, target)


def test_a_map_without_a_crs_has_no_place():
    with pytest.raises(UsageError, match="the map has no CRS, so it cannot be transformed to EPSG:4326"):
        Projection(Grid(1, 1, Affine.identity(), None), "EPSG:4326")


def test_nothing_is_nothing():
    assert len(Projection(UTM, "EPSG:4326")(np.array([], dtype=object))) == 0


def test_grads_turn_at_200():
    """The antimeridian of Paris lies at 177.66 degrees west of Greenwich."""
    there = Grid(40, 40, Affine(5_000, 0, 330_000, 0, -5_000, 8_200_000), CRS.from_epsg(32701))
    found = check(Projection(there, "EPSG:4807"), pixels(there))
    assert shapely.total_bounds(found)[[0, 2]].tolist() == [-200, 200]
    projection = Projection(UTM, "EPSG:4807")
    polygons = pixels(UTM.subgrid(next(UTM.tiles(3))))
    west = shapely.bounds(check(projection, polygons))[:, 0]
    expected = shapely.bounds(check(Projection(UTM, "EPSG:4275"), polygons))[:, 0]
    np.testing.assert_allclose(west * 0.9 + 2.33722917, expected, atol=1e-6)
