import json

import geopandas
import pyogrio
import pytest
import rasterio
from quick import skip_drawing_of_pages

from segkit.demo.run import demo
from segkit.errors import UsageError
from segkit.models.model_file import read_header
from segkit.reporting import sections

TINY = [
    "train.epochs=1",
    "train.steps_per_epoch=2",
    "train.batch_size=2",
    "train.tile_size=64",
    "data.val.block=64",
    "data.val.gap=4",
    "model.encoder=tu-test_resnet",
    "model.options={encoder_depth: 3, decoder_channels: [8, 4, 4]}",
]


@pytest.mark.parametrize("task", ["deforestation", "landcover", "overlapping"])
def test_a_miniature_demo_writes_all_files(tmp_path, task, monkeypatch):
    monkeypatch.setattr(sections, "_N_TILES", 1)  # drawing them is slow
    skip_drawing_of_pages(monkeypatch.setattr)
    result = demo(tmp_path / "demo", task=task, width=288, height=256, overrides=TINY)
    assert result.folder == tmp_path / "demo"
    for path in (result.model, result.map, result.layer, result.shapefile, result.picture, result.report):
        assert path.is_file()
        assert result.folder in path.parents
    page = result.report.read_text()
    for heading in ("Map", "Validation", "Areas on the map", "Scores of map", "Training"):
        assert f">{heading}</" in page
    assert result.picture.read_bytes().startswith(b"\x89PNG")
    names = [one["name"] for one in read_header(result.model).recipe["task"]["classes"]]
    with rasterio.open(result.map) as dataset:
        assert dataset.count == (len(names) if task == "overlapping" else 1)
        crs, place = dataset.crs, (dataset.shape, dataset.transform)
    trained = read_header(result.model).recipe["data"]["train"]
    with rasterio.open(result.folder / "landscape/heldout/scene_2024.tif") as dataset:
        assert place == (dataset.shape, dataset.transform)  # a part that no training saw
    assert "heldout" not in str(trained)
    for path in (result.layer, result.shapefile):
        for layer in (name for name, kind in pyogrio.list_layers(path) if kind):  # styles are a table without any
            polygons = geopandas.read_file(path, layer=layer)
            assert polygons.crs == crs
            assert set(polygons["class"]) <= set(names)
            assert (polygons.area_ha > 0).all()
    folder = result.folder / task
    assert json.loads((folder / "heldout.json").read_text()) == result.metrics
    assert json.loads((folder / "baseline.json").read_text()) == result.baseline
    assert result.metrics["pixels"] == result.baseline["pixels"] > 1000  # scored on the same ground
    text = result.render()
    for word in (*names, "held-out IoU", "network", "linear discriminant", str(result.map), "minutes"):
        assert word in text


def test_invalid_arguments_are_errors(tmp_path):
    with pytest.raises(UsageError, match="unknown task 'trees'; use deforestation, landcover, overlapping"):
        demo(tmp_path / "demo", task="trees")
    with pytest.raises(UsageError, match="does not exist; make it first: mkdir -p"):
        demo(tmp_path / "missing" / "demo")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file is a file; name a folder for the demo"):
        demo(tmp_path / "file")
    assert not (tmp_path / "demo").exists()
