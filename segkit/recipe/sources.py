"""Where a recipe's data are: images, labels, mosaics, tables."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from segkit.io.name_pattern import NamePattern
from segkit.recipe.base import Count, Names, StrictModel, one_of, tag_form
from segkit.recipe.label_source import LabelSource, check_pair_pattern
from segkit.recipe.mosaic_source import MosaicSource, tag_paths


def _tag_labels(value: Any) -> str:
    """Return the tag of the form in which labels are given; a mosaic has keys of its own."""
    is_mosaic = isinstance(value, MosaicSource) or (isinstance(value, dict) and "mosaic" in value)
    return "<mosaic>" if is_mosaic else tag_form(value)


Raster = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[MosaicSource, Tag("<keys>")], one_of("a path, or a mosaic", tag_paths)
]
Stack = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[tuple[Raster, ...], Tag("<list>"), Field(min_length=1)]
    | Annotated[MosaicSource, Tag("<keys>")],
    one_of("a path, a mosaic, or a list of paths that make up one scene", tag_paths),
]


class Dates(StrictModel):
    """Images of several dates of one place."""

    pattern: str
    """Pattern of the names without extension: {} is the place, {date:%Y%m%d} the date, * is anything. Without {}, the
    place is the rest of the name."""
    number: Count | None = None
    """Number of dates of a scene; by default as many as the place with most dates has."""
    missing: Literal["error", "skip", "repeat"] = "error"
    """What to do with places that have fewer dates: refuse them, leave them out, or repeat their last date."""

    @model_validator(mode="after")
    def _check_pattern(self) -> Dates:
        if not NamePattern(self.pattern).has_date:
            raise ValueError(f"the pattern {self.pattern!r} has no date; write it as {{date:%Y%m%d}}")
        return self


class DatasetSource(StrictModel):
    """Scenes and their labels, paired by file name or listed in a table."""

    images: (
        Annotated[
            Annotated[str, Tag("<text>")]
            | Annotated[tuple[Stack, ...], Tag("<list>"), Field(min_length=1)]
            | Annotated[MosaicSource, Tag("<keys>")],
            one_of("a path, a mosaic, a list of them, or a list of lists (the files of each scene)", tag_paths),
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

    pair: str | None = None
    """Pattern of the images' names without extension, "{}_sat": {} is what they have in common with their labels. Of a
    folder or a glob, only files that match are used."""
    dates: (
        Annotated[
            Annotated[str, Tag("<text>")] | Annotated[Dates, Tag("<keys>")],
            one_of("a pattern with a date, such as {}_{date:%Y%m%d}, or keys with a pattern"),
        ]
        | None
    ) = None
    """Images of several dates of one place, which are stacked to one scene in the order of their dates: the pattern of
    their names, or keys."""

    @property
    def date_series(self) -> Dates | None:
        """The keys of `dates`, also if the recipe gives only a pattern."""
        return Dates(pattern=self.dates) if isinstance(self.dates, str) else self.dates

    @model_validator(mode="after")
    def _check_patterns(self) -> DatasetSource:
        check_pair_pattern(self.pair)
        series = self.date_series
        if series is None:
            return self
        if self.table is not None or self.pair is not None:
            raise ValueError("dates is for images, without table and pair ({} in its pattern pairs labels); remove one")
        if not isinstance(self.images, str) and any(not isinstance(one, str) for one in self.images or ()):
            raise ValueError("dates finds the files of each scene, but images lists them; remove one of them")
        return self

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
            return (LabelSource.model_validate({"path": self.labels}),)
        return tuple(one for one in self.labels if isinstance(one, LabelSource))
