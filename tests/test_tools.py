"""The benchmarks use names that exist, also in code that they hand to other processes as text, and can predict."""

import importlib
import re
import sys

import fork_server
import numpy as np
import pytest
import rasterio
from places import ROOT
from synthetic import segmenter, write_raster

from segkit.inference.predict import predict

TOOLS = sorted((ROOT / "tools").glob("*.py"))


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
def test_imported_names_exist(tool):
    text = tool.read_text(encoding="utf-8")
    imports = re.findall(r"from (segkit[\w.]*) import (?:\(([^)]*)\)|([^\n;]+))", text)
    for module, block, line in imports:
        for name in re.findall(r"(\w+)(?: as \w+)?\s*(?:,|$)", re.sub(r"#.*", "", block or line)):
            found = importlib.import_module(module)
            assert hasattr(found, name) or importlib.import_module(f"{module}.{name}"), f"{module}.{name}"


@pytest.mark.parametrize("name", ["bench_predict", "bench_mosaic"])
def test_the_tiny_networks_of_benchmarks_predict(tmp_path, monkeypatch, name):
    """They have all properties of a model that a prediction asks for."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    bench = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    pixels = np.random.default_rng(0).integers(1, 1000, (bench.BANDS, 96, 96)).astype(np.uint16)
    write_raster(tmp_path / "scene.tif", pixels)
    scene = tmp_path / "scene.tif"
    settings = {"tile": 64, "overlap": 16, "precision": "fp32", "device": "cpu"}
    [summary] = predict(bench.Tiny(), scene, tmp_path / "map.tif", probabilities=tmp_path / "p.tif", **settings)
    assert summary.valid == 96**2
    with rasterio.open(tmp_path / "p.tif") as found:
        assert found.count == len(bench.CLASSES) + 1


def test_without_a_gpu_its_check_says_so_in_a_line(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "tools")
    check = importlib.import_module("check_gpu")
    monkeypatch.delitem(sys.modules, "check_gpu")
    monkeypatch.setattr(check.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["check_gpu.py"])
    assert check.main() == 0
    assert re.fullmatch(r"no CUDA device \(torch \S+\): nothing is checked\n", capsys.readouterr().out)


def test_a_failed_check_of_a_gpu_is_reported_and_the_others_go_on(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "tools")
    check = importlib.import_module("check_gpu")
    monkeypatch.delitem(sys.modules, "check_gpu")

    def fail():
        raise check.CheckError("0.5 of the pixels")

    assert not check.run_checks({"first": fail, "second": lambda: "fine"})
    assert capsys.readouterr().out == "FAILED  first: 0.5 of the pixels\nok      second: fine\n"


def test_the_check_of_a_large_scene_interrupts_and_resumes_a_small_one(tmp_path, monkeypatch, capfd):
    monkeypatch.syspath_prepend(ROOT / "tools")
    check = importlib.import_module("check_large_scene")
    monkeypatch.setattr(check, "START", fork_server.SERVER)  # has imported most
    model = segmenter(tmp_path, bands=1, mean=[110.0], std=[50.0])
    model._receptive_field = 20
    (tmp_path / "run").mkdir()
    model.save(tmp_path / "run" / "model.safetensors")
    size = ["--width", "700", "--height", "600", "--side", "120", "--patches", "3", "--tile", "128", "--compare", "1"]
    assert check.main([*size, "--band-pixels", "60000", "--stop-after", "1", "--folder", str(tmp_path)]) == 0
    said = capfd.readouterr().out
    assert re.search(r"interrupted: exit code 130 .* [1-9]\d* windows computed", said)
    assert re.search(r"resumed, [1-9] bands were finished: exit code 0", said)
    assert said.endswith("ok\n")
