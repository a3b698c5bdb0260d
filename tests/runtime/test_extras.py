import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
import rasterio
from exported import classical, write_graph
from house import modules
from maps import write_map
from places import ROOT
from predicting import with_training_pixels, write_scene
from runtime_prediction import KINDS, predict_all

from segkit.inference import tasks
from segkit.inference.bands import predict_band
from segkit.runtime.extras import EXTRA_OF_PACKAGE, describe_missing_package

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# A user who installed no extra.
LIGHT = """
import sys
from segkit.runtime.extras import EXTRA_OF_PACKAGE
missing = set(EXTRA_OF_PACKAGE) - {"PIL"}  # matplotlib installs it
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""
# A user who installed the extra `runtime`, and goes on with a prediction that was interrupted.
RUNTIME = (
    LIGHT
    + """
missing -= {package for package, extra in EXTRA_OF_PACKAGE.items() if extra == "runtime"}
import segkit
from runtime_prediction import predict_all
print(predict_all("without"), segkit.info("m.onnx").kind)
"""
)


def names(requirements):
    """Names of distributions, as the package index compares them."""
    return {re.split(r"[\\[<>=, ]", one)[0].lower().replace("_", "-") for one in requirements}


def imported():
    """Names of the packages that segkit's source imports, anywhere in it."""
    lines = "\n".join(file.read_text() for file in modules().values())
    return set(re.findall(r"^\s*(?:from|import) (\w+)", lines, re.MULTILINE)) - sys.stdlib_module_names - {"segkit"}


def test_what_is_imported_is_declared_and_what_is_declared_is_pinned():
    declared = names(PROJECT["dependencies"])
    extras = {extra: names(more) for extra, more in PROJECT["optional-dependencies"].items()}
    found = packages_distributions()
    for package in imported() - {"node"}:  # a word of a docstring
        distributions = {name.lower().replace("_", "-") for name in found[package]}
        if package in EXTRA_OF_PACKAGE:
            assert distributions & extras[EXTRA_OF_PACKAGE[package]], package
        else:
            assert distributions & declared, package
    pinned = names((ROOT / "constraints.txt").read_text().splitlines())
    assert declared | set().union(*extras.values()) - {"landcover-segkit"} <= pinned


def run_light(code, *arguments, folder, before=LIGHT):
    return subprocess.run(
        [sys.executable, "-c", before + code, *map(str, arguments)], cwd=folder, capture_output=True, text=True
    )


def test_finished_maps_need_no_extra(tmp_path):
    values = np.random.default_rng(0).integers(1, 3, (40, 40)).astype(np.uint8)
    for name in ("a.tif", "b.tif"):
        write_map(tmp_path / name, values)
    (tmp_path / "names.csv").write_text("value,name\n1,water\n2,forest\n")
    code = """
import segkit
segkit.vectorize("a.tif", "a.gpkg")
segkit.change("a.tif", "b.tif", "c.tif")
segkit.reclassify("a.tif", "d.tif", merge={"all": ["1", "2"]})
segkit.areas("a.tif", "a.gpkg", output="areas.csv")
segkit.info("a.tif")
segkit.assess.design("a.tif", "points.gpkg", samples=100, class_names="names.csv")
from segkit.cli import main
sys.argv = ["segkit", "schema"]
main()
"""
    done = run_light(code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"a.gpkg", "c.tif", "d.tif", "areas.csv", "points.gpkg"} <= {path.name for path in tmp_path.iterdir()}


def test_a_missing_extra_is_named_by_command_and_by_function(tmp_path):
    code = """
import segkit
try:
    segkit.train
except ModuleNotFoundError as error:
    print(error)
from segkit.cli import main
main()
"""
    for name in ("m.safetensors", "a.tif"):
        (tmp_path / name).write_text("anything")
    done = run_light(code, "predict", "m.safetensors", "a.tif", "-o", "b.tif", folder=tmp_path)
    line = 'which is not installed; install the extra: pip install "landcover-segkit[predict]"\n'
    assert done.returncode == 1
    assert re.fullmatch(rf"(segkit: loading libraries \.\.\.\n)?segkit: this needs \w+, {re.escape(line)}", done.stderr)
    assert re.fullmatch(r'segkit\.train: this needs \w+, .*"landcover-segkit\[\w+\]"\n', done.stdout)


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """A folder, which is the current one, with an ONNX file and two scenes."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    write_graph("m.onnx", with_training_pixels(classical(tmp_path, "multiclass")))
    for seed, name in enumerate(("s.tif", "t.tif")):
        write_scene(tmp_path / name, bands=3, seed=seed)
    return tmp_path


def test_an_exported_model_predicts_without_torch(exported, monkeypatch):
    """All outputs are those of a process with torch, to the last bit; it goes on with what that process began."""
    assert predict_all("with") == [0, 0]
    bands = []

    def interrupted(*arguments, **options):
        bands.append(predict_band(*arguments, **options))
        if len(bands) == 2:
            raise KeyboardInterrupt
        return bands[-1]

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "predict_band", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict_all("without")
    done = run_light("", folder=exported, before=RUNTIME)
    assert (done.returncode, done.stdout) == (0, "[1, 0] exported model\n"), done.stderr
    files = sorted(path.relative_to("with") for path in Path("with").rglob("*.tif"))
    assert len(files) == 2 * (len(KINDS) + 1)
    for file in files:
        with rasterio.open("with" / file) as one, rasterio.open("without" / file) as other:
            np.testing.assert_array_equal(other.read(), one.read())
            assert (one.dtypes, one.descriptions, one.scales) == (other.dtypes, other.descriptions, other.scales)
            different = {key for key in one.tags() | other.tags() if one.tags().get(key) != other.tags().get(key)}
            assert different <= {"segkit_date"}


def test_what_predicts_without_torch_is_named(exported):
    command = "from segkit.cli import main\nmain()\n"
    done = run_light(command, "predict", "m.onnx", "s.tif", "-o", "map.tif", folder=exported)
    assert done.returncode == 1
    assert done.stderr.endswith(
        'onnxruntime, which is not installed; install the extra: pip install "landcover-segkit[runtime]"\n'
    )


@pytest.mark.parametrize("name", ["numpy", "segkit.nothing", None])
def test_other_modules_are_not_of_an_extra(name):
    assert describe_missing_package(ModuleNotFoundError("no", name=name)) is None
