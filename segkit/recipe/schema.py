"""The keys of a recipe, the YAML file of one experiment: types, defaults, descriptions, checks.

A recipe is validated as JSON: an unknown key, a number written as text or a value out of range is an error that names
the file, the key and the rule. Values are never guessed.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, ValidationError, model_serializer, model_validator

from segkit.errors import RecipeError
from segkit.io.files import require_file
from segkit.recipe.base import Band, Count, Positive, StrictModel, one_of, tag_form
from segkit.recipe.features import CLASSICAL, Features, LearnerNames, check_model_keys, keys_of_others
from segkit.recipe.imagery import Imagery
from segkit.recipe.label_source import LabelSource
from segkit.recipe.messages import describe_errors, require_class_names, shorten
from segkit.recipe.renamed import Location, is_stored, new_place, rename_keys
from segkit.recipe.sources import DatasetSource
from segkit.recipe.splits import SpatialSplit, TableSplit
from segkit.recipe.yaml import parse_yaml, resolve_paths, set_at, split_override
from segkit.task import BACKGROUND, Task


def _tag_validation(value: Any) -> str:
    """Return the tag of the kind of validation that a value of `data.val` is."""
    if isinstance(value, DatasetSource) or (
        isinstance(value, dict) and value.keys() & DatasetSource.model_fields.keys()
    ):
        return "<scenes>"
    if isinstance(value, TableSplit) or (isinstance(value, dict) and "column" in value):
        return "<rows>"
    return tag_form(value)


LOSS_NAMES = ("pixel", "focal", "dice", "jaccard", "tversky", "lovasz", "boundary")  # of segkit.training.losses
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]


class Data(Imagery):
    """The data to train and validate on."""

    train: DatasetSource
    """Scenes to train on."""
    val: Annotated[
        Annotated[SpatialSplit, Tag("<keys>")]
        | Annotated[DatasetSource, Tag("<scenes>")]
        | Annotated[TableSplit, Tag("<rows>")]
        | Annotated[None, Tag("<nothing>")],
        one_of(
            "a split (by, fraction, ...), scenes (images, labels or table), a column of the table, or null",
            _tag_validation,
        ),
    ] = SpatialSplit()
    """A spatial split of the training scenes, other scenes, marked rows of the table, or null (no validation)."""
    ignore: tuple[int, ...] = ()
    """Label codes of unlabelled pixels."""
    cache: NotNegative = 20.0
    """Maximum size of the disk cache of decoded scenes and labels in GB, for all trainings together; 0 for none."""

    @model_validator(mode="after")
    def _check_labels(self) -> Data:
        for part, source in (("train", self.train), ("val", self.val)):
            if isinstance(source, DatasetSource) and source.labels is None and source.table is None:
                raise ValueError(f"{part} has no labels; add {part}.labels")
        return self


class Model(StrictModel):
    """The network: any architecture and encoder of segmentation-models-pytorch; or a classical learner."""

    architecture: str = "unet"
    """Name in segmentation-models-pytorch, in lower case; or a classical learner: lda, svm, forest, boosting."""
    encoder: str = "resnet34"
    """Name in segmentation-models-pytorch."""
    encoder_weights: str | None = None
    """Initial weights of the encoder: null for random ones, "imagenet" (downloaded), or a local file."""
    encoder_bands: Annotated[tuple[Band, ...], Field(min_length=1)] | None = None
    """Input bands of the encoder weights, in their order, named as in the imagery (a band without a name by its
    number), so that they are matched by name. By default they are matched by order."""
    start_from: str | None = None
    """Model file with the weights that the training starts from, as far as they fit the bands and classes."""
    pixel_branch: bool = False
    """Whether maps average the probabilities of the network with those of a linear discriminant of single pixels, which
    is fitted to the training pixels."""
    options: dict[str, Any] = Field(default_factory=dict)
    """More arguments of the architecture, or of the learner in scikit-learn."""
    features: Features | None = None
    """Features of a classical learner besides the bands; by default none."""

    @property
    def is_classical(self) -> bool:
        """Whether this is a classical learner, not a network."""
        return self.architecture in CLASSICAL

    @model_validator(mode="after")
    def _check_keys(self) -> Model:
        check_model_keys(self.architecture, self.model_fields_set, self.features)
        return self

    @model_serializer(mode="wrap")
    def _to_dict(self, handler: Any) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key not in keys_of_others(self.architecture)}

    @model_validator(mode="after")
    def _check_weights(self) -> Model:
        if self.start_from is not None and self.encoder_weights is not None:
            raise ValueError("start_from and encoder_weights both give weights to the encoder; remove one of them")
        if self.encoder_bands is not None:
            if self.encoder_weights is None:
                raise ValueError("encoder_bands needs encoder_weights, whose input bands it names; add it")
            names = [str(name) for name in self.encoder_bands]
            if len({*names}) < len(names):
                raise ValueError(f"encoder_bands names a band twice ({', '.join(names)}); correct it")
        return self


class Train(StrictModel):
    """How the network is trained."""

    tile_size: Count = 256
    """Side of a training tile in pixels."""
    batch_size: Count = 8
    """Tiles per step, on each device."""
    epochs: Count = 40
    """Number of epochs; the model is validated after each."""
    steps_per_epoch: Count | None = None
    """Optimizer steps per epoch; by default labelled pixels / (batch_size x tile_size^2)."""
    learning_rate: Positive = 1e-3
    """Maximum learning rate of the schedule."""
    encoder_learning_rate_factor: Positive = 1.0
    """Factor of the learning rate in the encoder; below 1 to change pretrained weights less than others."""
    freeze: tuple[Literal["encoder", "decoder", "head"], ...] = ()
    """Parts of the network that keep their pretrained weights, and the statistics of their batch normalisation."""
    weight_decay: NotNegative = 0.01
    """Weight decay of AdamW."""
    warmup: Share = 0.05
    """Share of all steps in which the learning rate rises to its maximum."""
    loss: Annotated[dict[str, NotNegative], Field(min_length=1)] = Field(
        default_factory=lambda: {"pixel": 1.0, "dice": 1.0}
    )
    """{name: weight} of the losses; their weighted sum is minimised."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a label that is spread evenly over all categories, in the losses `pixel` and `focal`."""
    class_weights: (
        Annotated[
            Annotated[Literal["balanced", "effective"], Tag("<text>")]
            | Annotated[dict[str, Positive], Tag("<keys>")]
            | Annotated[tuple[Positive, ...], Tag("<list>")],
            one_of("'balanced', 'effective', or a weight for each class"),
        ]
        | None
    ) = None
    """Class weights in the losses: "balanced" or "effective" (from the class frequencies), {class: weight}, [a weight
    for each channel], or null for none."""
    class_balanced_sampling: Share = 0.0
    """Strength of class-balanced sampling of crops: 0 = uniform over pixels, 1 = equal per category."""
    augment: Literal["default", "none", "geometric", "strong"] = "default"
    """Set of augmentations."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint to save as the model: that with the best validation IoU, or that of the last epoch."""
    fit_thresholds: bool = True
    """Whether to fit thresholds that the task does not set on the validation data, if it decides by threshold."""
    calibrate: bool = True
    """Whether to fit the calibration of probabilities on the validation data: temperature scaling for softmax, Platt
    scaling for each sigmoid channel."""
    baselines: LearnerNames = ("lda",)
    """Classical learners of single pixels that are fitted to the same training data, for comparison: lda, svm, forest,
    boosting; [] for none."""
    early_stopping: Count | None = None
    """Patience of early stopping, in epochs without a better validation IoU; by default none."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Numerical precision; losses are always fp32."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train."""
    devices: Annotated[
        Annotated[Literal["auto"], Tag("<text>")] | Annotated[Count, Tag("<scalar>")],
        one_of("a whole number or 'auto'"),
    ] = 1
    """Number of devices per machine."""
    num_nodes: Count = 1
    """Number of machines."""
    strategy: str = "auto"
    """Lightning's strategy for several devices."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Number of processes that read tiles; by default chosen for the machine."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of weights, sampling and augmentation."""
    tensorboard: bool = False
    """Whether to write curves for TensorBoard, too."""

    @model_validator(mode="after")
    def _check_training(self) -> Train:
        if not any(self.loss.values()):
            raise ValueError("all weights in loss are 0; set one of them above 0")
        if {*self.freeze} == {"encoder", "decoder", "head"}:
            raise ValueError("freeze lists all parts of the network, so there is nothing to train; remove one of them")
        return self


