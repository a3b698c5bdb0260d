"""What a model is, in a few lines: classes, bands, resolution, scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segkit.models.model_file import Header
from segkit.task import Task

_SCORES = {"mean_iou": "mean IoU", "macro_f1": "macro F1", "overall_accuracy": "accuracy"}


def describe_model(header: Header, path: Path | None = None) -> list[tuple[str, str]]:
    """Return (name, value) pairs that describe a model; classes are indented below "classes"."""
    recipe = header.to_recipe()
    task, model = recipe.task, recipe.model
    scored = {} if header.metrics.get("mean_iou") is None else header.metrics.get("per_class", {})
    network = model.architecture if model.is_classical else f"{model.architecture} with {model.encoder}"
    return [
        *([] if path is None else [("file", str(path))]),
        ("task", f"{task.type}, {task.head}"),
        ("classes", "value" + (", validation IoU" if scored else "")),
        *_describe_classes(task, scored),
        ("bands", f"{len(header.band_names)}: {', '.join(header.band_names)}"),
        ("resolution", _describe_resolution(header)),
        ("network", network),
        ("scores", describe_scores(header.metrics)),
    ]


def class_colors(task: Task) -> dict[str, str]:
    """Return the colour of each class by its name in `describe_model`."""
    return {f"  {row['name']}": row["color"] for row in task.legend}


def describe_scores(metrics: Mapping[str, Any]) -> str:
    """Return the scores of a model on its validation areas."""
    if metrics.get("mean_iou") is None:
        return "none (not validated)"
    return ", ".join(f"{name} {_format(metrics[key])}" for key, name in _SCORES.items() if key in metrics)


def _describe_classes(task: Task, scored: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return name and value of each class, with its IoU if it is in `scored` ({name: scores})."""
    described = []
    for row in task.legend:
        iou = f", {_format(scored[row['name']]['iou'])}" if row["name"] in scored else ""
        described.append((f"  {row['name']}", f"{row['value']}{iou}"))
    return described


def _describe_resolution(header: Header) -> str:
    found = None if header.training_pixels is None else header.training_pixels.resolution
    if found is None:
        return "not known"
    low, high = found
    return f"{low:.3g} m" if high < 1.01 * low else f"{low:.3g} to {high:.3g} m"


def _format(score: float | None) -> str:
    return "undefined" if score is None else f"{score:.3f}"
