"""The Lightning module: training step, validation, optimiser and schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from segkit.data.area import LabelledArea
from segkit.data.datasets import Batch
from segkit.errors import TrainingError, UsageError, suggest
from segkit.evaluation.decisions import ModelPredictor
from segkit.evaluation.metrics import Confusion
from segkit.inference.settings import PredictOptions
from segkit.models.network import describe_non_finite
from segkit.models.segmenter import Segmenter
from segkit.runtime import distributed
from segkit.training.loaders import split_among_processes
from segkit.training.losses import combine_losses
from segkit.training.resume import restore_start

VALIDATION_SCORES = ("val_iou", "val_f1", "val_accuracy")


class TrainingModule(lightning.LightningModule):
    """Loss, optimiser and validation score of a segmenter."""

    def __init__(
        self, segmenter: Segmenter, weights: Sequence[float] | None, validation: Sequence[LabelledArea] = ()
    ) -> None:
        super().__init__()
        self.segmenter = segmenter
        self._validation = validation
        self.recipe = segmenter.recipe
        settings = self.recipe.train
        self._loss = combine_losses(settings.loss, segmenter.task, weights, settings.label_smoothing)
        self._confusion = Confusion(segmenter.task)
        self.gradient = torch.zeros(())  # norm in the last step, before clipping
        for part in self._frozen_parts():
            part.requires_grad_(False).eval()

    def _frozen_parts(self) -> list[nn.Module]:
        """Return the parts of the network that `train.freeze` lists."""
        names = {"encoder": "encoder", "decoder": "decoder", "head": "segmentation_head"}
        return [self.segmenter.network.get_submodule(names[part]) for part in self.recipe.train.freeze]

    def train(self, mode: bool = True) -> TrainingModule:
        """Set the mode; frozen parts stay in evaluation mode, so batch normalisation keeps its statistics there."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def setup(self, stage: str) -> None:
        """Freeze unused parameters, if several processes train."""
        if self.trainer.world_size > 1:
            self._freeze_unused()

    def _freeze_unused(self) -> None:
        """Freeze parameters that do not affect the logits (stages below `encoder_depth`); DDP waits for all others."""
        segmenter, side = self.segmenter.eval(), self.recipe.train.tile_size
        logits = segmenter(torch.zeros(1, segmenter.bands, side, side), torch.ones(1, side, side, dtype=torch.bool))
        parameters = [each for each in segmenter.parameters() if each.requires_grad]
        gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        self.train()

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Return the loss of a batch."""
        pixels, valid, targets = batch
        # The seed depends on the step, so that dropout is the same in a resumed run.
        seed = (self.recipe.train.seed, self.global_step, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        with distributed.sync_batch_norm():
            logits = self.segmenter(pixels, valid)
        loss: Tensor = self._loss(logits, targets)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(pixels))
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients and store their norm."""
        assert gradient_clip_val is not None
        self.gradient = torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def validation_step(self, *_: Any) -> None:
        """Count the confusion of predictions made as by `segkit predict`: same windows, blending and precision."""
        self._confusion = Confusion(self.segmenter.task)
        predictor = ModelPredictor(self.segmenter, PredictOptions(device=str(self.device)))
        predictor.prepare(self._validation[0])  # so that all processes choose the same settings
        # The trainer's autocast is for training steps; prediction chooses its own precision.
        with torch.autocast(self.device.type, enabled=False):
            for area, windows in split_among_processes(
                self._validation, self.trainer.global_rank, self.trainer.world_size
            ):
                for part in predictor(area, windows):
                    self._confusion.add(part.decided, part.truth)

    def on_validation_epoch_end(self) -> None:
        """Sum the confusion matrix over processes, and log its scores."""
        counts = torch.from_numpy(self._confusion.counts).to(self.device)
        self._confusion.counts = self.trainer.strategy.reduce(counts, reduce_op="sum").cpu().numpy()
        summary = self._confusion.summary()
        # All ranks have the same values; Lightning requires sync_dist.
        for name, key in (("val_iou", "mean_iou"), ("val_f1", "macro_f1"), ("val_accuracy", "overall_accuracy")):
            self.log(name, math.nan if summary[key] is None else summary[key], sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the number of devices and of epochs, the normalisation, and where the first weights came from."""
        checkpoint["devices"] = self.trainer.world_size
        checkpoint["planned_epochs"] = self.recipe.train.epochs
        if self.segmenter.initial_weights is not None:
            checkpoint["initial_weights"] = asdict(self.segmenter.initial_weights)
        checkpoint["normalization"] = [each.flatten().tolist() for each in (self.segmenter.mean, self.segmenter.std)]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the run can be resumed from a checkpoint, and adapt it to the recipe and the folder of today.

        The normalisation is restored, also if the training data have changed; so the file of a model that the run
        started from is not needed again.

        Raises
        ------
        UsageError
            It was written with another number of devices.
        TrainingError
            Its weights are not finite.
        """
        # With `devices: auto` the recipe may be the same although the global batch is not.
        before, now = checkpoint.get("devices", 1), self.trainer.world_size
        if before != now:
            raise UsageError(
                f"the run was started with {before} devices, now there are {now}; set train.devices to {before}"
            )
        if problem := describe_non_finite(checkpoint["state_dict"]):
            raise TrainingError(
                f"the last epoch cannot be resumed: it holds {problem}" + suggest("start again (--overwrite)")
            )
        # The checkpoint holds its own learning rates.
        [schedule], [optimizer] = checkpoint["lr_schedulers"], checkpoint["optimizer_states"]
        schedule["base_lrs"] = [group["lr"] for group in self._parameter_groups()]
        for group, rate in zip(optimizer["param_groups"], schedule["base_lrs"], strict=True):
            group["initial_lr"] = rate
        adapt_callbacks(checkpoint, self.trainer)
        restore_start(self.segmenter, checkpoint)

    def on_train_start(self) -> None:
        """Set the learning rates of the schedule: a checkpoint has those of its own `train.epochs`."""
        schedule = self.lr_schedulers()
        assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
        groups = schedule.optimizer.param_groups
        for group, rate, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = rate * factor(schedule.last_epoch)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters with their learning rate and weight decay; none of biases and normalisation."""
        settings, encoder = self.recipe.train, self.segmenter.network.encoder
        factor = settings.encoder_learning_rate_factor
        slow = {id(each) for each in encoder.parameters()} if factor != 1 else set()  # type: ignore[union-attr]
        frozen = {id(each) for part in self._frozen_parts() for each in part.parameters()}
        trained = [each for each in self.parameters() if id(each) not in frozen]
        groups = []
        for in_encoder, rate in ((False, settings.learning_rate), (True, settings.learning_rate * factor)):
            of_part = [each for each in trained if (id(each) in slow) == in_encoder]
            for decayed, weight_decay in ((True, settings.weight_decay), (False, 0.0)):
                parameters = [each for each in of_part if (each.ndim > 1) == decayed]
                if parameters:
                    groups.append({"params": parameters, "lr": rate, "weight_decay": weight_decay})
        return groups

    def configure_optimizers(self) -> Any:
        """Return AdamW and its schedule: warm-up, then half a cosine."""
        settings = self.recipe.train
        optimizer = torch.optim.AdamW(self._parameter_groups())
        steps = int(self.trainer.estimated_stepping_batches)
        warmup_steps = max(1, round(settings.warmup * steps))

        def rate(step: int) -> float:
            """Return the factor of the learning rate: linear, then half a cosine (Loshchilov and Hutter 2017)."""
            if step < warmup_steps:
                return (step + 1) / warmup_steps
            return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def adapt_callbacks(checkpoint: dict[str, Any], trainer: lightning.Trainer) -> None:
    """Adapt what a checkpoint holds for the callbacks to the recipe and the folder of today.

    The run folder may have been moved, and `train.early_stopping` changed. A run that was stopped early ends at once,
    unless it has a larger patience now, or more epochs: then the patience starts anew.
    """
    assert isinstance(trainer.lightning_module, TrainingModule)
    settings, states = trainer.lightning_module.recipe.train, checkpoint["callbacks"]
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.state_key in states:
            _move_paths(states[callback.state_key], str(callback.dirpath))
    for key in [key for key in states if key.startswith("EarlyStopping")]:
        if settings.early_stopping is None:
            del states[key]
            continue
        states[key]["patience"] = settings.early_stopping
        if settings.epochs > checkpoint.get("planned_epochs", settings.epochs):
            states[key]["wait_count"] = 0
        trainer.should_stop = states[key]["wait_count"] >= settings.early_stopping


def _move_paths(state: dict[str, Any], folder: str) -> None:
    """Replace the folder in the paths of a `ModelCheckpoint`, which otherwise forgets the best score."""

    def moved(path: str) -> str:
        return str(Path(folder, Path(path).name)) if path else path

    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[key] = moved(state[key])
    state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
    state["dirpath"] = folder
