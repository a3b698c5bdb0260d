import json
import os
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import fork_server
import lightning.pytorch as lightning
import numpy as np
import pytest
import rasterio
import segkit_command
import torch
import yaml
from killing import forked, unix
from lightning.pytorch.callbacks import ModelCheckpoint
from quick import skip_measurements, skip_pictures
from safetensors.torch import load_file
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score
from synthetic import place, read_whole, recipe_for, segmenter, write_pair, write_pairs, write_raster

from segkit.data.area import full_areas, read_tiles
from segkit.data.areas import open_areas, with_fold
from segkit.data.datasets import TrainDataset
from segkit.data.pairing import open_samples
from segkit.data.statistics import Statistics
from segkit.errors import DataError, OutputExistsError, RecipeError, TrainingError, UsageError
from segkit.evaluation.calibration import CalibrationFit
from segkit.evaluation.decisions import ModelPredictor
from segkit.evaluation.evaluate import evaluate
from segkit.inference.predict import predict
from segkit.models.model_file import read_header
from segkit.models.run_folder import read_log
from segkit.models.segmenter import Segmenter, load
from segkit.recipe.schema import Recipe
from segkit.task import IGNORE
from segkit.training import callbacks
from segkit.training.baselines import BASELINE_SCORES, fit_baseline
from segkit.training.callbacks import EpochLog, StopOnNonFinite
from segkit.training.classical import fit_learners
from segkit.training.fitting import _quiet_lightning
from segkit.training.losses import LOSSES
from segkit.training.module import TrainingModule
from segkit.training.train import train

