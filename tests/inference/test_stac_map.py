"""STAC items of maps, checked against the schemas, and compared with the files that they describe."""

import json
import os
from urllib.parse import unquote

import numpy as np
import pytest
import rasterio
import shapely
from products import write_item
from rasterio.crs import CRS
from stac_check import read_item
from synthetic import cut_raster, segmenter, write_pair

from segkit.errors import OutputExistsError, UsageError
from segkit.inference.predict import predict
from segkit.io.mosaic import Mosaic
from segkit.models.stac_model import write_model_item

OPTIONS = {"precision": "fp32", "device": "cpu"}
KINDS = ("multiclass", "multilabel")
NO_DATE = "ignore:.*when it was acquired:UserWarning"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stac")
    for kind in KINDS:
        write_pair(folder / kind, kind, "a", height=32, width=48)
        os.rename(folder / kind / "images/a.tif", folder / kind / "images/a_20240701.tif")  # noqa: PTH104
        model = segmenter(folder / kind, kind)
        assert model.receptive_field is not None, "measured once, and stored"
        model.save(folder / kind / "model.safetensors")
    return folder


def scene(folder, kind="multiclass"):
    return folder / kind / "model.safetensors", folder / kind / "images/a_20240701.tif"


@pytest.mark.parametrize("kind", KINDS)
def test_it_describes_the_map_and_what_lies_beside_it(folder, tmp_path, kind):
    model, image = scene(folder, kind)
    outputs = {"probabilities": "p.tif", "confidence": "c 1.tif", "vector": "v.gpkg"}
    [summary] = predict(
        model, image, tmp_path / "map.tif", uncertainty=["entropy"], stac=tmp_path / "map.json",
        **{key: tmp_path / name for key, name in outputs.items()}, **OPTIONS,
    )  # fmt: skip
    item = read_item(tmp_path / "map.json")
    assets = item["assets"]
    assert {key: unquote(asset["href"]) for key, asset in assets.items()} == {
        "map": "map.tif", "probabilities": "p.tif", "confidence": "c 1.tif", "uncertainty": "map_uncertainty.tif",
        "polygons": "v.gpkg",
    }  # fmt: skip
    for key in ("map", "probabilities", "confidence", "uncertainty"):
        with rasterio.open(tmp_path / unquote(assets[key]["href"])) as file:
            bands, of_raster = assets[key]["bands"], assets[key]["raster:bands"]
            assert [band["name"] for band in bands] == list(file.descriptions)
            for each in (bands, of_raster):
                assert [(band["data_type"], band["nodata"]) for band in each] == [
                    *zip(file.dtypes, file.nodatavals, strict=True)
                ]
            assert [band.get("scale", 1) for band in of_raster] == list(file.scales)
    with rasterio.open(tmp_path / "map.tif") as file:
        properties, values = item["properties"], file.read()
        assert properties["proj:code"] == "EPSG:32622"
        assert properties["proj:shape"] == list(file.shape)
        assert properties["proj:transform"] == list(file.transform)[:6]
        assert properties["proj:bbox"] == list(file.bounds)
    for band, described in zip(values, assets["map"]["bands"], strict=True):
        known = {one["value"] for one in described["classification:classes"]}
        assert {*np.unique(band)} <= known | {255}
        for one in described["classification:classes"]:
            if "count" in one:
                assert one["count"] == (band == one["value"]).sum() == summary.pixels[one["title"]]
    assert sum("count" in one for band in assets["map"]["bands"] for one in band["classification:classes"]) >= 2
    assert (properties["start_datetime"], properties["end_datetime"]) == (
        "2024-07-01T00:00:00Z", "2024-07-01T23:59:59Z",
    )  # fmt: skip
    assert properties["datetime"] is None
    assert properties["processing:software"]["segkit"]
    links = [(tmp_path / unquote(link["href"])).resolve() for link in item["links"]]
    assert links == [image, model]
    assert {link["rel"] for link in item["links"]} == {"derived_from"}


def test_it_links_to_the_items_of_scene_and_model(folder, tmp_path):
    model, image = scene(folder)
    for file in (model, image):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model, image = tmp_path / model.name, tmp_path / image.name
    write_model_item(model, tmp_path / "model.json")
    bands = [{"name": f"b{band}"} for band in (1, 2, 3)]
    beside = write_item(image.with_suffix(".json"), {"data": {"href": image.name, "bands": bands}})
    (tmp_path / "out").mkdir()
    predict(model, image, tmp_path / "out" / "map.tif", stac=tmp_path / "out/", **OPTIONS)
    item = read_item(tmp_path / "out" / f"{image.stem}.json")
    assert item["properties"]["datetime"] == "2022-06-01T10:15:59Z"
    links = {link["href"]: link for link in item["links"]}
    assert list(links) == ["../a_20240701.json", "../model.json"]
    assert {link["type"] for link in links.values()} == {"application/geo+json"}
    assert links["../model.json"]["mlm:name"] == "multiclass"
    before = beside.read_bytes()
    with pytest.raises(UsageError, match="which is an input"):
        predict(model, image, tmp_path / "out" / "map.tif", stac=beside, overwrite=True, **OPTIONS)
    assert beside.read_bytes() == before


