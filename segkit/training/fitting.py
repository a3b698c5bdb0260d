"""Train a network with Lightning; the only module that makes a trainer."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from segkit.data.amount import describe_few_steps
from segkit.data.datasets import TrainDataset, suitable_tile_size
from segkit.data.examination import Examination
from segkit.data.statistics import Statistics, class_weights
from segkit.models.run_folder import BEST, LAST, LOG
from segkit.models.segmenter import Segmenter
from segkit.models.transfer import start_from_model
from segkit.recipe.schema import Recipe
from segkit.recipe.splits import SpatialSplit
from segkit.runtime import distributed
from segkit.runtime.memory import retain_freed_memory, trim_memory
from segkit.training.baselines import fit_pixel_branch
from segkit.training.callbacks import EpochLog, ProgressCallback, StopOnNonFinite
from segkit.training.checkpoints import AtomicCheckpoints
from segkit.training.finishing import count_epochs, load_epoch
from segkit.training.loaders import CropLoaders
from segkit.training.module import TrainingModule
from segkit.training.out_of_memory import explain_memory
from segkit.training.results import write_results
from segkit.training.resume import explain_interruption, prepare_run_folder

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def fit_network(
    recipe: Recipe,
    folder: Path,
    examination: Examination,
    statistics: Statistics,
    precision: str,
    accelerator: str,
    *,
    is_main: bool,
    resume: bool,
    show_progress: bool,
) -> dict[str, Any]:
    """Train a network after all checks, and write the results; returns the scores.

    Parameters
    ----------
    precision
        "fp32", "bf16" or "fp16".
    accelerator
        Type of the device: "cpu", "cuda" or "mps".
    is_main
        Whether this process is the first of all that train together; it writes the files.
    """
    lightning.seed_everything(recipe.train.seed, workers=True, verbose=False)
    training, validation = examination.training, examination.validation
    retain_freed_memory()
    weights = class_weights(recipe.train.class_weights, statistics.counts, recipe.task)
    segmenter = Segmenter(
        recipe, statistics.mean, statistics.std, training[0].sample.scene.band_names, pretrained=not resume
    )
    if not resume:
        if recipe.model.start_from is not None:
            start_from_model(segmenter, recipe.model.start_from)
        if segmenter.initial_weights is not None and show_progress:
            print(segmenter.initial_weights.render(), file=sys.stderr)
    fit_pixel_branch(segmenter, training, statistics.counts)
    # Measured before the training, so that the warning does not come hours later; kept in the model file.
    if segmenter.fixed_window_size is not None and show_progress:
        _warn_context(segmenter)
    tile_size, warning = suitable_tile_size(segmenter, training)
    if warning is not None and show_progress:
        print(f"warning: {warning}", file=sys.stderr)
    tiles = TrainDataset.from_areas(training, recipe.train.model_copy(update={"tile_size": tile_size}), statistics)
    few_steps = describe_few_steps(recipe.train, tile_size, tiles.pixels)
    if few_steps is not None and show_progress and not resume:
        print(f"warning: {few_steps}", file=sys.stderr)
    module = TrainingModule(segmenter, weights, validation)
    data = CropLoaders(recipe, tiles, accelerator)
    if is_main:
        prepare_run_folder(folder, recipe, resume=resume)
    with _quiet_lightning():
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=recipe.train.devices,
            num_nodes=recipe.train.num_nodes,
            strategy=recipe.train.strategy,
            precision=_PRECISIONS[precision],  # type: ignore[arg-type]
            max_epochs=recipe.train.epochs,
            callbacks=_callbacks(folder, recipe, precision, show_progress=show_progress),
            plugins=[AtomicCheckpoints()],
            logger=TensorBoardLogger(folder, name="tensorboard", version="") if recipe.train.tensorboard else False,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=None if validation else 0,
            gradient_clip_val=1.0,
            use_distributed_sampler=False,
            log_every_n_steps=1,
        )
        with (
            explain_interruption(folder, recipe.train.epochs),
            explain_memory(recipe.train, folder),
            _interruptible(trainer),
        ):
            trainer.fit(module, datamodule=data, ckpt_path=folder / LAST if resume else None, weights_only=True)
    broadcast = distributed.broadcaster()
    if trainer.is_global_zero:
        epochs = count_epochs(folder, recipe)
        load_epoch(segmenter, folder)
        with explain_interruption(folder, recipe.train.epochs, has_ended=True):
            write_results(folder, segmenter, examination, statistics, epochs, accelerator, show_progress=show_progress)
    trim_memory()
    return broadcast(segmenter.metrics)


def _callbacks(folder: Path, recipe: Recipe, precision: str, *, show_progress: bool) -> list[Callback]:
    best, last = folder / BEST, folder / LAST
    callbacks: list[Callback] = [StopOnNonFinite(last, precision), EpochLog(folder / LOG)]
    # Lightning's save_last would be the last epoch that improved; --resume needs the last one. Its checkpoint contains
    # the best score, so the best checkpoint is written first.
    if recipe.train.checkpoint == "best":
        callbacks.append(
            ModelCheckpoint(best.parent, best.stem, monitor="val_iou", mode="max", enable_version_counter=False)
        )
    callbacks.append(ModelCheckpoint(last.parent, last.stem, enable_version_counter=False))
    if recipe.train.early_stopping:
        callbacks.append(EarlyStopping("val_iou", mode="max", patience=recipe.train.early_stopping))
    if show_progress:
        rule = recipe.data.val
        fold = rule.fold if isinstance(rule, SpatialSplit) else None
        callbacks.append(ProgressCallback(recipe.train.epochs, fold))
    return callbacks


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's tips and its messages about devices and workers."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # In this order: the number of workers is intended; the folder was checked before; Lightning's own use of
            # torch; DDP copies gradients of 1 x 1 kernels in channels-last layout; training without srun is allowed;
            # frozen parts do not train.
            ignored = (
                "does not have many workers", "Checkpoint directory .* exists", ".*LeafSpec", "Grad strides",
                "The `srun` command is available", ".* in eval mode at the start of training",
            )  # fmt: skip
            for message in ignored:
                warnings.filterwarnings("ignore", message=f".*{message}")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _interruptible(trainer: lightning.Trainer) -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C; Lightning turns it into SystemExit."""
    try:
        yield
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


def _warn_context(segmenter: Segmenter) -> None:
    model = segmenter.recipe.model
    print(
        f"model: {model.architecture} with {model.encoder} has a global receptive field, so it predicts windows of "
        f"train.tile_size ({segmenter.fixed_window_size} pixels), whose edges may show in maps",
        file=sys.stderr,
    )
