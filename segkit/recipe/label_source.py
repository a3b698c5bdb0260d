"""Keys of labels in a recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, ValidationError, model_validator

from segkit.errors import UsageError
from segkit.io.mosaic import Mosaic
from segkit.io.name_pattern import NamePattern
from segkit.io.paths import PathLike
from segkit.recipe.base import Names, Positive, StrictModel, one_of
from segkit.recipe.messages import describe_errors
from segkit.recipe.mosaic_source import MosaicSource, tag_paths
from segkit.recipe.yaml import set_at, split_override

_OPTION = "--set-labels"

Day = Annotated[str, Field(pattern=r"^[0-9]{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01]))?)?$")]


class LabelSource(StrictModel):
    """Labels and how to read them."""

    path: (
        Annotated[
            Annotated[str, Tag("<text>")] | Annotated[Names, Tag("<list>")] | Annotated[MosaicSource, Tag("<keys>")],
            one_of("a path, a list of paths, or a mosaic", tag_paths),
        ]
        | None
    ) = None
    """A folder, a file, a glob, a list of files, or a mosaic (files that lie side by side); by default the files in the
    column label of the table."""
    pair: str | None = None
    """Pattern of the label files' names without extension, "{}_mask": {} is what they have in common with their images.
    Of a folder or a glob, only files that match are used."""
    layer: str | None = None
    """Layer of a vector file with several layers."""
    field: str | None = None
    """Field with the class of each polygon or point; without one, all are of the single class in `classes`."""
    radius: Positive | None = None
    """Points: radius in metres; pixels whose centre is at most this far from a point are labelled, too. By default only
    the pixel under each point."""
    x: str | None = None
    """Points in a CSV file: column with the x coordinate or longitude; by default it has a usual name."""
    y: str | None = None
    """Points in a CSV file: column with the y coordinate or latitude."""
    crs: str | None = None
    """Points in a CSV file: CRS of the coordinates, such as EPSG:4326."""
    date_field: str | None = None
    """Field with the date of each polygon or point: 2021-06-30, 2021-06 or 2021."""
    period: tuple[Day, Day] | None = None
    """[first, last] dates: only polygons and points of this period are used."""
    values: dict[str, str | None] | None = None
    """{value of the field ("" for none), or code, colour "#rrggbb" or class name of the raster: class name,
    "background", or null for unlabelled}; by default the field holds class names or class values, and the raster class
    values."""
    other_values: Literal["background", "ignore"] | None = None
    """What all other values of the field, features without a value, or all other codes of the raster are: `background`,
    or `ignore` (unlabelled). By default they are an error."""
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
    def paths(self) -> tuple[PathLike, ...]:
        """The path or paths; empty if the table names the files."""
        if isinstance(self.path, MosaicSource):
            return (self.path.to_path(),)
        return (self.path,) if isinstance(self.path, str) else self.path or ()

    def with_files(self, files: Sequence[Path]) -> LabelSource:
        """Return the same source with other files."""
        if len(files) > 1:
            return self.model_copy(update={"path": tuple(os.fspath(file) for file in files)})
        [file] = files
        return self.model_copy(
            update={"path": MosaicSource.from_path(file) if isinstance(file, Mosaic) else os.fspath(file)}
        )

    @model_validator(mode="after")
    def _check_keys(self) -> LabelSource:
        check_pair_pattern(self.pair)
        if (self.x is None) != (self.y is None):
            raise ValueError("x needs y, and the other way round; give both or neither")
        if (self.period is None) != (self.date_field is None):
            raise ValueError("period needs date_field, the field with the dates, and the other way round; give both")
        if self.period is not None and self.period[0] > self.period[1]:
            raise ValueError(f"period ends ({self.period[1]}) before it starts ({self.period[0]}); exchange the dates")
        return self


def check_pair_pattern(pattern: str | None) -> None:
    """Raise a ValueError if a pattern of names cannot be used to pair files."""
    if pattern is not None and (not (parsed := NamePattern(pattern)).has_place or parsed.has_date):
        raise ValueError(f"pair is {pattern!r}; it needs {{}} once, and no date: {{}}_sat")


def label_source_from(path: str, options: Sequence[str] = ()) -> LabelSource:
    """Return a label source from a path and options KEY=VALUE, whose values are YAML: "radius=20".

    Raises
    ------
    UsageError
        An option is not a valid key of labels.
    """
    raw: dict[str, Any] = {}
    for option in options:
        place, value = split_override(option, _OPTION)
        set_at(raw, ("labels", *place), value, f"{_OPTION} {option}")
    labels = raw.get("labels", {}) | {"path": path}
    try:
        return LabelSource.model_validate_json(json.dumps(labels, default=str), strict=True)
    except ValidationError as error:
        errors, schema = error.errors(include_url=False), LabelSource.model_json_schema()
        raise UsageError(describe_errors(errors, _OPTION, {}, schema)) from error
