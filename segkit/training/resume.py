"""Whether a training may start or continue in a run folder, and what an interrupted one leaves there."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from segkit.errors import OutputExistsError, RecipeError, TrainingError, UsageError, first_line, suggest
from segkit.io.files import atomic_write, check_folder
from segkit.io.paths import PathLike
from segkit.models.initial_weights import InitialWeights
from segkit.models.run_folder import (
    CHANGEABLE,
    LAST,
    LOG,
    METRICS,
    MODEL,
    RECIPE,
    changes_of,
    is_run_of,
    recipe_text,
)
from segkit.models.segmenter import Segmenter
from segkit.recipe.messages import shorten
from segkit.recipe.renamed import is_stored
from segkit.recipe.schema import Recipe
from segkit.recipe.yaml import parse_yaml
from segkit.training.results import CURVES, WORST

_SHOWN_CHANGES = 3  # keys of a recipe that a message names at most


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or a signal in a training; the message says what is kept.

    Parameters
    ----------
    message
        What is kept.
    folder
        The run folder.
    finished
        Number of finished epochs.
    has_ended
        Whether only the results were still to be written.
    """

    def __init__(self, message: str, folder: Path, finished: int, *, has_ended: bool) -> None:
        super().__init__(message)
        self.folder, self.finished, self.has_ended = folder, finished, has_ended


@contextmanager
def explain_interruption(folder: Path, planned: int, *, has_ended: bool = False) -> Iterator[None]:
    """Turn a KeyboardInterrupt in the block into a `TrainingInterrupted`.

    Parameters
    ----------
    folder
        The run folder.
    planned
        Planned number of epochs.
    has_ended
        Whether no epoch is left, so that the block only writes the results.
    """
    try:
        yield
    except KeyboardInterrupt:
        finished = finished_epochs(folder)
        message = "no epoch was finished"
        if finished:
            message = f"{finished} of {planned} epochs are finished and kept in {folder}"
        if has_ended:
            message += ", but their results are not written yet"
        raise TrainingInterrupted(message, folder, finished, has_ended=has_ended) from None


def finished_epochs(folder: Path) -> int:
    """Return how many epochs of the run in a folder are finished and can be continued."""
    last = folder / LAST
    return int(read_checkpoint(last)["epoch"]) + 1 if last.is_file() else 0


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Open a checkpoint; tensors are read from the disk when they are used.

    Raises
    ------
    TrainingError
        It is damaged. The checksums of the zip file that it is are compared, which torch does not do here.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            if damaged := parts.testzip():
                raise ValueError(f"{damaged} has changed")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise TrainingError(
            f"{path}: cannot be read ({first_line(error)})" + suggest("start the training again (--overwrite)")
        ) from error
    return checkpoint


def check_run_folder(
    recipe: Recipe, name: str, output: PathLike | None, *, is_main: bool, resume: bool, overwrite: bool
) -> Path:
    """Return the run folder; raise an error if its content does not fit `resume` and `overwrite`.

    A run without a finished epoch has nothing to lose, so it may be started again with any of both.
    """
    folder = Path("runs") / name if output is None else Path(output)
    if resume and recipe.model.is_classical:
        raise UsageError(
            f"{folder}: {recipe.model.architecture} is fitted in one go, so there is no epoch to resume"
            + suggest("start the training without --resume")
        )
    if not is_main:
        return folder
    if output is not None or folder.exists():  # runs/ is made when it is needed
        check_folder(folder, "run")
    if resume:
        _check_resumable(folder, recipe)
    elif _holds_results(folder) and not overwrite:
        raise OutputExistsError(
            f"{folder}: holds a run already"
            + suggest("continue it (--resume)", "start again (--overwrite)", "name another folder (--output)")
        )
    return folder


def _holds_results(folder: Path) -> bool:
    """Whether a folder has a run with a finished epoch or a model, or a recipe that a user wrote."""
    stored = folder / RECIPE
    if stored.is_file() and not _was_stored(stored):
        return True
    return stored.is_file() and any((folder / name).exists() for name in (LAST, MODEL, METRICS))


