import json

import numpy as np
import pytest
import torch
from exported import an_input, classical
from predicting import FAST, read, write_scene

from segkit.errors import ModelFileError, UsageError
from segkit.exporting.write import export
from segkit.inference.predict import predict
from segkit.inference.settings import PredictOptions, resolve_settings
from segkit.io.scene import Scene
from segkit.models import backends
from segkit.models.ensemble import load_model
from segkit.models.graph_model import load_onnx
from segkit.models.graph_outputs import CARD_KEY
from segkit.models.graph_runtime import RUNTIMES
from segkit.reporting.file_info import info

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model file, its ONNX file, and a scene with pixels without data."""
    folder = tmp_path_factory.mktemp("onnx")
    classical(folder, "binary", texture=[3]).save(folder / "m.safetensors")
    export(folder / "m.safetensors", folder / "m.onnx")
    return folder / "m.safetensors", folder / "m.onnx", write_scene(folder / "s.tif", bands=3)


def test_the_map_is_that_of_the_model_file(files, tmp_path):
    maps = []
    for model in files[:2]:
        path, probabilities = tmp_path / f"{model.suffix}.tif", tmp_path / f"{model.suffix}_p.tif"
        predict(model, files[2], path, probabilities=probabilities, **FAST)
        maps.append((read(path), read(probabilities).astype(int)))
    np.testing.assert_array_equal(maps[1][0], maps[0][0])
    assert np.abs(maps[1][1] - maps[0][1]).max() <= 1
    assert {0, 7, 255} <= set(np.unique(maps[0][0]))


def test_pixels_that_are_not_valid_do_not_matter(files):
    model, graph = load_model(files[0]), load_onnx(files[1]).opened("onnxruntime", "fp32", 1)
    pixels = an_input()
    valid = (np.random.default_rng(0).random((2, 37, 45)) > 0.2) & np.isfinite(pixels).any(axis=1)
    with torch.inference_mode():
        expected = model.task.probabilities(model(torch.tensor(pixels), torch.tensor(valid))).numpy()
    found = graph.probabilities(pixels, valid)
    np.testing.assert_allclose(np.moveaxis(found, 1, -1)[valid], np.moveaxis(expected, 1, -1)[valid], atol=1e-5, rtol=0)


def test_it_is_read_like_the_model_file(files):
    model, graph = (load_model(file) for file in files[:2])
    for fact in ("task", "band_names", "receptive_field", "stride"):
        assert getattr(graph, fact) == getattr(model, fact)
    assert graph.fingerprint() == load_onnx(files[1]).fingerprint() != model.fingerprint()


def test_windows_are_those_of_all_its_models(files, tmp_path):
    """Of an ensemble, whose first model may have a smaller stride than the others, or none of fixed windows."""
    of_all = {"stride": 32, "window_size": 96, "receptive_field": "global"}
    graph = load_onnx(changed(files[1], tmp_path, lambda card: card | of_all))
    assert (graph.stride, graph.fixed_window_size) == (32, 96)
    with pytest.raises(ModelFileError, match="its card is damaged: 0 is no number of pixels"):
        load_onnx(changed(files[1], tmp_path, lambda card: card | {"stride": 0}))


@pytest.mark.parametrize("option", [{"precision": "bf16"}, {"device": "cuda"}])
def test_other_precisions_and_devices_are_refused(files, tmp_path, option):
    with pytest.raises(UsageError, match="but onnxruntime computes"):
        predict(files[1], files[2], tmp_path / "map.tif", **FAST | option)


def changed(file, folder, change):
    """Write an ONNX file with a changed card, or without one."""
    proto = onnx.load(file)
    keys = {one.key: one.value for one in proto.metadata_props}
    card = change(json.loads(keys.pop(CARD_KEY)))
    onnx.helper.set_model_props(proto, keys | ({CARD_KEY: json.dumps(card)} if card else {}))
    onnx.save(proto, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: None, "says nothing of bands and classes"),
        (lambda card: card | {"format": 2}, "its card has format 2"),
        (lambda card: card | {"decided": True}, "gives class values"),
        (lambda card: card | {"models": []}, "its card is damaged"),
        (lambda card: card | {"window_size": 64}, "takes windows of one size"),
    ],
)
def test_what_cannot_predict_is_refused(files, tmp_path, change, message):
    with pytest.raises(ModelFileError, match=message):
        load_onnx(changed(files[1], tmp_path, change))


def test_a_damaged_file_is_refused(files, tmp_path):
    (tmp_path / "m.onnx").write_bytes(files[1].read_bytes()[:1000])
    with pytest.raises(ModelFileError, match="no ONNX file, or damaged"):
        load_onnx(tmp_path / "m.onnx")


def test_a_card_of_other_outputs_is_noticed(files, tmp_path):
    def more_classes(card):
        classes = [{"name": name, "value": value} for value, name in enumerate("abc")]
        return card | {"task": card["task"] | {"type": "multiclass", "classes": classes, "background": False}}

    with pytest.raises(ModelFileError, match="outputs are not those of its card"):
        predict(changed(files[1], tmp_path, more_classes), files[2], tmp_path / "map.tif", **FAST)


def test_torch_runs_no_graph(files, tmp_path):
    with pytest.raises(UsageError, match="is a graph, which torch does not run"):
        predict(files[1], files[2], tmp_path / "map.tif", **FAST, backend="torch")


def test_auto_does_not_ignore_a_precision_that_no_runtime_has(files, monkeypatch):
    monkeypatch.setattr(backends, "is_installed", lambda name: name == "onnxruntime")
    monkeypatch.setattr("segkit.inference.device._has_bf16", lambda device: True)
    options = PredictOptions(backend="auto", precision="bf16", device="cpu")
    with pytest.raises(UsageError, match="bf16 was asked for, but onnxruntime computes in fp32"):
        resolve_settings(load_model(files[1]), Scene.from_files(files[2]), options)


def test_auto_measures_both_runtimes(files):
    pytest.importorskip("openvino")
    made = resolve_settings(load_model(files[1]), Scene.from_files(files[2]), PredictOptions(backend="auto"))
    assert made.backend in RUNTIMES
    assert made.speedup >= 1


def test_the_card_of_a_graph_is_that_of_its_model(files):
    graph, model = (info(file) for file in (files[1], files[0]))
    assert graph.kind == "exported model"
    own = {"weights", "size_bytes", "created"}
    assert {key: graph.facts[key] for key in model.facts if key not in own} == {
        key: value for key, value in model.facts.items() if key not in own
    }
    assert graph.facts["decided"] is False
    assert graph.facts["quantization"] is None


def test_the_card_of_several_models_has_the_thresholds_by_which_their_mean_is_decided(files, tmp_path):
    graph = info(changed(files[1], tmp_path, lambda card: card | {"thresholds": [0.25]}))
    assert [one["threshold"] for one in graph.facts["classes"]] == [None, 0.25]
