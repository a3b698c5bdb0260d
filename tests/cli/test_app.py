import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import geopandas
import jsonschema
import numpy as np
import pytest
import rasterio
import yaml
from quick import skip_measurements, skip_pictures
from synthetic import recipe_for, segmenter, write_pair, write_raster

from segkit.cli import app as cli
from segkit.cli.printing import print_summary
from segkit.cli.root import RENAMED_OPTIONS
from segkit.errors import UsageError
from segkit.inference.predict import Summary
from segkit.inference.settings import ResolvedSettings
from segkit.training.resume import TrainingInterrupted

COMMANDS = [
    "areas",
    "assess",
    "cache",
    "change",
    "check",
    "clean",
    "compare",
    "demo",
    "encoders",
    "evaluate",
    "finish",
    "info",
    "predict",
    "reclassify",
    "schema",
    "train",
    "vectorize",
]


@pytest.fixture
def segkit(monkeypatch, capsys, tmp_path):
    """Run the command line in tmp_path; returns exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["segkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return caught.value.code, said.out, said.err

    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def place(tmp_path):
    """Two pairs, a recipe and a model in tmp_path."""
    write_pair(tmp_path, "binary", "a")
    write_pair(tmp_path, "binary", "b", seed=1)
    recipe = recipe_for(tmp_path, "binary", train={"epochs": 1, "steps_per_epoch": 1})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    segmenter(tmp_path).save(tmp_path / "model.safetensors")
    return tmp_path


def write_recipe(place, change):
    text = (place / "recipe.yaml").read_text()
    changed = text.replace(*change)
    assert changed != text
    (place / "recipe.yaml").write_text(changed)


def shifted(place):
    write_raster(place / "labels" / "a.tif", np.zeros((96, 96), np.uint8), left=500_005)


# What a new user may do wrong: {case: (what is done to the folder, the command, exit code, what the line says)}
PREDICT = ("predict", "model.safetensors")
_CHANGES = ("task.type=multilabel", "task.head=sigmoid", "task.background=false")
OVERLAPPING = ("compare", "recipe.yaml", *(word for change in _CHANGES for word in ("--set", change)))
BAD = {
    "no recipe": (
        None,
        ("train", "recipes.yaml"),
        2,
        "recipes.yaml: no such recipe; check the spelling and the current folder",
    ),
    "no images": (
        None,
        ("train", "recipe.yaml", "--set", "data.train.images=imges"),
        2,
        "imges: no such file; check the spelling",
    ),
    "typo": (
        lambda place: write_recipe(place, ("batch_size", "batch_sise")),
        ("check", "recipe.yaml"),
        2,
        "recipe.yaml: train.batch_sise: unknown key; did you mean batch_size?",
    ),
    "typo in --set": (
        None,
        ("train", "recipe.yaml", "--set", "train.epoch=3"),
        2,
        "--set train.epoch=3: train.epoch: unknown key; did you mean epochs?",
    ),
    "a head that the task refuses": (
        None,
        (*OVERLAPPING, "--heads", "softmax,sigmoid"),
        2,
        "task.head=softmax: task: softmax makes classes mutually exclusive",
    ),
    "no values to vary": (
        None,
        ("compare", "recipe.yaml", "--vary", "train.epochs"),
        2,
        "--vary train.epochs: write it as key=value,value",
    ),
    "no seed": (None, ("compare", "recipe.yaml", "--seeds", "a"), 2, "--seeds: 'a' is not a whole number"),
    "wrong type": (
        None,
        ("train", "recipe.yaml", "--set", "train.epochs=many"),
        2,
        '--set train.epochs=many: train.epochs: found "many"; must be a whole number',
    ),
    "unknown loss": (
        None,
        ("train", "recipe.yaml", "--set", "train.loss={dise: 1}"),
        2,
        "train.loss: 'dise' is not known; did you mean dice?",
    ),
    "unknown encoder": (
        None,
        ("train", "recipe.yaml", "--set", "model.encoder=resnet19"),
        2,
        "model.encoder: 'resnet19' is not known; did you mean resnet18? (or tu- and a timm name)",
    ),
    "wrong option": (None, ("train", "recipe.yaml", "--epochs", "3"), 2, "No such option: --epochs"),
    "missing argument": (None, ("train",), 2, "Missing argument 'RECIPE'; see segkit train --help"),
    "missing argument after files": (None, ("areas", "map.tif"), 2, "Missing argument 'MAP' (of MAP... ZONES); see"),
    "wrong choice": (None, ("demo", "--task", "trees"), 2, "'trees' is not one of "),
    "unknown command": (None, ("tarin",), 2, "No such command 'tarin'"),
    "other grids": (
        shifted,
        ("train", "recipe.yaml"),
        1,
        "labels/a.tif is on another grid than its image (transform",
    ),
    "unknown code": (
        lambda place: write_raster(place / "labels" / "a.tif", np.full((96, 96), 3, np.uint8)),
        ("train", "recipe.yaml"),
        1,
        "labels/a.tif: code 3 (9216 pixels) is not defined, the task defines 0, 7",
    ),
    "no output folder": (
        None,
        ("train", "recipe.yaml", "-o", "runs/first/run"),
        2,
        "runs/first/run: the folder runs/first does not exist; make it first: mkdir -p runs/first",
    ),
    "predict into no folder": (
        None,
        (*PREDICT, "images/a.tif", "-o", "maps/a.tif"),
        2,
        "maps/a.tif: its folder maps does not exist; make it first (mkdir -p maps)",
    ),
    "no scene": (None, (*PREDICT, "images/z.tif", "-o", "map.tif"), 2, "images/z.tif: no such file"),
    "no model": (None, ("predict", "m.safetensors", "images/a.tif", "-o", "map.tif"), 2, "no such model file"),
    "text as model": (
        None,
        ("predict", "recipe.yaml", "images/a.tif", "-o", "map.tif"),
        1,
        "recipe.yaml: not a model file (.safetensors), or damaged",
    ),
    "folder as model": (
        None,
        ("predict", "images", "images/a.tif", "-o", "map.tif"),
        1,
        "images is a folder; name the model file in it (model.safetensors)",
    ),
    "other bands": (
        lambda place: write_raster(place / "two.tif", np.ones((2, 64, 64), np.uint16)),
        (*PREDICT, "two.tif", "-o", "map.tif"),
        1,
        "two.tif: has 2 bands, the model model.safetensors was trained on 3 (b1, b2, b3)",
    ),
    "text as scene": (
        lambda place: (place / "text.tif").write_text("no raster"),
        (*PREDICT, "text.tif", "-o", "map.tif"),
        1,
        "text.tif: not a raster that segkit reads (GTiff, JP2OpenJPEG, ENVI, PNG, JPEG, WEBP)",
    ),
    "map exists": (
        lambda place: (place / "map.tif").write_text(""),
        (*PREDICT, "images/a.tif", "-o", "map.tif"),
        2,
        "map.tif is there already; add --overwrite to replace it",
    ),
    "disagreement of one": (
        None,
        (*PREDICT, "images/a.tif", "-o", "map.tif", "--uncertainty", "disagreement"),
        2,
        "disagreement is that of several models, but one is given; add --average-with MODEL, or name the folder",
    ),
    "applicability of nothing": (
        None,
        (*PREDICT, "images/a.tif", "-o", "map.tif", "--applicability", "index.tif"),
        2,
        "model.safetensors: holds no training pixels, so its area of applicability is not known",
    ),
    "a scene as map": (None, ("vectorize", "images/a.tif", "out.gpkg"), 1, "images/a.tif"),
    "no labels": (
        None,
        ("evaluate", "model.safetensors", "--images", "images", "--labels", "labls"),
        2,
        "labls: no such file",
    ),
}


@pytest.mark.parametrize(("spoil", "command", "code", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_that_says_what_to_do(segkit, place, spoil, command, code, message):
    if spoil:
        spoil(place)
    before = set(place.rglob("*"))
    found, out, err = segkit(*command)
    lines = [line for line in err.splitlines() if not line.startswith("epoch")]
    assert (found, out, len(lines)) == (code, "", 1), err
    assert lines[0].startswith("segkit: ")
    assert message in lines[0]
    assert "unexpected" not in lines[0]
    assert set(place.rglob("*")) == before


def test_debug_shows_where(segkit, place, monkeypatch, capsys):
    for arguments in (["--debug", "train", "none.yaml"], ["train", "none.yaml", "--debug"]):
        monkeypatch.setattr(sys, "argv", ["segkit", *arguments])
        with pytest.raises(UsageError, match=r"none\.yaml: no such recipe"):
            cli.main()
        assert capsys.readouterr().err == ""  # Python prints the traceback


def test_a_surprise_is_reported_in_one_line_too(segkit, place, monkeypatch):
    def surprise(*_, **__):
        raise ZeroDivisionError("by zero\nand more")

    monkeypatch.setattr("segkit.recipe.schema.schema", surprise)
    code, _, err = segkit("schema")
    assert code == 1
    assert err == "segkit: unexpected ZeroDivisionError: by zero; run again with --debug to see where\n"


@pytest.mark.parametrize("where", [KeyboardInterrupt, EOFError])
def test_ctrl_c_is_130(segkit, monkeypatch, where):
    def stop(*_, **__):
        raise where

    monkeypatch.setattr("segkit.recipe.schema.schema", stop)
    code, _, err = segkit("schema")
    assert code == 130
    assert err.strip() == "segkit: interrupted; no partial output is left"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(segkit, command):
    code, out, err = segkit(command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: segkit {command}" in out


def test_the_help_names_every_command(segkit):
    code, out, _ = segkit("--help")
    assert code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in out
    assert "Usage: segkit" in segkit()[1] + segkit()[2]


@pytest.mark.parametrize("command", ["design", "estimate"])
def test_commands_below_assess_have_help(segkit, command):
    code, out, err = segkit("assess", command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: segkit assess {command}" in out


def test_a_map_is_assessed(segkit, place):
    """Design, fill as the map says, estimate; what is wrong is one line."""
    codes = np.kron([[0, 1], [1, 7]], np.ones((20, 20))).astype(np.uint8)
    write_raster(place / "map.tif", codes, nodata=7)
    (place / "names.csv").write_text("value,name\n0,forest\n1,clearing\n")
    design = ("assess", "design", "map.tif", "-o", "points.gpkg", "--class-names", "names.csv")
    code, out, err = segkit(
        *design,
        "-n",
        "60",
        "--min-per-stratum",
        "10",
        "--expected-users-accuracy",
        "clearing=0.7",
        "--buffer",
        "clearing:20m",
    )
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["stratum", "pixels", "hectares", "expected", "user's", "accuracy", "points"]
    assert "within 20 m of clearing" in out
    for words, said in (
        (("-n", "2"), "2 points are too few for 2 strata"),
        (
            ("-n", "60", "--expected-users-accuracy", "clearing"),
            "'clearing' is not CLASS=SHARE, as forest=0.95; see segkit assess design --help",
        ),
        (("-n", "60", "--buffer", ":60"), "is not CLASS:METRES"),
        ((), "give either the number of points or the target standard error"),
    ):
        code, _, err = segkit(*design, "--overwrite", *words)
        assert (code, said in err, len(err.splitlines())) == (2, True, 1), err
    points = geopandas.read_file(place / "points.gpkg", layer="points").to_crs(32622)
    rows, columns = (9_000_000 - points.geometry.y) // 10, (points.geometry.x - 500_000) // 10
    points["ref_class"] = np.array(["forest", "clearing"])[codes[rows.astype(int), columns.astype(int)]]
    points.loc[3, "ref_class"] = None
    points.to_file(place / "points.gpkg", layer="points")
    estimate = ("assess", "estimate", "map.tif", "points.gpkg", "--class-names", "names.csv")
    code, out, _ = segkit(*estimate, *(word for end in ("json", "csv", "png") for word in ("-o", f"areas.{end}")))
    assert code == 0
    assert re.search(r"overall accuracy 1.0000 \(0.9\d+ to 1.0000\)   \(in brackets: 95 % confidence", out)
    assert "1 points have no ref_class" in out
    summary = json.loads((place / "areas.json").read_text())
    assert summary["per_class"]["clearing"]["area_ha"] == pytest.approx(8.0, rel=1e-2)
    assert (place / "areas.csv").read_text().startswith("class,mapped_ha,area_ha,area_ha_se,area_ha_ci95,area_ha_low95")
    assert (place / "areas.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = segkit(*estimate, "-o", "areas.xlsx")
    assert (code, "estimates are written as .json, .csv, .png" in err) == (2, True)
    assert segkit(*estimate, "-o", "areas.json")[0] == 2  # it is there
    assert segkit("assess")[0] == 2


def test_a_map_is_scored_and_a_model_needs_scenes(segkit, place):
    codes = np.kron([[0, 1], [1, 0]], np.ones((20, 20))).astype(np.uint8)
    write_raster(place / "map.tif", codes)
    write_raster(place / "truth.tif", np.where(np.arange(40) < 2, 255, codes).astype(np.uint8))
    (place / "names.csv").write_text("value,name,background\n0,forest,yes\n1,clearing,no\n")
    score = ("evaluate", "map.tif", "--labels", "truth.tif", "--class-names", "names.csv")
    code, out, err = segkit(*score, "--ignore", "255", "-o", "scores.json")
    assert (code, err) == (0, "")
    assert "boundary_f1" in out.splitlines()[0]
    assert json.loads((place / "scores.json").read_text())["pixels"] == 40 * 38
    for words, said in (
        ((*score, "--images", "images"), "map.tif is a map, which needs no images"),
        (("evaluate", "model.safetensors", "--labels", "labels"), "a model needs scenes"),
        (
            ("evaluate", "model.safetensors", "--labels", "labels", "--images", "images", "--ignore", "3"),
            "a model file holds its own",
        ),
    ):
        code, _, err = segkit(*words)
        assert (code, said in err, len(err.splitlines())) == (2, True, 1), err


def test_a_command_that_loads_torch_says_so_at_once():
    """Before it has loaded anything, so the line cannot be slow."""
    code = """
