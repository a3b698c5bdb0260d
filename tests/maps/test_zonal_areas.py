"""Areas in zones: against exactextract, against areas of polygons, and what does not fit is told."""

import geopandas
import numpy as np
import openpyxl
import pandas
import pytest
import rasterio
import shapely
from affine import Affine
from maps import write_map
from places import SHARED
from test_change import with_classes

from segkit.errors import DataError, GridError, UsageError
from segkit.io.grid import Grid
from segkit.io.raster import open_raster, read_grid
from segkit.maps.zonal_areas import areas

UTM = Affine(10, 0, 500_000, 0, -10, 9_000_000)
CLASSES = [(1, "forest", "#1b7837"), (2, "water", "#2b83ba"), (3, "field", "#e6c35c")]


def write_zones(path, shapes, crs="EPSG:32622", **fields):
    geopandas.GeoDataFrame(fields, geometry=list(shapes), crs=crs).to_file(path)
    return path


def write_probabilities(path, values, names, nodata=255):
    with rasterio.open(
        path, "w", driver="GTiff", count=len(names), height=values.shape[1], width=values.shape[2], dtype="uint8",
        crs="EPSG:32622", transform=UTM, nodata=nodata,
    ) as file:  # fmt: skip
        file.write(values)
        file.descriptions = names
        file.scales = [1 / 250] * len(names)
    return path


@pytest.fixture
def codes():
    return np.random.default_rng(0).choice([1, 2, 255], (60, 70), p=[0.5, 0.3, 0.2]).astype(np.uint8)


@pytest.fixture
def path(tmp_path, codes):
    return with_classes(write_map(tmp_path / "map.tif", codes, transform=UTM), CLASSES)


@pytest.mark.parametrize("crs", ["EPSG:32622", "EPSG:4326", "EPSG:3857"])
def test_areas_are_those_of_exactextract(tmp_path, codes, crs):
    """Coverage times true area of each pixel; zones overlap, and one has a hole."""
    exactextract = pytest.importorskip("exactextract")
    transform = UTM if crs == "EPSG:32622" else Affine(1e-3, 0, -51, 0, -1e-3, 60)
    transform = Affine(100, 0, -5e6, 0, -100, 8e6) if crs == "EPSG:3857" else transform
    path = with_classes(write_map(tmp_path / "map.tif", codes, crs=crs, transform=transform), CLASSES)
    in_pixels = [
        shapely.Polygon([(1.3, 2.2), (66.1, 8.8), (30.4, 55.5)]),
        shapely.difference(shapely.box(10.5, 10.5, 50.25, 40.75), shapely.box(20, 20, 30.5, 30)),
        shapely.box(3.2, 4.1, 3.9, 4.6),
    ]
    shapes = [shapely.transform(one, lambda xy: np.stack(transform @ xy.T, axis=1)) for one in in_pixels]
    zones = write_zones(tmp_path / "zones.gpkg", shapes, crs, name=["a", "b", "c"])
    found = areas(path, zones, by="name")
    ground = Grid(60, 70, transform, rasterio.crs.CRS.from_string(crs)).hectares().ravel()
    frame = geopandas.read_file(zones)
    for zone, one in enumerate(exactextract.exact_extract(str(path), frame, ["cell_id", "coverage"])):
        cells, weight = one["properties"]["cell_id"], one["properties"]["coverage"]
        for column, value in enumerate((1, 2)):
            chosen = codes.ravel()[cells] == value
            expected = (ground[cells] * weight)[chosen].sum()
            assert found.hectares[zone, column] == pytest.approx(expected, rel=2e-6, abs=1e-9)
    assert found.classes == ("forest", "water", "field")
    assert not found.hectares[:, 2].any()
    assert not found.outside_hectares.any()
    parts = found.hectares.sum(axis=1) + found.no_data_hectares
    np.testing.assert_allclose(parts, found.zone_hectares, rtol=1e-5)


