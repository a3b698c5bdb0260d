"""A GeoPackage that holds a project loses nothing but the layer that is written anew."""

import sqlite3
from contextlib import closing

import geopandas
import numpy as np
import pandas
import pyogrio
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin

from segkit import vectorize
from segkit.assess.design import design
from segkit.errors import OutputError, OutputExistsError, UsageError
from segkit.io.geopackage import copy_without_layers, replace_layers, verify_copy, write_layer

STYLE = "INSERT INTO layer_styles (f_table_name, styleName, styleQML, useAsDefault) VALUES (?, ?, ?, 1)"


@pytest.fixture
def map_(tmp_path):
    codes = np.repeat(np.array([1, 1, 2, 2], dtype=np.uint8), 8)[None, None].repeat(32, axis=1)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": 32, "width": 32, "crs": "EPSG:32622"}
    with rasterio.open(tmp_path / "map.tif", "w", transform=from_origin(6e5, 9e6, 10, 10), **profile) as dataset:
        dataset.write(codes)
    return tmp_path / "map.tif"


def ask(path, query, *values):
    with closing(sqlite3.connect(path)) as database, database:
        return database.execute(query, values).fetchall()


@pytest.fixture
def project(tmp_path, map_):
    """What people keep in one file: layers of theirs, a table, a view, a trigger, styles, a QGIS project; segkit's."""
    path = tmp_path / "project.gpkg"
    vectorize(map_, path)
    parcels = geopandas.GeoDataFrame({"owner": ["A", "B"]}, geometry=shapely.box([0, 2], 0, [1, 3], 1), crs=32622)
    for name in ("parcels", "project_old"):
        pyogrio.write_dataframe(parcels, path, layer=name, append=True, layer_metadata={"about": name})
    pyogrio.write_dataframe(parcels[["owner"]], path, layer="owners", append=True)
    for sql in (
        "CREATE TABLE qgis_projects (name TEXT PRIMARY KEY, metadata BLOB, content BLOB)",
        "CREATE VIEW both AS SELECT project.class, parcels.owner FROM project, parcels",
        "CREATE TRIGGER guard AFTER INSERT ON owners BEGIN UPDATE owners SET owner = upper(owner); END",
        "CREATE INDEX by_owner ON parcels (owner)",
    ):
        ask(path, sql)
    ask(path, "INSERT INTO qgis_projects VALUES ('work', ?, ?)", b"meta", bytes(range(256)))
    ask(path, STYLE, "parcels", "red", "<qgis/>")
    ask(path, STYLE, "project", "mine", "<qgis>changed</qgis>")
    return path


def other(path, *own):
    """All rows of all tables, but of segkit's own layers and of lists and counts, and what makes them."""
    with closing(sqlite3.connect(path)) as database:
        schema = [
            row
            for row in database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name")
            if row[2] not in own and not row[2].startswith(("gpkg_", *(f"rtree_{name}_geom" for name in own)))
        ]
        tables = [row[1] for row in schema if row[0] == "table" and row[1] not in ("sqlite_sequence", "layer_styles")]
        rows = {name: database.execute(f'SELECT * FROM "{name}"').fetchall() for name in tables}
        styles = database.execute("SELECT f_table_name, styleName, styleQML, useAsDefault FROM layer_styles").fetchall()
    return schema, rows, {row for row in styles if "written by segkit" not in row[2]}


def test_vectorize_replaces_its_own_layer_only(project, map_):
    before = other(project, "project")
    ask(project, "DELETE FROM project")
    vectorize(map_, project, overwrite=True)
    assert other(project, "project") == before
    assert len(geopandas.read_file(project, layer="project")) == 2
    assert {name for name, _ in pyogrio.list_layers(project)} >= {"project", "parcels", "project_old", "owners"}
    assert pyogrio.read_info(project, layer="parcels")["layer_metadata"] == {"about": "parcels"}
    # Another one that is made again takes no room for what was there.
    assert ask(project, "SELECT count(*) FROM gpkg_metadata WHERE metadata LIKE '%segkit_version%'") == [(1,)]
    styles = ask(project, "SELECT styleName, useAsDefault FROM layer_styles WHERE f_table_name = 'project' ORDER BY 1")
    assert styles == [("classes", 0), ("mine", 1)]
    assert ask(project, "PRAGMA integrity_check") == [("ok",)]
    assert ask(project, "PRAGMA foreign_key_check") == []


def test_a_layer_is_added_to_a_project_that_has_none_of_its_name(project, map_):
    moved = project.rename(project.with_name("atlas.gpkg"))
    before = other(moved)
    with pytest.raises(OutputExistsError):
        vectorize(map_, moved)
    with pytest.warns(UserWarning, match=r"has other layers of segkit \(project\), which are kept"):
        vectorize(map_, moved, overwrite=True)
    assert len(geopandas.read_file(moved, layer="atlas")) == 2
    after = other(moved, "atlas")
    assert after == before


