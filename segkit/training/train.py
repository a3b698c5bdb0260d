"""Training: one recipe in, one run folder out."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
import yaml
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rasterio.windows import Window
from torch import Tensor
from torch.utils.data import DataLoader

from segkit.data.areas import examined, with_fold
from segkit.data.cache import Cache
from segkit.data.datasets import Batch, EpochSampler, TrainTiles, suitable_tile_size
from segkit.data.pairing import recipe_files
from segkit.data.split import Area, pieces
from segkit.data.statistics import Statistics, class_weights
from segkit.errors import OutputExistsError, RecipeError, TrainingError, UsageError, ways
from segkit.evaluation.decisions import Decider
from segkit.evaluation.evaluate import fitted_calibration, fitted_thresholds, score
from segkit.evaluation.metrics import Confusion
from segkit.evaluation.worst_windows import draw_worst
from segkit.inference.device import pick_device, pick_precision
from segkit.inference.settings import Options
from segkit.io.files import check_apart, check_folder, staged
from segkit.io.raster import PathLike
from segkit.models.run_folder import (
    BEST,
    CHANGEABLE,
    LAST,
    LOG,
    METRICS,
    MODEL,
    RECIPE,
    is_run_of,
    read_log,
    recipe_text,
    without_changeable,
)
from segkit.models.segmenter import Segmenter, not_finite
from segkit.plots import charts
from segkit.recipe.schema import Recipe
from segkit.runtime import distributed
from segkit.runtime.memory import return_memory
from segkit.runtime.progress import progress
from segkit.training.losses import LOSSES, combined

_CURVES, _WORST = "curves.png", "worst.png"
_VALIDATED = ("val_iou", "val_f1", "val_accuracy")
# Below this tile size a CPU loses more by converting weights to bf16 and back than it gains: steps with tiles of 64
# pixels took 2.4 times as long as in fp32, with 256 pixels 0.7 times (resnet18 U-Net, AVX512-BF16).
_WORTH_BF16 = 128
_SHOWN = 5e-5  # change of a score that four digits show
_PIECE = 1024  # pixels along a side of what several processes share out to validate
# With fp16, a step whose gradients are too large is left out, and gradients are made half as large from there on. When
# they were made smaller than this, they are not too large, but no numbers.
_LEAST_SCALE = 2.0**-16
_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True)
class Run:
    """What a training left behind.

    Parameters
    ----------
    folder
        Holds all of it.
    model
        The model file with the best validation IoU.
    metrics
        Of that model on the validation areas, as in `metrics.json`.
    """

    folder: Path
    model: Path
    metrics: dict[str, Any]


def train(
    recipe: Recipe | PathLike,
    output: PathLike | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    fold: str | None = None,
    force: bool = False,
    show_progress: bool = False,
) -> Run:
    """Train a model.

    Parameters
    ----------
    recipe
        A recipe or its file.
    output
        The run folder; by default ``runs/NAME``, and of a fold ``runs/NAME-fold0of5``. Made where its parent exists.
    resume
        Go on after the last finished epoch of this folder's run, with the same recipe; `train.learning_rate` and
        `train.precision` may be others.
    overwrite
        Start anew where the folder holds a run.
    overrides
        ``"train.epochs=3"`` and the like, for a recipe file.
    fold
        ``"0/5"``: the first of five folds validates, see `with_fold`.
    force
        Train in spite of what `segkit.check` calls a problem; a run that is resumed is not asked again.
    show_progress
        Tell about each epoch on stderr.

    Returns
    -------
    The run; its folder holds model.safetensors, metrics.json, log.csv, curves.png, recipe.yaml and checkpoints.

    Raises
    ------
    UsageError, DataError
        The recipe, the data or the folder do not allow it; problems of the data are said as `segkit.check` says them.
    TrainingError
        A loss, the gradients or a weight are not finite numbers. Checkpoints of epochs before are kept.
    """
    file = None if isinstance(recipe, Recipe) else recipe
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe, overrides)
    if fold is not None:
        recipe = with_fold(recipe, fold)
    check_names(recipe)
    precision, accelerator = _hardware(recipe)
    name = recipe.name if fold is None else f"{recipe.name}-fold{fold.replace('/', 'of')}"
    first = _is_first(recipe)
    folder = _check_folder(recipe, name, output, first=first, resume=resume, overwrite=overwrite)
    check_apart(run_files(folder, recipe), [file, *recipe_files(recipe)], advice="name another run folder (-o)")
    show_progress = show_progress and first
    lightning.seed_everything(recipe.train.seed, workers=True, verbose=False)
    with Cache.opened(recipe.data.cache, show_progress=show_progress) as cache:
        found = examined(recipe, cache=cache, show_progress=show_progress)
        statistics = found.refuse(force=force or resume)
        if first and not resume:
            for problem in found.problems:
                print(f"segkit: in spite of this problem: {problem}", file=sys.stderr)
        parts = found.training, found.validation, statistics
        return _train(recipe, folder, *parts, precision, accelerator, resume=resume, show_progress=show_progress)


def _train(
    recipe: Recipe,
    folder: Path,
    training: Sequence[Area],
    validation: Sequence[Area],
    statistics: Statistics,
    precision: str,
    accelerator: str,
    *,
    resume: bool,
    show_progress: bool,
) -> Run:
    """Train, as `train` does once everything is checked."""
    weights = class_weights(recipe.train.class_weights, statistics.counts, recipe.task)
    segmenter = Segmenter(
        recipe, statistics.mean, statistics.std, training[0].sample.scene.band_names, pretrained=not resume
    )
    # Known before hours go into it, and kept in the model file.
    if segmenter.context is not None and show_progress:
        _tell_context(segmenter)
    tile_size, warning = suitable_tile_size(segmenter, training)
    if warning is not None and show_progress:
        print(f"warning: {warning}", file=sys.stderr)
    tiles = TrainTiles.of(training, recipe.train.model_copy(update={"tile_size": tile_size}), statistics)
    module = _Training(segmenter, weights, validation)
    data = _Loaders(recipe, tiles, accelerator)
    best, last = folder / BEST, folder / LAST
    kept = best if recipe.train.keep == "best" else last
    if _is_first(recipe):
        _begin(folder, recipe, resume=resume)
    # Lightning's save_last is the last epoch that got better; --resume goes on with the last one, and knows the best,
    # which is therefore written first.
    callbacks: list[Callback] = [_Finite(last, precision), _Log(folder / LOG)]
    if kept == best:
        callbacks.append(
            ModelCheckpoint(best.parent, best.stem, monitor="val_iou", mode="max", enable_version_counter=False)
        )
    callbacks.append(ModelCheckpoint(last.parent, last.stem, enable_version_counter=False))
    if recipe.train.early_stopping:
        callbacks.append(EarlyStopping("val_iou", mode="max", patience=recipe.train.early_stopping))
    if show_progress:
        callbacks.append(_Show(recipe.train.epochs))
    with _quiet_lightning():
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=recipe.train.devices,
            num_nodes=recipe.train.num_nodes,
            strategy=recipe.train.strategy,
            precision=_PRECISIONS[precision],  # type: ignore[arg-type]
            max_epochs=recipe.train.epochs,
            callbacks=callbacks,
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
        with _interruptible(trainer):
            trainer.fit(module, datamodule=data, ckpt_path=last if resume else None, weights_only=True)
    tell = distributed.teller()
    if trainer.is_global_zero:
        state = torch.load(kept, map_location="cpu", weights_only=True)
        module.load_state_dict(state["state_dict"])
        _finish(folder, module.segmenter, validation, int(state["epoch"]) + 1, accelerator, show_progress=show_progress)
    return_memory()
    return Run(folder, folder / MODEL, tell(module.segmenter.metrics))


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep what Lightning says about itself from the user: tips, devices, and advice on workers."""
    talks = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    before = [talk.level for talk in talks]
    for talk in talks:
        talk.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Their number is chosen on purpose; the folder was checked before; Lightning's own use of torch; DDP copies
            # gradients of 1 x 1 kernels, whose layout is channels last; on a machine of a SLURM cluster one may train.
            known = (
                "does not have many workers", "Checkpoint directory .* exists", ".*LeafSpec", "Grad strides",
                "The `srun` command is available",
            )  # fmt: skip
            for message in known:
                warnings.filterwarnings("ignore", message=f".*{message}")
            yield
    finally:
        for talk, level in zip(talks, before, strict=True):
            talk.setLevel(level)


