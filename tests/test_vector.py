"""Maps -> polygons -> files."""

import json
import subprocess
import sys
from dataclasses import replace

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.features
import shapely
from affine import Affine
from pyarrow import parquet

from segkit.errors import DataError, GridError, MissingFileError, OutputError, OutputExistsError, UsageError
from segkit.vector import Summary, polygons, vectorize
from segkit.vector.write import FORMATS

NODATA = 255
UTM = Affine(10, 0, 300_000, 0, -10, 9_000_000)
CODES = np.array(
    [
        [0, 0, 0, 1, 1],
        [0, 1, 1, 2, 2],
        [0, 1, NODATA, 2, 2],
        [5, 5, 5, 5, 1],
    ],
    dtype=np.uint8,
)
BACKGROUND = {"name": "background", "value": 0, "color": "#ffffff", "background": True}
FOREST = {"name": "forest", "value": 1, "color": "#006d2c"}
WATER = {"name": "Água ✓", "value": 2, "color": "#3182bd"}
BARE = {"name": "bare", "value": 5, "color": "#aaaaaa"}
CLEARED = {"name": "cleared", "value": 7, "color": "#ff0000"}


def write_raster(path, bands, *, legend=None, multilabel=False, names=None, transform=UTM, crs="EPSG:32722", **profile):
    bands = bands[None] if bands.ndim == 2 else bands
    scale = profile.pop("scale", None)
    profile = {"nodata": NODATA, "dtype": bands.dtype, "crs": crs, "transform": transform} | profile
    count, height, width = bands.shape
    with rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width, **profile) as dataset:
        dataset.write(bands)
        if legend is not None:
            dataset.update_tags(segkit_classes=json.dumps(legend))
        if multilabel:
            dataset.update_tags(segkit_type="multilabel")
        if names is not None:
            dataset.descriptions = names
        if scale is not None:
            dataset.scales = (scale,) * count
    return path


@pytest.fixture
def exclusive(tmp_path):
    """A map of four classes, of which `cleared` has no pixel, and background."""
    return write_raster(tmp_path / "map.tif", CODES, legend=[BACKGROUND, FOREST, WATER, BARE, CLEARED])


@pytest.fixture
def multilabel(tmp_path):
    """Two classes that overlap, each in one piece, and one without pixels."""
    bands = np.zeros((3, 4, 4), dtype=np.uint8)
    bands[0, :3, :3] = 1
    bands[1, 1:, 1:] = 1
    bands[:, 0, 0] = NODATA
    names = ("tree", "shadow", "roof")
    legend = [{"name": name, "value": value, "color": "#000000"} for value, name in enumerate(names, 10)]
    return write_raster(tmp_path / "overlapping.tif", bands, legend=legend, multilabel=True, names=names)


def read(path):
    return geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)


def sorted_by_place(frame):
    return frame.iloc[np.lexsort(frame.geometry.bounds.to_numpy().T)].reset_index(drop=True)


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_columns(exclusive):
    frame = polygons(exclusive)
    assert list(frame.columns) == ["class_id", "class", "area_ha", "pixels", "geometry"]
    assert max(map(len, frame.columns)) <= 10
    assert frame[["class_id", "class", "pixels"]].to_numpy().tolist() == [
        [1, "forest", 2],
        [1, "forest", 3],
        [2, "Água ✓", 4],
        [5, "bare", 4],
        [1, "forest", 1],
    ]
    assert frame.crs.to_epsg() == 32722
    np.testing.assert_allclose(frame.area, frame["pixels"] * 100)
    np.testing.assert_allclose(frame["area_ha"], frame["pixels"] / 100, rtol=2e-3)
    assert frame.geometry[0].bounds == (300_030, 8_999_990, 300_050, 9_000_000)
    assert shapely.coverage_is_valid(frame.geometry)


def test_background_is_left_out_unless_wanted(exclusive):
    assert "background" not in set(polygons(exclusive)["class"])
    assert polygons(exclusive, background=True)["pixels"].sum() == CODES.size - 1
    assert set(polygons(exclusive, classes=["background"])["class"]) == {"background"}


def test_classes_are_chosen_by_name_or_value(exclusive):
    assert set(polygons(exclusive, classes=["forest", 5])["class"]) == {"forest", "bare"}
    assert set(polygons(exclusive, classes=["2"], background=True)["class_id"]) == {0, 2}
    with pytest.raises(UsageError, match=r"no class sea; it has background \(0\), forest \(1\)"):
        polygons(exclusive, classes=["sea", "forest"])


def test_choosing_classes_does_not_change_their_polygons(exclusive):
    everything = polygons(exclusive, background=True)
    chosen = polygons(exclusive, classes=["forest"])
    same = everything[everything["class"] == "forest"].reset_index(drop=True)
    assert shapely.equals(chosen.geometry, same.geometry).all()