def test_equal_names_are_one_zone_and_its_ground_counts_once(path, tmp_path):
    """Zones of other names overlap freely; without a field each polygon is a zone."""
    left, right = 500_000, 500_700
    shapes = [
        shapely.box(left, 8_999_700, left + 200, 9_000_000),
        shapely.box(left + 100, 8_999_700, left + 300, 9_000_000),
        shapely.box(left, 8_999_700, left + 300, 9_000_000),
        shapely.box(right - 100, 8_999_400, right, 8_999_500),
    ]
    zones = write_zones(tmp_path / "zones.gpkg", shapes, name=["a", "a", "b", None])
    found = areas(path, zones, by="name")
    assert found.zones == ("a", "b", "(no name)")
    np.testing.assert_allclose(found.hectares[0], found.hectares[1])
    numbered = areas(path, zones)
    assert numbered.zones == ("1", "2", "3", "4")
    assert numbered.hectares[:2].sum() > found.hectares[0].sum()


def test_zones_in_another_crs_and_outside_are_told(path, tmp_path):
    map_box = shapely.box(500_000, 8_999_400, 500_700, 9_000_000)
    shapes = [
        map_box,
        shapely.box(500_600, 8_999_500, 500_800, 8_999_600),
        shapely.box(600_000, 8e6, 600_100, 8_000_100),
    ]
    zones = geopandas.GeoSeries(shapes, crs="EPSG:32622").segmentize(20).to_crs(4326)
    write_zones(tmp_path / "zones.gpkg", zones, "EPSG:4326", name=["all", "half", "far"])
    with pytest.warns(UserWarning, match="are") as said:
        found = areas(path, tmp_path / "zones.gpkg", by="name")
    assert [str(one.message) for one in said] == [
        "1 of 3 zones are outside of the map: far",
        "1 of 3 zones are partly outside of the map: half",
    ]
    with open_raster(path) as dataset:
        total = read_grid(dataset).hectares().sum()
    inside = found.hectares.sum(axis=1) + found.no_data_hectares
    assert inside[0] == pytest.approx(total, rel=1e-6)
    np.testing.assert_allclose(found.outside_hectares[1], inside[1], rtol=1e-4)
    assert (found.hectares[2].sum(), found.outside_hectares[2]) == (0, found.zone_hectares[2])


def test_expected_areas_are_sums_of_probabilities(path, codes, tmp_path):
    values = np.random.default_rng(1).integers(0, 251, (2, 60, 70)).astype(np.uint8)
    values[:, 5, 5] = 255
    probabilities = write_probabilities(tmp_path / "p.tif", values, ("forest", "field"))
    zone = shapely.box(500_000, 8_999_400, 500_705, 9_000_000)  # the last column in part, and beyond
    zones = write_zones(tmp_path / "zones.gpkg", [zone])
    with pytest.warns(UserWarning, match="partly outside"):
        found = areas(path, zones, probabilities=probabilities, output=tmp_path / "areas.csv")
    with open_raster(path) as dataset:
        ground = read_grid(dataset).hectares()
    known = (codes != 255) & (values[0] != 255)
    expected = [(ground * layer / 250)[known].sum() for layer in values]
    assert found.expected_hectares is not None
    np.testing.assert_allclose(found.expected_hectares[0, [0, 2]], expected, rtol=1e-6)
    assert np.isnan(found.expected_hectares[0, 1])  # water has no band
    table = pandas.read_csv(tmp_path / "areas.csv")
    assert [*table] == [
        "zone", "forest_ha", "water_ha", "field_ha", "forest_expected_ha", "field_expected_ha", "zone_ha", "no_data_ha",
        "outside_map_ha",
    ]  # fmt: skip
    write_probabilities(tmp_path / "other.tif", values, ("a", "b"))
    with pytest.raises(DataError, match="none of its bands is named after a class; the map has forest, water, field"):
        areas(path, zones, probabilities=tmp_path / "other.tif")


def test_background_is_the_rest_of_a_single_class(tmp_path):
    values = np.full((1, 20, 20), 50, np.uint8)
    map_path = write_map(tmp_path / "map.tif", (np.arange(400).reshape(20, 20) % 2).astype(np.uint8), transform=UTM)
    (tmp_path / "names.csv").write_text("value,name,background\n0,rest,yes\n1,forest,no\n")
    probabilities = write_probabilities(tmp_path / "p.tif", values, ("forest",))
    zones = write_zones(tmp_path / "zones.gpkg", [shapely.box(500_000, 8_999_800, 500_200, 9_000_000)])
    found = areas(map_path, zones, probabilities=probabilities, class_names=tmp_path / "names.csv")
    total = found.hectares.sum()
    assert found.expected_hectares is not None
    np.testing.assert_allclose(found.expected_hectares, [[0.8 * total, 0.2 * total]])


