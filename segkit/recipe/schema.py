"""Recipe: the YAML file of one experiment, read strictly.

A recipe is validated as JSON: an unknown key, a number written as text or a value out of range is an error that names
the file, the key and the rule. Values are never guessed.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import ErrorDetails

from segkit.errors import RecipeError
from segkit.io.files import existing
from segkit.io.remote import is_remote
from segkit.task.task import BACKGROUND, Task

Location = tuple[str | int, ...]

# Paths in a recipe are meant from where they are written: the recipe's folder, or the shell that typed --set.
_PATHS = re.compile(r"data\.(train|val)\.(images|table|labels(\.path)?|polygons)|model\.encoder_weights")


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
            _known(codes.values(), weights, "train.class_weights")
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
        _known(names, (name for name in (labels.values or {}).values() if name is not None), f"{where}.values")
        _known(names, labels.priority or (), f"{where}.priority")
        _known(names, labels.classes or (), f"{where}.classes")
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
            raise RecipeError(f"{file}: found {_short(raw)}, a recipe has the keys {', '.join(cls.model_fields)}")
        raw = _anchored(raw, file.parent)
        written: dict[Location, str] = {}
        for override in overrides:
            place, value = _split(override)
            put(raw, place, _anchored(value, Path(), place), f"--set {override}")
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
            first, *others = sorted(found, key=lambda each: each["type"] not in _UNKNOWN)
            place = tuple(part for part in first["loc"] if not str(part).startswith("<"))
            origin = next((text for at, text in written.items() if place[: len(at)] == at), source)
            more = f" (and {len(others)} more)" if others else ""
            raise RecipeError(f"{origin}: {_readable(first, place)}{more}") from error


def schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, for editors that complete and check YAML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Recipe.model_json_schema()


class _Yaml(yaml.SafeLoader):
    """YAML with the scalars of version 1.2 (1e-3 is a number, no is a word, dates are text) and without surprises."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read; write it out", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+", list("-+.0123456789")),
):
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def parse_yaml(text: str | bytes, source: str) -> Any:
    """Read YAML as recipes are written; `source` is named in errors.

    Raises
    ------
    RecipeError
        It is not YAML, a key stands twice, or there is an alias.
    """
    try:
        return yaml.load(text, _Yaml)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise RecipeError(f"{source}: {line}{error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{source}: not YAML ({' '.join(str(error).split())})") from error


def _anchored(value: Any, folder: Path, place: Location = ()) -> Any:
    """Make the paths in a part of a recipe absolute; `place` says which part it is."""
    if isinstance(value, dict):
        return {key: _anchored(each, folder, (*place, key)) for key, each in value.items()}
    if isinstance(value, list):
        return [_anchored(each, folder, place) for each in value]
    where = ".".join(str(part) for part in place if not isinstance(part, int))
    if not isinstance(value, str) or not _PATHS.fullmatch(where):
        return value
    if is_remote(value):
        return value
    if where == "model.encoder_weights" and not re.search(r"[\\/.]", value):
        return value  # the name of published weights
    return os.path.abspath(folder.resolve() / os.path.expanduser(value))  # noqa: PTH100, PTH111 - keeps links and globs


def _split(override: str) -> tuple[Location, Any]:
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"--set {override}: write it as key=value, for example train.epochs=3")
    place = tuple(int(part) if part.isdecimal() else part for part in key.strip().split("."))
    return place, parse_yaml(value, f"--set {override}")


def put(raw: Any, place: Location, value: Any, source: str) -> None:
    """Set one value deep inside a raw recipe; keys on the way are made where they are missing.

    Raises
    ------
    RecipeError
        The recipe has no such place; `source` is named.
    """
    for depth, part in enumerate(place):
        above = ".".join(map(str, place[:depth])) or "the recipe"
        if isinstance(raw, dict):
            key = next((known for known in raw if str(known) == str(part)), str(part))
            if depth < len(place) - 1 and raw.get(key) is None:
                raw[key] = {}
        elif isinstance(raw, list):
            if not isinstance(part, int) or part >= len(raw):
                raise RecipeError(f"{source}: {above} is a list of {len(raw)}, numbered from 0; found {part}")
            key = part
        else:
            raise RecipeError(f"{source}: {above} is {_short(raw)} and has no keys")
        if depth == len(place) - 1:
            raw[key] = value
        raw = raw[key]


def _known(names: Iterable[str], found: Iterable[str], where: str) -> None:
    known = list(names)
    for name in found:
        if name not in known:
            raise ValueError(f"{where}: {name!r} is no class of the task{_nearest(name, known)}")


def _nearest(name: object, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(names)}"


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
# What pydantic says (after JSON), and what the author of a YAML file understands.
_WORDS = {
    "Input should be": "must be",
    "a valid string": "text",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid array": "a list",
    "an object": "keys with values",
    "a valid dictionary": "keys with values",
}


def _readable(error: ErrorDetails, place: Location) -> str:
    where = ".".join(map(str, place))
    if error["type"] in _UNKNOWN:
        return f"{where}: unknown key{_nearest(place[-1], _keys(place[:-1]))}"
    if error["type"] == "missing":
        return f"{where}: is missing"
    if error["type"] == "too_short":
        return f"{where}: is empty; give at least one"
    if error["type"] == "value_error":
        problem = str(error["ctx"]["error"])
        # Cross checks name their own places; the others are about the part they stand in.
        return problem if not place else f"{where}: {problem}"
    rule = error["msg"]
    for theirs, ours in _WORDS.items():
        rule = rule.replace(theirs, ours)
    if error["type"] == "literal_error":
        choices = re.findall("'([^']*)'", error["ctx"]["expected"])
        rule += _nearest(error["input"], choices) if isinstance(error["input"], str) else ""
        rule = rule.partition("; known")[0]
    return f"{where}: found {_short(error['input'])}; {rule}"


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys(place: Location) -> list[str]:
    """Keys that may stand at a place of the recipe."""
    nodes = list(_options(_schema()))
    for part in place:
        inside = (
            node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part) for node in nodes
        )
        nodes = [option for node in inside if node for option in _options(node)]
    return list(dict.fromkeys(key for node in nodes for key in node.get("properties", {})))


def _options(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield what a node of the schema may be: itself, or what it refers to."""
    if "$ref" in node:
        yield from _options(_schema()["$defs"][node["$ref"].rpartition("/")[2]])
    members = [*node.get("anyOf", ()), *node.get("oneOf", ())]
    for member in members:
        yield from _options(member)
    if not members and "$ref" not in node:
        yield node


@functools.cache
def _schema() -> dict[str, Any]:
    return schema()
