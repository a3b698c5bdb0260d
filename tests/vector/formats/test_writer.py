"""Polygons -> files: what is written reads back equal, or there is no file."""

import inspect
import json
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import geopandas
import numpy as np
import pyarrow as pa
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from rasterio.crs import CRS

from segkit import vector
from segkit.cli import app as cli
from segkit.errors import GridError, OutputError, OutputExistsError, UsageError
from segkit.io.class_table import Legend, MapClass
from segkit.io.grid import Grid
from segkit.vector.formats import geoparquet, ogr
from segkit.vector.formats.geoparquet import hilbert
from segkit.vector.formats.writer import FORMATS, find_format, open_writer

GRID = Grid(40, 40, Affine(10, 0, 300_000, 0, -10, 9_000_000), CRS.from_epsg(32722))
FIJI = Grid(40, 40, Affine(5_000, 0, 720_000, 0, -5_000, 8_200_000), CRS.from_epsg(32760))
CLASSES = (
    MapClass("background", 0, background=True),
    MapClass("forest", 1, color="#006d2c"),
    MapClass('Água ✓ "<&', 2, color="#3182bd"),
    MapClass("a name of many words, longer than any column", 70_000),
)
LEGEND = Legend("/maps/map.tif", CLASSES, multilabel=False)
COLUMNS = ["class_id", "class", "area_ha", "pixels", "perim_m", "mean_conf"]
NAMES = [one.name for one in CLASSES[1:]]


def frame_of(grid=GRID, seed=0):
    """A coverage: bricks of a few pixels, one with a hole and its island, with attributes that test the columns."""
    random = np.random.default_rng(seed)
    polygons = []
    for row in range(0, grid.height, 4):
        joints = np.unique([0, grid.width, *random.integers(1, grid.width, 6)])
        for left, right in pairwise(joints.tolist()):
            corners = [(left, row), (left, row + 4), (right, row + 4), (right, row)]
            polygons.append(shapely.Polygon([grid.transform @ corner for corner in corners]))
    island = shapely.Polygon([grid.transform @ corner for corner in ((0.2, 1), (0.2, 2), (0.8, 2), (0.8, 1))])
    polygons = shapely.coverage_clean(np.array([polygons[0] - island, island, *polygons[1:]]))
    count = len(polygons)
    kinds = np.array(CLASSES[1:], dtype=object)[random.integers(0, 3, count)]
    frame = geopandas.GeoDataFrame(
        {
            "class_id": np.array([one.value for one in kinds], dtype=np.int32),
            "class": [one.name for one in kinds],
            "area_ha": shapely.area(polygons) / 1e4 * (1 + 1e-9 * random.random(count)),
            "pixels": random.integers(1, 2**40, count),
            "perim_m": random.random(count) * 1e12,
            "mean_conf": random.random(count),
        },
        geometry=polygons,
        crs=grid.crs,
    )
    frame.loc[[3, 5], "area_ha"] = np.nan
    frame.loc[[4], "mean_conf"] = np.nan
    return frame


def fine(frame):
    """The same with so many vertices that a shapefile's .shp is larger than its .dbf."""
    return frame.set_geometry(shapely.segmentize(frame.geometry.values, 2))


def table_of(frame):
    columns = {name: pa.array(frame[name], from_pandas=True) for name in COLUMNS}
    return pa.table(columns | {"geometry": pa.array(shapely.to_wkb(frame.geometry.values), pa.binary())})


def write(path, frame, *, batch=7, grid=GRID, legend=LEGEND, confidence=True, table=False, **options):
    with open_writer(path, grid, legend, confidence=confidence, **options) as out:
        for start in range(0, len(frame), batch):
            part = frame.iloc[start : start + batch]
            out.write(table_of(part) if table else part)
    return path


def read(path, **options):
    return (
        geopandas.read_parquet(path)
        if path.suffix.lower() == ".parquet"
        else geopandas.read_file(path, **({"layer": path.stem} | options))
    )


def in_place(frame):
    return frame.iloc[np.lexsort(frame.geometry.bounds.to_numpy().T)].reset_index(drop=True)


