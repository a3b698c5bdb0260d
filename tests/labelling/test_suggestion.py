"""Windows that models suggest: their pre-labels are the map, and they never overlap, whatever the scenes are."""

import shutil

import numpy as np
import pytest
import rasterio
from affine import Affine
from labelling import read
from rasterio.features import rasterize
from synthetic import TASKS, place, segmenter, write_pair, write_raster

import segkit
from segkit.errors import UsageError
from segkit.recipe.schema import Recipe

OPTIONS = {"precision": "fp32", "device": "cpu", "tile": 64, "overlap": 16}
EXACT = {"min_area": "0px", "simplify": "0px"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for seed, name in enumerate("ab"):
        write_pair(folder, "multiclass", name, seed=seed)
    return folder / "images"


@pytest.fixture(scope="module")
def networks(scenes):
    """Return networks by task, made once, whose receptive field is not measured."""

    class Networks(dict):
        def __missing__(self, kind):
            self[kind] = segmenter(scenes.parent, kind, mean=[550.0] * 3)
            self[kind]._receptive_field = 40
            return self[kind]

    return Networks()


@pytest.mark.parametrize("kind", TASKS)
def test_pre_labels_are_the_map(scenes, networks, tmp_path, kind):
    made = segkit.suggest(
        networks[kind], scenes / "a.tif", tmp_path / "todo.gpkg", number=2, size="20px", **EXACT, **OPTIONS
    )
    assert (made.measure, made.features) == ("entropy", "features of the encoder")
    assert made.invalid == 1
    with rasterio.open(scenes / "a.tif") as dataset:
        predicted = segkit.predict(networks[kind], dataset, **OPTIONS)
        transform = dataset.transform
    task, polygons = networks[kind].task, read(tmp_path / "todo.gpkg", "polygons")
    for one in made.windows:
        part = np.s_[one.row : one.row + one.rows, one.col : one.col + one.cols]
        for number, each in enumerate(task.classes):
            true = predicted.map[number] == 1 if predicted.map.ndim == 3 else predicted.map == each.value
            mine = polygons.geometry[polygons["class"] == each.name]
            drawn = rasterize([*mine], true.shape, transform=transform) if len(mine) else np.zeros_like(true)
            np.testing.assert_array_equal(drawn[part], true[part])
    assert len(polygons) == made.polygons
    if kind != "multilabel":  # a coverage without overlaps
        assert polygons.area.sum() == pytest.approx(polygons.union_all().area)


def test_uncertain_windows_are_those_of_the_uncertainty_raster(scenes, networks, tmp_path):
    """All windows, so that the choice does not matter."""
    made = segkit.suggest(
        networks["binary"], scenes / "a.tif", tmp_path / "todo.gpkg", number=99, size="26px", **OPTIONS
    )
    segkit.predict(networks["binary"], scenes / "a.tif", tmp_path / "map.tif", uncertainty="entropy", **OPTIONS)
    with rasterio.open(tmp_path / "map_uncertainty.tif") as dataset:
        entropy = dataset.read(1) * dataset.scales[0]
    assert len(made.windows) == 3 * 3 - 1
    for one in made.windows:
        mean = entropy[one.row : one.row + one.rows, one.col : one.col + one.cols].mean()
        assert one.uncertain == pytest.approx(mean, abs=1e-6)


def test_several_models_and_scenes(scenes, networks, tmp_path):
    """Disagreement of two models; one scene twice, under two names, whose windows never show the same ground."""
    other = segmenter(scenes.parent, "binary", mean=[500.0] * 3)
    other._receptive_field = 40
    again = shutil.copy(scenes / "a.tif", tmp_path / "again.tif")
    files = [scenes / "a.tif", again, scenes / "b.tif"]
    models = [networks["binary"], other]
    made = segkit.suggest(models, files, tmp_path / "todo.gpkg", number=40, size="48px", **OPTIONS)
    assert made.measure == "disagreement"
    windows = read(tmp_path / "todo.gpkg", "windows")
    assert len(made.windows) == len(windows) == 3 + 3
    assert windows.union_all().area == pytest.approx(windows.area.sum())


def cold(**data):
    labels = {"path": "none.gpkg", "field": "class", "outside_polygons": "ignore"}
    raw = {"name": "cold", "task": TASKS["multiclass"], "model": {"architecture": "lda"}, "train": {}}
    return Recipe.from_dict(raw | {"data": {"train": {"images": "nowhere", "labels": labels}, "val": None} | data})


def test_scenes_of_several_crs_are_in_degrees(scenes, tmp_path):
    pixels = np.random.default_rng(0).integers(1, 999, (3, 64, 64)).astype(np.uint16)
    other = write_raster(tmp_path / "c.tif", pixels, crs="EPSG:32623", left=place("c"))
    made = segkit.suggest(cold(), [scenes / "a.tif", other], tmp_path / "todo.gpkg", number=13, size="32px")
    assert len(made.windows) == 12
    windows = read(tmp_path / "todo.gpkg", "windows")
    assert windows.crs == "EPSG:4326"
    for row in windows[windows["scene"] == "c"].itertuples():
        back = windows.geometry[[row.Index]].to_crs("EPSG:32623").bounds.to_numpy()[0]
        left, top = Affine(10, 0, place("c"), 0, -10, 9_000_000) @ (row.col, row.row)
        np.testing.assert_allclose(back, (left, top - 320, left + 320, top), atol=0.05)


def test_a_scene_without_georeference_is_in_pixels_and_alone(scenes, tmp_path):
    pixels = np.random.default_rng(0).integers(1, 999, (3, 64, 64)).astype(np.uint16)
    with (
        pytest.warns(rasterio.errors.NotGeoreferencedWarning),
        rasterio.open(tmp_path / "p.tif", "w", "GTiff", 64, 64, 3, dtype="uint16") as dataset,
    ):
        dataset.write(pixels)
    segkit.suggest(cold(), tmp_path / "p.tif", tmp_path / "todo.gpkg", number=1, size="64px")
    assert read(tmp_path / "todo.gpkg", "windows").total_bounds.tolist() == [0, -64, 64, 0]
    with pytest.raises(UsageError, match="no georeference"):
        segkit.suggest(cold(), [tmp_path / "p.tif", scenes / "a.tif"], tmp_path / "x.gpkg")
