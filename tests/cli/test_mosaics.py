"""Commands read files that lie side by side as one raster: what they write is that of one file."""

import json
import shlex
import sys
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from quick import skip_measurements
from synthetic import cut_raster, patches, segmenter, write_raster

from segkit.cli import app as cli
from segkit.cli.mosaics import MosaicOverlap, one_raster
from segkit.io.mosaic import Mosaic

EDGES = (21, 40)  # of the files, in rows and in columns of 64
CLASSES = json.dumps([{"value": 1, "name": "forest"}, {"value": 2, "name": "water"}])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Image, labels and map of 64 x 64 pixels, in one file and in nine; and a model."""
    folder = tmp_path_factory.mktemp("mosaics")
    codes = (patches(64, 64, 3) + 1).astype(np.uint8)
    codes[30:34, 18:50] = 255
    write_raster(folder / "map.tif", codes, nodata=255)
    with rasterio.open(folder / "map.tif", "r+") as dataset:
        dataset.update_tags(segkit_type="multiclass", segkit_classes=CLASSES)
    write_raster(folder / "labels.tif", (patches(64, 64, 4) + 1).astype(np.uint8))
    write_raster(folder / "truth.tif", (patches(64, 64, 4) * 7).astype(np.uint8))
    write_raster(folder / "image.tif", np.random.default_rng(0).integers(1, 900, (3, 64, 64), dtype=np.uint16))
    for name, tiles in (("map", "maps"), ("labels", "label_tiles"), ("image", "images")):
        cut_raster(folder / f"{name}.tif", folder / tiles, EDGES, EDGES)
    segmenter(folder).save(folder / "model.safetensors")
    return folder


@pytest.fixture
def segkit(place, monkeypatch, capsys):
    """Run a command line in the folder; returns exit code, stdout and stderr."""

    def run(line):
        monkeypatch.setattr(sys, "argv", ["segkit", *shlex.split(line)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return caught.value.code, said.out, said.err

    monkeypatch.chdir(place)
    skip_measurements(monkeypatch.setattr)
    return run


def test_many_maps_give_one_layer_and_one_sample(segkit, place):
    """No border of a polygon lies where files meet, and areas are the same."""
    for what, end in (("--mosaic 'maps/*.tif'", "m"), ("map.tif", "w")):
        assert segkit(f"vectorize {what} {end}.gpkg --overwrite --min-area 3px")[0] == 0
        assert segkit(f"assess design {what} -n 40 --min-per-stratum 10 -o p{end}.gpkg --overwrite")[0] == 0
    for one, other, layers in (("m.gpkg", "w.gpkg", ("m", "w")), ("pm.gpkg", "pw.gpkg", ("points", "points"))):
        first, second = (
            geopandas.read_file(name, layer=layer) for name, layer in zip((one, other), layers, strict=True)
        )
        assert first.equals(second)


def test_the_shell_may_expand_a_glob():
    files = [Path("a.tif"), Path("b.tif")]
    assert one_raster(files, MosaicOverlap.LAST, mosaic=True, what="MAP") == Mosaic(files, "last")
    assert one_raster(files[:1], None, mosaic=False, what="MAP") == files[0]


def test_the_sample_of_many_maps_is_estimated(segkit, place):
    _, said, _ = segkit("assess design --mosaic maps -n 40 --min-per-stratum 10 -o drawn.gpkg")
    assert said.strip().endswith("segkit assess estimate --mosaic maps drawn.gpkg")
    points = geopandas.read_file("drawn.gpkg", layer="points")
    points.assign(ref_class="forest").to_file("drawn.gpkg", layer="points")
    found = [segkit(f"assess estimate {what} drawn.gpkg")[:2] for what in ("--mosaic maps", "map.tif")]
    assert found[0] == found[1]
    assert found[0][0] == 0


def test_changes_between_mosaics_are_those_between_maps(segkit, place):
    assert segkit("change map.tif labels.tif -o whole_change.tif")[0] == 0
    assert segkit("change --mosaic maps 'label_tiles/*.tif' -o change.tif")[0] == 0
    assert segkit("change --mosaic maps labels.tif -o change2.tif")[0] == 0
    values = [rasterio.open(name).read() for name in ("whole_change.tif", "change.tif", "change2.tif")]
    np.testing.assert_array_equal(values[1], values[0])
    np.testing.assert_array_equal(values[2], values[0])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("map.tif --labels labels.tif", "maps --mosaic --labels label_tiles"),
        (
            "model.safetensors --images image.tif --labels truth.tif --tile 32 --device cpu",
            "model.safetensors --images 'images/*.tif' --mosaic --labels truth.tif --tile 32 --device cpu",
        ),
    ],
)
def test_scores_are_those_of_one_file(segkit, place, one, other):
    """One scene, also for the boundaries and the objects."""
    for line, output in ((one, "one.json"), (other, "other.json")):
        code, _, error = segkit(f"evaluate {line} -o {output} --overwrite")
        assert code == 0, error
    found = [json.loads((place / name).read_text()) for name in ("one.json", "other.json")]
    assert len(found[1]["scenes"]) == 1
    for each in found:
        del each["scenes"]
    assert found[0] == found[1]


def test_a_prediction_is_written_as_one_map_or_like_the_input(segkit, place):
    for line in (
        "predict model.safetensors image.tif -o whole.tif --device cpu --precision fp32",
        "predict model.safetensors --mosaic 'images/*.tif' -o one.tif --device cpu --precision fp32",
        "predict model.safetensors --mosaic images -o cut --like-input --device cpu --precision fp32",
    ):
        code, _, error = segkit(line)
        assert code == 0, error
    whole = rasterio.open("whole.tif").read()
    np.testing.assert_array_equal(rasterio.open("one.tif").read(), whole)
    np.testing.assert_array_equal(rasterio.open("cut/21_40.tif").read(), whole[:, 21:40, 40:64])


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("vectorize maps/00_00.tif maps/00_21.tif x.gpkg", 2, "found 2; give one MAP, or add --mosaic if they lie"),
        ("vectorize map.tif x.gpkg --mosaic-overlap first", 2, "is for files that lie side by side; add --mosaic"),
        ("predict model.safetensors image.tif -o x.tif --mosaic-overlap last", 2, "side by side; add --mosaic"),
        ("vectorize maps x.gpkg", 1, "maps is a folder, not a raster; name a file, or add --mosaic"),
        (
            "vectorize --mosaic maps map.tif x.gpkg",
            2,
            "overlap by 21 x 21 pixels; say which to take; add --mosaic-",
        ),
        ("vectorize --mosaic maps map.tif x.gpkg --mosaic-overlap mean", 2, "only imagery has a mean"),
        ("report maps -o x.html", 1, "not a finished run; give the output of segkit train, or add --mosaic"),
        (
            "predict model.safetensors image.tif -o x/ --like-input",
            2,
            "image.tif is one file, so there is nothing to",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(segkit, place, line, code, message):
    found, _, error = segkit(line)
    assert found == code
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (place / "x.gpkg").exists()
