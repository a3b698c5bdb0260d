import json

import numpy as np
import pytest
import torch
from predicting import TASKS
from synthetic import segmenter

from segkit.errors import UsageError
from segkit.exporting.card import convert_nodata, deepness_keys, make_card, strip_paths
from segkit.models.calibration import Calibration
from segkit.models.ensemble import Ensemble, with_imagery
from segkit.models.graph_outputs import split_outputs
from segkit.models.training_pixels import TrainingPixels


def a_model(folder, **imagery):
    model = segmenter(folder, "multiclass")
    model._receptive_field = 40
    return with_imagery(model, imagery)


def deepness_input(stored, keys):
    """What Deepness gives to a model."""
    scaled = np.float32(stored * 1.0 / 255.0)
    return (scaled - np.float32(keys["standardization_mean"])) / np.float32(keys["standardization_std"])


def deepness_classes(outputs, threshold):
    """What Deepness decides: of one channel whether it reaches the threshold, of several the highest that does."""
    found = []
    for output in outputs:
        reached = np.where(output < threshold, 0, output)
        found.append(reached[:, 0] != 0 if output.shape[1] == 1 else reached.argmax(axis=1))
    return np.stack(found, axis=1)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.type} {task.head} {task.background}")
def test_deepness_decides_like_the_task(tmp_path, task):
    model = a_model(tmp_path)
    model.task = task
    keys, _ = deepness_keys(model, tile=256)
    probabilities = task.probabilities(torch.randn(2, task.channels, 9, 9, generator=torch.Generator().manual_seed(0)))
    outputs = [output.numpy() for output in split_outputs(task, probabilities)]
    classes = deepness_classes(outputs, keys["seg_thresh"])
    np.testing.assert_array_equal(classes, task.decide(probabilities).numpy())
    names = keys["class_names"] if isinstance(keys["class_names"], list) else [keys["class_names"]]
    assert [len(each) for each in names] == [output.shape[1] for output in outputs]


def test_no_data_beyond_float32_is_infinite_in_the_input(tmp_path):
    """The lowest number of float64, which other programs write, would be infinite, to which all are as near."""
    lowest = [[np.finfo(kind).min] for kind in (np.float64, np.float32)]
    found = [convert_nodata(a_model(tmp_path), one)[0] for one in lowest]
    assert np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1], lowest[1] * 3)


@pytest.mark.parametrize("units", [{}, {"scale": 0.5, "offset": -1000.0}, {"scale": (1e-4, 2e-4, 3e-4)}])
def test_deepness_converts_stored_values_to_the_units_of_training(tmp_path, units):
    model = a_model(tmp_path, **units)
    keys, _ = deepness_keys(model, tile=256)
    stored = np.random.default_rng(0).integers(0, 10_000, (5, 3))
    expected = stored * np.array(units.get("scale", 1.0)) + units.get("offset", 0.0)
    np.testing.assert_allclose(deepness_input(stored, keys), expected, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(
        convert_nodata(model, [7.0]),
        [np.broadcast_to(7 * np.array(units.get("scale", 1.0)) + units.get("offset", 0.0), 3)],
    )


def test_no_data_of_values_that_a_graph_cannot_convert_is_refused(tmp_path):
    model = a_model(tmp_path, decibels="power")
    with pytest.raises(UsageError, match="no data is 0 in the files"):
        convert_nodata(model, [0.0])
    assert convert_nodata(model, []) == []


def test_the_card_says_what_the_model_file_says_without_paths(tmp_path):
    model = a_model(tmp_path)
    pixels = [np.full((20, 3), value, np.float32) for value in (480.0, 520.0)]
    model.training_pixels = TrainingPixels.from_samples(pixels, ["uint16"], [(1.0, 0.0)], (30.011, 30.012))
    card = make_card(model, [0.0], decide=False, tile=None, least=1)
    text = json.dumps(card)
    assert str(tmp_path) not in text
    (header,) = card["models"]
    assert header["recipe"]["task"] == model.recipe.to_dict()["task"]
    assert header["mean"] == [500.0] * 3
    assert len(header["training_pixels"]["pixels"]) == 40
    assert card["outputs"] == [{"name": "probabilities", "channels": ["background", "water", "forest"]}]
    assert deepness_keys(model, tile=256)[0]["resolution"] == 3000


def test_deepness_is_told_to_compute_no_bands(tmp_path):
    model = a_model(tmp_path, indices=[{"name": "ratio", "formula": "red / green"}])
    model.band_names = ("red", "green", "ratio")
    keys, limits = deepness_keys(model, tile=256)
    assert "it does not compute bands; add to the layer: ratio" in limits
    assert [len(keys[f"standardization_{of}"]) for of in ("mean", "std")] == [3, 3]


def test_the_first_model_of_an_ensemble_names_its_bands(tmp_path):
    """A prediction with the graph takes names and the order of bands from the first one."""
    models = [a_model(tmp_path) for _ in range(4)]
    for number, model in enumerate(models):
        model.band_names = ("red", "green", "blue") if number == 3 else ("band 1", "band 2", "band 3")
        model.set_calibration(Calibration((1.0,) * 3, (float(number),) * 3))
    for others in (models[:1], models[1:2], models[2:3], models[:3]):  # in any order of their fingerprints
        card = make_card(Ensemble([*others, models[3]]), [], decide=False, tile=None, least=1)
        assert card["models"][0]["band_names"] == ["red", "green", "blue"]
        assert len(card["models"]) == len(others) + 1


@pytest.mark.parametrize(
    ("path", "name"),
    [("/home/me/data/a.tif", "a.tif"), (r"C:\data\a.tif", "a.tif"), ("~/a/*.tif", "*.tif"), ("water/ice", "water/ice")],
)
def test_paths_become_names(path, name):
    assert strip_paths({"a": [path, 1]}) == {"a": [name, 1]}