@contextmanager
def _interruptible(trainer: lightning.Trainer) -> Iterator[None]:
    """Let Ctrl-C be a KeyboardInterrupt for the caller; Lightning makes it an exit."""
    try:
        yield
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


def check_names(recipe: Recipe) -> None:
    """Refuse names that only the trainer knows, before anything is read."""
    for name in recipe.train.loss:
        if name not in LOSSES:
            raise RecipeError(f"train.loss: {name!r} is not known; use {', '.join(LOSSES)}")
    if isinstance(recipe.train.class_weights, Mapping):
        for name in recipe.train.class_weights:
            if name not in recipe.task.channel_names:
                known = ", ".join(recipe.task.channel_names)
                raise RecipeError(f"train.class_weights: {name!r} is not a class of this task; it has {known}")
    if recipe.train.tensorboard:
        try:
            import tensorboard  # type: ignore[import-untyped]  # noqa: F401
        except ImportError as error:
            raise UsageError("train.tensorboard needs the extra: pip install 'segkit[tensorboard]'") from error


def _hardware(recipe: Recipe) -> tuple[str, str]:
    """Choose precision and accelerator by what the machine has natively."""
    device = pick_device(recipe.train.device)
    wanted = recipe.train.precision
    if wanted == "auto" and device.type == "cpu" and recipe.train.tile_size < _WORTH_BF16:
        wanted = "fp32"
    if wanted != "fp16":
        return pick_precision(wanted, device), device.type
    if device.type == "cpu":
        raise UsageError("train.precision: fp16 is for CUDA devices; use auto, bf16 or fp32 on a CPU")
    return "fp16", device.type