KINDS = ["binary", "multiclass", "multilabel"]
LONG = {"epochs": 3, "steps_per_epoch": 20}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """{kind: folder of two scenes}."""
    return write_pairs(tmp_path_factory)


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """{kind: a finished run}, with all measurements and pictures (see conftest.py)."""
    folder = tmp_path_factory.mktemp("runs")
    return {kind: train(recipe_for(data[kind], kind, train=LONG), folder / kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_separable_classes_are_learned_in_seconds(runs, kind):
    assert runs[kind].metrics["mean_iou"] > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_holds_all_that_was_learned(runs, data, kind):
    run, recipe = runs[kind], recipe_for(data[kind], kind, train=LONG)
    names = {"model.safetensors", "metrics.json", "log.csv", "curves.png", "worst.png", "recipe.yaml", "checkpoints"}
    assert {path.name for path in run.folder.iterdir()} == names
    for picture in ("curves.png", "worst.png"):
        assert (run.folder / picture).read_bytes().startswith(b"\x89PNG")
    assert Recipe.load(run.folder / "recipe.yaml") == recipe
    log = read_log(run.folder / "log.csv")
    assert [row["epoch"] for row in log] == [1, 2, 3]
    assert log[-1]["loss"] < log[0]["loss"]
    assert json.loads((run.folder / "metrics.json").read_text()) == run.metrics == read_header(run.model).metrics
    targets = [targets for _, targets, _ in read_tiles(open_areas(recipe)[0])]
    assert run.metrics["labelled_pixels"] == sum(int((one != IGNORE).sum()) for one in targets)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_the_linear_discriminant_are_beside_those_of_the_network(runs, data, tmp_path, kind):
    """They are those of a model of its own with the same recipe."""
    recipe = recipe_for(data[kind], kind)
    recipe = Recipe.from_dict(recipe.to_dict() | {"model": {"architecture": "lda"}})
    expected = train(recipe, tmp_path / "lda").metrics
    for found in (runs[kind].metrics["baselines"], expected["baselines"]):
        assert found == {"lda": {key: expected[key] for key in BASELINE_SCORES}}


@pytest.mark.parametrize("worse", [True, False])
def test_a_network_that_is_not_better_than_the_discriminant_is_warned_of(data, tmp_path, capsys, monkeypatch, worse):
    """The discriminant separates these classes."""
    if not worse:
        wrong = {"lda": dict.fromkeys(BASELINE_SCORES, 0.0)}
        monkeypatch.setattr("segkit.training.results.score_baselines", lambda *_: wrong)
    recipe = recipe_for(data["binary"], "binary", train={"epochs": 1, "steps_per_epoch": 1, "learning_rate": 1e-9})
    train(recipe, tmp_path / "run", show_progress=True)
    assert ("is not better than the linear discriminant of single pixels" in capsys.readouterr().err) == worse


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_those_of_the_model_on_the_validation_blocks(runs, data, kind):
    """Oracle: one forward pass over each whole scene, and scikit-learn."""
    model = load(runs[kind].model)
    task, decided, true = model.task, [], []
    for area in open_areas(recipe_for(data[kind], kind))[1]:
        window = area.sample.scene.grid.full_window
        tile, targets = area.sample.scene.read(window), area.labels.read(window)
        counted = np.zeros(tile.valid.shape, dtype=bool)
        for block in area.windows:
            counted[block.toslices()] = True
        with torch.inference_mode():
            logits = model(torch.from_numpy(tile.pixels[None]), torch.from_numpy(tile.valid[None]))
        found = task.decide(task.probabilities(logits))[0].numpy()
        here = counted & tile.valid & (targets != IGNORE).all(axis=0)
        decided.append(found[:, here])
        true.append(targets[:, here])
    decided, true = np.concatenate(decided, axis=1), np.concatenate(true, axis=1)
    metrics, few = runs[kind].metrics, 2e-3  # pixels on the edge, where the machine computes in other numbers
    if kind == "multilabel":
        scores = jaccard_score(true.T, decided.T, average=None)
    else:
        scores = jaccard_score(true[0], decided[0], average=None)
        matrix = confusion_matrix(true[0], decided[0])
        np.testing.assert_allclose(metrics["confusion"]["matrix"], matrix, atol=few * true.size)
    assert metrics["pixels"] == true.size
    np.testing.assert_allclose([one["iou"] for one in metrics["per_class"].values()], scores, atol=2 * few)


@pytest.mark.parametrize("kind", ["binary", "multilabel"])  # a softmax, and sigmoids
def test_an_epoch_is_scored_as_the_run_and_as_evaluate(data, tmp_path, kind):
    """Also where tiles are small against the network, whose strides come to 32 pixels here."""
    source, held = ({part: str(data[kind] / part / f"{name}.tif") for part in ("images", "labels")} for name in "ab")
    changes = {
        "data": {"train": source, "val": held},
        "model": {"encoder": "tu-resnet10t", "options": {"decoder_channels": [16, 8, 8, 8, 8]}},
        "train": {"epochs": 2, "steps_per_epoch": 4, "tile_size": 16, "checkpoint": "last", "fit_thresholds": False},
    }
    recipe = recipe_for(data[kind], kind, **changes)
    run = train(recipe, tmp_path / "run")
    last = read_log(run.folder / "log.csv")[-1]
    scores = evaluate(run.model, held["images"], held["labels"])
    for name, key in (("val_iou", "mean_iou"), ("val_f1", "macro_f1"), ("val_accuracy", "overall_accuracy")):
        # Sigmoids are calibrated each for itself, which moves what is decided.
        assert kind == "multilabel" or last[name] == pytest.approx(run.metrics[key], rel=1e-6)
        assert scores[key] == run.metrics[key]
    assert last["val_iou"] == pytest.approx(run.metrics["mean_iou_uncalibrated"], rel=1e-6)


def test_tiles_that_are_small_against_the_network_are_made_larger_with_a_warning(data, tmp_path, monkeypatch, capsys):
    sizes, original = [], TrainDataset.__getitem__
    monkeypatch.setattr(TrainDataset, "__getitem__", lambda tiles, i: (sizes.append(tiles.size), original(tiles, i))[1])
    shown = {}
    for tile_size in (16, 32):  # the stride is 8
        recipe = recipe_for(data["binary"], "binary", train={"tile_size": tile_size, "epochs": 1, "steps_per_epoch": 1})
        run = train(recipe, tmp_path / str(tile_size), show_progress=True)
        shown[tile_size] = capsys.readouterr().err
        assert yaml.safe_load((run.folder / "recipe.yaml").read_text())["train"]["tile_size"] == tile_size
    assert set(sizes) == {32}
    assert (
        shown[16].count("warning: train.tile_size is 16, less than 4 strides of unet with tu-resnet10t (8 pixels") == 1
    )
    assert "Using tiles of 32 pixels" in shown[16]
    assert "tile_size" not in shown[32]


class _Crops:
    """Records the numbers of the crops that a training draws."""

    def __init__(self, monkeypatch):
        self.numbers, original = [], TrainDataset.__getitem__
        monkeypatch.setattr(
            TrainDataset, "__getitem__", lambda tiles, i: (self.numbers.append(i), original(tiles, i))[1]
        )


def test_every_epoch_draws_other_crops(data, tmp_path, monkeypatch):
    crops = _Crops(monkeypatch)
    train(recipe_for(data["binary"], "binary"), tmp_path / "run")
    assert sorted(crops.numbers) == list(range(2 * 3 * 4))  # epochs x steps x batch


def same_weights(one, other):
    mine, theirs = load_file(one), load_file(other)
    return mine.keys() == theirs.keys() and all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in mine)


def without_seconds(folder):
    return [row | {"seconds": 0} for row in read_log(folder / "log.csv")]


def interrupt(monkeypatch, epoch):
    """Press Ctrl-C when an epoch (counted from 0) begins."""

    def strike(log, trainer, module):
        if trainer.current_epoch == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(EpochLog, "on_train_epoch_start", strike)


PYRAMID = {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(data, tmp_path, monkeypatch):
    recipe = recipe_for(
        data["binary"],
        "binary",
        model={"architecture": "fpn", "options": PYRAMID},  # with dropout
        train={"epochs": 3, "early_stopping": 3, "tile_size": 64},
    )
    straight = train(recipe, tmp_path / "straight")
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "resumed")
        assert signal.getsignal(signal.SIGINT) is before  # not ignored for ever after
    assert {path.name for path in (tmp_path / "resumed").iterdir()} == {"checkpoints", "log.csv", "recipe.yaml"}
    crops = _Crops(monkeypatch)
    resumed = train(recipe, tmp_path / "resumed", resume=True)
    assert min(crops.numbers) == 2 * 3 * 4
    assert without_seconds(resumed.folder) == without_seconds(straight.folder)
    assert same_weights(resumed.model, straight.model)
    assert resumed.metrics == straight.metrics
    # What is finished may be resumed, too: nothing is left to do.
    assert train(recipe, tmp_path / "resumed", resume=True).metrics == straight.metrics
    assert without_seconds(resumed.folder) == without_seconds(straight.folder)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])  # a softmax, and sigmoids
