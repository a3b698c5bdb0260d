import json

import numpy as np
from synthetic import segmenter

from segkit.models.ensemble import Ensemble
from segkit.models.segmenter import load
from segkit.models.training_pixels import TrainingPixels
from segkit.training.train import Run

METRICS = {
    "mean_iou": 0.81234, "macro_f1": 0.9, "overall_accuracy": None,
    "per_class": {"background": {"iou": 0.75}, "water": {"iou": 0.5}, "forest": {"iou": None}},
}  # fmt: skip


def test_models_and_runs_say_what_they_are(tmp_path):
    model = segmenter(tmp_path, "multiclass", pretrained=False)
    assert "none (not validated)" in repr(model)
    assert "not known" in repr(model)
    model.metrics = METRICS | {"mean_iou": None}  # without validation data
    assert "undefined" not in repr(model)
    model.metrics, model._receptive_field = METRICS, 40
    groups = [[[1.0, 2.0, 3.0 + shift]] * 30 for shift in range(3)]
    model.training_pixels = TrainingPixels.from_samples(
        [np.array(group, "f4") for group in groups], ["uint16"], [(1.0, 0.0)], (9.9, 20.0)
    )
    model.save(tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    text, page = repr(loaded), loaded._repr_html_()
    for line in (
        "model multiclass", "task          multiclass, softmax", "  water       3, 0.500", "  forest      9, undefined",
        "bands         3: b1, b2, b3", "resolution    9.9 to 20 m", "network       unet with tu-resnet10t",
        "scores        mean IoU 0.812, macro F1 0.900, accuracy undefined",
    ):  # fmt: skip
        assert line in text
    for row in model.task.legend:
        assert row["color"] in page
    run = Run(tmp_path, tmp_path / "model.safetensors", METRICS, 1.0)
    assert str(run) == text.replace("model multiclass", f"run {tmp_path}")
    assert run._repr_html_().count("<tr>") == page.count("<tr>")
    assert "no such file any more" in repr(Run(tmp_path, tmp_path / "gone.safetensors", {}, 1.0))


def test_an_ensemble_says_what_its_models_are(tmp_path):
    models = [segmenter(tmp_path, pretrained=False) for _ in range(2)]
    for number, one in enumerate(models):
        one.mean += number
        one._receptive_field = 40
    text = repr(Ensemble(models))
    assert text.startswith("ensemble of 2 models")
    assert text.count("cleared") == 2


def test_names_are_escaped_in_html(tmp_path):
    model = segmenter(tmp_path, pretrained=False)
    model.band_names = ("<b>", "g", "r")
    assert "&lt;b&gt;" in model._repr_html_()
    assert "<b>" not in model._repr_html_()
    assert json.dumps(model.metrics) == "{}"
