"""Rules that change a class where another map or polygons say so: "clearing to forest outside before.tif:forest"."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.errors import GridError, UsageError
from segkit.io.class_table import Legend, MapClass
from segkit.io.grid import Grid
from segkit.io.paths import is_there
from segkit.io.polygons import read_polygons
from segkit.io.raster import open_raster, read_grid, read_mask, read_window
from segkit.io.region import PolygonRegion
from segkit.io.remote import as_path
from segkit.io.vector import is_vector
from segkit.maps.class_changes import find_class

_TEXT = re.compile(r"(?P<old>.+?) to (?P<new>.+?) (?P<where>inside|outside) (?P<file>.+)")
NO_DATA = "nodata"  # in the place of a class
_FORM = 'write it as "clearing to forest outside before.tif:forest", or with polygons instead of a map'

# Returns for a window which pixels are in a region, and at which that is known; both bool (H, W).
InRegion = Callable[[Window], tuple[NDArray[np.bool_], NDArray[np.bool_]]]


@dataclass(frozen=True)
class Rule:
    """A change of one class to another, inside or outside of a region.

    Parameters
    ----------
    old, new
        Names or values of classes; "nodata" as the new one.
    inside
        Whether it changes inside of the region, or outside.
    path
        The region: polygons, or a map on the same grid.
    classes
        Of a map: the region's classes. By default all but background.
    """

    old: str
    new: str
    inside: bool
    path: Path
    classes: tuple[str, ...] = ()

    @classmethod
    def from_text(cls, text: str) -> Rule:
        """Parse "CLASS to CLASS inside|outside FILE[:CLASS,...]".

        Raises
        ------
        UsageError
            The text has another form.
        """
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"rule {text!r}: {_FORM}")
        file, classes = match["file"], ""
        if ":" in file and not is_there(Path(file)) and not file.rpartition(":")[2].startswith(("/", "\\")):
            file, _, classes = file.rpartition(":")
        listed = tuple(each.strip() for each in classes.split(",") if each.strip())
        return cls(match["old"], match["new"], match["where"] == "inside", as_path(file), listed)


@contextmanager
def open_region(rule: Rule, grid: Grid) -> Iterator[InRegion]:
    """Open the region of a rule.

    Raises
    ------
    UsageError
        Polygons are given classes, or the map does not have one.
    GridError
        The map lies on another grid.
    DataError
        A file is unreadable, or the polygons do not overlap the grid.
    """
    if is_vector(rule.path):
        if rule.classes:
            raise UsageError(f"{rule.path} holds polygons, so leave out the classes {', '.join(rule.classes)}")
        polygons = read_polygons(rule.path)
        polygons.warn_of_repairs()
        region = PolygonRegion(polygons, grid)
        yield lambda window: (mask := region.mask(window), np.ones_like(mask))
        return
    with open_raster(rule.path) as dataset:
        if difference := grid.describe_difference(read_grid(dataset)):
            raise GridError(
                f"{rule.path} lies on another grid than the map ({difference}); warp it to the map's grid (gdalwarp)"
            )
        legend = Legend.from_dataset(dataset)
        selection = legend.select(rule.classes or None)
        bands: Sequence[int] = dataset.indexes
        if legend.multilabel:
            bands = [at for at, one in enumerate(legend.classes, 1) if selection.select(at, one.value) is not None]

        def in_region(window: Window) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
            inside, known = (np.zeros((int(window.height), int(window.width)), dtype=bool) for _ in range(2))
            for band in bands:
                values = read_window(dataset, [band], window)[0]
                valid = read_mask(dataset, band, window) > 0
                for code in np.unique(values[valid]).tolist():
                    is_class = code == 1 if legend.multilabel else selection.select(band, code) is not None
                    if is_class:
                        inside |= valid & (values == code)
                known |= valid
            return inside, known

        yield in_region
        selection.check()


def find_new_class(rule: Rule, classes: Sequence[MapClass], owner: str) -> int | None:
    """Return the position of a rule's new class; None for no data."""
    return None if rule.new == NO_DATA else find_class(classes, rule.new, owner)
