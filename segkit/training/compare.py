"""Compare variants of a recipe, each trained with several seeds or folds."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segkit.data.cache import Cache
from segkit.data.pairing import recipe_files
from segkit.io.files import check_distinct
from segkit.io.paths import PathLike
from segkit.recipe.schema import Recipe
from segkit.training.agreement import ValidationAreas, check_comparable, measure_agreement
from segkit.training.comparison import Comparison
from segkit.training.comparison_output import summarize_trials, write_comparison
from segkit.training.resume import run_files
from segkit.training.trials import check_trials, run_trial
from segkit.training.variants import plan_trials, variant_names


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
    """Train variants of a recipe and compare their scores, training times and decisions.

    Every combination of a head and one value of each varied key is a variant. Each variant is trained with every seed
    in every fold, one after the other. Variants alternate, so that other load on the machine affects all of them.
    Finished trainings in the folder are not repeated, and interrupted ones are resumed.

    Parameters
    ----------
    recipe
        A recipe or its file.
    output
        Folder of the result and of one run per training; by default ``runs/NAME-compare``.
    heads
        "softmax", "sigmoid"; by default the recipe's.
    vary
        {key of the recipe: its values}, for example ``{"model.encoder": ["resnet18", "resnet34"]}``.
    seeds
        Values of `train.seed`.
    folds
        "0/3", "1/3", ...: see `segkit.data.areas.with_fold`; by default `data.val` is as in the recipe.
    overrides
        For a recipe file: ``"train.epochs=3"`` and so on.
    force
        Train in spite of the problems that `segkit.check` reports.
    overwrite
        Repeat finished trainings.
    show_progress
        Show the progress of each training on stderr.

    Returns
    -------
    Means and standard deviations by variant, all trials, and the agreement of variants.

    Raises
    ------
    UsageError, DataError
        A variant is not valid, or its validation pixels are not those of the others; nothing was trained.
    """
    base = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe, overrides)
    plans = plan_trials(
        base, Path(f"runs/{base.name}-compare" if output is None else output), heads, vary or {}, seeds, folds
    )
    folder = plans[0].folder.parents[1]
    check_trials(folder, plans, "comparison", is_default=output is None, overwrite=overwrite)
    written = [folder / f"compare{ending}" for ending in (".json", ".csv", ".png")]
    written += [file for plan in plans for file in run_files(plan.folder, plan.recipe)]
    read = [file for plan in plans for file in recipe_files(plan.recipe)]
    check_distinct(written, [None if isinstance(recipe, Recipe) else recipe, *read], advice="name another folder (-o)")
    with Cache.open(base.data.cache, show_progress=show_progress) as cache:
        areas = ValidationAreas(cache, force=force)
        check_comparable(plans, areas)
        trials = []
        for number, plan in enumerate(plans, 1):
            if show_progress:
                done = ": already finished" if plan.finished and not overwrite else ""
                print(f"training {number} of {len(plans)}, {plan.folder}{done}", file=sys.stderr, flush=True)
            trials.append(run_trial(plan, overwrite=overwrite, show_progress=show_progress))
        agreement = measure_agreement(folder, plans, areas, show_progress=show_progress)
    rows = [
        summarize_trials(variant, [trial for trial in trials if trial.variant == variant])
        for variant in variant_names(plans)
    ]
    result = Comparison(folder, tuple(rows), tuple(trials), agreement)
    write_comparison(result)
    return result