def same(found, expected, *, tolerance=0.0):
    """Every polygon and every attribute of two frames, in whatever order."""
    found, expected = in_place(found), in_place(expected)
    assert len(found) == len(expected)
    assert shapely.equals_exact(found.geometry, expected.geometry, tolerance=tolerance, normalize=True).all()
    for column in COLUMNS:
        if found[column].dtype.kind == "f":
            # A shapefile has 15 decimals.
            np.testing.assert_allclose(found[column], expected[column], rtol=1e-14, atol=1e-15)
        else:
            assert found[column].tolist() == expected[column].tolist()


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_reads_back_equal(tmp_path, ending, table):
    frame = frame_of()
    path = write(tmp_path / f"out{ending}", frame, table=table)
    found = read(path)
    if ending == ".geojson":
        assert found.crs == "EPSG:4326"
        expected = frame.to_crs(4326)
        same(found, expected, tolerance=1e-7)
    else:
        assert found.crs == "EPSG:32722"
        same(found, frame)
    assert list(found.columns) == [*COLUMNS, "geometry"]
    assert not list(tmp_path.glob(".*"))
    info = parquet.read_schema(path) if ending == ".parquet" else pyogrio.read_info(path, layer="out")
    if ending == ".parquet":
        assert [str(info.field(name).type) for name in COLUMNS] == [
            "int32",
            "string",
            "double",
            "int64",
            "double",
            "double",
        ]
    else:
        assert info["fields"].tolist() == COLUMNS
        assert info["dtypes"].tolist() == ["int32", "object", "float64", "int64", "float64", "float64"]
        assert info["encoding"] == "UTF-8"
        assert info["geometry_type"] == "Polygon"
        assert info["features"] == len(frame)


def test_names_fit_a_shapefile():
    assert max(map(len, COLUMNS)) <= 10


@pytest.mark.parametrize("ending", FORMATS)
def test_batches_do_not_matter(tmp_path, ending):
    frame = frame_of()
    one = write(tmp_path / f"one{ending}", frame, batch=len(frame))
    many = write(tmp_path / f"many{ending}", frame, batch=1)
    same(read(many), read(one))


@pytest.mark.parametrize("confidence", [False, True])
@pytest.mark.parametrize("ending", FORMATS)
def test_nothing_is_an_empty_layer(tmp_path, ending, confidence):
    path = write(tmp_path / f"out{ending}", frame_of().iloc[:0], confidence=confidence)
    found = read(path)
    assert len(found) == 0
    if ending != ".geojson":  # it has columns only in features
        assert list(found.columns) == [*(COLUMNS if confidence else COLUMNS[:-1]), "geometry"]
        assert found.crs == "EPSG:32722"


@pytest.mark.parametrize("ending", [ending for ending in FORMATS if ending != ".geojson"])
def test_a_map_without_crs(tmp_path, ending):
    nowhere = Grid(40, 40, GRID.transform, None)
    frame = frame_of().set_crs(None, allow_override=True)
    path = write(tmp_path / f"out{ending}", frame, grid=nowhere)
    found = read(path)
    # A GeoPackage has no way to say nothing.
    assert found.crs is None or "Undefined" in found.crs.name
    same(found, frame)


@pytest.mark.parametrize("ending", FORMATS)
def test_multipolygons(tmp_path, ending):
    whole = frame_of().dissolve("class_id", as_index=False)
    path = write(tmp_path / f"out{ending}", whole, multi=True)
    found = read(path)
    assert found.crs == (4326 if ending == ".geojson" else 32722)
    found, expected = found.sort_values("class_id").to_crs(32722), whole.sort_values("class_id")
    assert found["class"].tolist() == NAMES
    np.testing.assert_allclose(found.area, expected.area, rtol=1e-3 if ending == ".geojson" else 1e-14)
    if ending in (".gpkg", ".fgb"):
        assert pyogrio.read_info(path, layer="out")["geometry_type"] == "MultiPolygon"


