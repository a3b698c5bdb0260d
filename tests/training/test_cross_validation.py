import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from synthetic import recipe_for, write_pairs
from trainings import SCORES, TrainingStandIn
from typer.testing import CliRunner

from segkit.cli import app as cli
from segkit.data.areas import with_fold
from segkit.errors import OutputExistsError, SegkitError
from segkit.models.ensemble import Ensemble, load_model
from segkit.recipe.schema import Recipe
from segkit.training.baselines import BASELINE_SCORES
from segkit.training.callbacks import ProgressCallback
from segkit.training.cross_validation import cross_validate
from segkit.training.train import _callbacks

BLOCKS = {"val": {"fraction": 0.25, "block": 16, "gap": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of two binary scenes."""
    return write_pairs(tmp_path_factory, height=64, width=48)["binary"]


@pytest.fixture
def training(monkeypatch):
    stand_in = TrainingStandIn()
    monkeypatch.setattr("segkit.training.trials.train", stand_in)
    return stand_in


def test_every_fold_is_trained_on_the_rest(folder, tmp_path, training):
    recipe = recipe_for(folder, "binary", data=BLOCKS)
    result = cross_validate(recipe, tmp_path / "out", folds=3)
    assert training.again() == [(f"out/fold{number}of3", False) for number in range(3)]
    for number, fold in enumerate(result.folds):
        assert Recipe.load(fold.trial.folder / "recipe.yaml") == with_fold(recipe, f"{number}/3")
        assert fold.baselines == fold.trial.metrics["baselines"]
    ensemble = load_model(result.folder)
    assert isinstance(ensemble, Ensemble)
    assert {one.path.parent for one in ensemble.members} == {fold.trial.folder for fold in result.folds}


def test_every_fold_starts_from_the_same_model(folder, tmp_path, training, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = recipe_for(folder, "binary", data=BLOCKS)
    result = cross_validate(recipe, tmp_path / "out", folds=2, start_from="source.safetensors")
    assert len(result.folds) == 2
    for fold in result.folds:
        stored = Recipe.load(fold.trial.folder / "recipe.yaml")
        assert stored.model.start_from == str(tmp_path / "source.safetensors")


def test_the_table_has_mean_spread_and_worst_of_the_folds(folder, tmp_path, training):
    result = cross_validate(recipe_for(folder, "binary", data=BLOCKS), tmp_path / "out", folds=4)
    stored = json.loads((tmp_path / "out/folds.json").read_text())
    with (tmp_path / "out/folds.csv").open(newline="") as file:
        table = {row.pop("fold"): row for row in csv.DictReader(file)}
    assert list(table) == ["0/4", "1/4", "2/4", "3/4", "mean", "spread", "worst"]
    for key in SCORES:
        scores = [json.loads((tmp_path / f"out/fold{n}of4/metrics.json").read_text())[key] for n in range(4)]
        baselines = [fold.baselines["lda"][key] for fold in result.folds]
        for name, values in ((key, scores), (f"lda_{key}", baselines)):
            summary = {"mean": np.mean(values), "spread": np.std(values, ddof=1), "worst": min(values)}
            assert [float(row[name]) for row in table.values()] == pytest.approx([*values, *summary.values()])
            assert [fold[name] for fold in stored["folds"]] == values
            assert stored["summary"][name] == pytest.approx(summary)
            assert all(f"{value:.4f}" in result.render() for value in [*values, *summary.values()])
    assert [fold["folder"] for fold in stored["folds"]] == [f"fold{n}of4" for n in range(4)]


def test_the_table_has_the_baselines_of_the_recipe(folder, tmp_path, training):
    """A run of an earlier version has the name linear_discriminant; a learner that is in no metrics has no scores."""
    chosen = recipe_for(folder, "binary", data=BLOCKS, train={"baselines": ["forest", "lda"]})
    cross_validate(chosen, tmp_path / "out", folds=2)
    for number in range(2):
        file = tmp_path / f"out/fold{number}of2/metrics.json"
        metrics = json.loads(file.read_text())
        file.write_text(json.dumps(metrics | {"baselines": {"linear_discriminant": metrics["baselines"]["lda"]}}))
    again = cross_validate(chosen, tmp_path / "out", folds=2)
    for fold in again.folds:
        found = fold.trial.metrics["baselines"]["linear_discriminant"]
        assert fold.baselines == {"forest": dict.fromkeys(SCORES), "lda": found}
    lines = again.render().splitlines()
    assert all(f"{learner} {title}" in lines[0] for learner in ("forest", "lda") for title in ("accuracy", "F1"))
    assert lines[-2:] == [
        "forest: random forest of single pixels, for comparison",
        "lda: linear discriminant of single pixels, for comparison",
    ]
    plain = recipe_for(folder, "binary", data=BLOCKS, train={"baselines": []})
    assert list(cross_validate(plain, tmp_path / "plain", folds=2).measures) == list(BASELINE_SCORES)


@pytest.mark.parametrize("folds", [3, 12])
def test_the_scores_of_all_folds_together_are_those_of_all_pixels(folder, tmp_path, training, folds):
    """Oracle: the summed matrices; the interval of accuracy is near that of the normal approximation for a ratio."""
    result = cross_validate(recipe_for(folder, "binary", data=BLOCKS), tmp_path / "out", folds=folds)
    matrices = np.array([fold.trial.metrics["confusion"]["matrix"] for fold in result.folds])
    total, correct = matrices.sum(axis=(1, 2)), np.trace(matrices, axis1=1, axis2=2)
    accuracy = correct.sum() / total.sum()
    pooled = json.loads((tmp_path / "out/folds.json").read_text())["pooled"]
    assert pooled["overall_accuracy"] == pytest.approx(accuracy)
    assert pooled["confusion"]["matrix"] == matrices.sum(axis=0).tolist()
    background, one = (matrices.sum(axis=0)[k, k] for k in range(2))
    assert pooled["mean_iou"] == pytest.approx(
        np.mean([hit / (total.sum() - other) for hit, other in ((background, one), (one, background))])
    )
    assert f"all folds together: accuracy {accuracy:.4f}" in result.render()
    if folds < 10:
        assert pooled["intervals"] is None
        return
    low, high = pooled["intervals"]["overall_accuracy"]
    half = 1.96 * np.sqrt(((correct - accuracy * total) ** 2).sum()) / total.sum()
    assert [low, high] == pytest.approx([accuracy - half, accuracy + half], abs=0.2 * half)
    assert f"({low:.4f} to {high:.4f})" in result.render()


def test_a_score_that_is_undefined_in_a_fold_is_left_out(folder, tmp_path, training):
    recipe = recipe_for(folder, "binary", data=BLOCKS)
    cross_validate(recipe, tmp_path / "out", folds=2)
    metrics = tmp_path / "out/fold0of2/metrics.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"mean_iou": None}))
    again = cross_validate(recipe, tmp_path / "out", folds=2)
    assert again.measures["mean_iou"].values == (again.folds[1].trial.metrics["mean_iou"],)
    assert "-" in again.render().splitlines()[1].split()
    with (tmp_path / "out/folds.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["mean_iou"] == ""


def test_the_worst_scene_of_all_folds_is_told(folder, tmp_path, training):
    recipe = recipe_for(folder, "binary", data=BLOCKS)
    without = cross_validate(recipe, tmp_path / "out", folds=3)
    assert "worst of" not in without.render()
    assert json.loads((tmp_path / "out/folds.json").read_text())["worst_scene"] is None
    scores = {"mean_iou": 0.5, "macro_f1": 0.6, "ece": 0.1, "pixels": 4000}
    accuracies = [(0.9, 0.5), (0.4, 3.25), (0.8, 1.0)]
    for number, given in enumerate(accuracies):
        file = tmp_path / f"out/fold{number}of3/metrics.json"
        scenes = [
            {"scene": f"{name}{number}", "overall_accuracy": accuracy, "distance": distance} | scores
            for name, (accuracy, distance) in zip("pq", (given, (0.95, 0.1 * number)), strict=True)
        ]
        file.write_text(json.dumps(json.loads(file.read_text()) | {"scenes": scenes}))
    result = cross_validate(recipe, tmp_path / "out", folds=3)
    said = "worst of 6 scenes: p1 (accuracy 0.4000, mean IoU 0.5000, 4,000 pixels, distance 3.2), fold 1/3"
    assert said in result.render().splitlines()
    found = spearmanr([0.9, 0.95, 0.4, 0.95, 0.8, 0.95], [0.5, 0, 3.25, 0.1, 1, 0.2]).statistic
    assert f"rank correlation of accuracy and distance: {found:.2f} (6 scenes)" in result.render().splitlines()
    stored = json.loads((tmp_path / "out/folds.json").read_text())
    assert stored["worst_scene"] == {"scene": "p1", "overall_accuracy": 0.4, "distance": 3.25, "fold": "1/3"} | scores
    assert [(one["scene"], one["fold"]) for one in stored["scenes"]] == [
        (f"{name}{number}", f"{number}/3") for number in range(3) for name in "pq"
    ]


def test_what_is_finished_is_not_trained_again(folder, tmp_path, training, capsys):
    recipe, out = recipe_for(folder, "binary", data=BLOCKS), tmp_path / "out"
    training.stop_at = 2
    with pytest.raises(KeyboardInterrupt, match="epochs are kept; run the same command again to continue"):
        cross_validate(recipe, out, folds=3)
    training.again()
    assert not (out / "folds.json").exists()
    training.stop_at = None
    first = cross_validate(recipe, out, folds=3, show_progress=True)
    assert training.again() == [("out/fold1of3", True), ("out/fold2of3", False)]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fold ")]
    expected = ["0/3, {}/fold0of3: already finished", "1/3, {}/fold1of3", "2/3, {}/fold2of3"]
    assert said == [f"fold {line.format(out)}" for line in expected]
    assert cross_validate(recipe, out, folds=3) == first
    assert training.again() == []
    other = recipe_for(folder, "binary", data=BLOCKS, train={"epochs": 9})
    with pytest.raises(OutputExistsError, match="fold0of3: holds a run of another recipe"):
        cross_validate(other, out, folds=3)
    cross_validate(other, out, folds=3, overwrite=True)
    assert len(training.again()) == 3


def test_all_folds_are_extended(folder, tmp_path, training):
    """Also when the extension is interrupted: the models of fewer epochs are not taken for the new ones."""
    recipe, out = recipe_for(folder, "binary", data=BLOCKS), tmp_path / "out"
    cross_validate(recipe, out, folds=2)
    longer = recipe_for(folder, "binary", data=BLOCKS, train={"epochs": 9})
    with pytest.raises(OutputExistsError, match=r"holds a run of another recipe; .* \(-o\); extend it \(--resume\)"):
        cross_validate(longer, out, folds=2)
    other = recipe_for(folder, "binary", data=BLOCKS, train={"epochs": 9, "batch_size": 2})
    with pytest.raises(OutputExistsError, match=r"holds a run of another recipe; .* \(-o\)$"):
        cross_validate(other, out, folds=2, resume=True)
    training.again()
    training.stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        cross_validate(longer, out, folds=2, resume=True)
    training.stop_at = None
    assert training.again() == [("out/fold0of2", True)]
    cross_validate(longer, out, folds=2, resume=True)
    assert training.again() == [("out/fold0of2", True), ("out/fold1of2", True)]
    cross_validate(longer, out, folds=2)
    assert training.again() == []


REFUSED = {
    "one fold": ({}, {"folds": 1}, "folds is 1; a cross-validation has 2 or more"),
    "several devices": ({"train": {"devices": 2}}, {}, "all folds in one call are trained on one device"),
    "few scenes": ({"data": {"val": {"by": "appearance"}}}, {"folds": 3}, "fold 0/3: data.val: 2 scenes (or groups"),
    "unknown loss": ({"train": {"loss": {"hinge": 1.0}}}, {}, "train.loss: 'hinge' is not known"),
}


@pytest.mark.parametrize(("changes", "options", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_is_refused_before_anything_is(folder, tmp_path, training, changes, options, said):
    with pytest.raises(SegkitError) as refused:
        cross_validate(recipe_for(folder, "binary", **changes), tmp_path / "out", **{"folds": 2} | options)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)
    assert not training.calls
    assert not (tmp_path / "out").exists()


def test_one_fold_of_all_is_refused(tmp_path):
    result = CliRunner().invoke(cli.app, ["train", str(tmp_path / "r.yaml"), "--folds", "2", "--fold", "0/2"])
    assert result.exit_code == 2
    assert "all with --folds" in " ".join(result.output.replace("│", "").split())


@pytest.mark.parametrize(("fold", "start"), [(None, "epoch 2/2  loss 0.5"), ("1/3", "fold 1/3, epoch 2/2  loss 0.5")])
def test_each_line_of_an_epoch_tells_the_fold(folder, tmp_path, capsys, fold, start):
    recipe = recipe_for(folder, "binary")
    callbacks = _callbacks(tmp_path, recipe if fold is None else with_fold(recipe, fold), "fp32", show_progress=True)
    [shown] = [one for one in callbacks if isinstance(one, ProgressCallback)]
    shown.on_train_epoch_end(SimpleNamespace(current_epoch=1, callback_metrics={"loss": torch.tensor(0.5)}), None)
    assert capsys.readouterr().err.startswith(start)
