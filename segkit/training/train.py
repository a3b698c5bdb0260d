"""Training: one recipe in, one run folder out."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
import yaml
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from segkit.data.area import Area
from segkit.data.areas import examined, with_fold
from segkit.data.cache import Cache
from segkit.data.datasets import TrainTiles, suitable_tile_size
from segkit.data.pairing import recipe_files
from segkit.data.statistics import Statistics, class_weights
from segkit.errors import OutputExistsError, RecipeError, UsageError, ways
from segkit.evaluation.decisions import Decider
from segkit.evaluation.evaluate import fitted_calibration, fitted_thresholds, score
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
from segkit.models.segmenter import Segmenter
from segkit.plots import style, training_curves
from segkit.recipe.schema import Recipe
from segkit.runtime import distributed
from segkit.runtime.memory import return_memory
from segkit.training.callbacks import EpochLog, ProgressCallback, StopWhereNotFinite
from segkit.training.loaders import CropLoaders
from segkit.training.losses import LOSSES
from segkit.training.module import TrainingModule

_CURVES, _WORST = "curves.png", "worst.png"
# Below this tile size a CPU loses more by converting weights to bf16 and back than it gains: steps with tiles of 64
# pixels took 2.4 times as long as in fp32, with 256 pixels 0.7 times (resnet18 U-Net, AVX512-BF16).
_WORTH_BF16 = 128
_SHOWN = 5e-5  # change of a score that four digits show
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
    module = TrainingModule(segmenter, weights, validation)
    data = CropLoaders(recipe, tiles, accelerator)
    best, last = folder / BEST, folder / LAST
    kept = best if recipe.train.keep == "best" else last
    if _is_first(recipe):
        _begin(folder, recipe, resume=resume)
    # Lightning's save_last is the last epoch that got better; --resume goes on with the last one, and knows the best,
    # which is therefore written first.
    callbacks: list[Callback] = [StopWhereNotFinite(last, precision), EpochLog(folder / LOG)]
    if kept == best:
        callbacks.append(
            ModelCheckpoint(best.parent, best.stem, monitor="val_iou", mode="max", enable_version_counter=False)
        )
    callbacks.append(ModelCheckpoint(last.parent, last.stem, enable_version_counter=False))
    if recipe.train.early_stopping:
        callbacks.append(EarlyStopping("val_iou", mode="max", patience=recipe.train.early_stopping))
    if show_progress:
        callbacks.append(ProgressCallback(recipe.train.epochs))
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
        style.png(training_curves.curves(log, epoch), part)
    if validation:
        draw_worst(decider, validation, folder / _WORST)
    segmenter.save(folder / MODEL)
