"""The public surface: what `import segkit` offers, and what it costs."""

import importlib
import subprocess
import sys
from types import FunctionType

import pytest

import segkit

PUBLIC = {
    "__version__",
    "LandClass",
    "Recipe",
    "SegkitError",
    "Segmenter",
    "Task",
    "assess",
    "change",
    "check",
    "compare",
    "evaluate",
    "load",
    "predict",
    "report",
    "train",
    "vectorize",
}
HEAVY = {"torch", "rasterio", "numpy", "lightning", "geopandas", "rich", "matplotlib", "albumentations"}


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_the_public_names():
    assert set(segkit.__all__) == PUBLIC == set(dir(segkit))
    assert len(segkit.__all__) == len(PUBLIC)
    for name in PUBLIC:
        assert getattr(segkit, name) is not None
    star = {}
    exec("from segkit import *", star)
    assert star.keys() >= PUBLIC


def test_importing_costs_nothing():
    loaded = set(run("import segkit, sys; print(*sys.modules)"))
    assert not loaded & HEAVY
    assert "torch" not in run("import segkit, sys; segkit.Recipe, segkit.Task, segkit.SegkitError; print(*sys.modules)")


@pytest.mark.parametrize("name", ["train", "predict", "evaluate", "check"])
def test_a_function_stays_one_when_its_module_is_imported(name):
    module = importlib.import_module(f"segkit.{name}")
    assert isinstance(getattr(segkit, name), FunctionType)
    assert getattr(segkit, name) is getattr(module, name)


def test_in_a_fresh_process_too():
    code = "import segkit.train, segkit.evaluate, segkit; print(segkit.train.__name__, type(segkit.train).__name__)"
    assert run(code) == ["train", "function"]


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'tarin'"):
        _ = segkit.tarin
    with pytest.raises(ImportError):
        exec("from segkit import tarin")
