"""Where a recipe's data are: images, labels, mosaics, tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from segkit.io.mosaic import Mosaic
from segkit.io.paths import PathLike
from segkit.recipe.base import Names, Positive, StrictModel, one_of, tag_form


def _tag_paths(value: Any) -> str:
    """Return the tag of the form in which files are given: a path, a list, or keys."""
    return "<list>" if isinstance(value, list | tuple) else tag_form(value)


def _tag_labels(value: Any) -> str:
    """Return the tag of the form in which labels are given; a mosaic has keys of its own."""
    is_mosaic = isinstance(value, MosaicSource) or (isinstance(value, dict) and "mosaic" in value)
    return "<mosaic>" if is_mosaic else tag_form(value)


class MosaicSource(StrictModel):
    """Rasters that lie side by side on one grid and are read as one raster."""

    mosaic: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[Names, Tag("<list>")], one_of("a path or a list of paths")
    ]
    """A folder, a glob, or a list of files, folders and globs."""
    overlap: Literal["first", "last", "mean"] | None = None
    """Which file a pixel of several files is from: the `first` or `last` with data there, in the order of their names
    (or of the list); or the `mean` of their pixels, for images only. By default files may not overlap."""

    @classmethod
    def from_path(cls, path: Mosaic) -> MosaicSource:
        """Return the keys of a mosaic."""
        return cls.model_validate({"mosaic": [os.fspath(one) for one in path.given], "overlap": path.overlap})

    def to_path(self) -> Mosaic:
        """Return the mosaic; its files are not searched yet."""
        return Mosaic([self.mosaic] if isinstance(self.mosaic, str) else self.mosaic, self.overlap)


Raster = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[MosaicSource, Tag("<keys>")], one_of("a path, or a mosaic", _tag_paths)
]
Stack = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[tuple[Raster, ...], Tag("<list>"), Field(min_length=1)]
    | Annotated[MosaicSource, Tag("<keys>")],
    one_of("a path, a mosaic, or a list of paths that make up one scene", _tag_paths),
]


class LabelSource(StrictModel):
    """Labels and how to read them."""

    path: (
        Annotated[
            Annotated[str, Tag("<text>")] | Annotated[Names, Tag("<list>")] | Annotated[MosaicSource, Tag("<keys>")],
            one_of("a path, a list of paths, or a mosaic", _tag_paths),
        ]
        | None
    ) = None
    """A folder, a file, a glob, a list of files, or a mosaic (files that lie side by side); by default the files in the
    column label of the table."""
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


class DatasetSource(StrictModel):
    """Scenes and their labels, paired by file name or listed in a table."""

    images: (
        Annotated[
            Annotated[str, Tag("<text>")]
            | Annotated[tuple[Stack, ...], Tag("<list>"), Field(min_length=1)]
            | Annotated[MosaicSource, Tag("<keys>")],
            one_of("a path, a mosaic, a list of them, or a list of lists (the files of each scene)", _tag_paths),
        ]
        | None
    ) = None
    """A folder, a file, a glob, a mosaic (files that lie side by side and are one scene), a list of these, or a list of
    lists (the files that are stacked to one scene)."""
    labels: (
        Annotated[
            Annotated[str, Tag("<text>")]
            | Annotated[Names, Tag("<list>")]
            | Annotated[MosaicSource, Tag("<mosaic>")]
            | Annotated[LabelSource, Tag("<keys>")]
            | Annotated[tuple[LabelSource, ...], Tag("<sources>"), Field(min_length=1)],
            one_of(
                "a path, a list of paths, a mosaic, keys with a path among them, or a list of such keys", _tag_labels
            ),
        ]
        | None
    ) = None
    """Rasters or vector files: a folder, a file, a glob, a list, a mosaic, a `LabelSource`; or a list of these
    (merged)."""
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
        if isinstance(self.labels, str | MosaicSource) or isinstance(self.labels[0], str):
            return (LabelSource(path=self.labels),)
        return tuple(one for one in self.labels if isinstance(one, LabelSource))
