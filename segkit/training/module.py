"""The Lightning module: a training step, and validation as maps are made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import Tensor

from segkit.data.area import Area
from segkit.data.datasets import Batch
from segkit.errors import TrainingError, UsageError, ways
from segkit.evaluation.decisions import Decider
from segkit.evaluation.metrics import Confusion
from segkit.inference.settings import Options
from segkit.models.network import not_finite
from segkit.models.segmenter import Segmenter
from segkit.runtime import distributed
from segkit.training.loaders import shared_out
from segkit.training.losses import combined

VALIDATION_SCORES = ("val_iou", "val_f1", "val_accuracy")


class TrainingModule(lightning.LightningModule):
    """Loss, optimiser and validation score of a segmenter."""

    def __init__(self, segmenter: Segmenter, weights: Sequence[float] | None, validation: Sequence[Area] = ()) -> None:
        super().__init__()
        self.segmenter = segmenter
        self._validation = validation
        self.recipe = segmenter.recipe
        setup = self.recipe.train
        self._loss = combined(setup.loss, segmenter.task, weights, setup.label_smoothing)
        self._confusion = Confusion(segmenter.task)
        self.gradient = torch.zeros(())  # its norm in the last step, before clipping

    def setup(self, stage: str) -> None:
        """Freeze what the logits do not depend on, where several processes train."""
        if self.trainer.world_size > 1:
            self._freeze_unused()

    def _freeze_unused(self) -> None:
        """Leave out what the logits do not depend on: stages below `encoder_depth`, whose gradients DDP would await."""
        one, side = self.segmenter.eval(), self.recipe.train.tile_size
        logits = one(torch.zeros(1, one.bands, side, side), torch.ones(1, side, side, dtype=torch.bool))
        parameters = list(one.parameters())
        gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        one.train()

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Return the loss of a batch."""
        pixels, valid, planes = batch
        # Dropout draws the same at a step whether the run was resumed before it or not.
        place = (self.recipe.train.seed, self.global_step, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        with distributed.batch_norm():
            logits = self.segmenter(pixels, valid)
        loss: Tensor = self._loss(logits, planes)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(pixels))
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients, and remember their norm."""
        assert gradient_clip_val is not None
        self.gradient = torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def validation_step(self, *_: Any) -> None:
        """Score the weights as `_finish` does and as maps will be made: same windows, blend and precision."""
        self._confusion = Confusion(self.segmenter.task)
        decider = Decider(self.segmenter, Options(device=str(self.device)))
        decider.prepare(self._validation[0])  # so that all processes choose alike
        # What the training computes in, autocast, is not what maps are computed in.
        with torch.autocast(self.device.type, enabled=False):
            for area, windows in shared_out(self._validation, self.trainer.global_rank, self.trainer.world_size):
                for part in decider(area, windows):
                    self._confusion.add(part.planes, part.truth)

    def on_validation_epoch_end(self) -> None:
        """Sum the confusion matrix over processes, and log its scores."""
        counts = torch.from_numpy(self._confusion.counts).to(self.device)
        self._confusion.counts = self.trainer.strategy.reduce(counts, reduce_op="sum").cpu().numpy()
        summary = self._confusion.summary()
        # All ranks hold the sum, so their mean changes nothing; Lightning wants it.
        for name, key in (("val_iou", "mean_iou"), ("val_f1", "macro_f1"), ("val_accuracy", "overall_accuracy")):
            self.log(name, math.nan if summary[key] is None else summary[key], sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the number of devices."""
        checkpoint["devices"] = self.trainer.world_size

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the run can go on from a checkpoint, and take the recipe's learning rate.

        Raises
        ------
        UsageError
            It was made on another number of devices.
        TrainingError
            Its weights are not finite.
        """
        # With `devices: auto` the recipe is the same, the global batch is not.
        before, now = checkpoint.get("devices", 1), self.trainer.world_size
        if before != now:
            raise UsageError(
                f"the run was started on {before} devices, here are {now}; resume it on as many (train.devices)"
            )
        if found := not_finite(checkpoint["state_dict"]):
            raise TrainingError(
                f"the last epoch cannot be resumed: it holds {found}" + ways("start anew (--overwrite)")
            )
        # A checkpoint holds the learning rate that it was made with.
        [schedule], [optimizer] = checkpoint["lr_schedulers"], checkpoint["optimizer_states"]
        wanted, former = self.recipe.train.learning_rate, schedule["base_lrs"][0]
        for group in optimizer["param_groups"]:
            group |= {"lr": group["lr"] * (wanted / former), "initial_lr": wanted}
        schedule["base_lrs"] = [wanted] * len(schedule["base_lrs"])

    def configure_optimizers(self) -> Any:
        """Return AdamW (no decay of biases and normalisation) and its schedule: warm-up, then half a cosine."""
        setup = self.recipe.train
        decayed = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim <= 1]  # biases and normalisation
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": setup.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=setup.learning_rate,
        )
        steps = int(self.trainer.estimated_stepping_batches)
        warm = max(1, round(setup.warmup * steps))

        def rate(step: int) -> float:
            """Warm up in a line, cool down along a half cosine (Loshchilov and Hutter 2017)."""
            if step < warm:
                return (step + 1) / warm
            return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
