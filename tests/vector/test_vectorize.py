"""Maps -> polygons -> files."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.features
import shapely
import shapely.affinity
from affine import Affine
from geopandas.testing import assert_geodataframe_equal
from pandas.testing import assert_frame_equal as assert_table_equal
from rasterio.errors import NotGeoreferencedWarning

from segkit.errors import DataError, GridError, MissingFileError, OutputExistsError, UsageError
from segkit.vector import Summary, polygons, vectorize
from segkit.vector.formats.writer import FORMATS

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
    scale, offset = profile.pop("scale", None), profile.pop("offset", 0.0)
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
            dataset.scales, dataset.offsets = (scale,) * count, (offset,) * count
    return path


def test_polygons_without_georeference_lie_on_the_image_in_qgis(tmp_path):
    """QGIS shows an image without georeference with x = column and y = -row."""
    path, codes = tmp_path / "map.tif", np.zeros((6, 9), np.uint8)
    codes[1:3, 4:9] = 1
    with pytest.warns(NotGeoreferencedWarning):
        write_raster(path, codes, transform=None, crs=None)
    with pytest.warns(UserWarning, match="pixels as in QGIS: x = column, y = -row"):
        frame = polygons(path, background=True)
    frame = frame[frame["class_id"] == 1]
    assert frame.crs is None
    assert frame.total_bounds.tolist() == [4, -3, 9, -1]


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
    return geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path, layer=path.stem)


def sorted_by_place(frame):
    return frame.iloc[np.lexsort(frame.geometry.bounds.to_numpy().T)].reset_index(drop=True)


def assert_frame_equal(one, other, **options):
    same = assert_geodataframe_equal if "geometry" in one else assert_table_equal
    same(one, other, **options)


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_right_angled_outlines_in_each_band_with_probabilities(tmp_path):
    """Rotated buildings in two bands that overlap; the probabilities are read in other strips than the map."""
    roof = shapely.affinity.rotate(shapely.box(12, 12, 40, 30), 20)
    yard = shapely.affinity.rotate(shapely.box(20, 25, 50, 48), 55)
    bands = np.stack([rasterio.features.rasterize([one], (60, 60), dtype="uint8") for one in (roof, yard)])
    legend = [{"name": name, "value": value, "color": "#000000"} for value, name in enumerate(("roof", "yard"), 1)]
    path = write_raster(
        tmp_path / "m.tif", bands, legend=legend, multilabel=True, names=("roof", "yard"), blockysize=60
    )
    sure = np.random.default_rng(0).integers(0, 255, bands.shape, dtype=np.uint8)
    sure_path = write_raster(tmp_path / "p.tif", sure, names=("roof", "yard"), scale=1 / 254, blockysize=4)
    exact = polygons(path, probabilities=sure_path)
    straight = polygons(path, probabilities=sure_path, regularize=["roof", 2], simplify="1px")
    assert shapely.get_num_coordinates(straight.geometry).tolist() == [5, 5]
    assert straight["mean_conf"].tolist() == exact["mean_conf"].tolist()
    np.testing.assert_allclose(straight["area_ha"], exact["area_ha"], rtol=0.05)
    one = polygons(path, regularize=["yard"])
    assert shapely.get_num_coordinates(one.geometry)[1] == 5
    assert one.geometry[0].equals(exact.geometry[0])
    summary = vectorize(path, tmp_path / "out.gpkg", regularize=["roof", "yard"])
    assert (summary.right_angled, summary.not_right_angled) == (2, 0)
    with pytest.raises(UsageError, match="no class house; it has roof"):
        polygons(path, regularize=["house"])


def test_touching_objects_become_polygons_of_their_class(tmp_path):
    """Each with its own confidence, and dissolved one row again."""
    rows, columns = np.indices((40, 40))
    codes = sum(((rows - 18) ** 2 + (columns - c) ** 2 <= 60).astype(np.uint8) for c in (12, 26)).clip(max=1)
    codes[(codes == 1) & (columns == 19)] = 2
    legend = [BACKGROUND, FOREST | {"name": "tree"}, WATER | {"name": "edge"}]
    path = write_raster(tmp_path / "m.tif", codes, legend=legend, blockysize=16)
    sure = np.where(columns < 19, 254, 127).astype(np.uint8)
    sure_path = write_raster(tmp_path / "p.tif", np.stack([sure, sure]), names=("tree", "edge"), scale=1 / 254)
    options = {"split": ["tree"], "boundary_class": "edge", "min_area": "9px"}
    frame = polygons(path, probabilities=sure_path, **options)
    assert frame["class"].tolist() == ["tree", "tree"]
    assert frame["pixels"].sum() == np.count_nonzero(codes)
    assert max(frame["mean_conf"]) > 0.9
    assert min(frame["mean_conf"]) == pytest.approx(0.5)
    assert len(polygons(path, dissolve=True, **options)) == 1
    summary = vectorize(path, tmp_path / "out.gpkg", **options)
    assert (summary.areas_split, summary.objects_split, summary.polygons["tree"]) == (1, 2, 2)


def test_objects_are_split_where_their_probability_falls(tmp_path):
    """Only those of selected classes; in columns that are read in several parts."""
    rows, columns = np.indices((20, 2400))
    codes = np.where((rows > 2) & (rows < 14), 1 + columns // 800, 0).astype(np.uint8)
    names = ("forest", "water", "field")
    legend = [BACKGROUND, *({"name": name, "value": k, "color": "#000000"} for k, name in enumerate(names, 1))]
    path = write_raster(tmp_path / "m.tif", codes, legend=legend, blockysize=16)
    dips = np.abs((columns + 37) % 160 - 80) < 3  # one in each 160 pixels
    elsewhere = np.roll(dips, 70, axis=1)  # of no effect: where another class is
    sure = [np.where(codes == k, np.where(dips, 150, 250), np.where(elsewhere, 0, 99)) for k in (1, 2, 3)]
    sure = np.stack(sure).astype(np.uint8)
    sure[1, :, 1000:1400] = 255  # no fall is known there
    sure_path = write_raster(tmp_path / "p.tif", sure, names=names, scale=1 / 254, nodata=255, blockysize=4)
    options = {"probabilities": sure_path, "split": names, "split_by": "probabilities"}
    frame = polygons(path, **options)
    assert frame["class"].value_counts().to_dict() == {"forest": 6, "water": 3, "field": 6}
    assert shapely.coverage_is_valid(frame.geometry.to_numpy())
    assert frame["pixels"].sum() == np.count_nonzero(codes)
    assert len(polygons(path, **options, split_depth="0.5")) == 3
    assert len(polygons(path, **options, classes=["field"])) == 6
    assert polygons(path, **options | {"split": ["field"]})["class"].value_counts()["forest"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split_depth": "1px"}, "split_depth: no class is split"),
        ({"boundary_class": 2}, "boundary_class: no class is split"),
        ({"split": [1], "split_depth": "1"}, "split_depth 1: has no unit"),
        ({"split": [1], "split_depth": "0px"}, "split_depth 0px: must be above 0"),
        ({"split": [1], "split_depth": "1px", "boundary_class": 2}, "leave one out"),
        ({"split": [1], "split_by": "shape", "boundary_class": 2}, "split_by and boundary_class"),
        ({"split": [1], "split_by": "size"}, "split_by size: must be shape or probabilities"),
        ({"split": [1], "split_by": "probabilities"}, "split_by probabilities: give the probabilities"),
        ({"split": [1], "split_by": "probabilities", "split_depth": "1px"}, "a number above 0 and below 1"),
        ({"split": [1], "split_by": "probabilities", "split_depth": "1"}, "a number above 0 and below 1"),
        ({"split": [1], "boundary_class": "forest"}, "is split itself"),
        ({"split": ["house"]}, "no class house"),
    ],
)
def test_options_that_cannot_split(exclusive, options, message):
    with pytest.raises(UsageError, match=message):
        polygons(exclusive, **options)


def test_no_class_of_a_multilabel_map_is_a_boundary(multilabel):
    with pytest.raises(UsageError, match=r"boundary_class roof: the classes of .* overlap"):
        polygons(multilabel, split=["tree"], boundary_class="roof")


def test_columns(exclusive):
    frame = polygons(exclusive)
    assert list(frame.columns) == ["class_id", "class", "area_ha", "pixels", "perim_m", "geometry"]
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


def test_a_foreign_map_names_classes_by_code_and_0_is_background_with_a_message(tmp_path):
    path = write_raster(tmp_path / "foreign.tif", CODES.astype(np.int32) * 1000, nodata=NODATA * 1000)
    share = (CODES == 0).sum() / (CODES != NODATA).sum()
    with pytest.warns(UserWarning, match=rf"foreign\.tif: value 0 \({share:.1%} of the .*keep it \(--background\)"):
        found = polygons(path)
    assert set(found["class"]) == {"1000", "2000", "5000"}
    # Pixels are those of the map, before small regions went to their neighbours.
    with pytest.warns(UserWarning, match=rf"value 0 \({share:.1%}"):
        polygons(path, min_area="3px", dissolve=True)
    # Who asks for it, or for others, sees no message; nor is anybody where there is no 0.
    assert set(polygons(path, background=True)["class_id"]) == {0, 1000, 2000, 5000}
    assert set(polygons(path, classes=[2000])["class_id"]) == {2000}
    (tmp_path / "names.csv").write_text("value,name\n0,sea\n")
    assert "sea" in set(polygons(path, class_names=tmp_path / "names.csv")["class"])
    assert len(polygons(write_raster(tmp_path / "ones.tif", np.ones_like(CODES)))) == 1


def test_a_0_that_the_raster_names_is_a_class_unless_it_is_called_nothing(tmp_path):
    path = write_raster(tmp_path / "foreign.tif", CODES, nodata=NODATA)
    for name, kept in (("Water", True), ("Unclassified", False)):
        names = f"<CategoryNames><Category>{name}</Category><Category>wood</Category></CategoryNames>"
        Path(f"{path}.aux.xml").write_text(f'<PAMDataset><PAMRasterBand band="1">{names}</PAMRasterBand></PAMDataset>')
        found = polygons(path)
        assert (name in set(found["class"])) == kept
        assert found["pixels"].sum() == ((CODES != NODATA) & (kept | (CODES != 0))).sum()


def test_a_code_that_the_legend_lacks_is_called_by_its_number(tmp_path):
    path = write_raster(tmp_path / "map.tif", CODES, legend=[FOREST, WATER])
    assert set(polygons(path)["class"]) == {"forest", "Água ✓", "0", "5"}


@pytest.mark.parametrize("nodata", [None, 250])
def test_a_mask_band_is_no_data(tmp_path, nodata):
    """Also beside a no-data value."""
    path = write_raster(tmp_path / "masked.tif", CODES, nodata=nodata)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(CODES == 5)
    assert polygons(path)["class_id"].tolist() == [5]


def test_a_south_up_map_lies_where_its_pixels_lie(tmp_path):
    north_up = polygons(write_raster(tmp_path / "n.tif", CODES), background=True)
    transform = Affine(10, 0, 300_000, 0, 10, 8_999_960)
    south_up = polygons(write_raster(tmp_path / "s.tif", np.flipud(CODES), transform=transform), background=True)
    north_up, south_up = sorted_by_place(north_up), sorted_by_place(south_up)
    assert south_up["class"].tolist() == north_up["class"].tolist()
    assert shapely.equals(south_up.geometry, north_up.geometry).all()
    assert shapely.is_ccw(south_up.exterior).all()
    np.testing.assert_allclose(south_up["area_ha"], north_up["area_ha"], rtol=1e-9)


def test_without_a_crs_areas_are_null_and_that_is_reported(tmp_path):
    path = write_raster(tmp_path / "map.tif", CODES, crs=None)
    with pytest.warns(UserWarning, match="area_ha and perim_m are empty: without a CRS") as warned:
        frame = polygons(path, background=True)
    assert warned[0].filename == __file__
    assert frame["area_ha"].isna().all()
    assert frame["perim_m"].isna().all()
    with pytest.warns(UserWarning, match="area_ha and perim_m are empty"):
        summary = vectorize(path, tmp_path / "out.shp", background=True)
    assert summary.hectares is None
    assert read(tmp_path / "out.shp")["area_ha"].isna().all()
    with pytest.warns(UserWarning, match="area_ha"), pytest.raises(UsageError, match="GeoJSON holds longitude"):
        vectorize(path, tmp_path / "out.geojson")


@pytest.mark.parametrize(
    ("bands", "options", "message"),
    [
        (CODES.astype(np.float32), {}, "band 1 is float32; a map holds class values"),
        (np.stack([CODES, CODES]), {}, "has 2 bands; a map has one band"),
        (
            np.stack([CODES, CODES]),
            {"multilabel": True, "legend": [FOREST]},
            "bands: 2, listed classes: 1",
        ),
        (CODES, {"legend": [{"value": 1}]}, "tag segkit_classes is not a list"),
        (CODES, {"legend": 3}, "tag segkit_classes is not a list"),
        (CODES.astype(np.uint32) * 2**30, {"nodata": None}, "has the value"),
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
        assert [name for name, kind in pyogrio.list_layers(output) if kind] == ["tree", "shadow", "roof"]
        assert [len(geopandas.read_file(output, layer=name)) for name in summary.polygons] == [1, 1, 0]
    else:
        assert sorted(read(output)["class"]) == ["shadow", "tree"]


def stored(probabilities):
    return np.where(np.isnan(probabilities), NODATA, np.rint(probabilities * 254)).astype(np.uint8)


def mean_where(numbers, polygon):
    inside = rasterio.features.rasterize([polygon], numbers.shape, transform=UTM).astype(bool)
    return numbers[inside & ~np.isnan(numbers)].mean()


@pytest.mark.parametrize("offset", [0.0, 0.25])
def test_mean_confidence_is_the_mean_inside(exclusive, tmp_path, offset):
    values = np.random.default_rng(0).random((5, *CODES.shape))
    values[:, 1, 1] = np.nan  # one of three pixels
    values[:, 3, 4] = np.nan  # all of one polygon
    names = ("bare", "background", "forest", "Água ✓", "cleared")
    path = write_raster(tmp_path / "p.tif", stored(values), names=names, scale=1 / 254, offset=offset)
    frame = polygons(exclusive, probabilities=path, background=True)
    read_back = np.where(stored(values) == NODATA, np.nan, stored(values) / 254 + offset)
    unknown = frame["mean_conf"].isna()
    assert frame[unknown]["pixels"].tolist() == [1]
    for row in frame[~unknown].to_dict("records"):
        expected = mean_where(read_back[names.index(row["class"])], row["geometry"])
        assert row["mean_conf"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("names", [("forest",), ("forest", "Água ✓", "bare")])
def test_a_background_without_a_band_has_what_the_others_leave(exclusive, tmp_path, names):
    values = np.random.default_rng(1).random((len(names), *CODES.shape))
    path = write_raster(tmp_path / "p.tif", stored(values), names=names, scale=1 / 254)
    frame = polygons(exclusive, probabilities=path, classes=["background", "forest"])
    left = 1 - stored(values).max(axis=0) / 254
    assert set(frame["class"]) == {"background", "forest"}
    for row in frame.to_dict("records"):
        own = left if row["class"] == "background" else stored(values[0]) / 254
        assert row["mean_conf"] == pytest.approx(mean_where(own, row["geometry"]), abs=1e-6)


def test_multilabel_confidence(multilabel, tmp_path):
    values = np.random.default_rng(2).random((3, 4, 4))
    path = write_raster(tmp_path / "p.tif", stored(values), names=("tree", "shadow", "roof"), scale=1 / 254)
    frame = polygons(multilabel, probabilities=path)
    assert frame["class"].tolist() == ["tree", "shadow"]
    for band, row in enumerate(frame.to_dict("records")):
        assert row["mean_conf"] == pytest.approx(mean_where(stored(values[band]) / 254, row["geometry"]), abs=1e-6)


def test_probabilities_that_do_not_fit_are_refused(exclusive, tmp_path):
    values = stored(np.zeros((1, *CODES.shape)))
    shifted = Affine(10, 0, 300_010, 0, -10, 9_000_000)
    elsewhere = write_raster(tmp_path / "e.tif", values, names=("forest",), transform=shifted)
    with pytest.raises(GridError, match="lie on different grids"):
        polygons(exclusive, probabilities=elsewhere)
    nameless = write_raster(tmp_path / "n.tif", values)
    with pytest.raises(DataError, match=r"no band for the class forest, only \(no name\)"):
        polygons(exclusive, probabilities=nameless)
    with pytest.raises(MissingFileError):
        polygons(exclusive, probabilities=tmp_path / "missing.tif")


def test_the_outline_is_measured_on_the_ground(exclusive):
    frame = polygons(exclusive)
    scale = 0.9996 * (1 + (200e3 / 6.37e6) ** 2 / 2)  # of UTM, 200 km from its central meridian
    np.testing.assert_allclose(frame["perim_m"] * scale, frame.length, rtol=1e-4)


def noise(tmp_path, **profile):
    """A map of noise in blocks of 2 x 3 pixels, and its probabilities."""
    codes = np.random.default_rng(4).choice(
        np.array([0, 1, 2, NODATA], dtype=np.uint8), (30, 20), p=(0.5, 0.2, 0.2, 0.1)
    )
    codes = np.kron(codes, np.ones((2, 3), dtype=np.uint8))
    values = np.random.default_rng(5).random((3, *codes.shape))
    values[:, 7:10] = np.nan  # of a row of blocks, and of a part of another
    path = write_raster(tmp_path / "noise.tif", codes, legend=[BACKGROUND, FOREST, WATER], **profile)
    names = ("background", "forest", "Água ✓")
    probabilities = write_raster(tmp_path / "noise_p.tif", stored(values), names=names, scale=1 / 254, **profile)
    return path, probabilities, codes, np.where(np.isnan(values), np.nan, stored(values) / 254)


@pytest.mark.parametrize("how", [{}, {"min_area": "20px"}, {"min_area": "10px", "fill_holes": "40px"}], ids=str)
def test_confidence_is_that_in_what_became_of_a_region(tmp_path, monkeypatch, how):
    path, probabilities, codes, values = noise(tmp_path, blockysize=4)
    whole = polygons(path, probabilities=probabilities, background=True, **how)
    for row in whole.to_dict("records"):
        inside = rasterio.features.rasterize([row["geometry"]], codes.shape, transform=UTM).astype(bool)
        own = values[row["class_id"]][inside]
        assert row["pixels"] == own.size
        if np.isnan(own).all():
            assert np.isnan(row["mean_conf"])
        else:
            assert row["mean_conf"] == pytest.approx(np.nanmean(own), abs=1e-12)
    assert whole["mean_conf"].isna().any() == (not how)  # larger regions reach where it is known
    monkeypatch.setattr("segkit.vector.tracing.runs._READ_PIXELS", 1)
    monkeypatch.setattr("segkit.vector.tracing.runs._WORK_PIXELS", 1)
    assert_frame_equal(polygons(path, probabilities=probabilities, background=True, **how), whole)


OPTIONS = {"min_area": "0.06ha", "fill_holes": "1200m2", "simplify": "15m", "smooth": True}


def test_a_file_holds_what_the_frame_holds_however_it_is_batched(tmp_path, monkeypatch):
    path, probabilities, _, _ = noise(tmp_path)
    expected = polygons(path, probabilities=probabilities, **OPTIONS)
    assert shapely.coverage_is_valid(polygons(path, background=True, **OPTIONS).geometry)
    monkeypatch.setattr("segkit.vector.tracing.pipeline._MIN_BATCH_POLYGONS", 2)
    monkeypatch.setattr("segkit.vector.tracing.runs._WORK_PIXELS", 1)
    assert_frame_equal(polygons(path, probabilities=probabilities, **OPTIONS), expected)
    summary = vectorize(path, tmp_path / "out.gpkg", probabilities=probabilities, **OPTIONS)
    assert_frame_equal(read(summary.path), expected, check_dtype=False)
    assert summary.polygons == expected["class"].value_counts().to_dict()
    assert summary.hectares == pytest.approx(expected.groupby("class")["area_ha"].sum().to_dict())


@pytest.mark.parametrize("ending", FORMATS)
def test_dissolved_each_class_is_one_row(tmp_path, ending):
    path, probabilities, codes, values = noise(tmp_path)
    single = polygons(path, probabilities=probabilities)
    frame = polygons(path, probabilities=probabilities, dissolve=True)
    assert frame["class"].tolist() == ["forest", "Água ✓"]
    assert frame["pixels"].tolist() == [np.count_nonzero(codes == code) for code in (1, 2)]
    assert frame["mean_conf"].tolist() == pytest.approx([np.nanmean(values[code][codes == code]) for code in (1, 2)])
    assert frame.geometry.is_valid.all()
    np.testing.assert_allclose(frame["area_ha"], single.groupby("class_id")["area_ha"].sum())
    summary = vectorize(path, tmp_path / f"out{ending}", probabilities=probabilities, dissolve=True)
    found = read(summary.path).sort_values("class_id", ignore_index=True)
    assert found["pixels"].tolist() == frame["pixels"].tolist()
    assert set(found.geom_type) == {"MultiPolygon"}
    assert summary.polygons == single["class"].value_counts().to_dict()


def test_another_crs(exclusive, tmp_path):
    here, there = polygons(exclusive, background=True), polygons(exclusive, background=True, to_crs="EPSG:3857")
    assert there.crs.to_epsg() == 3857
    assert shapely.coverage_is_valid(there.geometry)
    np.testing.assert_allclose(there.geometry.to_crs(here.crs).area, here.area, rtol=1e-6)
    assert_frame_equal(there.drop(columns="geometry"), here.drop(columns="geometry"))
    summary = vectorize(exclusive, tmp_path / "out.gpkg", background=True, to_crs="EPSG:3857")
    assert_frame_equal(read(summary.path), there, check_dtype=False)
    with pytest.raises(UsageError, match="EPSG:0"):
        polygons(exclusive, to_crs="EPSG:0")


def test_names_from_a_file(tmp_path):
    path = write_raster(tmp_path / "map.tif", CODES)
    (tmp_path / "names.csv").write_text("value,name\n1,trees\n2,lake\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="value 0 "):  # which the file does not name
        assert set(polygons(path, class_names=tmp_path / "names.csv")["class"]) == {"trees", "lake", "5"}
    summary = vectorize(path, tmp_path / "out.gpkg", class_names=tmp_path / "names.csv", classes=["trees"])
    assert summary.polygons == {"trees": 3}


def test_a_class_that_the_map_does_not_have_is_reported_at_last(tmp_path):
    path = write_raster(tmp_path / "foreign.tif", CODES)
    with pytest.raises(UsageError, match="no class 7"):
        vectorize(path, tmp_path / "out.gpkg", classes=["7"])
    assert not (tmp_path / "out.gpkg").exists()


@pytest.mark.parametrize("option", ["min_area", "fill_holes", "simplify"])
def test_sizes_and_distances_have_units(exclusive, tmp_path, option):
    with pytest.raises(UsageError, match=f"{option} 12: has no unit"):
        polygons(exclusive, **{option: "12"})
    with pytest.raises(UsageError, match=f"{option} .* has no unit"):
        vectorize(exclusive, tmp_path / "out.gpkg", **{option: 1.5})
    nowhere = write_raster(tmp_path / "nowhere.tif", CODES, crs=None)
    with (
        pytest.warns(UserWarning, match="without a CRS"),
        pytest.raises(UsageError, match=f"{option}: .* give pixels"),
    ):
        polygons(nowhere, **{option: "1km" if option == "simplify" else "1ha"})
    with pytest.warns(UserWarning, match="without a CRS"):
        assert len(polygons(nowhere, background=True, **{option: "100px"})) == (1 if option == "min_area" else 6)


def test_multilabel_regions_are_generalised_each_by_itself(multilabel):
    frame = polygons(multilabel, min_area="3px", fill_holes="3px", simplify="2px")
    assert frame[["class", "pixels"]].to_numpy().tolist() == [["tree", 8], ["shadow", 9]]


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
        assert list(found.columns) == ["class_id", "class", "area_ha", "pixels", "perim_m", "geometry"]
        assert found.crs.to_epsg() == 32722


def test_an_unknown_ending_is_refused_before_any_work(tmp_path):
    with pytest.raises(
        UsageError, match=r"cannot be written as \.kml; use one of \.shp, \.gpkg, \.parquet, \.fgb, \.geojson"
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


@pytest.mark.parametrize("call", [lambda path: vectorize(path, path.with_suffix(".gpkg")), polygons])
def test_whoever_reads_a_map_is_done_before_it_is_closed(tmp_path, monkeypatch, call):
    path = write_raster(tmp_path / "map.tif", np.random.default_rng(0).integers(1, 5, (64, 64), dtype=np.uint8))
    monkeypatch.setattr("segkit.vector.tracing.pipeline._MIN_BATCH_POLYGONS", 1)
    monkeypatch.setattr("segkit.vector.tracing.runs._WORK_PIXELS", 64)  # many parts are left to read

    def refuse(*arguments, **options):
        raise ValueError("no more")

    for name in ("to_arrow", "geometries"):
        monkeypatch.setattr(f"segkit.vector.batch.Batch.{name}", refuse)
    monkeypatch.setattr("segkit.vector.batch.merge_batches", lambda batches: batches)
    before = threading.active_count()
    with pytest.raises(ValueError, match="no more") as caught:
        call(path)
    assert threading.active_count() == before
    assert caught.traceback  # which holds everything that was not closed
    assert names_in(tmp_path) == ["map.tif"]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_importing_is_cheap():
    heavy = "{'numba', 'geopandas', 'pyogrio', 'pyarrow', 'shapely', 'pandas'}"
    code = f"import sys, segkit.vector; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
