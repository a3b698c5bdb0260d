"""Footprints in longitude and latitude, compared with the positions of all pixels on the border."""

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from segkit.io.footprint import find_footprint
from segkit.io.grid import Grid

UTM = Affine(10, 0, 500_000, 0, -10, 9_000_000)


def border(grid):
    """Longitude and latitude (n, 2) of the corners of all pixels on the border."""
    columns, rows = np.meshgrid(np.arange(grid.width + 1), np.arange(grid.height + 1))
    on_border = (columns % grid.width == 0) | (rows % grid.height == 0)
    x, y = grid.transform @ (columns[on_border], rows[on_border])
    to_degrees = pyproj.Transformer.from_crs(grid.crs.to_wkt(), "EPSG:4326", always_xy=True)
    return np.column_stack(to_degrees.transform(x, y))


@pytest.mark.parametrize(
    ("epsg", "transform"),
    [
        (32622, UTM),
        (32622, Affine(1000, 0, 100_000, 0, -1000, 7_000_000)),
        (32622, Affine.translation(500_000, 9_000_000) @ Affine.rotation(30) @ Affine.scale(10, -10)),
        (32622, Affine(10, 0, 500_000, 0, 10, 9_000_000)),
        (3035, Affine(1000, 0, 4_000_000, 0, -1000, 3_000_000)),
        (4326, Affine(0.1, 0, 10, 0, -0.1, 60)),
        (3857, Affine(100, 0, 1_000_000, 0, -100, 6_000_000)),
    ],
)
def test_it_is_the_outline_of_the_pixels(epsg, transform):
    grid = Grid(90, 130, transform, CRS.from_epsg(epsg))
    geometry, bbox = find_footprint(grid)
    found, points = shapely.geometry.shape(geometry), border(grid)
    size = np.ptp(points, axis=0).max()
    assert found.is_valid
    assert found.exterior.is_ccw
    assert shapely.distance(found.exterior, shapely.points(points)).max() < 1e-3 * size
    np.testing.assert_allclose(bbox, [*points.min(axis=0), *points.max(axis=0)], atol=1e-3 * size)


@pytest.mark.parametrize(
    "grid",
    [
        Grid(100, 100, Affine(1000, 0, 550_000, 0, -1000, 8_000_000), CRS.from_epsg(32660)),
        Grid(40, 100, Affine(0.1, 0, 175, 0, -0.1, 2), CRS.from_epsg(4326)),
        Grid(40, 100, Affine(0.1, 0, -185, 0, -0.1, 2), CRS.from_epsg(4326)),
    ],
)
def test_across_the_antimeridian_it_has_two_polygons(grid):
    geometry, (west, _, east, _) = find_footprint(grid)
    found = shapely.geometry.shape(geometry)
    assert geometry["type"] == "MultiPolygon"
    assert found.is_valid
    assert found.bounds[0] == -180
    assert found.bounds[2] == 180
    assert west > 170
    assert east < -170
    points = border(grid)
    longitude = (points[:, 0] + 180) % 360 - 180
    inside = shapely.distance(found, shapely.points(longitude, points[:, 1]))
    assert inside.max() < 1e-2
    assert found.area == pytest.approx(shapely.Polygon(np.mod(ring(grid), [360, 1e9])).area, rel=1e-3)


def ring(grid):
    """Longitude from 0 to 360 and latitude plus 90 along the border."""
    steps = np.linspace(0, 1, 500)
    columns = np.concatenate([steps, np.ones(500), 1 - steps, np.zeros(500)]) * grid.width
    rows = np.concatenate([np.zeros(500), steps, np.ones(500), 1 - steps]) * grid.height
    x, y = grid.transform @ (columns, rows)
    to_degrees = pyproj.Transformer.from_crs(grid.crs.to_wkt(), "EPSG:4326", always_xy=True)
    longitude, latitude = to_degrees.transform(x, y)
    return np.column_stack([longitude, latitude + 90])


@pytest.mark.parametrize(("epsg", "pole"), [(3413, 90), (3031, -90)])
def test_around_a_pole_it_is_all_that_lies_beyond(epsg, pole):
    grid = Grid(100, 100, Affine(10_000, 0, -500_000, 0, -10_000, 500_000), CRS.from_epsg(epsg))
    geometry, (west, south, east, north) = find_footprint(grid)
    assert (west, east) == (-180, 180)
    assert pole in (south, north)
    assert shapely.geometry.shape(geometry).bounds == (west, south, east, north)
    nearest = np.abs(border(grid)[:, 1]).min()
    assert min(abs(south), abs(north)) == pytest.approx(nearest, abs=1e-3)


@pytest.mark.parametrize("left", [-180, 0])
def test_the_whole_world(left):
    geometry, bbox = find_footprint(Grid(180, 360, Affine(1, 0, left, 0, -1, 90), CRS.from_epsg(4326)))
    assert bbox == [-180, -90, 180, 90]
    assert shapely.geometry.shape(geometry).area == pytest.approx(360 * 180)


def test_without_a_place_there_is_none():
    assert find_footprint(Grid(9, 9, UTM, None)) is None
    assert find_footprint(Grid(9, 9, Affine.identity(), CRS.from_epsg(32622), georeferenced=False)) is None
    local = CRS.from_wkt('LOCAL_CS["local",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]')
    assert find_footprint(Grid(9, 9, UTM, local)) is None
    assert find_footprint(Grid(9, 9, Affine(1e9, 0, 5e9, 0, -1e9, 9e9), CRS.from_epsg(3035))) is None
