"""Labels in rasters of cover fractions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.labels.base import COUNT_WINDOW_PX, PartialLabels
from segkit.data.labels.label_file import LabelFile
from segkit.errors import LabelError
from segkit.io.raster import open_raster
from segkit.recipe.label_source import LabelSource
from segkit.task import BACKGROUND, Task
from segkit.task.encoding import SUM_TOLERANCE

_MAX_TOLERANCE = 0.05  # of the sum of fractions, also if the values of a file are rounded coarsely
_ROUNDING_ERROR = 1e-6  # of a fraction in float32


@dataclass(frozen=True, eq=False)
class FractionLabels(PartialLabels):
    """A band of fractions for each of `classes`: stored value * scale + offset, with a scale and offset per band.

    `rest` and `tolerance` are those of `Task.encode_fractions`.
    """

    file: LabelFile
    ignore: tuple[int, ...]
    classes: tuple[str, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    rest: Literal["background", "ignore"] | None
    tolerance: float

    def _read(self, window: Window) -> NDArray[Any]:
        partial_labels = self._partial_labels(window)
        return self.task.encode_fractions(partial_labels, rest=self.rest, tolerance=self.tolerance, source=self.name)

    def _partial_labels(self, window: Window) -> NDArray[np.float64]:
        shares = self._shares(window)
        for index, band in enumerate(self.file.bands):
            if _out_of_range(shares[index]).any():
                self._raise_out_of_range(index, band)
        names = [*(one.name for one in self.task.classes), BACKGROUND]
        partial_labels = np.full((len(names), *shares.shape[1:]), np.nan)
        partial_labels[[names.index(name) for name in self.classes]] = shares.clip(0, 1)
        return partial_labels

    def _shares(self, window: Window) -> NDArray[np.float64]:
        values, masked = self.file.read(window)
        scale, offset = (np.array(each)[:, None, None] for each in (self.scales, self.offsets))
        shares: NDArray[np.float64] = values.astype(np.float64) * scale + offset
        shares[masked | np.isin(values, self.ignore)] = np.nan
        return shares

    def _raise_out_of_range(self, index: int, band: int) -> None:
        """Raise an error with all values of a band that are not between 0 and 1."""
        windows = (self._shares(part)[index] for part in self.grid.tiles(COUNT_WINDOW_PX))
        numbers = np.concatenate([shares[_out_of_range(shares)] for shares in windows])
        worst = numbers[np.abs(numbers - 0.5).argmax()]
        raise LabelError(
            f"{self.name}: {numbers.size} pixels of band {band} ({self.classes[index]}) have fractions such as "
            f"{worst:.6g}; they must be between 0 and 1: set labels.full_value to the value of 100 % cover, and list "
            "values of unlabelled pixels in data.ignore"
        )


def _out_of_range(shares: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return where values are neither NaN nor between 0 and 1."""
    return (shares < -_ROUNDING_ERROR) | (shares > 1 + _ROUNDING_ERROR)


def open_fractions(
    file: LabelFile,
    source: LabelSource,
    task: Task,
    ignore: Sequence[int],
    classes: tuple[str, ...],
    notes: list[str],
) -> FractionLabels:
    """Open a raster of cover fractions, one band for each of the classes.

    Raises
    ------
    LabelError
        The number of bands is not that of the classes, or options do not fit fractions.
    """
    path, bands = file.path, file.bands
    for key in ("values", "other_values"):
        if getattr(source, key) is not None:
            raise LabelError(f"{path}: {key} is only for codes, not for fractions; remove it")
    if source.outside_polygons is not None and task.n_targets > 1:
        raise LabelError(f"{path}: outside_polygons is only for mutually exclusive classes; remove it")
    if len(bands) != len(classes):
        raise LabelError(
            f"{path}: {len(bands)} bands of fractions, but these labels cover {len(classes)} classes "
            f"({', '.join(classes)}); list the class of each band, in band order, in labels.classes"
        )
    with open_raster(path) as dataset:
        dtypes = [dataset.dtypes[band - 1] for band in bands]
        scales = tuple(dataset.scales[band - 1] / source.full_value for band in bands)
        offsets = tuple(dataset.offsets[band - 1] / source.full_value for band in bands)
    for scale, offset in dict.fromkeys(zip(scales, offsets, strict=True)):
        for code in ignore:
            if not _out_of_range(np.array(share := code * scale + offset)):
                raise LabelError(
                    f"{path}: data.ignore lists {code}, which is a valid fraction ({share:g}) in this file; remove it, "
                    "and for labels with codes list it in labels.values as null"
                )
    as_code = None
    if file.nodata is not None and file.nodata not in ignore:
        shares = (file.nodata * scale + offset for scale, offset in zip(scales, offsets, strict=True))
        as_code = next((f"the fraction {share:g}" for share in shares if 0 <= share <= 1), None)
    file, ambiguities = file.interpret_nodata(as_code, source)
    # Sums of rounded whole numbers may differ from 1.
    steps = sum(abs(scale) for scale, dtype in zip(scales, dtypes, strict=True) if "int" in dtype)
    tolerance = min(max(SUM_TOLERANCE, steps / 2), _MAX_TOLERANCE)
    return FractionLabels(
        str(path), file.grid, task, tuple(notes), True, file, tuple(ignore), classes, scales, offsets,
        source.outside_polygons, tolerance, ambiguities=ambiguities,
    )  # fmt: skip