@pytest.mark.parametrize("ending", FORMATS)
def test_another_crs_keeps_areas_and_the_coverage(tmp_path, ending):
    frame = frame_of(FIJI)
    path = write(tmp_path / f"out{ending}", frame, grid=FIJI, to_crs="EPSG:4326")
    found = read(path)
    assert found.crs == "EPSG:4326"
    parts = shapely.get_parts(found.geometry)
    assert shapely.coverage_is_valid(parts)
    assert (shapely.get_num_geometries(found.geometry) == 2).sum() >= 10
    assert shapely.total_bounds(found.geometry)[[0, 2]].tolist() == [-180, 180]
    assert sorted(found["perim_m"]) == pytest.approx(sorted(frame["perim_m"]), rel=1e-14)
    assert np.nansum(found["area_ha"]) == pytest.approx(np.nansum(frame["area_ha"]), rel=1e-12)


def test_a_projected_crs_needs_no_parts(tmp_path):
    path = write(tmp_path / "out.gpkg", frame_of(), to_crs="EPSG:5880")
    assert pyogrio.read_info(path, layer="out")["geometry_type"] == "Polygon"
    same(read(path), frame_of().to_crs(5880), tolerance=1e-6)


def test_what_cannot_be_projected_leaves_nothing(tmp_path):
    with pytest.raises(GridError, match="becomes invalid in EPSG:3857"):
        write(tmp_path / "out.gpkg", frame_of(FIJI), grid=FIJI, to_crs="EPSG:3857")
    with pytest.raises(UsageError, match="EPSG:0"):
        write(tmp_path / "out.gpkg", frame_of(), to_crs="EPSG:0")
    assert not list(tmp_path.iterdir())


def test_geojson_follows_its_rfc(tmp_path):
    path = write(tmp_path / "out.geojson", frame_of(FIJI), grid=FIJI, tags={"segkit_model": "m.safetensors"})
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["type"] == "FeatureCollection"
    assert "crs" not in written
    assert written["segkit"]["segkit_model"] == "m.safetensors"
    kinds = set()
    for feature in written["features"]:
        assert feature.keys() == {"type", "properties", "geometry"}
        kinds.add(feature["geometry"]["type"])
        polygon = shapely.geometry.shape(feature["geometry"])
        for part in shapely.get_parts(polygon):
            assert shapely.is_ccw(part.exterior)
            assert not any(shapely.is_ccw(ring) for ring in part.interiors)
        x, y = shapely.get_coordinates(polygon).T
        assert ((x >= -180) & (x <= 180) & (np.abs(y) <= 90)).all()
        assert np.ptp(x) < 5 or feature["geometry"]["type"] == "MultiPolygon"
        assert (np.round(x, 7) == x).all()
    assert kinds == {"Polygon", "MultiPolygon"}
    assert {feature["properties"]["area_ha"] for feature in written["features"]} >= {None}


def test_geojson_holds_nothing_but_longitudes_and_latitudes(tmp_path):
    path = tmp_path / "out.geojson"
    with pytest.raises(UsageError, match=r"GeoJSON holds EPSG:4326 and not EPSG:3857; write another format"):
        write(path, frame_of(), to_crs="EPSG:3857")
    with pytest.raises(UsageError, match=r"GeoJSON holds longitude and latitude, and the map has no CRS"):
        write(path, frame_of(), grid=Grid(40, 40, GRID.transform, None))
    write(path, frame_of(), to_crs="EPSG:4326")


def test_layers_are_those_named_in_that_order(tmp_path):
    frame, path = frame_of(), tmp_path / "out.gpkg"
    named = ("none", *NAMES[:2], "nothing", NAMES[2], "last")
    with open_writer(path, GRID, LEGEND, layers=named, confidence=True) as out:
        for name in (*NAMES, *NAMES):  # each is left and gone on with
            rows = frame[frame["class"] == name]
            half = len(rows) // 2
            out.write(rows.iloc[half:] if out.counts[name] else rows.iloc[:half], name)
        with pytest.raises(ValueError, match="'else' is not a layer"):
            out.write(frame, "else")
    assert [name for name, kind in pyogrio.list_layers(path) if kind] == list(named)
    for name in named:
        same(read(path, layer=name), frame[frame["class"] == name])


