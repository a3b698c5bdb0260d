"""Several models as one: an ensemble, whose probabilities are the mean of those of its models."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from segkit.errors import UsageError
from segkit.io.band_names import distinct_parts
from segkit.io.paths import PathLike
from segkit.models.run_folder import MODEL, find_folds
from segkit.recipe.derived import describe_layers
from segkit.recipe.imagery import Imagery, change_imagery
from segkit.runtime.tables import Described

if TYPE_CHECKING:
    import torch

    from segkit.io.scene import Scene
    from segkit.models.graph_model import GraphModel
    from segkit.models.segmenter import Segmenter
    from segkit.recipe.schema import Recipe
    from segkit.task import Task

    OneModel: TypeAlias = "Segmenter | GraphModel"
    AnyModel: TypeAlias = "OneModel | Ensemble"


class Ensemble(Described):
    """Models of the same task and bands, with the properties of a `Segmenter` that a prediction needs.

    The probability of a channel is the mean of those of the models, each with its own normalisation and calibration.
    Thresholds are the means of the models' thresholds: each was fitted to the probabilities of its model.

    Parameters
    ----------
    models
        Two or more. Their order does not matter; `members` are sorted by fingerprint, so that sums do not depend on it.

    Raises
    ------
    UsageError
        A model occurs twice, or models differ in their classes, their head, their bands (number, names, order) or how
        they read these, or in the fixed sizes of their windows.
    """

    def __init__(self, models: Sequence[OneModel]) -> None:
        by_fingerprint = {one.fingerprint(): one for one in models}
        if len(by_fingerprint) < len(models):
            raise UsageError(f"{', '.join(_names(models))}: two of these are the same model; give each model once")
        self.fingerprints: tuple[str, ...] = tuple(sorted(by_fingerprint))
        self.members: tuple[OneModel, ...] = tuple(by_fingerprint[each] for each in self.fingerprints)
        # Bands of a scene are found by the names of this model. Others may lack names, but not have different ones.
        named = next((one for one in models if distinct_parts(one.band_names)), models[0])
        for other in models:
            _check_compatible(named, other)
        self._named = self.members.index(named)
        first = self.members[0]
        self.task: Task = _mean_thresholds([one.task for one in self.members])
        self.recipe: Recipe = first.recipe.model_copy(update={"task": self.task})
        self.imagery: Imagery = named.imagery
        self.bands, self.band_names, self.path = first.bands, named.band_names, None
        self.stride = math.lcm(*(one.stride for one in self.members))
        _ = self.fixed_window_size  # raises an error if there are several

    @property
    def is_classical(self) -> bool:
        """Whether all models are classical learners."""
        return all(one.is_classical for one in self.members)

    @property
    def backend(self) -> str:
        """What runs the networks; not torch if one of them is run otherwise."""
        return next((one.backend for one in self.members if one.backend != "torch"), "torch")

    @property
    def receptive_field(self) -> int | None:
        """The largest of the models'; None if one is global."""
        radii = [one.receptive_field for one in self.members]
        finite = [radius for radius in radii if radius is not None]
        return max(finite) if len(finite) == len(radii) else None

    @property
    def fixed_window_size(self) -> int | None:
        """Window size of the models with a global receptive field; None if there is none."""
        sizes = {one.fixed_window_size for one in self.members} - {None}
        if len(sizes) > 1:
            found = ", ".join(
                f"{name}: {one.fixed_window_size}"
                for name, one in zip(_names(self.members), self.members, strict=True)
                if one.fixed_window_size is not None
            )
            raise UsageError(
                f"models with a global receptive field need windows of their train.tile_size, which differ ({found}); "
                "average only models with the same size"
            )
        return next(iter(sizes), None)

    def fingerprint(self) -> str:
        """Return a hash of all models, the same in any order."""
        return sha256(" ".join(self.fingerprints).encode()).hexdigest()

    def open_scene(self, paths: PathLike | Sequence[PathLike], *, vrt: bool = False) -> Scene:
        """Open a scene as the models were trained; see `Segmenter.open_scene`."""
        return naming_member(self).open_scene(paths, vrt=vrt)

    def check_scene(self, scene: Scene) -> None:
        """Raise a ModelFileError if the scene's number of bands is not that of the models."""
        self.members[0].check_scene(scene)

    def _describe(self) -> tuple[str, list[tuple[str, str]], dict[str, str]]:
        facts = []
        for one in self.members:
            title, of_one, _ = one._describe()
            facts += [(title, ""), *((f"  {name}", value) for name, value in of_one)]
        colors = {f"    {row['name']}": row["color"] for row in self.task.legend}
        return f"ensemble of {len(self.members)} models", facts, colors

    def optimized_for_inference(self, device: torch.device, precision: str) -> Ensemble:
        """Return an ensemble of faster copies; see `Segmenter.optimized_for_inference`."""
        copied = object.__new__(Ensemble)
        copied.__dict__ |= self.__dict__
        copied.members = tuple(one.optimized_for_inference(device, precision) for one in torch_members(self))
        return copied


def members(model: AnyModel) -> tuple[OneModel, ...]:
    """Return the models of an ensemble, or the single model."""
    return model.members if isinstance(model, Ensemble) else (model,)


def torch_members(model: AnyModel) -> tuple[Segmenter, ...]:
    """Return the models of a model whose backend is torch: none of them is a graph."""
    assert model.backend == "torch"
    return cast("tuple[Segmenter, ...]", members(model))


def naming_member(model: AnyModel) -> OneModel:
    """Return the model of an ensemble by whose names bands are found, or the single model."""
    return model.members[model._named] if isinstance(model, Ensemble) else model


