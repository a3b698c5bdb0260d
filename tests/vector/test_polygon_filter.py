"""Oracle of the filters: geopandas, on the polygons of the whole map."""

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from geopandas.testing import assert_geodataframe_equal
from synthetic import write_raster

from segkit.errors import UsageError
from segkit.vector import polygons, vectorize

NAMES = ("1", "2", "3")


@pytest.fixture
def given(tmp_path):
    """A noisy map of three classes, and its probabilities, with a corner that has none."""
    random = np.random.default_rng(0)
    codes = np.kron(random.integers(1, 4, (12, 12)), np.ones((4, 4), int)).astype(np.uint8)
    codes = np.where(random.random(codes.shape) < 0.1, random.integers(1, 4, codes.shape), codes).astype(np.uint8)
    values = np.kron(random.random((3, 6, 6)), np.ones((8, 8))).astype(np.float32)
    values[:, :9, :9] = np.nan
    path = write_raster(tmp_path / "map.tif", codes)
    chances = write_raster(tmp_path / "p.tif", values)
    with rasterio.open(chances, "r+") as file:
        file.descriptions = NAMES
    return path, chances


LIMITS = [
    ({"max_area": "0.2ha"}, lambda frame: frame["area_ha"] <= 0.2),
    ({"max_area": "20px"}, lambda frame: frame["pixels"] <= 20),
    ({"min_confidence": 0.5}, lambda frame: frame["mean_conf"] >= 0.5),
    ({"max_area": "0.2ha", "min_confidence": 0.4}, lambda frame: (frame.area_ha <= 0.2) & (frame.mean_conf >= 0.4)),
]
BEFORE = [{}, {"min_area": "5px", "fill_holes": "9px", "simplify": "12m", "smooth": True}, {"classes": ["2"]}]


@pytest.mark.parametrize("before", BEFORE, ids=str)
@pytest.mark.parametrize(("limits", "within"), LIMITS, ids=lambda one: str(one) if isinstance(one, dict) else "")
def test_polygons_outside_the_limits_are_left_out_and_no_other_changes(
    given, tmp_path, monkeypatch, before, limits, within
):
    path, chances = given
    whole = polygons(path, probabilities=chances, **before)
    expected = whole[within(whole)].reset_index(drop=True)
    assert 0 < len(expected) < len(whole)
    monkeypatch.setattr("segkit.vector.tracing.pipeline._MIN_BATCH_POLYGONS", 3)
    assert_geodataframe_equal(polygons(path, probabilities=chances, **before, **limits), expected)
    summary = vectorize(path, tmp_path / "out.gpkg", probabilities=chances, **before, **limits)
    assert summary.left_out == len(whole) - len(expected)
    assert_geodataframe_equal(geopandas.read_file(summary.path, layer="out"), expected, check_dtype=False)
    assert {name: number for name, number in summary.polygons.items() if number} == expected[
        "class"
    ].value_counts().to_dict()


def test_polygons_are_left_out_before_those_of_a_class_are_joined(given):
    path, _ = given
    whole = polygons(path)
    parts = whole[whole["pixels"] <= 20]
    joined = polygons(path, max_area="20px", dissolve=True)
    assert joined.set_index("class")["pixels"].to_dict() == parts.groupby("class")["pixels"].sum().to_dict()
    expected = parts.dissolve("class").geometry.area
    np.testing.assert_allclose(joined.set_index("class").geometry.area[expected.index], expected)


