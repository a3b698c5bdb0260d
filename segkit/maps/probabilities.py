"""The probabilities of a map's classes, read window by window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.errors import DataError, GridError
from segkit.io.class_table import MapClass
from segkit.io.grid import Grid
from segkit.io.paths import PathLike
from segkit.io.raster import open_raster, read_grid, read_mask, read_window


class ClassProbabilities:
    """Open probabilities of the classes of a map; made by `open_probabilities`.

    Parameters
    ----------
    dataset
        A band for each class, whose description is the class.
    bands
        Number of the band of each class. Negative: 1 minus the band, of the other one of two classes. 0: unknown.
    """

    def __init__(self, dataset: DatasetReader, bands: tuple[int, ...]) -> None:
        self._dataset, self._bands = dataset, bands

    def read(self, window: Window) -> NDArray[np.float64]:
        """Return the probability of each class, float64 (K, H, W); 0 without data, NaN for classes without a band."""
        stack = np.full((len(self._bands), int(window.height), int(window.width)), np.nan)
        for layer, band in zip(stack, self._bands, strict=True):
            if band:
                layer[:] = self._read(abs(band), window, complement=band < 0)
        return stack

    def _read(self, band: int, window: Window, *, complement: bool) -> NDArray[np.float64]:
        stored = read_window(self._dataset, [band], window)[0]
        scale, offset = self._dataset.scales[band - 1], self._dataset.offsets[band - 1]
        values = stored.astype(np.float64) * scale + offset
        known = (read_mask(self._dataset, band, window) > 0) & np.isfinite(values)
        return np.where(known, 1 - values if complement else values, 0)


@contextmanager
def open_probabilities(path: PathLike, grid: Grid, classes: Sequence[MapClass]) -> Iterator[ClassProbabilities]:
    """Open the probabilities of a map, as `segkit.predict` writes them.

    Parameters
    ----------
    grid, classes
        Of the map.

    Raises
    ------
    GridError
        They lie on another grid than the map.
    DataError
        No band has the name of a class.
    """
    with open_raster(path) as dataset:
        if difference := grid.describe_difference(read_grid(dataset)):
            raise GridError(
                f"{path} is on another grid than the map ({difference}); give the probabilities written with the map"
            )
        named = {name: band for band, name in enumerate(dataset.descriptions, 1) if name}
        bands = [named.get(one.name, 0) for one in classes]
        if not any(bands):
            of_map, of_bands = ", ".join(one.name for one in classes), ", ".join(named) or "no names"
            raise DataError(
                f"{path}: none of its bands is named after a class; the map has {of_map}, the bands {of_bands}; give "
                "the probabilities written with the map"
            )
        if dataset.count == 1:  # of a class; the rest is background
            bands = [band or (-1 if one.background else 0) for band, one in zip(bands, classes, strict=True)]
        yield ClassProbabilities(dataset, tuple(bands))
