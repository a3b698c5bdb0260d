"""Loaders of training crops, and how processes share validation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as lightning
from rasterio.windows import Window
from torch.utils.data import DataLoader

from segkit.data.area import Area, pieces
from segkit.data.datasets import Batch, EpochSampler, TrainTiles
from segkit.recipe.schema import Recipe

_PIECE = 1024  # pixels along a side of what several processes share out to validate


class CropLoaders(lightning.LightningDataModule):
    """Batches for each process of the training."""

    def __init__(self, recipe: Recipe, tiles: TrainTiles, accelerator: str) -> None:
        super().__init__()
        self._setup, self._tiles = recipe.train, tiles
        # A CPU that trains has no cores to spare for loading.
        spare = 0 if accelerator == "cpu" else min(8, (os.cpu_count() or 1) - 1)
        workers = spare if recipe.train.workers is None else recipe.train.workers
        self._options: dict[str, Any] = {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": accelerator == "cuda",
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of an epoch's crops."""
        trainer = self.trainer
        assert trainer is not None
        together = self._setup.batch_size * trainer.world_size
        crops = together * (self._setup.steps or max(1, round(self._tiles.pixels / self._tiles.size**2 / together)))
        sampler = EpochSampler(crops, trainer.global_rank, trainer.world_size)
        return DataLoader(self._tiles, self._setup.batch_size, sampler=sampler, drop_last=True, **self._options)

    def val_dataloader(self) -> DataLoader[int]:
        """One step, in which `TrainingModule` goes through the validation areas itself."""
        return DataLoader(range(1), batch_size=None)  # type: ignore[arg-type]


def shared_out(areas: Sequence[Area], rank: int, world: int) -> list[tuple[Area, list[Window] | None]]:
    """Return what one of `world` processes validates: areas, and which of their windows (None: all)."""
    if world == 1:
        return [(area, None) for area in areas]
    numbered = enumerate((place, window) for place, area in enumerate(areas) for window in pieces(area.windows, _PIECE))
    mine: dict[int, list[Window]] = {}
    for number, (place, window) in numbered:
        if number % world == rank:
            mine.setdefault(place, []).append(window)
    return [(areas[place], windows) for place, windows in mine.items()]
