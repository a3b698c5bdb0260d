"""The label loop in a report: rounds, windows to label with their polygons, suspicious labels."""

import json
import re
import shutil
from html import unescape

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from labelling import label, read, replace, truth_polygons
from PIL import Image
from quick import skip_measurements, skip_pictures
from synthetic import TASKS, recipe_for, write_pair

import segkit
from segkit.errors import DataError, MissingFileError, UsageError
from segkit.io.scene import Scene
from segkit.labelling.work_file import read_work_file
from segkit.models.model_file import read_header
from segkit.recipe.schema import Recipe
from segkit.reporting.label_loop import Round, rounds_section, windows_section
from segkit.reporting.report import report
from segkit.reporting.window_pictures import draw_work_windows

MARKUP = 'cut <b>&"</b>'
TASK = TASKS["binary"] | {"classes": [{"name": MARKUP, "value": 7, "color": "#d7301f"}]}


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """Two rounds on scene a, and an audit of both scenes whose first finding was checked; b is kept apart."""
    root = tmp_path_factory.mktemp("loop")
    for seed, name in enumerate("ab"):
        write_pair(root, "binary", name, height=64, width=80, seed=seed)
    raw = recipe_for(root, "binary", task=TASK).to_dict()
    source = {"path": str(root / "labels.gpkg"), "field": "class", "outside_polygons": "ignore"}
    data = {"train": {"images": str(root / "images" / "a.tif"), "labels": source}, "val": None}
    recipe = Recipe.from_dict(raw | {"data": raw["data"] | data, "model": {"architecture": "lda"}})
    truth = truth_polygons(root / "labels" / "a.tif", {7: MARKUP})
    segkit.suggest(recipe, None, root / "start.gpkg", number=3, size="16px")
    label(root / "start.gpkg", truth, labeller="<i>ann</i>")
    with pytest.MonkeyPatch.context() as patch:
        skip_measurements(patch.setattr)
        skip_pictures(patch.setattr)
        segkit.labels(root / "start.gpkg", root / "labels.gpkg")
        segkit.train(recipe, root / "first", force=True)
        segkit.suggest(
            root / "first" / "model.safetensors", root / "images" / "a.tif", root / "next.gpkg", number=3, size="16px",
            labelled=[root / "start.gpkg"],
        )  # fmt: skip
        label(root / "next.gpkg", truth, ids=[2])
        segkit.labels([root / "start.gpkg", root / "next.gpkg"], root / "labels.gpkg", overwrite=True)
        segkit.train(recipe, root / "second", force=True)
        with rasterio.open(root / "labels" / "b.tif", "r+") as dataset:
            codes = dataset.read()
            codes[:, 4:20, 4:20] = np.where(codes[:, 4:20, 4:20] == 7, 0, 7)
            shutil.copy(root / "labels" / "b.tif", root / "b.tif")
            dataset.write(codes)
        segkit.audit(recipe_for(root, "binary", task=TASK), root / "audit", learner="lda", folds=2)
        shutil.copy(root / "b.tif", root / "labels" / "b.tif")
    found = read(root / "audit" / "audit.gpkg", "audit")
    found.loc[found["rank"] == 1, ["status", "comment"]] = ["label wrong", "a <script>"]
    replace(root / "audit" / "audit.gpkg", "audit", found)
    return root


def text_of(path):
    page = path.read_text()
    assert "<b>" not in page
    assert "<i>ann" not in page
    return unescape(page)


def test_rounds_windows_and_audit_in_one_report(loop, tmp_path):
    scenes = {"images": loop / "images" / "b.tif", "labels": loop / "labels" / "b.tif"}
    sources = [loop / name for name in ("first", "second", "start.gpkg", "next.gpkg", "audit")]
    made = report(sources, tmp_path / "loop.html", png=tmp_path / "png", device="cpu", **scenes)
    page = text_of(made.path)
    for name in ("first", "second"):
        model = loop / name / "model.safetensors"
        scores = segkit.evaluate(model, scenes["images"], scenes["labels"])
        labelled = read_header(model).metrics["labelled_pixels"]
        row = f'<th scope="row">{1 + (name == "second")}</th><td>{loop / name}</td><td>{labelled:,}</td>'
        assert f"{row}<td>{scores['overall_accuracy']:.3f}</td><td>{scores['mean_iou']:.3f}</td>" in page
    assert f"Run folder: {loop / 'second'}" in page
    assert f"Run folder: {loop / 'first'}" not in page
    assert "0 to do, 3 done, 0 skipped" in page
    assert "2 to do, 1 done, 0 skipped" in page
    assert "<i>ann</i> (3)" in page
    areas = [float(found) for found in re.findall(r"<dt>area of done windows</dt><dd>([\d.]+) ha", page)]
    assert areas == pytest.approx([3 * 16**2 / 100, 16**2 / 100], rel=0.01)  # pixels of 10 m
    audit = json.loads((loop / "audit" / "audit.json").read_text())
    first = audit["findings"][0]
    assert f"<td>{first['kind']}</td><td>{first['scene']}</td><td>{first['class']}</td>" in page
    assert f"1 label wrong, {len(audit['findings']) - 1} not checked" in page
    assert "a <script>" in page
    names = [path.stem for path in made.pictures]
    assert names[0] == "rounds"
    sheet = next(path for path in made.pictures if path.stem.startswith("audit-"))
    np.testing.assert_array_equal(Image.open(sheet), Image.open(loop / "audit" / "audit.png").convert("RGB"))
    assert page.count("No imagery was given for 3 of them.</figcaption>") == 2  # these are of b


