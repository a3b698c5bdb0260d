"""Tiles for the network: random crops to train on."""

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

from segkit.data.area import Area, count_categories, pieces
from segkit.data.augmentation import Augmentation
from segkit.data.statistics import Statistics
from segkit.errors import DataError
from segkit.io.scene import SceneReader, Tile
from segkit.recipe.schema import Train
from segkit.task.task import IGNORE

if TYPE_CHECKING:
    from segkit.models.segmenter import Segmenter

# Pixels (N, C, H, W), valid (N, H, W), target planes (N, P, H, W), or soft ones (N, channels, H, W).
Batch = tuple[Tensor, Tensor, Tensor]

_OPEN_SCENES = 64  # file handles are few, scenes may be many
# The deepest features of a tile this many strides wide are 4 x 4. Of fewer, most of what they see is the padding at the
# tile's edges, which the large windows of a prediction hardly have; docs/small-data.md has what that costs.
_FEWEST_STRIDES = 4


def least_tile_size(stride: int, areas: Sequence[Area]) -> int:
    """Return the smallest side of a training tile from which a network learns more than its own padding, in pixels.

    Parameters
    ----------
    stride
        Of the network.
    areas
        What it is trained on: a tile need not be larger than the largest scene.
    """
    largest = max(max(area.sample.scene.grid.shape) for area in areas)
    return min(_FEWEST_STRIDES * stride, -(-largest // stride) * stride)


def suitable_tile_size(segmenter: Segmenter, areas: Sequence[Area]) -> tuple[int, str | None]:
    """Return the side of the tiles that a network is trained on, and a warning where the recipe's are too small for it.

    A network that is given windows of the tile's size for maps, too (`Segmenter.context`), sees the same padding there,
    so any size will do.
    """
    recipe, stride = segmenter.recipe, segmenter.stride
    wanted, least = recipe.train.tile_size, least_tile_size(stride, areas)
    if wanted >= least or segmenter.context is not None:
        return wanted, None
    return least, (
        f"train.tile_size is {wanted}, less than {_FEWEST_STRIDES} strides of {recipe.model.architecture} "
        f"with {recipe.model.encoder} ({stride} pixels each): its deepest features would see mostly the padding around "
        f"it, of which maps have hardly any. Tiles of {least} pixels are used; set train.tile_size to {least} or more, "
        "or use fewer stages (model.options.encoder_depth)"
    )


class _Readers:
    """Open readers of the scenes in use; each worker process has its own."""

    def __init__(self, areas: Sequence[Area]) -> None:
        self._areas = areas
        self._open: OrderedDict[int, tuple[contextlib.ExitStack, SceneReader]] = OrderedDict()
        self._process = os.getpid()

    def __getitem__(self, place: int) -> SceneReader:
        if self._process != os.getpid():
            # A forked worker shares its parent's file handles, and with them the place where each reads next.
            self._open, self._process = OrderedDict(), os.getpid()
        if place not in self._open:
            stack = contextlib.ExitStack()
            self._open[place] = stack, stack.enter_context(self._areas[place].sample.scene.open())
            if len(self._open) > _OPEN_SCENES:
                _, (oldest, _) = self._open.popitem(last=False)
                oldest.close()
        self._open.move_to_end(place)
        return self._open[place][1]

    def __getstate__(self) -> dict[str, object]:
        return {"_areas": self._areas, "_open": OrderedDict(), "_process": self._process}


class TrainTiles(Dataset[Batch]):
    """Random square crops of training areas; crop number i of seed s is always the same, in whatever process.

    Areas are cut into cells of half a tile. A cell is drawn with the weight of its known label pixels, and a crop is
    laid at random around it, so no crop is without one. Where `oversample` is 0 every known pixel weighs the same. Else
    a pixel of a category that holds the share s of the known pixels weighs s ** -oversample: with 1, a drawn pixel is
    of every category alike; between, of each in proportion to s ** (1 - oversample). A scene's own weight multiplies
    its pixels'. Where classes overlap, a pixel weighs the sum over its known classes.

    Parameters
    ----------
    areas
        To draw from.
    size
        Pixels along a side of the crop; where a scene is smaller, the rest is no data.
    augmentation
        None changes nothing.
    seed
        Of the draws.
    oversample
        0 to 1, see above.

    Raises
    ------
    DataError
        No pixel has a known label.
    """

    def __init__(
        self,
        areas: Sequence[Area],
        size: int,
        augmentation: Augmentation | None,
        seed: int,
        oversample: float = 0.0,
    ) -> None:
        self._areas, self.size, self._augmentation, self._seed = list(areas), size, augmentation, seed
        self._readers = _Readers(self._areas)
        task = areas[0].labels.task
        self._cells = [
            (place, cell) for place, area in enumerate(areas) for cell in pieces(area.windows, max(1, size // 2))
        ]
        counts, self.pixels = np.zeros((len(self._cells), task.planes * len(task.categories))), 0
        for number, (place, cell) in enumerate(self._cells):
            planes = task.settle(self._read(place, cell)[1])
            counts[number] = count_categories(planes, task)
            self.pixels += int((planes != IGNORE).any(axis=0).sum())
        if not self.pixels:
            raise DataError("no pixel of the training areas is valid and has a known label; see segkit check")
        share = counts.sum(axis=0) / counts.sum()
        weight = counts @ np.where(share > 0, share, 1.0) ** -oversample
        weight *= [areas[place].sample.weight for place, _ in self._cells]
        self._upto = np.cumsum(weight) / weight.sum()

    @classmethod
    def of(cls, areas: Sequence[Area], setup: Train, statistics: Statistics) -> TrainTiles:
        """Return the crops of a training."""
        augmentation = Augmentation(setup.augment, statistics.mean, statistics.std)
        return cls(areas, setup.tile_size, augmentation, setup.seed, oversample=setup.oversample)

    def _read(self, place: int, window: Window) -> tuple[Tile, NDArray[Any]]:
        area = self._areas[place]
        tile, planes = self._readers[place].read(window), area.labels.read(window)
        area.mask(tile, planes, window)
        return tile, planes

    def __getitem__(self, number: int) -> Batch:
        """Return crop `number`: pixels float32 (C, S, S), valid bool (S, S), target planes int16 (P, S, S)."""
        random = np.random.default_rng((self._seed, number))
        drawn = int(np.searchsorted(self._upto, random.random() * self._upto[-1], side="right"))
        place, cell = self._cells[drawn]
        grid = self._areas[place].sample.scene.grid
        row = self._origin(random, int(cell.row_off), int(cell.height), grid.height)
        column = self._origin(random, int(cell.col_off), int(cell.width), grid.width)
        tile, planes = self._read(place, Window(column, row, self.size, self.size))
        if self._augmentation is not None:
            tile, planes = self._augmentation(tile, planes, int(random.integers(2**31)))
        return torch.from_numpy(tile.pixels), torch.from_numpy(tile.valid), torch.from_numpy(planes)

    def _origin(self, random: np.random.Generator, start: int, length: int, extent: int) -> int:
        """Draw where a crop begins that holds start..start+length, and lies in 0..extent or holds all of it."""
        low, high = sorted((0, extent - self.size))
        return int(random.integers(max(start + length - self.size, low), min(start, high) + 1))


class EpochSampler(Sampler[int]):
    """Numbers of the crops of an epoch, shared out among processes: no number occurs twice in a training."""

    def __init__(self, crops: int, rank: int = 0, world: int = 1) -> None:
        self._crops, self._rank, self._world, self._epoch = crops, rank, world, 0

    def set_epoch(self, epoch: int) -> None:
        """Move on to another epoch; Lightning calls this."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield this process's numbers."""
        first = self._epoch * self._crops
        return iter(range(first + self._rank, first + self._crops, self._world))

    def __len__(self) -> int:
        """Return how many numbers this process gets."""
        return len(range(self._rank, self._crops, self._world))
