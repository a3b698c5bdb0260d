"""Train a recipe into a run folder."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segkit.data.areas import examine_recipe, with_fold
from segkit.data.band_warnings import describe_alpha_bands
from segkit.data.cache import Cache
from segkit.data.examination import Examination
from segkit.data.pairing import recipe_files
from segkit.data.statistics import Statistics, class_weights
from segkit.errors import RecipeError, UsageError
from segkit.inference.device import pick_device, pick_precision
from segkit.io.files import check_distinct
from segkit.io.paths import PathLike
from segkit.models.model_check import check_model_keys
from segkit.models.run_folder import LAST, MODEL, lock_run
from segkit.models.segmenter import Segmenter
from segkit.models.transfer import check_start, with_start
from segkit.recipe.features import ignored_train_keys
from segkit.recipe.schema import Recipe
from segkit.runtime import distributed
from segkit.runtime.garbage_collection import pause_collection
from segkit.training.classical import describe_fit, fit_learners
from segkit.training.out_of_memory import GUARD
from segkit.training.results import Run, write_results
from segkit.training.resume import (
    check_run_folder,
    prepare_run_folder,
    run_files,
)

# In pixels. For smaller tiles a CPU loses more time by converting weights to bf16 and back than it gains: steps with 64
# px tiles took 2.4 times as long as in fp32, with 256 px tiles 0.7 times (resnet18 U-Net, AVX512-BF16).
_MIN_BF16_TILE_SIZE = 128


def train(
    recipe: Recipe | PathLike,
    output: PathLike | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    fold: str | None = None,
    start_from: PathLike | None = None,
    force: bool = False,
    show_progress: bool = False,
) -> Run:
    """Train a model.

    Parameters
    ----------
    recipe
        A recipe or its file.
    output
        Run folder; by default ``runs/NAME``, for a fold ``runs/NAME-fold0of5``. Its parent folder must exist.
    resume
        Continue the run in this folder after its last finished epoch, or start it again if there is none. The recipe
        must be the same, except for the keys in `segkit.models.run_folder.CHANGEABLE`. Another number of
        `train.epochs` extends or shortens the run; its learning rate then follows the schedule of all epochs.
    overwrite
        Replace the run in the folder.
    overrides
        For a recipe file: ``"train.epochs=3"`` and so on.
    fold
        ``"0/5"``: validate on the first of five folds, see `with_fold`.
    start_from
        Model file whose weights the training starts from, see `with_start`. A resumed run does not read it again.
    force
        Train in spite of the problems that `segkit.check` reports; a resumed run is not checked again.
    show_progress
        Print one line per epoch on stderr.

    Returns
    -------
    The run; its folder holds model.safetensors, metrics.json, log.csv, curves.png, recipe.yaml and checkpoints.

    Raises
    ------
    UsageError, DataError
        The recipe, the data or the folder cannot be used. Problems of the data are worded as by `segkit.check`. Or a
        process that is to read tiles runs the script again.
    TrainingError
        A loss, gradient or weight is not a finite number. The checkpoints of earlier epochs are kept.
    OutputError
        Another process is training in the folder, or a file could not be written.
    TrainingInterrupted
        Ctrl-C, a KeyboardInterrupt; the message says what is kept.
    """
    started = time.monotonic()
    _refuse_in_worker()
    file = None if isinstance(recipe, Recipe) else recipe
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe, overrides)
    if fold is not None:
        recipe = with_fold(recipe, fold)
    if start_from is not None:
        recipe = with_start(recipe, start_from)
    check_names(recipe)
    precision, accelerator = _choose_hardware(recipe)
    name = recipe.name if fold is None else f"{recipe.name}-fold{fold.replace('/', 'of')}"
    is_main = _is_main_process(recipe)
    if recipe.model.is_classical and not is_main:
        raise UsageError(f"{recipe.model.architecture} is fitted by one process; start segkit train once, by itself")
    folder = check_run_folder(recipe, name, output, is_main=is_main, resume=resume, overwrite=overwrite)
    if not (resume and (folder / LAST).is_file()):
        check_start(recipe)
    check_distinct(run_files(folder, recipe), [file, *recipe_files(recipe)], advice="name another run folder (-o)")
    show_progress = show_progress and is_main
    with lock_run(folder) if is_main else nullcontext():
        if resume and not (folder / LAST).is_file():
            resume = False
            if show_progress:
                print("no epoch is finished; starting with the first", file=sys.stderr)
        metrics = _train_locked(
            recipe, folder, precision, accelerator, resume=resume, force=force, show_progress=show_progress
        )
    return Run(folder, folder / MODEL, metrics, time.monotonic() - started)


def _refuse_in_worker() -> None:
    """Raise a UsageError in a process that is about to read tiles, and before runs the main script once more."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UsageError(f"a process that is to read tiles runs this script again, and would train, too; {GUARD}")