def _was_stored(recipe: Path) -> bool:
    """Whether a training stored a recipe; what is not YAML, a user wrote."""
    try:
        return is_stored(parse_yaml(recipe.read_bytes(), str(recipe)))
    except RecipeError:
        return False


def _check_resumable(folder: Path, recipe: Recipe) -> None:
    """Raise an error if a run cannot be continued with a recipe."""
    if not (folder / RECIPE).is_file():
        raise UsageError(f"{folder}: holds no run to resume" + suggest("start the training without --resume"))
    changes = {key: pair for key, pair in changes_of(folder, recipe).items() if key not in CHANGEABLE}
    if changes:
        named = [f"{key} was {shorten(old)}, now {shorten(new)}" for key, (old, new) in changes.items()]
        more = f", and {len(named) - _SHOWN_CHANGES} more" if len(named) > _SHOWN_CHANGES else ""
        raise RecipeError(
            f"{folder}: was started with another recipe ({'; '.join(named[:_SHOWN_CHANGES])}{more}); resume with the "
            f"same recipe (only {', '.join(CHANGEABLE)} may differ), or train into another folder"
        )
    finished = finished_epochs(folder)
    if not finished and (folder / MODEL).is_file():
        raise UsageError(
            f"{folder}: its checkpoints were removed, so it cannot be continued" + suggest("start again (--overwrite)")
        )
    if finished > recipe.train.epochs:
        raise RecipeError(
            f"{folder}: {finished} epochs are finished already, but train.epochs is {recipe.train.epochs}; set it to "
            f"{finished} or more, or write the model of the finished ones: segkit finish {folder}"
        )


def run_files(folder: Path, recipe: Recipe) -> list[Path]:
    """Return the files and folders that a training writes; recipe.yaml only if it changes."""
    names = [MODEL, METRICS, LOG, CURVES, WORST, "checkpoints", "tensorboard"]
    same_recipe = (folder / RECIPE).is_file() and is_run_of(folder, recipe)
    return [folder / name for name in (names if same_recipe else [*names, RECIPE])]


def prepare_run_folder(folder: Path, recipe: Recipe, *, resume: bool) -> None:
    """Make the run folder; remove an older run's checkpoints and log, but keep its results until there are new ones."""
    folder.mkdir(parents=True, exist_ok=True)
    curves = (folder / CURVES,) if recipe.model.is_classical else ()  # which a network's training draws again
    for old in () if resume else (*(folder / LAST).parent.glob("*.ckpt"), folder / LOG, *curves):
        old.unlink(missing_ok=True)
    with atomic_write(folder / RECIPE) as part:
        part.write_text(recipe_text(recipe), encoding="utf-8")


def restore_start(segmenter: Segmenter, checkpoint: Mapping[str, Any]) -> None:
    """Restore what a run started with: the origin of its weights, and the normalisation that they were trained with.

    Warns
    -----
    UserWarning
        The training pixels have changed since.
    """
    if "initial_weights" in checkpoint:
        segmenter.initial_weights = InitialWeights.from_json(checkpoint["initial_weights"])
    if "normalization" not in checkpoint:  # of version 0.2
        return
    buffers = segmenter.mean, segmenter.std
    stored = [torch.tensor(values).view(1, -1, 1, 1) for values in checkpoint["normalization"]]
    # The normalisation of a run that started from a model may be that model's.
    is_own = "initial_weights" not in checkpoint
    if is_own and not all(map(torch.allclose, (each.cpu() for each in buffers), stored)):
        warnings.warn(
            f"{segmenter.recipe.name}: the training pixels have changed since the run was started, whose normalisation "
            "it keeps; if the split has changed, too, pixels that were trained on may now validate, and scores be too "
            "high" + suggest("start the training again (--overwrite)"),
            stacklevel=2,
        )
    for buffer, values in zip(buffers, stored, strict=True):
        buffer.copy_(values)
