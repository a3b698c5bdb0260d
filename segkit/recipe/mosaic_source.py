"""Keys of a mosaic in a recipe, and the forms in which files are given."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Tag

from segkit.io.mosaic import Mosaic
from segkit.recipe.base import Names, StrictModel, one_of, tag_form


def tag_paths(value: Any) -> str:
    """Return the tag of the form in which files are given: a path, a list, or keys."""
    return "<list>" if isinstance(value, list | tuple) else tag_form(value)


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