def _train_locked(
    recipe: Recipe, folder: Path, precision: str, accelerator: str, *, resume: bool, force: bool, show_progress: bool
) -> dict[str, Any]:
    """Read the data and train; returns the scores."""
    _seed(recipe.train.seed)
    with Cache.open(recipe.data.cache, show_progress=show_progress) as cache:
        examination = examine_recipe(recipe, cache=cache, show_progress=show_progress)
        statistics = examination.require_trainable(force=force or resume)
        if _is_main_process(recipe) and not resume:
            scenes = {area.sample.scene.paths: area.sample.scene for area in examination.training}
            for text in describe_alpha_bands([*scenes.values()]):
                warnings.warn(text, stacklevel=3)
            for problem in examination.problems:
                print(f"segkit: training in spite of this problem: {problem}", file=sys.stderr)
            for text in examination.warnings if show_progress else ():
                print(f"warning: {text}", file=sys.stderr)
        if recipe.model.is_classical:
            return _fit_classical(recipe, folder, examination, statistics, show_progress=show_progress)
        with pause_collection():  # here, as Lightning takes longer to import than torch
            from segkit.training.fitting import fit_network

        is_main = _is_main_process(recipe)
        return fit_network(
            recipe,
            folder,
            examination,
            statistics,
            precision,
            accelerator,
            is_main=is_main,
            resume=resume,
            show_progress=show_progress,
        )


def _seed(seed: int) -> None:
    """Seed all global generators, as Lightning does."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what libraries use that take no generator
    torch.manual_seed(seed)


def _fit_classical(
    recipe: Recipe,
    folder: Path,
    examination: Examination,
    statistics: Statistics,
    *,
    show_progress: bool,
) -> dict[str, Any]:
    """Fit a classical learner after all checks."""
    if show_progress and (ignored := ignored_train_keys(recipe.train)):
        listed = ", ".join(f"train.{key}" for key in ignored)
        print(f"{recipe.model.architecture} is fitted in one go, without effect of {listed}", file=sys.stderr)
    training = examination.training
    weights = class_weights(recipe.train.class_weights, statistics.counts, recipe.task)
    segmenter = Segmenter(recipe, statistics.mean, statistics.std, training[0].sample.scene.band_names).eval()
    prepare_run_folder(folder, recipe, resume=False)
    started = time.monotonic()
    used, labelled = fit_learners(segmenter, training, statistics.counts, weights)
    if show_progress:
        seconds = time.monotonic() - started
        print(f"{describe_fit(recipe, used, labelled)}; {seconds:.1f} s", file=sys.stderr, flush=True)
    segmenter.metrics = {"fitted_pixels": sum(used), "labelled_pixels": sum(labelled)}
    accelerator = pick_device(recipe.train.device).type
    write_results(folder, segmenter, examination, statistics, None, accelerator, show_progress=show_progress)
    return segmenter.metrics


def check_names(recipe: Recipe) -> None:
    """Check names of losses, class weights and options, frozen parts, and extras, before any data is read.

    Raises
    ------
    RecipeError
        A name is not known, or a key does not fit the others.
    ModuleNotFoundError, UsageError
        A package of an extra is not installed.
    """
    if isinstance(recipe.train.class_weights, Mapping):
        for name in recipe.train.class_weights:
            if name not in recipe.task.channel_names:
                known = ", ".join(recipe.task.channel_names)
                raise RecipeError(f"train.class_weights: {name!r} is not a class of this task; use {known}")
    check_model_keys(recipe)
    if recipe.train.tensorboard and not recipe.model.is_classical:
        try:
            import tensorboard  # type: ignore[import-untyped]  # noqa: F401
        except ImportError as error:
            raise UsageError(
                "train.tensorboard needs the extra: pip install 'landcover-segkit[tensorboard]'"
            ) from error


def _choose_hardware(recipe: Recipe) -> tuple[str, str]:
    """Return precision and accelerator; "auto" is what the hardware supports natively."""
    device = pick_device(recipe.train.device)
    if device.type == "mps" and (recipe.model.is_classical or recipe.model.pixel_branch):
        raise UsageError("train.device: classical learners compute in float64, which mps does not; use cpu")
    precision = recipe.train.precision
    if precision == "auto" and device.type == "cpu" and recipe.train.tile_size < _MIN_BF16_TILE_SIZE:
        precision = "fp32"
    if precision != "fp16":
        return pick_precision(precision, device), device.type
    if device.type != "cuda":
        raise UsageError(
            f"train.precision: fp16 is for CUDA devices; use auto{', bf16' * (device.type == 'cpu')} or fp32 on "
            f"{'a CPU' if device.type == 'cpu' else device.type}"
        )
    return "fp16", device.type


def _is_main_process(recipe: Recipe) -> bool:
    """Return whether this process is the first of all training processes; only that one writes files and messages."""
    machine = int(os.environ.get("NODE_RANK", "0")) if recipe.train.num_nodes > 1 else 0
    return not (machine or distributed.declared_rank())
