"""An open map of classes: read in strips, with the areas of its classes and strata."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.errors import DataError, GridError, UsageError, suggest
from segkit.io.class_table import Legend, MapClass
from segkit.io.distance import within_distance
from segkit.io.grid import Grid
from segkit.io.paths import PathLike
from segkit.io.pixel_area import AreaTally
from segkit.io.raster import open_raster, read_grid, read_mask, read_window
from segkit.task.unique import MAX_TABLE_SIZE, unique_codes

_MAX_STRIP_PIXELS = 2**23
_MAX_CLASSES = 2**15 - 1  # positions of classes, and of a buffer after them, are int16
NODATA_INDEX = -1  # class and stratum of a pixel without data


@dataclass(frozen=True)
class Strip:
    """Whole rows of a map.

    Parameters
    ----------
    window
        Position in the map.
    classes
        int16 (H, W): index in `ClassMap.classes`, -1 without data.
    strata
        int16 (H, W): index in `ClassMap.strata`, -1 without data.
    """

    window: Window
    classes: NDArray[np.int16]
    strata: NDArray[np.int16]


@dataclass(frozen=True)
class ClassTotal:
    """Pixels and true hectares of a class or a stratum."""

    name: str
    pixels: int
    hectares: float


class ClassMap:
    """An open map of classes. Its strata are its classes and, with `buffer`, a zone around one of them.

    Parameters
    ----------
    dataset, legend
        The map.
    band
        Band of the class to read from a multilabel map, otherwise 1.
    buffer
        Class name and distance in metres: pixels of other classes within this distance form a stratum of their own.
    """

    def __init__(
        self, dataset: DatasetReader, legend: Legend, band: int, buffer: tuple[str, float] | None = None
    ) -> None:
        self._dataset, self._legend, self._band = dataset, legend, band
        self.grid: Grid = read_grid(dataset)
        try:
            self.grid.hectares(Window(0, 0, 1, 1))
        except GridError as error:
            raise GridError(f"{dataset.name}: areas cannot be computed: {error}") from error
        self._codes, self.classes, self._totals = self._count()
        self._buffer = None if buffer is None else self._check_buffer(*buffer)
        self.strata: tuple[str, ...] = tuple(one.name for one in self.classes)
        if buffer is not None:
            self.strata += (f"within {buffer[1]:g} m of {buffer[0]}",)

    def class_totals(self) -> tuple[ClassTotal, ...]:
        """Return pixels and hectares of each class in the map."""
        return self._totals

    def hectares_by_class(self) -> dict[str, float]:
        """Return {class: hectares} of all classes in the legend or the map, in the legend's order."""
        totals = {total.name: total.hectares for total in self._totals}
        if self._legend.multilabel:
            return totals
        listed = {one.name: totals.get(one.name, 0.0) for one in self._legend.classes}
        return listed | {name: hectares for name, hectares in totals.items() if name not in listed}

    def all_classes(self) -> tuple[MapClass, ...]:
        """Return the classes that the legend lists, in its order, and those that only the map has."""
        listed = {one.name: one for one in self._legend.classes}
        if self._legend.multilabel:
            one = self._legend.classes[self._band - 1]
            listed = {one.name: MapClass(one.name, 1, color=one.color)}
        return tuple((listed | {one.name: one for one in self.classes if one.name not in listed}).values())

    def names_by_alias(self) -> dict[str, str]:
        """Return {alias: name}; the aliases of a class are its name and its value as text."""
        classes = {one.name: one for one in (*self.classes, *(() if self._legend.multilabel else self._legend.classes))}
        return {str(one.value): name for name, one in classes.items()} | {name: name for name in classes}

    def class_names_at(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> list[str | None]:
        """Return the class names of single pixels; None without data."""
        names: list[str | None] = []
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            index = int(self.read(Window(column, row, 1, 1))[0, 0])
            names.append(None if index == NODATA_INDEX else self.classes[index].name)
        return names

    def stratum_totals(self) -> tuple[ClassTotal, ...]:
        """Return pixels and hectares of each stratum."""
        if self._buffer is None:
            return self._totals
        tally = AreaTally(len(self.strata), self.grid)
        for strip in self.strips():
            tally.add([strip.strata], strip.strata != NODATA_INDEX, strip.window)
        return _totals(self.strata, tally)

    def map_class_of_stratum(self, stratum: int) -> int | None:
        """Return the class of all pixels of a stratum; None for the buffer, which has several."""
        return stratum if stratum < len(self.classes) else None

    def strips(self) -> Iterator[Strip]:
        """Yield the map's rows from top to bottom."""
        for window in whole_rows(self._dataset, _MAX_STRIP_PIXELS):
            classes = self.read(window)
            yield Strip(window, classes, self._stratify(classes, window))

    def read(self, window: Window) -> NDArray[np.int16]:
        """Return the index of each pixel's class in `classes`, int16 (H, W), -1 without data."""
        values, valid = self._read_values(window)
        first, last = int(self._codes[0]), int(self._codes[-1])
        if last - first < MAX_TABLE_SIZE:
            table: NDArray[np.int16] = np.full(last - first + 1, NODATA_INDEX, dtype=np.int16)
            table[self._codes - first] = np.arange(len(self._codes))
            index = table[np.clip(values, first, last).astype(np.int64) - first]
        else:
            index = np.searchsorted(self._codes, values).astype(np.int16)
        return np.where(valid, index, np.int16(NODATA_INDEX))

    def _check_buffer(self, name: str, metres: float) -> tuple[int, float]:
        """Return the class index and the width of the buffer."""
        names = [one.name for one in self.classes]
        if name not in names:
            raise UsageError(
                f"{self._dataset.name}: has no class {name!r} for a buffer; its classes are {', '.join(names)}"
            )
        if not (math.isfinite(metres) and metres > 0):
            raise UsageError(f"the buffer is {metres} m wide; give a positive number")
        return names.index(name), metres

    def _read_values(self, window: Window) -> tuple[NDArray[np.integer[Any]], NDArray[np.bool_]]:
        values = read_window(self._dataset, [self._band], window)[0]
        return values, read_mask(self._dataset, self._band, window) > 0

    def _count(self) -> tuple[NDArray[np.int64], tuple[MapClass, ...], tuple[ClassTotal, ...]]:
        """Find the codes of the map; return them in ascending order, their classes and their totals."""
        index_of: dict[int, int] = {}
        tally = AreaTally(0, self.grid)
        for window in whole_rows(self._dataset, _MAX_STRIP_PIXELS):
            values, valid = self._read_values(window)
            if not valid.any():
                continue
            codes, position = unique_codes(values[valid])
            indices = np.array([index_of.setdefault(code, len(index_of)) for code in codes.tolist()])
            if len(index_of) > _MAX_CLASSES:
                raise DataError(
                    f"{self._dataset.name}: has more than {_MAX_CLASSES:,} values, so they are no classes; give a map "
                    "of classes"
                )
            tally.extend(len(index_of))
            classes = np.zeros(values.shape, dtype=np.int64)
            classes[valid] = indices[position]
            tally.add([classes], valid, window)
        if not index_of:
            raise DataError(f"{self._dataset.name}: all pixels are nodata; give a map with data")
        in_order = sorted(index_of)
        found = self._classes_of(in_order)
        by_index = _totals([one.name for one in found], tally, [index_of[code] for code in in_order])
        if not np.isfinite([total.hectares for total in by_index]).all():
            raise GridError(f"{self._dataset.name}: some pixels have no place on the ground in its CRS")
        return np.array(in_order), found, by_index

    def _classes_of(self, codes: Sequence[int]) -> tuple[MapClass, ...]:
        """Return the classes of codes that are in the map."""
        if not self._legend.multilabel:
            found = tuple(self._legend.class_of(self._band, code) for code in codes)
            _require_distinct_names((*self._legend.classes, *found), self._dataset.name)
            return found
        one = self._legend.classes[self._band - 1]
        classes = {0: MapClass(f"not {one.name}", 0, background=True), 1: MapClass(one.name, 1, color=one.color)}
        if unknown := set(codes) - classes.keys():
            raise DataError(
                f"{self._dataset.name}: band {self._band} has the value {min(unknown)}; a band of a multilabel map has "
                "only 0 and 1"
            )
        return tuple(classes[code] for code in codes)

    def _stratify(self, classes: NDArray[np.int16], window: Window) -> NDArray[np.int16]:
        """Return the stratum of each pixel, given its class."""
        if self._buffer is None:
            return classes
        centre, metres = self._buffer
        pixel = self.grid.pixel_metres(window)
        halo = math.ceil(metres / pixel[1])
        above = min(halo, int(window.row_off))
        below = min(halo, self.grid.height - int(window.row_off + window.height))
        enlarged = Window(0, window.row_off - above, window.width, window.height + above + below)
        near = within_distance(self.read(enlarged) == centre, metres, pixel)[above : above + int(window.height)]
        in_buffer = near & (classes != centre) & (classes != NODATA_INDEX)
        return np.where(in_buffer, len(self.classes), classes).astype(np.int16)


def _require_distinct_names(classes: Sequence[MapClass], owner: str) -> None:
    """Raise a DataError if two values have one name, by which their areas would be told apart."""
    values: dict[str, int] = {}
    for one in classes:
        if values.setdefault(one.name, one.value) != one.value:
            raise DataError(
                f"{owner}: the values {values[one.name]} and {one.value} are both called {one.name!r}"
                + suggest("merge them (segkit reclassify)", "give other names (--class-names)")
            )


def whole_rows(dataset: DatasetReader, max_pixels: int) -> Iterator[Window]:
    """Yield whole rows of a map from top to bottom; of whole blocks of the file, where so many pixels hold one."""
    rows = max(1, max_pixels // dataset.width)
    block = dataset.block_shapes[0][0]
    rows = rows // block * block or rows
    for top in range(0, dataset.height, rows):
        yield Window(0, top, dataset.width, min(rows, dataset.height - top))


def _totals(names: Sequence[str], tally: AreaTally, order: Sequence[int] | None = None) -> tuple[ClassTotal, ...]:
    """Return what a tally counted, with names, in the given order of its indices."""
    assert tally.hectares is not None  # checked when the map was opened
    indices = range(len(names)) if order is None else order
    rows = zip(names, tally.pixels[0, indices].tolist(), tally.hectares[0, indices].tolist(), strict=True)
    return tuple(ClassTotal(*row) for row in rows)


@contextmanager
def open_class_map(
    path: PathLike,
    *,
    class_names: PathLike | None = None,
    class_name: str | None = None,
    buffer: tuple[str, float] | None = None,
) -> Iterator[ClassMap]:
    """Open a map of classes.

    Parameters
    ----------
    class_names
        A file of class names, as for `segkit.vectorize`.
    class_name
        Class to read from a multilabel map.
    buffer
        As for `ClassMap`.

    Raises
    ------
    UsageError
        The map does not have the class, a multilabel map needs a class name, or another map is given one.
    DataError
        The raster is not a map, or all pixels are nodata.
    GridError
        Its CRS is missing or does not locate the pixels on the ground.
    """
    with open_raster(path) as dataset:
        legend = Legend.from_dataset(dataset, class_names)
        band = 1
        listed = [one.name for one in legend.classes]
        if legend.multilabel:
            if class_name not in listed:
                missing = "" if class_name is None else f", and it has no {class_name!r}"
                raise UsageError(
                    f"{path}: its classes overlap, so only one is used{missing}"
                    + suggest(f"name one with --class: {', '.join(listed)}")
                )
            band = listed.index(class_name) + 1
        elif class_name is not None:
            raise UsageError(f"{path}: its classes do not overlap, so all are used" + suggest("leave out --class"))
        yield ClassMap(dataset, legend, band, buffer)