def test_overlapping_classes_are_counted_by_themselves(tmp_path):
    bands = np.random.default_rng(2).integers(0, 2, (2, 30, 30)).astype(np.uint8)
    with rasterio.open(
        tmp_path / "map.tif", "w", driver="GTiff", count=2, height=30, width=30, dtype="uint8", crs="EPSG:32622",
        transform=UTM, nodata=255,
    ) as file:  # fmt: skip
        file.write(bands)
    with_classes(tmp_path / "map.tif", [(1, "trees", "#1b7837"), (2, "flooded", "#2b83ba")], kind="multilabel")
    zones = write_zones(tmp_path / "zones.gpkg", [shapely.box(500_000, 8_999_700, 500_300, 9_000_000)])
    found = areas(tmp_path / "map.tif", zones)
    assert found.classes == ("trees", "flooded")
    np.testing.assert_allclose(found.hectares[0] / found.zone_hectares[0], bands.mean(axis=(1, 2)), rtol=1e-5)


def test_a_spreadsheet(path, tmp_path):
    zones = write_zones(tmp_path / "z.gpkg", [shapely.box(500_000, 8_999_900, 500_100, 9_000_000)], name=["=1+1"])
    found = areas(path, zones, by="name", output=tmp_path / "areas.xlsx")
    rows = list(openpyxl.load_workbook(tmp_path / "areas.xlsx")["areas"].values)
    assert rows[0] == ("name", "forest_ha", "water_ha", "field_ha", "zone_ha", "no_data_ha", "outside_map_ha")
    assert rows[1][:2] == ("'=1+1", pytest.approx(found.hectares[0, 0]))
    write_zones(zones, [shapely.box(500_000, 8_999_900, 500_100, 9_000_000)], name=["a\x01b"])
    areas(path, zones, by="name", output=tmp_path / "areas.xlsx", overwrite=True)
    assert list(openpyxl.load_workbook(tmp_path / "areas.xlsx")["areas"].values)[1][0] == "a\ufffdb"


@pytest.mark.parametrize(("names", "by"), [(("forest", "no_data"), None), (("forest", "zone"), None), ("ab", "a_ha")])
def test_columns_of_one_name_are_refused(tmp_path, codes, names, by):
    path = with_classes(
        write_map(tmp_path / "map.tif", codes, transform=UTM), [(1, names[0], None), (2, names[1], None)]
    )
    zones = write_zones(tmp_path / "z.gpkg", [shapely.box(500_000, 8_999_900, 500_100, 9_000_000)], a_ha=["a"])
    with pytest.raises(UsageError, match=r"two columns of the table would be called '(no_data|zone|a)_ha'"):
        areas(path, zones, by=by)


def test_what_cannot_be_is_refused_before_the_work(path, tmp_path):
    zones = write_zones(tmp_path / "z.gpkg", [shapely.box(500_000, 8_999_900, 500_100, 9_000_000)], name=["a"])
    with pytest.raises(DataError, match=r"z\.gpkg: has no field 'nam'; its fields are name"):
        areas(path, zones, by="nam")
    with pytest.raises(UsageError, match=r"tables are written as \.csv and \.xlsx"):
        areas(path, zones, output=tmp_path / "areas.txt")
    write_zones(tmp_path / "points.gpkg", [shapely.Point(500_000, 8_999_900)])
    with pytest.raises(DataError, match="only polygons are used"):
        areas(path, tmp_path / "points.gpkg")
    nowhere = write_map(tmp_path / "nowhere.tif", np.ones((4, 4), np.uint8), crs=None)
    with pytest.raises(GridError, match="areas cannot be computed"):
        areas(nowhere, zones)


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
def test_fields_of_flanders_have_the_area_of_their_polygons():
    folder = SHARED / "flanders"
    with pytest.warns(UserWarning, match="outside of the map|no geometry"):
        found = areas(folder / "fields_mask_ignore255.tif", folder / "fields_BEFL-s2-fields-2023_polygons.gpkg")
    parts = found.hectares.sum(axis=1) + found.no_data_hectares + found.outside_hectares
    np.testing.assert_allclose(parts, found.zone_hectares, rtol=1e-5, atol=1e-6)
