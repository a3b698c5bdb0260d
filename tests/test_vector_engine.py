"""The polygon engine against brute force: regions, vertices, rings, areas."""

from pathlib import Path

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.crs import CRS
from rasterio.features import shapes
from rasterio.io import MemoryFile
from scipy import ndimage

from segkit.errors import GridError
from segkit.grid import Grid
from segkit.raster import grid_of, open_raster
from segkit.vector import polygons as polygons_of_map
from segkit.vector.geometry import hectares, polygons_of
from segkit.vector.regions import label, trace
from segkit.vector.runs import read_runs

NODATA = 9
NORTH_UP = Affine(1, 0, 0, 0, -1, 0)


def runs_of(codes):
    height, width = codes.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": codes.dtype, "nodata": NODATA}
    with MemoryFile() as file:
        with file.open(transform=Affine(2, 0, 0, 0, -2, 0), **profile) as dataset:
            dataset.write(codes, 1)
        with file.open() as dataset:
            return read_runs(dataset, 1, lambda rows: None)


def traced(codes):
    """Regions and rings of all codes but NODATA, and the image of region numbers (-1 where there is none)."""
    runs = runs_of(codes)
    regions = label(runs, runs.kinds(range(NODATA)))
    image = np.repeat(regions.of_run, runs.lengths()).reshape(codes.shape)
    return regions, trace(runs, regions), image


def brute_force_labels(codes):
    """4-connected regions, numbered in raster order of their first pixels, -1 for NODATA."""
    image = np.full(codes.shape, -1)
    for code in np.unique(codes[codes != NODATA]):
        found, _ = ndimage.label(codes == code)
        image = np.where(found > 0, found + image.max(), image)
    _, first, flat = np.unique(image, return_index=True, return_inverse=True)
    outside = int(image.min() < 0)
    rank = np.argsort(np.argsort(first[outside:]))
    return np.append(rank, -1)[flat - outside].reshape(codes.shape) if rank.size else image


def brute_force_vertices(image):
    """Corners that each region must have: where its border bends, or where three or more areas meet."""
    padded = np.pad(image, 1, constant_values=-1)
    vertices = {}
    for row, column in np.ndindex(padded.shape[0] - 1, padded.shape[1] - 1):
        nw, ne, sw, se = padded[row : row + 2, column : column + 2].ravel().tolist()
        straight = (nw == ne and sw == se) or (nw == sw and ne == se)
        if not straight:
            for region in {nw, ne, sw, se} - {-1}:
                vertices.setdefault(region, set()).add((column, row))
    return vertices


def check(codes):
    """State everything that must hold of the polygons of `codes`."""
    regions, rings, image = traced(codes)
    np.testing.assert_array_equal(image, brute_force_labels(codes))
    np.testing.assert_array_equal(regions.pixels, np.bincount(image[image >= 0], minlength=regions.kind.size))

    polygons = polygons_of(rings, NORTH_UP)
    assert shapely.is_valid(polygons).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(polygons)).all()
    np.testing.assert_array_equal(shapely.area(polygons), regions.pixels)
    assert shapely.coverage_is_valid(polygons)

    expected = brute_force_vertices(image)
    for region, polygon in enumerate(polygons):
        corners = {(x, -y) for x, y in shapely.get_coordinates(polygon)}
        assert corners == expected[region]

    found = list(shapes(codes, mask=codes != NODATA, connectivity=4, transform=NORTH_UP))
    theirs = np.array([shapely.geometry.shape(geometry) for geometry, _ in found], dtype=object)
    same = shapely.equals(polygons[:, None], theirs[None, :]) & (regions.kind[:, None] == [code for _, code in found])
    assert (same.sum(axis=0) == 1).all()
    assert (same.sum(axis=1) == 1).all()


maps = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, NODATA]))
)
two_classes = st.tuples(st.integers(3, 12), st.integers(3, 12)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)


@settings(max_examples=120, deadline=None)
@given(maps | two_classes)
def test_polygons_are_an_exact_valid_coverage(codes):
    check(codes)


