"""Callbacks of the trainer: finite numbers, the log, progress."""

from __future__ import annotations

import csv
import math
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from segkit.errors import TrainingError, ways
from segkit.io.files import staged
from segkit.models.network import not_finite
from segkit.models.run_folder import (
    read_log,
)
from segkit.runtime.progress import progress
from segkit.training.module import VALIDATION_SCORES, TrainingModule

# With fp16, a step whose gradients are too large is left out, and gradients are made half as large from there on. When
# they were made smaller than this, they are not too large, but no numbers.
_LEAST_SCALE = 2.0**-16


class StopWhereNotFinite(Callback):
    """Stops a training at the first loss, gradient or weight that is not a finite number.

    Parameters
    ----------
    last
        The checkpoint of the last finished epoch. Weights are looked at before it is written.
    precision
        Of the training.
    """

    def __init__(self, last: Path, precision: str) -> None:
        self._last, self._precision = last, precision
        self._before: list[tuple[int, str, Tensor]] = []

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the last step's loss and gradient, and after the last one at the weights."""
        assert isinstance(pl_module, TrainingModule)
        values = [(batch_idx, "the loss", outputs["loss"])]
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None or scaler.get_scale() < _LEAST_SCALE:
            values.append((batch_idx, "the norm of the gradients", pl_module.gradient))
        # Of the step before: a GPU, which is at work on this one, need not be waited for.
        for step, what, value in self._before + (values if trainer.is_last_batch else []):
            if not math.isfinite(value):
                self._stop(trainer, f"step {step + 1} of {trainer.num_training_batches}: {what} is {value:g}")
        self._before = [] if trainer.is_last_batch else values
        if trainer.is_last_batch and (found := not_finite(pl_module.state_dict())):
            self._stop(trainer, f"whose last step left {found}")

    def _stop(self, trainer: lightning.Trainer, what: str) -> None:
        assert isinstance(trainer.lightning_module, TrainingModule)
        setup, done = trainer.lightning_module.recipe.train, trainer.current_epoch
        lower = f"lower train.learning_rate (it is {setup.learning_rate:g})"
        if self._precision != "fp32":
            lower += f" or set train.precision: fp32 (it is {self._precision})"
        kept = done > 0 and self._last.is_file()
        where = f"epoch {done} is kept in {self._last}" if kept else "no epoch was finished before"
        raise TrainingError(
            f"training stopped in epoch {done + 1}, {what}; {where}"
            + ways(
                *([f"{lower} and go on after epoch {done} (--resume)"] if kept else []),
                f"{lower} and start anew (--overwrite)",
            )
        )


class EpochLog(Callback):
    """One row of numbers an epoch in a CSV file; a resumed run goes on in the same file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started = time.monotonic()

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note when the epoch starts."""
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the epoch's row."""
        if not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch + 1
        row: dict[str, float] = {"epoch": epoch}
        row |= {
            name: got.item()
            for name in ("loss", *VALIDATION_SCORES)
            if (got := trainer.callback_metrics.get(name)) is not None
        }
        row["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        row["seconds"] = time.monotonic() - self._started
        rows = [old for old in read_log(self._path) if old["epoch"] < epoch] if self._path.exists() else []
        with staged(self._path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            writer.writeheader()
            writer.writerows({name: f"{value:.8g}" for name, value in each.items()} for each in (*rows, row))


class ProgressCallback(Callback):
    """A bar over all steps, and a line for each epoch."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._open = ExitStack()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show the bar."""
        show = progress("train", trainer.estimated_stepping_batches, "steps", show=True)
        self._advance = self._open.enter_context(show)
        self._advance(trainer.global_step)

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the bar by a step."""
        self._advance(1)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print the epoch's line."""
        got = trainer.callback_metrics
        line = f"epoch {trainer.current_epoch + 1}/{self._epochs}  loss {got['loss']:.4f}"
        if "val_iou" in got:
            line += f"  validation IoU {got['val_iou']:.4f}  accuracy {got['val_accuracy']:.4f}"
        print(line, file=sys.stderr, flush=True)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Close the bar."""
        self._open.close()