def _is_first(recipe: Recipe) -> bool:
    """Whether this process is the first of those that train together, which alone writes and tells."""
    # Until there is a trainer, Lightning knows what torchrun, SLURM and itself have numbered, not machines by hand.
    machine = int(os.environ.get("NODE_RANK", 0)) if recipe.train.num_nodes > 1 else 0
    return not (machine or rank_zero_only.rank)  # type: ignore[attr-defined]


def _check_folder(
    recipe: Recipe, name: str, output: PathLike | None, *, first: bool, resume: bool, overwrite: bool
) -> Path:
    """Return the run folder, and refuse one that holds what is not meant."""
    folder = Path("runs") / name if output is None else Path(output)
    if not first:
        return folder
    if output is not None or folder.exists():  # runs/ is made when there is something to put in
        check_folder(folder, "run")
    stored = folder / RECIPE
    if resume:
        if not (folder / LAST).is_file():
            raise UsageError(
                f"{folder}: holds no run with a finished epoch to resume" + ways("start it without --resume")
            )
        before, now = (without_changeable(yaml.safe_load(text)) for text in (stored.read_text(), recipe_text(recipe)))
        if before != now:
            raise RecipeError(
                f"{folder}: was started with another recipe ({_first_difference(before, now)}); resume with the same "
                f"recipe (only {' and '.join(CHANGEABLE)} may differ), or train into another folder"
            )
    elif stored.exists() and not overwrite:
        raise OutputExistsError(
            f"{folder}: holds a run already"
            + ways("go on with it (--resume)", "start anew (--overwrite)", "name another folder (--output)")
        )
    return folder


def run_files(folder: Path, recipe: Recipe) -> list[Path]:
    """Return the files and folders that a training of a recipe writes; a recipe that is there already stays."""
    names = [MODEL, METRICS, LOG, _CURVES, _WORST, "checkpoints", "tensorboard"]
    same = (folder / RECIPE).is_file() and is_run_of(folder, recipe)
    return [folder / name for name in (names if same else [*names, RECIPE])]