@pytest.mark.parametrize("ending", [ending for ending in FORMATS if ending != ".gpkg"])
def test_layers_are_one_where_the_format_has_one(tmp_path, ending):
    frame, path = frame_of(), tmp_path / f"out{ending}"
    with open_writer(path, GRID, LEGEND, layers=NAMES, confidence=True) as out:
        for name in NAMES:
            out.write(frame[frame["class"] == name], name)
    assert sorted(read(path)["class"]) == sorted(frame["class"])


def test_layers_that_a_geopackage_takes_for_one_are_refused(tmp_path):
    with (
        pytest.raises(UsageError, match=r"cannot hold Tree and tree as layers.*GeoParquet"),
        open_writer(tmp_path / "out.gpkg", GRID, LEGEND, layers=("Tree", "tree", "roof")),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_gdal_is_left_as_it_was(tmp_path):
    option = "OGR_GPKG_MAX_RAM_USAGE_RTREE"
    pyogrio.set_gdal_config_options({option: "12345678"})
    try:
        write(tmp_path / "out.gpkg", frame_of())
        assert pyogrio.get_gdal_config_option(option) == 12345678
    finally:
        pyogrio.set_gdal_config_options({option: None})
    write(tmp_path / "out.gpkg", frame_of(), overwrite=True)
    assert pyogrio.get_gdal_config_option(option) is None


def test_a_geopackage_shows_its_colours_at_once(tmp_path):
    frame, path = frame_of(), tmp_path / "out.gpkg"
    with open_writer(path, GRID, LEGEND, layers=NAMES, confidence=True) as out:
        for name in NAMES:
            out.write(frame[frame["class"] == name], name)
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        rows = [dict(row) for row in database.execute("SELECT * FROM layer_styles ORDER BY id")]
        geometry = dict(database.execute("SELECT table_name, column_name FROM gpkg_geometry_columns").fetchall())
        kinds = dict(database.execute("SELECT table_name, data_type FROM gpkg_contents").fetchall())
    assert kinds == dict.fromkeys(NAMES, "features") | {"layer_styles": "attributes"}
    # What QGIS looks for: QgsOgrProviderMetadata::loadStyle.
    assert [row["f_table_name"] for row in rows] == NAMES
    for row in rows:
        assert row["f_table_schema"] == ""
        assert row["f_geometry_column"] == geometry[row["f_table_name"]]
        assert row["useAsDefault"] == 1
        assert row["update_time"]
        assert row["styleQML"].startswith("<!DOCTYPE qgis")
    assert "49,130,189" in rows[1]["styleQML"]
    assert "49,130,189" not in rows[0]["styleQML"]


@pytest.mark.parametrize("ending", [".gpkg", ".fgb", ".parquet"])
def test_where_polygons_come_from_is_in_the_file(tmp_path, ending):
    tags = {"segkit_model": "model.safetensors sha256:é", "segkit_date": "2026-01-01T00:00:00+00:00", "other": "x"}
    path = write(tmp_path / f"out{ending}", frame_of(), tags=tags)
    if ending == ".parquet":
        metadata = {key.decode(): value.decode() for key, value in parquet.read_schema(path).metadata.items()}
    else:
        metadata = pyogrio.read_info(path, layer="out")["layer_metadata"]
    assert metadata["segkit_map"] == "map.tif"
    assert metadata["segkit_model"] == tags["segkit_model"]
    assert metadata["segkit_map_date"] == tags["segkit_date"]
    assert metadata["segkit_version"]
    assert metadata["segkit_date"].startswith("20")
    assert "other" not in metadata


@settings(max_examples=10)
@given(st.integers(1, 5))
def test_the_curve_meets_every_cell_and_goes_on_to_a_neighbour(order):
    y, x = np.indices((2**order, 2**order)).reshape(2, -1)
    place = hilbert(x, y, order)
    assert sorted(place) == list(range(4**order))
    along = np.argsort(place)
    assert (np.abs(np.diff(x[along])) + np.abs(np.diff(y[along])) == 1).all()


def test_geoparquet_is_sorted_and_says_where_its_rows_are(tmp_path, monkeypatch):
    monkeypatch.setattr(geoparquet, "_GROUP_ROWS", 10)
    monkeypatch.setattr(geoparquet, "_BLOCK_BYTES", 500)
    frame = frame_of()
    shuffled = frame.sample(frac=1, random_state=0)
    path = write(tmp_path / "out.parquet", shuffled)
    table = parquet.read_table(path)
    boxes = np.column_stack([table["bbox"].combine_chunks().field(side) for side in ("xmin", "ymin", "xmax", "ymax")])
    assert (boxes == shapely.bounds(shapely.from_wkb(table["geometry"].to_numpy()))).all()
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells = ((centre + 2**26) * 16).astype(np.int64)
    assert (np.diff(hilbert(*cells.T)) >= 0).all()
    with parquet.ParquetFile(path) as file:
        assert file.metadata.num_row_groups > 3
    geo = json.loads(parquet.read_schema(path).metadata[b"geo"])
    column = geo["columns"][geo["primary_column"]]
    assert geo["version"] == "1.1.0"
    assert column["encoding"] == "WKB"
    assert column["geometry_types"] == ["Polygon"]
    assert column["orientation"] == "counterclockwise"
    assert column["bbox"] == frame.total_bounds.tolist()
    assert column["covering"]["bbox"]["ymax"] == ["bbox", "ymax"]
    assert pyproj.CRS.from_json_dict(column["crs"]) == pyproj.CRS(32722)
    corner = (300_000, 8_999_950, 300_050, 9_000_000)
    some = geopandas.read_parquet(path, bbox=corner)
    assert 0 < len(some) < len(frame)
    assert sorted(some["pixels"]) == sorted(frame[frame.intersects(shapely.box(*corner))]["pixels"])


@pytest.mark.parametrize("run", [1, 3_000])
def test_a_geoparquet_that_does_not_fit_in_memory_is_the_same(tmp_path, monkeypatch, run):
    frame = frame_of()
    frame.geometry = [*frame.geometry[:60], *(shapely.Point(300_200, 8_999_000).buffer(size) for size in range(1, 10))]
    whole = write(tmp_path / "whole.parquet", frame)
    monkeypatch.setattr(geoparquet, "_RUN_BYTES", run)
    monkeypatch.setattr(geoparquet, "_BLOCK_BYTES", 300)
    merged = write(tmp_path / "merged.parquet", frame.sample(frac=1, random_state=1), batch=2)
    assert parquet.read_table(merged).equals(parquet.read_table(whole))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "merged.parquet",
        "merged.qml",
        "whole.parquet",
        "whole.qml",
    ]


