"""Errors that were planted in small scenes are found, with what was planted as the oracle."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.features import rasterize
from synthetic import write_raster

from segkit.auditing import label_audit
from segkit.auditing.label_audit import _rank, audit
from segkit.errors import GridError, OutputExistsError, SegkitError, UsageError
from segkit.recipe.schema import Recipe

NAMES = ("background", "water", "forest", "urban")


@pytest.fixture(scope="module")
def result(planted, tmp_path_factory):
    return audit(planted.recipe, tmp_path_factory.mktemp("audit") / "out", learner="lda", folds=4, pictures=3)


def mask_of(finding, planted):
    with rasterio.open(planted.folder / "labels" / f"{finding.scene}.tif") as file:
        return rasterize([finding.polygon], out_shape=file.shape, transform=file.transform).astype(bool)


def test_planted_segments_are_found_with_their_true_class(result, planted):
    """The first of the list lie in what was planted, and cover it but for its mixed borders."""
    of_places = [one for one in result.findings if one.scene in planted.wrong][:4]  # the labels of b are shifted
    every = {scene: np.logical_or.reduce([mask for mask, _, _ in wrongs]) for scene, wrongs in planted.wrong.items()}
    for one in of_places:
        mask = mask_of(one, planted)
        assert (mask & every[one.scene]).sum() > 0.9 * mask.sum()
        assert one.confident
    for scene, wrongs in planted.wrong.items():
        for mask, true, wrong in wrongs:
            found = [one for one in of_places if one.scene == scene and (mask_of(one, planted) & mask).any()]
            assert {(one.label, one.proposed) for one in found} == {(NAMES[wrong], NAMES[true])}
            assert {one.kind for one in found} <= ({"missing"} if wrong == 0 else {"class", "part"})
            assert sum((mask_of(one, planted) & mask).sum() for one in found) > 0.3 * mask.sum()


def test_a_polygon_is_the_pixels_of_its_finding(result, planted):
    of_places = [one for one in result.findings if one.kind not in ("swapped", "shifted")]
    for one in of_places:
        assert mask_of(one, planted).sum() == one.pixels
        assert one.area_ha == pytest.approx(one.pixels / 100, rel=2e-3)  # pixels of 10 m in UTM


def test_swapped_classes_and_a_shift_are_found_in_their_scenes_and_come_first(result):
    scenes = {scene.name: scene for scene in result.scenes}
    assert {name: scene.swapped for name, scene in scenes.items()} == {
        "a": (), "b": (), "c": (("water", "forest"),), "d": ()
    }  # fmt: skip
    assert scenes["b"].shift.x == pytest.approx(2, abs=0.25)
    assert scenes["b"].shift.y == pytest.approx(-1, abs=0.25)
    assert scenes["c"].shift is None
    for name in "ad":
        assert scenes[name].shift.length < 0.25
    assert {(one.kind, one.scene) for one in result.findings[:2]} == {("swapped", "c"), ("shifted", "b")}
    assert not any(one.scene == "c" and one.label in ("water", "forest") for one in result.findings[2:])
    assert [one.rank for one in result.findings] == list(range(1, len(result.findings) + 1))
    expected = [one.score * one.area_ha * (1 if one.confident else 0.25) for one in result.findings[2:]]
    assert expected == sorted(expected, reverse=True)


def test_regions_that_do_not_reach_the_threshold_count_a_quarter(result):
    """Most of them are errors of the model; without a CRS, areas are pixels."""
    one = next(one for one in result.findings if one.kind == "class")
    cases = [(900, True, 0.5, 4.0), (500, False, 1.0, 7.0), (1900, False, 1.0, 9.0), (901, True, 0.5, np.nan)]
    made = [
        replace(one, pixels=pixels, confident=confident, score=score, area_ha=area)
        for pixels, confident, score, area in cases
    ]
    assert [each.pixels for each in _rank(made)] == [901, 1900, 900, 500]


def test_the_share_of_error_is_that_of_the_findings(result, planted):
    """Confident findings, and all pixels of the swapped classes, over all labelled pixels of the class."""
    labels = {name: rasterio.open(planted.folder / "labels" / f"{name}.tif").read(1) for name in "abcd"}
    for value, name in enumerate(NAMES):
        wrong = sum(
            one.pixels
            for one in result.findings
            if one.label == name and one.confident and one.kind not in ("swapped", "shifted")
        )
        wrong += int((labels["c"] == value).sum()) if name in ("water", "forest") else 0
        total = sum(int((each == value).sum()) for each in labels.values())
        found = result.errors[name]
        assert found.pixels == total
        assert found.share == pytest.approx(wrong / total)
        assert found.interval[0] <= found.share <= found.interval[1]
        assert sum(found.into.values()) == pytest.approx(found.share)
    assert result.unit == "block"


def test_the_files_hold_the_list(result, planted):
    table = geopandas.read_file(result.layer, layer="audit")
    assert table.columns.tolist() == [
        "id", "rank", "kind", "scene", "class", "proposed", "score", "confident", "pixels", "area_ha", "note", "status",
        "comment", "geometry",
    ]  # fmt: skip
    assert table["rank"].tolist() == [one.rank for one in result.findings]
    assert table.crs.to_epsg() == 32622
    assert shapely.area(table.geometry.to_numpy()[2:]).tolist() == [100 * one.pixels for one in result.findings[2:]]
    with closing(sqlite3.connect(result.layer)) as database:
        ((style,),) = database.execute("SELECT styleQML FROM layer_styles").fetchall()
    assert "label wrong" in style
    assert "categorizedSymbol" in style
    stored = json.loads(result.summary_file.read_text())
    assert stored["findings"][0]["rank"] == 1
    assert stored["label_error"]["water"]["share"] == result.errors["water"].share
    assert stored["scenes"][1]["shift"]["x"] == result.scenes[1].shift.x
    assert result.picture.stat().st_size > 10_000
    text = result.render()
    assert "labels lie 2." in text or "labels lie 1.9" in text or "labels lie 1.8" in text
    assert "water and forest are swapped" in text
    assert [file.name for file in result.layer.parent.iterdir() if file.name.startswith(".")] == []


def test_overlapping_classes_without_a_crs(tmp_path, planted):
    """A missing object of one class where another class is right; polygons are in pixels, as in QGIS."""
    random = np.random.default_rng(0)
    water, forest = (random.integers(0, 2, (2, 8, 8)).repeat(12, axis=1).repeat(12, axis=2)).astype(bool)
    water[24:36, 24:36], forest[24:36, 24:36] = True, True
    pixels = random.normal(500, 10, (3, 96, 96))
    pixels[0] += 100 * water
    pixels[1] += 100 * forest
    labels = np.stack([water, forest]).astype(np.uint8)
    labels[0, 24:36, 24:36] = 0
    write_raster(tmp_path / "images" / "a.tif", pixels.astype(np.uint16), crs=None)
    write_raster(tmp_path / "labels" / "a.tif", labels, crs=None)
    classes = [{"name": "water", "value": 1}, {"name": "forest", "value": 2}]
    raw = planted.recipe.to_dict() | {"task": {"type": "multilabel", "classes": classes}}
    raw["data"]["train"] |= {"images": str(tmp_path / "images"), "labels": str(tmp_path / "labels")}
    raw["data"]["val"] = {"by": "block", "block": 24, "gap": 2}
    found = audit(Recipe.from_dict(raw), tmp_path / "out", learner="lda", folds=2, pictures=1)
    first = found.findings[0]
    assert (first.kind, first.label, first.proposed) == ("missing", "no water", "water")
    assert np.isnan(first.area_ha)
    assert json.loads(found.summary_file.read_text())["findings"][0]["area_ha"] is None
    assert len(geopandas.read_file(found.layer, layer="audit")) == len(found.findings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learner": "tree"}, "learner 'tree' does not exist; use lda, forest, network"),
        ({"folds": 1}, "folds is 1; it must be 2 or more"),
        ({"max_shift": 1}, "max_shift is 1; it must be 2 or more"),
        ({"min_area": "9"}, "minimum area"),
    ],
)
def test_options_that_cannot_be_are_refused(planted, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        audit(planted.recipe, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_results_are_not_replaced_unasked(planted, result):
    with pytest.raises(OutputExistsError, match=r"audit\.gpkg"):
        audit(planted.recipe, result.layer.parent)


def test_a_failure_leaves_no_temporary_files(planted, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise SegkitError("no")

    monkeypatch.setattr(label_audit, "_predict", fail)
    with pytest.raises(SegkitError, match="no"):
        audit(planted.recipe, tmp_path / "out", learner="lda")
    assert not list((tmp_path / "out").iterdir())


def test_scenes_with_and_without_a_crs_cannot_be_one_list(planted, tmp_path, monkeypatch):
    grids = [type("Grid", (), {"crs": crs})() for crs in (None, "EPSG:32622")]
    with pytest.raises(GridError, match="some scenes have a CRS and some have none"):
        label_audit.check_crs(grids)
