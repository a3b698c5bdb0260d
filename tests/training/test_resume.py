import shutil
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from faults import cuts, flips
from safetensors.torch import load_file
from synthetic import recipe_for, write_pair, write_pairs

from segkit.errors import OutputError, OutputExistsError, RecipeError, TrainingError, UsageError
from segkit.models.run_folder import lock_run, read_log, recipe_text
from segkit.models.segmenter import load
from segkit.recipe.schema import Recipe
from segkit.training.finishing import finish
from segkit.training.module import TrainingModule
from segkit.training.resume import TrainingInterrupted, finished_epochs, read_checkpoint
from segkit.training.train import train

SHORT = {"steps_per_epoch": 2, "batch_size": 2, "baselines": [], "fit_thresholds": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder of two binary scenes."""
    return write_pairs(tmp_path_factory)["binary"]


def short(data, **train_keys):
    return recipe_for(data, "binary", train=SHORT | train_keys)


def strike(patch, step):
    """Press Ctrl-C in a step (counted from 0) of a training."""
    own = TrainingModule.training_step

    def struck(module, batch, number):
        if module.global_step == step:
            raise KeyboardInterrupt
        return own(module, batch, number)

    patch.setattr(TrainingModule, "training_step", struck)


def stopped(monkeypatch, step, recipe, folder, **options):
    """Train until a step; returns what the interruption says."""
    with monkeypatch.context() as patch:
        strike(patch, step)
        with pytest.raises(TrainingInterrupted) as caught:
            train(recipe, folder, **options)
    return str(caught.value)


def set_scores(monkeypatch, *scores):
    """Let the epochs have these validation scores, whatever they learn."""
    log = TrainingModule.log

    def told(module, name, value, **options):
        log(module, name, scores[module.current_epoch] if name == "val_iou" else value, **options)

    monkeypatch.setattr(TrainingModule, "log", told)


def assert_same(found, expected):
    """Two runs have the same weights, scores and epochs, to the last digit."""
    weights, others = load_file(found.model), load_file(expected.model)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert found.metrics == expected.metrics
    logs = [[row | {"seconds": 0} for row in read_log(run.folder / "log.csv")] for run in (found, expected)]
    assert logs[0] == logs[1]


def test_a_run_that_was_interrupted_in_the_middle_of_epochs_and_at_the_end_is_that_of_one_that_was_not(
    data, tmp_path, monkeypatch, capsys
):
    recipe, folder = short(data, epochs=3), tmp_path / "run"
    straight = train(recipe, tmp_path / "straight")
    assert straight.metrics["epochs"] | {"kept": 0} == {"kept": 0, "finished": 3, "planned": 3}
    # In the first epoch: both with and without `resume` it starts again.
    assert stopped(monkeypatch, 1, recipe, folder) == "no epoch was finished"
    assert [path.name for path in folder.iterdir()] == ["recipe.yaml"]
    with pytest.raises(UsageError, match="no epoch is finished, so there is no model to write; train one"):
        finish(folder)
    assert stopped(monkeypatch, 1, recipe, folder, resume=True, show_progress=True) == "no epoch was finished"
    assert "no epoch is finished; starting with the first" in capsys.readouterr().err
    # In the second one.
    said = stopped(monkeypatch, 3, recipe, folder)
    assert said == f"1 of 3 epochs are finished and kept in {folder}"
    with pytest.raises(OutputExistsError, match=r"holds a run already; continue it \(--resume\)"):
        train(recipe, folder)
    # In the evaluation at the end.
    with monkeypatch.context() as patch:
        patch.setattr("segkit.training.results.calibrate_and_score", mock.Mock(side_effect=KeyboardInterrupt))
        for again in (lambda: train(recipe, folder, resume=True), lambda: finish(folder)):
            with pytest.raises(TrainingInterrupted, match=r"3 of 3 epochs .*, but their results are not written yet"):
                again()
    assert_same(finish(folder), straight)
    assert_same(train(recipe, folder, resume=True), straight)


def test_a_run_is_finished_early_and_resumed(data, tmp_path, monkeypatch, capsys):
    """Oracle: a training whose third epoch never comes, since it has two; and one that was not finished early."""
    recipe, folder = short(data, epochs=3), tmp_path / "run"
    stopped(monkeypatch, 5, recipe, folder)
    early = finish(folder)
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert early.metrics["epochs"] == {"kept": best["epoch"] + 1, "finished": 2, "planned": 3}
    for name, tensor in load_file(early.model).items():
        assert torch.equal(tensor, best["state_dict"][f"segmenter.{name}"])
    straight = train(recipe, tmp_path / "straight")
    assert early.metrics.keys() == straight.metrics.keys()
    assert {path.name for path in folder.iterdir()} == {path.name for path in straight.folder.iterdir()}
    before = early.model.stat().st_mtime_ns
    again = finish(folder, show_progress=True)
    assert f"{folder}: its model has all 2 finished epochs; nothing to do" in capsys.readouterr().err
    assert (again.model.stat().st_mtime_ns, again.metrics) == (before, early.metrics)
    assert_same(train(recipe, folder, resume=True), straight)
    assert finish(folder).metrics == straight.metrics


def test_weights_keep_the_normalisation_that_they_were_trained_with(tmp_path, monkeypatch):
    """Also if the data have other values by then, of which both `finish` and a resumed training warn."""
    write_pair(tmp_path, "binary", "a")
    recipe, folder = short(tmp_path, epochs=2), tmp_path / "run"
    stopped(monkeypatch, 3, recipe, folder)
    write_pair(tmp_path, "binary", "b", seed=1, level=900)
    with pytest.warns(UserWarning, match="the training pixels have changed since the run was started"):
        early = load(finish(folder).model)
    assert early.mean[0, 2].item() == pytest.approx(500, abs=2)
    with pytest.warns(UserWarning, match="the training pixels have changed"):
        late = load(train(recipe, folder, resume=True).model)
    assert torch.equal(late.mean, early.mean)
    assert torch.equal(late.std, early.std)


def test_an_extended_run_follows_the_schedule_of_all_its_epochs_and_keeps_the_best(data, tmp_path, monkeypatch):
    """The third epoch is worse than the second, and the run is interrupted between them once more."""
    set_scores(monkeypatch, 0.3, 0.5, 0.4, 0.2)
    folder = tmp_path / "run"
    train(short(data, epochs=2), folder)
    shutil.copytree(folder, tmp_path / "moved")  # where the best score has to be known, too
    longer = short(data, epochs=4)
    with pytest.raises(RecipeError, match=r"2 epochs are finished already, but train\.epochs is 1; .* segkit finish"):
        train(short(data, epochs=1), folder, resume=True)
    used, own = [], TrainingModule.training_step
    with monkeypatch.context() as patch:
        record = lambda module, *given: (used.append(module.optimizers().param_groups[0]["lr"]), own(module, *given))[1]  # noqa: E731
        patch.setattr(TrainingModule, "training_step", record)
        run = train(longer, folder, resume=True)
    assert used[0] == pytest.approx(0.01 * (1 + np.cos(np.pi * 3 / 7)) / 2)  # the checkpoint holds 0
    assert run.metrics["epochs"] == {"kept": 2, "finished": 4, "planned": 4}
    assert torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["epoch"] == 1
    assert Recipe.load(folder / "recipe.yaml") == longer
    rates = [row["learning_rate"] for row in read_log(folder / "log.csv")]
    # After the last step of each epoch; of all steps one warms up.
    expected = [
        0.01 * (1 + np.cos(np.pi * (done - 1) / (steps - 1))) / 2 for steps, done in ((4, 2), (4, 4), (8, 6), (8, 8))
    ]
    np.testing.assert_allclose(rates, expected, atol=1e-8)
    stopped(monkeypatch, 6, longer, tmp_path / "moved", resume=True)
    assert finished_epochs(tmp_path / "moved") == 3
    assert_same(train(longer, tmp_path / "moved", resume=True), run)


def test_a_run_that_stopped_early_ends_at_once_unless_it_has_more_epochs_or_patience(data, tmp_path, monkeypatch):
    set_scores(monkeypatch, 0.5, *[0.1] * 9)
    recipe, folder = short(data, epochs=4, early_stopping=1, steps_per_epoch=1), tmp_path / "run"
    epochs = {"kept": 1, "finished": 2, "planned": 4}
    assert train(recipe, folder).metrics["epochs"] == epochs
    steps = []
    own = TrainingModule.training_step
    monkeypatch.setattr(TrainingModule, "training_step", lambda *given: (steps.append(0), own(*given))[1])
    assert train(recipe, folder, resume=True).metrics["epochs"] == epochs
    assert not steps
    longer = short(data, epochs=5, early_stopping=2, steps_per_epoch=1)
    assert train(longer, folder, resume=True).metrics["epochs"] == {"kept": 1, "finished": 4, "planned": 5}
    endless = short(data, epochs=5, early_stopping=None, steps_per_epoch=1)
    assert train(endless, folder, resume=True).metrics["epochs"] == {"kept": 1, "finished": 5, "planned": 5}


OTHER_RECIPES = {
    "task.classes.0.name": ({"task": {"classes": [{"name": "burnt", "value": 7}]}}, '"cleared", now "burnt"'),
    "data.bands": ({"data": {"bands": [1, 2]}}, r"null, now \[1, 2\]"),
    "data.val.fraction": ({"data": {"val": {"fraction": 0.5, "block": 32, "gap": 8}}}, "0.25, now 0.5"),
    "train.steps_per_epoch": ({"train": {"steps_per_epoch": 9}}, "3, now 9"),
}


@pytest.mark.parametrize("key", OTHER_RECIPES)
def test_what_makes_another_experiment_is_refused_with_both_values(data, tmp_path, key):
    (tmp_path / "recipe.yaml").write_text(recipe_text(recipe_for(data, "binary")))
    changes, values = OTHER_RECIPES[key]
    with pytest.raises(RecipeError, match=rf"was started with another recipe \({key} was {values}"):
        train(recipe_for(data, "binary", **changes), tmp_path, resume=True)


def test_a_second_process_is_refused_and_changes_nothing(data, tmp_path):
    recipe, folder = short(data), tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe_text(recipe))
    with lock_run(folder):
        for second in (
            lambda: train(recipe, folder, overwrite=True),
            lambda: train(recipe, folder, resume=True),
            lambda: finish(folder),
        ):
            with pytest.raises(OutputError, match=r"run: another training or segkit finish is writing to it"):
                second()
    assert [path.name for path in folder.iterdir()] == ["recipe.yaml"]


def test_a_recipe_that_a_user_wrote_is_not_replaced(data, tmp_path):
    """It lies where the run would store its own."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "mine"}))
    with pytest.raises(OutputExistsError, match="holds a run already"):
        train(short(data), tmp_path)
    for content in (b"name: [mine\n", b"\xff\xfe\x00"):
        (tmp_path / "recipe.yaml").write_bytes(content)
        with pytest.raises(OutputExistsError, match="holds a run already"):
            train(short(data), tmp_path)
        with pytest.raises(RecipeError, match=r"recipe\.yaml: (line 2|not YAML)"):
            train(short(data), tmp_path, resume=True)


def test_a_checkpoint_with_a_changed_bit_is_refused_or_the_same(tmp_path):
    """Its tensors are mapped from the disk, where torch compares no checksums."""
    torch.manual_seed(0)
    torch.save({"epoch": 1, "state_dict": {"weight": torch.randn(40, 20)}}, tmp_path / "a.ckpt")
    content, refused = (tmp_path / "a.ckpt").read_bytes(), 0
    whole = read_checkpoint(tmp_path / "a.ckpt")["state_dict"]["weight"].clone()
    random = np.random.default_rng(0)
    for damage, change in (*cuts(len(content), 5, random), *flips(len(content), 25, random)):
        (tmp_path / "a.ckpt").write_bytes(change(content))
        try:
            found = read_checkpoint(tmp_path / "a.ckpt")
        except TrainingError as error:
            assert "a.ckpt: cannot be read" in str(error)  # noqa: PT017 - or it is the same
            refused += 1
            continue
        assert found["epoch"] == 1, damage
        assert torch.equal(found["state_dict"]["weight"], whole), damage
    assert refused > 15


def test_what_cannot_be_finished_or_resumed_says_why(data, tmp_path):
    with pytest.raises(UsageError, match="none: holds no run; name the folder"):
        finish(tmp_path / "none")
    classical = Recipe.from_dict(recipe_for(data, "binary").to_dict() | {"model": {"architecture": "lda"}})
    (tmp_path / "recipe.yaml").write_text(recipe_text(classical))
    with pytest.raises(UsageError, match="lda is fitted in one go, so there are no epochs"):
        finish(tmp_path)
    (tmp_path / "recipe.yaml").write_text(recipe_text(short(data)))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match="its checkpoints were removed, so it cannot be continued"):
        train(short(data), tmp_path, resume=True)
    (tmp_path / "checkpoints").mkdir()
    for name in ("best", "last"):
        (tmp_path / f"checkpoints/{name}.ckpt").write_bytes(b"half")
    for use in (lambda: train(short(data), tmp_path, resume=True), lambda: finish(tmp_path)):
        with pytest.raises(TrainingError, match=r"\.ckpt: cannot be read"):
            use()
