"""Areas: the part of a labelled scene that trains or that validates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.labels.base import Labels
from segkit.data.pairing import Sample
from segkit.io.cover import Cover
from segkit.io.grid import cut
from segkit.io.scene import Tile
from segkit.task.task import IGNORE, Task

PIECE = 256  # pixels along a side of the windows that polygons validate in


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
        Pixels that must not be seen at all: the other side's, grown by the gap.
    counted
        Pixels of `windows` whose labels count; None: all.
    """

    sample: Sample
    windows: tuple[Window, ...]
    hidden: Cover = field(default_factory=Cover)
    counted: Cover | None = None

    @property
    def labels(self) -> Labels:
        """The sample's labels, which every sample of a split has."""
        assert self.sample.labels is not None
        return self.sample.labels

    @property
    def cover(self) -> Cover:
        """What counts."""
        return self.counted or Cover(self.windows)

    def mask(self, tile: Tile, planes: NDArray[Any], window: Window) -> None:
        """Make what must not be seen no data and not known, in place, in a tile and target planes read at `window`."""
        if self.hidden:
            tile.valid[self.hidden.mask(window)] = False
        if self.counted is not None:
            planes[:, ~self.counted.mask(window)] = IGNORE
        if not tile.valid.all():
            planes[:, ~tile.valid] = IGNORE

    def truth(self, window: Window, valid: NDArray[np.bool_]) -> NDArray[np.int16]:
        """Return the true planes int16 (P, H, W) of a window; not known where nothing is valid, or does not count."""
        planes = self.labels.task.settle(self.labels.read(window))
        counts = valid if self.counted is None else valid & self.counted.mask(window)
        return np.where(counts, planes, np.int16(IGNORE))


def whole(samples: Sequence[Sample]) -> list[Area]:
    """Return areas that are the samples whole."""
    return [Area(sample, (sample.scene.grid.whole,)) for sample in samples]


def count_categories(planes: NDArray[np.int16], task: Task) -> NDArray[np.int64]:
    """Count the known pixels of each category of each plane (P, H, W), flat (P * K)."""
    size = len(task.categories)
    each = [np.bincount(plane[plane != IGNORE], minlength=size) for plane in planes]
    return np.concatenate(each).astype(np.int64)


def pieces(windows: Sequence[Window], size: int) -> Iterator[Window]:
    """Cut windows into pieces of at most `size` x `size` pixels."""
    for window in windows:
        yield from cut(window, size)


def read_pieces(areas: Sequence[Area], size: int = 1024) -> Iterator[tuple[Tile, NDArray[np.int16], Window]]:
    """Read what counts in areas, once, as tiles and target planes of at most `size` x `size` pixels.

    Soft labels come as the planes that they are nearest to.
    """
    for area in areas:
        with area.sample.scene.open() as reader:
            for window in pieces(area.windows, size):
                tile, planes = reader.read(window), area.labels.read(window)
                area.mask(tile, planes, window)
                yield tile, area.labels.task.settle(planes), window