def test_a_pixel_branch_averages_with_the_linear_discriminant(data, tmp_path, monkeypatch, kind):
    """The network trains as without it, the map is that of the mean of two models, and a resumed run ends the same."""
    settings = {"epochs": 2, "calibrate": False, "fit_thresholds": False, "checkpoint": "last"}
    plain = load(train(recipe_for(data[kind], kind, train=settings), tmp_path / "plain").model)
    recipe = recipe_for(data[kind], kind, train=settings, model={"pixel_branch": True})
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "run")
    with mock.patch("segkit.training.baselines.fit_learners", wraps=fit_learners) as fit:
        run = train(recipe, tmp_path / "run", resume=True)
    assert fit.call_count == 1  # for the branch and the baseline
    model = load(run.model)
    areas, _ = open_areas(recipe)
    counts = Statistics.from_areas(areas, recipe.task).counts
    discriminant = fit_baseline(plain, areas, counts)
    assert run.metrics["baselines"] == plain.metrics["baselines"]
    pixels, valid = torch.randn(2, 3, 40, 40) * 50 + 550, torch.rand(2, 40, 40) > 0.1
    with (
        torch.inference_mode(),
        mock.patch.object(Segmenter, "_normalize", autospec=True, side_effect=Segmenter._normalize) as normalize,
    ):
        probabilities = [model.task.probabilities(one(pixels, valid)) for one in (plain, discriminant, model)]
    assert normalize.call_count == 3
    torch.testing.assert_close(probabilities[2], (probabilities[0] + probabilities[1]) / 2, rtol=0, atol=1e-5)
    assert (probabilities[0] - probabilities[1]).abs().max() > 0.01
    assert run.metrics["mean_iou"] == pytest.approx(read_log(run.folder / "log.csv")[-1]["val_iou"])
    options = {"device": "cpu", "precision": "fp32"}
    [summary] = predict(model, data[kind] / "images/a.tif", tmp_path / "map.tif", **options)
    [expected] = predict([plain, discriminant], data[kind] / "images/a.tif", tmp_path / "expected.tif", **options)
    assert summary.pixels == expected.pixels


def kill_at(where, epoch):
    """Kill this process in the second step of an epoch, or before the epoch's last checkpoint is written."""

    def kill_before(owner, name, matches):
        original = getattr(owner, name)

        def replacement(self, *arguments, **options):
            trainer = self.trainer if owner is TrainingModule else arguments[0]
            if trainer.current_epoch == epoch and matches(self, trainer):
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, *arguments, **options)

        setattr(owner, name, replacement)

    if where == "step":
        kill_before(TrainingModule, "training_step", lambda module, trainer: trainer.global_step % 3 == 1)
    if where == "save":
        kill_before(ModelCheckpoint, "_save_checkpoint", lambda callback, trainer: callback.filename == "last")


