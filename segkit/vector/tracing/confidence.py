"""Sum the probability of its class over each region."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.errors import DataError
from segkit.io.class_table import MapClass
from segkit.io.raster import read_window
from segkit.vector.tracing.jit import compiled
from segkit.vector.tracing.runs import Runs, concatenate_runs, iter_strips, plain_nodata

_NO_VALUE = -(2.0**62)


@dataclass(frozen=True)
class ConfidenceSums:
    """Sums of probabilities along runs.

    Parameters
    ----------
    total
        float64 (runs,): sum of the probabilities of the run's class over its pixels with data.
    count
        int64 (runs,): number of these pixels.
    """

    total: NDArray[np.float64]
    count: NDArray[np.int64]


class Confidence:
    """Sums the probabilities of a map's classes from a raster on the map's grid.

    The descriptions of its bands are class names. A background without a band gets 1 minus the highest probability.
    """

    def __init__(self, dataset: DatasetReader) -> None:
        self._dataset = dataset

    def check(self, one: MapClass) -> None:
        """Raise a DataError if a class has no band."""
        self._bands(one)

    def read(self, one: MapClass, window: Window) -> NDArray[np.float64]:
        """Return the probabilities of a class in a window, float64 (rows, columns); NaN where there are no data."""
        highest = np.full(int(window.height * window.width), np.nan)
        for band in self._bands(one):
            values, nodata = self._read(band, window)
            scale, offset = self._dataset.scales[band - 1], self._dataset.offsets[band - 1]
            np.fmax(highest, np.where(values == nodata, np.nan, values * scale + offset), out=highest)
        has_band = one.name in self._dataset.descriptions
        return (highest if has_band else 1 - highest).reshape(int(window.height), int(window.width))

    def along(
        self,
        runs: Iterable[Runs],
        classes: Sequence[MapClass | None],
        advance: Callable[[float], None],
        *,
        colours: int = 1,
    ) -> Iterator[tuple[Runs, ConfidenceSums]]:
        """Yield runs with their sums, in the strips in which the probabilities are read.

        Parameters
        ----------
        classes
            The class of each class index, None if it is not needed; the sequence may grow meanwhile.
        advance
            Called with the number of rows done.
        colours
            Class indices in the runs for each class (see `splitter`).

        Raises
        ------
        DataError
            A class has no band.
        RasterError
            The file is damaged.
        """
        windows = iter_strips(self._dataset)
        waiting: list[Runs] = []
        window = next(windows, None)
        for part in runs:
            waiting.append(part)
            while window is not None and waiting and _bottom(waiting) >= window.row_off + window.height:
                available = concatenate_runs(waiting)
                rows = int(window.row_off + window.height) - available.top
                strip, rest = available.upper(rows), available.lower(rows)
                waiting = [rest] if rest.height else []
                yield strip, self._sums(replace(strip, class_index=strip.class_index // colours), window, classes)
                advance(window.height)
                window = next(windows, None)

    def _sums(self, runs: Runs, window: Window, classes: Sequence[MapClass | None]) -> ConfidenceSums:
        found = ConfidenceSums(np.zeros(runs.first.size), np.zeros(runs.first.size, dtype=np.int64))
        starts, lengths = runs.starts(), runs.lengths()
        for class_index in np.flatnonzero(np.bincount(runs.class_index[runs.class_index >= 0], minlength=1)).tolist():
            one = classes[class_index]
            if one is None:
                continue
            selected = np.flatnonzero(runs.class_index == class_index)
            total, count = np.zeros(selected.size), np.zeros(selected.size, dtype=np.int64)
            bands = self._bands(one)
            if one.name in self._dataset.descriptions:
                values, nodata = self._read(bands[0], window)
                _sum_up(values, nodata, starts[selected], lengths[selected], total, count)
                scale, offset = self._dataset.scales[bands[0] - 1], self._dataset.offsets[bands[0] - 1]
                total = total * scale + count * offset
            else:
                _sum_up(self.read(one, window).ravel(), _NO_VALUE, starts[selected], lengths[selected], total, count)
            found.total[selected], found.count[selected] = total, count
        return found

    def _read(self, band: int, window: Window) -> tuple[NDArray[Any], float]:
        """Return the flattened pixels, uint8 or float64, and their no-data value; NaN is also no data."""
        nodata = plain_nodata(self._dataset, band)
        masked = nodata is None and MaskFlags.all_valid not in self._dataset.mask_flag_enums[band - 1]
        pixels = read_window(self._dataset, [band], window, masked=masked)[0].ravel()
        if pixels.dtype == np.uint8 and not masked:
            return pixels, _NO_VALUE if nodata is None else float(nodata)
        values = pixels.astype(np.float64)
        return np.ma.filled(values, np.nan), _NO_VALUE if nodata is None else float(nodata)

    def _bands(self, one: MapClass) -> list[int]:
        """Return the band of a class; for a background without a band, all bands."""
        names = self._dataset.descriptions
        if one.name in names:
            return [names.index(one.name) + 1]
        if one.background:
            return list(self._dataset.indexes)
        named = ", ".join(name or "(no name)" for name in names)
        raise DataError(
            f"{self._dataset.name}: has no band for the class {one.name}, only {named}; band descriptions must be "
            "class names: give the probabilities that were written with the map"
        )


def _bottom(waiting: Sequence[Runs]) -> int:
    return waiting[-1].top + waiting[-1].height


@compiled
def _sum_up(values, nodata, starts, lengths, total, count):
    for k in range(starts.size):
        for at in range(starts[k], starts[k] + lengths[k]):
            value = float(values[at])
            if value == value and value != nodata:
                total[k] += value
                count[k] += 1