@pytest.mark.parametrize("ending", [".gpkg", ".fgb"])
def test_there_is_an_index(tmp_path, ending):
    frame = frame_of()
    path = write(tmp_path / f"out{ending}", frame)
    assert pyogrio.read_info(path, layer="out")["capabilities"]["fast_spatial_filter"]
    box = tuple(frame.geometry[10].buffer(-2).bounds)
    assert read(path, bbox=box)["pixels"].tolist() == [frame["pixels"][10]]


def test_a_shapefile_is_utf8_whatever_the_system_prefers(tmp_path, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda: "cp1252")
    path = write(tmp_path / "out.shp", frame_of())
    assert path.with_suffix(".cpg").read_text() == "UTF-8"
    assert {file.suffix for file in tmp_path.iterdir()} == {".shp", ".shx", ".dbf", ".prj", ".cpg", ".qml"}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("class", "é" * 128, "a class name takes 256 bytes, a shapefile holds 254"),
        ("pixels", 2**53 + 1, r"pixels exceeds 2\^53"),
    ],
)
def test_what_a_shapefile_would_cut_is_refused(tmp_path, column, value, message):
    frame = frame_of()
    frame.loc[20, column] = value
    with pytest.raises(UsageError, match=rf"out.shp: {message}.*; write a GeoPackage"):
        write(tmp_path / "out.shp", frame)
    assert not list(tmp_path.iterdir())
    same(read(write(tmp_path / "out.gpkg", frame)), frame)


def test_what_a_shapefile_just_holds_it_holds(tmp_path):
    frame = frame_of()
    frame.loc[20, "class"] = "é" * 127
    frame.loc[21, "pixels"] = 2**53
    frame.loc[22, "class_id"] = -(2**31)
    frame.loc[23, "class_id"] = 2**31 - 1
    same(read(write(tmp_path / "out.shp", frame)), frame)


