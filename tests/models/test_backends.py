import numpy as np
import pytest
import rasterio
import torch
from exported import an_input, classical, moderate
from predicting import FAST, read, write_scene

from segkit.errors import ModelFileError, OutputExistsError, UsageError
from segkit.inference import settings as settings_module
from segkit.inference.predict import predict
from segkit.inference.runner import open_runner
from segkit.inference.settings import PredictOptions, resolve_settings
from segkit.io.scene import Scene, Tile
from segkit.models import backends
from segkit.models.ensemble import Ensemble, load_model

for package in ("onnx", "onnxruntime", "onnxscript", "openvino"):
    pytest.importorskip(package)
CPU = torch.device("cpu")
GRAPHS = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model file, and a scene with pixels without data."""
    folder = tmp_path_factory.mktemp("backends")
    classical(folder, "binary", texture=[3]).save(folder / "m.safetensors")
    return folder / "m.safetensors", write_scene(folder / "s.tif", bands=3)


@pytest.mark.parametrize("backend", GRAPHS)
def test_the_map_of_a_model_file_is_that_of_torch(files, tmp_path, backend):
    maps = []
    for name, options in (("torch", {}), (backend, {"backend": backend})):
        path, probabilities = tmp_path / f"{name}.tif", tmp_path / f"{name}_p.tif"
        [summary] = predict(files[0], files[1], path, probabilities=probabilities, **FAST, **options)
        assert summary.choice.backend == name
        maps.append((read(path), read(probabilities).astype(int)))
    np.testing.assert_array_equal(maps[1][0], maps[0][0])
    assert np.abs(maps[1][1] - maps[0][1]).max() <= 1
    with rasterio.open(tmp_path / f"{backend}.tif") as dataset:
        assert dataset.tags()["segkit_backend"] == backend


def test_an_ensemble_is_the_mean_and_each_model_is_converted_once(files, monkeypatch):
    model = load_model(files[0])
    other = classical(files[0].parent, "binary")
    for learner in other.network.learners:
        learner.set_arrays(weight=-learner.weight.numpy() / 3, bias=learner.bias.numpy())
    ensemble = Ensemble([model, other])
    tile = Tile(an_input()[0], ~np.isnan(an_input()[0]).all(axis=0))
    expected = open_runner(ensemble, CPU, "fp32", tta=True)([tile])
    found = [open_runner(ensemble, CPU, "fp32", backend=backend, tta=True)([tile]) for backend in GRAPHS]
    monkeypatch.setattr("segkit.models.graph_export.trace", None)
    found.append(open_runner(ensemble, CPU, "fp32", backend="openvino", tta=True)([tile]))
    for one in found:
        np.testing.assert_allclose(one, expected.numpy(), atol=1e-4, rtol=0)


def test_another_backend_is_another_request(files, tmp_path):
    predict(files[0], files[1], tmp_path / "map.tif", **FAST, backend="openvino")
    with pytest.raises(OutputExistsError, match=r"made with other settings \(backend\)"):
        predict(files[0], files[1], tmp_path / "map.tif", **FAST)
    [again] = predict(files[0], files[1], tmp_path / "map.tif", **FAST, backend="openvino")
    assert (again.seconds, again.choice.backend) == (0, "openvino")


def test_naming_the_default_is_the_same_request(files, tmp_path):
    predict(files[0], files[1], tmp_path / "map.tif", **FAST)
    [again] = predict(files[0], files[1], tmp_path / "map.tif", **FAST, backend="torch")
    assert again.seconds == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorrt"}, "backend 'tensorrt' is not known; use torch, onnxruntime, openvino or auto"),
        ({"backend": "openvino", "device": "cuda"}, "device cuda was asked for, but openvino computes on the CPU"),
    ],
)
def test_what_is_not_possible_is_refused(files, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        predict(files[0], files[1], tmp_path / "map.tif", **FAST | options)


def test_bf16_is_not_for_all(tmp_path):
    model = moderate(tmp_path, "binary")
    with pytest.raises(UsageError, match="onnxruntime computes in fp32"):
        PredictOptions(precision="bf16", backend="onnxruntime", device="cpu").check(model)
    with pytest.raises(UsageError, match="classical learners compute in fp32"):
        PredictOptions(precision="bf16", backend="openvino", device="cpu").check(classical(tmp_path))
    with pytest.raises(UsageError, match="of these only lda can"):
        PredictOptions(backend="openvino").check(classical(tmp_path, architecture="forest"))


def test_a_package_that_is_not_installed_is_named(files, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        predict(files[0], files[1], tmp_path / "map.tif", **FAST, backend="openvino")
    assert caught.value.name == "openvino"


def choose(model, scene, monkeypatch, speeds, agreement=1.0, **options):
    """Choose settings with made-up seconds of backends, and agreement of all but the model's own."""
    monkeypatch.setattr(settings_module._Meter, "seconds", lambda self, backend, precision: speeds[backend])
    monkeypatch.setattr(settings_module._Meter, "agreement", lambda self, backend, precision: agreement)
    monkeypatch.setattr(settings_module, "_MIN_CONVERTED_PIXELS", 0)
    monkeypatch.setattr(backends, "is_installed", lambda name: name in speeds)
    return resolve_settings(
        model, Scene.from_files(scene), PredictOptions(backend="auto", device="cpu", precision="fp32", **options)
    )


def test_auto_takes_the_fastest_that_decides_like_torch(files, monkeypatch):
    model = moderate(files[0].parent, "binary")
    speeds = {"torch": 1.0, "onnxruntime": 0.9, "openvino": 0.5}
    chosen = choose(model, files[1], monkeypatch, speeds)
    assert (chosen.backend, chosen.speedup) == ("openvino", 2)
    chosen = choose(model, files[1], monkeypatch, speeds | {"openvino": 0.95})
    assert (chosen.backend, chosen.speedup) == ("onnxruntime", pytest.approx(1 / 0.9))
    chosen = choose(model, files[1], monkeypatch, {"torch": 1.0, "onnxruntime": 0.95})
    assert (chosen.backend, chosen.speedup) == ("torch", 1), "a gain of 5 % may be chance"
    chosen = choose(model, files[1], monkeypatch, speeds, agreement=0.99)
    assert (chosen.backend, chosen.speedup) == ("torch", None)
    options = PredictOptions(backend="openvino", precision="fp32")
    with pytest.raises(ModelFileError, match=r"openvino gives 1\.00% of the pixels another class"):
        resolve_settings(model, Scene.from_files(files[1]), options)


def test_auto_converts_no_model_for_a_small_scene(files, tmp_path):
    made = resolve_settings(moderate(tmp_path, "binary"), Scene.from_files(files[1]), PredictOptions(backend="auto"))
    assert (made.backend, made.speedup) == ("torch", None)