def train_killed_twice(recipe, folder):
    """Run in a new process, which has imported everything but computed nothing, so that it may fork."""

    def run(where, epoch):
        kill_at(where, epoch)
        for skip in (skip_measurements, skip_pictures):
            skip(pytest.MonkeyPatch().setattr)
        train(recipe, folder, resume=Path(folder, "checkpoints/last.ckpt").exists(), overwrite=True)

    for where, epoch, code in (("step", 1, -signal.SIGKILL), ("save", 2, -signal.SIGKILL), ("never", 0, 0)):
        _, status = os.waitpid(forked(lambda: run(where, epoch)), 0)  # noqa: B023 - used at once
        assert os.waitstatus_to_exitcode(status) == code


@unix
def test_a_run_that_was_killed_twice_ends_as_one_that_was_not(data, tmp_path):
    """In the middle of the second epoch, and in the third after the best weights were written and before the last."""
    recipe = recipe_for(data["binary"], "binary", train={"epochs": 4})
    straight = train(recipe, tmp_path / "straight")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    fork_server.run(train_killed_twice, tmp_path / "recipe.yaml", tmp_path / "run")
    assert without_seconds(tmp_path / "run") == without_seconds(straight.folder)
    assert same_weights(tmp_path / "run/model.safetensors", straight.model)
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == straight.metrics


def test_ctrl_c_ends_the_command_with_one_line(data, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_for(data["binary"], "binary").to_dict()))
    process = segkit_command.start(tmp_path, "segkit", "train", "recipe.yaml", "-o", "run", "--set", "train.epochs=500")
    deadline = time.monotonic() + 600
    while not (tmp_path / "run/checkpoints/last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    process.join(600)
    assert process.exitcode == 130
    *epochs, last = (tmp_path / "stderr.txt").read_text().splitlines()
    assert all(line.startswith("epoch ") for line in epochs)
    done = int(torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["epoch"]) + 1
    command = "segkit train recipe.yaml -o run --set train.epochs=500 --resume"
    assert last == (
        f"segkit: interrupted; {done} of 500 epochs are finished and kept in run; to continue: {command}; "
        "to write a model now: segkit finish run"
    )


def test_resume_needs_a_run_of_the_same_recipe(data, tmp_path, runs):
    with pytest.raises(UsageError, match="holds no run to resume; start the training without --resume"):
        train(recipe_for(data["binary"], "binary"), tmp_path / "none", resume=True)
    with pytest.raises(RecipeError, match=r"train.seed was 0, now 1\); .*same recipe \(only train.epochs, "):
        train(
            recipe_for(data["binary"], "binary", train=LONG | {"seed": 1}),
            runs["binary"].folder,
            resume=True,
        )


def spoil(monkeypatch, step, what):
    """Let a training go wrong at a step (counted from 0)."""
    own = TrainingModule.training_step

    def spoiled(module, batch, number):
        loss = own(module, batch, number)
        if module.global_step != step:
            return loss
        if what == "the loss":
            return loss * torch.inf
        if what == "the norm of the gradients":
            weight = next(module.parameters())
            weight.register_hook(lambda gradient: torch.full_like(gradient, torch.nan))
        else:
            norm = next(one for one in module.modules() if isinstance(one, torch.nn.BatchNorm2d))
            norm.running_mean.data.fill_(torch.nan)  # which no loss in training shows
        return loss

    monkeypatch.setattr(TrainingModule, "training_step", spoiled)


WRONG = {"the loss": (3, 4, 5), "the norm of the gradients": (4,), "weights": (5,)}


@pytest.mark.parametrize(("what", "step"), [(what, step) for what, steps in WRONG.items() for step in steps])
def test_a_training_stops_where_numbers_are_not_finite_and_goes_on_with_a_lower_rate(
    data, tmp_path, monkeypatch, what, step
):
    """In the second epoch of three steps: the first one's checkpoint stays as it was."""
    recipe = recipe_for(data["binary"], "binary", train={"epochs": 3})
    kept = tmp_path / "run/checkpoints/last.ckpt"
    with monkeypatch.context() as patch:
        spoil(patch, step, what)
        with pytest.raises(TrainingError) as caught:
            train(recipe, tmp_path / "run")
    message = str(caught.value)
    place = "after the last step: the model holds " if what == "weights" else f"step {step - 2} of 3: {what} is "
    assert message.startswith(f"training stopped in epoch 2, {place}")
    assert "lower train.learning_rate (it is 0.01)" in message
    assert f"epoch 1 is kept in {kept}; " in message
    assert "and resume after epoch 1 (--resume)" in message
    assert "fp32" not in message  # which it is
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoints", "log.csv", "recipe.yaml"}
    for checkpoint in kept.parent.iterdir():
        assert torch.load(checkpoint, weights_only=True)["epoch"] == 0
    lower = recipe_for(data["binary"], "binary", train={"epochs": 3, "learning_rate": 0.004, "precision": "auto"})
    run = train(lower, tmp_path / "run", resume=True)
    assert Recipe.load(run.folder / "recipe.yaml") == lower
    rates = [row["learning_rate"] for row in read_log(run.folder / "log.csv")]
    straight = [0.01 * 0.5 * (1 + np.cos(np.pi * (done - 1) / 8)) for done in (3, 6, 9)]  # one step of nine warms up
    np.testing.assert_allclose(rates, np.array(straight) * [1, 0.4, 0.4], atol=1e-8)


def test_nothing_is_kept_of_a_first_epoch_that_goes_wrong(data, tmp_path):
    raw = recipe_for(data["binary"], "binary", train={"learning_rate": 1e30, "checkpoint": "last"}).to_dict()
    raw["data"]["val"] = None
    with pytest.raises(TrainingError, match=r"epoch 1, step 2 of 3: the loss is nan; .*no epoch was finished before"):
        train(Recipe.from_dict(raw), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]


def test_an_epoch_that_is_not_finite_is_not_resumed(data, tmp_path):
    recipe = recipe_for(data["binary"], "binary", train={"epochs": 1})
    last = train(recipe, tmp_path / "run").folder / "checkpoints/last.ckpt"
    stored = torch.load(last, weights_only=True)
    next(iter(stored["state_dict"].values())).fill_(torch.nan)
    torch.save(stored, last)
    with pytest.raises(TrainingError, match=r"cannot be resumed: it holds .* not finite .*; start again"):
        train(recipe, tmp_path / "run", resume=True)


@pytest.mark.parametrize(("scale", "stops"), [(65_536.0, False), (1.0, False), (2.0**-20, True)])
def test_steps_that_fp16_leaves_out_are_no_failure(data, tmp_path, scale, stops):
    """Its gradients are infinite where their scale is too large; the scaler leaves the step out and halves it."""
    module = TrainingModule(segmenter(tmp_path), None)
    module.gradient = torch.tensor(torch.inf)
    scaler = SimpleNamespace(get_scale=lambda: scale)
    trainer = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=scaler), is_last_batch=True, num_training_batches=1, current_epoch=0
    )
    trainer.lightning_module = module
    watch = StopOnNonFinite(tmp_path / "last.ckpt", "fp16")
    if not stops:
        watch.on_train_batch_end(trainer, module, {"loss": torch.ones(())}, None, 0)
        return
    with pytest.raises(TrainingError, match=r"gradients is inf; .* or set train.precision: fp32 \(it is fp16\)"):
        watch.on_train_batch_end(trainer, module, {"loss": torch.ones(())}, None, 0)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_not_overwritten_by_accident(data, runs):
    before = contents(runs["binary"].folder)
    with pytest.raises(
        OutputExistsError, match=r"holds a run already; continue it \(--resume\), or start again \(--overwrite\)"
    ):
        train(recipe_for(data["binary"], "binary"), runs["binary"].folder)
    assert contents(runs["binary"].folder) == before


