"""The file in which windows are labelled: what QGIS finds in it, and what is refused when it is read back."""

import sqlite3
from contextlib import closing
from xml.etree import ElementTree

import numpy as np
import pandas
import pytest
import shapely
from labelling import read, replace
from rasterio.crs import CRS
from shapely import box

from segkit.errors import DataError, UsageError
from segkit.labelling.work_file import class_choices, read_work_file, write_work_file
from segkit.task import LandCoverClass, Task

CRS_ = CRS.from_epsg(32622)
FOREST = Task("multiclass", (LandCoverClass("forest", 1), LandCoverClass("wet & <dry>", 2, color="#2166ac")))
LAYERS = Task("multilabel", (LandCoverClass("forest", 1), LandCoverClass("flooded", 2)))


def write(path, task=FOREST, name="forest"):
    places = {"scene": ["a", "b"], "row": [0, 16], "col": [0, 0], "rows": 16, "cols": 16, "uncertain": [0.5, np.nan]}
    windows = pandas.DataFrame({"id": [1, 2], **places})
    outlines = [box(0, 0, 160, 160), box(0, 160, 160, 320)]
    polygons = pandas.DataFrame({"class": [name]}, dtype=object)
    write_work_file(path, task, CRS_, windows, outlines, polygons, [box(0, 0, 80, 160)])
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "todo.gpkg")


def test_what_is_written_is_read_back(file):
    found = read_work_file(file)
    assert found.task.type == "multiclass"
    assert [(one.name, one.value) for one in found.task.classes] == [("forest", 1), ("wet & <dry>", 2)]
    assert found.crs == CRS_
    assert found.windows["status"].tolist() == ["todo", "todo"]
    assert found.windows["shape"][1].equals(box(0, 160, 160, 320))
    assert found.classes.tolist() == ["forest"]


@pytest.mark.parametrize("task", [FOREST, LAYERS])
def test_qgis_finds_forms_with_the_choices(tmp_path, task):
    write(tmp_path / "todo.gpkg", task)
    with closing(sqlite3.connect(tmp_path / "todo.gpkg")) as database:
        rows = database.execute("SELECT f_table_name, styleQML FROM layer_styles WHERE useAsDefault").fetchall()
    styles = {layer: ElementTree.fromstring(text) for layer, text in rows}
    offered = {
        layer: [one.get("value") for one in style.iterfind("fieldConfiguration//Option[@name='map']/*/Option")]
        for layer, style in styles.items()
    }
    assert offered["windows"] == ["todo", "done", "skip"]
    assert offered["polygons"] == class_choices(task)
    assert ("background" in offered["polygons"]) == (task is FOREST)
    for layer, values in offered.items():  # each choice has a symbol of its own
        renderer = styles[layer].find("renderer-v2")
        shown = {one.get("value"): one.get("symbol") for one in renderer.iterfind("categories/category")}
        assert list(shown) == values
        assert {one.get("name") for one in renderer.iterfind("symbols/symbol")} == {*shown.values()}
    defaults = {one.get("field"): one.get("expression") for one in styles["windows"].iterfind("defaults/default")}
    assert "now()" in defaults["date"]
    assert "@user_full_name" in defaults["labeller"]


def test_changes_that_a_gis_makes_are_read(tmp_path):
    """Multipolygons with Z, another CRS of one layer, numbers as text and text as numbers."""
    file = write(tmp_path / "todo.gpkg", Task("binary", (LandCoverClass(" 7", 1),)), name="7")
    windows, polygons = read(file, "windows"), read(file, "polygons")
    shapes = shapely.force_3d(shapely.multipolygons(windows.geometry.to_numpy()[:, None]), 5.0)
    replace(file, "windows", windows.assign(rows="16", cols="16").set_geometry(shapes, crs=windows.crs))
    replace(file, "polygons", polygons.to_crs(4326).assign(**{"class": 7.0}))
    found = read_work_file(file)
    assert found.windows[["id", "rows", "cols"]].to_numpy().tolist() == [[1, 16, 16], [2, 16, 16]]
    assert found.classes.tolist() == [found.task.classes[0].name] == ["7"]
    assert shapely.symmetric_difference(found.shapes[0], box(0, 0, 80, 160)).area < 1e-3


def test_a_class_may_not_have_the_name_of_unlabelled_ground(tmp_path):
    with pytest.raises(UsageError, match="called 'unlabelled'"):
        write(tmp_path / "todo.gpkg", Task("binary", (LandCoverClass("unlabelled", 1),)))


def drop(layer):
    def edit(file):
        with closing(sqlite3.connect(file)) as database, database:
            database.execute(f"DELETE FROM gpkg_contents WHERE table_name = '{layer}'")

    return edit


def change(layer, **values):
    return lambda file: replace(file, layer, read(file, layer).assign(**values))


def without(layer, field):
    return lambda file: replace(file, layer, read(file, layer).drop(columns=field))


def as_points(file):
    table = read(file, "polygons")
    replace(file, "polygons", table.set_geometry(table.centroid))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("windows"), "no layer 'windows'"),
        (change("windows", status="finished"), "window 1 has status 'finished'; it must be todo, done, skip"),
        (without("windows", "status"), "layer 'windows' has no field 'status'"),
        (without("polygons", "class"), "layer 'polygons' has no field 'class'"),
        (as_points, "layer 'polygons' holds a Point"),
        (change("windows", geometry=None), "layer 'windows' holds a feature without a shape"),
        (change("windows", id=[1, None]), "a window has id empty; .* none are added"),
        (change("windows", rows=["16", "x"]), "a window has rows x"),
    ],
)
def test_what_cannot_be_read_back_is_named(file, edit, message):
    edit(file)
    with pytest.raises(DataError, match=message):
        read_work_file(file)
