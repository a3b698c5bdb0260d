"""Features of a vector file: geometries of one kind with their attributes."""

from __future__ import annotations

import functools
import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from segkit.errors import DataError, GridError
from segkit.io.files import require_file
from segkit.io.grid import Grid, crs_name
from segkit.io.vector import read_layer

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Features:
    """Features of one layer of a vector file, or of a table.

    Parameters
    ----------
    path
        The file.
    crs
        None if the file has none.
    shapes
        Geometries in two dimensions, none empty.
    attributes
        One row for each shape.
    skipped
        Number of features without a geometry, which are left out.
    """

    path: Path
    crs: CRS | None
    shapes: NDArray[Any]
    attributes: pandas.DataFrame
    skipped: int

    def field_values(self, field: str) -> tuple[str | None, ...]:
        """Return the values of a field as text, as in a recipe: 1.0 is "1", null is None.

        Raises
        ------
        DataError
            The field does not exist.
        """
        fields = [str(name) for name in self.attributes]
        if field not in fields:
            raise DataError(f"{self.path}: has no field {field!r}; its fields are {', '.join(fields) or 'none'}")
        return tuple(value_text(value) for value in self.attributes[field].to_numpy())

    def require_crs_as(self, grid: Grid) -> None:
        """Raise a GridError if only one of the features and a grid has a CRS."""
        if (self.crs is None) != (grid.crs is None):
            raise GridError(
                f"{self.path} has CRS {crs_name(self.crs)}, the scene {crs_name(grid.crs)}; assign the missing one"
            )


def read_features(path: str | Path, layer: str | None = None, *, option: str | None = None) -> Features:
    """Read one layer of a vector file. Recently read files are cached until they change.

    Parameters
    ----------
    layer
        Its name; by default the only layer with geometries.
    option
        Option or key that names the layer, for messages.

    Raises
    ------
    MissingFileError
        The file does not exist.
    DataError
        The file is unreadable, or has several layers and no `layer` is given.
    """
    return _read(Path(path), layer, option, _stamp(require_file(path, "vector file")))


def _stamp(file: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, time and size of a file and of those that are read with it: .dbf and .prj, a database's log."""
    together = {file, *file.parent.glob(f"{glob.escape(file.stem)}.*")}
    facts = [(each.name, each.stat()) for each in sorted(together) if each.is_file()]
    return tuple((name, fact.st_mtime_ns, fact.st_size) for name, fact in facts)


@functools.lru_cache(maxsize=8)  # one file serves many scenes
def _read(path: Path, layer: str | None, option: str | None, stamp: tuple[tuple[str, int, int], ...]) -> Features:
    found = read_layer(path, layer, option=option)
    if found.geometries is None:
        raise DataError(f"{path}: layer {layer!r} is a table without geometries; give a layer with geometries")
    present = ~(shapely.is_missing(found.geometries) | shapely.is_empty(found.geometries))
    return Features(
        path,
        found.crs,
        found.geometries[present],
        found.attributes[present].reset_index(drop=True),
        int((~present).sum()),
    )


def require_types(features: Features, types: Sequence[shapely.GeometryType], rule: str) -> None:
    """Raise a DataError if a feature has a geometry of another type; `rule` says what is allowed, and the remedy."""
    found = shapely.get_type_id(features.shapes)
    for other in np.unique(found[~np.isin(found, types)]):
        name = next(one.geom_type for one in features.shapes[found == other])
        raise DataError(
            f"{features.path}: {int((found == other).sum())} of {found.size} geometries have the type {name}, but "
            f"{rule}"
        )


def value_text(value: Any) -> str | None:
    """Return a value of a field as text, as in a recipe: 1.0 is "1", null is None; spaces around it do not count."""
    if value is None or value != value:
        return None
    return str(int(value)) if isinstance(value, float | np.floating) and value.is_integer() else str(value).strip()
