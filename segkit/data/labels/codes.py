"""Labels that are rasters of class codes, or masks."""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NodataShadowWarning
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.data.labels.base import COUNT_WINDOW, PartialLabels
from segkit.errors import GridError, LabelError, ways
from segkit.io.grid import Grid
from segkit.io.raster import grid_of, open_raster, read_window
from segkit.io.scene import warped
from segkit.recipe.schema import LabelSource
from segkit.task.task import Task

_NOT_KNOWN = int(np.iinfo(np.int64).min)  # beside every code that a label raster can hold


@dataclass(frozen=True)
class LabelFile:
    """One band of codes, or one band per class: what the file's mask or no-data value hides, and NaN, is not known.

    `nodata` is the declared value where that decides what is hidden; `coded` says that it hides nothing.
    """

    path: Path
    grid: Grid
    bands: tuple[int, ...]
    masked: bool
    resample: bool
    nodata: float | None
    coded: bool = False

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read numbers (bands, H, W) as the file has them, and where they are hidden."""
        with contextlib.ExitStack() as stack:
            dataset: DatasetReader = stack.enter_context(open_raster(self.path))
            if self.resample:
                dataset = stack.enter_context(warped(dataset, self.grid, Resampling.nearest, ignore_nodata=self.coded))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NodataShadowWarning)  # no-data counts, no alpha band
                found = read_window(dataset, self.bands, window, masked=self.masked)
        values, hidden = np.ma.getdata(found), np.ma.getmaskarray(found)
        if self.coded and not self.resample:
            hidden &= values != self.nodata
        return values, hidden | np.isnan(values) if values.dtype.kind == "f" else hidden

    def understood(self, as_code: str | None, source: LabelSource) -> tuple[LabelFile, tuple[str, ...]]:
        """Say what the declared no-data value means, which reads `as_code` if it is a code; and what is in doubt."""
        if as_code is None or source.nodata == "ignore":
            return self, ()
        if source.nodata == "code":
            return replace(self, coded=True), ()
        with open_raster(self.path) as dataset:
            windows = grid_of(dataset).tiles(COUNT_WINDOW)
            pixels = sum(
                int((read_window(dataset, self.bands, window) == self.nodata).any(axis=0).sum()) for window in windows
            )
            share = pixels / (dataset.height * dataset.width)
        if not pixels:
            return self, ()
        return self, (f"{self.path} declares {self.nodata:g} as no data, which is also {as_code} ({share:.1%} of it)",)


@dataclass(frozen=True, eq=False)
class _CodeLabels(PartialLabels):
    """Codes by the classes' values or by a table of their own; or a mask of 0 and 1 for each of `classes`."""

    file: LabelFile
    ignore: tuple[int, ...]
    classes: tuple[str, ...]
    values: dict[int, str | None] | None

    def _read(self, window: Window) -> NDArray[Any]:
        if len(self.file.bands) > 1 or len(self.classes) < len(self.task.classes):
            return super()._read(window)
        return self._coded(self.task.encode, window)

    def _claims(self, window: Window) -> NDArray[np.int16]:
        if len(self.file.bands) > 1:
            ignore = (*self.ignore, _NOT_KNOWN)
            own = self.classes if len(self.classes) < len(self.task.classes) else None
            return self.task.claims_of_masks(self._codes(window), ignore=ignore, classes=own, source=self.name)
        return self._coded(functools.partial(self.task.claims, classes=self.classes), window)

    def _coded(self, encode: Callable[..., NDArray[np.int16]], window: Window) -> NDArray[np.int16]:
        encode = functools.partial(encode, ignore=(*self.ignore, _NOT_KNOWN), values=self.values, source=self.name)
        try:
            return encode(self._codes(window)[0])
        except LabelError:
            # The same is said again of the whole file, so that the codes and their pixels are all.
            counts: Counter[int] = Counter()
            for part in self.grid.tiles(COUNT_WINDOW):
                some, times = np.unique(self._codes(part), return_counts=True)
                counts.update(dict(zip(some.tolist(), times.tolist(), strict=True)))
            found, pixels = np.array([*counts.items()], dtype=np.int64).T
            return encode(found[None], pixels=pixels[None])

    def _codes(self, window: Window) -> NDArray[np.int64]:
        values, hidden = self.file.read(window)
        if values.dtype.kind == "f":
            odd = ~hidden & ~(np.isfinite(values) & (values == np.rint(values)))
            if odd.any():
                raise LabelError(
                    f"{self.name}: holds {values[odd][0]:g} and such ({int(odd.sum())} pixels); label codes are whole "
                    "numbers: is this a map of fractions (labels.fractions: true), or resampled with averages?"
                )
        return np.where(hidden, _NOT_KNOWN, np.where(hidden, 0, values).astype(np.int64))


