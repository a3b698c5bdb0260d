"""Models with other classes than their network: probabilities add up, and nothing else changes."""

import numpy as np
import pytest
import torch
from synthetic import TASKS, recipe_for

from segkit import reclassify
from segkit.errors import ModelFileError, UsageError
from segkit.models.calibration import Calibration
from segkit.models.model_file import read_header
from segkit.models.output_classes import OutputClasses
from segkit.models.segmenter import Segmenter, load

FOUR = [{"name": name, "value": value} for name, value in (("water", 3), ("oak", 5), ("field", 6), ("pine", 9))]
METRICS = {
    "per_class": {"cleared": {"iou": 0.5}},
    "confusion": {"labels": ["background", "cleared"], "matrix": [[1, 2], [3, 4]]},
}


def save(folder, kind="multiclass", metrics=None, **task):
    recipe = recipe_for(folder, kind, task=task)
    torch.manual_seed(0)
    made = Segmenter(recipe, [500.0] * 3, [50.0] * 3, ["b1", "b2", "b3"]).eval()
    number = recipe.task.channels
    shift = (0.0,) * number if recipe.task.is_softmax else tuple(np.linspace(-1, 1, number).tolist())
    made.set_calibration(Calibration((0.7,) * number, shift))
    made.metrics = metrics or {"mean_iou": 0.5}
    made.save(folder / "old.safetensors")
    return folder / "old.safetensors"


def pixels():
    made = torch.Generator().manual_seed(1)
    values = 500 + 60 * torch.randn(2, 3, 40, 50, generator=made)
    return values, torch.ones(2, 40, 50, dtype=torch.bool)


@torch.no_grad()
def probabilities(model):
    return model.task.probabilities(model(*pixels()))


@pytest.mark.parametrize("background", [True, False])
def test_probabilities_of_merged_classes_add_up(tmp_path, background):
    path = save(tmp_path, classes=FOUR, background=background)
    result = reclassify(path, tmp_path / "new.safetensors", merge={"trees": ["pine", "5"]}, colors={"trees": "#1b7837"})
    before, model = load(path), load(tmp_path / "new.safetensors")
    old, new = probabilities(before), probabilities(model)
    at = {name: index for index, name in enumerate(before.task.channel_names)}
    groups = {"water": ["water"], "trees": ["oak", "pine"], "field": ["field"], "background": ["background"]}
    assert set(model.task.channel_names) == set(groups) - ({"background"} if not background else set())
    for index, name in enumerate(model.task.channel_names):
        expected = old[:, [at[part] for part in groups[name]]].sum(dim=1)
        torch.testing.assert_close(new[:, index], expected)
    assert [(one.name, one.value, one.color) for one in model.task.classes if one.name == "trees"] == [
        ("trees", 9, "#1b7837")
    ]
    assert not result.has_scores
    assert model.metrics == {}
    assert model.fingerprint() != before.fingerprint()


def test_changes_of_changes_and_copies_for_inference(tmp_path):
    path = save(tmp_path, classes=FOUR)
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    reclassify(path, once, merge={"trees": ["oak", "pine"]})
    reclassify(once, twice, merge={"background": ["trees"]}, rename={"water": "lake"})
    last = load(twice)
    old, new = probabilities(load(path)), probabilities(last)
    assert last.task.channel_names == ("background", "lake", "field")
    torch.testing.assert_close(new[:, 0], old[:, [0, 2, 4]].sum(dim=1))
    prepared = last.optimized_for_inference(torch.device("cpu"), "fp32")
    with torch.no_grad():
        torch.testing.assert_close(prepared.task.probabilities(prepared(*pixels())), new, rtol=1e-3, atol=1e-4)
    last.save(tmp_path / "again.safetensors")
    assert load(tmp_path / "again.safetensors").fingerprint() == last.fingerprint()


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_other_names_and_codes_change_no_probability(tmp_path, kind, head):
    if (kind, head) == ("multilabel", "softmax"):
        pytest.skip("softmax makes classes exclude each other")
    path = save(tmp_path, kind, head=head)
    before = load(path)
    reclassify(path, tmp_path / "new.safetensors", rename={before.task.classes[0].name: "new"}, values={"new": 77})
    model = load(tmp_path / "new.safetensors")
    assert torch.equal(probabilities(before), probabilities(model))
    assert (model.task.classes[0].name, model.task.classes[0].value) == ("new", 77)
    assert model.metrics == {"mean_iou": 0.5}


def test_scores_keep_their_classes_under_the_new_names(tmp_path):
    path = save(tmp_path, "binary", metrics=METRICS, classes=[TASKS["binary"]["classes"][0] | {"threshold": 0.3}])
    reclassify(path, tmp_path / "new.safetensors", rename={"cleared": "clearing"})
    shown = repr(load(tmp_path / "new.safetensors"))
    assert "  clearing" in shown
    assert "  cleared" not in shown
    model = load(tmp_path / "new.safetensors")
    assert model.metrics["per_class"] == {"clearing": {"iou": 0.5}}
    assert model.metrics["confusion"]["labels"] == ["background", "clearing"]
    assert model.task.thresholds == (0.3,)


def test_classes_whose_probabilities_do_not_add_up_are_not_merged(tmp_path):
    new = tmp_path / "new.safetensors"
    for kind, task, why in (
        ("multilabel", {}, "its classes overlap, so they cannot be merged; merge those of its map"),
        ("multiclass", {"head": "sigmoid"}, "one-vs-rest sigmoid, whose probabilities do not add up"),
    ):
        with pytest.raises(UsageError, match=why):
            reclassify(save(tmp_path, kind, **task), new, merge={"all": ["water", "forest"]})
    path = save(tmp_path, "binary")
    with pytest.raises(UsageError, match="after these changes the task has no classes"):
        reclassify(path, new, merge={"background": ["cleared"]})
    with pytest.raises(UsageError, match="the background of a model keeps its name and colour"):
        reclassify(path, new, rename={"background": "rest"})
    with pytest.raises(UsageError, match="is a model, which takes no rules"):
        reclassify(path, new, rules=["cleared to background inside a.gpkg"])
    with pytest.raises(UsageError, match=r"name it \.safetensors"):
        reclassify(path, tmp_path / "new.tif", rename={"cleared": "a"})
    assert not new.exists()


def test_a_damaged_header_is_refused(tmp_path):
    path = save(tmp_path, classes=FOUR)
    model = load(path)
    classes = OutputClasses(model.task, ((0,), (1,), (2,), (3,), ()))
    model.set_output_classes(classes)
    with pytest.raises(ModelFileError, match="its header is damaged"):
        model.save(tmp_path / "broken.safetensors")
    assert read_header(path).output_classes is None
