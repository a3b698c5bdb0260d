"""Which parts of the samples train and which validate, so that neither sees the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.sources import Sample
from segkit.errors import DataError
from segkit.grid import cut
from segkit.labels import Labels
from segkit.raster import Tile
from segkit.recipe import Split
from segkit.task import IGNORE, Task

_DRAWS = 200  # random assignments of blocks, of which the one that shares out the classes best is kept


@dataclass(frozen=True)
class Area:
    """The part of a sample that one side of a split may use.

    Parameters
    ----------
    sample
        A scene with its labels.
    windows
        Where its pixels count, none twice.
    hidden
        Where its pixels must not be seen at all: the other side's windows, grown by the gap.
    """

    sample: Sample
    windows: tuple[Window, ...]
    hidden: tuple[Window, ...] = ()

    @property
    def labels(self) -> Labels:
        """The sample's labels, which every sample of a split has."""
        assert self.sample.labels is not None
        return self.sample.labels

    def mask(self, tile: Tile, planes: NDArray[np.int16], window: Window) -> None:
        """Make what must not be seen no data and not known, in place, in a tile and target planes read at `window`."""
        for hidden in self.hidden:
            rows, columns = shared(hidden, window)
            tile.valid[rows, columns] = False
            planes[:, rows, columns] = IGNORE
        planes[:, ~tile.valid] = IGNORE


def shared(one: Window, window: Window) -> tuple[slice, slice]:
    """Return the rows and columns of `window` that lie in another one; empty where they do not meet."""

    def overlap(first: float, length: float, own: float, size: float) -> slice:
        return slice(int(max(first - own, 0)), int(max(min(first + length - own, size), 0)))

    return (
        overlap(one.row_off, one.height, window.row_off, window.height),
        overlap(one.col_off, one.width, window.col_off, window.width),
    )


def whole(samples: Sequence[Sample]) -> list[Area]:
    """Return areas that are the samples whole."""
    return [Area(sample, (sample.scene.grid.whole,)) for sample in samples]


def split(samples: Sequence[Sample], task: Task, rule: Split) -> tuple[list[Area], list[Area]]:
    """Divide samples into areas to train and areas to validate, by blocks.

    Every scene is cut into blocks of `rule.block` pixels. Blocks are drawn for validation until they hold the wanted
    fraction of the valid pixels with a known label. Of many draws that one is kept in which the fewest categories lack
    on one side, and of these the one in which every category comes closest to that fraction. Training sees nothing
    within `rule.gap` pixels of a validation block.

    Returns
    -------
    train, validation

    Raises
    ------
    DataError
        Fewer than two blocks hold valid pixels with known labels.
    """
    blocks = [(place, window) for place, sample in enumerate(samples) for window in sample.scene.grid.tiles(rule.block)]
    counts = np.array([_known(Area(samples[place], (window,)), task) for place, window in blocks], dtype=np.float64)
    labelled = np.flatnonzero(counts.sum(axis=1))
    if len(labelled) < 2:
        raise DataError(
            f"data.val: {len(labelled)} blocks of {rule.block} x {rule.block} pixels hold valid pixels with known "
            "labels, a split needs two; make data.val.block smaller, or give data.val images and labels of its own"
        )
    chosen = _draw(counts[labelled], rule)
    validating = {int(index) for index in labelled[chosen]}
    train, validation = [], []
    for place, sample in enumerate(samples):
        mine = [(index, window) for index, (owner, window) in enumerate(blocks) if owner == place]
        held = tuple(window for index, window in mine if index in validating)
        kept = tuple(window for index, window in mine if index not in validating)
        if held:
            validation.append(Area(sample, held))
        if kept:
            train.append(Area(sample, kept, tuple(_grown(window, rule.gap) for window in held)))
    return train, validation


def _draw(counts: NDArray[np.float64], rule: Split) -> NDArray[np.bool_]:
    """Choose rows of `counts` (blocks, categories) that hold about `rule.fraction` of every category."""
    random = np.random.default_rng(rule.seed)
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    pixels = counts.sum(axis=1) / counts.sum()
    present = counts.sum(axis=0) > 0
    best, least = np.zeros(len(counts), dtype=bool), (np.inf, np.inf)
    for _ in range(_DRAWS):
        order = random.permutation(len(counts))
        held = np.cumsum(pixels[order])
        take = min(max(1, int(np.argmin(np.abs(held - rule.fraction))) + 1), len(counts) - 1)
        drawn = np.zeros(len(counts), dtype=bool)
        drawn[order[:take]] = True
        one_sided = present & ~(counts[drawn].any(axis=0) & counts[~drawn].any(axis=0))
        miss = np.abs(shares[drawn].sum(axis=0) - rule.fraction)[present].sum()
        if (one_sided.sum(), miss) < least:
            best, least = drawn, (one_sided.sum(), miss)
    return best


def _known(area: Area, task: Task) -> NDArray[np.int64]:
    return np.asarray(sum(count_categories(planes, task) for _, planes, _ in read_pieces([area])), dtype=np.int64)


def count_categories(planes: NDArray[np.int16], task: Task) -> NDArray[np.int64]:
    """Count the known pixels of each category of each plane (P, H, W), flat (P * K)."""
    size = len(task.categories)
    each = [np.bincount(plane[plane != IGNORE], minlength=size) for plane in planes]
    return np.concatenate(each).astype(np.int64)


def _grown(window: Window, gap: int) -> Window:
    return Window(window.col_off - gap, window.row_off - gap, window.width + 2 * gap, window.height + 2 * gap)


def pieces(windows: Sequence[Window], size: int) -> Iterator[Window]:
    """Cut windows into pieces of at most `size` x `size` pixels."""
    for window in windows:
        yield from cut(window, size)


def read_pieces(areas: Sequence[Area], size: int = 1024) -> Iterator[tuple[Tile, NDArray[np.int16], Window]]:
    """Read what counts in areas, once, as tiles and target planes of at most `size` x `size` pixels."""
    for area in areas:
        with area.sample.scene.open() as reader:
            for window in pieces(area.windows, size):
                tile, planes = reader.read(window), area.labels.read(window)
                area.mask(tile, planes, window)
                yield tile, planes, window
