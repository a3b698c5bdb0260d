"""Keys of splits in a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from segkit.recipe.base import Count, Names, Positive, StrictModel


class SpatialSplit(StrictModel):
    """Spatial split: validate on blocks, whole scenes or polygons of the training scenes."""

    by: Literal["block", "scene", "polygon", "point", "appearance"] = "block"
    """Unit of the split: a block of pixels, a scene (with all that overlap it), a polygon, or a group of label points
    that are near each other. By appearance, scenes are ordered by the statistics of their bands, and those to validate
    on are a contiguous part of the order."""
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
    distance: Positive | None = None
    """By point: label points at most this many metres apart, directly or through others, are one group."""
    field: str | None = None
    """Field of the polygons (of the label points) that marks those to validate on."""
    values: Names | None = None
    """Values of the field that mark polygons or points to validate on. Replaces `fraction`."""
    gap: Annotated[int, Field(ge=0)] | None = None
    """Width in pixels of the buffer between training and validation, which is used for neither; by default
    train.tile_size, but at most a quarter of the side of a block (a scene, a polygon), or of `distance`."""
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
        if (self.by == "point") != (self.distance is not None):
            raise ValueError(
                "by: point needs distance, in metres, within which points stay together, and the other way round; give "
                "both or neither"
            )
        if self.layer is not None and self.by != "polygon":
            raise ValueError("layer is only for by: polygon; remove it")
        if self.field is not None and self.by not in ("polygon", "point"):
            raise ValueError("field is only for by: polygon and by: point; remove it")
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
