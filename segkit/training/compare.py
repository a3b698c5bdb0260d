"""Comparison: one recipe trained in variants, each with several seeds or folds, and how far the models agree."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segkit.data.cache import Cache
from segkit.data.pairing import recipe_files
from segkit.errors import OutputExistsError
from segkit.io.files import check_apart, check_folder, discard, staged
from segkit.io.raster import PathLike
from segkit.models.run_folder import LAST, METRICS
from segkit.recipe.schema import Recipe
from segkit.training.agreement import ValidationAreas, check_alike, measure_agreement
from segkit.training.comparison import SPENT, Comparison, Trial
from segkit.training.comparison_output import summarize_trials, write_comparison
from segkit.training.train import run_files, train
from segkit.training.variants import TrialPlan, plan_trials, variant_names


def compare(
    recipe: Recipe | PathLike,
    output: PathLike | None = None,
    *,
    heads: Sequence[str] = (),
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    folds: Sequence[str] = (),
    overrides: Sequence[str] = (),
    force: bool = False,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Comparison:
    """Train a recipe in variants and compare their scores, their cost and their decisions.

    Every combination of a head and of a value of each varied key is a variant; each is trained with every seed, in
    every fold. Trainings go one after the other and by turns, so that what slows the machine meets all variants.
    Finished ones in the folder are taken as they are, and those that were stopped go on.

    Parameters
    ----------
    recipe
        A recipe or its file.
    output
        Holds a run for each training, and the result; by default ``runs/NAME-compare``.
    heads
        "softmax", "sigmoid"; by default the recipe's.
    vary
        {key of the recipe: its values}: ``{"model.encoder": ["resnet18", "resnet34"]}``.
    seeds
        Of `train.seed`.
    folds
        "0/3", "1/3", ...: see `segkit.data.areas.with_fold`; by default `data.val` is as in the recipe.
    overrides
        ``"train.epochs=3"`` and the like, for a recipe file.
    force
        Train in spite of what `segkit.check` calls a problem.
    overwrite
        Train anew what is there.
    show_progress
        Tell about each training on stderr.

    Raises
    ------
    UsageError, DataError
        A variant is not valid, or does not validate on the same pixels as the others; nothing was trained.
    """
    base = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe, overrides)
    plans = plan_trials(
        base, Path(f"runs/{base.name}-compare" if output is None else output), heads, vary or {}, seeds, folds
    )
    folder = _check_folder(plans, output, overwrite=overwrite)
    written = [folder / f"compare{ending}" for ending in (".json", ".csv", ".png")]
    written += [file for plan in plans for file in run_files(plan.folder, plan.recipe)]
    read = [file for plan in plans for file in recipe_files(plan.recipe)]
    check_apart(written, [None if isinstance(recipe, Recipe) else recipe, *read], advice="name another folder (-o)")
    with Cache.opened(base.data.cache, show_progress=show_progress) as cache:
        ground = ValidationAreas(cache, force=force)
        check_alike(plans, ground)
        trials = []
        for number, plan in enumerate(plans, 1):
            if show_progress:
                done = ": finished already" if plan.finished and not overwrite else ""
                print(f"training {number} of {len(plans)}, {plan.folder}{done}", file=sys.stderr, flush=True)
            trials.append(_trial(plan, overwrite=overwrite, show_progress=show_progress))
        agreement = measure_agreement(folder, plans, ground, show_progress=show_progress)
    rows = [
        summarize_trials(variant, [trial for trial in trials if trial.variant == variant])
        for variant in variant_names(plans)
    ]
    result = Comparison(folder, tuple(rows), tuple(trials), agreement)
    write_comparison(result)
    return result


def _check_folder(plans: Sequence[TrialPlan], output: PathLike | None, *, overwrite: bool) -> Path:
    """Return the comparison's folder, and refuse one that holds runs of other recipes."""
    folder = plans[0].folder.parents[1]
    if output is not None or folder.exists():
        check_folder(folder, "comparison")
    for plan in plans:
        if plan.started and not overwrite and not plan.same:
            raise OutputExistsError(
                f"{plan.folder}: holds a run of another recipe; --overwrite trains it anew, -o names another folder"
            )
    return folder


def _trial(plan: TrialPlan, *, overwrite: bool, show_progress: bool) -> Trial:
    """Train what is not finished."""
    spent = plan.folder / SPENT
    if overwrite or not plan.finished:
        if plan.started and not plan.same:
            discard(plan.folder)  # a model of another recipe must not be taken for this one's
        plan.folder.parent.mkdir(parents=True, exist_ok=True)
        resume = not overwrite and plan.started and (plan.folder / LAST).is_file()
        with _clocked(spent, resume=resume):
            # What is wrong with the data was refused before any training.
            train(plan.recipe, plan.folder, resume=resume, overwrite=True, force=True, show_progress=show_progress)
    cost = json.loads(spent.read_text()) if spent.is_file() else {"seconds": None, "cpu_seconds": None}
    metrics = json.loads((plan.folder / METRICS).read_text())
    return Trial(plan.variant, plan.seed, plan.fold, plan.folder, metrics, **cost)


@contextmanager
def _clocked(file: Path, *, resume: bool) -> Iterator[None]:
    """Write what the block takes, and what it took before it was stopped; nothing where that is not known."""
    before = {"seconds": 0.0, "cpu_seconds": 0.0}
    if resume:
        before = json.loads(file.read_text()) if file.is_file() else {}
    file.unlink(missing_ok=True)  # who is killed leaves none
    clock, cpu = time.monotonic(), sum(os.times()[:4])
    try:
        yield
    finally:
        if before and file.parent.is_dir():
            took = {"seconds": time.monotonic() - clock, "cpu_seconds": sum(os.times()[:4]) - cpu}
            with staged(file) as part:
                part.write_text(json.dumps({key: before[key] + took[key] for key in took}))
