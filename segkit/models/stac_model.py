"""A STAC item that describes a model file, with the Machine Learning Model extension (MLM).

https://github.com/stac-extensions/mlm, version 1.4.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path, PurePath
from typing import Any

from segkit.errors import ModelFileError
from segkit.io.files import require_file
from segkit.io.paths import PathLike
from segkit.io.remote import is_remote
from segkit.io.stac_output import (
    EXTENSIONS,
    ITEM_SUFFIX,
    check_item_path,
    format_time,
    make_classes,
    make_href,
    make_item,
    to_ascii,
    write_item,
)
from segkit.models.model_file import GLOBAL, Header, count_weights, read_header
from segkit.recipe.schema import Recipe
from segkit.task import Task

_TASKS = ["semantic-segmentation"]
_SCORES = ("overall_accuracy", "mean_iou", "macro_f1", "ece")
_VERSION = re.compile(r"\d+\.\d+\.\d+([-+].*)?")  # of a framework, in the form that the extension accepts
_MODEL_TYPE = "application/octet-stream; framework=pytorch"


def write_model_item(model: PathLike, output: PathLike, *, overwrite: bool = False) -> Path:
    """Write the STAC item of a model file, and return its path.

    Raises
    ------
    MissingFileError, ModelFileError
        The model file is missing, damaged or not a segkit model.
    UsageError, OutputExistsError
        The item cannot be written there.
    """
    file, path = require_file(model, "model file"), check_item_path(output, overwrite=overwrite)
    write_item(describe_model_item(file, path), path)
    return path


def find_model_item(model: Path) -> Path | None:
    """Return the item beside a model file that is called like it; None if there is none."""
    path = model.with_suffix(ITEM_SUFFIX)
    try:
        item = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    extensions = item.get("stac_extensions") if isinstance(item, dict) else None
    return path if isinstance(extensions, list) and EXTENSIONS["mlm"] in extensions else None


def describe_model_item(model: Path, path: Path) -> dict[str, Any]:
    """Return the item of a model file that is to be written to a path."""
    header = read_header(model)
    recipe = header.to_recipe()
    task = recipe.task
    created = _time_of(header, model)
    bands = [{"name": name} for name in header.band_names]
    properties = {
        "title": recipe.name,
        "description": f"Segmentation model ({task.type}): {', '.join(one.name for one in task.classes)}",
        "datetime": created,
        "created": created,
        "processing:software": dict(header.versions),
        "bands": _describe_bands(header),
        "mlm:name": model_name(recipe.name),
        "mlm:architecture": recipe.model.architecture,
        "mlm:tasks": _TASKS,
        "mlm:framework": "PyTorch",
        **_framework_version(header),
        "mlm:total_parameters": count_weights(model),
        **_pretraining(header),
        "mlm:accelerator": None,
        "mlm:hyperparameters": _hyperparameters(recipe, task),
        "mlm:input": [_describe_input(header, recipe)],
        "mlm:output": [_describe_output(header, recipe, task)],
        "segkit:scores": {key: header.metrics[key] for key in _SCORES if header.metrics.get(key) is not None},
    }
    asset = {
        "href": make_href(model, path),
        "type": _MODEL_TYPE,
        "title": "Weights, recipe and normalisation (safetensors)",
        "roles": ["mlm:model", "mlm:weights"],
        "mlm:artifact_type": "safetensors.torch.save_file",
        "bands": bands,
    }
    return make_item(path, properties, {"model": asset}, [], ("mlm", "classification", "processing"))


def model_name(name: str) -> str:
    """Return a name in the form that MLM accepts: it starts with a letter, and has at least three characters."""
    plain = re.sub(r"[^A-Za-z0-9_.\s-]+", "_", to_ascii(name)).strip("_.- \t\n")
    return plain if re.fullmatch(r"[A-Za-z].+[A-Za-z0-9]", plain) else f"model {plain}".strip()


def _time_of(header: Header, model: Path) -> str:
    try:
        return format_time(datetime.fromisoformat(header.created))
    except ValueError as error:
        raise ModelFileError(f"{model}: its header has the date {header.created!r}, which is none") from error


def _framework_version(header: Header) -> dict[str, str]:
    version = header.versions.get("torch", "")
    return {"mlm:framework_version": version} if _VERSION.fullmatch(version) else {}


def _pretraining(header: Header) -> dict[str, Any]:
    """Return whether training started from other weights; of a local file only the name, not where it was."""
    if header.initial_weights is None:
        return {"mlm:pretrained": False, "mlm:pretrained_source": None}
    source = header.initial_weights.source
    return {"mlm:pretrained": True, "mlm:pretrained_source": source if is_remote(source) else PurePath(source).name}


def _hyperparameters(recipe: Recipe, task: Task) -> dict[str, Any]:
    model, train = recipe.model, recipe.train
    thresholds = {} if task.thresholds is None else {"thresholds": list(task.thresholds)}
    if model.is_classical:
        return {"learner": model.architecture, **thresholds}
    return {
        "encoder": model.encoder,
        "tile_size": train.tile_size,
        "batch_size": train.batch_size,
        "epochs": train.epochs,
        "learning_rate": train.learning_rate,
        "loss": dict(train.loss),
        **thresholds,
    }


def _describe_bands(header: Header) -> list[dict[str, Any]]:
    """Return the bands of the training imagery, with their data type if all files had the same."""
    dtypes = set() if header.training_pixels is None else {*header.training_pixels.dtypes}
    common = {"data_type": dtypes.pop()} if len(dtypes) == 1 else {}
    return [{"name": name} | common for name in header.band_names]


def _describe_input(header: Header, recipe: Recipe) -> dict[str, Any]:
    is_fixed = header.receptive_field == GLOBAL
    side = recipe.train.tile_size if is_fixed else -1
    formulas = {index.name: index for index in recipe.data.indices}
    bands: list[str | Mapping[str, Any]] = [
        _describe_formula(name, formulas[name]) if name in formulas else name for name in header.band_names
    ]
    return {
        "name": "scene",
        "description": "Values of the bands in the units of the training imagery; pixels without data are set to the "
        "mean of the band.",
        "bands": bands,
        "input": {
            "shape": [-1, len(header.band_names), side, side],
            "dim_order": ["batch", "channel", "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": [
            {"type": "z-score", "mean": mean, "stddev": std} for mean, std in zip(header.mean, header.std, strict=True)
        ],
        "resize_type": None,
    }


def _describe_formula(name: str, index: Any) -> dict[str, Any]:
    """Return a band that is computed from others."""
    expression = {"formula": index.formula, "bands": dict(index.bands), "constants": dict(index.constants)}
    return {"name": name, "format": "segkit", "expression": expression}


def _describe_output(header: Header, recipe: Recipe, task: Task) -> dict[str, Any]:
    side = recipe.train.tile_size if header.receptive_field == GLOBAL else -1
    decision = (
        "the class with the highest probability"
        if task.thresholds is None
        else f"classes whose probability reaches the threshold ({', '.join(f'{one:g}' for one in task.thresholds)})"
    )
    return {
        "name": "logits",
        "description": f"Logits of {', '.join(task.channel_names)}, in this order; {task.head} gives probabilities, "
        f"and a pixel gets {decision}.",
        "tasks": _TASKS,
        "result": {
            "shape": [-1, task.channels, side, side],
            "dim_order": ["batch", "channel", "height", "width"],
            "data_type": "float32",
        },
        "classification:classes": make_classes(task.legend),
    }
