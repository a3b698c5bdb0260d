"""Confidence: the mean probability of a region's class inside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from segkit.errors import DataError
from segkit.raster import read_window
from segkit.vector.legend import MapClass
from segkit.vector.regions import Regions
from segkit.vector.runs import Runs, strips


def mean_confidence(
    dataset: DatasetReader, runs: Runs, regions: Regions, classes: Sequence[MapClass], advance: Callable[[float], None]
) -> NDArray[np.float64]:
    """Average probabilities over regions, (regions,); NaN where a region has none.

    Parameters
    ----------
    dataset
        Probabilities on the map's grid; its bands are described by class names. A background that has no band has what
        the highest probability leaves.
    classes
        The class of each kind of region.
    advance
        Called with the rows done.

    Raises
    ------
    DataError
        A class has no band.
    RasterError
        The file is damaged.
    """
    bands = [_bands_of(dataset, one) for one in classes]
    scale, offset = np.array([dataset.scales, dataset.offsets], dtype=np.float32)[..., None, None]
    # One more, for runs in no region, whose number is -1.
    kind_of = np.append(regions.kind, -1)
    total, count = np.zeros(regions.kind.size), np.zeros(regions.kind.size, dtype=np.int64)
    for window in strips(dataset):
        part, starts = runs.within(window)
        region = regions.of_run[part]
        for kind, indexes in enumerate(bands):
            mine = np.flatnonzero(kind_of[region] == kind)
            if not mine.size:
                continue
            own = np.array(indexes) - 1
            highest = (read_window(dataset, indexes, window, masked=True) * scale[own] + offset[own]).max(axis=0)
            known = ~np.ma.getmaskarray(highest)
            # Runs cover the window, so each reduces the pixels up to the next one's start.
            np.add.at(total, region[mine], np.add.reduceat(highest.filled(0).ravel(), starts, dtype=np.float64)[mine])
            np.add.at(count, region[mine], np.add.reduceat(known.ravel(), starts, dtype=np.int64)[mine])
        advance(window.height)
    mean: NDArray[np.float64] = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    rest = np.array([one.name not in dataset.descriptions for one in classes], dtype=bool)[regions.kind]
    mean[rest] = 1 - mean[rest]
    return mean


def _bands_of(dataset: DatasetReader, one: MapClass) -> list[int]:
    """Return the band of a class; of a background that has none, every band."""
    if one.name in dataset.descriptions:
        return [dataset.descriptions.index(one.name) + 1]
    if one.background:
        return list(dataset.indexes)
    named = ", ".join(name or "(no name)" for name in dataset.descriptions)
    raise DataError(
        f"{dataset.name}: has no band for the class {one.name}, only {named}; "
        "each band's description is a class name: name the probabilities that were written with the map"
    )
