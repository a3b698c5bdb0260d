"""Training tiles: random crops of training areas."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from segkit.data.area import LabelledArea, count_categories, iter_windows
from segkit.data.augmentation import Augmentation
from segkit.data.statistics import Statistics
from segkit.errors import DataError
from segkit.io.scene import SceneReader, Tile
from segkit.recipe.schema import Train
from segkit.task import IGNORE

if TYPE_CHECKING:
    from segkit.models.segmenter import Segmenter

# Pixels (N, C, H, W), valid (N, H, W), targets (N, T, H, W), or soft ones (N, channels, H, W).
Batch = tuple[Tensor, Tensor, Tensor]

_MAX_OPEN_SCENES = 64  # the number of file handles is limited
# The deepest feature map of a tile this many strides wide is 4 x 4. In smaller tiles it depends mostly on the padding
# at the edges, which the large windows of a prediction hardly have; docs/small-data.md has the cost in accuracy.
_MIN_STRIDES = 4


def min_tile_size(stride: int, areas: Sequence[LabelledArea]) -> int:
    """Return the smallest side in pixels of a training tile whose features do not depend mostly on padding.

    Parameters
    ----------
    stride
        Of the network.
    areas
        The training areas: a tile need not be larger than the largest scene.
    """
    largest = max(max(area.sample.scene.grid.shape) for area in areas)
    return min(_MIN_STRIDES * stride, -(-largest // stride) * stride)


def suitable_tile_size(segmenter: Segmenter, areas: Sequence[LabelledArea]) -> tuple[int, str | None]:
    """Return the side of the training tiles, and a warning if the recipe's tiles are too small for the network.

    Any size is suitable if maps are predicted with windows of the same size (`Segmenter.fixed_window_size`), which have
    the same padding.
    """
    recipe, stride = segmenter.recipe, segmenter.stride
    tile_size, smallest = recipe.train.tile_size, min_tile_size(stride, areas)
    if tile_size >= smallest or segmenter.fixed_window_size is not None:
        return tile_size, None
    return smallest, (
        f"train.tile_size is {tile_size}, less than {_MIN_STRIDES} strides of {recipe.model.architecture} "
        f"with {recipe.model.encoder} ({stride} pixels each): its deepest features would depend mostly on padding, "
        f"which maps hardly have. Using tiles of {smallest} pixels; set train.tile_size to {smallest} or more, "
        "or use fewer stages (model.options.encoder_depth)"
    )


class AreaReaders:
    """Open readers of the most recently used scenes, one set per worker process."""

    def __init__(self, areas: Sequence[LabelledArea]) -> None:
        self._areas = areas
        self._open: OrderedDict[int, tuple[contextlib.ExitStack, SceneReader]] = OrderedDict()
        self._process = os.getpid()

    def __getitem__(self, index: int) -> SceneReader:
        if self._process != os.getpid():
            # A forked worker shares the file handles of its parent, and with them their read positions.
            self._open, self._process = OrderedDict(), os.getpid()
        if index not in self._open:
            stack = contextlib.ExitStack()
            self._open[index] = stack, stack.enter_context(self._areas[index].sample.scene.open())
            if len(self._open) > _MAX_OPEN_SCENES:
                _, (oldest, _) = self._open.popitem(last=False)
                oldest.close()
        self._open.move_to_end(index)
        return self._open[index][1]

    def __getstate__(self) -> dict[str, object]:
        return {"_areas": self._areas, "_open": OrderedDict(), "_process": self._process}


class TrainDataset(Dataset[Batch]):
    """Random square crops of training areas; crop i of seed s is the same in every process.

    Areas are divided into cells of half a tile. A cell is drawn with the weight of its labelled pixels, and a crop is
    placed at random around it, so every crop has labelled pixels. With a = `class_balanced_sampling`, a pixel of a
    category with the share s of the labelled pixels has the weight s ** -a. With a = 0 all labelled pixels have the
    same weight; with a = 1 all categories are drawn equally often; in between, in proportion to s ** (1 - a). The
    weight of a scene multiplies those of its pixels. With overlapping classes, the weight of a pixel is the sum over
    its labelled classes.

    Parameters
    ----------
    areas
        The training areas.
    size
        Side of a crop in pixels; crops of smaller scenes are padded with no data.
    augmentation
        None for no augmentation.
    seed
        Seed of the random draws.
    oversample
        0 to 1, see above.

    Raises
    ------
    DataError
        No pixel is labelled.
    """

    def __init__(
        self,
        areas: Sequence[LabelledArea],
        size: int,
        augmentation: Augmentation | None,
        seed: int,
        class_balanced_sampling: float = 0.0,
    ) -> None:
        self._areas, self.size, self._augmentation, self._seed = list(areas), size, augmentation, seed
        self._readers = AreaReaders(self._areas)
        task = areas[0].labels.task
        self._cells = [
            (index, cell) for index, area in enumerate(areas) for cell in iter_windows(area.windows, max(1, size // 2))
        ]
        counts, self.pixels = np.zeros((len(self._cells), task.n_targets * len(task.categories))), 0
        for number, (index, cell) in enumerate(self._cells):
            targets = task.harden(self._read(index, cell)[1])
            counts[number] = count_categories(targets, task)
            self.pixels += int((targets != IGNORE).any(axis=0).sum())
        if not self.pixels:
            raise DataError("no pixel of the training areas is both valid and labelled; see segkit check")
        share = counts.sum(axis=0) / counts.sum()
        weight = counts @ np.where(share > 0, share, 1.0) ** -class_balanced_sampling
        weight *= [areas[index].sample.weight for index, _ in self._cells]
        self._cumulative = np.cumsum(weight) / weight.sum()

    @classmethod
    def from_areas(cls, areas: Sequence[LabelledArea], settings: Train, statistics: Statistics) -> TrainDataset:
        """Make the dataset of a training."""
        augmentation = Augmentation(settings.augment, statistics.mean, statistics.std)
        return cls(
            areas,
            settings.tile_size,
            augmentation,
            settings.seed,
            class_balanced_sampling=settings.class_balanced_sampling,
        )

    def _read(self, index: int, window: Window) -> tuple[Tile, NDArray[Any]]:
        area = self._areas[index]
        tile, targets = self._readers[index].read(window), area.labels.read(window)
        area.mask(tile, targets, window)
        return tile, targets

    def __getitem__(self, number: int) -> Batch:
        """Return crop `number`: pixels float32 (C, S, S), valid bool (S, S), targets int16 (T, S, S)."""
        random = np.random.default_rng((self._seed, number))
        drawn = int(np.searchsorted(self._cumulative, random.random() * self._cumulative[-1], side="right"))
        index, cell = self._cells[drawn]
        grid = self._areas[index].sample.scene.grid
        row = self._draw_start(random, int(cell.row_off), int(cell.height), grid.height)
        column = self._draw_start(random, int(cell.col_off), int(cell.width), grid.width)
        tile, targets = self._read(index, Window(column, row, self.size, self.size))
        if self._augmentation is not None:
            tile, targets = self._augmentation(tile, targets, int(random.integers(2**31)))
        return torch.from_numpy(tile.pixels), torch.from_numpy(tile.valid), torch.from_numpy(targets)

    def _draw_start(self, random: np.random.Generator, start: int, length: int, extent: int) -> int:
        """Draw the start of a crop that contains start..start+length, and lies within 0..extent or contains it."""
        low, high = sorted((0, extent - self.size))
        return int(random.integers(max(start + length - self.size, low), min(start, high) + 1))


class EpochSampler(Sampler[int]):
    """Crop numbers of an epoch, divided among processes; no number occurs twice in a training."""

    def __init__(self, crops: int, rank: int = 0, world_size: int = 1) -> None:
        self._crops, self._rank, self._world_size, self._epoch = crops, rank, world_size, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; called by Lightning."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Iterate over the numbers of this process."""
        first = self._epoch * self._crops
        return iter(range(first + self._rank, first + self._crops, self._world_size))

    def __len__(self) -> int:
        """Return the count of numbers of this process."""
        return len(range(self._rank, self._crops, self._world_size))