def with_imagery(model: AnyModel, changes: Mapping[str, Any]) -> AnyModel:
    """Return a model that opens scenes with other keys of `Imagery` than its recipe's; see `change_imagery`.

    Its recipe and fingerprint stay the same, and so does `model`.

    Raises
    ------
    UsageError
        A value is not valid.
    """
    if not changes:
        return model
    changed = copy.copy(model)
    if isinstance(changed, Ensemble):
        changed.imagery = change_imagery(changed.imagery, changes)
        changed.members = tuple(with_imagery(one, changes) for one in members(model))  # type: ignore[misc]
    else:
        changed.imagery = change_imagery(changed.imagery, changes)
    return changed


def load_model(model: AnyModel | PathLike | Sequence[AnyModel | PathLike]) -> AnyModel:
    """Return a model that can predict.

    Parameters
    ----------
    model
        A model or its file; the folder of a cross-validation, for an ensemble of the models of all folds; or a
        sequence of these, for an ensemble of all.

    Raises
    ------
    UsageError
        The models do not fit together, or a folder does not hold the models of all folds.
    MissingFileError, ModelFileError
        A file is missing, damaged or not a segkit model.
    """
    if isinstance(model, (str, os.PathLike)):
        loaded = [_load(file) for file in model_files([model])]
        return loaded[0] if len(loaded) == 1 else Ensemble(loaded)
    if not isinstance(model, Sequence):
        return model
    if not model:
        raise UsageError("no model is given; give a model file, or several")
    found = [one for each in model for one in members(load_model(each))]
    return found[0] if len(found) == 1 else Ensemble(found)


def _load(file: Path) -> OneModel:
    if file.suffix.lower() == ".onnx":
        from segkit.models.graph_model import load_onnx

        return load_onnx(file)
    from segkit.models.segmenter import load

    return load(file)


def model_files(models: Iterable[PathLike]) -> list[Path]:
    """Return model files; a folder of folds stands for the model of each fold.

    Raises
    ------
    UsageError
        A fold has no model yet, or the folder holds folds of several cross-validations.
    """
    found: list[Path] = []
    for given in models:
        path = Path(given)
        folds = {key: folder / MODEL for key, folder in find_folds(path).items()}
        numbers = sorted({number for _, number in folds})
        if len(numbers) > 1:
            raise UsageError(
                f"{path}: holds folds of several cross-validations ({' and '.join(map(str, numbers))} folds); name the "
                "model files of one of them"
            )
        if folds:
            missing = [f"{k}/{numbers[0]}" for k in range(numbers[0]) if not folds.get((k, numbers[0]), path).is_file()]
            if missing:
                raise UsageError(
                    f"{path}: fold {', '.join(missing)} has no model, so the training is not finished; run it again, "
                    "or name single model files"
                )
        found += [file for _, file in sorted(folds.items())] or [path]
    return found


def describe_models(model: AnyModel, fingerprint: str) -> str:
    """Return names and fingerprints of all models, for the metadata of a map.

    Parameters
    ----------
    fingerprint
        Of `model`, which takes time to compute.
    """
    prints = model.fingerprints if isinstance(model, Ensemble) else (fingerprint,)
    return ", ".join(f"{name} {each}" for name, each in zip(_names(members(model)), prints, strict=True))


def list_model_files(model: AnyModel) -> list[str]:
    """Return the absolute paths of all models that are files."""
    return [str(one.path.absolute()) for one in members(model) if one.path is not None]


def _names(models: Sequence[OneModel]) -> list[str]:
    """Return the file names of models, with their folders if there are several."""
    parts = -2 if len(models) > 1 else -1
    return ["a model in memory" if one.path is None else "/".join(one.path.parts[parts:]) for one in models]


def _check_compatible(first: OneModel, other: OneModel) -> None:
    """Raise a UsageError if probabilities of two models cannot be averaged."""
    theirs = _facts(other)
    for what, one in _facts(first).items():
        if theirs[what] != one:
            names = _names([first, other])
            raise UsageError(
                f"{names[1]}: {what} {_as_text(theirs[what])}, but {names[0]} has {_as_text(one)}; models that are "
                "averaged need the same classes in the same order, the same head and the same bands"
            )
    ours, others = distinct_parts(first.band_names), distinct_parts(other.band_names)
    if ours and others and ours != others:
        names = _names([first, other])
        raise UsageError(
            f"{names[1]}: trained on bands {', '.join(other.band_names)}, but {names[0]} on "
            f"{', '.join(first.band_names)}; models that are averaged need the same bands in the same order"
        )


def _facts(model: OneModel) -> dict[str, Any]:
    """Return what must be equal in all models of an ensemble, by its name in messages."""
    task, data = model.task, model.recipe.data
    return {
        "task type": task.type,
        "head": task.head,
        "classes": tuple(f"{one.name} ({one.value})" for one in task.classes),
        "background": task.background,
        "background value": task.background_value,
        "number of bands": model.bands,
        **{f"data.{key}": getattr(data, key) for key in Imagery.model_fields if key not in ("band_names", "layers")},
        "data.layers": describe_layers(data.layers),
    }


def _as_text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _mean_thresholds(tasks: Sequence[Task]) -> Task:
    """Return the task with the mean of the thresholds; without one, the highest probability decides, as 0.5 does."""
    thresholds = [one.thresholds for one in tasks]
    if all(each == thresholds[0] for each in thresholds):
        return tasks[0]
    halves = (0.5,) * len(tasks[0].classes)
    return tasks[0].with_thresholds(np.mean([each or halves for each in thresholds], axis=0).tolist())
