import csv
import itertools
import json
import os
import statistics
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from synthetic import read_whole, recipe_for, write_pairs
from trainings import SCORES, TrainingStandIn

from segkit.data.areas import open_areas
from segkit.errors import OutputExistsError, RecipeError, SegkitError, UsageError
from segkit.models.segmenter import load
from segkit.recipe.schema import Recipe
from segkit.task import IGNORE
from segkit.training.agreement import measure_agreement
from segkit.training.compare import compare
from segkit.training.comparison import MEASURES, Measure
from segkit.training.trials import _measure_time
from segkit.training.variants import _folder_names, parse_vary

HEADS = {"heads": ["softmax", "sigmoid"]}
RATES = {"vary": {"train.learning_rate": [0.001, 0.01]}}
FILES = {"compare.json", "compare.csv", "compare.png"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """{kind: folder of two scenes}."""
    return write_pairs(tmp_path_factory, height=96, width=80)


@pytest.fixture
def training(monkeypatch):
    stand_in = TrainingStandIn()
    monkeypatch.setattr("segkit.training.trials.train", stand_in)
    return stand_in


@pytest.fixture
def no_agreement(monkeypatch):
    """For tests of what is trained, which need no maps."""

    def none(folder, plans, *_, **__):
        count = len({plan.variant for plan in plans})
        return ((None,) * count,) * count

    monkeypatch.setattr("segkit.training.compare.measure_agreement", none)


def known_decisions(folder, recipe):
    """Oracle: what one pass over each whole scene decides, (T, pixels); not known where it is not to be compared."""
    model, decided = load(folder / "model.safetensors"), []
    for area in open_areas(recipe)[1]:
        tile, truth, counted = read_whole(area)
        with torch.inference_mode():
            logits = model(torch.from_numpy(tile.pixels[None]), torch.from_numpy(tile.valid[None]))
        targets = model.task.decide(model.task.probabilities(logits))[0].numpy()
        decided.append(np.where(counted & (truth != IGNORE), targets, IGNORE).reshape(len(targets), -1))
    return np.concatenate(decided, axis=1)


@pytest.mark.parametrize(
    ("kind", "variants"),
    [("binary", HEADS | {"folds": ["0/2", "1/2"]}), ("multiclass", HEADS), ("multilabel", RATES)],
    ids=["binary", "multiclass", "multilabel"],
)
def test_agreement_is_that_of_the_saved_maps(data, tmp_path, training, kind, variants):
    recipe = recipe_for(data[kind], kind)
    result = compare(recipe, tmp_path / "out", **variants, seeds=[0, 1])
    names = [row.variant for row in result.rows]
    maps = {
        (trial.variant, trial.seed, trial.fold): known_decisions(
            trial.folder, Recipe.load(trial.folder / "recipe.yaml")
        )
        for trial in result.trials
    }
    expected = {pair: [] for pair in itertools.product(names, names)}
    for (v, s, f), (w, t, g) in itertools.product(maps, maps):
        if f == g and (s != t if v == w else s == t):
            one, other = maps[v, s, f], maps[w, t, g]
            both = (one != IGNORE) & (other != IGNORE)
            assert both.sum() > 500
            expected[v, w].append((one == other)[both].mean())
    for (row, v), (column, w) in itertools.product(enumerate(names), enumerate(names)):
        # The machine may compute in other numbers than one pass in float32.
        assert result.agreement[row][column] == pytest.approx(np.mean(expected[v, w]), abs=3e-3)
    assert 0.02 < np.mean(result.agreement) < 0.98


def test_variants_are_compared_within_a_seed_and_seeds_within_a_variant(tmp_path, monkeypatch):
    plans = [SimpleNamespace(variant=v, seed=s, fold=f) for f, s, v in itertools.product("xy", (0, 1, 2), "abc")]
    random = np.random.default_rng(0)
    counts = {pair: random.integers(1, 1000) for pair in itertools.combinations(map(id, plans), 2)}

    def count(folder, mine, pairs, ground, *, show_progress):
        alike = [counts[id(mine[one]), id(mine[other])] for one, other in pairs]
        return np.array(alike), np.full(len(alike), 1000)

    monkeypatch.setattr("segkit.training.agreement._count_agreement", count)
    found = measure_agreement(tmp_path, plans, None, show_progress=False)
    expected = {pair: [] for pair in itertools.product("abc", repeat=2)}
    for one, other in itertools.combinations(plans, 2):
        if one.fold == other.fold and (one.variant == other.variant or one.seed == other.seed):
            for key in {(one.variant, other.variant), (other.variant, one.variant)}:
                expected[key].append(counts[id(one), id(other)] / 1000)
    assert {len(shares) for shares in expected.values()} == {6}
    np.testing.assert_allclose(found, np.reshape([np.mean(shares) for shares in expected.values()], (3, 3)))


def test_the_table_is_mean_and_spread_of_the_trials(data, tmp_path, training):
    result = compare(recipe_for(data["binary"], "binary"), tmp_path / "out", **HEADS, seeds=[0, 3, 5])
    with (result.folder / "compare.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    table_json = json.loads((result.folder / "compare.json").read_text())
    for row, line, entry in zip(result.rows, table, table_json["variants"], strict=True):
        mine = [trial for trial in result.trials if trial.variant == row.variant]
        assert [trial.seed for trial in mine] == [0, 3, 5]
        assert row.trials == int(line["trials"]) == entry["trials"] == 3
        for key in MEASURES:
            if key in SCORES:
                stored = [json.loads((trial.folder / "metrics.json").read_text())[key] for trial in mine]
            else:
                stored = [json.loads((trial.folder / "spent.json").read_text())[key] for trial in mine]
            measure = row.measures[key]
            assert measure.values == tuple(stored)
            assert measure.mean == pytest.approx(np.mean(stored), rel=1e-12)
            assert measure.std == pytest.approx(np.std(stored, ddof=1), rel=1e-12)
            assert (float(line[key]), float(line[f"{key}_spread"])) == (measure.mean, measure.std)
            assert entry["measures"][key] == {"mean": measure.mean, "spread": measure.std, "values": stored}
    assert table_json["agreement"] == {
        "labels": ["softmax", "sigmoid"],
        "matrix": [list(line) for line in result.agreement],
    }
    assert [trial["folder"] for trial in table_json["trials"]][:2] == ["softmax/seed0", "sigmoid/seed0"]
    assert {path.name for path in result.folder.iterdir()} == FILES | {"softmax", "sigmoid"}  # no leftovers


def test_a_measure():
    values = [0.3, 0.7, 0.1, 0.9]
    found = Measure.from_values([*values, None])
    assert (found.mean, found.values) == (pytest.approx(statistics.mean(values)), tuple(values))
    assert found.std == pytest.approx(statistics.stdev(values))
    assert Measure.from_values([0.5, None]) == Measure(0.5, None, (0.5,))
    assert Measure.from_values([None]) == Measure(None, None, ())


def test_one_seed_has_no_spread_and_no_diagonal(data, tmp_path, training):
    result = compare(recipe_for(data["binary"], "binary"), tmp_path / "out", **HEADS, seeds=[1])
    assert all(row.measures["mean_iou"].std is None for row in result.rows)
    assert result.agreement[0][0] is result.agreement[1][1] is None
    assert result.agreement[0][1] == result.agreement[1][0] is not None
    alone = compare(recipe_for(data["binary"], "binary"), tmp_path / "alone", seeds=[1])
    assert [row.variant for row in alone.rows] == ["binary"]
    assert alone.agreement == ((None,),)
    assert imread(alone.picture).ndim == 3


def test_every_combination_is_trained_with_its_own_recipe(data, tmp_path, training, no_agreement):
    varied = {"train.learning_rate": [0.01, 0.002], "train.loss": [{"pixel": 1}, {"pixel": 1, "dice": 0.5}]}
    result = compare(
        recipe_for(data["binary"], "binary"), tmp_path / "out", **HEADS, vary=varied, seeds=[4, 7], folds=["1/3"]
    )
    assert len(result.trials) == 2 * 2 * 2 * 2
    assert len({trial.folder for trial in result.trials}) == 16
    found = set()
    for trial in result.trials:
        recipe = Recipe.load(trial.folder / "recipe.yaml")
        assert (recipe.train.seed, recipe.data.val.fold) == (trial.seed, trial.fold) == (trial.seed, "1/3")
        assert trial.folder.name == f"seed{trial.seed}-fold1of3"
        found.add((trial.seed, recipe.task.head, recipe.train.learning_rate, len(recipe.train.loss)))
    assert found == set(itertools.product([4, 7], ["softmax", "sigmoid"], [0.01, 0.002], [1, 2]))
    assert result.rows[0].variant == 'softmax, learning_rate=0.01, loss={"pixel": 1}'


BASE = {"data": {}, "train": {}}
NO_VAL = {"data": {"val": None}, "train": {"checkpoint": "last"}}
REFUSED = {
    "softmax for classes that overlap": ("multilabel", BASE, HEADS, "task.head=softmax: task: softmax makes classes"),
    "unknown head": ("binary", BASE, {"heads": ["tanh"]}, "task.head=tanh: task.head: found"),
    "misspelt key": ("binary", BASE, {"vary": {"train.epoch": [3]}}, "train.epoch=3: train.epoch: unknown key; did"),
    "no such place": ("binary", BASE, {"vary": {"name.x": [3]}}, "name.x=3: the recipe has no such key"),
    "bad value": ("binary", BASE, {"vary": {"train.epochs": [3, "x"]}}, 'train.epochs=x: train.epochs: found "x"'),
    "bad seed": ("binary", BASE, {"seeds": [-1]}, "train.seed=-1: train.seed: found -1"),
    "unknown encoder": ("binary", BASE, {"vary": {"model.encoder": ["tu-resnet10t", "resnet19"]}}, "'resnet19' is not"),
    "a value twice": ("binary", BASE, {"seeds": [1, 1]}, "seeds: 1 is given twice"),
    "no value": ("binary", BASE, {"vary": {"train.epochs": []}}, "train.epochs: has no value"),
    "no seed": ("binary", BASE, {"seeds": []}, "seeds: has no value"),
    "other validation": ("binary", BASE, {"vary": {"data.val.seed": [0, 5]}}, "validates on other pixels or classes"),
    "other truth": ("binary", BASE, {"vary": {"data.ignore": [[255], [254, 255]]}}, "validates on other pixels or"),
    "no fold": ("binary", BASE, {"folds": ["3/3"]}, "fold 3/3"),
    "no validation": ("binary", NO_VAL, {}, "data.val is null, so there is nothing to compare on"),
    "several devices": ("binary", {"train": {"devices": 2}}, {}, "compare trains on one device"),
}


@pytest.mark.parametrize(("kind", "changes", "options", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(
    data, tmp_path, training, kind, changes, options, said
):
    recipe = recipe_for(data[kind], kind, **changes)
    with pytest.raises(SegkitError) as refused:
        compare(recipe, tmp_path / "out", **options)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not training.calls
    assert not (tmp_path / "out").exists()


def test_more_training_data_is_compared_on_the_same_validation(data, tmp_path, training):
    recipe = recipe_for(data["binary"], "binary").to_dict()
    one, other = (str(data["binary"] / "images" / f"{name}.tif") for name in "ab")
    recipe["data"] |= {
        "train": {"images": one, "labels": recipe["data"]["train"]["labels"]},
        "val": {"images": other, "labels": str(data["binary"] / "labels" / "b.tif")},
    }
    varied = {"data.bands": [[1, 2, 3], [3, 2, 1]], "train.augment": ["none", "default"]}
    result = compare(Recipe.from_dict(recipe), tmp_path / "out", vary=varied, seeds=[0])
    assert len(result.trials) == 4
    assert all(0 < share <= 1 for line in result.agreement for share in line if share is not None)


def test_what_is_finished_is_not_trained_again(data, tmp_path, training, no_agreement):
    recipe = recipe_for(data["binary"], "binary")
    training.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        compare(recipe, tmp_path / "out", **HEADS, seeds=[0, 1])
    assert len(training.again()) == 3
    assert not FILES & {path.name for path in (tmp_path / "out").iterdir()}
    training.stop_at = None
    first = compare(recipe, tmp_path / "out", **HEADS, seeds=[0, 1])
    assert training.again() == [("softmax/seed1", True), ("sigmoid/seed1", False)]
    assert compare(recipe, tmp_path / "out", **HEADS, seeds=[0, 1]) == first
    assert training.again() == []
    more = compare(recipe, tmp_path / "out", **HEADS, seeds=[0, 1, 2])
    assert training.again() == [("softmax/seed2", False), ("sigmoid/seed2", False)]
    assert {trial.folder: trial for trial in first.trials}.items() <= {t.folder: t for t in more.trials}.items()
    compare(recipe, tmp_path / "out", **HEADS, seeds=[0], overwrite=True)
    assert training.again() == [("softmax/seed0", False), ("sigmoid/seed0", False)]


def test_a_run_of_another_recipe_is_not_taken_for_this_one(data, tmp_path, training, no_agreement):
    compare(recipe_for(data["binary"], "binary"), tmp_path / "out", **HEADS, seeds=[0])
    other = recipe_for(data["binary"], "binary", train={"epochs": 9})
    training.again()
    with pytest.raises(OutputExistsError, match=r"softmax/seed0: holds a run of another recipe; replace it \("):
        compare(other, tmp_path / "out", **HEADS, seeds=[0])
    assert not training.calls
    training.stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        compare(other, tmp_path / "out", **HEADS, seeds=[0], overwrite=True)
    # The old model is gone, so the stopped run does not look finished.
    assert not (tmp_path / "out" / "softmax" / "seed0" / "model.safetensors").exists()


def test_what_was_spent_before_a_stop_counts(tmp_path, monkeypatch):
    times, cores = iter([10.0, 13.0, 100.0, 107.0]), iter([1.0, 2.0, 50.0, 55.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    monkeypatch.setattr(os, "times", lambda: (next(cores), 0.0, 0.0, 0.0, 0.0))
    spent = tmp_path / "spent.json"
    with pytest.raises(KeyboardInterrupt), _measure_time(spent, resume=False):
        raise KeyboardInterrupt
    with _measure_time(spent, resume=True):
        assert not spent.exists()
    assert json.loads(spent.read_text()) == {"seconds": 3 + 7, "cpu_seconds": 1 + 5}


def test_what_a_killed_process_spent_is_not_known(tmp_path):
    with _measure_time(tmp_path / "spent.json", resume=True):
        pass
    assert not (tmp_path / "spent.json").exists()


def test_the_picture_shows_every_trial_and_the_agreement(data, tmp_path, training, monkeypatch):
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **how: (drawn.append(figure), save(figure, *args, **how))
    )
    result = compare(recipe_for(data["binary"], "binary"), tmp_path / "out", **HEADS, seeds=[0, 1])
    assert imread(result.picture).ndim == 3
    *scores, matrix = drawn[0].axes
    assert [ax.get_title() for ax in scores] == ["mean IoU", "F1", "accuracy", "seconds"]
    for ax, key in zip(scores, [*SCORES, "seconds"], strict=True):
        dots = [tuple(line.get_xdata()) for line in ax.lines if line.get_marker() == "."]
        means = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "D"]
        assert dots == [row.measures[key].values for row in result.rows]
        assert means == [row.measures[key].mean for row in result.rows]
        for container, row in zip(ax.containers, result.rows, strict=True):
            (low, _), (high, _) = container.lines[2][0].get_segments()[0]
            assert high - low == pytest.approx(2 * row.measures[key].std)
    np.testing.assert_array_equal(matrix.images[0].get_array(), np.array(result.agreement))


def test_names_of_folders_are_different_on_every_file_system():
    names = ["a, b={x: 1}", "a, b={x; 1}", "A, b={x: 1}", "../..", "x" * 300, ""]
    slugs = _folder_names(names)
    assert len({slug.casefold() for slug in slugs.values()}) == len(names)
    for slug in slugs.values():
        assert slug.strip(".")
        assert not set(slug) & set('/\\:*?"<>| ')
        assert len(slug) < 100


def test_varied_keys_are_read_as_yaml():
    vary = parse_vary(
        ["train.learning_rate=1e-3, 1e-4", "train.loss={pixel: 1},{dice: 1, pixel: 2}", "a.b=null,true,x"]
    )
    assert vary == {
        "train.learning_rate": [1e-3, 1e-4],
        "train.loss": [{"pixel": 1}, {"dice": 1, "pixel": 2}],
        "a.b": [None, True, "x"],
    }
    for text in ("train.epochs", "train.epochs=", "=3", "a..b=3"):
        with pytest.raises(UsageError, match="write it as key=value,value"):
            parse_vary([text])
    with pytest.raises(UsageError, match="is given twice"):
        parse_vary(["a=1", "a=2"])
    with pytest.raises(RecipeError, match=r"--vary a=\{1"):
        parse_vary(["a={1"])


def test_models_are_those_of_a_training(data, tmp_path):
    """No stand-in: what compare tells is what `train` alone finds."""
    recipe = recipe_for(data["binary"], "binary", train={"epochs": 1, "steps_per_epoch": 2})
    result = compare(recipe, tmp_path / "out", **HEADS, seeds=[3])
    assert [trial.variant for trial in result.trials] == HEADS["heads"]
    for trial in result.trials:
        model = load(trial.folder / "model.safetensors")
        assert model.recipe.task.head == trial.variant
        assert model.metrics == trial.metrics
        assert trial.seconds > 0
        assert trial.cpu_seconds > 0
