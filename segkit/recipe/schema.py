"""Recipe: the YAML file of one experiment, read strictly.

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

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from segkit.errors import RecipeError
from segkit.io.files import existing
from segkit.recipe.messages import UNKNOWN, Location, readable_error, require_known, shorten
from segkit.recipe.yaml import parse_yaml, put, resolve_paths, split_override
from segkit.task.task import BACKGROUND, Task


def _shape(value: Any) -> str:
    """Say which member of a union a value is meant for; the tag appears in pydantic's locations and is left out."""
    if isinstance(value, str):
        return "<text>"
    if isinstance(value, list | tuple):
        return "<sources>" if value and all(isinstance(each, dict | BaseModel) for each in value) else "<list>"
    if isinstance(value, Source) or (isinstance(value, dict) and value.keys() & Source.model_fields.keys()):
        return "<scenes>"
    if isinstance(value, Rows) or (isinstance(value, dict) and "column" in value):
        return "<rows>"
    if value is None:
        return "<nothing>"
    return "<keys>" if isinstance(value, dict | BaseModel) else "<scalar>"


def _either(rule: str) -> Discriminator:
    """Choose a union's member by the value's shape, so that an error is about that one alone."""
    return Discriminator(_shape, custom_error_type="either", custom_error_message=f"Input should be {rule}")


