"""The public surface: what `import segkit` offers, and what it costs."""

import inspect
import pkgutil
import subprocess
import sys

import pytest

import segkit

PUBLIC = {
    "__version__",
    "LandCoverClass",
    "Mosaic",
    "Recipe",
    "SegkitError",
    "Segmenter",
    "Task",
    "areas",
    "assess",
    "audit",
    "change",
    "check",
    "clean",
    "compare",
    "cross_validate",
    "datasets",
    "encoders",
    "evaluate",
    "export",
    "finish",
    "forecast",
    "info",
    "init",
    "labels",
    "load",
    "plot",
    "polygons",
    "predict",
    "reclassify",
    "report",
    "suggest",
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


def test_no_module_has_the_name_of_a_public_function():
    """Importing `segkit.train` would put the module in the function's place."""
    modules = {module.name for module in pkgutil.iter_modules(segkit.__path__)}
    assert modules & PUBLIC == {"assess", "plot"}  # on purpose, public themselves


def test_functions_stay_functions_when_all_modules_are_imported():
    code = "import segkit.training.train, segkit.inference.predict, segkit; print(type(segkit.train).__name__)"
    assert run(code) == ["function"]


def test_every_function_that_takes_a_recipe_takes_a_path():
    found = {}
    for name in PUBLIC - {"__version__", "SegkitError", "assess", "plot"}:
        parameters = inspect.signature(getattr(segkit, name)).parameters
        if "recipe" in parameters:
            found[name] = str(parameters["recipe"].annotation).removesuffix(" | None")  # suggest has it as an option
    assert found.keys() >= {"check", "compare", "cross_validate", "datasets", "train", "Segmenter"}
    assert set(found.values()) == {"Recipe | PathLike"}


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'tarin'"):
        _ = segkit.tarin
    with pytest.raises(ImportError):
        exec("from segkit import tarin")


def test_the_old_name_of_a_class_warns():
    with pytest.warns(DeprecationWarning, match="LandClass is now called segkit.LandCoverClass"):
        assert segkit.LandClass is segkit.LandCoverClass