import sys
from segkit.cli import main
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name in ("numpy", "torch", "lightning"):
            raise KeyboardInterrupt
sys.meta_path.insert(0, Stop())
main()
"""
    for command, said in (
        (
            ("train", "none.yaml"),
            "segkit: loading libraries ...\nsegkit: interrupted; nothing has changed; run the same",
        ),
        (("train",), "segkit: Missing argument"),
        (
            ("vectorize", "map.tif", "out.gpkg"),
            "segkit: loading libraries ...\nsegkit: interrupted; no partial output is left",
        ),
    ):
        done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
        assert done.stdout == ""
        assert done.stderr.startswith(said), done.stderr


@pytest.mark.parametrize(
    ("finished", "has_ended", "said"),
    [
        (0, False, "no epoch was finished; to start again: segkit train r.yaml -o 'my run' --overwrite"),
        (2, False, "2 of 9; to continue: segkit train r.yaml -o 'my run' --resume; to write a model now: {}"),
        (9, True, "not written yet; to write them: {}"),
    ],
)
def test_an_interrupted_training_names_the_commands_that_continue(segkit, monkeypatch, finished, has_ended, said):
    text, _, _ = said.partition("; to ")
    error = TrainingInterrupted(text, Path("my run"), finished, has_ended=has_ended)
    monkeypatch.setattr("segkit.training.train.train", mock.Mock(side_effect=error))
    code, out, err = segkit("train", "r.yaml", "-o", "my run", "--overwrite")
    assert (code, out) == (130, "")
    assert err == "segkit: interrupted; " + said.format("segkit finish 'my run'") + "\n"


def test_help_loads_no_library():
    code = (
        "import sys; sys.argv = ['segkit', '--help']; from segkit.cli import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stderr.split()) & {"torch", "rasterio", "numpy", "rich", "pydantic", "lightning", "geopandas"}


def test_the_schema_is_one_and_fits_a_recipe(segkit, place):
    code, out, _ = segkit("schema")
    assert code == 0
    schema = json.loads(out)
    jsonschema.Draft202012Validator.check_schema(schema)
    recipe = yaml.safe_load((place / "recipe.yaml").read_text())
    jsonschema.validate(recipe, schema)
    recipe["train"]["batch_sise"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(recipe, schema)


def test_the_whole_job(segkit, place):
    """check, train, evaluate, predict, vectorize: what each prints, and that the next one can use what it wrote."""
    code, out, _ = segkit("check", "recipe.yaml")
    assert code == 0
    assert "problems: 0" in out
    code, out, err = segkit("train", "recipe.yaml", "-o", "run", "--set", "train.epochs=2")
    assert code == 0
    lines = err.splitlines()
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    [few, *others] = [line for line in lines if not line.startswith("epoch")]
    assert few.startswith("warning: ")
    assert "steps" in few
    assert all(line.startswith("warning: on the validation areas the network") for line in others)
    assert re.search(r"^time \d+ s; 2 of 2 epochs, model of epoch [12]$", out, re.MULTILINE)
    lines = [line.rpartition(" ")[::2] for line in out[out.index("\nmodel ") + 1 :].splitlines()]
    assert {path for _, path in lines[:-1]} == {str(path.relative_to(place)) for path in (place / "run").iterdir()}
    assert ("model", "run/model.safetensors") in lines
    assert out.splitlines()[-1] == "next: segkit predict run/model.safetensors SCENE.tif -o map.tif"
    assert "mean_iou" in out
    code, again, err = segkit("finish", "run")
    assert (code, err) == (0, "run: its model has all 2 finished epochs; nothing to do\n")
    assert again.splitlines()[0] == out.splitlines()[0]
    assert "linear discriminant of single pixels: overall_accuracy " in out
    code, again, err = segkit(
        "evaluate", "run/model.safetensors", "--images", "images", "--labels", "labels", "-o", "m.json"
    )
    assert code == 0
    assert err == "warning: these labels also trained the model (labels/a.tif), so the scores are too good\n"
    assert "cleared" in again
    assert [line.split()[:4] for line in again.splitlines() if "worst" in line] == [["worst", "of", "2", "scenes"]]
    assert again.endswith("\nm.json\n")
    assert json.loads((place / "m.json").read_text())["pixels"] > 10_000
    code, out, err = segkit("predict", "run/model.safetensors", "images/a.tif", "-o", "map.tif", "--vector", "v.gpkg")
    assert (code, err) == (0, "")
    assert out.startswith("map.tif\npolygons v.gpkg\n")
    assert "Mpx/s" in out
    assert re.search(r"unlike the training data .*: [\d.< ]+ % of a sample of the map's pixels", out)
    code, _, err = segkit("evaluate", "map.tif", "--labels", "labels/a.tif", "--ignore", "255")
    assert err == "warning: these labels also trained the model (labels/a.tif), so the scores are too good\n"
    more = ("--applicability", "index.tif", "--uncertainty", "entropy", "--uncertainty", "margin")
    code, out, err = segkit("predict", "run/model.safetensors", "images/a.tif", "-o", "more.tif", *more)
    assert (code, err) == (0, "")
    assert re.search(r"unlike the training data .*: [\d.< ]+ % of the map's pixels", out)
    assert out.startswith("more.tif\napplicability index.tif\nuncertainty more_uncertainty.tif\n")
    with rasterio.open(place / "more_uncertainty.tif") as uncertainty:
        assert uncertainty.descriptions == ("entropy", "1 - margin")
    code, out, err = segkit("vectorize", "map.tif", "out.shp", "--background")
    assert (code, err) == (0, "")
    assert "background" in out
    assert {"map.tif", "v.gpkg", "out.shp"} <= {path.name for path in place.iterdir()}


def test_a_check_that_finds_a_problem_fails(segkit, place):
    shifted(place)
    code, out, _ = segkit("check", "recipe.yaml")
    assert code == 1
    assert "is on another grid" in out


def test_a_check_with_a_picture(segkit, place):
    code, out, _ = segkit("check", "recipe.yaml", "--picture", "p.png")
    assert code == 0
    assert out.endswith("\npicture p.png\n")
    assert (place / "p.png").read_bytes().startswith(b"\x89PNG")
    shifted(place)
    code, _, err = segkit("check", "recipe.yaml", "--picture", "p.png")
    assert (code, err.count("\n")) == (2, 1)
    assert "p.png is there already; add --overwrite" in err
    code, out, _ = segkit("check", "recipe.yaml", "--picture", "p.png", "--overwrite")
    assert code == 1  # the picture says so, too
    assert out.endswith("\npicture p.png\n")


def test_a_comparison_is_a_table_and_a_matrix(segkit, place, monkeypatch):
    skip_measurements(monkeypatch.setattr)
    skip_pictures(monkeypatch.setattr)
    command = ("compare", "recipe.yaml", "-o", "both", "--heads", "softmax,sigmoid", "--seeds", "1")
    code, out, err = segkit(*command)
    assert code == 0
    assert "training 1 of 2, both/softmax/seed1" in err
    table, matrix, files = out.split("\n\n")
    header = "variant n mean IoU +- F1 +- accuracy +- seconds +- CPU seconds +-"
    assert " ".join(table.split("\n")[0].split()) == header
    rows = [line.split() for line in table.split("\n")[1:]]
    assert [row[:2] for row in rows] == [["softmax", "1"], ["sigmoid", "1"]]
    assert all(row[3::2] == ["-"] * 5 for row in rows)  # one training has no spread
    shares = [line.split() for line in matrix.split("\n")[1:]]
    assert shares[0] == ["softmax", "sigmoid"]
    assert shares[1][2] == shares[2][1]
    assert shares[1][2].endswith("%")
    assert files == "table both/compare.csv\npicture both/compare.png\n"
    code, again, err = segkit(*command)
    assert (code, again) == (0, out)
    assert err == "".join(
        f"training {number} of 2, both/{head}/seed1: already finished\n"
        for number, head in enumerate(("softmax", "sigmoid"), 1)
    )


def test_several_dates_are_one_scene_to_evaluate(segkit, place):
    model = segmenter(place, bands=6)
    model.band_names = tuple("123456")  # as of files that do not name their bands
    model.save(place / "two.safetensors")
    (place / "images/later.tif").write_bytes((place / "images/a.tif").read_bytes())
    dates = ["--images", "images/a.tif", "--images", "images/later.tif", "--labels", "labels/a.tif"]
    code, out, err = segkit("evaluate", "two.safetensors", "--stack", *dates)
    assert code == 0
    assert err == "warning: these labels also trained the model (labels/a.tif), so the scores are too good\n"
    assert "pixels 8,8" in out  # one scene of 96 x 93 known pixels, less the no-data corner
    code, _, err = segkit("evaluate", "two.safetensors", *dates)
    assert code == 1
    assert "has 3 bands" in err


def test_what_has_no_partner_is_reported(segkit, place):
    (place / "labels/b.tif").unlink()
    code, _, err = segkit("evaluate", "model.safetensors", "--images", "images", "--labels", "labels")
    assert code == 0
    assert "evaluate: 1 of 2 files have no matching image or label and are not used, such as images/b.tif" in err


def test_the_cache_is_shown_and_cleared(segkit, place, monkeypatch):
    monkeypatch.setenv("SEGKIT_CACHE", str(place / "kept"))
    assert segkit("cache") == (0, f"{place / 'kept'}: 0 entries, 0 GB\n", "")
    (place / "kept" / "one").mkdir(parents=True)
    (place / "kept" / "one" / "pixels.npy").write_bytes(bytes(2_000_000))
    assert segkit("cache") == (0, f"{place / 'kept'}: 1 entries, 0.002 GB\n", "")
    code, out, _ = segkit("cache", "--clear")
    assert (code, out) == (0, f"removed 1 entries, 0.002 GB\n{place / 'kept'}: 0 entries, 0 GB\n")


def test_the_version_and_the_help(segkit):
    from segkit.runtime.version import VERSION

    assert segkit("--version") == (0, f"segkit {VERSION}\n", "")
    code, out, said = segkit()
    assert (code, said) == (0, "")
    assert out.rstrip("\n") == segkit("--help")[1].rstrip("\n")
    listed = re.findall(r"^  ([a-z]+)  ", out, flags=re.MULTILINE)
    assert set(listed) == {command.split()[0] for command in cli._commands()}
    assert len(listed) == len(set(listed))


def test_a_warning_is_one_line(segkit, place):
    write_raster(place / "map.tif", np.ones((4, 4), np.uint8), crs=None)
    said = subprocess.run(
        [sys.executable, "-m", "segkit.cli", "vectorize", "map.tif", "out.gpkg"],
        cwd=place,
        capture_output=True,
        text=True,
        check=True,
    )
    progress = ("vectorize: ", "segkit: loading libraries")
    (line,) = (line for line in said.stderr.splitlines() if not line.startswith(progress))
    assert line.startswith("segkit: warning: map.tif: area_ha and perim_m are empty")


def test_a_log_entry_that_cannot_be_decoded_is_not_printed(segkit, place):
    """GDAL logs a bad number of the CRS, which rasterio cannot decode."""
    rasterio.shutil.copy(
        write_raster(place / "a.tif", np.ones((4, 4), np.uint8), crs="EPSG:32622"), place / "a.dat", driver="ENVI"
    )
    header = place / "a.hdr"
    header.write_bytes(header.read_bytes().replace(b'Origin",0.0', b'Origin",0\xae0'))
    code, _, said = segkit("info", "a.dat")
    assert "decode" not in said
    assert code == 0


# A command that writes, and goes on until it is ended.
WAITS = """
import time
from segkit.cli import app as cli
from segkit.io.files import atomic_write

