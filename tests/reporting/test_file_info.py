"""Facts of each kind of file, and the card that shows them."""

import json
import shutil

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import yaml
from maps import write_map
from products import random_bands, write_item, write_safe
from synthetic import recipe_for, segmenter, write_pair, write_raster

from segkit import info
from segkit.errors import DataError, MissingFileError, UsageError
from segkit.inference.predict import predict
from segkit.io.mosaic import Mosaic
from segkit.runtime.json_values import to_json


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("info")
    write_pair(folder, "multiclass", "a")
    model = segmenter(folder, "multiclass")
    model.metrics = {"mean_iou": 0.5, "per_class": {"water": {"iou": 0.25}}}
    model.save(folder / "model.safetensors")
    predict(
        folder / "model.safetensors", folder / "images/a.tif", folder / "map.tif", probabilities=folder / "p.tif",
        precision="fp32",
    )  # fmt: skip
    return folder


def facts(path, kind):
    found = info(path)
    assert found.kind == kind
    assert found.render().startswith(f"{path}: {kind}\n")
    json.dumps(to_json(found))
    return found.facts


def test_a_model(place):
    found = facts(place / "model.safetensors", "model")
    assert [(one["name"], one["value"], one["iou"]) for one in found["classes"]] == [
        ("background", 0, None), ("water", 3, 0.25), ("forest", 9, None),
    ]  # fmt: skip
    assert [one["name"] for one in found["bands"]] == ["b1", "b2", "b3"]
    assert (found["architecture"], found["encoder"], found["tile_size"]) == ("unet", "tu-resnet10t", 32)
    network = segmenter(place, "multiclass")
    assert found["weights"] == sum(each.numel() for each in network.parameters())
    assert found["scores"] == {"mean_iou": 0.5}
    assert "architecture: unet" in info(place / "model.safetensors").render()


def test_a_map_and_its_probabilities(place):
    found = facts(place / "map.tif", "map")
    assert (found["rows"], found["columns"], found["crs"], found["nodata"]) == (96, 96, "EPSG:32622", 255)
    assert sum(one["pixels"] for one in found["classes"]) == 96 * 96 - 100
    assert found["pixel_metres"] == pytest.approx([10, 10], rel=1e-3)
    assert found["model"].startswith("model.safetensors ")
    found = facts(place / "p.tif", "raster")
    assert found["holds"] == "probabilities"
    assert [one["name"] for one in found["bands"]] == ["background", "water", "forest"]


@pytest.mark.parametrize("counts", ["[]", '{"pixels": [1]}', '{"pixels": {"water": 1}, "hectares": 3}'])
def test_a_map_of_a_stranger_with_damaged_counts_is_a_map(place, tmp_path, counts):
    shutil.copy(place / "map.tif", tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.update_tags(segkit_counts=counts)
    assert [one["name"] for one in facts(tmp_path / "map.tif", "map")["classes"]] == ["background", "water", "forest"]


def test_rasters(place, tmp_path):
    found = facts(place / "images/a.tif", "raster")
    assert [(one["dtype"], one["nodata"]) for one in found["bands"]] == 3 * [("uint16", 0)]
    assert found["size_bytes"] == (place / "images/a.tif").stat().st_size
    write_raster(tmp_path / "b.tif", np.ones((3, 96, 96), np.uint16), left=500_960, nodata=0)
    both = facts(Mosaic([place / "images/a.tif", tmp_path / "b.tif"]), "raster")
    assert (both["rows"], both["columns"]) == (96, 192)
    plain = facts(write_map(tmp_path / "plain.tif", np.ones((4, 5), np.uint8), crs=None), "raster")
    assert (plain["crs"], plain["pixel_metres"]) == ("none", None)


def test_a_color_table_of_256_colors_is_not_256_classes(tmp_path):
    path = write_map(tmp_path / "map.tif", np.ones((4, 5), np.uint8))
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {1: (0, 0, 255), 7: (255, 0, 0)})
    names = "<CategoryNames><Category>none</Category><Category>water</Category></CategoryNames>"
    (tmp_path / "map.tif.aux.xml").write_text(
        f'<PAMDataset><PAMRasterBand band="1">{names}</PAMRasterBand></PAMDataset>'
    )
    found = [(one["value"], one["name"]) for one in facts(path, "map")["classes"]]
    assert found == [(0, "none"), (1, "water"), (7, "7")]


