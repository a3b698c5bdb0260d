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
from segkit.recipe.base import Band, Count, StrictModel, one_of, tag_form
from segkit.recipe.features import CLASSICAL, Features, check_model_keys, keys_of_others
from segkit.recipe.imagery import Imagery
from segkit.recipe.messages import UNKNOWN, readable_error, require_class_names, shorten
from segkit.recipe.renamed import Location, is_stored, new_place, rename_keys
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


Stack = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[tuple[str, ...], Tag("<list>"), Field(min_length=1)],
    one_of("a path, or a list of paths that make up one scene"),
]
Names = Annotated[tuple[str, ...], Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class LabelSource(StrictModel):
    """Labels and how to read them."""

    path: (
        Annotated[Annotated[str, Tag("<text>")] | Annotated[Names, Tag("<list>")], one_of("a path or a list of paths")]
        | None
    ) = None
    """A folder, a file, a glob or a list of files; by default the files in the column label of the table."""
    layer: str | None = None
    """Layer of a vector file with several layers."""
    field: str | None = None
    """Field with the class of each polygon; without one, all polygons are of the single class in `classes`."""
    values: dict[str, str | None] | None = None
    """{value of the field, or code of the raster: class name, "background", or null for unlabelled}; by default the
    field holds class names or class values, and the raster class values."""
    classes: Names | None = None
    """The classes that these labels cover; the others stay unlabelled. By default all."""
    fractions: bool = False
    """Whether the raster holds cover fractions, one band per class, instead of codes (soft labels)."""
    full_value: Positive = 1.0
    """Raster value that means 100 % cover, after the scale and offset of the file: 1, 100, 255."""
    nodata: Literal["code", "ignore"] | None = None
    """How to read a raster value that is declared as no data and is also the code of a class or of background: as this
    `code`, or as unlabelled (`ignore`). By default that is reported as a problem."""
    priority: Names | None = None
    """Class names, highest first: which class to use where polygons of mutually exclusive classes overlap."""
    outside_polygons: Literal["background", "ignore"] | None = None
    """Pixels outside all polygons: `background` or `ignore` (unlabelled). By default in none of the classes, or
    unlabelled if the task does not allow that. Of fractions: the part of a pixel that no class covers."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The path or paths; empty if the table names the files."""
        return (self.path,) if isinstance(self.path, str) else self.path or ()


class DatasetSource(StrictModel):
    """Scenes and their labels, paired by file name or listed in a table."""

    images: (
        Annotated[
            Annotated[str, Tag("<text>")] | Annotated[tuple[Stack, ...], Tag("<list>"), Field(min_length=1)],
            one_of("a path, a list of paths, or a list of lists (the files of each scene)"),
        ]
        | None
    ) = None
    """A folder, a file, a glob, a list of files, or a list of lists (the files that are stacked to one scene)."""
    labels: (
        Annotated[
            Annotated[str, Tag("<text>")]
            | Annotated[Names, Tag("<list>")]
            | Annotated[LabelSource, Tag("<keys>")]
            | Annotated[tuple[LabelSource, ...], Tag("<sources>"), Field(min_length=1)],
            one_of("a path, a list of paths, keys with a path among them, or a list of such keys"),
        ]
        | None
    ) = None
    """Rasters or vector files: a folder, a file, a glob, a list, a `LabelSource`; or a list of these (merged)."""
    table: str | None = None
    """CSV with one row per scene: columns image (or image1, image2, ...), label, and optionally name and weight."""

    @model_validator(mode="after")
    def _check_sources(self) -> DatasetSource:
        if (self.images is None) == (self.table is None):
            raise ValueError("give either images or table")
        pathless = sum(not labels.paths for labels in self.label_sources)
        if pathless > (self.table is not None):
            raise ValueError(
                "labels have no path; give one, or a table with the label files in its column label"
                if self.table is None
                else f"{pathless} label sources have no path, but the table names the files of only one; add paths"
            )
        return self

    @property
    def label_sources(self) -> tuple[LabelSource, ...]:
        """The labels as `LabelSource`s, also if the recipe gives only paths."""
        if self.labels is None or isinstance(self.labels, LabelSource):
            return () if self.labels is None else (self.labels,)
        if isinstance(self.labels, str) or isinstance(self.labels[0], str):
            return (LabelSource.model_validate({"path": self.labels}),)
        return tuple(one for one in self.labels if isinstance(one, LabelSource))


class SpatialSplit(StrictModel):
    """Spatial split: validate on blocks, whole scenes or polygons of the training scenes."""

    by: Literal["block", "scene", "polygon", "appearance"] = "block"
    """Unit of the split: a block of pixels, a scene (with all that overlap it), or a polygon. By appearance, scenes are
    ordered by the statistics of their bands, and those to validate on are a contiguous part of the order."""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the labelled area to validate on; the units are drawn at random, or are one end of the order by
    appearance."""
    fold: Annotated[str, Field(pattern=r"^[0-9]+/[0-9]+$")] | None = None
    """"0/5": validate on the first of five folds, which together hold all labels. Replaces `fraction`."""
    block: Count | None = None
    """Side of a block in pixels; by default 512 or four tiles, whichever is more, and less for small scenes."""
    polygons: str | None = None
    """Vector file of the polygons."""
    layer: str | None = None
    """Layer of a vector file with several layers."""
    field: str | None = None
    """Field of the polygons that marks those to validate on."""
    values: Names | None = None
    """Values of the field that mark polygons to validate on. Replaces `fraction`."""
    gap: Annotated[int, Field(ge=0)] | None = None
    """Width in pixels of the buffer between training and validation, which is used for neither; by default
    train.tile_size, but at most a quarter of the side of a block (a scene, a polygon)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random draw; by appearance nothing is drawn."""

    @model_validator(mode="after")
    def _check_keys(self) -> SpatialSplit:
        if (self.by == "polygon") != (self.polygons is not None):
            raise ValueError(
                "by: polygon needs polygons, the file that holds them, and the other way round; give both or neither"
            )
        if (self.field is None) != (self.values is None):
            raise ValueError("field needs values, and the other way round; give both or neither")
        for key in ("layer", "field"):
            if getattr(self, key) is not None and self.by != "polygon":
                raise ValueError(f"{key} is only for by: polygon; remove it")
        if self.fold is not None:
            number, folds = map(int, self.fold.split("/"))
            if self.values is not None:
                raise ValueError("fold and values both choose what to validate on; remove one of them")
            if not number < folds or folds < 2:
                raise ValueError(
                    f"fold {self.fold} does not exist; with n folds (2 or more), the first is 0/n, the last n-1/n"
                )
        return self


class TableSplit(StrictModel):
    """Validate on the rows of the table of `data.train` that are marked in a column."""

    column: str
    """Name of the column."""
    val: Names = ("val", "valid", "validation")
    """Values of validation rows."""
    train: Names | None = None
    """Values of training rows; by default all others except empty ones."""


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
    early_stopping: Count | None = None
    """Patience of early stopping, in epochs without a better validation IoU; by default none."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Numerical precision; losses are always fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
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
    seed: Annotated[int, Field(ge=0)] = 0
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
            # Strict JSON has the types of YAML: lists become tuples, but "3" is not a number, nor true an integer.
            return cls.model_validate_json(json.dumps(raw, default=str), strict=True)
        except ValidationError as error:
            # A list of wrong items is also reported as empty, and a misspelt key also as a missing one, so unknown keys
            # come first.
            found = error.errors(include_url=False)
            found = [each for each in found if each["type"] != "too_short" or not each["input"]]
            first, *others = sorted(found, key=lambda each: each["type"] not in UNKNOWN)
            place = tuple(part for part in first["loc"] if not str(part).startswith("<"))
            origin = next((text for at, text in origins.items() if place[: len(at)] == at), source)
            more = f" (and {len(others)} more)" if others else ""
            raise RecipeError(f"{origin}: {readable_error(first, place, _schema())}{more}") from error


def schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, with which editors complete and check YAML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Recipe.model_json_schema()


@functools.cache
def _schema() -> dict[str, Any]:
    return schema()
