"""What pixels, runs and outlines measure on the ground, against geodesics and pixel by pixel."""

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.windows import Window
from reference import NODATA, labels, maps, traced

from segkit.errors import GridError
from segkit.io.grid import Grid
from segkit.vector.geometry import to_shapely
from segkit.vector.tracing.pixel_measures import area_at, fit_pixel_measures, length_at, measure_runs, unmeasured_pixels
from segkit.vector.tracing.runs import Runs

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
places = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())


def on_the_globe(polygon, crs, step):
    """Area in square metres and outline in metres by pyproj's geodesics, along edges in pieces of `step` CRS units."""
    place = pyproj.Transformer.from_crs(crs.to_wkt(), pyproj.CRS.from_wkt(crs.to_wkt()).geodetic_crs, always_xy=True)
    lonlat = shapely.transform(shapely.segmentize(polygon, step), lambda xy: np.column_stack(place.transform(*xy.T)))
    geod = pyproj.CRS.from_wkt(crs.to_wkt()).get_geod()
    return abs(geod.geometry_area_perimeter(lonlat)[0]), sum(geod.geometry_length(ring) for ring in rings(lonlat))


def rings(polygon):
    return [polygon.exterior, *polygon.interiors]


def noise():
    codes = np.random.default_rng(1).integers(0, 2, (20, 60), dtype=np.uint8)
    codes[4], codes[9, 1:] = 5, 6  # strips whose one side is a single long edge
    codes[10:] = 7
    codes[12:15, 12:18] = 8
    return codes


@places
@pytest.mark.parametrize(
    "how", [{}, {"simplify": "1.5px"}, {"smooth": True}, {"simplify": "4px", "smooth": True}], ids=str
)
def test_areas_and_outlines_are_those_on_the_ellipsoid(place, how):
    code, transform = place
    crs, codes = CRS.from_epsg(code), noise()
    polygons, own = traced(codes, transform=transform, crs=crs, **how)
    step = 20 * transform.a / 1000
    # What a border gives is measured at a few places, which are far from each other where pixels are a kilometre.
    near = 5e-5 if how else 2e-6
    for polygon, area, perimeter in zip(to_shapely(polygons), polygons.area, polygons.perimeter, strict=True):
        expected = on_the_globe(polygon, crs, step)
        assert area == pytest.approx(expected[0], rel=near)
        assert perimeter == pytest.approx(expected[1], rel=near)
    assert set(own) == {0, 1, 5, 6, 7, 8}


@places
def test_a_region_is_as_large_as_its_pixels(place):
    code, transform = place
    crs, codes = CRS.from_epsg(code), noise()
    polygons, _ = traced(codes, transform=transform, crs=crs)
    image = labels(codes)
    pixels = Grid(*codes.shape, transform, crs).hectares() * 10_000
    expected = np.bincount(image.ravel(), weights=pixels.ravel())
    np.testing.assert_allclose(np.sort(polygons.area), np.sort(expected), rtol=1e-9)


def island(turn):
    """Return a map of one region without nodes: all of its border is a loop."""
    rows, columns = np.indices((48, 48)) - 23.5
    angle = np.arctan2(rows, columns)
    return (np.hypot(rows, columns) < 16 + 5 * np.sin(3 * angle + turn)).astype(np.uint8)


@settings(max_examples=60)
@example(island(0), {"simplify": "2px"})
@example(island(1), {"simplify": "2px"})
@example(island(2), {"simplify": "1px", "smooth": True})
@given(maps(16), st.sampled_from([{"simplify": "2px"}, {"smooth": True}, {"simplify": "1px", "smooth": True}]))
def test_generalised_areas_are_those_of_the_new_outlines(codes, how):
    # In a CRS of equal area an area on the ground is one on paper; and what one region gives, others take.
    crs, transform = CRS.from_epsg(6933), Affine(100, 0, 1e6, 0, -100, 2e6)
    polygons, _ = traced(codes, transform=transform, crs=crs, **how)
    np.testing.assert_allclose(polygons.area, shapely.area(to_shapely(polygons)), rtol=1e-7)
    assert polygons.area.sum() == pytest.approx(np.count_nonzero(codes != NODATA) * 1e4, rel=1e-7)


def test_a_thin_polygon_with_one_long_edge_keeps_its_area():
    # 90 km x 10 m along the rim, with a neighbour for each pixel.
    codes = np.ones((2, 9000), dtype=np.uint8)
    codes[1] = np.arange(9000) % 2
    crs, transform = CRS.from_epsg(32633), Affine(10, 0, 2e5, 0, -10, 8.2e6)
    pixels = Grid(*codes.shape, transform, crs).hectares() * 10_000
    polygons, own = traced(codes, transform=transform, crs=crs)
    large = polygons.pixels > 1
    assert polygons.area[large].sum() == pytest.approx(pixels[codes == 1].sum(), rel=1e-8)
    assert polygons.area[own == 0].sum() == pytest.approx(pixels[codes == 0].sum(), rel=1e-8)


