"""Load training crops, and divide validation among processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as lightning
from rasterio.windows import Window
from torch.utils.data import DataLoader

from segkit.data.amount import default_steps
from segkit.data.area import LabelledArea, iter_windows
from segkit.data.datasets import Batch, EpochSampler, TrainDataset
from segkit.recipe.schema import Recipe

_WINDOW_SIZE = 1024  # pixels; side of the windows that processes share when they validate


class CropLoaders(lightning.LightningDataModule):
    """Batches of training crops for each process."""

    def __init__(self, recipe: Recipe, tiles: TrainDataset, accelerator: str) -> None:
        super().__init__()
        self._setup, self._tiles = recipe.train, tiles
        # When training on a CPU, all cores are busy, so there are no worker processes.
        spare = 0 if accelerator == "cpu" else min(8, (os.cpu_count() or 1) - 1)
        workers = spare if recipe.train.workers is None else recipe.train.workers
        self._options: dict[str, Any] = {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": accelerator == "cuda",
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of one epoch's crops."""
        trainer = self.trainer
        assert trainer is not None
        global_batch = self._setup.batch_size * trainer.world_size
        steps = default_steps(self._tiles.pixels, self._tiles.size, global_batch)
        crops = global_batch * (self._setup.steps_per_epoch or steps)
        sampler = EpochSampler(crops, trainer.global_rank, trainer.world_size)
        return DataLoader(self._tiles, self._setup.batch_size, sampler=sampler, drop_last=True, **self._options)

    def val_dataloader(self) -> DataLoader[int]:
        """Return a loader of one step, in which `TrainingModule` predicts all validation areas."""
        return DataLoader(range(1), batch_size=None)  # type: ignore[arg-type]


def split_among_processes(
    areas: Sequence[LabelledArea], rank: int, world_size: int
) -> list[tuple[LabelledArea, list[Window] | None]]:
    """Return the areas that process `rank` validates, each with its windows (None: the whole area)."""
    if world_size == 1:
        return [(area, None) for area in areas]
    windows = [
        (index, window) for index, area in enumerate(areas) for window in iter_windows(area.windows, _WINDOW_SIZE)
    ]
    by_area: dict[int, list[Window]] = {}
    for index, window in windows[rank::world_size]:
        by_area.setdefault(index, []).append(window)
    return [(areas[index], own) for index, own in by_area.items()]
