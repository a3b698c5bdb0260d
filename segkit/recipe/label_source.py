"""Keys of labels in a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Tag

from segkit.recipe.base import Names, Positive, StrictModel, one_of


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