def test_a_foreign_map_names_classes_by_code_and_0_is_background(tmp_path):
    path = write_raster(tmp_path / "foreign.tif", CODES.astype(np.int32) * 1000, nodata=NODATA * 1000)
    assert set(polygons(path)["class"]) == {"1000", "2000", "5000"}
    assert set(polygons(path, background=True)["class_id"]) == {0, 1000, 2000, 5000}


def test_a_code_that_the_legend_lacks_is_called_by_its_number(tmp_path):
    path = write_raster(tmp_path / "map.tif", CODES, legend=[FOREST, WATER])
    assert set(polygons(path)["class"]) == {"forest", "Água ✓", "0", "5"}


def test_a_mask_band_is_no_data(tmp_path):
    path = write_raster(tmp_path / "masked.tif", CODES, nodata=None)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(CODES == 5)
    assert polygons(path)["class_id"].tolist() == [5]


def test_a_south_up_map_lies_where_its_pixels_lie(tmp_path):
    north_up = polygons(write_raster(tmp_path / "n.tif", CODES))
    south_up = polygons(
        write_raster(tmp_path / "s.tif", np.flipud(CODES), transform=Affine(10, 0, 300_000, 0, 10, 8_999_960))
    )
    north_up, south_up = sorted_by_place(north_up), sorted_by_place(south_up)
    assert south_up["class"].tolist() == north_up["class"].tolist()
    assert shapely.equals(south_up.geometry, north_up.geometry).all()
    assert shapely.is_ccw(south_up.exterior).all()
    np.testing.assert_allclose(south_up["area_ha"], north_up["area_ha"], rtol=1e-9)


def test_without_a_crs_areas_are_null_and_that_is_said(tmp_path):
    path = write_raster(tmp_path / "map.tif", CODES, crs=None)
    with pytest.warns(UserWarning, match="area_ha stays empty: without a CRS") as warned:
        frame = polygons(path)
    assert warned[0].filename == __file__
    assert frame["area_ha"].isna().all()
    with pytest.warns(UserWarning, match="area_ha stays empty"):
        summary = vectorize(path, tmp_path / "out.shp")
    assert summary.hectares is None
    assert read(tmp_path / "out.shp")["area_ha"].isna().all()
    with pytest.warns(UserWarning, match="area_ha"), pytest.raises(UsageError, match="GeoJSON holds longitude"):
        vectorize(path, tmp_path / "out.geojson")


@pytest.mark.parametrize(
    ("bands", "options", "message"),
    [
        (CODES.astype(np.float32), {}, "band 1 is float32; a map holds class codes"),
        (np.stack([CODES, CODES]), {}, "has 2 bands; a map has one band"),
        (np.stack([CODES, CODES]), {"multilabel": True, "legend": [FOREST]}, "2 bands but lists 1 classes"),
        (CODES, {"legend": [{"value": 1}]}, "tag segkit_classes is no list"),
        (CODES, {"legend": 3}, "tag segkit_classes is no list"),
        (CODES.astype(np.uint32) * 2**30, {"nodata": None}, "holds the code"),
    ],
)
def test_what_is_no_map_is_refused(tmp_path, bands, options, message):
    path = write_raster(tmp_path / "odd.tif", bands, **options)
    with pytest.raises(DataError, match=message) as error:
        polygons(path)
    assert "odd.tif" in str(error.value)


def test_multilabel_polygons_overlap(multilabel):
    frame = polygons(multilabel, background=True)
    assert frame[["class_id", "class", "pixels"]].to_numpy().tolist() == [[10, "tree", 8], [11, "shadow", 9]]
    assert shapely.area(shapely.intersection(*frame.geometry)) == 400
    assert polygons(multilabel, classes=["shadow"])["class"].tolist() == ["shadow"]


@pytest.mark.parametrize("ending", FORMATS)
def test_multilabel_is_layered_where_the_format_has_layers(multilabel, tmp_path, ending):
    output = tmp_path / f"out{ending}"
    summary = vectorize(multilabel, output)
    assert summary.polygons == {"tree": 1, "shadow": 1, "roof": 0}
    if ending == ".gpkg":
        assert [name for name, _ in pyogrio.list_layers(output)] == ["tree", "shadow", "roof"]
        assert [len(geopandas.read_file(output, layer=name)) for name in summary.polygons] == [1, 1, 0]
    else:
        assert sorted(read(output)["class"]) == ["shadow", "tree"]


def stored(probabilities):
    return np.where(np.isnan(probabilities), NODATA, np.rint(probabilities * 254)).astype(np.uint8)


def mean_where(numbers, polygon):
    inside = rasterio.features.rasterize([polygon], numbers.shape, transform=UTM).astype(bool)
    return numbers[inside & ~np.isnan(numbers)].mean()


