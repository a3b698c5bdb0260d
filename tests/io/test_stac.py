"""A STAC item beside a raster names its bands."""

import json

import numpy as np
import pytest
from synthetic import write_raster

from segkit.io.remote import Remote
from segkit.io.scene import Scene
from segkit.io.stac import find_stac_items, read_stac_names

BANDS = [{"name": "B08", "common_name": "nir"}, {"name": "B04", "common_name": "red"}, {"name": "SCL"}]


@pytest.fixture
def raster(tmp_path):
    return write_raster(tmp_path / "scene.tif", np.ones((3, 4, 4), dtype=np.uint16))


def item(href, bands=BANDS, key="eo:bands"):
    return {"type": "Feature", "assets": {"other": {"href": "./x.tif", key: bands}, "data": {"href": href, key: bands}}}


@pytest.mark.parametrize("beside", ["scene.json", "scene.tif.json"])
@pytest.mark.parametrize("href", ["scene.tif", "./data/scene.tif", "https://example.com/a/scene.tif?token=1"])
def test_common_names_come_from_the_asset_of_the_file(raster, beside, href):
    (raster.parent / beside).write_text(json.dumps(item(href)))
    assert read_stac_names(raster, 3) == ["nir", "red", "SCL"]
    assert Scene.from_files(raster, bands=("red", "nir")).bands == (2, 1)
    assert Scene.from_files(raster).band_names == ("1", "2", "3")  # names are used where they are asked for


def test_bands_of_stac_1_1(raster):
    bands = [{"name": "x", "eo:common_name": "red"}, {"name": "y"}, {}]
    raster.with_suffix(".json").write_text(json.dumps(item("scene.tif", bands, "bands")))
    assert read_stac_names(raster, 3) == ["red", "y", None]


@pytest.mark.parametrize(
    "content",
    ["", "[1, 2]", '{"assets": [1]}', '{"assets": {"a": 1}}', json.dumps(item("other.tif")), "[" * 100_000,
     json.dumps(item("http://[scene.tif")), json.dumps(item("scene.tif", BANDS[:2])),
     json.dumps(item("scene.tif", [1, "a", None]))],
)  # fmt: skip
def test_other_files_name_nothing(raster, content):
    assert read_stac_names(raster, 3) == [None] * 3
    raster.with_suffix(".json").write_text(content)
    assert read_stac_names(raster, 3) == [None] * 3
    assert read_stac_names(Remote("https://example.com/scene.tif"), 3) == [None] * 3


def test_an_item_is_found_only_if_it_names_bands_of_the_raster(raster):
    beside = raster.with_suffix(".json")
    assert find_stac_items(raster) == []
    for content in ('{"overall_accuracy": 0.9}', "no json", json.dumps(item("other.tif"))):
        beside.write_text(content)
        assert find_stac_items(raster) == []
    beside.write_text(json.dumps(item("scene.tif")))
    assert find_stac_items(raster) == [beside]
    assert find_stac_items(Remote("https://example.com/scene.tif")) == []