def test_no_polygon_within_the_limits_is_an_empty_layer(given, tmp_path):
    path, chances = given
    for dissolve in (False, True):
        limits = {"probabilities": chances, "min_confidence": 1.0, "dissolve": dissolve}
        assert len(polygons(path, **limits)) == 0
        summary = vectorize(path, tmp_path / "out.gpkg", **limits, overwrite=True)
        assert summary.left_out == len(polygons(path))
        assert len(geopandas.read_file(summary.path, layer="out")) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_area": "5"}, "max_area 5: has no unit"),
        ({"max_area": "0ha"}, "leaves out every polygon"),
        ({"max_area": "1ha", "min_area": "2ha"}, "is below min_area"),
        ({"min_confidence": 70.0}, "min_confidence 70: must be from 0 to 1"),
        ({"min_confidence": float("nan")}, "must be from 0 to 1"),
        ({"min_confidence": 0.7}, "needs the probabilities of the map"),
        ({"attributes": ["volume"]}, "volume is unknown; the attributes are centroid, compactness"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused(given, options, message):
    path, chances = given
    if options.get("min_confidence") != 0.7:
        options = options | {"probabilities": chances}
    with pytest.raises(UsageError, match=message):
        polygons(path, **options)


@pytest.mark.filterwarnings("ignore:.*area_ha and perim_m are empty")
def test_hectares_need_a_crs(tmp_path):
    path = write_raster(tmp_path / "map.tif", np.ones((4, 4), np.uint8), crs=None)
    with pytest.raises(UsageError, match="max_area: the map has no CRS to measure areas in"):
        polygons(path, max_area="1ha")
    assert len(polygons(path, max_area="16px")) == 1


@pytest.mark.parametrize("how", [{}, {"simplify": "12m", "smooth": True}, {"dissolve": True}], ids=str)
def test_centroids_are_those_of_shapely_and_compactness_follows_from_area_and_length(given, tmp_path, how):
    path, _ = given
    both = {"attributes": ["compactness", "centroid"], **how}
    frame = polygons(path, **both)
    assert list(frame.columns)[-4:] == ["centroid_x", "centroid_y", "compact", "geometry"]
    assert max(map(len, frame.columns)) <= 10  # of a shapefile
    np.testing.assert_allclose(frame[["centroid_x", "centroid_y"]], frame.centroid.get_coordinates())
    np.testing.assert_allclose(frame["compact"], 4 * np.pi * frame.area / frame.length**2, rtol=1e-3)
    assert frame["compact"].between(0, 1).all()
    if not how:
        square = frame[(frame["pixels"] == 1)]
        np.testing.assert_allclose(square["compact"], np.pi / 4, rtol=1e-6)
    written = geopandas.read_file(vectorize(path, tmp_path / "out.shp", **both).path)
    for column in ("centroid_x", "centroid_y", "compact"):
        np.testing.assert_allclose(written[column], frame[column])


@pytest.mark.parametrize("ending", [".gpkg", ".geojson"])
def test_centroids_are_given_in_the_coordinates_of_the_file(given, tmp_path, ending):
    path, _ = given
    expected = polygons(path).centroid.to_crs(4326).get_coordinates()
    frame = polygons(path, to_crs="EPSG:4326", attributes=["centroid"])
    np.testing.assert_allclose(frame[["centroid_x", "centroid_y"]], expected, atol=1e-12)
    file = vectorize(path, tmp_path / f"out{ending}", to_crs="EPSG:4326", attributes=["centroid"]).path
    written = geopandas.read_file(file, layer="out")
    np.testing.assert_allclose(written[["centroid_x", "centroid_y"]], expected, atol=1e-7)


def test_the_centroid_of_a_polygon_across_the_antimeridian_lies_in_it(tmp_path):
    path = tmp_path / "map.tif"
    profile = {"driver": "GTiff", "width": 6, "height": 1, "count": 1, "dtype": "uint8", "crs": "EPSG:4326"}
    with rasterio.open(path, "w", **profile, transform=Affine(1, 0, 177, 0, -1, 10)) as file:
        file.write(np.array([[[0, 1, 1, 1, 1, 1]]], np.uint8))
    with pytest.warns(UserWarning, match="taken for background"):
        (row,) = polygons(path, to_crs="EPSG:4326", attributes=["centroid"]).to_dict("records")
    assert row["geometry"].geom_type == "MultiPolygon"
    assert (row["centroid_x"], row["centroid_y"]) == pytest.approx((-179.5, 9.5))
