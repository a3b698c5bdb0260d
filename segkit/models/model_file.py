"""The header of a model file, which is read without the weights."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from segkit.errors import ModelFileError, first_line
from segkit.io.files import require_file
from segkit.io.paths import PathLike
from segkit.models.calibration import Calibration
from segkit.models.initial_weights import InitialWeights
from segkit.models.output_classes import OutputClasses
from segkit.models.training_pixels import TrainingPixels
from segkit.models.training_scenes import TrainingScenes
from segkit.recipe.schema import Recipe
from segkit.runtime.version import VERSION

_FORMAT = 1  # version of the header; newer ones are refused
_MAX_RADIUS = 10**6  # pixels of a receptive field
SCORES = ("mean_iou", "macro_f1", "overall_accuracy")  # that a description of the model has
HEADER_KEY = "segkit"  # key of the header in the safetensors metadata
GLOBAL: Literal["global"] = "global"  # the receptive field is the whole window


@dataclass(frozen=True)
class Header:
    """Everything in a model file except the weights.

    Parameters
    ----------
    recipe
        Result of `Recipe.to_dict`: task with classes and thresholds, bands, network, training.
    mean, std
        Per input band, over valid training pixels, in the units of the files.
    band_names
        Band names of the training imagery.
    metrics
        Scores on the validation data, as in `metrics.json`; empty before the first evaluation.
    versions
        Versions of segkit and of the libraries used in training.
    created
        Date and time in UTC, ISO 8601.
    format
        Version of the header.
    receptive_field
        Radius in pixels as in `Segmenter.receptive_field`, "global" if unlimited, None if not yet measured.
    calibration
        Scale and shift of the logits; None if the model is not calibrated.
    training_pixels
        A sample of the training pixels; None in files of segkit 0.2.
    training_scenes
        How the training scenes look; None in files of segkit 0.2, and if there are fewer than two.
    initial_weights
        Where the weights came from that training started from; None if they were random.
    output_classes
        Task and channels of a model whose classes were changed after the training; None for others.
    """

    recipe: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    band_names: tuple[str, ...]
    metrics: dict[str, Any]
    versions: dict[str, str]
    created: str
    format: int = _FORMAT
    receptive_field: int | Literal["global"] | None = None
    calibration: Calibration | None = None
    training_pixels: TrainingPixels | None = None
    training_scenes: TrainingScenes | None = None
    initial_weights: InitialWeights | None = None
    output_classes: OutputClasses | None = None

    def to_recipe(self) -> Recipe:
        """Return the recipe with the classes of the model, which may differ from those that it was trained on."""
        recipe = Recipe.from_dict(self.recipe)
        return recipe if self.output_classes is None else recipe.model_copy(update={"task": self.output_classes.task})

    def __post_init__(self) -> None:
        """Raise a ValueError if the receptive field is not valid."""
        radius = self.receptive_field
        is_radius = isinstance(radius, int) and not isinstance(radius, bool) and 0 <= radius <= _MAX_RADIUS
        if not (radius in (None, GLOBAL) or is_radius):
            raise ValueError(f"receptive_field is {radius!r}, not a number of pixels or {GLOBAL!r}")


def count_weights(path: PathLike) -> int:
    """Return the number of trained numbers in a model file, without reading them."""
    shapes = read_shapes(path)
    return sum(math.prod(shapes[name]) for name in shapes if "running_" not in name and "num_batches" not in name)


def read_shapes(path: PathLike) -> dict[str, list[int]]:
    """Return {name: shape} of the weights in a model file, without reading them."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as stored:
        return {name: list(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118


def read_header(path: PathLike) -> Header:
    """Read the header of a model file, without the weights.

    Raises
    ------
    MissingFileError, ModelFileError
        The file is missing, damaged or not a segkit model.
    """
    file = require_file(path, "model file")
    if file.is_dir():
        raise ModelFileError(f"{file} is a folder; name the model file in it (model.safetensors)")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as stored:
            text = (stored.metadata() or {}).get(HEADER_KEY)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{file}: not a model file (.safetensors), or damaged: {error}") from error
    if text is None:
        raise ModelFileError(
            f"{file}: is a safetensors file without a recipe, so no model of segkit; give one that segkit train wrote"
        )
    try:
        fields = dict(json.loads(text))
        if "reach" in fields:  # its name in segkit 0.2
            fields["receptive_field"] = fields.pop("reach")
        header_format = fields.get("format")
        if header_format == _FORMAT:
            return parse_header(fields)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelFileError(f"{file}: its header is damaged: {first_line(error)}") from error
    raise ModelFileError(
        f"{file}: its header has format {header_format}, segkit {VERSION} reads format {_FORMAT}; update segkit"
    )


def parse_header(fields: Mapping[str, Any]) -> Header:
    """Return a header from what JSON holds.

    Raises
    ------
    ValueError, TypeError, KeyError, AttributeError
        It is damaged.
    """
    _check_types(fields)
    parsed: dict[str, Any] = {name: tuple(fields[name]) for name in ("mean", "std", "band_names")}
    if fields.get("calibration") is not None:
        parsed["calibration"] = Calibration(**{key: tuple(values) for key, values in fields["calibration"].items()})
    if fields.get("training_pixels") is not None:
        parsed["training_pixels"] = TrainingPixels.from_json(fields["training_pixels"])
    if fields.get("training_scenes") is not None:
        parsed["training_scenes"] = TrainingScenes.from_json(fields["training_scenes"])
    if fields.get("initial_weights") is not None:
        parsed["initial_weights"] = InitialWeights.from_json(fields["initial_weights"])
    if fields.get("output_classes") is not None:
        parsed["output_classes"] = OutputClasses.from_json(fields["output_classes"])
    return Header(**dict(fields) | parsed)


def _check_types(fields: Mapping[str, Any]) -> None:
    """Raise a ValueError or KeyError if a part of a header is not what `Header` says."""
    if unknown := fields.keys() - {one.name for one in dataclasses.fields(Header)}:
        raise ValueError(f"it has the unknown key {min(unknown)!r}")
    for name in ("recipe", "metrics", "versions"):
        if not isinstance(fields[name], dict):
            raise ValueError(f"{name} is {type(fields[name]).__name__}, not keys with values")  # noqa: TRY004 - of the file
    sizes = set()
    for name, kinds in (("mean", int | float), ("std", int | float), ("band_names", str)):
        values = fields[name]
        if not isinstance(values, list | tuple) or not all(isinstance(value, kinds) for value in values) or not values:
            raise ValueError(f"{name} is not a list of one {'name' if kinds is str else 'number'} per band")
        sizes.add(len(values))
    if len(sizes) > 1:
        raise ValueError("mean, std and band_names are of different numbers of bands")
    check_metrics(fields["metrics"])


def check_metrics(metrics: Mapping[str, Any]) -> None:
    """Raise a ValueError if scores, also those of classes, are not numbers or None."""
    per_class = metrics.get("per_class") or {}
    if not isinstance(per_class, dict) or not all(isinstance(each, dict) for each in per_class.values()):
        raise ValueError("metrics.per_class has no scores for each class")
    of_classes = [value for each in per_class.values() for value in each.values()]
    if not all(isinstance(value, int | float | None) for value in (*map(metrics.get, SCORES), *of_classes)):
        raise ValueError("a score in metrics is not a number")
