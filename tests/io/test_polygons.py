"""One polygon covers the same pixels as a label, as an area of interest and as a polygon of a split."""

import geopandas
import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from segkit.data.labels.open import open_labels
from segkit.data.pairing import Sample
from segkit.data.split import spatial_split
from segkit.errors import DataError, GridError
from segkit.io.grid import Grid
from segkit.io.polygons import project_to_grid, rasterize_shapes, read_polygons
from segkit.io.region import PolygonRegion, aoi_fingerprint, read_aoi
from segkit.io.scene import Scene
from segkit.recipe.label_source import LabelSource
from segkit.recipe.splits import SpatialSplit
from segkit.task import LandCoverClass, Task

# On 120 km a parallel is bent by hundreds of metres in UTM.
GRID = Grid(60, 60, Affine(2_000, 0, 300_000, 0, -2_000, 4_560_000), CRS.from_epsg(32618))
TASK = Task("binary", (LandCoverClass("a", 1),))


def centres(epsg, grid=GRID):
    """Coordinates of pixel centres in a CRS, two of (H, W)."""
    rows, columns = np.indices(grid.shape) + 0.5
    return pyproj.Transformer.from_crs(grid.crs, epsg, always_xy=True).transform(*(grid.transform @ (columns, rows)))


def boxes(epsg):
    """Two rectangles of a CRS that cover some of the grid each."""
    x, y = centres(epsg)
    left, right = np.quantile(x, [0.02, 0.98])
    low, middle, high = np.quantile(y, [0.1, 0.5, 0.9])
    return shapely.box(left, low, right, middle), shapely.box(left, (middle + high) / 2, right, high)


def write(path, shapes, epsg=4326, layer=None, **columns):
    frame = geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=epsg)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        driver = "LIBKML" if path.suffix == ".kml" else None
        pyogrio.write_dataframe(frame, path, driver=driver, layer=layer, append=path.exists())
    return path


def as_label(path, tmp_path, layer=None):
    labels = open_labels(LabelSource(path=str(path), layer=layer), TASK, GRID)
    assert labels is not None
    return labels.read(GRID.full_window)[0] == 1


def as_area(path, tmp_path, layer=None):
    region = PolygonRegion(read_aoi(path, layer), GRID)
    mask = np.zeros(GRID.shape, dtype=bool)
    for window in GRID.tiles(17):
        mask[window.toslices()] = region.mask(window)
    return mask


def as_split(path, tmp_path, layer=None):
    """The pixels that validate where each polygon does in one of two folds."""
    raster = tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": GRID.height, "width": GRID.width}
    with rasterio.open(raster, "w", crs=GRID.crs, transform=GRID.transform, **profile) as dataset:
        dataset.write(np.ones((1, *GRID.shape), dtype=np.uint8))
    scene = Scene.from_files(raster)
    sample = Sample(scene, open_labels(LabelSource(path=str(raster)), TASK, scene.grid))
    mask = np.zeros(GRID.shape, dtype=bool)
    for fold in ("0/2", "1/2"):
        rule = SpatialSplit(by="polygon", polygons=str(path), layer=layer, fold=fold, gap=0)
        for area in spatial_split([sample], TASK, rule)[1]:
            mask |= area.include.mask(GRID.full_window)
    return mask


USES = pytest.mark.parametrize("use", [as_label, as_area, as_split])


@USES
@pytest.mark.parametrize("epsg", [4326, 3857, 2263])
def test_edges_are_straight_in_the_polygons_own_crs(tmp_path, use, epsg):
    """EPSG:2263 counts feet."""
    path = write(tmp_path / "p.gpkg", boxes(epsg), epsg)
    x, y = centres(epsg)
    inside = shapely.contains_xy(boxes(epsg)[0], x, y) | shapely.contains_xy(boxes(epsg)[1], x, y)
    assert inside.sum() > 500
    np.testing.assert_array_equal(use(path, tmp_path), inside)


@USES
@pytest.mark.parametrize("suffix", [".shp", ".geojson", ".fgb", ".gml", ".kml", ".parquet"])
def test_every_format_covers_the_same_pixels(tmp_path, use, suffix):
    x, y = centres(4326)
    inside = shapely.contains_xy(shapely.union_all(boxes(4326)), x, y)
    np.testing.assert_array_equal(use(write(tmp_path / f"p{suffix}", boxes(4326)), tmp_path), inside)


@USES
def test_one_of_several_layers_is_named(tmp_path, use):
    path = write(tmp_path / "p.gpkg", boxes(4326)[:1] * 2, layer="other")
    write(path, boxes(4326), layer="wanted")
    x, y = centres(4326)
    inside = shapely.contains_xy(shapely.union_all(boxes(4326)), x, y)
    np.testing.assert_array_equal(use(path, tmp_path, "wanted"), inside)
    option = {as_label: "labels.layer", as_area: "--aoi-layer", as_split: "data.val.layer"}[use]
    with pytest.raises(DataError, match=f"its layers with geometries are other, wanted; give one with {option}"):
        use(path, tmp_path)


@USES
@pytest.mark.parametrize("other", ["POINT (-76 40)", "MULTILINESTRING ((-76 40, -75 40))"])
def test_points_and_lines_are_refused(tmp_path, use, other):
    path = write(tmp_path / "p.gpkg", [*boxes(4326), shapely.from_wkt(other)])
    said = f"have the type {shapely.from_wkt(other).geom_type}, but only"
    if use is as_label and "POINT" in other:  # which may be labels, but not together with polygons
        said = "are points, 2 have other types"
    with pytest.raises(DataError, match=f"1 of 3 geometries {said}"):
        use(path, tmp_path)


