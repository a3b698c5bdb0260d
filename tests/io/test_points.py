import geopandas
import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from segkit.errors import DataError, GridError
from segkit.io.features import read_features
from segkit.io.grid import Grid
from segkit.io.points import PointColumns, Points, as_points, draw_points, has_points, read_point_table
from segkit.io.polygons import rasterize_shapes

UTM = Grid(30, 40, Affine(10, 0, 600_000, 0, -10, 5_000_000), CRS.from_epsg(32633))
ROTATED = Grid(30, 40, UTM.transform @ Affine.rotation(25), UTM.crs)
# 60 degrees north: a pixel is half as wide as high.
DEGREES = Grid(30, 40, Affine(1e-4, 0, 15, 0, -1e-4, 60), CRS.from_epsg(4326))
GRIDS = pytest.mark.parametrize("grid", [UTM, ROTATED, DEGREES], ids=["utm", "rotated", "degrees"])


def points_at(grid, places, crs=None):
    """Points at (column, row) of a grid, in a CRS (default: of the grid)."""
    shapes = shapely.points([grid.transform @ place for place in places])
    series = geopandas.GeoSeries(shapes, crs=grid.crs.to_wkt()).to_crs(crs or grid.crs.to_wkt())
    return Points(
        None, CRS.from_wkt(series.crs.to_wkt()), series.to_numpy(), geopandas.pd.DataFrame(index=range(len(shapes))), 0
    )


def metres_to_centres(grid, place):
    """Oracle: geodesic distance of a point, given by (column, row), to each pixel's centre, (H, W)."""
    rows, columns = np.indices(grid.shape) + 0.5
    x, y = grid.transform @ (columns, rows)
    to_degrees = pyproj.Transformer.from_crs(grid.crs.to_wkt(), "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(x, y)
    here = to_degrees.transform(*(grid.transform @ place))
    return pyproj.Geod(ellps="WGS84").inv(*(np.full(lon.shape, each) for each in here), lon, lat)[2]


@GRIDS
@pytest.mark.parametrize("crs", [None, "EPSG:3857"])
def test_a_point_labels_the_pixel_under_it(grid, crs):
    places = np.random.default_rng(0).uniform((-3, -3), (43, 33), (60, 2))
    shapes, numbers = draw_points(points_at(grid, places, crs), grid)
    inside = [n for n, (x, y) in enumerate(places) if 0 <= x < 40 and 0 <= y < 30]
    assert 20 < len(inside) < 60
    assert numbers.tolist() == inside
    for shape, number in zip(shapes, numbers, strict=True):
        rows, columns = np.nonzero(rasterize_shapes([shape], grid.full_window))
        assert (columns.tolist(), rows.tolist()) == ([int(places[number][0])], [int(places[number][1])])


@GRIDS
def test_a_radius_is_in_metres_on_the_ground(grid):
    for place in ((20.3, 14.9), (0.5, 0.5), (-2.2, 4.0), (41.5, 31.0)):
        shapes, numbers = draw_points(points_at(grid, [place]), grid, 60.0)
        assert {*numbers.tolist()} == {0}
        found = rasterize_shapes(shapes, grid.full_window)
        distance = metres_to_centres(grid, place)
        rounding = np.abs(distance - 60) < 0.06  # discs are polygons of 128 edges
        assert (found == (distance <= 60))[~rounding].all()
        assert found.any()
    shapes, _ = draw_points(points_at(grid, [(20.9, 14.9)]), grid, 0.1)
    assert np.argwhere(rasterize_shapes(shapes, grid.full_window)).tolist() == [[14, 20]]


def test_windows_of_a_disc_agree_with_the_whole():
    shapes, _ = draw_points(points_at(UTM, [(20.3, 14.9)]), UTM, 85.0)
    whole = rasterize_shapes(shapes, UTM.full_window)
    for window in (Window(15, 10, 9, 7), Window(21, 0, 19, 30)):
        rows, columns = window.toslices()
        assert np.array_equal(rasterize_shapes(shapes, window), whole[rows, columns])


def test_lengths_in_metres_need_a_crs():
    bare = Grid(4, 4, Affine(1, 0, 0, 0, -1, 4), None)
    points = Points(None, None, shapely.points([[1.5, 1.5]]), geopandas.pd.DataFrame(index=[0]), 0)
    assert len(draw_points(points, bare)[0]) == 1
    with pytest.raises(GridError, match="radius of points is in metres, but the scene has no CRS"):
        draw_points(points, bare, 5.0)
    with pytest.raises(GridError, match="assign the missing one"):
        draw_points(points, UTM)


def test_multipoints_are_points_and_other_geometries_are_refused(tmp_path):
    path = tmp_path / "p.gpkg"
    shapes = [shapely.MultiPoint([(0, 0), (1, 2)]), shapely.Point(5, 5), None]
    geopandas.GeoDataFrame({"kind": ["a", "b", "c"]}, geometry=shapes, crs=32633).to_file(path)
    points = as_points(read_features(path))
    assert points.field_values("kind") == ("a", "a", "b")
    assert shapely.get_coordinates(points.shapes).tolist() == [[0, 0], [1, 2], [5, 5]]
    assert points.skipped == 1
    shapes[1] = shapely.box(0, 0, 1, 1)
    geopandas.GeoDataFrame({"kind": ["a", "b", "c"]}, geometry=shapes, crs=32633).to_file(path)
    mixed = read_features(path)
    assert has_points(mixed)
    with pytest.raises(DataError, match=r"1 of 2 geometries are points, 1 have other types \(Polygon\)"):
        as_points(mixed)


@pytest.mark.parametrize(
    "text",
    ["x,y,kind\n1.5,2,a\n,,b\n3,4,\n", "kind;Lon;Lat\na;1,5;2\nb;;\n;3;4\n", "N\tkind\tE\n2\ta\t1.5\n\tb\n4\t\t3\n"],
)
def test_a_table_of_points(tmp_path, text):
    path = tmp_path / "p.csv"
    path.write_text(text)
    columns = PointColumns("E", "N", "EPSG:4326") if "N" in text else PointColumns(crs="EPSG:4326")
    points = read_point_table(path, columns)
    assert shapely.get_coordinates(points.shapes).tolist() == [[1.5, 2], [3, 4]]
    assert (points.field_values("kind"), points.skipped, points.crs) == (("a", None), 1, CRS.from_epsg(4326))


@pytest.mark.parametrize(
    ("text", "columns", "said"),
    [
        ("x,y\n1,2\n", PointColumns(), r"has no CRS; set labels\.crs, for example EPSG:4326"),
        ("x,y\n1,2\n", PointColumns(crs="EPSG:1"), r"labels\.crs is 'EPSG:1', which is not a CRS"),
        ("a,b\n1,2\n", PointColumns(crs="EPSG:4326"), r"no columns with coordinates \(its columns are a, b\)"),
        ("x,y,lon,lat\n", PointColumns(crs="EPSG:4326"), "several pairs of columns with coordinates"),
        ("x,y\n1,2\n", PointColumns("x", "z", "EPSG:4326"), r"labels\.y is 'z', but its columns are x, y"),
        ("x,y\n1,2\n3,\n", PointColumns(crs="EPSG:4326"), "line 3: y is ''; it must be a coordinate"),
        ("x,y\n1,N2\n", PointColumns(crs="EPSG:4326"), "line 2: y is 'N2'; it must be a coordinate"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, columns, said):
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        read_point_table(path, columns)