def test_the_old_model_stays_until_there_is_a_new_one(data, tmp_path, monkeypatch):
    recipe = recipe_for(data["binary"], "binary", train={"epochs": 2, "steps_per_epoch": 1})
    run = train(recipe, tmp_path / "run")
    before = {name: (run.folder / name).read_bytes() for name in ("model.safetensors", "metrics.json", "curves.png")}
    other = recipe_for(data["binary"], "binary", train={"epochs": 2, "steps_per_epoch": 1, "seed": 1})
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            train(other, run.folder, overwrite=True)
    assert {name: (run.folder / name).read_bytes() for name in before} == before
    assert len(read_log(run.folder / "log.csv")) == 1
    train(other, run.folder, overwrite=True)
    assert run.model.read_bytes() != before["model.safetensors"]


def test_training_stops_when_nothing_gets_better_and_keeps_the_best(data, tmp_path):
    recipe = recipe_for(
        data["binary"],
        "binary",
        train={"epochs": 30, "steps_per_epoch": 1, "learning_rate": 1e-12, "early_stopping": 2},
    )
    run = train(recipe, tmp_path / "run")
    scores = [row["val_iou"] for row in read_log(run.folder / "log.csv")]
    assert len(scores) < 12
    assert scores.index(max(scores)) == len(scores) - 3
    best = torch.load(run.folder / "checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == len(scores) - 3
    # To resume, the last epoch is kept, too, though it is not better.
    assert torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)["epoch"] == len(scores) - 1
    for name, tensor in load_file(run.model).items():
        assert torch.equal(tensor, best["state_dict"][f"segmenter.{name}"])