def test_a_world_map():
    codes = np.full((18, 36), NODATA, dtype=np.uint8)
    codes[:9, :20] = np.random.default_rng(2).integers(0, 2, (9, 20))
    codes[3:, 25:36] = 3
    crs, transform = CRS.from_epsg(4326), Affine(10, 0, -180, 0, -10, 90)
    polygons, own = traced(codes, transform=transform, crs=crs)
    pixels = Grid(*codes.shape, transform, crs).hectares() * 10_000
    image = labels(codes)
    expected = np.bincount(image[image >= 0], weights=pixels[image >= 0])
    np.testing.assert_allclose(np.sort(polygons.area), np.sort(expected), rtol=2e-8)
    # Two meridians from 60 degrees north to the pole in the south, and 110 degrees of the parallel.
    geod = pyproj.Geod(ellps="WGS84")
    meridian = geod.line_length([0, 0], [60, 0]) + geod.line_length([0, 0], [0, -90])
    parallel = np.radians(110) * 6_378_137 * np.cos(np.arctan(0.9966471893 * np.tan(np.radians(60))))
    assert polygons.perimeter[own == 3] == pytest.approx(2 * meridian + parallel, rel=2e-5)


@pytest.mark.parametrize("shape", [(2160, 4320), (33, 1000)])
def test_squares_tell_what_pixels_measure_all_over_the_world(shape):
    size = 180 / shape[0]
    grid = Grid(*shape, Affine(size, 0, -180, 0, -size, 90), CRS.from_epsg(4326))
    squares = fit_pixel_measures(grid)
    assert len(squares.place) < 2000
    rows = np.unique(np.linspace(0, shape[0] - 1, 50).astype(int))
    column = grid.hectares(Window(7, 0, 1, shape[0]))[:, 0] * 10_000
    found = np.array([area_at(squares, 7.5, row + 0.5) for row in rows])
    np.testing.assert_allclose(found, column[rows], atol=2e-8 * column.max())


def test_runs_are_measured_wherever_they_lie():
    # A map of many squares, in one of which nothing has a place.
    grid = Grid(200, 300, Affine(120_000, 0, -18e6, 0, -90_000, 9e6), CRS.from_string("+proj=moll +datum=WGS84"))
    squares = fit_pixel_measures(grid)
    assert len(squares.place) > 20
    random = np.random.default_rng(0)
    firsts = [np.unique(np.append(0, random.integers(0, 300, 5))) for _ in range(200)]
    row = np.concatenate(([0], np.cumsum([one.size for one in firsts])))
    runs = Runs(0, row, np.concatenate(firsts).astype(np.int32), np.zeros(row[-1], dtype=np.int32), 300)
    measures = measure_runs(squares, runs)
    expected = np.add.reduceat(grid.hectares().ravel() * 10_000, runs.starts())
    unknown = np.isnan(measures.area)
    assert (np.isnan(expected) <= unknown).all()
    assert np.count_nonzero(unknown) < 2 * np.count_nonzero(np.isnan(expected))
    np.testing.assert_allclose(measures.area[~unknown], expected[~unknown], rtol=1e-7)


def test_a_polygon_around_a_pole_has_no_area_and_its_neighbours_do():
    codes = np.zeros((8, 8), dtype=np.uint8)
    codes[0, 0] = 1
    crs, transform = CRS.from_epsg(3413), Affine(1e5, 0, -4.1e5, 0, -1e5, 4.1e5)
    polygons, own = traced(codes, transform=transform, crs=crs)
    assert np.isfinite(polygons.area[own == 1]).all()
    assert np.isfinite(polygons.perimeter[own == 1]).all()


@pytest.mark.parametrize("crs", [None, CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')], ids=["none", "local"])
def test_no_place_on_the_ground_means_no_area(crs):
    with pytest.raises(GridError):
        fit_pixel_measures(Grid(2, 2, Affine(1, 0, 0, 0, -1, 0), crs))
    assert np.isnan(area_at(unmeasured_pixels(), 0.0, 0.0))
    assert np.isnan(length_at(unmeasured_pixels(), 0.0, 0.0, 1.0, 1.0))


def test_small_pixels_are_measured_as_well_as_large_ones():
    crs = CRS.from_epsg(32633)
    large, small = (Grid(2000, 2000, Affine(size, 0, 4e5, 0, -size, 7.2e6), crs) for size in (10, 0.1))
    large, small = fit_pixel_measures(large), fit_pixel_measures(small)
    assert area_at(small, 1000.0, 1000.0) * 1e4 == pytest.approx(area_at(large, 10.0, 10.0), rel=2e-9)
    for x, y in ((1.0, 0.0), (0.0, 1.0), (3.0, -2.0)):
        on_large = length_at(large, 10.0, 10.0, x, y)
        assert length_at(small, 1000.0, 1000.0, x, y) * 1e2 == pytest.approx(on_large, rel=1e-8)