@pytest.mark.parametrize("frame", [frame_of(), fine(frame_of())])
def test_a_shapefile_is_refused_before_it_passes_its_limit(tmp_path, monkeypatch, frame):
    write(tmp_path / "out.shp", frame)
    size = max((tmp_path / f"out{ending}").stat().st_size for ending in (".shp", ".dbf"))
    before = files_in(tmp_path)
    monkeypatch.setattr(ogr, "_SHAPEFILE_MAX_BYTES", size * 0.9)
    with pytest.raises(UsageError, match=r"the first \d+ polygons take .* a shapefile holds 2 GB; write a GeoPackage"):
        write(tmp_path / "out.shp", frame, overwrite=True)
    assert files_in(tmp_path) == before
    monkeypatch.setattr(ogr, "_SHAPEFILE_MAX_BYTES", size * 1.2)
    write(tmp_path / "out.shp", frame, overwrite=True)


def test_a_crs_that_a_shapefile_cannot_say_is_refused(tmp_path):
    turned = CRS.from_wkt(
        pyproj.CRS("+proj=ob_tran +o_proj=longlat +lon_0=18 +o_lat_p=39.25 +o_lon_p=0 +ellps=WGS84").to_wkt()
    )
    grid = Grid(40, 40, Affine(0.1, 0, 0, 0, -0.1, 5), turned)
    frame = frame_of(grid)
    with pytest.raises(UsageError, match="a shapefile cannot hold this CRS; write a GeoPackage"):
        write(tmp_path / "out.shp", frame, grid=grid)
    same(read(write(tmp_path / "out.fgb", frame, grid=grid)), frame)


def test_a_new_shapefile_does_not_keep_parts_of_the_old_one(tmp_path):
    path = write(tmp_path / "out.shp", frame_of())
    (tmp_path / "out.qix").write_bytes(b"an index of other polygons")
    frame = frame_of().set_crs(None, allow_override=True)
    write(path, frame, grid=Grid(40, 40, GRID.transform, None), overwrite=True)
    assert {file.suffix for file in tmp_path.iterdir()} == {".shp", ".shx", ".dbf", ".cpg", ".qml"}


def test_a_style_lies_beside_unless_one_is_there(tmp_path):
    path = write(tmp_path / "out.fgb", frame_of())
    style = path.with_suffix(".qml")
    text = style.read_text(encoding="utf-8")
    assert "0,109,44" in text
    assert 'label="background"' not in text
    write(path, frame_of(), legend=Legend("map", CLASSES[2:], multilabel=False), overwrite=True)
    assert style.read_text(encoding="utf-8") != text
    own = text.replace("<!-- written by segkit -->", "")
    style.write_text(own, encoding="utf-8")
    write(path, frame_of(), overwrite=True)
    assert style.read_text(encoding="utf-8") == own


def test_classes_that_the_map_does_not_list_are_in_the_style(tmp_path):
    legend = Legend("map", (), False, {1: MapClass("1", 1, color="#123456")})
    path = write(tmp_path / "out.fgb", frame_of(), legend=legend)
    text = path.with_suffix(".qml").read_text(encoding="utf-8")
    assert "18,52,86" in text
    assert [text.index(f'<category value="{value}"') for value in (1, 2, 70_000)] == sorted(
        text.index(f'<category value="{value}"') for value in (1, 2, 70_000)
    )


def test_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"cannot be written as \.kml; use one of \.shp, \.gpkg, \.parquet, \.fgb, \.geojson"
    ):
        find_format(tmp_path / "out.kml")


@pytest.mark.parametrize("ending", FORMATS)
def test_an_existing_file_is_kept_unless_it_may_be_overwritten(tmp_path, ending):
    path = tmp_path / f"out{ending}"
    path.write_bytes(b"precious")
    with pytest.raises(OutputExistsError):
        write(path, frame_of())
    assert files_in(tmp_path) == {path.name: b"precious"}
    write(path, frame_of(), overwrite=True)
    assert len(read(path)) == len(frame_of())


