"""Labels in rasters of class codes, or of one 0/1 mask per class."""

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

from segkit.data.labels.base import COUNT_WINDOW_PX, PartialLabels
from segkit.errors import GridError, LabelError, suggest
from segkit.io.grid import Grid
from segkit.io.raster import open_raster, read_grid, read_window
from segkit.io.warping import warp_to
from segkit.recipe.schema import LabelSource
from segkit.task import Task

_UNLABELLED = int(np.iinfo(np.int64).min)  # differs from every code of a label raster


@dataclass(frozen=True)
class LabelFile:
    """A raster with one band of codes, or one band per class.

    Parameters
    ----------
    path, bands
        The file and its label bands.
    grid
        The grid of the scene.
    masked
        Whether to apply the mask or no-data value of the file.
    resample
        Whether to warp the file to `grid`.
    nodata
        The declared no-data value, if it decides which pixels are masked.
    nodata_is_code
        Whether pixels with the value `nodata` are labelled.
    """

    path: Path
    grid: Grid
    bands: tuple[int, ...]
    masked: bool
    resample: bool
    nodata: float | None
    nodata_is_code: bool = False

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read stored values (bands, H, W), and a mask that is True where they are unlabelled."""
        with contextlib.ExitStack() as stack:
            dataset: DatasetReader = stack.enter_context(open_raster(self.path))
            if self.resample:
                dataset = stack.enter_context(
                    warp_to(dataset, self.grid, Resampling.nearest, ignore_nodata=self.nodata_is_code)
                )
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", NodataShadowWarning
                )  # the no-data value takes precedence over an alpha band
                found = read_window(dataset, self.bands, window, masked=self.masked)
        values, masked = np.ma.getdata(found), np.ma.getmaskarray(found)
        if self.nodata_is_code and not self.resample:
            masked &= values != self.nodata
        return values, masked | np.isnan(values) if values.dtype.kind == "f" else masked

    def interpret_nodata(self, as_code: str | None, source: LabelSource) -> tuple[LabelFile, tuple[str, ...]]:
        """Apply `source.nodata` to a no-data value that is also a code; return an ambiguity if that is not set.

        `as_code` describes the meaning of the no-data value as a code; None if it is not a code.
        """
        if as_code is None or source.nodata == "ignore":
            return self, ()
        if source.nodata == "code":
            return replace(self, nodata_is_code=True), ()
        with open_raster(self.path) as dataset:
            windows = read_grid(dataset).tiles(COUNT_WINDOW_PX)
            pixels = sum(
                int((read_window(dataset, self.bands, window) == self.nodata).any(axis=0).sum()) for window in windows
            )
            share = pixels / (dataset.height * dataset.width)
        if not pixels:
            return self, ()
        return self, (
            f"{self.path} declares {self.nodata:g} as no data, which is also {as_code} ({share:.1%} of the pixels)",
        )


@dataclass(frozen=True, eq=False)
class _CodeLabels(PartialLabels):
    """Class values, or codes of the table `values`, in one band; or a 0/1 mask for each of `classes`."""

    file: LabelFile
    ignore: tuple[int, ...]
    classes: tuple[str, ...]
    values: dict[int, str | None] | None

    def _read(self, window: Window) -> NDArray[Any]:
        if len(self.file.bands) > 1 or len(self.classes) < len(self.task.classes):
            return super()._read(window)
        return self._encode(self.task.encode, window)

    def _partial_labels(self, window: Window) -> NDArray[np.int16]:
        if len(self.file.bands) > 1:
            ignore = (*self.ignore, _UNLABELLED)
            classes = self.classes if len(self.classes) < len(self.task.classes) else None
            return self.task.partial_labels_from_masks(
                self._codes(window), ignore=ignore, classes=classes, source=self.name
            )
        return self._encode(functools.partial(self.task.partial_labels, classes=self.classes), window)

    def _encode(self, encode: Callable[..., NDArray[np.int16]], window: Window) -> NDArray[np.int16]:
        encode = functools.partial(encode, ignore=(*self.ignore, _UNLABELLED), values=self.values, source=self.name)
        try:
            return encode(self._codes(window)[0])
        except LabelError:
            # Raise the error again for the whole file, so that it lists all codes and pixels.
            counts: Counter[int] = Counter()
            for part in self.grid.tiles(COUNT_WINDOW_PX):
                codes, numbers = np.unique(self._codes(part), return_counts=True)
                counts.update(dict(zip(codes.tolist(), numbers.tolist(), strict=True)))
            found, pixels = np.array([*counts.items()], dtype=np.int64).T
            return encode(found[None], pixels=pixels[None])

    def _codes(self, window: Window) -> NDArray[np.int64]:
        values, masked = self.file.read(window)
        if values.dtype.kind == "f":
            fractional = ~masked & ~(np.isfinite(values) & (values == np.rint(values)))
            if fractional.any():
                raise LabelError(
                    f"{self.name}: {int(fractional.sum())} pixels have values such as {values[fractional][0]:g}; label "
                    "codes are whole numbers: is this a map of fractions (labels.fractions: true), or resampled with "
                    "averages?"
                )
        return np.where(masked, _UNLABELLED, np.where(masked, 0, values).astype(np.int64))


def inspect_label_file(path: Path, grid: Grid, classes: int, *, resample: bool) -> tuple[LabelFile, list[str]]:
    """Inspect a label raster for a number of classes: its label bands, and whether it must be resampled to a grid.

    Returns the file and notes for the user.

    Raises
    ------
    GridError
        The raster is on another grid and `resample` is False, or it cannot be resampled.
    """
    notes = []
    with open_raster(path) as dataset:
        file_grid, flags = read_grid(dataset), dataset.mask_flag_enums
        alpha = {band for band in dataset.indexes if dataset.colorinterp[band - 1] == ColorInterp.alpha}
        # GDAL calls the fourth of four byte bands alpha, even if it is the fourth class.
        per_class = dataset.count == classes
        bands = tuple(band for band in dataset.indexes if per_class or band not in alpha)
        nodata = dataset.nodata if any(MaskFlags.nodata in flags[band - 1] for band in bands) else None
    alpha_is_class = bool(alpha.intersection(bands)) and any(MaskFlags.alpha in flags[band - 1] for band in bands)
    difference = grid.describe_difference(file_grid)
    if difference and file_grid.crs is None and not file_grid.has_location and file_grid.shape == grid.shape:
        notes.append(f"{path} has no georeference; it has the size of the image, so its pixels are those of the image")
        difference = None
    if difference and (file_grid.crs is None or grid.crs is None or alpha_is_class):
        reason = "its alpha band would mask its other classes" if alpha_is_class else "one of them has no CRS"
        raise GridError(
            f"{path} is on another grid than its image ({difference}, image first), and cannot be resampled: {reason}; "
            "correct the labels"
        )
    if difference and not resample:
        raise GridError(
            f"{path} is on another grid than its image ({difference}, image first)"
            + suggest("correct the labels", "set data.resample: true")
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
        `values` of the source does not fit the file or the task.
    """
    path, values = file.path, _value_table(file.path, source, file.bands)
    codes: Mapping[int, str | None] = {0: "the code of absent classes", 1: "the code of present classes"}
    if len(file.bands) == 1:
        named = {row["value"]: row["name"] for row in task.legend} if values is None else values
        codes = {code: f"the code of {name}" for code, name in named.items() if name}
    as_code = next((codes[code] for code in codes if code == file.nodata and code not in ignore), None)
    file, ambiguities = file.interpret_nodata(as_code, source)
    return _CodeLabels(
        str(path), file.grid, task, tuple(notes), False, file, tuple(ignore), classes, values, ambiguities=ambiguities
    )


def _value_table(path: Path, source: LabelSource, bands: Sequence[int]) -> dict[int, str | None] | None:
    """Return {code: class name} of a source, None if it has no `values`."""
    if source.full_value != 1:
        raise LabelError(f"{path}: full_value is only for fractions (labels.fractions: true); remove it")
    if source.values is None:
        return None
    if len(bands) > 1:
        raise LabelError(
            f"{path}: values is only for rasters with one band of codes, this has {len(bands)} bands; remove it"
        )
    for code in source.values:
        if not re.fullmatch("0|-?[1-9][0-9]*", code):
            raise LabelError(f"{path}: labels.values lists {code!r}; raster codes are whole numbers")
    return {int(code): name for code, name in source.values.items()}
