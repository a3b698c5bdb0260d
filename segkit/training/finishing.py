"""Write the results of a run from its checkpoints: at the end of a training, or before."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path

from segkit.data.areas import examine_recipe
from segkit.data.cache import Cache
from segkit.errors import UsageError
from segkit.inference.device import pick_device
from segkit.io.paths import PathLike
from segkit.models.model_file import read_header
from segkit.models.run_folder import BEST, LAST, METRICS, MODEL, RECIPE, lock_run
from segkit.models.segmenter import Segmenter
from segkit.recipe.schema import Recipe
from segkit.training.baselines import fit_pixel_branch
from segkit.training.results import Epochs, Run, write_results
from segkit.training.resume import explain_interruption, finished_epochs, read_checkpoint, restore_start

_PREFIX = "segmenter."  # of the segmenter's weights in a checkpoint


def finish(run: PathLike, *, show_progress: bool = False) -> Run:
    """Score the best epoch so far of an interrupted training, and write its model file.

    The results are those of a training that ends now: calibration, thresholds, scores, pictures. ``metrics["epochs"]``
    tells how many of the planned epochs were trained. The run can still be resumed.

    Parameters
    ----------
    run
        Run folder. If its model file is that of the last finished epoch already, nothing is done.
    show_progress
        Show the progress on stderr.

    Raises
    ------
    UsageError
        The folder holds no run of a network, or no epoch is finished.
    OutputError
        The run is being trained.
    DataError
        The training data cannot be read any more.
    """
    started = time.monotonic()
    folder = Path(run)
    if not (folder / RECIPE).is_file():
        raise UsageError(f"{folder}: holds no run; name the folder that segkit train wrote (it has {RECIPE})")
    recipe = Recipe.load(folder / RECIPE)
    if recipe.model.is_classical:
        raise UsageError(
            f"{folder}: {recipe.model.architecture} is fitted in one go, so there are no epochs; train it again"
        )
    with lock_run(folder):
        epochs = count_epochs(folder, recipe)
        if _is_finished(folder, epochs):
            if show_progress:
                print(f"{folder}: its model has all {epochs.finished} finished epochs; nothing to do", file=sys.stderr)
            return Run(folder, folder / MODEL, read_header(folder / MODEL).metrics, time.monotonic() - started)
        with explain_interruption(folder, recipe.train.epochs, has_ended=True):
            metrics = _write(folder, recipe, epochs, show_progress=show_progress)
    return Run(folder, folder / MODEL, metrics, time.monotonic() - started)


def _write(folder: Path, recipe: Recipe, epochs: Epochs, *, show_progress: bool) -> dict[str, object]:
    """Read the data again, and write the results; returns the scores."""
    if show_progress:
        print(f"writing the model of epoch {epochs.kept} ({epochs.finished} of {epochs.planned})", file=sys.stderr)
    with Cache.open(recipe.data.cache, show_progress=show_progress) as cache:
        examination = examine_recipe(recipe, cache=cache, show_progress=show_progress)
        statistics = examination.require_trainable(force=True)
        training = examination.training
        names = training[0].sample.scene.band_names
        segmenter = Segmenter(recipe, statistics.mean, statistics.std, names, pretrained=False)
        fit_pixel_branch(segmenter, training, statistics.counts)
        load_epoch(segmenter, folder)
        accelerator = pick_device(recipe.train.device).type
        write_results(
            folder, segmenter.eval(), examination, statistics, epochs, accelerator, show_progress=show_progress
        )
    return segmenter.metrics


def count_epochs(folder: Path, recipe: Recipe) -> Epochs:
    """Return the epochs of a run, from its checkpoints.

    Raises
    ------
    UsageError
        No epoch is finished.
    """
    chosen = _chosen(folder, recipe)
    if not chosen.is_file():
        raise UsageError(f"{folder}: no epoch is finished, so there is no model to write; train one at least")
    kept = int(read_checkpoint(chosen)["epoch"]) + 1
    return Epochs(kept, max(kept, finished_epochs(folder)), recipe.train.epochs)


def load_epoch(segmenter: Segmenter, folder: Path) -> None:
    """Load the weights of the epoch to keep, and what the run started with."""
    checkpoint = read_checkpoint(_chosen(folder, segmenter.recipe))
    state = {key: value for key, value in checkpoint["state_dict"].items() if key.startswith(_PREFIX)}
    segmenter.load_state_dict({key.removeprefix(_PREFIX): value for key, value in state.items()})
    restore_start(segmenter, checkpoint)


def _chosen(folder: Path, recipe: Recipe) -> Path:
    """Return the checkpoint of the epoch to keep."""
    return folder / (BEST if recipe.train.checkpoint == "best" else LAST)


def _is_finished(folder: Path, epochs: Epochs) -> bool:
    """Whether the results in a folder are those of these epochs, and not of a run before."""
    model, last = folder / MODEL, folder / LAST
    if not (model.is_file() and last.is_file() and (folder / METRICS).is_file()):
        return False
    return model.stat().st_mtime_ns >= last.stat().st_mtime_ns and read_header(model).metrics.get("epochs") == asdict(
        epochs
    )
