"""Callbacks of the trainer: stop at non-finite numbers, write the log, show progress."""

from __future__ import annotations

import csv
import math
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor

from segkit.errors import TrainingError, suggest
from segkit.io.files import atomic_write
from segkit.models.network import describe_non_finite
from segkit.models.run_folder import read_log
from segkit.runtime.progress import progress
from segkit.training.module import VALIDATION_SCORES, TrainingModule

# With fp16, a step with overflowing gradients is skipped and the loss scale is halved. Below this scale the cause
# is not overflow: the gradients themselves are not finite.
_MIN_LOSS_SCALE = 2.0**-16


class StopOnNonFinite(Callback):
    """Stops a training at the first loss, gradient or weight that is not a finite number.

    Parameters
    ----------
    last
        Checkpoint of the last finished epoch. Weights are checked before it is written.
    precision
        Precision of the training: "fp32", "bf16" or "fp16".
    """

    def __init__(self, last: Path, precision: str) -> None:
        self._last, self._precision = last, precision
        self._previous: list[tuple[int, str, Tensor]] = []

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the previous step's loss and gradient, and after an epoch's last step also its own and the weights."""
        assert isinstance(pl_module, TrainingModule)
        values = [(batch_idx, "the loss", outputs["loss"])]
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None or scaler.get_scale() < _MIN_LOSS_SCALE:
            values.append((batch_idx, "the norm of the gradients", pl_module.gradient))
        # The values of the previous step, so that a GPU does not have to finish this one first.
        for step, what, value in self._previous + (values if trainer.is_last_batch else []):
            if not math.isfinite(value):
                self._stop(trainer, f"step {step + 1} of {trainer.num_training_batches}: {what} is {value:g}")
        self._previous = [] if trainer.is_last_batch else values
        if trainer.is_last_batch and (problem := describe_non_finite(pl_module.state_dict())):
            self._stop(trainer, f"after the last step: the model holds {problem}")

    def _stop(self, trainer: lightning.Trainer, problem: str) -> None:
        assert isinstance(trainer.lightning_module, TrainingModule)
        settings, finished = trainer.lightning_module.recipe.train, trainer.current_epoch
        remedy = f"lower train.learning_rate (it is {settings.learning_rate:g})"
        if self._precision != "fp32":
            remedy += f" or set train.precision: fp32 (it is {self._precision})"
        resumable = finished > 0 and self._last.is_file()
        state = f"epoch {finished} is kept in {self._last}" if resumable else "no epoch was finished before"
        raise TrainingError(
            f"training stopped in epoch {finished + 1}, {problem}; {state}"
            + suggest(
                *([f"{remedy} and resume after epoch {finished} (--resume)"] if resumable else []),
                f"{remedy} and start again (--overwrite)",
            )
        )


class EpochLog(Callback):
    """Writes a CSV file with one row per epoch; a resumed run appends to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started = time.monotonic()

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the epoch's row."""
        if not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch + 1
        row: dict[str, float] = {"epoch": epoch}
        row |= {
            name: value.item()
            for name in ("loss", *VALIDATION_SCORES)
            if (value := trainer.callback_metrics.get(name)) is not None
        }
        row["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        row["seconds"] = time.monotonic() - self._started
        rows = [old for old in read_log(self._path) if old["epoch"] < epoch] if self._path.exists() else []
        with atomic_write(self._path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            writer.writeheader()
            writer.writerows({name: f"{value:.8g}" for name, value in each.items()} for each in (*rows, row))


class ProgressCallback(Checkpoint):
    """Shows a progress bar over all steps, and prints one line per epoch once its checkpoint is written.

    Beside the bar is the mean loss of the epoch so far.
    Lightning calls subclasses of Checkpoint last, in their order.

    Parameters
    ----------
    epochs
        Number of epochs.
    fold
        The fold to validate on ("0/5"), shown in each line; None without folds.
    """

    def __init__(self, epochs: int, fold: str | None = None) -> None:
        self._epochs, self._label = epochs, "" if fold is None else f"fold {fold}, "
        self._open = ExitStack()
        self._loss_sum, self._steps = 0.0, 0
        self._last: Tensor | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show the bar."""
        show = progress(f"{self._label}train", trainer.estimated_stepping_batches, "steps", show=True)
        self._advance = self._open.enter_context(show)
        self._advance(trainer.global_step)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Forget the losses of the last epoch."""
        self._loss_sum, self._steps, self._last = 0.0, 0, None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar by a step, and show the mean of the losses up to the step before, as a GPU may not be done."""
        if self._last is not None:
            self._loss_sum, self._steps = self._loss_sum + float(self._last), self._steps + 1
        self._last = outputs["loss"].detach()
        self._advance(1, f"loss {self._loss_sum / self._steps:.4f}" if self._steps else "")

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print the epoch's line."""
        metrics = trainer.callback_metrics
        line = f"{self._label}epoch {trainer.current_epoch + 1}/{self._epochs}  loss {metrics['loss']:.4f}"
        if "val_iou" in metrics:
            line += f"  validation IoU {metrics['val_iou']:.4f}  accuracy {metrics['val_accuracy']:.4f}"
        print(line, file=sys.stderr, flush=True)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Close the bar."""
        self._open.close()