def test_what_a_write_ahead_log_holds_is_kept(project, map_):
    with closing(sqlite3.connect(project)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA wal_autocheckpoint = 0")
        database.execute("UPDATE qgis_projects SET name = 'latest'")
        database.commit()
        vectorize(map_, project, overwrite=True)
    assert ask(project, "SELECT name FROM qgis_projects") == [("latest",)]
    assert not project.with_suffix(".gpkg-wal").exists()


def test_a_file_that_qgis_shows_is_replaced_with_its_log(tmp_path):
    """QGIS keeps a write-ahead log beside a file that it shows, which would be applied to the new file."""
    path = tmp_path / "labels.gpkg"
    frame = geopandas.GeoDataFrame({"class": ["forest"]}, geometry=[shapely.box(0, 0, 1, 1)], crs=4326)
    with replace_layers(path, ["labels"], {"labels": 1}) as part:
        write_layer(part, "labels", frame)
    with closing(sqlite3.connect(path)) as shown:
        shown.execute("PRAGMA journal_mode = WAL")
        shown.execute("CREATE TABLE notes (note TEXT)")
        shown.commit()
        with replace_layers(path, ["labels"], {"labels": 2}) as part:
            write_layer(part, "labels", geopandas.GeoDataFrame(pandas.concat([frame, frame]), crs=4326))
        assert [file.name for file in tmp_path.iterdir()] == ["labels.gpkg"]
        assert ask(path, "PRAGMA integrity_check") == [("ok",)]
        assert len(geopandas.read_file(path, layer="labels")) == 2
        assert ask(path, "SELECT count(*) FROM notes") == [(0,)]


def test_the_sample_is_drawn_into_a_project(project, map_, tmp_path):
    before = other(project)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"layers of segkit \(project\)"):
            design(map_, project, samples=20, min_per_stratum=5, overwrite=True)
    own = ("points", "pixels", "design", "strata", "classes")
    assert other(project, *own) == before
    assert len(geopandas.read_file(project, layer="points")) == 20
    assert len(geopandas.read_file(project, layer="design")) == 20
    assert ask(project, "SELECT count(*) FROM layer_styles WHERE f_table_name = 'points'") == [(1,)]


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("DELETE FROM gpkg_metadata", "its layer 'project' was written by another program"),
        ("CREATE TRIGGER mine AFTER INSERT ON project BEGIN SELECT 1; END", "the trigger 'mine' of layer 'project'"),
        ("CREATE INDEX mine ON project (class)", "the index 'mine' of layer 'project' would be lost"),
    ],
)
def test_what_would_be_lost_is_named(project, map_, sql, why):
    ask(project, sql)
    before = project.read_bytes()
    with pytest.raises(UsageError, match=why):
        vectorize(map_, project, overwrite=True)
    assert project.read_bytes() == before


def test_other_databases_and_damaged_ones_are_not_replaced(tmp_path, map_):
    path = tmp_path / "a.gpkg"
    ask(path, "CREATE TABLE mine (x)")
    with pytest.raises(UsageError, match="is a database but not a GeoPackage"):
        vectorize(map_, path, overwrite=True)
    with pytest.raises(UsageError, match="is a database but not a GeoPackage"):
        design(map_, path, samples=20, overwrite=True)
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 8000)
    with pytest.raises(UsageError, match="is a database that cannot be read"):
        vectorize(map_, path, overwrite=True)
    path.write_text("notes")
    vectorize(map_, path, overwrite=True)
    assert len(geopandas.read_file(path, layer="a")) == 2


def test_a_failure_leaves_the_file_as_it_was(project, map_, monkeypatch):
    before = project.read_bytes()
    monkeypatch.setattr("segkit.vector.formats.writer._verify", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        vectorize(map_, project, overwrite=True)
    assert project.read_bytes() == before
    assert not [file for file in project.parent.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM parcels WHERE owner = 'A'",
        "DROP VIEW both",
        "DROP TRIGGER guard",
        "DELETE FROM layer_styles WHERE styleName = 'mine'",
        "DELETE FROM gpkg_contents WHERE table_name = 'owners'",
    ],
)
def test_a_loss_is_found_before_the_file_is_replaced(project, tmp_path, sql):
    part = tmp_path / "part.gpkg"
    kept = copy_without_layers(project, part, ["project"])
    verify_copy(part, ["project"], kept)
    with closing(sqlite3.connect(part)) as database, database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE name LIKE 'rtree_parcels_geom_delete'"):
            database.execute(f"DROP TRIGGER {name}")  # it calls functions of GDAL
        database.execute(sql)
    with pytest.raises(OutputError, match="would be changed"):
        verify_copy(part, ["project"], kept)


@pytest.mark.parametrize("ending", [".dbf", ".prj", ".cpg", ".shx"])
def test_files_of_a_shapefiles_name_are_not_replaced(tmp_path, map_, ending):
    """A .prj may belong to an image, a .dbf be somebody's table."""
    (tmp_path / f"out{ending}").write_text("mine")
    with pytest.raises(OutputExistsError, match=f"out{ending} would be replaced, too"):
        vectorize(map_, tmp_path / "out.shp")
    assert (tmp_path / f"out{ending}").read_text() == "mine"
    vectorize(map_, tmp_path / "out.shp", overwrite=True)
    assert len(geopandas.read_file(tmp_path / "out.shp")) == 2
