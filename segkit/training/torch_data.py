"""`segkit.datasets`: the tiles, model and loss of a recipe, for a training loop of one's own."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from rasterio.windows import Window
from torch import Tensor
from torch.utils.data import Dataset

from segkit.data.amount import default_steps
from segkit.data.applicability import describe_training_pixels
from segkit.data.area import LabelledArea, iter_windows
from segkit.data.areas import examine_recipe, with_fold
from segkit.data.cache import Cache
from segkit.data.datasets import AreaReaders, Batch, TrainDataset, suitable_tile_size
from segkit.data.examination import Examination
from segkit.data.statistics import Statistics, class_weights
from segkit.errors import UsageError
from segkit.evaluation.decisions import ModelPredictor
from segkit.evaluation.evaluate import score_areas
from segkit.inference.settings import PredictOptions
from segkit.io.paths import PathLike
from segkit.models.model_check import build_model
from segkit.models.segmenter import Segmenter
from segkit.models.transfer import start_from_model
from segkit.recipe.schema import Recipe
from segkit.runtime.tables import Described
from segkit.task import IGNORE, Task
from segkit.training.baselines import fit_pixel_branch
from segkit.training.losses import combine_losses
from segkit.training.scoring import calibrate_and_score
from segkit.training.train import check_names

_MAX_NUMBER = 2**62


class TrainingTiles(Dataset[Batch]):
    """Random training tiles, as `segkit.train` draws and augments them.

    Each access draws another tile, whatever the index, so every epoch has tiles of its own. Draws follow torch's random
    numbers: `torch.manual_seed` makes them repeatable. An item is (pixels, valid, targets): float32 (C, S, S) in the
    units of the files, bool (S, S), and int16 (T, S, S) or, of soft labels, float32 (channels, S, S); see
    `Segmenter.forward` and `Task`. The length is that of an epoch of `segkit.train`.
    """

    def __init__(self, crops: TrainDataset, length: int, lease: object) -> None:
        self._crops, self._length, self._lease = crops, length, lease

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels."""
        return self._crops.size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        """Return a tile that is drawn anew."""
        _check_index(index, self._length)
        return self._crops[int(torch.randint(_MAX_NUMBER, ()))]


class ValidationTiles(Dataset[Batch]):
    """Tiles that cover the validation areas; each labelled pixel is labelled in one of them. Items as `TrainingTiles`.

    A tile lies within its scene if that is large enough, so at the edge of an area it shows the ground around it, whose
    pixels are unlabelled. There is no augmentation.
    """

    def __init__(self, areas: Sequence[LabelledArea], tile_size: int, lease: object) -> None:
        self.tile_size, self._areas, self._lease = tile_size, list(areas), lease
        self._readers = AreaReaders(self._areas)
        self._cells = [
            (index, cell) for index, area in enumerate(areas) for cell in iter_windows(area.windows, tile_size)
        ]

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, index: int) -> Batch:
        """Return a tile."""
        _check_index(index, len(self._cells))
        number, cell = self._cells[index]
        area, size = self._areas[number], self.tile_size
        grid = area.sample.scene.grid
        column = max(0, min(int(cell.col_off), grid.width - size))
        row = max(0, min(int(cell.row_off), grid.height - size))
        window = Window(column, row, size, size)
        tile, targets = self._readers[number].read(window), area.labels.read(window)
        area.mask(tile, targets, window)
        own = np.zeros((size, size), dtype=bool)
        top, left = int(cell.row_off) - row, int(cell.col_off) - column
        own[top : top + int(cell.height), left : left + int(cell.width)] = True
        targets[:, ~own] = IGNORE
        return torch.from_numpy(tile.pixels), torch.from_numpy(tile.valid), torch.from_numpy(targets)