RING = [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]]
PATTERNS = {
    "one pixel": [[1]],
    "one class": np.ones((3, 5)),
    "no data only": np.full((3, 3), NODATA),
    "checkerboard": np.indices((6, 7)).sum(axis=0) % 2,
    "islands in holes in islands": np.minimum.reduce([*np.indices((9, 9)), *np.indices((9, 9))[:, ::-1, ::-1]]) % 2,
    "holes that touch": RING,
    "a hole that touches the outer ring": [[1, 1, 1], [1, 0, 1], [1, 1, 0]],
    "a ring that closes diagonally": [[0, 1, 1], [1, 0, 1], [1, 1, 1]],
    "a T-junction on a straight side": [[1, 1, 1, 1], [2, 2, 0, 0]],
    "diagonal no data": [[1, NODATA], [NODATA, 1]],
}


@pytest.mark.parametrize("codes", PATTERNS.values(), ids=PATTERNS.keys())
def test_patterns(codes):
    check(np.array(codes, dtype=np.uint8))


def test_holes_follow_their_own_outer_ring():
    _, rings, _ = traced(np.array([[1, 1, 1, 2, 2, 2], [1, 0, 1, 2, 0, 2], [1, 1, 1, 2, 2, 2]], dtype=np.uint8))
    np.testing.assert_array_equal(np.diff(rings.polygon), [2, 2, 1, 1])


def test_strips_join(monkeypatch):
    codes = np.random.default_rng(0).integers(0, 3, (50, 40), dtype=np.uint8)
    whole = runs_of(codes)
    monkeypatch.setattr("segkit.vector.runs._STRIP_PIXELS", 1)
    strips = runs_of(codes)
    for name in ("row", "first", "code"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(strips, name))


def geodesic_hectares(polygon, crs, step):
    """Area by pyproj's geodesics, along edges cut into pieces of `step` CRS units."""
    place = pyproj.Transformer.from_crs(crs.to_wkt(), pyproj.CRS.from_wkt(crs.to_wkt()).geodetic_crs, always_xy=True)
    lonlat = shapely.transform(shapely.segmentize(polygon, step), lambda xy: np.column_stack(place.transform(*xy.T)))
    area, _ = pyproj.CRS.from_wkt(crs.to_wkt()).get_geod().geometry_area_perimeter(lonlat)
    return abs(area) / 10_000


