"""Strata: which part of a map each pixel belongs to, strip by strip."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.errors import DataError, GridError, UsageError
from segkit.io.class_table import Legend, MapClass
from segkit.io.distance import near
from segkit.io.grid import Grid
from segkit.io.pixel_area import pixel_hectares
from segkit.io.raster import PathLike, grid_of, open_raster, read_mask, read_window
from segkit.task.unique import FEW, distinct

_STRIP_PIXELS = 2**23
NOWHERE = -1  # the stratum of a pixel that holds no data


@dataclass(frozen=True)
class Strip:
    """Whole rows of a map.

    Parameters
    ----------
    window
        Where they lie.
    classes
        int16 (H, W): index of each pixel's class in `ClassMap.classes`, -1 where there is no data.
    strata
        int16 (H, W): index of its stratum in `ClassMap.strata`, -1 where there is no data.
    """

    window: Window
    classes: NDArray[np.int16]
    strata: NDArray[np.int16]


@dataclass(frozen=True)
class Part:
    """What is counted of a class or a stratum: its name, pixels and true hectares."""

    name: str
    pixels: int
    hectares: float


class ClassMap:
    """An open map whose pixels are classes, and the strata that they make up: a class each, and a buffer if wanted.

    Parameters
    ----------
    dataset, legend
        The map.
    band
        Of a multilabel map that of the class in question, else 1.
    buffer
        Class and metres: pixels of other classes that near to it are a stratum of their own.
    """

    def __init__(
        self, dataset: DatasetReader, legend: Legend, band: int, buffer: tuple[str, float] | None = None
    ) -> None:
        self._dataset, self._legend, self._band = dataset, legend, band
        self.grid: Grid = grid_of(dataset)
        try:
            self.grid.hectares(Window(0, 0, 1, 1))
        except GridError as error:
            raise GridError(f"{dataset.name}: areas cannot be told: {error}") from error
        self._codes, self.classes, self._counted = self._count()
        self._buffer: tuple[int, float] | None = None
        if buffer is not None:
            names = [one.name for one in self.classes]
            if buffer[0] not in names:
                raise UsageError(
                    f"{dataset.name}: has no class {buffer[0]!r} to lay a buffer around; it has {', '.join(names)}"
                )
            if not (math.isfinite(buffer[1]) and buffer[1] > 0):
                raise UsageError(f"a buffer of {buffer[1]} metres; give a positive number")
            self._buffer = names.index(buffer[0]), buffer[1]
        self.strata: tuple[str, ...] = tuple(one.name for one in self.classes)
        if buffer is not None:
            self.strata += (f"within {buffer[1]:g} m of {buffer[0]}",)

    def parts(self) -> tuple[Part, ...]:
        """Return what the map holds of each class."""
        return self._counted

    def named(self) -> dict[str, float]:
        """Return {class: hectares} of all that the map's legend lists or the map holds, in the legend's order."""
        held = {part.name: part.hectares for part in self._counted}
        if self._legend.multilabel:
            return held
        listed = {one.name: one for one in self._legend.classes}
        return {name: held.get(name, 0.0) for name in (*listed, *(name for name in held if name not in listed))}

    def aliases(self) -> dict[str, str]:
        """Return {name or value, as text: name} of the same classes."""
        classes = {one.name: one for one in (*self.classes, *(() if self._legend.multilabel else self._legend.classes))}
        return {str(one.value): name for name, one in classes.items()} | {name: name for name in classes}

    def at(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> list[str | None]:
        """Return the names of the classes of some pixels; None where there is no data."""
        found: list[str | None] = []
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            place = int(self.read(Window(column, row, 1, 1))[0, 0])
            found.append(None if place == NOWHERE else self.classes[place].name)
        return found

    def stratum_parts(self) -> tuple[Part, ...]:
        """Return what each stratum holds."""
        if self._buffer is None:
            return self._counted
        pixels, hectares = np.zeros(len(self.strata), dtype=np.int64), np.zeros(len(self.strata))
        for strip in self.strips():
            inside = strip.strata != NOWHERE
            found = strip.strata[inside]
            pixels += np.bincount(found, minlength=len(pixels))
            hectares += np.bincount(found, pixel_hectares(self.grid, strip.window)[inside], minlength=len(pixels))
        return tuple(Part(*each) for each in zip(self.strata, pixels.tolist(), hectares.tolist(), strict=True))

    def shown(self, stratum: int) -> int | None:
        """Return the class that the map shows all over a stratum, None where it is several."""
        return stratum if stratum < len(self.classes) else None

    def strips(self) -> Iterator[Strip]:
        """Yield the map's rows from top to bottom."""
        for window in self._windows():
            classes = self.read(window)
            yield Strip(window, classes, self._stratified(classes, window))

    def _windows(self) -> Iterator[Window]:
        block = self._dataset.block_shapes[self._band - 1][0]
        rows = max(1, _STRIP_PIXELS // self.grid.width)
        rows = rows // block * block or rows
        for top in range(0, self.grid.height, rows):
            yield Window(0, top, self.grid.width, min(rows, self.grid.height - top))

    def _values(self, window: Window) -> tuple[NDArray[np.integer[Any]], NDArray[np.bool_]]:
        values = read_window(self._dataset, [self._band], window)[0]
        return values, read_mask(self._dataset, self._band, window) > 0

    def _count(self) -> tuple[NDArray[np.int64], tuple[MapClass, ...], tuple[Part, ...]]:
        """Find the codes that the map has, and what they are and count."""
        pixels: dict[int, int] = {}
        hectares: dict[int, float] = {}
        for window in self._windows():
            values, valid = self._values(window)
            if not valid.any():
                continue
            area = pixel_hectares(self.grid, window)[valid]
            codes, place = distinct(values[valid])
            number, own = np.bincount(place), np.bincount(place, area)
            for code, count, hectare in zip(codes.tolist(), number.tolist(), own.tolist(), strict=True):
                pixels[code] = pixels.get(code, 0) + count
                hectares[code] = hectares.get(code, 0.0) + hectare
        if not pixels:
            raise DataError(f"{self._dataset.name}: holds no data anywhere; there is nothing to assess")
        if self._legend.multilabel:
            one = self._legend.classes[self._band - 1]
            known = {0: MapClass(f"not {one.name}", 0, background=True), 1: MapClass(one.name, 1, color=one.color)}
            if strange := pixels.keys() - known.keys():
                raise DataError(f"{self._dataset.name}: holds {min(strange)} in band {self._band}; it holds 0 and 1")
        else:
            known = {code: self._legend.class_of(self._band, code) for code in pixels}
        if not np.isfinite(list(hectares.values())).all():
            raise GridError(f"{self._dataset.name}: some of its pixels have no place on the ground")
        met = sorted(pixels)
        counted = tuple(Part(known[code].name, pixels[code], hectares[code]) for code in met)
        return np.array(met), tuple(known[code] for code in met), counted

    def read(self, window: Window) -> NDArray[np.int16]:
        """Return the index of each pixel's class in `classes`, int16 (H, W), -1 where there is no data."""
        values, valid = self._values(window)
        first, last = int(self._codes[0]), int(self._codes[-1])
        if last - first < FEW:
            table: NDArray[np.int16] = np.full(last - first + 1, NOWHERE, dtype=np.int16)
            table[self._codes - first] = np.arange(len(self._codes))
            place = table[np.clip(values, first, last).astype(np.int64) - first]
        else:
            place = np.searchsorted(self._codes, values).astype(np.int16)
        return np.where(valid, place, np.int16(NOWHERE))

    def _stratified(self, classes: NDArray[np.int16], window: Window) -> NDArray[np.int16]:
        if self._buffer is None:
            return classes
        centre, metres = self._buffer
        pixel = self.grid.pixel_metres(window)
        halo = math.ceil(metres / pixel[1])
        above = min(halo, int(window.row_off))
        below = min(halo, self.grid.height - int(window.row_off + window.height))
        around = Window(0, window.row_off - above, window.width, window.height + above + below)
        beside = near(self.read(around) == centre, metres, pixel)[above : above + int(window.height)]
        return np.where(beside & (classes != centre) & (classes != NOWHERE), len(self.classes), classes).astype(
            np.int16
        )


@contextmanager
def class_map(
    path: PathLike, *, names: PathLike | None = None, of: str | None = None, buffer: tuple[str, float] | None = None
) -> Iterator[ClassMap]:
    """Open a map.

    Parameters
    ----------
    names
        A file of class names, as for `segkit.vectorize`.
    of
        The class that is in question, where classes overlap.
    buffer
        As for `ClassMap`.

    Raises
    ------
    UsageError
        A class that the map does not have; or none was named where classes overlap.
    DataError
        The raster is no map, or holds nothing.
    GridError
        Its CRS does not say where on the ground it is.
    """
    with open_raster(path) as dataset:
        legend = Legend.of(dataset, names)
        band = 1
        listed = [one.name for one in legend.classes]
        if legend.multilabel:
            if of not in listed:
                found = "name one with --class" if of is None else f"it has no {of!r}"
                raise UsageError(
                    f"{path}: its classes overlap, so each is assessed alone; {found}: {', '.join(listed)}"
                )
            band = listed.index(of) + 1
        elif of is not None:
            raise UsageError(f"{path}: its classes do not overlap and are assessed together; leave out --class")
        yield ClassMap(dataset, legend, band, buffer)