@dataclass(frozen=True, repr=False)
class Datasets(Described):
    """The data of a recipe as torch datasets, and what a training loop needs beside them; made by `datasets`.

    Parameters
    ----------
    training, validation
        For a `torch.utils.data.DataLoader`; `validation` is empty if the recipe has no validation data.
    recipe
        The recipe.
    mean, std
        Of each band over the training pixels. A `Segmenter` normalises with them by itself.
    band_names
        Of the imagery.
    """

    training: TrainingTiles
    validation: ValidationTiles
    recipe: Recipe
    mean: tuple[float, ...]
    std: tuple[float, ...]
    band_names: tuple[str, ...]
    _examination: Examination
    _statistics: Statistics

    def _describe(self) -> tuple[str, list[tuple[str, str]], dict[str, str]]:
        size = self.training.tile_size
        facts = [
            ("training", f"{len(self.training)} tiles of {size} px in an epoch"),
            ("validation", f"{len(self.validation)} tiles of {size} px"),
            ("classes", ", ".join(row["name"] for row in self.task.legend)),
            ("bands", f"{len(self.band_names)}: {', '.join(self.band_names)}"),
        ]
        return f"data of {self.recipe.name}", facts, {}

    @property
    def task(self) -> Task:
        """The classes."""
        return self.recipe.task

    def new_model(self) -> Segmenter:
        """Return the network of the recipe before its training, with the weights that it starts from.

        `Segmenter.save` writes the trained model to a file that `segkit.predict` takes.
        """
        recipe, training = self.recipe, self._examination.training
        model = Segmenter(recipe, self.mean, self.std, self.band_names)
        if recipe.model.start_from is not None:
            start_from_model(model, recipe.model.start_from)
        fit_pixel_branch(model, training, self._statistics.counts)
        model.training_pixels = describe_training_pixels(training)
        model.training_scenes = self._examination.training_scenes
        return model

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch as the recipe says (`train.loss`, `class_weights`, `label_smoothing`).

        Parameters
        ----------
        logits
            (N, channels, H, W), of a `Segmenter`.
        targets
            Third item of a batch. Unlabelled pixels do not count.
        """
        found: Tensor = self._loss(logits, targets)
        return found

    @cached_property
    def _loss(self) -> Callable[..., Tensor]:
        settings = self.recipe.train
        weights = class_weights(settings.class_weights, self._statistics.counts, self.task)
        return combine_losses(settings.loss, self.task, weights, settings.label_smoothing)

    def score(self, model: Segmenter, *, fit: bool = True) -> dict[str, Any]:
        """Score a model on the validation areas, as `segkit.train` does: with the windows of a prediction.

        The scores become part of the model, and of its file.

        Parameters
        ----------
        fit
            Whether to fit calibration and thresholds first, as `segkit.train` does at its end; they become part of the
            model. Not during a training, whose logits would be calibrated.

        Returns
        -------
        The scores, as in `metrics.json`.
        """
        model.calibration = None
        model.set_task(self.task)
        predictor = ModelPredictor(model, PredictOptions(device=str(next(model.parameters()).device)))
        areas, distances = self._examination.validation, self._examination.distances
        score = calibrate_and_score if fit else score_areas
        model.metrics = score(predictor, areas, distances)
        return model.metrics


def datasets(
    recipe: Recipe | PathLike,
    *,
    overrides: Sequence[str] = (),
    fold: str | None = None,
    force: bool = False,
    show_progress: bool = False,
) -> Datasets:
    """Return the training and validation data of a recipe as torch datasets, for a training loop of one's own.

    Split, tiles, augmentation, statistics and cache are those of `segkit.train`.

    Parameters
    ----------
    recipe
        A recipe or its file.
    overrides
        For a recipe file: ``"train.tile_size=128"`` and so on.
    fold
        ``"0/5"``: validate on the first of five folds, see `segkit.data.areas.with_fold`.
    force
        Ignore the problems that `segkit.check` reports.
    show_progress
        Show the progress on stderr.

    Raises
    ------
    UsageError, DataError
        The recipe or the data cannot be used. Problems of the data are worded as by `segkit.check`.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe, overrides)
    recipe = recipe if fold is None else with_fold(recipe, fold)
    if recipe.model.is_classical:
        raise UsageError(
            f"model.architecture is {recipe.model.architecture}, which is fitted and not trained in a loop; use "
            "segkit.train, or name a network"
        )
    check_names(recipe)
    lease = _Lease()
    cache = lease.stack.enter_context(Cache.open(recipe.data.cache, show_progress=show_progress))
    examination = examine_recipe(recipe, cache=cache, show_progress=show_progress)
    statistics = examination.require_trainable(force=force)
    areas, settings = examination.training, recipe.train
    names = areas[0].sample.scene.band_names
    tile_size, warning = suitable_tile_size(build_model(recipe, names), areas)
    if warning is not None:
        warnings.warn(warning, stacklevel=2)
    crops = TrainDataset.from_areas(areas, settings.model_copy(update={"tile_size": tile_size}), statistics)
    length = default_steps(crops.pixels, tile_size, batch_size=1)
    if settings.steps_per_epoch is not None:
        length = settings.batch_size * settings.steps_per_epoch
    return Datasets(
        TrainingTiles(crops, length, lease),
        ValidationTiles(examination.validation, tile_size, lease),
        recipe,
        statistics.mean,
        statistics.std,
        names,
        examination,
        statistics,
    )


class _Lease:
    """Keeps entries of the cache from being removed as long as a dataset reads them."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self._finalizer = weakref.finalize(self, _close, self.stack, os.getpid())

    def __reduce__(self) -> tuple[type[_Lease], tuple[()]]:
        return _Lease, ()  # in a worker process, for which that of its parent is enough


def _close(stack: ExitStack, process: int) -> None:
    """Close the stack in the process that opened it; a forked one shares its locks."""
    if os.getpid() == process:
        stack.close()


def _check_index(index: int, length: int) -> None:
    if not -length <= index < length:
        raise IndexError(f"tile {index} of {length}")