class Recipe(StrictModel):
    """One experiment: what is mapped, from which data, by which network, trained how."""

    name: Annotated[str, Field(min_length=1)]
    """Shown in reports and stored in the model file."""
    license: str | None = None
    """License of the model, as text; stored in the model file."""
    task: Task
    """What is mapped; see `segkit.task.Task`."""
    data: Data
    """The data to train and validate on."""
    model: Model = Model()
    """The network."""
    train: Train = Train()
    """How the network is trained."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Recipe:
        codes = {row["value"]: row["name"] for row in self.task.legend}
        for code in self.data.ignore:
            if code in codes:
                raise ValueError(f"data.ignore lists {code}, which is the value of {codes[code]!r}; remove one of them")
        weights = self.train.class_weights
        if isinstance(weights, dict):
            require_class_names(codes.values(), weights, "train.class_weights")
        if isinstance(weights, tuple) and len(weights) != self.task.channels:
            names = ", ".join(self.task.channel_names)
            raise ValueError(
                f"train.class_weights has {len(weights)} numbers, the task has {self.task.channels} channels: {names}"
            )
        for part, source in (("train", self.data.train), ("val", self.data.val)):
            if isinstance(source, DatasetSource):
                for labels in source.label_sources:
                    self._check_label_source(labels, f"data.{part}.labels")
        if isinstance(self.data.val, TableSplit) and self.data.train.table is None:
            raise ValueError(
                "data.val.column needs data.train.table, which is not given; add it, or choose another split"
            )
        if self.model.is_classical:
            return self
        if self.data.val is None and self.train.checkpoint == "best":
            raise ValueError("data.val is null, so there is no best epoch; set train.checkpoint: last")
        if self.data.val is None and self.train.early_stopping is not None:
            raise ValueError("data.val is null, so training cannot stop early; remove train.early_stopping")
        return self

    def _check_label_source(self, labels: LabelSource, where: str) -> None:
        names = [one.name for one in self.task.classes] + [BACKGROUND] * self.task.allows_no_class
        require_class_names(
            names, (name for name in (labels.values or {}).values() if name is not None), f"{where}.values"
        )
        require_class_names(names, labels.priority or (), f"{where}.priority")
        require_class_names(names, labels.classes or (), f"{where}.classes")
        if labels.priority and self.task.n_targets > 1:
            raise ValueError(f"{where}.priority: classes of a {self.task.type} task may overlap; remove it")
        if labels.outside_polygons == "background" and not self.task.allows_no_class:
            raise ValueError(f"{where}.outside_polygons is background, but the task has none; use ignore, or remove it")

    @classmethod
    def load(cls, path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe.

        Parameters
        ----------
        path
            YAML. Paths in it are relative to its folder.
        overrides
            "train.epochs=3" or "task.classes.0.name=field": a key and its value as YAML. Paths are relative to the
            current directory.

        Raises
        ------
        MissingFileError
            The file does not exist.
        RecipeError
            The file or an override is not valid, or gives a key under its old and its new name.

        Warns
        -----
        UserWarning
            A key has its old name. Recipes that a training stored are read without a warning.
        """
        file = require_file(path, "recipe")
        raw = parse_yaml(file.read_bytes(), str(file))
        if not isinstance(raw, dict):
            raise RecipeError(f"{file}: found {shorten(raw)}; a recipe has the keys {', '.join(cls.model_fields)}")
        raw = rename_keys(resolve_paths(raw, file.parent), str(file), warn=not is_stored(raw))
        given: dict[Location, Location] = {}
        origins: dict[Location, str] = {}
        for override in overrides:
            place, value = split_override(override)
            key = new_place(place)
            if given.setdefault(key, place) != place:
                old, new = sorted((given[key], place), key=lambda each: each == key)
                raise RecipeError(
                    f"--set {override}: {'.'.join(map(str, old))} is the old name of {'.'.join(map(str, new))}; remove "
                    "one of them"
                )
            set_at(raw, place, resolve_paths(value, Path(), place), f"--set {override}")
            origins[key] = f"--set {override}"
        source = " ".join([str(file), *origins.values()])
        return cls._validate(rename_keys(raw, source, warn=True), source, origins)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Recipe:
        """Make a recipe from what `to_dict` returned, also in segkit 0.2; paths are not changed.

        Raises
        ------
        RecipeError
            It is not valid.
        """
        return cls._validate(rename_keys(dict(raw), "recipe", warn=False), "recipe", {})

    def to_dict(self) -> dict[str, Any]:
        """Return the whole recipe with all defaults, as values that JSON can hold."""
        return self.model_dump(mode="json")

    @classmethod
    def _validate(cls, raw: Mapping[str, Any], source: str, origins: Mapping[Location, str]) -> Recipe:
        try:
            text = json.dumps(raw, default=str)
        except TypeError as error:
            raise RecipeError(f"{source}: a key is not text ({error}); correct it") from error
        try:
            # Strict JSON has the types of YAML: lists become tuples, but "3" is not a number, nor true an integer.
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise RecipeError(describe_errors(error.errors(include_url=False), source, origins, _schema())) from error


def schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, with which editors complete and check YAML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Recipe.model_json_schema()


@functools.cache
def _schema() -> dict[str, Any]:
    return schema()