def label_file(path: Path, grid: Grid, classes: int, *, resample: bool) -> tuple[LabelFile, list[str]]:
    """Look at a raster of labels for so many classes: which bands are labels, and how they come to the grid."""
    notes = []
    with open_raster(path) as dataset:
        own, flags = grid_of(dataset), dataset.mask_flag_enums
        alpha = {band for band in dataset.indexes if dataset.colorinterp[band - 1] == ColorInterp.alpha}
        # GDAL calls the fourth of four byte bands alpha, also where it is the fourth class.
        per_class = dataset.count == classes
        bands = tuple(band for band in dataset.indexes if per_class or band not in alpha)
        nodata = dataset.nodata if any(MaskFlags.nodata in flags[band - 1] for band in bands) else None
    alpha_is_class = bool(alpha.intersection(bands)) and any(MaskFlags.alpha in flags[band - 1] for band in bands)
    difference = grid.difference(own)
    if difference and own.crs is None and not own.located and own.shape == grid.shape:
        notes.append(f"{path} has no georeference; its pixels are taken as those of the image, which has its size")
        difference = None
    if difference and (own.crs is None or grid.crs is None or alpha_is_class):
        why = "its alpha band would hide its other classes" if alpha_is_class else "one of them has no CRS"
        raise GridError(
            f"{path} lies on another grid than its image ({difference}, image first), and cannot be resampled to it: "
            f"{why}; correct the labels"
        )
    if difference and not resample:
        raise GridError(
            f"{path} lies on another grid than its image ({difference}, image first)"
            + ways("correct the labels", "set data.resample: true")
        )
    return LabelFile(path, grid, bands, not alpha_is_class, bool(difference), nodata), notes


def open_codes(
    file: LabelFile,
    source: LabelSource,
    task: Task,
    ignore: Sequence[int],
    classes: tuple[str, ...],
    notes: list[str],
) -> _CodeLabels:
    """Open a raster of class codes, or of one mask per class.

    Raises
    ------
    LabelError
        The source's table of codes does not fit the file or the task.
    """
    path, values = file.path, _table(file.path, source, file.bands)
    codes: Mapping[int, str | None] = {0: "where a class is not", 1: "where a class is"}
    if len(file.bands) == 1:
        named = {row["value"]: row["name"] for row in task.legend} if values is None else values
        codes = {code: f"the code of {name}" for code, name in named.items() if name}
    meant = next((codes[code] for code in codes if code == file.nodata and code not in ignore), None)
    file, doubts = file.understood(meant, source)
    return _CodeLabels(
        str(path), file.grid, task, tuple(notes), False, file, tuple(ignore), classes, values, doubts=doubts
    )


def _table(path: Path, source: LabelSource, bands: Sequence[int]) -> dict[int, str | None] | None:
    """Return a source's table of codes."""
    if source.whole != 1:
        raise LabelError(f"{path}: whole is for fractions (labels.fractions: true); remove it")
    if source.values is None:
        return None
    if len(bands) > 1:
        raise LabelError(f"{path}: values is for one band of codes, this has {len(bands)} bands; remove it")
    for code in source.values:
        if not re.fullmatch("0|-?[1-9][0-9]*", code):
            raise LabelError(f"{path}: labels.values lists {code!r}; codes of a raster are whole numbers")
    return {int(code): name for code, name in source.values.items()}