@pytest.mark.parametrize("ending", FORMATS)
def test_what_fails_elsewhere_leaves_everything_as_it_was(tmp_path, ending):
    path = write(tmp_path / f"out{ending}", frame_of())
    before, threads = files_in(tmp_path), threading.active_count()
    frame = frame_of(seed=1).astype({"class_id": np.int64})
    frame.loc[60, "class_id"] = 2**40
    with pytest.raises(pa.ArrowInvalid):
        write(path, frame, overwrite=True)
    assert files_in(tmp_path) == before
    assert threading.active_count() == threads


@pytest.mark.parametrize("ending", [".shp", ".gpkg", ".fgb"])
@pytest.mark.parametrize("after", [0, 1, 10**9])
def test_what_fails_in_gdal_is_reported_once_and_nobody_waits(tmp_path, monkeypatch, ending, after):
    write_arrow = pyogrio.write_arrow

    def fail(reader, path, **options):
        for number, _ in enumerate(reader):
            if number == after:
                break
        raise pyogrio.errors.DataLayerError("no space left")

    monkeypatch.setattr(pyogrio, "write_arrow", fail)
    threads = threading.active_count()
    with pytest.raises(OutputError, match=f"out{ending} could not be written: no space left"):
        write(tmp_path / f"out{ending}", frame_of(), batch=1)
    assert not list(tmp_path.iterdir())
    assert threading.active_count() == threads
    monkeypatch.setattr(pyogrio, "write_arrow", write_arrow)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"polygons": 3}, f"{len(frame_of())} polygons were written and 3 read back"),
        ({"columns": ("class_id",)}, r"the columns class_id, class, .* read back as class_id"),
        ({"crs": "EPSG:32723"}, "the CRS .* does not read back"),
        ({"crs": None}, "the CRS .* does not read back"),
    ],
)
def test_what_does_not_read_back_is_no_output(tmp_path, monkeypatch, ending, wrong, message):
    form = FORMATS[ending]
    inspect = form.inspect
    monkeypatch.setitem(
        FORMATS, ending, replace(form, inspect=lambda path, layer: replace(inspect(path, layer), **wrong))
    )
    with pytest.raises(OutputError, match=message):
        write(tmp_path / f"out{ending}", frame_of())
    assert not list(tmp_path.iterdir())


_AMONG = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_writer as tests; "


@pytest.mark.parametrize("ending", FORMATS)
def test_a_kill_leaves_nothing_under_the_final_name(tmp_path, ending):
    path = write(tmp_path / f"out{ending}", frame_of())
    before = files_in(tmp_path)
    code = _AMONG + f"tests.write_for_ever({str(path)!r})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert files_in(tmp_path) == before
    write(path, frame_of(seed=1), overwrite=True)
    assert len(read(path)) == len(frame_of(seed=1))


def write_for_ever(path):
    frame = frame_of()
    with open_writer(path, GRID, LEGEND, confidence=True, overwrite=True) as out:
        for number in range(10**9):
            out.write(frame)
            if number == 20:
                print("writing", flush=True)


@pytest.mark.parametrize(("ending", "vertices"), [*((ending, "few") for ending in FORMATS), (".shp", "many")])
def test_a_full_disk_is_reported_wherever_it_is_met(tmp_path, ending, vertices):
    """At any number of bytes, down to the last one, there is one error and what was there before."""
    path = write(tmp_path / f"out{ending}", frame_of())
    code = _AMONG + f"tests.write_until_full({str(path)!r}, {vertices!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 20


def write_until_full(path, vertices):
    import resource

    path = Path(path)
    frame = geopandas.pd.concat([frame_of(seed=seed) for seed in range(30)])
    frame = fine(frame) if vertices == "many" else frame
    with tempfile.TemporaryDirectory() as other:
        write(Path(other) / path.name, frame, batch=500)
        sizes = [file.stat().st_size for file in Path(other).iterdir() if file.suffix != ".qml"]
    before = files_in(path.parent)
    largest = max(sizes)
    limits = {size - less for size in sizes for less in (1, 20, 150, 4_000, 9_000) if size > less}
    limits |= {1, 100} | {int(largest * part) for part in np.linspace(0.01, 0.99, 17)}
    for limit in sorted(limits):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            write(path, frame, batch=500, overwrite=True)
            messages = f"{limit} of {largest} bytes were enough"
        except OutputError as error:
            messages = str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert messages.startswith(path.name), messages
        assert files_in(path.parent) == before
    print(len(limits))