def test_mean_confidence_is_the_mean_inside(exclusive, tmp_path):
    chances = np.random.default_rng(0).random((5, *CODES.shape))
    chances[:, 1, 1] = np.nan  # one of three pixels
    chances[:, 3, 4] = np.nan  # all of one polygon
    names = ("bare", "background", "forest", "Água ✓", "cleared")
    path = write_raster(tmp_path / "p.tif", stored(chances), names=names, scale=1 / 254)
    frame = polygons(exclusive, probabilities=path, background=True)
    read_back = np.where(stored(chances) == NODATA, np.nan, stored(chances) / 254)
    unknown = frame["mean_conf"].isna()
    assert frame[unknown]["pixels"].tolist() == [1]
    for row in frame[~unknown].to_dict("records"):
        expected = mean_where(read_back[names.index(row["class"])], row["geometry"])
        assert row["mean_conf"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("names", [("forest",), ("forest", "Água ✓", "bare")])
def test_a_background_without_a_band_has_what_the_others_leave(exclusive, tmp_path, names):
    chances = np.random.default_rng(1).random((len(names), *CODES.shape))
    path = write_raster(tmp_path / "p.tif", stored(chances), names=names, scale=1 / 254)
    frame = polygons(exclusive, probabilities=path, classes=["background", "forest"])
    left = 1 - stored(chances).max(axis=0) / 254
    for row in frame.to_dict("records"):
        own = left if row["class"] == "background" else stored(chances[0]) / 254
        assert row["mean_conf"] == pytest.approx(mean_where(own, row["geometry"]), abs=1e-6)


def test_multilabel_confidence(multilabel, tmp_path):
    chances = np.random.default_rng(2).random((3, 4, 4))
    path = write_raster(tmp_path / "p.tif", stored(chances), names=("tree", "shadow", "roof"), scale=1 / 254)
    frame = polygons(multilabel, probabilities=path)
    for band, row in enumerate(frame.to_dict("records")):
        assert row["mean_conf"] == pytest.approx(mean_where(stored(chances[band]) / 254, row["geometry"]), abs=1e-6)


def test_probabilities_that_do_not_fit_are_refused(exclusive, tmp_path):
    chances = stored(np.zeros((1, *CODES.shape)))
    shifted = Affine(10, 0, 300_010, 0, -10, 9_000_000)
    elsewhere = write_raster(tmp_path / "e.tif", chances, names=("forest",), transform=shifted)
    with pytest.raises(GridError, match="lie on different grids"):
        polygons(exclusive, probabilities=elsewhere)
    nameless = write_raster(tmp_path / "n.tif", chances)
    with pytest.raises(DataError, match=r"no band for the class forest, only \(no name\)"):
        polygons(exclusive, probabilities=nameless)
    with pytest.raises(MissingFileError):
        polygons(exclusive, probabilities=tmp_path / "missing.tif")


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_reads_back_equal(exclusive, tmp_path, ending):
    output = tmp_path / f"out{ending}"
    expected = polygons(exclusive, background=True)
    summary = vectorize(exclusive, output, background=True)
    found = read(output)
    if ending == ".geojson":
        assert found.crs.to_epsg() == 4326
        expected = expected.to_crs(4326)
    else:
        assert found.crs == expected.crs
    expected, found = sorted_by_place(expected), sorted_by_place(found)
    assert shapely.equals_exact(found.geometry, expected.geometry, tolerance=1e-7, normalize=True).all()
    for column in ("class_id", "class", "pixels"):
        assert found[column].tolist() == expected[column].tolist()
    np.testing.assert_allclose(found["area_ha"], expected["area_ha"], rtol=1e-9)
    assert isinstance(summary, Summary)
    assert summary.path == output
    assert summary.polygons == {"background": 1, "forest": 3, "Água ✓": 1, "bare": 1, "cleared": 0}
    assert sum(summary.hectares.values()) == pytest.approx(expected["area_ha"].sum())


@pytest.mark.parametrize("ending", FORMATS)
def test_an_empty_map_is_an_empty_layer(tmp_path, ending):
    path = write_raster(tmp_path / "map.tif", np.full((3, 3), NODATA, dtype=np.uint8), legend=[FOREST])
    output = tmp_path / f"out{ending}"
    assert vectorize(path, output) == Summary(output, {"forest": 0}, {"forest": 0.0})
    found = read(output)
    assert len(found) == 0
    if ending != ".geojson":  # it has columns only in features
        assert list(found.columns) == ["class_id", "class", "area_ha", "pixels", "geometry"]
        assert found.crs.to_epsg() == 32722


def test_geoparquet_says_where_its_rows_are(exclusive, tmp_path):
    vectorize(exclusive, tmp_path / "out.parquet")
    metadata = json.loads(parquet.read_schema(tmp_path / "out.parquet").metadata[b"geo"])
    assert metadata["version"] == "1.1.0"
    assert "bbox" in metadata["columns"]["geometry"]["covering"]


def test_geojson_follows_its_rfc(exclusive, tmp_path):
    vectorize(exclusive, tmp_path / "out.geojson")
    written = json.loads((tmp_path / "out.geojson").read_text(encoding="utf-8"))
    assert "crs" not in written
    for feature in written["features"]:
        outer = np.array(feature["geometry"]["coordinates"][0])
        assert shapely.is_ccw(shapely.linearrings(outer))
        assert -54 < outer[:, 0].mean() < -50


def test_an_unknown_ending_is_refused_before_any_work(tmp_path):
    with pytest.raises(
        UsageError, match=r"not written as \.kml; use one of \.shp, \.gpkg, \.parquet, \.fgb, \.geojson"
    ):
        vectorize(tmp_path / "missing.tif", tmp_path / "out.kml")


def test_an_existing_output_is_kept_unless_it_may_be_overwritten(exclusive, tmp_path):
    output = tmp_path / "out.gpkg"
    output.write_bytes(b"precious")
    with pytest.raises(OutputExistsError):
        vectorize(exclusive, output)
    assert output.read_bytes() == b"precious"
    vectorize(exclusive, output, overwrite=True)
    assert len(read(output)) == 5


@pytest.mark.parametrize("ending", [".shp", ".gpkg"])
def test_a_write_that_fails_midway_leaves_everything_as_it_was(exclusive, tmp_path, monkeypatch, ending):
    output = tmp_path / f"out{ending}"
    vectorize(exclusive, output)
    before = files_in(tmp_path)

    def fill_the_disk(frame, path, **options):
        path.write_bytes(b"half")
        raise pyogrio.errors.DataSourceError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(pyogrio, "write_dataframe", fill_the_disk)
        with pytest.raises(OutputError, match=f"out{ending} could not be written: no space left"):
            vectorize(exclusive, output, classes=["bare"], overwrite=True)
    with monkeypatch.context() as patch:
        patch.setitem(FORMATS, ending, replace(FORMATS[ending], count=lambda path, layer: 0))
        with pytest.raises(OutputError, match="5 polygons were written and 0 read back"):
            vectorize(exclusive, output, overwrite=True)
    assert files_in(tmp_path) == before
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_new_shapefile_does_not_keep_parts_of_the_old_one(exclusive, tmp_path):
    output = tmp_path / "out.shp"
    vectorize(exclusive, output)
    assert (tmp_path / "out.cpg").read_text() == "UTF-8"
    (tmp_path / "out.qix").write_bytes(b"an index of other polygons")
    nowhere = write_raster(tmp_path / "nowhere.tif", CODES, crs=None)
    with pytest.warns(UserWarning, match="area_ha"):
        vectorize(nowhere, output, overwrite=True)
    assert {path.suffix for path in tmp_path.glob("out.*")} == {".shp", ".shx", ".dbf", ".cpg"}


def test_what_a_shapefile_cannot_hold_is_refused_and_a_geopackage_named(exclusive, tmp_path, monkeypatch):
    long = write_raster(tmp_path / "long.tif", CODES, legend=[FOREST | {"name": "é" * 128}])
    with pytest.raises(UsageError, match=r"takes 256 bytes, a shapefile holds 254; write a GeoPackage"):
        vectorize(long, tmp_path / "out.shp")
    monkeypatch.setattr("segkit.vector.write._SHAPEFILE_BYTES", 500)
    with pytest.raises(UsageError, match=r"5 polygons with .* a shapefile holds 2 GB; write a GeoPackage"):
        vectorize(exclusive, tmp_path / "out.shp")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("codes", [CODES, np.tile([0, 1], (5, 40)), np.indices((19, 19)).prod(axis=0) % 2 == 0])
def test_the_size_of_a_shapefile_is_known_before(tmp_path, monkeypatch, codes):
    path = write_raster(tmp_path / "map.tif", codes.astype(np.uint8))
    vectorize(path, tmp_path / "out.shp")
    size = max((tmp_path / f"out{ending}").stat().st_size for ending in (".shp", ".dbf"))
    monkeypatch.setattr("segkit.vector.write._SHAPEFILE_BYTES", size * 0.9)
    with pytest.raises(UsageError, match="a shapefile holds 2 GB"):
        vectorize(path, tmp_path / "other.shp")
    monkeypatch.setattr("segkit.vector.write._SHAPEFILE_BYTES", size * 1.5)
    vectorize(path, tmp_path / "other.shp")


def test_importing_is_cheap():
    heavy = "{'numba', 'geopandas', 'pyogrio', 'pyarrow', 'shapely', 'pandas'}"
    code = f"import sys, segkit.vector; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
