import json
import shutil
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from exported import an_input, classical, moderate, predicted
from synthetic import segmenter, write_raster

from segkit.errors import ModelFileError, UsageError
from segkit.exporting import parity, quantization, write
from segkit.exporting.formats import FORMATS
from segkit.inference.predict import predict
from segkit.models.graph_export import write_metadata
from segkit.models.graph_outputs import CARD_KEY
from segkit.models.graph_runtime import open_graph
from segkit.models.onnx_file import read_onnx_metadata

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A U-Net with calibration, its file, and the summary; beside it, m.pt2 of the same trace, compared with torch."""
    folder = tmp_path_factory.mktemp("exported")
    model = moderate(folder, "multiclass")
    model.save(folder / "m.safetensors")
    programs, trace = [], write.trace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "trace", lambda *given: programs.append(trace(*given)) or programs[0])
        summary = write.export(folder / "m.safetensors", folder / "m.onnx", nodata=[0])
        patch.setattr(write, "trace", lambda *given: programs[0])
        assert write.export(folder / "m.safetensors", folder / "m.pt2", nodata=[0]).parity.difference < 1e-4
    return model, folder / "m.onnx", summary


@pytest.mark.parametrize("size", [(64, 64), (37, 45), (8, 3), (1, 1), (200, 9)])
def test_onnx_predicts_windows_of_any_size_like_segkit(exported, size):
    model, path, _ = exported
    session = onnxruntime.InferenceSession(path)
    pixels = an_input(*size)
    for tiles in (pixels, pixels[:1]):
        (found,) = session.run(None, {"pixels": np.nan_to_num(tiles)})
        np.testing.assert_allclose(found, predicted(model, tiles)[0], atol=1e-4)


def test_the_file_says_what_it_is(exported, tmp_path):
    model, path, summary = exported
    session = onnxruntime.InferenceSession(path)
    (given,), (output,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("pixels", ["batch", 3, "height", "width"])
    assert (output.name, output.shape) == ("probabilities", ["batch", 3, "height", "width"])
    keys = session.get_modelmeta().custom_metadata_map
    assert json.loads(keys["model_type"]) == "Segmentor"
    assert json.loads(keys["class_names"]) == {"0": "background", "1": "water", "2": "forest"}
    card = json.loads(keys[CARD_KEY])
    assert card["fingerprint"] == model.fingerprint()
    assert card["input"]["nodata"] == [0]
    assert summary.outputs == {"probabilities": ["background", "water", "forest"]}
    assert summary.parity.difference < 1e-4
    content = path.read_bytes()
    for folder in (path.parent, sys.prefix, *map(str, sys.path[1:3])):
        assert str(folder).encode() not in content


def test_a_file_for_programs_with_fixed_windows(tmp_path):
    path = tmp_path / "m.onnx"
    summary = write.export(classical(tmp_path, "multilabel", texture=[3]), path, tile=32)
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    assert [output.shape for output in session.get_outputs()] == [["batch", 1, 32, 32]] * 2
    assert list(summary.outputs.values()) == [["water"], ["forest"]]


def test_torch_export_of_classes_of_a_classical_learner(tmp_path):
    model = classical(tmp_path, "multiclass", texture=[3], indices=[["r", "g"]])
    path = tmp_path / "m.pt2"
    write.export(model, path, decide=True)
    pixels = an_input()
    assert sys.prefix.encode() not in path.read_bytes()
    stored = {CARD_KEY: ""}
    (found,) = torch.export.load(path, extra_files=stored).module()(torch.from_numpy(pixels))
    np.testing.assert_array_equal(found.numpy(), predicted(model, pixels)[1])
    assert json.loads(stored[CARD_KEY])["outputs"] == [{"name": "classes", "channels": ["class"]}]


def test_a_file_that_differs_from_segkit_does_not_get_its_name(tmp_path, monkeypatch):
    right = FORMATS[".pt2"]

    def open_wrong(path):
        return lambda pixels: [output + np.float32(2e-4) for output in right.open(path)(pixels)]

    path = tmp_path / "m.pt2"
    path.write_text("before")
    monkeypatch.setitem(write.FORMATS, ".pt2", replace(right, open=open_wrong))
    with pytest.raises(ModelFileError, match=r"m\.pt2: is not written: its probabilities differ by up to 2\.0e-04"):
        write.export(classical(tmp_path), path, overwrite=True)
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt2"]


def test_a_scene_is_compared_on_request(tmp_path):
    pixels = np.random.default_rng(0).normal(500, 50, (3, 40, 70)).astype(np.float32)
    pixels[:, :5] = pixels[1, 5:9] = -9999  # which neither the file nor the recipe declares
    scene = write_raster(tmp_path / "s.tif", pixels)
    summary = write.export(classical(tmp_path), tmp_path / "m.pt2", check_on=scene, nodata=[-9999])
    assert (summary.parity.source, summary.parity.pixels) == ("s.tif", 40 * 70)
    empty = write_raster(tmp_path / "e.tif", np.zeros((3, 40, 70), np.float32), nodata=0)
    with pytest.raises(ModelFileError, match=r"e\.tif: has no valid pixels"):
        parity.check_parity(classical(tmp_path), None, None, tile=None, least=1, decide=False, check_on=empty)


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("unet", {"output": "m.pth"}, r"m\.pth: the ending gives the format; use \.onnx or \.pt2"),
        ("unet", {"tile": 33}, "tile is 33; the network takes multiples of 8 pixels"),
        ("forest", {}, "of these only lda can"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_the_work(tmp_path, monkeypatch, architecture, options, message):
    monkeypatch.setattr(write, "trace", None)
    model = segmenter(tmp_path) if architecture == "unet" else classical(tmp_path, architecture=architecture)
    options = {"output": "m.onnx"} | options
    with pytest.raises(UsageError, match=message):
        write.export(model, tmp_path / options.pop("output"), **options)
    assert not list(tmp_path.iterdir())


def test_int8_is_judged_on_held_out_tiles_and_runs_in_each_runtime(exported, tmp_path, monkeypatch):
    """On the graph that is exported already: the same steps as with the option, without another export."""
    model, path = exported[0], tmp_path / "m.onnx"
    shutil.copy(exported[1], path)
    monkeypatch.setattr(quantization, "_TILE_PX", 32)
    pixels = np.random.default_rng(0).normal(510, 50, (3, 64, 96)).astype(np.float32)
    tiles = quantization.CalibrationTiles(model, write_raster(tmp_path / "s.tif", pixels), None)
    with pytest.raises(ModelFileError, match=r"int8 gives \d+\.\d+% of 2,048 held-out pixels .*\(background "):
        quantization.quantize_graph(model, path, tiles, min_agreement=1.0000001)
    assert path.read_bytes() == exported[1].read_bytes()
    found = quantization.quantize_graph(model, path, tiles, min_agreement=0.5)
    assert path.stat().st_size < 0.5 * exported[1].stat().st_size
    assert (found.calibrated_on, found.judged_on, found.pixels) == (4, 2, 2048)
    expected = np.concatenate([predicted(model, tile.pixels[None])[1] for tile in tiles.read(tiles.judged)])
    for backend, agreement in found.runtimes.items():
        run = open_graph(path, backend)
        classes = np.concatenate([run(tile.pixels[None])[0].argmax(axis=1) for tile in tiles.read(tiles.judged)])
        values = np.array([0, *(one.value for one in model.task.classes)])[classes]
        assert (values == expected[:, 0]).mean() == pytest.approx(agreement)
    write_metadata(path, {CARD_KEY: stored_card(exported[1]) | {"quantization": asdict(found)}})
    [summary] = predict(path, tmp_path / "s.tif", tmp_path / "map.tif", tile=64, overlap=8)
    assert summary.choice.precision == "int8"
    for options in ({"precision": "fp32"}, {"exact": True}):
        with pytest.raises(UsageError, match="int8"):
            predict(path, tmp_path / "s.tif", tmp_path / "other.tif", **options)


def stored_card(path):
    return json.loads(read_onnx_metadata(path)[CARD_KEY])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int4"}, "quantize 'int4' is not known"),
        ({"quantize": "int8"}, "int8 needs tiles of your imagery"),
        ({"calibrate": ["s.tif"]}, "add --quantize int8"),
        ({"quantize": "int8", "calibrate": "s.tif", "decide": True}, "int8 is for probabilities"),
        ({"quantize": "int8", "calibrate": "s.tif", "output": "m.pt2"}, r"int8 is for \.onnx files"),
        ({"min_agreement": 99}, "minimum agreement is 99; it is a share from 0 to 1"),
    ],
)
def test_options_of_int8_that_do_not_fit_are_refused(tmp_path, options, message):
    output = tmp_path / options.pop("output", "m.onnx")
    with pytest.raises(UsageError, match=message):
        write.export(classical(tmp_path), output, **options)


def test_an_exported_model_is_not_exported_again(exported, tmp_path):
    with pytest.raises(UsageError, match=r"m\.onnx: is exported already"):
        write.export(exported[1], tmp_path / "n.onnx")


def test_generated_tiles_have_odd_sizes_and_gaps(tmp_path):
    tiles = list(parity.generated_tiles(classical(tmp_path), None))
    assert {tile.shape[2:] for tile in tiles} >= {(128, 128), (1, 1)}
    assert any(np.isnan(tile).any() for tile in tiles)