@cli.app.command()
def wait(path: str) -> None:
    with atomic_write(path) as part:
        part.write_text("half")
        print("at work", flush=True)
        for _ in range(600):  # a signal that comes just before one long sleep would be handled after it
            time.sleep(0.1)

cli.main()
"""


def waiting(target, **options):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, "wait", target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout.readline() == "at work\n"
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_ends_a_command_and_leaves_nothing_half_written(tmp_path, name, code):
    process = waiting(tmp_path / "map.tif")
    process.send_signal(getattr(signal, name))
    if code != 130:
        process.send_signal(getattr(signal, name))  # the shell of a closed terminal sends it once more
    said = process.communicate(timeout=30)[1]
    what = "interrupted" if code == 130 else f"ended by {name}"
    assert process.returncode == code, said
    assert said == f"segkit: {what}; no partial output is left\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_a_signal_that_is_ignored_stays_so(tmp_path):
    process = waiting(tmp_path / "map.tif", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))  # nohup
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.terminate()
    assert "ended by SIGTERM" in process.communicate(timeout=30)[1]


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_handlers_of_a_host_process_stay(segkit):
    def own(*_):
        pass

    before = signal.signal(signal.SIGTERM, own)
    hangup = signal.getsignal(signal.SIGHUP)
    try:
        segkit("cache")
        assert signal.getsignal(signal.SIGTERM) is own
        assert signal.getsignal(signal.SIGHUP) == hangup
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(sys.platform == "win32", reason="no shell")
def test_with_closed_streams_errors_are_reported_and_no_file_gets_their_place(tmp_path):
    closed = (
        "import os, sys; from segkit.cli import app as cli; cli._open_streams(); print(open(os.devnull).fileno() > 2)"
    )
    for streams in ("2>&-", "0<&- 2>&-"):
        done = subprocess.run(
            f'"{sys.executable}" -c "{closed}" {streams}', shell=True, capture_output=True, text=True, check=True
        )
        assert done.stdout == "True\n"
    command = f'"{sys.executable}" -m segkit.cli vectorize "{tmp_path}/none.tif" "{tmp_path}/none/o.gpkg"'
    done = subprocess.run(f"{command} 2>&-", shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.splitlines()[-1].startswith(f"segkit: {tmp_path}/none/o.gpkg: its folder")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "a.tif"), "a.tif: No space left on device"),
        (MemoryError(), "not enough memory; free some"),
        (ImportError("x.so: failed to map segment from shared object"), "not enough memory (x.so: failed"),
        (RuntimeError("can't start new thread"), "not enough memory (can't"),
        (UnicodeEncodeError("ascii", "ä", 0, 1, "no"), "is not in the encoding of this locale"),
        (KeyError("a"), "unexpected KeyError: 'a'; run again with --debug"),
    ],
)
def test_only_what_is_a_fault_of_the_program_is_unexpected(error, message):
    said = cli._unforeseen(error)
    assert message in said
    assert ("unexpected" in said) == isinstance(error, KeyError)


def outputs_that_meet(place):
    """{command: its arguments, with one name for two things}."""
    (place / "sub").mkdir()
    write_raster(place / "map.tif", np.eye(8, dtype=np.uint8))
    write_raster(place / "other.tif", np.eye(8, dtype=np.uint8))
    (place / "points.csv").write_text("")
    (place / "scores.json").write_text("{}")
    evaluate = ("evaluate", "model.safetensors", "--images", "images", "--labels", "labels", "--overwrite")
    return {
        "to the same file": [
            ("change", "map.tif", "other.tif", "-o", "x.tif", "--table", "sub/../x.tif"),
            ("predict", "model.safetensors", "images/a.tif", "-o", "x.tif", "--confidence", "x.tif"),
            ("predict", "model.safetensors", "images/a.tif", "-o", "x.tif", "--vector", "x.tif.bands"),
            ("assess", "estimate", "map.tif", "points.csv", "-o", "x.csv", "-o", "./x.csv"),
        ],
        "is an input": [
            ("change", "map.tif", "other.tif", "-o", "sub/../map.tif", "--overwrite"),
            ("predict", "model.safetensors", "images/a.tif", "-o", "x.tif", "--aoi", "x.gpkg", "--vector", "x.gpkg"),
            ("vectorize", "map.tif", "x.gpkg", "--class-names", "x.gpkg"),
            (*evaluate, "-o", "images/a.tif"),
            (*evaluate, "-o", "labels/b.tif"),
            (*evaluate, "-o", "model.safetensors"),
            ("check", "recipe.yaml", "--picture", "labels/a.tif", "--overwrite"),
            ("check", "recipe.yaml", "--picture", "recipe.yaml", "--overwrite"),
            ("assess", "design", "map.tif", "-o", "x.gpkg", "--class-names", "x.gpkg", "-n", "9"),
            ("assess", "estimate", "map.tif", "points.csv", "-o", "points.csv", "--overwrite"),
            ("train", "recipe.yaml", "-o", ".", "--overwrite", "--set", "train.epochs=2"),
            (
                "compare",
                "recipe.yaml",
                "-o",
                ".",
                "--set",
                "data.val.by=polygon",
                "--set",
                "data.val.polygons=compare.csv",
            ),
            ("report", "map.tif", "-o", "x.html", "--class-names", "x.html"),
            ("report", "map.tif", "--png", "sub", "--images", "sub/a.png"),
        ],
    }


def test_info_writes_an_item_only_where_it_may(segkit, place):
    assert segkit("info", "model.safetensors", "--stac", "m.json")[0] == 0
    before = (place / "m.json").read_bytes()
    for words, options in (
        ("is there already; add --overwrite", ("--stac", "m.json")),
        ("none is written (--stac)", ("--overwrite",)),
        ("ends in .json", ("--stac", "m.txt")),
    ):
        code, out, said = segkit("info", "model.safetensors", *options)
        assert (code, out) == (2, "")
        assert words in said
        assert said.count("\n") == 1
    assert (place / "m.json").read_bytes() == before
    code, out, _ = segkit("info", "model.safetensors", "--stac", "m.json", "--overwrite", "--json")
    assert (code, json.loads(out)["stac"]) == (0, "m.json")


def test_every_command_refuses_one_name_for_two_things(segkit, place):
    cases = outputs_that_meet(place)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    for words, commands in cases.items():
        for command in commands:
            code, out, said = segkit(*command)
            if "x.tif.bands" in command:
                assert code == 2, command
                continue
            assert (code, out) == (2, ""), (command, said)
            assert words in said, (command, said)
            assert said.count("\n") == 1, (command, said)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


CHOICE = {"tile": 64, "overlap": 8, "ramp": 8, "fixed": False, "tta": None, "compiled": False}


@pytest.mark.parametrize(
    ("precision", "agreement", "line"),
    [
        ("fp32", 0.99774, "fp32 (bf16 would change 0.226 % of the pixels)"),
        ("fp32", 0.0, "fp32 (bf16 would change 100 % of the pixels)"),
        ("bf16", 0.999959, "bf16 (0.0041 % of the pixels differ from fp32)"),
        ("bf16", 1.0, "bf16 (0 % of the pixels differ from fp32)"),
        ("fp32", None, "fp32"),
    ],
)
def test_a_summary_says_what_bf16_changes_and_a_speed(capsys, tmp_path, precision, agreement, line):
    summary = Summary(
        tmp_path / "map.tif", {"water": 5}, None, 5, 1, 0, 4.0, 0.0004096, None,
        ResolvedSettings(**CHOICE, precision=precision, agreement=agreement),
    )  # fmt: skip
    print_summary(summary)
    out = capsys.readouterr().out.splitlines()
    assert f"tile 64, overlap 8, {line}" in out
    assert "4.0 s, 0.00041 Mpx/s" in out


@pytest.mark.parametrize(("old", "new"), RENAMED_OPTIONS.items())
def test_a_renamed_option_works_with_a_hint(monkeypatch, old, new):
    commands = [name.split() for name in cli._commands() if new in cli._options(name.split())]
    assert commands
    for command in commands:
        for form in ([old, "x"], [f"{old}=x"]):
            hints = []
            monkeypatch.setattr(cli, "_warn", hints.append)
            assert cli._with_new_names([*command, *form], cli._options(command)) == [
                *command,
                form[0].replace(old, new),
                *form[1:],
            ]
            assert hints == [f"{old} is now called {new}; the old name goes with segkit 0.4"]
            monkeypatch.undo()
    assert cli._with_new_names(["demo", old], cli._options(["demo"])) == ["demo", old]
    assert all(old not in cli._options(command) for command in commands)


def test_every_command_shows_examples(segkit):
    for command in sorted(cli._commands() - {"assess"}):
        _, out, _ = segkit(*command.split(), "--help")
        shown = out.partition("Examples:\n")[2].split("\n")
        assert all(line.strip().startswith(f"segkit {command}") for line in shown if line.strip()), out
        assert shown[0].strip()
