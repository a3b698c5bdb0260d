"""Labels that are rasters of cover fractions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.labels.base import COUNT_WINDOW, PartialLabels
from segkit.data.labels.codes import LabelFile
from segkit.errors import LabelError
from segkit.io.raster import open_raster
from segkit.recipe.schema import LabelSource
from segkit.task.task import BACKGROUND, SLACK, Task

_MOST_SLACK = 0.05  # of sums of fractions, however coarsely a file's numbers are rounded
_ROUNDING = 1e-6  # of a fraction in float32


@dataclass(frozen=True, eq=False)
class FractionLabels(PartialLabels):
    """A band of cover for each of `classes`: stored numbers * scale + offset, of each band its own.

    `rest` and `slack` are those of `Task.encode_fractions`.
    """

    file: LabelFile
    ignore: tuple[int, ...]
    classes: tuple[str, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    rest: Literal["background", "ignore"] | None
    slack: float

    def _read(self, window: Window) -> NDArray[Any]:
        claims = self._claims(window)
        return self.task.encode_fractions(claims, rest=self.rest, slack=self.slack, source=self.name)

    def _claims(self, window: Window) -> NDArray[np.float64]:
        shares = self._shares(window)
        for place, band in enumerate(self.file.bands):
            if _no_fraction(shares[place]).any():
                self._refuse(place, band)
        names = [*(one.name for one in self.task.classes), BACKGROUND]
        claims = np.full((len(names), *shares.shape[1:]), np.nan)
        claims[[names.index(name) for name in self.classes]] = shares.clip(0, 1)
        return claims

    def _shares(self, window: Window) -> NDArray[np.float64]:
        values, hidden = self.file.read(window)
        scale, offset = (np.array(each)[:, None, None] for each in (self.scales, self.offsets))
        shares: NDArray[np.float64] = values.astype(np.float64) * scale + offset
        shares[hidden | np.isin(values, self.ignore)] = np.nan
        return shares

    def _refuse(self, place: int, band: int) -> None:
        """Say of the whole file what numbers of a band are no fractions."""
        whole = (self._shares(part)[place] for part in self.grid.tiles(COUNT_WINDOW))
        numbers = np.concatenate([shares[_no_fraction(shares)] for shares in whole])
        far = numbers[np.abs(numbers - 0.5).argmax()]
        raise LabelError(
            f"{self.name}: band {band} ({self.classes[place]}) holds fractions as {far:.6g} ({numbers.size} pixels); "
            "they lie between 0 and 1: labels.whole says what a pixel covered wholly has, data.ignore what number "
            "means that nothing is known"
        )


def _no_fraction(shares: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Say what is neither NaN nor between 0 and 1."""
    return (shares < -_ROUNDING) | (shares > 1 + _ROUNDING)


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
        Its bands are not those of the classes, or its numbers are no fractions.
    """
    path, bands = file.path, file.bands
    if source.values is not None:
        raise LabelError(f"{path}: values is for codes, not for fractions; remove it")
    if source.outside is not None and task.planes > 1:
        raise LabelError(f"{path}: outside is for classes that exclude each other; remove it")
    if len(bands) != len(classes):
        raise LabelError(
            f"{path}: {len(bands)} bands of fractions, these labels speak for {len(classes)} classes "
            f"({', '.join(classes)}); name the class of each band, in their order, under labels.classes"
        )
    with open_raster(path) as dataset:
        dtypes = [dataset.dtypes[band - 1] for band in bands]
        scales = tuple(dataset.scales[band - 1] / source.whole for band in bands)
        offsets = tuple(dataset.offsets[band - 1] / source.whole for band in bands)
    for scale, offset in dict.fromkeys(zip(scales, offsets, strict=True)):
        for code in ignore:
            if not _no_fraction(np.array(share := code * scale + offset)):
                raise LabelError(
                    f"{path}: data.ignore lists {code}, which is the fraction {share:g} here; remove it, and say under "
                    "labels.values of the labels that hold codes that it is not known"
                )
    meant = None
    if file.nodata is not None and file.nodata not in ignore:
        shares = (file.nodata * scale + offset for scale, offset in zip(scales, offsets, strict=True))
        meant = next((f"the fraction {share:g}" for share in shares if 0 <= share <= 1), None)
    file, doubts = file.understood(meant, source)
    # Sums of whole numbers miss 1 by their rounding.
    steps = sum(abs(scale) for scale, dtype in zip(scales, dtypes, strict=True) if "int" in dtype)
    slack = min(max(SLACK, steps / 2), _MOST_SLACK)
    return FractionLabels(
        str(path), file.grid, task, tuple(notes), True, file, tuple(ignore), classes, scales, offsets,
        source.outside, slack, doubts=doubts,
    )  # fmt: skip