Stack = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[tuple[str, ...], Tag("<list>"), Field(min_length=1)],
    _either("a path, or a list of paths that make up one scene"),
]
Names = Annotated[tuple[str, ...], Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class LabelSource(_Part):
    """Labels with instructions how to read them."""

    path: (
        Annotated[Annotated[str, Tag("<text>")] | Annotated[Names, Tag("<list>")], _either("a path or a list of paths")]
        | None
    ) = None
    """A folder, a file, a glob or a list of files; by default the files that the table's column label names."""
    layer: str | None = None
    """Layer of a vector file that holds several."""
    field: str | None = None
    """Field that says what a polygon is; without one every polygon is the only class that these labels speak for."""
    values: dict[str, str | None] | None = None
    """{value of the field, or code of the raster: class name, "background", or null for "not known"}; by default the
    field holds class names or class values, and the raster class values."""
    classes: Names | None = None
    """The classes that these labels speak for; of the others they say nothing. By default all."""
    fractions: bool = False
    """Whether the raster holds the cover of each class, one band a class, instead of codes: soft labels."""
    whole: Positive = 1.0
    """What a pixel that is covered wholly has in a raster of fractions, after the file's own scale: 1, 100, 255."""
    nodata: Literal["code", "ignore"] | None = None
    """What pixels of a raster are whose value is a class's, or background's, and also declared as no data: this `code`,
    or not known (`ignore`). By default that is a problem."""
    priority: Names | None = None
    """Class names, highest first: who wins where polygons of an exclusive task overlap."""
    outside: Literal["background", "ignore"] | None = None
    """What a pixel outside every polygon is; by default in no class, and not known where the task has no background."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The path or paths; none where the table names the files."""
        return (self.path,) if isinstance(self.path, str) else self.path or ()


class Source(_Part):
    """Scenes and their labels, paired by file stem; or a table of them."""

    images: (
        Annotated[
            Annotated[str, Tag("<text>")] | Annotated[tuple[Stack, ...], Tag("<list>"), Field(min_length=1)],
            _either("a path, a list of paths, or a list of lists (the files of each scene)"),
        ]
        | None
    ) = None
    """A folder, a file, a glob, a list of files, or a list of lists: files that are stacked to one scene each."""
    labels: (
        Annotated[
            Annotated[str, Tag("<text>")]
            | Annotated[Names, Tag("<list>")]
            | Annotated[LabelSource, Tag("<keys>")]
            | Annotated[tuple[LabelSource, ...], Tag("<sources>"), Field(min_length=1)],
            _either("a path, a list of paths, keys with a path among them, or a list of such keys"),
        ]
        | None
    ) = None
    """Rasters or vector files: a folder, a file, a glob, a list, or a `LabelSource`; or several of these, which
    together say what is on a scene."""
    table: str | None = None
    """CSV with one row a scene: columns image (or image1, image2, ...), label, and optionally name and weight."""

    @model_validator(mode="after")
    def _one_way(self) -> Source:
        if (self.images is None) == (self.table is None):
            raise ValueError("give either images or table")
        pathless = sum(not labels.paths for labels in self.label_sources)
        if pathless > (self.table is not None):
            raise ValueError(
                "labels have no path; give one, or a table whose column label names the files"
                if self.table is None
                else f"{pathless} of the labels have no path; only one can be the table's; give the others a path"
            )
        return self

    @property
    def label_sources(self) -> tuple[LabelSource, ...]:
        """The labels as `LabelSource`s, however short they were written."""
        if self.labels is None or isinstance(self.labels, LabelSource):
            return () if self.labels is None else (self.labels,)
        if isinstance(self.labels, str) or isinstance(self.labels[0], str):
            return (LabelSource.model_validate({"path": self.labels}),)
        return tuple(one for one in self.labels if isinstance(one, LabelSource))


class Split(_Part):
    """Validate on parts of the training scenes: blocks, whole scenes, or what polygons cover."""

    by: Literal["block", "scene", "polygon"] = "block"
    """What is kept together: a block of pixels, a scene (with all that share its ground), or a polygon."""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the labelled area that validates; the parts are drawn at random."""
    fold: Annotated[str, Field(pattern=r"^[0-9]+/[0-9]+$")] | None = None
    """"0/5": of five folds the first validates; together they are all that is labelled. Stands for `fraction`."""
    block: Count | None = None
    """Side of a block in pixels; by default 512 or four tiles, or as much less as small scenes need."""
    polygons: str | None = None
    """Vector file of the polygons."""
    layer: str | None = None
    """Layer of a vector file that holds several."""
    field: str | None = None
    """Field of the polygons that says which of them validate."""
    values: Names | None = None
    """Values of the field of polygons that validate. Stands for `fraction`."""
    gap: Annotated[int, Field(ge=0)] | None = None
    """Pixels between training and validation that serve neither; by default train.tile_size, but at most a quarter of
    the side of a block (of a scene, a polygon)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the draw."""

    @model_validator(mode="after")
    def _whole(self) -> Split:
        if (self.by == "polygon") != (self.polygons is not None):
            raise ValueError("by: polygon and polygons, the file that holds them, go together; give both or neither")
        if (self.field is None) != (self.values is None):
            raise ValueError("field and values go together: which field, and which of its values validate")
        for key in ("layer", "field"):
            if getattr(self, key) is not None and self.by != "polygon":
                raise ValueError(f"{key} is for by: polygon; remove it")
        if self.fold is not None:
            number, folds = map(int, self.fold.split("/"))
            if self.values is not None:
                raise ValueError("fold and values both say what validates; remove one of them")
            if not number < folds or folds < 2:
                raise ValueError(f"fold {self.fold} is none: of n folds, at least 2, the first is 0/n, the last n-1/n")
        return self


class Rows(_Part):
    """Validate on the rows of the table of `data.train` that a column marks."""

    column: str
    """Name of the column."""
    val: Names = ("val", "valid", "validation")
    """Values of rows that validate."""
    train: Names | None = None
    """Values of rows that train; by default all others but empty ones."""


class Data(_Part):
    """What is trained and validated on."""

    train: Source
    """Scenes to train on."""
    val: Annotated[
        Annotated[Split, Tag("<keys>")]
        | Annotated[Source, Tag("<scenes>")]
        | Annotated[Rows, Tag("<rows>")]
        | Annotated[None, Tag("<nothing>")],
        _either("a split (by, fraction, ...), scenes (images, labels or table), a column of the table, or null"),
    ] = Split()
    """A spatial split of the training scenes, scenes of their own, marked rows of the table, or null: all train."""
    bands: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Bands to use, counted from 1 through all files of a scene; by default all."""
    ignore: tuple[int, ...] = ()
    """Label codes that mean "not known"."""
    scaled: bool = False
    """Whether the scale and offset that files declare are applied to their bands; else pixels are as stored."""
    resample: bool = False
    """Whether files on another grid than the scene's first are warped to it (labels by nearest neighbour)."""
    cache: NotNegative = 20.0
    """Gigabytes of decoded scenes and labels that are kept on the disk, for all trainings together; 0 for none."""

    @model_validator(mode="after")
    def _labelled(self) -> Data:
        for part, source in (("train", self.train), ("val", self.val)):
            if isinstance(source, Source) and source.labels is None and source.table is None:
                raise ValueError(f"{part} has no labels; add {part}.labels")
        return self


class Model(_Part):
    """The network: any architecture and encoder of segmentation-models-pytorch."""

    architecture: str = "unet"
    """Its name in segmentation-models-pytorch, in small letters."""
    encoder: str = "resnet34"
    """Its name in segmentation-models-pytorch."""
    encoder_weights: str | None = None
    """Weights to start from: null for random ones, "imagenet" (downloaded), or a local file."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the architecture."""


class Train(_Part):
    """How the network is trained."""

    tile_size: Count = 256
    """Side of a training tile in pixels."""
    batch_size: Count = 8
    """Tiles in a step, on each device."""
    epochs: Count = 40
    """Validations."""
    steps: Count | None = None
    """Optimizer steps in an epoch; by default as many as cover the training area once."""
    learning_rate: Positive = 1e-3
    """Highest learning rate of the schedule."""
    weight_decay: NotNegative = 0.01
    """AdamW's."""
    warmup: Share = 0.05
    """Share of all steps in which the learning rate rises."""
    loss: Annotated[dict[str, NotNegative], Field(min_length=1)] = Field(
        default_factory=lambda: {"pixel": 1.0, "dice": 1.0}
    )
    """{name: weight} of the losses that are added."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread over all categories, in the losses `pixel` and `focal`."""
    class_weights: (
        Annotated[
            Annotated[Literal["balanced", "effective"], Tag("<text>")]
            | Annotated[dict[str, Positive], Tag("<keys>")]
            | Annotated[tuple[Positive, ...], Tag("<list>")],
            _either("'balanced', 'effective', or a weight for each class"),
        ]
        | None
    ) = None
    """Weights of the channels' categories in the losses: "balanced" or "effective" (from their shares), {class:
    weight}, [a weight for each channel], or none."""
    oversample: Share = 0.0
    """How much rare categories are preferred by the crops: 0 every pixel alike, 1 every category alike."""
    augment: Literal["default", "none", "geometric", "strong"] = "default"
    """Which augmentations tiles go through."""
    keep: Literal["best", "last"] = "best"
    """Which weights are saved: those with the best validation IoU, or those of the last epoch."""
    fit_thresholds: bool = True
    """Whether the thresholds that the task leaves open are fitted on the validation data, where classes have some."""
    calibrate: bool = True
    """Whether probabilities are made to mean what they say on the validation data: a temperature of the softmax, or a
    factor and a summand for each sigmoid."""
    early_stopping: Count | None = None
    """Epochs without a better validation IoU after which training ends; by default never."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the arithmetic; losses are always fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    devices: Annotated[
        Annotated[Literal["auto"], Tag("<text>")] | Annotated[Count, Tag("<scalar>")],
        _either("a whole number or 'auto'"),
    ] = 1
    """How many devices of a machine."""
    num_nodes: Count = 1
    """How many machines."""
    strategy: str = "auto"
    """Lightning's strategy for several devices."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that read tiles; by default as the machine suggests."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of weights, sampling and augmentation."""
    tensorboard: bool = False
    """Whether curves are also written for TensorBoard."""

    @model_validator(mode="after")
    def _some_loss(self) -> Train:
        if not any(self.loss.values()):
            raise ValueError("every weight in loss is 0; give one of them a weight")
        return self


class Recipe(_Part):
    """One experiment: what is mapped, from which data, by which network, trained how."""

    name: Annotated[str, Field(min_length=1)]
    """Shown in reports and in the model file."""
    license: str | None = None
    """Under which the model may be used; kept in the model file."""
    task: Task
    """What is mapped; see `segkit.task.task.Task`."""
    data: Data
    """What is trained and validated on."""
    model: Model = Model()
    """The network."""
    train: Train = Train()
    """How it is trained."""

    @model_validator(mode="after")
    def _fits_the_task(self) -> Recipe:
        codes = {row["value"]: row["name"] for row in self.task.legend}
        for code in self.data.ignore:
            if code in codes:
                raise ValueError(f"data.ignore lists {code}, which is the value of {codes[code]!r}; remove one of them")
        weights = self.train.class_weights
        if isinstance(weights, dict):
            require_known(codes.values(), weights, "train.class_weights")
        if isinstance(weights, tuple) and len(weights) != self.task.channels:
            names = ", ".join(self.task.channel_names)
            raise ValueError(f"train.class_weights has {len(weights)} numbers, the task {self.task.channels}: {names}")
        for part, source in (("train", self.data.train), ("val", self.data.val)):
            if isinstance(source, Source):
                for labels in source.label_sources:
                    self._check_labels(labels, f"data.{part}.labels")
        if isinstance(self.data.val, Rows) and self.data.train.table is None:
            raise ValueError("data.val.column names a column of data.train.table, which is not given")
        if self.data.val is None and self.train.keep == "best":
            raise ValueError("data.val is null, so no epoch can be the best; set train.keep: last")
        if self.data.val is None and self.train.early_stopping is not None:
            raise ValueError("data.val is null, so training cannot stop early; remove train.early_stopping")
        return self

    def _check_labels(self, labels: LabelSource, where: str) -> None:
        names = [one.name for one in self.task.classes] + [BACKGROUND] * self.task.has_none
        require_known(names, (name for name in (labels.values or {}).values() if name is not None), f"{where}.values")
        require_known(names, labels.priority or (), f"{where}.priority")
        require_known(names, labels.classes or (), f"{where}.classes")
        if labels.priority and self.task.planes > 1:
            raise ValueError(f"{where}.priority: classes of a {self.task.type} task overlap, none wins; remove it")
        if labels.outside == "background" and not self.task.has_none:
            raise ValueError(f"{where}.outside is background, which the task has not; use ignore, or remove it")

    @classmethod
    def load(cls, path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe.

        Parameters
        ----------
        path
            YAML. Relative paths in it start at its folder.
        overrides
            "train.epochs=3" or "task.classes.0.name=field": a key's place and its value as YAML. Relative paths start
            at the current directory.

        Raises
        ------
        MissingFileError
            There is no such file.
        RecipeError
            The file or an override is not valid; says where, what was found and the rule.
        """
        file = existing(path, "recipe")
        raw = parse_yaml(file.read_bytes(), str(file))
        if not isinstance(raw, dict):
            raise RecipeError(f"{file}: found {shorten(raw)}, a recipe has the keys {', '.join(cls.model_fields)}")
        raw = resolve_paths(raw, file.parent)
        written: dict[Location, str] = {}
        for override in overrides:
            place, value = split_override(override)
            put(raw, place, resolve_paths(value, Path(), place), f"--set {override}")
            written[place] = f"--set {override}"
        return cls._validated(raw, " ".join([str(file), *written.values()]), written)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Recipe:
        """Take a recipe from what `to_dict` gave; paths stay as they are.

        Raises
        ------
        RecipeError
            It is not valid.
        """
        return cls._validated(raw, "recipe", {})

    def to_dict(self) -> dict[str, Any]:
        """Return the whole recipe, defaults included, as JSON can hold it."""
        return self.model_dump(mode="json")

    @classmethod
    def _validated(cls, raw: Mapping[str, Any], source: str, written: Mapping[Location, str]) -> Recipe:
        try:
            # Strict JSON has the types of a YAML file: lists are tuples, but "3" is no number and true no integer.
            return cls.model_validate_json(json.dumps(raw, default=str), strict=True)
        except ValidationError as error:
            # A list of wrong items is also reported as empty, and a misspelt key also as a missing one: unknown keys go
            # first.
            found = error.errors(include_url=False)
            found = [each for each in found if each["type"] != "too_short" or not each["input"]]
            first, *others = sorted(found, key=lambda each: each["type"] not in UNKNOWN)
            place = tuple(part for part in first["loc"] if not str(part).startswith("<"))
            origin = next((text for at, text in written.items() if place[: len(at)] == at), source)
            more = f" (and {len(others)} more)" if others else ""
            raise RecipeError(f"{origin}: {readable_error(first, place, _schema())}{more}") from error


def schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, for editors that complete and check YAML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Recipe.model_json_schema()


@functools.cache
def _schema() -> dict[str, Any]:
    return schema()
