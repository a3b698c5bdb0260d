"""Round the label loop: windows are suggested, labelled as in QGIS, read back, trained on, and suggested again."""

import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas
import pytest
import rasterio
import shapely
from labelling import label, read, replace, truth_polygons
from quick import skip_measurements, skip_pictures
from synthetic import recipe_for, write_pair

import segkit
from segkit.data.area import read_tiles
from segkit.data.areas import open_areas
from segkit.errors import DataError, LabelError, UsageError
from segkit.labelling.partition import polygonal
from segkit.recipe.schema import Recipe

SIZE = 24
CODES = {"binary": {7: "cleared"}, "multiclass": {3: "water", 9: "forest"}}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Two scenes with a corner without data, and their truth."""
    folder = tmp_path_factory.mktemp("scenes")
    for seed, name in enumerate("ab"):
        write_pair(folder, "binary", name, seed=seed)
    return folder


def recipe_of(scenes, labels, **changes):
    raw = recipe_for(scenes, "binary").to_dict()
    source = {"path": str(labels), "field": "class", "outside_polygons": "ignore"}
    raw["data"] |= {"train": {"images": str(scenes / "images"), "labels": source}, "val": None, "ignore": []}
    raw["model"] = {"architecture": "lda"}
    return Recipe.from_dict(raw | changes)


def truth(scenes, name, codes=CODES["binary"]):
    return truth_polygons(scenes / "labels" / f"{name}.tif", codes)


def both(scenes):
    return gpd.GeoDataFrame(pandas.concat([truth(scenes, "a"), truth(scenes, "b")]), crs="EPSG:32622")


def trained_pixels(recipe, scenes):
    """Return by scene the targets that train, and those of the truth in windows that are done; -1 is unlabelled."""
    found = {}
    training, _ = open_areas(recipe)
    for area in training:
        name = area.sample.scene.name
        found[name] = np.full(area.sample.scene.grid.shape, -1)
        for tile, targets, window in read_tiles([area]):
            found[name][window.toslices()] = np.where(tile.valid, targets[0], -1)
    return found


def expected_pixels(scenes, *files):
    found = {}
    for name in "ab":
        codes = rasterio.open(scenes / "labels" / f"{name}.tif").read(1)
        valid = rasterio.open(scenes / "images" / f"{name}.tif").dataset_mask() > 0
        inside = np.zeros(codes.shape, dtype=bool)
        for file in files:
            windows = read(file, "windows")
            for row in windows[(windows["status"] == "done") & (windows["scene"] == name)].itertuples():
                inside[row.row : row.row + row.rows, row.col : row.col + row.cols] = True
        if inside.any():
            found[name] = np.where(inside & valid, codes == 7, -1)
    return found


def test_two_rounds_of_the_loop(scenes, tmp_path, monkeypatch):
    skip_measurements(monkeypatch.setattr)
    skip_pictures(monkeypatch.setattr)
    recipe = recipe_of(scenes, tmp_path / "labels.gpkg")
    first = segkit.suggest(recipe, None, tmp_path / "first.gpkg", number=6, size=f"{SIZE}px")
    assert [one.id for one in first.windows] == [1, 2, 3, 4, 5, 6]
    assert first.missing == (tmp_path / "labels.gpkg",)
    assert first.invalid == 2  # the corners without data
    assert first.polygons == 0
    assert {one.scene for one in first.windows} == {"a", "b"}
    label(tmp_path / "first.gpkg", both(scenes), ids=[1, 2, 4, 5])
    made = segkit.labels(tmp_path / "first.gpkg", tmp_path / "labels.gpkg")
    assert made.windows == {"todo": 2, "done": 4, "skip": 0}
    assert sum(made.area.values()) == pytest.approx(4 * SIZE**2 / 100, rel=1e-2)  # hectares on the ellipsoid
    got, expected = trained_pixels(recipe, scenes), expected_pixels(scenes, tmp_path / "first.gpkg")
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name])
    run = segkit.train(recipe, tmp_path / "run", force=True)

    second = segkit.suggest(
        run.model, [scenes / "images"], tmp_path / "second.gpkg", number=3, size=f"{SIZE}px", recipe=recipe,
        labelled=[tmp_path / "first.gpkg"],
    )  # fmt: skip
    assert (second.measure, second.labelled) == ("entropy", 6)
    assert second.polygons > 0
    assert all(0 <= one.uncertain <= 1 for one in second.windows)
    windows = read(tmp_path / "second.gpkg", "windows")
    earlier = read(tmp_path / "first.gpkg", "windows")
    assert windows.union_all().intersection(earlier.union_all()).area < 1e-6
    assert windows.union_all().area == pytest.approx(windows.area.sum())
    label(tmp_path / "second.gpkg", both(scenes), ids=[1, 3])
    files = [tmp_path / "first.gpkg", tmp_path / "second.gpkg"]
    made = segkit.labels(files, tmp_path / "labels.gpkg", overwrite=True)
    assert made.windows["done"] == 6
    assert not made.agreement
    got, expected = trained_pixels(recipe, scenes), expected_pixels(scenes, *files)
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name])
    segkit.train(recipe, tmp_path / "run", force=True, overwrite=True)


@pytest.fixture
def suggested(scenes, tmp_path):
    """Two windows of scene a, without pre-labels, labelled by nobody."""
    recipe = recipe_of(scenes, tmp_path / "labels.gpkg")
    segkit.suggest(recipe, [scenes / "images" / "a.tif"], tmp_path / "ann.gpkg", number=2, size="32px")
    return tmp_path / "ann.gpkg"


def edit(path, layer, function):
    table = read(path, layer)
    function(table)
    replace(path, layer, table)


def test_rounding_of_another_crs_is_neither_a_difference_nor_unlabelled(scenes, suggested, tmp_path):
    label(suggested, truth(scenes, "a"))
    ben = Path(shutil.copy(suggested, tmp_path / "ben.gpkg"))
    for layer in ("windows", "polygons"):
        replace(ben, layer, read(ben, layer).to_crs(4326))
    made = segkit.labels([suggested, ben], tmp_path / "labels.gpkg")
    assert made.agreement[0].kappa["cleared"] == pytest.approx(1)
    assert made.unlabelled == 0
    assert made.notes == ()


def test_two_people_are_merged_and_compared(scenes, suggested, tmp_path):
    ben = Path(shutil.copy(suggested, tmp_path / "ben.gpkg"))
    label(suggested, truth(scenes, "a"))
    label(ben, truth(scenes, "a"), ids=[1], labeller="ben")
    window = read(ben, "windows").geometry[0]
    # Of a strip of 5 pixels Ben says the contrary.
    left, bottom, _, top = window.bounds
    strip = shapely.box(left, bottom, left + 50, top)
    true = truth(scenes, "a").union_all().intersection(window)
    drawn = gpd.GeoSeries([polygonal(true.symmetric_difference(strip))], crs=32622).explode(ignore_index=True)
    replace(ben, "polygons", gpd.GeoDataFrame({"class": "cleared"}, geometry=drawn, index=drawn.index))
    expected = strip.area / 1e4

    made = segkit.labels([suggested, ben], tmp_path / "labels.gpkg")
    (agreement,) = made.agreement
    assert agreement.area == pytest.approx(32**2 / 100, rel=1e-2)
    assert agreement.differing == pytest.approx(expected, rel=1e-2)
    assert made.unlabelled == pytest.approx(expected, rel=1e-2)
    assert 0 < agreement.kappa["cleared"] < 1
    assert any("differ on" in note and "unlabelled" in note for note in made.notes)
    found = read(tmp_path / "labels.gpkg", "labels")
    assert found.intersection(strip).area.sum() < 1e-3 * strip.area
    assert found.area.sum() == pytest.approx(found.union_all().area)  # every piece of ground once

    first = segkit.labels([ben, suggested], tmp_path / "labels.gpkg", differing="first", overwrite=True)
    assert first.unlabelled == pytest.approx(0, abs=1e-6)
    found = read(tmp_path / "labels.gpkg", "labels")
    cleared = found[found["class"] == "cleared"].intersection(strip).area.sum()
    assert cleared == pytest.approx(strip.difference(true).area)


def test_only_windows_that_are_done_count(scenes, suggested, tmp_path):
    with pytest.raises(DataError, match=r"no window is done \(2 todo, 0 done, 0 skip\)"):
        segkit.labels(suggested, tmp_path / "labels.gpkg")
    label(suggested, truth(scenes, "a"), ids=[2])
    edit(suggested, "windows", lambda table: table.loc.__setitem__((0, "status"), "skip"))
    made = segkit.labels(suggested, tmp_path / "labels.gpkg")
    assert made.windows == {"todo": 0, "done": 1, "skip": 1}
    done = read(suggested, "windows").geometry[1]
    ground = read(tmp_path / "labels.gpkg", "labels").union_all()
    assert ground.symmetric_difference(done).area == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("name", "found"), [(None, "no class in window 1, 2"), ("lake", "'lake' in window 1, 2")])
def test_polygons_without_a_known_class_are_named(scenes, suggested, tmp_path, name, found):
    label(suggested, truth(scenes, "a").assign(**{"class": name}))
    with pytest.raises(LabelError, match=found):
        segkit.labels(suggested, tmp_path / "labels.gpkg")
    assert not (tmp_path / "labels.gpkg").exists()


def test_refusals(scenes, suggested, tmp_path):
    recipe, images = recipe_of(scenes, tmp_path / "labels.gpkg"), scenes / "images"
    label(suggested, truth(scenes, "a"))
    refused = {
        "given twice": lambda: segkit.labels([suggested, suggested], tmp_path / "x.gpkg"),
        r"ends in \.gpkg": lambda: segkit.labels(suggested, tmp_path / "x.shp"),
        "would overwrite": lambda: segkit.labels(suggested, suggested, overwrite=True),
        "2 of its windows are done": lambda: segkit.suggest(recipe, None, suggested, overwrite=True),
        "rasters of labels": lambda: segkit.suggest(recipe, None, tmp_path / "x.gpkg", labelled=[images / "a.tif"]),
        "at least one window": lambda: segkit.suggest(recipe, None, tmp_path / "x.gpkg", number=0),
        "uncertainty: only with a model": lambda: segkit.suggest(
            recipe, None, tmp_path / "x.gpkg", uncertainty="margin"
        ),
    }
    for message, call in refused.items():
        with pytest.raises(UsageError, match=message):
            call()
    full = recipe_for(scenes, "binary")  # its rasters label everything but three columns
    with pytest.raises(DataError, match="of 8, 8 have labelled ground"):
        segkit.suggest(full, None, tmp_path / "x.gpkg", size="48px", min_valid=0.5)
    with pytest.raises(DataError, match=r"--min-valid 0\.9"):
        segkit.suggest(recipe, [images / "a.tif"], tmp_path / "x.gpkg", size="96px")
    assert not (tmp_path / "x.gpkg").exists()