PLACES = {
    "degrees": (4326, Affine(0.01, 0, 12, 0, -0.01, 64)),
    "degrees, rotated": (4326, Affine(0.01, 0.004, 12, 0.003, -0.01, 64)),
    "degrees, south-up": (4326, Affine(0.01, 0, 12, 0, 0.01, -64)),
    "degrees across the antimeridian": (4326, Affine(0.01, 0, 179.8, 0, -0.01, -17)),
    "Web Mercator": (3857, Affine(1000, 0, 1.2e6, 0, -1000, 9e6)),
    "UTM": (32633, Affine(1000, 0, 4e5, 0, -1000, 7.2e6)),
    "UTM, rotated": (32633, Affine(800, 300, 4e5, 300, -800, 7.2e6)),
    "LAEA Europe": (3035, Affine(1000, 0, 4.6e6, 0, -1000, 4.8e6)),
    "feet": (2263, Affine(3000, 0, 9.5e5, 0, -3000, 2e5)),
    "polar": (3413, Affine(1000, 0, -5e5, 0, -1000, 1e6)),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_areas_are_those_on_the_ellipsoid(place):
    code, transform = place
    crs = CRS.from_epsg(code)
    codes = np.random.default_rng(1).integers(0, 2, (20, 60), dtype=np.uint8)
    codes[4], codes[9, 1:] = 5, 6  # strips whose one side is a single long edge
    codes[10:] = 7
    regions, rings, image = traced(codes)
    areas = hectares(rings, transform, crs)
    pixels = Grid(*codes.shape, transform, crs).hectares()
    np.testing.assert_allclose(areas, np.bincount(image.ravel(), weights=pixels.ravel()), rtol=1e-6)
    step = 20 * transform.a / 1000
    for region in np.flatnonzero(np.isin(regions.kind, [5, 6, 7])):
        geodesic = geodesic_hectares(polygons_of(rings, transform)[region], crs, step)
        assert areas[region] == pytest.approx(geodesic, rel=1e-6)


def test_a_thin_polygon_with_one_long_edge_keeps_its_area():
    # 90 km x 10 m along the rim, with a neighbour for each pixel: its edges are cut on one side only.
    codes = np.ones((2, 9000), dtype=np.uint8)
    codes[1] = np.arange(9000) % 2
    crs, transform = CRS.from_epsg(32633), Affine(10, 0, 2e5, 0, -10, 8.2e6)
    _, rings, image = traced(codes)
    pixels = Grid(*codes.shape, transform, crs).hectares()
    expected = np.bincount(image.ravel(), weights=pixels.ravel())
    np.testing.assert_allclose(hectares(rings, transform, crs), expected, rtol=1e-6)


def test_a_world_map_whose_polygons_lie_on_one_side():
    codes = np.full((18, 36), NODATA, dtype=np.uint8)
    codes[2:9, :20] = np.random.default_rng(2).integers(0, 2, (7, 20))
    codes[3:15, 25:36] = 3
    crs, transform = CRS.from_epsg(4326), Affine(10, 0, -180, 0, -10, 90)
    _, rings, image = traced(codes)
    pixels = Grid(*codes.shape, transform, crs).hectares()
    expected = np.bincount(image[image >= 0], weights=pixels[image >= 0])
    np.testing.assert_allclose(hectares(rings, transform, crs), expected, rtol=1e-9)


def test_a_polygon_around_a_pole_has_no_area_and_its_neighbours_do():
    codes = np.zeros((8, 8), dtype=np.uint8)
    codes[0, 0] = 1
    areas = hectares(traced(codes)[1], Affine(1e5, 0, -4.1e5, 0, -1e5, 4.1e5), CRS.from_epsg(3413))
    assert np.isfinite(areas[0])
    assert np.isnan(areas[1])


@pytest.mark.parametrize("crs", [None, CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')], ids=["none", "local"])
def test_no_place_on_the_ground_means_no_area(crs):
    with pytest.raises(GridError):
        hectares(traced(np.ones((2, 2), dtype=np.uint8))[1], NORTH_UP, crs)


NLCD = Path(__file__).parents[2] / "shared" / "data" / "label_maps" / "nlcd.tif"


@pytest.mark.skipif(not NLCD.exists(), reason="needs the shared data")
def test_a_real_map():
    frame = polygons_of_map(NLCD, background=True)
    assert len(frame) == 41_563
    assert shapely.is_valid(frame.geometry).all()
    with open_raster(NLCD) as dataset:
        grid = grid_of(dataset)
    np.testing.assert_allclose(frame.area, frame["pixels"] * abs(grid.transform.determinant), rtol=1e-9)
    assert frame["pixels"].sum() == grid.height * grid.width
    assert frame["area_ha"].sum() == pytest.approx(grid.hectares().sum(), rel=1e-8)
    # A valid coverage: each directed edge is there once, and all but those of the rim have their reverse.
    vertices, ring = shapely.get_coordinates(shapely.get_rings(frame.geometry), return_index=True)
    corners = np.rint((vertices - grid.transform[2::3][:2]) / (grid.transform.a, grid.transform.e)).astype(int)
    start, end = (part[ring[1:] == ring[:-1]] for part in (corners[:-1], corners[1:]))
    number, many = np.array([1, grid.width + 1]), (grid.width + 1) * (grid.height + 1)
    forward, back = (a @ number * many + b @ number for a, b in ((start, end), (end, start)))
    assert np.diff(np.sort(forward)).all()
    rim = ~np.isin(forward, back, kind="sort")
    assert np.abs(end - start)[rim].sum() == 2 * (grid.width + grid.height)