@USES
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_invalid_polygons_are_repaired_and_nulls_left_out(tmp_path, use):
    """A ring that runs around its middle twice: all of it is inside, also where it is covered twice."""
    grid = [GRID.transform @ corner for corner in ((5, 5), (40, 5), (40, 40), (20, 40), (20, 20), (30, 20), (30, 30))]
    ring = [*grid, *(GRID.transform @ corner for corner in ((5, 30),))]
    apart = shapely.Polygon([GRID.transform @ corner for corner in ((45, 45), (55, 45), (55, 55))])
    path = write(tmp_path / "p.gpkg", [shapely.Polygon(ring), apart, None], 32618)
    rows, columns = np.indices(GRID.shape) + 0.5
    x, y = GRID.transform @ (columns, rows)
    valid = shapely.make_valid(shapely.Polygon(ring), method="structure")
    assert not shapely.Polygon(ring).is_valid
    inside = shapely.contains_xy(valid, x, y) | shapely.contains_xy(apart, x, y)
    np.testing.assert_array_equal(use(path, tmp_path), inside)


def test_what_is_repaired_and_left_out_is_reported(tmp_path):
    bow = shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])
    polygons = read_polygons(write(tmp_path / "p.gpkg", [bow, None, boxes(4326)[0]]))
    with pytest.warns(UserWarning, match=r"p\.gpkg: 1 ") as warned:
        polygons.warn_of_repairs()
    assert [str(one.message).partition(": ")[2] for one in warned] == [
        "1 features have no geometry; skipped",
        "1 polygons are invalid; repaired",
    ]


@USES
def test_a_crs_on_one_side_only_is_refused(tmp_path, use):
    with pytest.warns(UserWarning, match="crs"):
        path = write(tmp_path / "p.gpkg", boxes(32618), None)
    with pytest.raises(GridError, match=r"p\.gpkg has CRS none, the scene EPSG:32618; assign the missing one"):
        use(path, tmp_path)


@USES
def test_polygons_may_reach_around_the_world(tmp_path, use):
    x, y = centres(4326)
    middle = float(np.median(y))
    path = write(tmp_path / "p.gpkg", [shapely.box(-180, middle, 180, 90), boxes(4326)[0]])
    inside = (y > middle) | shapely.contains_xy(boxes(4326)[0], x, y)
    np.testing.assert_array_equal(use(path, tmp_path), inside)


def test_polygons_without_coordinates_in_the_scenes_crs_are_refused(tmp_path):
    """What lies beyond the horizon has no place in an orthographic view."""
    view = CRS.from_string("+proj=ortho +lat_0=0 +lon_0=0 +datum=WGS84")
    grid = Grid(60, 60, Affine(200_000, 0, -6_000_000, 0, -200_000, 6_000_000), view)
    polygons = read_polygons(write(tmp_path / "p.gpkg", [shapely.box(0, 0, 120, 30), shapely.box(0, 0, 30, 30)]))
    with pytest.raises(GridError, match=r"1 polygons reach beyond the domain of .*; clip them"):
        project_to_grid(polygons, grid)


def test_whole_numbers_are_whole_in_every_type(tmp_path):
    path = write(
        tmp_path / "p.gpkg", [*boxes(4326), boxes(4326)[0]], n=[1, None, 3], t=[" a", "b ", None], x=[1.5, 2, 3]
    )
    polygons = read_polygons(path)
    assert polygons.field_values("n") == ("1", None, "3")
    assert polygons.field_values("t") == ("a", "b", None)
    assert polygons.field_values("x") == ("1.5", "2", "3")
    with pytest.raises(DataError, match="has no field 'm'; its fields are n, t, x"):
        polygons.field_values("m")


def test_a_window_shows_its_part_of_the_whole():
    star = shapely.Polygon([(3.3, 4.4), (50.2, 11.7), (31.1, 55.6), (20.9, 30.3)])
    whole = rasterize_shapes([star], Window(0, 0, 60, 60))
    assert np.array_equal(whole, shapely.contains_xy(star, *(np.indices((60, 60))[::-1] + 0.5)))
    for window in GRID.tiles(7):
        assert np.array_equal(rasterize_shapes([star], window), whole[window.toslices()])
    assert not rasterize_shapes([], Window(0, 0, 3, 2)).any()


def test_polygons_that_do_not_meet_the_grid_are_left_out(tmp_path):
    polygons = read_polygons(write(tmp_path / "p.gpkg", [shapely.box(10, 10, 11, 11), boxes(4326)[1]]))
    shapes, numbers, repaired = project_to_grid(polygons, GRID)
    assert numbers.tolist() == [1]
    assert len(shapes) == 1
    assert not repaired


def test_an_area_of_interest_has_polygons_and_a_name_that_changes_with_them(tmp_path):
    path = tmp_path / "aoi.gpkg"

    def fingerprint(shapes, crs):
        geopandas.GeoDataFrame(geometry=shapes, crs=crs).to_file(path)
        return aoi_fingerprint(read_aoi(path))

    here, there = shapely.box(0, 0, 1, 1), shapely.box(0, 0, 1, 2)
    found = [
        fingerprint(*given) for given in (([here], 32618), ([there], 32618), ([here], 4326), ([here, there], 4326))
    ]
    assert len(set(found)) == 4
    assert fingerprint([here], 32618) == found[0]
    assert {one.partition(" ")[0] for one in found} == {"aoi.gpkg"}
    pyogrio.write_dataframe(geopandas.GeoDataFrame(geometry=[], crs=4326), path, geometry_type="Polygon")
    with pytest.raises(DataError, match=r"aoi\.gpkg: has no polygon; an area of interest must have polygons"):
        read_aoi(path)
