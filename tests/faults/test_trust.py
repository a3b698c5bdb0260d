"""Files of strangers run no code, read no other files, reach no network and take no memory; see SECURITY.md."""

import json
import os
import pickle
import socket
import sqlite3
import struct
from contextlib import closing

import geopandas
import numpy as np
import pyarrow
import pytest
import rasterio
import shapely
import torch
from fault_cases import codes, zones
from faults import call
from maps import write_map
from pyarrow import parquet
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from synthetic import recipe_for, segmenter

from segkit.errors import DataError, ModelFileError, RasterError, RecipeError, TrainingError
from segkit.io.features import read_features
from segkit.io.limits import VARIABLE
from segkit.io.polygons import read_polygons, true_hectares
from segkit.io.raster import open_raster, read_grid
from segkit.io.vector import read_layer
from segkit.models.model_file import HEADER_KEY
from segkit.models.segmenter import load
from segkit.recipe.yaml import parse_yaml
from segkit.task import LandCoverClass, Task


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The header and the weights of a model file."""
    folder = tmp_path_factory.mktemp("model")
    made = segmenter(folder)
    made._receptive_field = 40
    made.save(folder / "m.safetensors")
    with safe_open(folder / "m.safetensors", "pt") as stored:
        return json.loads(stored.metadata()[HEADER_KEY]), load_file(folder / "m.safetensors")


@pytest.fixture
def attack(model, tmp_path, monkeypatch):
    """Load a model file with another header; nothing may reach the network."""

    def refuse(*_, **__):
        pytest.fail("the network was reached")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)

    def run(text):
        save_file(model[1], tmp_path / "x.safetensors", metadata={HEADER_KEY: text})
        with pytest.raises(ModelFileError, match=r"x\.safetensors: ") as caught:
            load(tmp_path / "x.safetensors")
        return str(caught.value)

    return run


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("encoder", ["tu-hf-hub:a/b", "tu-hf_hub:a/b", "tu-local-dir:/tmp", "tu-../x", "tu-"])
def test_an_encoder_names_no_place(model, attack, encoder):
    header = json.loads(json.dumps(model[0]))
    header["recipe"]["model"]["encoder"] = encoder
    assert "is not known" in attack(json.dumps(header))


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"])
def test_an_option_names_no_file(model, attack, tmp_path, option):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(tmp_path / "hacked")))
    header = json.loads(json.dumps(model[0]))
    header["recipe"]["model"]["options"][option] = str(tmp_path / "evil.pt")
    assert f"model.options.{option}: unet has no such option" in attack(json.dumps(header))
    assert not (tmp_path / "hacked").exists()


def test_a_network_takes_no_more_memory_than_its_weights(model, attack, monkeypatch):
    header = json.loads(json.dumps(model[0]))
    header["recipe"]["model"]["options"]["decoder_channels"] = [10**7] * 3
    assert "more than 8,192" in attack(json.dumps(header))
    header["recipe"]["model"]["options"]["decoder_channels"] = [8000] * 3  # 12 GB
    monkeypatch.setattr("segkit.models.segmenter.Segmenter.__init__", lambda *_, **__: pytest.fail("it was built"))
    assert "weights do not fit" in attack(json.dumps(header))


def test_odd_headers_are_named(model, attack):
    header = model[0]
    for text in (
        "[" * 100_000,
        *(
            json.dumps(header | change)
            for change in (
                {"mean": "abc"},
                {"std": [1.0]},
                {"band_names": [1, 2, 3]},
                {"metrics": []},
                {"metrics": {"mean_iou": "x"}},
                {"metrics": {"per_class": {"a": 3}}},
                {"recipe": None},
                {"receptive_field": True},
                {"receptive_field": 10**18},
                {"calibration": [1]},
                {"calibration": {"scale": [1], "shift": [1]}},
                {"training_pixels": "x"},
                {"unknown": 1},
            )
        ),
    ):
        attack(text)


def test_a_checkpoint_with_code_is_refused(tmp_path):
    from segkit.training.resume import read_checkpoint

    torch.save({"a": Evil(tmp_path / "hacked")}, tmp_path / "last.ckpt")
    with pytest.raises(TrainingError, match=r"last\.ckpt: cannot be read"):
        read_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "text",
    ["a: !!bool x", 'a: !!int ""', "a: !!timestamp x", "a: !!set [1]", "!!python/object/apply:os.getcwd []",
     "%TAG ! tag:yaml.org,2002:\n---\na: !bool x", "a: &x [1]\nb: *x", "[" * 100_000, "a: " + "9" * 10**7],
)  # fmt: skip
def test_a_recipe_is_plain_values_of_bounded_size(text):
    with pytest.raises(RecipeError, match=r"r\.yaml: "):
        parse_yaml(text, "r.yaml")


def test_two_classes_of_one_name_are_found_among_many():
    classes = [LandCoverClass(f"c{value}", value, "#000000") for value in range(1, 20_000)]
    with pytest.raises(ValueError, match="two classes have the name 'c5'"):
        Task("multiclass", (*classes, LandCoverClass("c5", 60_000, "#000000")))


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ({"width": 2**30, "height": 1}, "pixels along a side"),
        ({"width": 4, "height": 4, "count": 10_001}, "10,001 bands"),
        ({"width": 40_000, "height": 40_000, "blockxsize": 39_984, "blockysize": 39_984, "tiled": True}, "blocks of"),
    ],
)
def test_small_files_that_declare_huge_rasters_are_refused(tmp_path, monkeypatch, size, said):
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "SPARSE_OK": True, "crs": "EPSG:32622"}
    transform = rasterio.Affine(10, 0, 0, 0, -10, 0)
    with rasterio.open(tmp_path / "a.tif", "w", **profile | size, transform=transform):
        pass
    with pytest.raises(RasterError, match=rf"a\.tif: .*{said}.*{VARIABLE}=off"), open_raster(tmp_path / "a.tif"):
        pass
    monkeypatch.setenv(VARIABLE, "off")
    with open_raster(tmp_path / "a.tif") as dataset:
        assert dataset.width == size["width"]


@pytest.mark.parametrize("transform", [(5e-308, 0, 5e5, 0, -10, 9e6), (np.inf, 0, 0, 0, 1, 0)])
def test_pixels_without_a_size_are_refused(write_raster, transform):
    path = write_raster("a.tif", np.ones((4, 4), np.uint8), transform=rasterio.Affine(*transform))
    with open_raster(path) as dataset, pytest.raises(RasterError, match=r"a\.tif: its pixels have no size or no place"):
        read_grid(dataset)


def test_a_crs_that_cannot_be_used_is_refused(tmp_path, write_raster):
    write_raster("a.tif", np.ones((4, 4), np.uint8))
    with rasterio.open(tmp_path / "a.tif") as dataset:
        rasterio.shutil.copy(dataset, tmp_path / "a.vrt", driver="VRT")
    text = (tmp_path / "a.vrt").read_text()
    (tmp_path / "a.vrt").write_text(text.replace("Transverse_Mercator", "Transvmrse_Mercator"))
    with open_raster(tmp_path / "a.vrt", vrt=True) as dataset, pytest.raises(RasterError, match=r"a\.vrt: its CRS"):
        read_grid(dataset)


@pytest.mark.parametrize(
    "view",
    [
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x AS fid, geom, name FROM c, zones",
        f"SELECT a0.* FROM {', '.join(f'zones a{number}' for number in range(25))}",
    ],
)
def test_a_view_without_end_is_refused(tmp_path, view):
    path = tmp_path / "zones.gpkg"
    zones().to_file(path)
    with sqlite3.connect(path) as database:
        database.execute(f"CREATE VIEW v AS {view}")
    database.close()
    with pytest.raises(DataError, match="'v' is a view that cannot be read, or has more rows"):
        read_layer(path, "zones")


def test_texts_in_another_encoding_are_refused_when_they_are_read(tmp_path):
    zones().assign(name=["söder", "norr"]).to_file(tmp_path / "a.shp", encoding="ISO-8859-1")
    (tmp_path / "a.cpg").write_text("UTF-8")
    with pytest.raises(DataError, match=r"a\.shp: field 'name' holds text that is not in the encoding"):
        read_layer(tmp_path / "a.shp")


def test_a_field_table_that_changes_alone_is_read_again(tmp_path):
    zones().to_file(tmp_path / "a.shp")
    assert read_features(tmp_path / "a.shp").field_values("name") == ("north", "south")
    table = (tmp_path / "a.dbf").read_bytes()
    (tmp_path / "a.dbf").write_bytes(table.replace(b"north", b"other"))
    assert read_features(tmp_path / "a.shp").field_values("name") == ("other", "south")


def test_polygons_with_damaged_coordinates_take_no_memory(tmp_path):
    far = geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1e15, 1)], crs="EPSG:32622")
    far.to_file(tmp_path / "a.gpkg")
    with pytest.raises(DataError, match=r"a\.gpkg: a polygon reaches from 0, 0, 1e\+15"):
        true_hectares(read_polygons(tmp_path / "a.gpkg"))


def test_a_recipe_names_no_network_that_is_not_known(tmp_path):
    (tmp_path / "r.yaml").write_text(json.dumps(recipe_for(tmp_path, "binary").to_dict()))
    run = call(("check", "r.yaml", "--set", "model.encoder=tu-hf-hub:a/b"), tmp_path)
    assert run.code
    assert "Traceback" not in run.said


@pytest.mark.parametrize("ending", ["gpkg", "parquet"])
def test_collections_inside_each_other_end_no_process(tmp_path, ending):
    """The parser of shapely calls itself for each, until the stack ends."""
    deep, path = struct.pack("<BII", 1, 7, 1) * 100_000 + struct.pack("<BII", 1, 7, 0), tmp_path / f"zones.{ending}"
    if ending == "gpkg":
        zones().to_file(path)
        with closing(sqlite3.connect(path)) as file, file:
            for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                file.execute(f'DROP TRIGGER "{name}"')
            file.execute("UPDATE zones SET geom = ? WHERE fid = 1", (b"GP\0\1" + struct.pack("<i", 32622) + deep,))
    else:
        zones().to_parquet(path)
        table = parquet.read_table(path)
        column = pyarrow.array([deep, None], pyarrow.binary())
        parquet.write_table(table.set_column(table.column_names.index("geometry"), "geometry", column), path)
    with pytest.raises(DataError, match="a geometry holds collections inside each other, more than 32"):
        read_layer(path)


def test_deep_lists_in_metadata_and_scores_are_one_line_or_left_out(tmp_path):
    with rasterio.open(write_map(tmp_path / "map.tif", codes()), "r+") as dataset:
        dataset.update_tags(segkit_classes="[" * 100_000)
    (tmp_path / "out").mkdir()
    run = call(("vectorize", "map.tif", "out/map.gpkg"), tmp_path)
    assert (run.code, run.outputs) == (1, {})
    assert "segkit: map.tif: its tag segkit_classes is not a list of classes" in run.said
    with rasterio.open(write_map(tmp_path / "map.tif", codes()), "r+") as dataset:
        dataset.update_tags(**dict.fromkeys(("segkit_counts", "segkit_request", "segkit_model_files"), "[" * 100_000))
    assert call(("info", "map.tif"), tmp_path).code == 0
    (tmp_path / "scores.json").write_text("[" * 100_000)
    run = call(("report", "scores.json", "-o", "out/scores.html"), tmp_path)
    assert (run.code, run.outputs) == (1, {})
    assert "segkit: scores.json: not JSON" in run.said