@pytest.mark.parametrize("table", ["out", "rtree_out_geom_rowid"])
def test_a_geopackage_that_misses_rows_is_seen(tmp_path, table):
    path = write(tmp_path / "out.gpkg", frame_of())
    assert FORMATS[".gpkg"].inspect(path, "out").polygons == len(frame_of())
    with closing(sqlite3.connect(path)) as database, database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{name}"')
        database.execute(f"DELETE FROM {table} WHERE rowid = 7")
    with pytest.raises(OSError, match=f"{table} has {len(frame_of()) - 1} rows"):
        FORMATS[".gpkg"].inspect(path, "out")


def test_every_option_of_the_command_reaches_the_library(monkeypatch, capsys):
    asked = {
        "min_area": "1ha", "fill_holes": "2px", "simplify": "3m", "smooth": True, "dissolve": True, "protect": ["a"],
        "classes": ["a", "b"], "background": True, "class_names": Path("n.csv"), "probabilities": Path("p.tif"),
        "to_crs": "EPSG:4326", "overwrite": True, "show_progress": True,
        "max_area": "9ha", "min_confidence": 0.5, "attributes": ["centroid", "compactness"],
        "regularize": ["a", "b"], "split": ["b"], "split_by": "shape", "split_depth": "2m", "boundary_class": "edge",
    }  # fmt: skip
    assert asked.keys() | {"map_path", "output"} == inspect.signature(vector.vectorize).parameters.keys()
    given = []
    summary = vector.Summary(Path("out.gpkg"), {"a": 1234, "b": 0}, {"a": 2.5, "b": 0.0}, 4321, 765, 32, 1212, 3434, 5)
    monkeypatch.setattr(vector, "vectorize", lambda *args, **options: given.append((args, options)) or summary)
    line = (
        "segkit vectorize m.tif out.gpkg --min-area 1ha --fill-holes 2px --simplify 3m --smooth --dissolve --protect a "
        "--classes a --classes b --background --class-names n.csv --probabilities p.tif --to-crs EPSG:4326 --overwrite "
        "--max-area 9ha --min-confidence 0.5 --attributes centroid --attributes compactness "
        "--regularize a --regularize b --split b --split-by shape --split-depth 2m --boundary-class edge"
    )
    monkeypatch.setattr(sys, "argv", line.split())
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert given == [((Path("m.tif"), Path("out.gpkg")), asked)]
    shown = capsys.readouterr().out
    assert "1,234" in shown
    assert "4,321 polygons left out" in shown
    assert "right-angled outlines: 765; ordinary ones: 32" in shown
    assert "1,212 areas split into 3,434 objects" in shown
    assert "not split, longer or wider than 1,024 pixels: 5" in shown


def test_importing_is_cheap():
    heavy = "{'geopandas', 'pyogrio', 'pyarrow', 'shapely', 'pandas'}"
    code = f"import sys, segkit.vector.formats.writer; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ending", FORMATS)
def test_endings_may_be_in_capitals(tmp_path, ending):
    lower, upper = write(tmp_path / f"low{ending}", frame_of()), write(tmp_path / f"UP{ending.upper()}", frame_of())
    for _ in range(2):
        made = {path.name.lower() for path in tmp_path.glob("low.*")}
        assert {path.name.lower().replace("up", "low") for path in tmp_path.glob("UP.*")} == made
        assert all(path.suffix.isupper() for path in tmp_path.glob("UP.*") if path.suffix != ".qml")
        assert len(read(upper)) == len(read(lower)) == len(frame_of())
        write(upper, frame_of(), overwrite=True)


def test_a_side_file_of_an_older_shapefile_goes_in_either_case(tmp_path):
    for name in ("a.qix", "a.QIX"):
        (tmp_path / name).write_text("of another")
    write(tmp_path / "a.SHP", frame_of())
    assert not [path.name for path in tmp_path.iterdir() if path.suffix.lower() == ".qix"]
