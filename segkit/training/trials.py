"""Trainings that belong together, of a comparison or a cross-validation: each is finished, resumed or started."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from segkit.errors import OutputExistsError, suggest
from segkit.io.files import atomic_write, check_folder, remove_atomically
from segkit.models.run_folder import LAST, lock_run, read_metrics
from segkit.training.comparison import TIMES_FILE, Trial
from segkit.training.train import train
from segkit.training.variants import TrialPlan


def check_trials(
    folder: Path, plans: Sequence[TrialPlan], what: str, *, is_default: bool, overwrite: bool, resume: bool = False
) -> None:
    """Check that a folder can hold the runs of plans.

    Parameters
    ----------
    what
        Name of the whole in messages.
    is_default
        Whether the user did not name the folder, so that its parent is made if necessary.
    resume
        Whether runs may be continued whose recipe differs in what may be changed, as the number of epochs.

    Raises
    ------
    OutputExistsError
        It holds runs of other recipes, and `overwrite` is false.
    """
    if not is_default or folder.exists():
        check_folder(folder, what)
    for plan in plans:
        if plan.started and not overwrite and not plan.same_recipe and not (resume and plan.resumable):
            raise OutputExistsError(
                f"{plan.folder}: holds a run of another recipe; replace it (--overwrite) or name another folder (-o)"
                + (suggest("extend it (--resume)") if plan.resumable and not resume else "")
            )


def run_trial(plan: TrialPlan, *, overwrite: bool, show_progress: bool) -> Trial:
    """Train, resume or read the trial of a plan, which `check_trials` and the checks of the data allow."""
    times_file = plan.folder / TIMES_FILE
    if overwrite or not plan.finished:
        resume = not overwrite and plan.started and (plan.folder / LAST).is_file()
        if plan.started and not plan.same_recipe and not resume:
            with lock_run(plan.folder):
                remove_atomically(plan.folder)  # so that its model is not mistaken for one of this recipe
        plan.folder.parent.mkdir(parents=True, exist_ok=True)
        with _measure_time(times_file, resume=resume), _explain_interruption():
            train(plan.recipe, plan.folder, resume=resume, overwrite=True, force=True, show_progress=show_progress)
    return Trial(plan.variant, plan.seed, plan.fold, plan.folder, read_metrics(plan.folder), **_read_times(times_file))


def _read_times(path: Path) -> dict[str, float | None]:
    """Return the seconds that a trial took; None where they are not known."""
    found: Any = {}
    with suppress(OSError, ValueError, RecursionError):  # they are only shown
        found = json.loads(path.read_text(encoding="utf-8"))
    known = {key: found.get(key) if isinstance(found, dict) else None for key in ("seconds", "cpu_seconds")}
    return {key: value if isinstance(value, int | float) else None for key, value in known.items()}


@contextmanager
def _explain_interruption() -> Iterator[None]:
    """Say how to continue: not as a single training, with --resume."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "finished trainings and epochs are kept; run the same command again to continue"
        ) from None


@contextmanager
def _measure_time(file: Path, *, resume: bool) -> Iterator[None]:
    """Write the time of the block to a JSON file, plus the time before an interruption; no file if that is unknown."""
    before = {"seconds": 0.0, "cpu_seconds": 0.0}
    if resume:
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.unlink(missing_ok=True)  # a killed process leaves no file
    clock, cpu = time.monotonic(), sum(os.times()[:4])
    try:
        yield
    finally:
        if before and file.parent.is_dir():
            elapsed = {"seconds": time.monotonic() - clock, "cpu_seconds": sum(os.times()[:4]) - cpu}
            with atomic_write(file) as part:
                part.write_text(json.dumps({key: before[key] + elapsed[key] for key in elapsed}), encoding="utf-8")
