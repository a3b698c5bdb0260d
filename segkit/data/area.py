"""The part of a labelled scene that is used for training or for validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.labels.base import Labels
from segkit.data.pairing import Sample
from segkit.io.cover import PixelRegion
from segkit.io.grid import split_window
from segkit.io.scene import Tile
from segkit.task import IGNORE, Task

POLYGON_WINDOW_PX = 256  # side of the windows that cover a validation polygon


@dataclass(frozen=True)
class LabelledArea:
    """The part of a sample on one side of a split.

    Parameters
    ----------
    sample
        A scene with its labels.
    windows
        Windows to train or validate on; they do not overlap.
    exclude
        Pixels to mask out entirely: the other side, buffered by the gap.
    include
        Pixels of `windows` whose labels are used; None: all.
    """

    sample: Sample
    windows: tuple[Window, ...]
    exclude: PixelRegion = field(default_factory=PixelRegion)
    include: PixelRegion | None = None

    @property
    def labels(self) -> Labels:
        """The labels of the sample; in a split every sample has them."""
        assert self.sample.labels is not None
        return self.sample.labels

    @property
    def region(self) -> PixelRegion:
        """The pixels whose labels are used, before `exclude`."""
        return self.include or PixelRegion(self.windows)

    def mask(self, tile: Tile, targets: NDArray[Any], window: Window) -> None:
        """Mask a tile and targets read at `window`, in place: excluded pixels become no data and unlabelled."""
        if self.exclude:
            tile.valid[self.exclude.mask(window)] = False
        if self.include is not None:
            targets[:, ~self.include.mask(window)] = IGNORE
        if not tile.valid.all():
            targets[:, ~tile.valid] = IGNORE

    def read_truth(self, window: Window, valid: NDArray[np.bool_]) -> NDArray[np.int16]:
        """Read the targets of a window, int16 (T, H, W); unlabelled where not `valid` (H, W) or not included."""
        targets = self.labels.task.harden(self.labels.read(window))
        used = valid if self.include is None else valid & self.include.mask(window)
        return np.where(used, targets, np.int16(IGNORE))


def full_areas(samples: Sequence[Sample]) -> list[LabelledArea]:
    """Return an area for each sample that covers it completely."""
    return [LabelledArea(sample, (sample.scene.grid.full_window,)) for sample in samples]


def count_categories(targets: NDArray[np.int16], task: Task) -> NDArray[np.int64]:
    """Count the labelled pixels of each category of each target (T, H, W), flat (T * K)."""
    size = len(task.categories)
    counts = [np.bincount(target[target != IGNORE], minlength=size) for target in targets]
    return np.concatenate(counts).astype(np.int64)


def iter_windows(windows: Sequence[Window], size: int) -> Iterator[Window]:
    """Split windows into windows of at most `size` x `size` pixels."""
    for window in windows:
        yield from split_window(window, size)


def read_tiles(areas: Sequence[LabelledArea], size: int = 1024) -> Iterator[tuple[Tile, NDArray[np.int16], Window]]:
    """Read areas once, as masked tiles and targets of at most `size` x `size` pixels.

    Soft labels are hardened.
    """
    for area in areas:
        with area.sample.scene.open() as reader:
            for window in iter_windows(area.windows, size):
                tile, targets = reader.read(window), area.labels.read(window)
                area.mask(tile, targets, window)
                yield tile, area.labels.task.harden(targets), window
