import pytest
import yaml
from synthetic import recipe_for

from segkit.errors import DataError
from segkit.models.run_folder import (
    LOG,
    METRICS,
    RECIPE,
    baseline_scores,
    is_run_of,
    read_log,
    read_metrics,
    recipe_text,
    stored_recipe_text,
)

OLD_KEYS = {"steps_per_epoch": "steps", "class_balanced_sampling": "oversample", "checkpoint": "keep"}


def test_a_run_of_segkit_0_2_is_recognised(tmp_path):
    recipe = recipe_for(tmp_path, "binary")
    raw = recipe.to_dict()
    raw["train"] = {OLD_KEYS.get(key, key): value for key, value in raw["train"].items()}
    (tmp_path / RECIPE).write_text(yaml.safe_dump(raw, sort_keys=False))
    assert stored_recipe_text(tmp_path) == recipe_text(recipe)
    assert is_run_of(tmp_path, recipe)
    assert not is_run_of(tmp_path, recipe_for(tmp_path, "binary", train={"epochs": 9}))


def test_a_run_that_was_stored_before_a_key_was_added_is_recognised(tmp_path):
    recipe = recipe_for(tmp_path, "binary")
    raw = recipe.to_dict()
    del raw["model"]["start_from"], raw["train"]["freeze"], raw["train"]["baselines"]
    (tmp_path / RECIPE).write_text(yaml.safe_dump(raw, sort_keys=False))
    assert is_run_of(tmp_path, recipe)
    assert not is_run_of(tmp_path, recipe_for(tmp_path, "binary", train={"freeze": ["encoder"]}))


def test_a_damaged_recipe_is_not_of_this_run(tmp_path):
    recipe = recipe_for(tmp_path, "binary")
    for text in ("a: [", "train: {keep: last, checkpoint: best}", ""):
        (tmp_path / RECIPE).write_text(text)
        assert not is_run_of(tmp_path, recipe)


def test_baselines_of_earlier_runs_have_the_names_of_today():
    scores = {"mean_iou": 0.5}
    assert baseline_scores({"baselines": {"linear_discriminant": scores, "forest": {}}}) == {
        "lda": scores,
        "forest": {},
    }
    assert baseline_scores({}) == {}


def test_damaged_scores_and_logs_are_one_clear_error(tmp_path):
    """Each text is an error that names the file, or what it says."""
    log = "epoch,loss,val_iou\n1,0.5,0.1\n2,0.4,\n"
    for text in (log, log.replace("epoch", "epocz"), "epoch\n1,2\n", "epoch,loss\n1\n", "epoch\nx\n"):
        (tmp_path / LOG).write_text(text)
        with pytest.raises(DataError, match=r"log\.csv: is no log of a training \("):
            read_log(tmp_path / LOG)
    (tmp_path / LOG).write_text(log.replace("0.4,", "0.4,nan"))
    assert [row["loss"] for row in read_log(tmp_path / LOG)] == [0.5, 0.4]
    others = '{"per_class": [1]}', '{"per_class": {"a": 3}}', '{"mean_iou": "x"}', '{"confusion": 1}'
    for text in ("", "[]", "[" * 10**5, *others):
        (tmp_path / METRICS).write_text(text)
        with pytest.raises(DataError, match=r"metrics\.json: cannot be read \("):
            read_metrics(tmp_path)
    (tmp_path / METRICS).write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"metrics\.json: cannot be read \("):
        read_metrics(tmp_path)
    (tmp_path / METRICS).write_text('{"mean_iou": null, "per_class": {"a": {"iou": 0.5}}}')
    assert read_metrics(tmp_path)["per_class"] == {"a": {"iou": 0.5}}