def test_windows_are_drawn_over_their_own_imagery(loop):
    """A scene of the same name that lies elsewhere, or is smaller, is not the one that was labelled."""
    file = read_work_file(loop / "start.gpkg")
    rows = file.windows.to_dict("records")
    scene = Scene.from_files(loop / "images" / "a.tif", vrt=None)
    figure, missing = draw_work_windows(file, rows, [Scene.from_files(loop / "images" / "b.tif", vrt=None), scene])
    assert missing == 0
    for ax, row in zip(figure.axes, rows, strict=False):
        assert ax.images[0].get_array().shape == (row["rows"], row["cols"], 3)
        place = np.zeros((row["rows"], row["cols"]), dtype=bool)
        points = np.stack(np.meshgrid(np.arange(row["cols"]), np.arange(row["rows"])), axis=-1).reshape(-1, 2)
        for patch in ax.patches:
            place |= patch.get_path().contains_points(points).reshape(place.shape)
        with rasterio.open(loop / "labels" / "a.tif") as dataset:
            codes = dataset.read(1)[row["row"] :, row["col"] :][: row["rows"], : row["cols"]]
        np.testing.assert_array_equal(place, codes == 7)
    moved = file.windows.assign(shape=shapely.transform(file.windows["shape"].to_numpy(), lambda xy: xy + 40))
    _, missing = draw_work_windows(file, moved.to_dict("records"), [scene])
    assert missing == len(rows)


def test_windows_come_in_the_order_of_their_use(loop, tmp_path):
    """Somebody's program may have stored them in another one."""
    path = shutil.copy(loop / "next.gpkg", tmp_path / "next.gpkg")
    replace(path, "windows", read(path, "windows").iloc[::-1])
    section = windows_section(path, [], "windows")
    assert [row[0] for row in section.tables[0].rows] == ["1", "2", "3"]
    assert [ax.get_title(loc="left")[0] for ax in section.pictures[0].figure.axes] == ["1", "2", "3"]


def test_runs_without_scores_need_labels(loop, tmp_path):
    with pytest.raises(UsageError, match=r"trained without validation.*--images and --labels"):
        report([loop / "first", loop / "second"], tmp_path / "x.html")
    with pytest.raises(UsageError, match="add --images"):
        report([loop / "first", loop / "second"], tmp_path / "x.html", labels=loop / "labels" / "b.tif")
    with pytest.raises(UsageError, match="--images: only for a map"):
        report([loop / "first", loop / "second"], tmp_path / "x.html", images=loop / "images" / "b.tif")


def test_the_chart_says_what_it_is_drawn_against():
    scores = [{"overall_accuracy": 0.5, "mean_iou": None}, {"overall_accuracy": 0.7, "mean_iou": 0.4}]
    for labelled, label_of_axis, places in (((10, 300), "labelled pixels", [10, 300]), ((10, None), "round", [1, 2])):
        section = rounds_section([Round("a", *one) for one in zip(labelled, scores, strict=True)], "")
        (ax,) = section.charts[0].figure.axes
        assert ax.get_xlabel() == label_of_axis
        assert ax.lines[0].get_xdata().tolist() == places


def test_other_files_are_refused(loop, tmp_path):
    target = tmp_path / "x.html"
    other = tmp_path / "other.gpkg"
    geopandas.GeoDataFrame({"a": [1]}, geometry=[shapely.Point(0, 0)], crs=32622).to_file(other, layer="points")
    part = shutil.copytree(loop / "audit", tmp_path / "part")
    (part / "audit.json").write_text("[]")
    gone = shutil.copytree(loop / "audit", tmp_path / "gone")
    (gone / "audit.png").unlink()
    for source, kind, said in (
        (other, UsageError, "no layer 'windows'"),
        (loop / "audit" / "audit.gpkg", UsageError, "of an audit, its folder"),
        ([loop / "start.gpkg"] * 2, UsageError, "given twice"),
        ([loop / "first"] * 2, UsageError, "given twice"),
        (part, DataError, "audit.json: has no learner"),
        (gone, MissingFileError, "audit.png"),
        (tmp_path / "no.gpkg", MissingFileError, "file of windows"),
    ):
        with pytest.raises(kind, match=said):
            report(source, target)
    assert not target.exists()
