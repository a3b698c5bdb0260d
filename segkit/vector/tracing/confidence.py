"""Confidence: how probable its class is inside a region."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
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
from segkit.vector.tracing.runs import Runs, joined, plain_nodata, strips

_NO_VALUE = -(2.0**62)


@dataclass(frozen=True)
class Chances:
    """What is known about runs.

    Parameters
    ----------
    total
        float64 (runs,): the sum of known probabilities of each run's own class.
    known
        int64 (runs,): how many there are.
    """

    total: NDArray[np.float64]
    known: NDArray[np.int64]


class Confidence:
    """Sums up the probabilities of a map's classes, in a raster on the map's grid.

    Its bands are described by class names. A background that has no band has what the highest probability leaves.
    """

    def __init__(self, dataset: DatasetReader) -> None:
        self._dataset = dataset

    def check(self, one: MapClass) -> None:
        """Raise a DataError where a class has no band."""
        self._bands(one)

    def along(
        self, runs: Iterable[Runs], classes: Sequence[MapClass | None], advance: Callable[[float], None]
    ) -> Iterator[tuple[Runs, Chances]]:
        """Give runs with their chances, in the strips in which the probabilities are read.

        Parameters
        ----------
        classes
            Of each kind, None where it does not matter; more may come while runs do.
        advance
            Called with the rows done.

        Raises
        ------
        DataError
            A class has no band.
        RasterError
            The file is damaged.
        """
        windows = strips(self._dataset)
        waiting: list[Runs] = []
        window = next(windows, None)
        for some in runs:
            waiting.append(some)
            while window is not None and waiting and _bottom(waiting) >= window.row_off + window.height:
                whole = joined(waiting)
                rows = int(window.row_off + window.height) - whole.top
                strip, rest = whole.upper(rows), whole.lower(rows)
                waiting = [rest] if rest.height else []
                yield strip, self._sums(strip, window, classes)
                advance(window.height)
                window = next(windows, None)

    def _sums(self, runs: Runs, window: Window, classes: Sequence[MapClass | None]) -> Chances:
        found = Chances(np.zeros(runs.first.size), np.zeros(runs.first.size, dtype=np.int64))
        starts, lengths = runs.starts(), runs.lengths()
        for kind in np.flatnonzero(np.bincount(runs.kind[runs.kind >= 0], minlength=1)).tolist():
            one = classes[kind]
            if one is None:
                continue
            mine = np.flatnonzero(runs.kind == kind)
            total, known = np.zeros(mine.size), np.zeros(mine.size, dtype=np.int64)
            bands = self._bands(one)
            if one.name in self._dataset.descriptions:
                values, nodata = self._read(bands[0], window)
                _sum_up(values, nodata, starts[mine], lengths[mine], total, known)
                scale, offset = self._dataset.scales[bands[0] - 1], self._dataset.offsets[bands[0] - 1]
                total = total * scale + known * offset
            else:
                highest = np.full(int(window.height * window.width), np.nan)
                for band in bands:
                    values, nodata = self._read(band, window)
                    scale, offset = self._dataset.scales[band - 1], self._dataset.offsets[band - 1]
                    np.fmax(highest, np.where(values == nodata, np.nan, values * scale + offset), out=highest)
                _sum_up(1 - highest, _NO_VALUE, starts[mine], lengths[mine], total, known)
            found.total[mine], found.known[mine] = total, known
        return found

    def _read(self, band: int, window: Window) -> tuple[NDArray[Any], float]:
        """Return the flattened pixels, uint8 or float64, and the value of those that hold none, besides NaN."""
        nodata = plain_nodata(self._dataset, band)
        masked = nodata is None and MaskFlags.all_valid not in self._dataset.mask_flag_enums[band - 1]
        pixels = read_window(self._dataset, [band], window, masked=masked)[0].ravel()
        if pixels.dtype == np.uint8 and not masked:
            return pixels, _NO_VALUE if nodata is None else float(nodata)
        values = pixels.astype(np.float64)
        return np.ma.filled(values, np.nan), _NO_VALUE if nodata is None else float(nodata)

    def _bands(self, one: MapClass) -> list[int]:
        """Return the band of a class; of a background that has none, every band."""
        names = self._dataset.descriptions
        if one.name in names:
            return [names.index(one.name) + 1]
        if one.background:
            return list(self._dataset.indexes)
        named = ", ".join(name or "(no name)" for name in names)
        raise DataError(
            f"{self._dataset.name}: has no band for the class {one.name}, only {named}; "
            "each band's description is a class name: name the probabilities that were written with the map"
        )


def _bottom(waiting: Sequence[Runs]) -> int:
    return waiting[-1].top + waiting[-1].height


@compiled
def _sum_up(values, nodata, starts, lengths, total, known):  # type: ignore[no-untyped-def]
    for k in range(starts.size):
        for at in range(starts[k], starts[k] + lengths[k]):
            value = float(values[at])
            if value == value and value != nodata:
                total[k] += value
                known[k] += 1