def _begin(folder: Path, recipe: Recipe, *, resume: bool) -> None:
    """Make the run folder; what an older run left to resume goes, its results stay until there are new ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in () if resume else (*(folder / LAST).parent.glob("*.ckpt"), folder / LOG):
        old.unlink(missing_ok=True)
    with staged(folder / RECIPE) as part:
        part.write_text(recipe_text(recipe))


def _first_difference(old: str, new: str) -> str:
    for before, after in zip(old.splitlines(), new.splitlines(), strict=False):
        if before != after:
            return f"{before.strip()!r} then, {after.strip()!r} now"
    return "one is longer"


def _tell_context(segmenter: Segmenter) -> None:
    model = segmenter.recipe.model
    print(
        f"model: {model.architecture} with {model.encoder} looks at all of its window, so maps are made with windows "
        f"of train.tile_size ({segmenter.context} pixels) and may show where these meet",
        file=sys.stderr,
    )


class _Training(lightning.LightningModule):
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
        counts = torch.from_numpy(self._confusion.counts).to(self.device)
        self._confusion.counts = self.trainer.strategy.reduce(counts, reduce_op="sum").cpu().numpy()
        summary = self._confusion.summary()
        # All ranks hold the sum, so their mean changes nothing; Lightning wants it.
        for name, key in (("val_iou", "mean_iou"), ("val_f1", "macro_f1"), ("val_accuracy", "overall_accuracy")):
            self.log(name, math.nan if summary[key] is None else summary[key], sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["devices"] = self.trainer.world_size

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
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


class _Loaders(lightning.LightningDataModule):
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
        trainer = self.trainer
        assert trainer is not None
        together = self._setup.batch_size * trainer.world_size
        crops = together * (self._setup.steps or max(1, round(self._tiles.pixels / self._tiles.size**2 / together)))
        sampler = EpochSampler(crops, trainer.global_rank, trainer.world_size)
        return DataLoader(self._tiles, self._setup.batch_size, sampler=sampler, drop_last=True, **self._options)

    def val_dataloader(self) -> DataLoader[int]:
        """One step, in which `_Training` goes through the validation areas itself."""
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


class _Finite(Callback):
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
        assert isinstance(pl_module, _Training)
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
        assert isinstance(trainer.lightning_module, _Training)
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


class _Log(Callback):
    """One row of numbers an epoch in a CSV file; a resumed run goes on in the same file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started = time.monotonic()

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch + 1
        row: dict[str, float] = {"epoch": epoch}
        row |= {
            name: got.item()
            for name in ("loss", *_VALIDATED)
            if (got := trainer.callback_metrics.get(name)) is not None
        }
        row["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        row["seconds"] = time.monotonic() - self._started
        rows = [old for old in read_log(self._path) if old["epoch"] < epoch] if self._path.exists() else []
        with staged(self._path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            writer.writeheader()
            writer.writerows({name: f"{value:.8g}" for name, value in each.items()} for each in (*rows, row))


class _Show(Callback):
    """A bar over all steps, and a line for each epoch."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._open = ExitStack()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        show = progress("train", trainer.estimated_stepping_batches, "steps", show=True)
        self._advance = self._open.enter_context(show)
        self._advance(trainer.global_step)

    def on_train_batch_end(self, *_: Any) -> None:
        self._advance(1)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        got = trainer.callback_metrics
        line = f"epoch {trainer.current_epoch + 1}/{self._epochs}  loss {got['loss']:.4f}"
        if "val_iou" in got:
            line += f"  validation IoU {got['val_iou']:.4f}  accuracy {got['val_accuracy']:.4f}"
        print(line, file=sys.stderr, flush=True)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._open.close()


def _finish(
    folder: Path,
    segmenter: Segmenter,
    validation: Sequence[Area],
    epoch: int,
    accelerator: str,
    *,
    show_progress: bool,
) -> None:
    """Score the kept weights as prediction will see them, and write the run's results, the model file last."""
    decider, before = Decider(segmenter, Options(device=accelerator)), {}
    if validation and segmenter.recipe.train.calibrate:
        calibration, uncalibrated = fitted_calibration(decider, validation)
        segmenter.set_calibration(calibration)
        found = uncalibrated.summary()
        before = {"ece_uncalibrated": found["ece"], "mean_iou_uncalibrated": found["mean_iou"]}
        decider = Decider(segmenter, Options(device=accelerator))
    if validation and segmenter.recipe.train.fit_thresholds:
        segmenter.set_thresholds(fitted_thresholds(decider, validation))
    segmenter.metrics = score(decider, validation).summary() | before
    log, fitted = read_log(folder / LOG), segmenter.metrics["mean_iou"]
    logged = next((row.get("val_iou") for row in log if row["epoch"] == epoch), None)
    if show_progress and logged is not None and fitted is not None and abs(fitted - logged) >= _SHOWN:
        print(
            f"epoch {epoch} is kept; with calibration and thresholds fitted on the validation data its IoU is "
            f"{fitted:.4f} (before: {logged:.4f})",
            file=sys.stderr,
        )
    with staged(folder / METRICS) as part:
        part.write_text(json.dumps(segmenter.metrics, indent=2))
    with staged(folder / _CURVES) as part:
        charts.png(charts.curves(log, epoch), part)
    if validation:
        draw_worst(decider, validation, folder / _WORST)
    segmenter.save(folder / MODEL)