# Bands, side of the scenes, type, and what says that there is no data: a declared value, or NaN that nothing declares.
ODD = {
    "spectrometer": (224, 20, np.float32, -32768),  # smaller than the network's stride
    "panchromatic": (1, 64, np.uint8, 0),
    "signed": (4, 64, np.int16, -9999),
    "reflectance": (4, 64, np.float32, None),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_imagery_is_learned(tmp_path, kind):
    """What holds no data (the top rows) is not decided; where one band holds none, a declared value is looked over.

    NaN that nothing declares is no number to decide from, and so no data.
    """
    bands, side, dtype, nodata = ODD[kind]
    for name in "abcd":
        random = np.random.default_rng(ord(name))
        truth = np.kron(random.permutation([0, 0, 1, 1]).reshape(2, 2), np.ones((side // 2, side // 2), dtype=np.uint8))
        scale = np.float32(1e-4) if nodata is None else 1 if dtype == np.uint8 else -20
        pixels = scale * (
            100 + 60 * truth * (np.arange(bands) % 2 == 0)[:, None, None] + random.normal(0, 8, (bands, side, side))
        )
        gone = np.nan if nodata is None else nodata
        pixels[:, :3] = gone
        if bands > 1:
            pixels[-1][random.random((side, side)) < 0.3] = gone
        shown = ~np.isnan(pixels).any(axis=0) & (pixels != gone).any(axis=0)
        write_raster(tmp_path / "images" / f"{name}.tif", pixels.astype(dtype), nodata=nodata, left=place(name))
        write_raster(tmp_path / "labels" / f"{name}.tif", 7 * truth, left=place(name))
    changes = {
        "data": {"val": {"by": "scene", "fraction": 0.25}},
        "train": {"epochs": 1, "steps_per_epoch": 30, "checkpoint": "last"},
    }
    if side < 32:  # the stride of five stages; the other scenes are learned faster with three
        changes["model"] = {"options": {"decoder_channels": [16, 8, 8, 8, 8]}}
    run = train(recipe_for(tmp_path, "binary", **changes), tmp_path / "run")
    assert run.metrics["mean_iou"] > 0.9
    assert run.metrics["pixels"] == pytest.approx(shown.sum(), rel=0.1 if nodata is None else 0)  # of another scene
    predict(run.model, tmp_path / "images/d.tif", tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as found:
        np.testing.assert_array_equal(found.read_masks(1) > 0, shown)


def test_the_last_weights_are_kept_where_the_recipe_says_so(data, tmp_path):
    run = train(recipe_for(data["binary"], "binary", train={"epochs": 3, "checkpoint": "last"}), tmp_path / "run")
    assert {path.name for path in (run.folder / "checkpoints").iterdir()} == {"last.ckpt"}
    last = torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)
    assert last["epoch"] == 2
    for name, tensor in load_file(run.model).items():
        assert torch.equal(tensor, last["state_dict"][f"segmenter.{name}"])
    assert run.metrics["pixels"] > 0


def test_all_scenes_may_train_and_none_validate(data, tmp_path, capsys):
    raw = recipe_for(data["binary"], "binary", train={"checkpoint": "last"}).to_dict()
    raw["data"]["val"] = None
    run = train(Recipe.from_dict(raw), tmp_path / "run", show_progress=True)
    assert (run.metrics["pixels"], run.metrics["mean_iou"]) == (0, None)
    assert set(read_log(run.folder / "log.csv")[0]) == {"epoch", "loss", "learning_rate", "seconds"}
    assert not (run.folder / "worst.png").exists()
    assert "validation" not in capsys.readouterr().err
    resumed = train(Recipe.from_dict(raw), tmp_path / "run", resume=True)
    assert same_weights(resumed.model, run.model)


def test_folds_are_trained_apart(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = recipe_for(data["binary"], "binary", train={"epochs": 1, "steps_per_epoch": 1})
    held = []
    for number in range(2):
        run = train(recipe, fold=f"{number}/2")
        assert run.folder.name == f"binary-fold{number}of2"
        stored = Recipe.load(run.folder / "recipe.yaml")
        assert stored.data.val == recipe.data.val.model_copy(update={"fold": f"{number}/2"})
        held.append(run.metrics["pixels"])
    assert sum(held) == sum(int((read_whole(area)[1] != IGNORE).sum()) for area in whole_of(recipe))
    other = with_fold(recipe_for(data["binary"], "binary", data={"val": recipe.to_dict()["data"]["train"]}), "1/2")
    assert (other.data.val.by, other.data.val.fold) == ("scene", "1/2")
    with pytest.raises(RecipeError, match="fold 2/2 does not exist"):
        train(recipe, fold="2/2")
    with pytest.raises(RecipeError, match=r"data\.val\.fold"):
        train(recipe, fold="first")


def whole_of(recipe):
    return full_areas(open_samples(recipe.data.train, recipe.data, recipe.task).samples)


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_open_thresholds_are_fitted_and_kept_in_the_file(data, tmp_path, kind):
    """Oracle: F1 at every other threshold on the same areas, with scikit-learn."""
    short = {"epochs": 1, "steps_per_epoch": 10}
    recipe = recipe_for(data[kind], kind, task={"head": "sigmoid"}, train=short)
    run = train(recipe, tmp_path / "run")
    model = load(run.model)
    assert recipe.task.thresholds == (0.5,) * len(recipe.task.classes)
    fitted = model.task.thresholds
    blocks = [block for area in open_areas(recipe)[1] for block in ModelPredictor(model).blocks(area)]
    probabilities, truths = zip(*((block.probabilities, truth) for block, truth in blocks), strict=True)
    probabilities, truths = (
        np.concatenate([each.reshape(len(each), -1) for each in part], 1) for part in (probabilities, truths)
    )
    for position, threshold in enumerate(fitted):
        known = truths[position] != IGNORE
        truth, chance = truths[position][known] == 1, probabilities[position][known]
        scores = [f1_score(truth, chance >= k / 64) for k in range(1, 64)]
        assert f1_score(truth, chance >= threshold) >= max(scores) - 1e-9
        name = recipe.task.classes[position].name
        assert run.metrics["per_class"][name]["f1"] == pytest.approx(f1_score(truth, chance >= threshold))
    left_open = recipe_for(data[kind], kind, task={"head": "sigmoid"}, train=short | {"fit_thresholds": False})
    assert load(train(left_open, tmp_path / "open").model).task.thresholds == recipe.task.thresholds


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_probabilities_are_calibrated_and_the_file_says_how(runs, data, tmp_path, kind):
    """Oracle: the same training without it, whose probabilities are fitted here."""
    neither = {"calibrate": False, "fit_thresholds": False}
    plain = train(recipe_for(data[kind], kind, train=LONG | neither), tmp_path / "plain")
    assert read_header(plain.model).calibration is None
    assert runs[kind].metrics["ece_uncalibrated"] == pytest.approx(plain.metrics["ece"], abs=1e-3)
    assert "ece_uncalibrated" not in plain.metrics
    before, after = load(plain.model), load(runs[kind].model)
    assert same_weights(plain.model, runs[kind].model)
    assert before.fingerprint() != after.fingerprint()
    found = read_header(runs[kind].model).calibration
    assert after.calibration == found
    _, (held, *_) = open_areas(recipe_for(data[kind], kind))
    tile = held.sample.scene.read()
    with torch.inference_mode():
        pixels, valid = torch.from_numpy(tile.pixels[None]), torch.from_numpy(tile.valid[None])
        scale, shift = (torch.tensor(row).view(1, -1, 1, 1) for row in (found.scale, found.shift))
        torch.testing.assert_close(after(pixels, valid), before(pixels, valid) * scale + shift)
    fit = CalibrationFit(before.task, 10**4)
    for area in open_areas(recipe_for(data[kind], kind))[1]:
        for block, truth in ModelPredictor(before).blocks(area):
            fit.add(block.probabilities, truth)
    np.testing.assert_allclose(found.scale, fit.fit().scale, rtol=0.02)


def test_a_network_that_looks_at_all_of_its_window_is_reported_first_and_in_the_file(data, tmp_path, runs, capsys):
    assert isinstance(read_header(runs["binary"].model).receptive_field, int)
    options = {"encoder_depth": 3, "decoder_channels": [32, 16, 16], "decoder_attention_type": "scse"}
    recipe = recipe_for(data["binary"], "binary", model={"options": options}, train={"epochs": 1, "steps_per_epoch": 1})
    run = train(recipe, tmp_path / "run", show_progress=True)
    said = capsys.readouterr().err
    messages = (
        "unet with tu-resnet10t has a global receptive field, so it predicts windows of train.tile_size (32 pixels)"
    )
    assert said.count(messages) == 1
    assert said.index(messages) < said.index("epoch 1/1")
    assert read_header(run.model).receptive_field == "global"


def first_loss(folder, kind, tmp_path, **changes):
    """The mean loss of a short first epoch."""
    recipe = recipe_for(folder, kind, train={"epochs": 1, "steps_per_epoch": 2} | changes)
    return read_log(train(recipe, tmp_path / "run", overwrite=True).folder / "log.csv")[0]["loss"]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains(data, tmp_path, name):
    """With a softmax; a sigmoid differs in the loss alone, which test_losses.py calls with both."""
    assert np.isfinite(first_loss(data["multiclass"], "multiclass", tmp_path, loss={name: 1.0}))


def test_smoothing_counts(data, tmp_path):
    smooth, hard = (first_loss(data["binary"], "binary", tmp_path, label_smoothing=share) for share in (0.3, 0.0))
    assert smooth != pytest.approx(hard, abs=1e-3)


def test_rare_classes_are_drawn_as_the_recipe_says(data, tmp_path, monkeypatch):
    drawn, original = [], TrainDataset.__init__

    def seen(self, *given, **named):
        drawn.append(named["class_balanced_sampling"])
        original(self, *given, **named)

    monkeypatch.setattr(TrainDataset, "__init__", seen)
    first_loss(data["multiclass"], "multiclass", tmp_path, class_balanced_sampling=0.7)
    assert drawn == [0.7]


def test_class_weights_count(data, tmp_path):
    losses = {
        str(weights): first_loss(data["multiclass"], "multiclass", tmp_path, loss={"pixel": 1.0}, class_weights=weights)
        for weights in (None, "balanced", {"water": 50.0}, {"water": 1.0, "forest": 1.0, "background": 1.0})
    }
    plain, balanced, given, ones = losses.values()
    assert plain == pytest.approx(ones)
    assert len({round(value, 5) for value in (plain, balanced, given)}) == 3


def test_a_machine_with_slurm_is_one_like_others(tmp_path, monkeypatch):
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.warns(UserWarning, match="srun"):
        lightning.Trainer(accelerator="cpu", logger=False)
    with _quiet_lightning():
        lightning.Trainer(accelerator="cpu", logger=False)


def test_tensorboard_gets_its_events(data, tmp_path):
    pytest.importorskip("tensorboard")
    first_loss(data["binary"], "binary", tmp_path, tensorboard=True)
    assert list((tmp_path / "run/tensorboard").glob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"dize": 1.0}}, "train.loss: 'dize' is not known; did you mean dice?"),
        ({"precision": "fp16"}, "fp16 is for CUDA devices"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_read(data, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        train(recipe_for(data["binary"], "binary", train=changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_sigmoid_head_has_no_weight_for_background(data, tmp_path):
    recipe = recipe_for(
        data["multiclass"], "multiclass", task={"head": "sigmoid"}, train={"class_weights": {"background": 2.0}}
    )
    with pytest.raises(RecipeError, match="'background' is not a class of this task; use water, forest"):
        train(recipe, tmp_path / "run")


def test_the_folder_of_the_run_is_checked_first(data, tmp_path):
    recipe = recipe_for(data["binary"], "binary")
    with pytest.raises(UsageError, match=r"the folder .*missing does not exist; make it first: mkdir -p"):
        train(recipe, tmp_path / "missing" / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; name a folder for the run"):
        train(recipe, tmp_path / "file")


def test_a_gap_that_leaves_nothing_is_an_error(data, tmp_path):
    recipe = recipe_for(data["binary"], "binary", data={"val": {"fraction": 0.5, "block": 32, "gap": 96}})
    with pytest.raises(DataError, match=r"no training pixel is left: .*data\.val\.gap"):
        train(recipe, tmp_path / "run")


def test_scenes_of_other_bands_cannot_train_together(tmp_path):
    write_pair(tmp_path, "binary", "a")
    write_pair(tmp_path, "binary", "b")
    write_raster(tmp_path / "images/b.tif", np.ones((2, 96, 96), np.uint16), left=place("b"))
    with pytest.raises(DataError, match=r"scenes differ in their number of bands: .*a.tif has 3, .*b.tif has 2"):
        open_areas(recipe_for(tmp_path, "binary"))


def test_the_bar_shows_the_mean_loss_of_the_epoch_so_far(monkeypatch):
    notes = []
    monkeypatch.setattr(callbacks, "progress", lambda *_, **__: nullcontext(lambda step, note="": notes.append(note)))
    shown = callbacks.ProgressCallback(2)
    shown.on_train_start(SimpleNamespace(estimated_stepping_batches=6, global_step=0), None)
    for losses in ([4.0, 2.0, 0.0], [1.0, 0.5, 0.0]):
        shown.on_train_epoch_start(None, None)
        for number, loss in enumerate(losses):
            shown.on_train_batch_end(None, None, {"loss": torch.tensor(loss)}, None, number)
    # Without the last step, which a GPU may still compute.
    assert notes == ["", *["", "loss 4.0000", "loss 3.0000"], *["", "loss 1.0000", "loss 0.7500"]]
