"""Every command has --help, --json and --quiet, and writes a log; docs/commands.md lists what its JSON holds."""

import json
import re
import shutil
import sys

import geopandas
import numpy as np
import pytest
import shapely
import yaml
from places import ROOT
from synthetic import recipe_for, segmenter, write_pair, write_raster

from segkit.auditing.results import Audit
from segkit.cli import app as cli
from segkit.demo.run import Demo
from segkit.evaluation.evaluate import evaluate
from segkit.exporting.parity import Parity
from segkit.exporting.write import ExportSummary
from segkit.inference import forecasting
from segkit.inference.predict import predict
from segkit.labelling.collection import LabelCollection
from segkit.labelling.suggestion import SuggestedWindow, Suggestion
from segkit.models.catalogue import Catalogue, Encoder
from segkit.models.run_folder import METRICS
from segkit.reporting.report import Report
from segkit.training.comparison import MEASURES, Comparison, Measure, Row, Trial
from segkit.training.cross_validation import CrossValidation, FoldScores
from segkit.training.train import Run

# A command line for each command: in this order they find what they need.
COMMANDS = {
    "demo": "demo d",
    "info": "info map.tif",
    "init": "init images labels -o drafted.yaml --overwrite",
    "check": "check recipe.yaml",
    "encoders": "encoders tu-lcnet_035",
    "schema": "schema",
    "cache": "cache",
    "train": "train recipe.yaml -o run",
    "finish": "finish run",
    "compare": "compare recipe.yaml --seeds 0",
    "audit": "audit recipe.yaml -o audited",
    "predict": "predict model.safetensors images/a.tif -o map.tif --precision fp32 --overwrite",
    "vectorize": "vectorize map.tif out.gpkg --overwrite",
    "clean": "clean map.tif cleaned.tif --min-area 3px --overwrite",
    "reclassify": "reclassify map.tif new.tif --rename 7=cleared --class-names names.csv --overwrite",
    "change": "change truth.tif truth.tif -o change.tif --class-names names.csv --overwrite",
    "areas": "areas truth.tif zones.gpkg --by name -o areas.csv --class-names names.csv --overwrite",
    "suggest": "suggest model.safetensors images/a.tif -o todo.gpkg",
    "labels": "labels done.gpkg -o labels.gpkg",
    "evaluate": "evaluate truth.tif --labels truth.tif --class-names names.csv",
    "assess design": "assess design truth.tif -n 20 --min-per-stratum 5 -o p.gpkg --class-names names.csv --overwrite",
    "assess estimate": "assess estimate truth.tif counts.csv --class-names names.csv",
    "report": "report map.tif -o report.html",
    "export": "export model.safetensors -o model.onnx",
}
# What these commands print is what was asked for; the others write files.
ANSWERS = {"info", "check", "encoders", "schema", "cache", "areas", "evaluate", "assess estimate"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Files for all commands, and the results of those that take long."""
    folder = tmp_path_factory.mktemp("place")
    for seed, name in enumerate("ab"):
        write_pair(folder, "binary", name, seed=seed)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_for(folder, "binary").to_dict()))
    segmenter(folder).save(folder / "model.safetensors")
    write_raster(folder / "truth.tif", np.kron([[1, 7], [7, 1]], np.ones((48, 48))).astype(np.uint8))
    (folder / "names.csv").write_text("value,name,background\n1,rest,yes\n7,clearing,no\n")
    (folder / "counts.csv").write_text("map,rest,clearing\nrest,40,3\nclearing,2,30\n")
    zone = shapely.box(500_005, 8_999_500, 500_400, 8_999_995)
    geopandas.GeoDataFrame({"name": ["a"]}, geometry=[zone], crs=32622).to_file(folder / "zones.gpkg")
    predict(folder / "model.safetensors", folder / "images" / "a.tif", folder / "map.tif")
    return folder


@pytest.fixture(scope="module")
def results(place):
    """What the functions return whose work is tested elsewhere."""
    metrics = evaluate(place / "truth.tif", None, str(place / "truth.tif"), class_names=place / "names.csv")
    trial = Trial("softmax", 0, None, place, metrics, 1.0, None)
    row = Row("softmax", 1, {key: Measure.from_values([trial.measure(key)]) for key in MEASURES})
    comparison = Comparison(place, (row,), (trial,), ((None,),))
    catalogue = Catalogue((Encoder("resnet18", 11_176_512, published=True),), (), 3)
    files = (place / name for name in ("model", "map", "layer", "shapefile", "picture", "report"))
    (place / "report.html").write_text("")
    return {
        "segkit.training.train.train": Run(place, place / "model.safetensors", metrics, 1.0),
        "segkit.training.finishing.finish": Run(place, place / "model.safetensors", metrics, 1.0),
        "segkit.training.compare.compare": comparison,
        "segkit.training.cross_validation.cross_validate": CrossValidation(
            place, (FoldScores(trial, {}),), recipe_for(place, "binary").task
        ),
        "segkit.auditing.label_audit.audit": Audit(
            (),
            (),
            {},
            "scene",
            2,
            {},
            np.zeros((1, 2, 2)),
            "lda",
            "2 folds of scenes",
            *(place / name for name in ("a.gpkg", "a.png", "a.json")),
        ),
        "segkit.labelling.suggestion.suggest": Suggestion(
            place / "todo.gpkg", (SuggestedWindow(1, "a", 0, 0, 16, 16, 0.5),), 9, 0, 0, "entropy", "bands", 3, ()
        ),
        "segkit.labelling.collection.labels": LabelCollection(
            place / "labels.gpkg", {"done": 1}, {"clearing": 1.0}, "ha", 0.0, (), (), {"path": "labels.gpkg"}
        ),
        "segkit.demo.run.demo": Demo(place, metrics, metrics, *files, 1.0),
        "segkit.models.catalogue.encoders": catalogue,
        "segkit.exporting.write.export": ExportSummary(
            place / "report.html", False, {"probabilities": ["rest", "clearing"]}, (), Parity(1e-7, 100, "tiles"), []
        ),
        "segkit.reporting.report.report": Report(place / "report.html", ()),
    }


@pytest.fixture
def segkit(monkeypatch, capfd, place, results):
    """Run a command line; returns exit code, stdout and stderr."""
    monkeypatch.chdir(place)
    for name, result in results.items():
        monkeypatch.setattr(name, lambda *_, result=result, **__: result)

    def run(line):
        monkeypatch.setattr(sys, "argv", ["segkit", *line.split()])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not isinstance(sys.stdout, cli.CommandStream)
        said = capfd.readouterr()
        return end.value.code, said.out, said.err

    return run


def test_the_table_has_every_command():
    grouped = {"assess"}
    assert set(COMMANDS) == cli._commands() - grouped
    document = (ROOT / "docs" / "commands.md").read_text()
    rows = re.findall(r"^\| `([a-z ]+)` \|", document, re.MULTILINE)
    assert rows == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_prints_json_alone_or_nothing(segkit, place, command):
    line = COMMANDS[command]
    code, out, err = segkit(f"{command} --help")
    assert code == 0
    for option in ("--json", "--quiet", "--log FILE", "--help"):
        assert option in out
    code, out, err = segkit(f"{line} --json --quiet")
    assert (code, err) == (0, "")
    found = json.loads(out)  # one document, and nothing else
    row = next(
        each for each in (ROOT / "docs/commands.md").read_text().splitlines() if each.startswith(f"| `{command}` |")
    )
    keys = re.findall(r"`(\w+)`", row.split("|")[3])
    first = found[0] if isinstance(found, list) else found
    assert set(keys) <= set(first), first.keys()
    log = place / f"{command.replace(' ', '-')}.log"
    code, out, err = segkit(f"{line} --quiet --log {log.name}")
    assert (code, err) == (0, "")
    assert bool(out) == (command in ANSWERS), out
    lines = log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ( |$)", each) for each in lines)
    assert lines[0].endswith(f"$ segkit {line} --quiet --log {log.name}")
    assert lines[-1].endswith("Z exit code 0")
    assert len(lines) > 2  # with what the terminal would show


def test_folds_are_json_too(segkit):
    code, out, _ = segkit("train recipe.yaml --folds 2 --json")
    assert code == 0
    assert json.loads(out)["folds"][0]["trial"]["metrics"]["overall_accuracy"] == 1


def test_a_dry_run_writes_nothing_and_is_an_answer(segkit, place, monkeypatch):
    monkeypatch.setattr(forecasting, "_MIN_TIMED_S", 0.0)
    before = set(place.rglob("*"))
    line = "predict model.safetensors images/a.tif -o maps/new.tif --dry-run --precision fp32"
    (place / "maps").mkdir(exist_ok=True)
    code, out, err = segkit(f"{line} --quiet")
    assert (code, err) == (0, "")
    assert re.search(r"maps/new.tif: 0.00922 Mpx, 1 windows in 1 row bands\n  tile 1536", out)
    assert re.search(r"about [\d.]+ s, peak memory about [\d,]+ MiB\nnothing was written", out)
    [forecast] = json.loads(segkit(f"{line} --json")[1])
    assert (forecast["finished"], forecast["windows"], forecast["pixels"]) == (False, 1, 96 * 96)
    assert set(place.rglob("*")) - before <= {place / "maps"}
    code, _, err = segkit(f"{line} --cluster local:2")
    assert code == 2
    assert "times this machine, not a cluster" in err


def test_errors_are_shown_and_logged_whatever_is_silent(segkit, place):
    for options in ("--json", "--quiet", "--json --quiet"):
        code, out, err = segkit(f"vectorize none.tif a.gpkg {options} --log errors.log")
        assert (code, out) == (2, "")
        assert err.startswith("segkit: none.tif: no such raster")
    lines = (place / "errors.log").read_text().splitlines()
    assert [line.split()[1] for line in lines] == 3 * ["$", "segkit:", "exit"]


def test_a_problem_is_json_with_an_exit_code(segkit, place, monkeypatch):
    shutil.copytree(place / "images", place / "lost", dirs_exist_ok=True)
    line = "check recipe.yaml --set data.train.labels=names.csv"
    code, out, _ = segkit(f"{line} --json --quiet")
    assert code == 1
    assert json.loads(out)["problems"]


def test_areas_shows_the_first_of_many_zones_that_it_writes(segkit, place):
    zones = [shapely.box(500_005 + 10 * i, 8_999_500, 500_015 + 10 * i, 8_999_995) for i in range(25)]
    geopandas.GeoDataFrame(geometry=zones, crs=32622).to_file(place / "many.gpkg")
    code, out, _ = segkit("areas truth.tif many.gpkg --class-names names.csv")
    assert (code, len(out.splitlines())) == (0, 1 + 25)
    code, out, _ = segkit("areas truth.tif many.gpkg --class-names names.csv -o many.csv")
    assert (code, out.splitlines()[-3:]) == (0, ["... 5 more zones in the file", "", "many.csv"])
    assert len(out.splitlines()) == 1 + 20 + 3
    assert len((place / "many.csv").read_text().splitlines()) == 1 + 25


def test_a_log_is_only_appended_to_a_log(segkit, place):
    shutil.copy(place / "map.tif", place / "other.tif")
    content = (place / "other.tif").read_bytes()
    code, _, err = segkit("cache --log other.tif")
    assert (code, "is there already and is no log of segkit" in err) == (2, True)
    assert (place / "other.tif").read_bytes() == content
    for line in ("info map.tif --log map.tif", "areas truth.tif zones.gpkg -o a.csv --log a.csv"):
        code, _, err = segkit(line)
        assert (code, "is another file of this command" in err) == (2, True)
    assert segkit("cache --log no/where.log")[0] == 2
    assert not (place / METRICS).exists()