def test_a_vector_file(tmp_path):
    frame = geopandas.GeoDataFrame({"name": ["a", "b"]}, geometry=shapely.points([[0, 1], [2, 3]]), crs=4326)
    frame.to_file(tmp_path / "v.gpkg", layer="one")
    frame.to_file(tmp_path / "v.gpkg", layer="two")
    found = facts(tmp_path / "v.gpkg", "vector")
    assert [(one["layer"], one["features"], one["geometry"], one["crs"]) for one in found["layers"]] == [
        ("one", 2, ["Point"], "EPSG:4326"), ("two", 2, ["Point"], "EPSG:4326"),
    ]  # fmt: skip
    assert found["layers"][0]["fields"] == ["name"]
    assert found["layers"][0]["bounds"] == [0, 1, 2, 3]


def test_runs_and_folds(place, tmp_path):
    for number in range(2):
        run = tmp_path / f"fold{number}of2"
        run.mkdir()
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe_for(place, "multiclass").to_dict()))
        (run / "metrics.json").write_text(json.dumps({"mean_iou": 0.5 + number, "per_class": {"water": {"iou": 0.5}}}))
        (run / "log.csv").write_text("epoch,loss\n1,0.5\n")
    (run / "model.safetensors").touch()
    found = facts(run, "run")
    assert (found["name"], found["epochs"], found["finished_epochs"], found["finished"]) == ("multiclass", 2, 1, True)
    assert found["classes"][0]["iou"] == 0.5
    assert not facts(tmp_path / "fold0of2", "run")["finished"]
    assert facts(tmp_path, "folds")["folds"] == [
        {"fold": "0 of 2", "mean_iou": 0.5, "finished": False},
        {"fold": "1 of 2", "mean_iou": 1.5, "finished": True},
    ]


def test_other_files_are_refused(place, tmp_path):
    with pytest.raises(MissingFileError, match="no such file"):
        info(tmp_path / "none.tif")
    with pytest.raises(DataError, match=r"is not the folder of a run, which holds recipe\.yaml"):
        info(tmp_path)
    (tmp_path / "r.yaml").write_text("")
    with pytest.raises(UsageError, match="of a recipe, segkit check shows the data"):
        info(tmp_path / "r.yaml")
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(DataError, match="not a raster that segkit reads"):
        info(tmp_path / "text.txt")


def test_a_product_and_items(tmp_path):
    safe = write_safe(tmp_path, random_bands(["B02", "B8A", "SCL"]))
    found = facts(safe, "product")
    assert [(one["name"], one["pixel_sizes"], one["added"], one["used"]) for one in found["bands"]] == [
        ("B02", [10], -1000, True), ("B8A", [20], -1000, True), ("SCL", [20], None, False),
    ]  # fmt: skip
    assert (found["crs"], found["missing_files"]) == ("EPSG:32632", [])
    assert found["bounds"][2] - found["bounds"][0] == 600
    write_raster(tmp_path / "red.tif", np.ones((1, 8, 8), np.uint16))
    image = {"type": "image/tiff; application=geotiff", "roles": ["data"]}
    item = write_item(tmp_path / "item.json", {"red": image | {"href": "red.tif"}, "nir": image | {"href": "nir.tif"}})
    found = facts(item, "product")
    assert [one["pixel_sizes"] for one in found["bands"]] == [[10], []]
    [missing] = found["missing_files"]
    assert "nir.tif" in missing
    several = [json.loads(item.read_text()) | {"id": name} for name in ("north", "south")]
    (tmp_path / "all.json").write_text(json.dumps({"type": "FeatureCollection", "features": several}))
    assert facts(tmp_path / "all.json", "products") == {"items": ["north", "south"]}