@pytest.mark.filterwarnings(NO_DATE)
def test_the_files_of_a_mosaic_are_assets_with_their_own_grids(folder, tmp_path):
    model, image = scene(folder)
    tiles = Mosaic(sorted(cut_raster(image, tmp_path / "tiles", [16], [16]).glob("*.tif")))
    predict(model, tiles, tmp_path / "out", like_input=True, stac=tmp_path / "all.json", **OPTIONS)
    item = read_item(tmp_path / "all.json")
    assert len(item["assets"]) == len(item["links"]) - 1 == 4
    assert item["properties"]["proj:shape"] == [32, 48]
    for asset in item["assets"].values():
        with rasterio.open(tmp_path / asset["href"]) as file:
            assert asset["proj:shape"] == list(file.shape)
            assert asset["proj:transform"] == list(file.transform)[:6]
        assert "count" not in str(asset), "that of the whole map"
    with rasterio.open(image) as file:
        middle = shapely.Point(*file.lnglat())
    assert shapely.geometry.shape(item["geometry"]).contains(middle)


def test_without_a_date_there_is_a_warning_and_without_a_code_the_crs_is_text(folder, tmp_path):
    model, image = scene(folder)
    (tmp_path / "scene.tif").write_bytes(image.read_bytes())
    crs = CRS.from_string("+proj=laea +lat_0=-9 +lon_0=-51 +x_0=500000 +y_0=9000000 +datum=WGS84")
    with rasterio.open(tmp_path / "scene.tif", "r+") as file:
        file.crs = crs
    with pytest.warns(UserWarning, match="neither its metadata nor its name"):
        predict(model, tmp_path / "scene.tif", tmp_path / "map.tif", stac=tmp_path / "m.json", **OPTIONS)
    properties = read_item(tmp_path / "m.json")["properties"]
    assert properties["datetime"] == properties["created"]
    assert properties["proj:code"] is None
    assert CRS.from_wkt(properties["proj:wkt2"]) == crs


@pytest.mark.filterwarnings(NO_DATE)
def test_without_a_place_there_is_no_geometry(folder, tmp_path):
    model, image = scene(folder)
    with rasterio.open(image) as file:
        pixels, profile = file.read(), file.profile
    with rasterio.open(tmp_path / "plain.tif", "w", **profile | {"crs": None}) as file:
        file.write(pixels)
    predict(model, tmp_path / "plain.tif", tmp_path / "map.tif", stac=tmp_path / "map.json", **OPTIONS)
    item = read_item(tmp_path / "map.json")
    assert item["geometry"] is None
    assert "bbox" not in item
    assert "proj:code" not in item["properties"]


def test_an_item_is_written_again_only_if_it_is_older_than_the_map(folder, tmp_path):
    model, image = scene(folder)
    files = {"output": tmp_path / "map.tif", "stac": tmp_path / "map.json"}
    files["stac"].write_text("{}")
    with pytest.raises(OutputExistsError, match=r"map\.json is there already"):
        predict(model, image, **files, **OPTIONS)
    assert not files["output"].exists(), "before any work"
    predict(model, image, files["output"], **OPTIONS)
    os.utime(files["stac"], (0, 0))
    with pytest.raises(OutputExistsError, match=r"map\.json is there already"):
        predict(model, image, **files, **OPTIONS)
    assert files["stac"].read_text() == "{}"
    files["stac"].unlink()
    [summary] = predict(model, image, **files, **OPTIONS)
    assert not summary.seconds, "the map was finished"
    written = files["stac"].read_bytes()
    predict(model, image, **files, **OPTIONS)
    assert files["stac"].read_bytes() == written
    files["stac"].write_text("{}")
    predict(model, image, **files, overwrite=True, **OPTIONS)
    assert json.loads(files["stac"].read_text())["id"] == "map"


def test_only_json_files_are_items(folder, tmp_path):
    model, image = scene(folder)
    with pytest.raises(UsageError, match=r"ends in \.json"):
        predict(model, image, tmp_path / "map.tif", stac=tmp_path / "map.txt", **OPTIONS)
    with pytest.raises(UsageError, match="would be written to the same file"):
        predict(model, image, tmp_path / "map.tif", vector=tmp_path / "m.json", stac=tmp_path / "m.json", **OPTIONS)
    assert not list(tmp_path.iterdir())
