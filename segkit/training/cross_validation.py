"""Cross-validation: a recipe is trained once per fold, and each model is scored on the fold that it has not seen."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.areas import with_fold
from segkit.data.cache import Cache
from segkit.data.pairing import recipe_files
from segkit.errors import SegkitError, UsageError
from segkit.evaluation.bootstrap import score_intervals
from segkit.evaluation.metrics import Confusion
from segkit.evaluation.scene_scores import correlate_with_distance, describe_scene, find_worst_scenes
from segkit.io.files import atomic_write, check_distinct
from segkit.io.paths import PathLike
from segkit.models.run_folder import baseline_scores
from segkit.models.transfer import with_start
from segkit.recipe.features import full_name
from segkit.recipe.schema import Recipe
from segkit.runtime.tables import format_table
from segkit.task import Task
from segkit.training.agreement import ValidationAreas
from segkit.training.baselines import BASELINE_SCORES
from segkit.training.comparison import MEASURES, Measure, Trial
from segkit.training.resume import run_files
from segkit.training.train import check_names
from segkit.training.trials import check_trials, run_trial
from segkit.training.variants import TrialPlan

_MIN_FOLDS = 10  # for an interval of the scores of all folds together
_SUMMARIES: dict[str, Callable[[Measure], float | None]] = {
    "mean": lambda measure: measure.mean,
    "spread": lambda measure: measure.std,
    "worst": lambda measure: min(measure.values, default=None),
}


@dataclass(frozen=True)
class FoldScores:
    """Scores on the validation areas of one fold.

    Parameters
    ----------
    trial
        The training, with the scores of its model.
    baselines
        {learner: {score: value}} of learners of single pixels that were fitted to the same training areas.
    """

    trial: Trial
    baselines: Mapping[str, Mapping[str, float | None]]

    @property
    def scores(self) -> dict[str, float | None]:
        """Accuracy, mean IoU and F1 of the model, then those of each baseline ("lda_mean_iou")."""
        of_baselines = {
            f"{learner}_{key}": scores[key] for learner, scores in self.baselines.items() for key in BASELINE_SCORES
        }
        return {key: self.trial.metrics[key] for key in BASELINE_SCORES} | of_baselines


@dataclass(frozen=True)
class CrossValidation:
    """Result of a cross-validation.

    Parameters
    ----------
    folder
        Folder with folds.json, folds.csv and the runs.
    folds
        One per fold, in order.
    task
        Their task.
    """

    folder: Path
    folds: tuple[FoldScores, ...]
    task: Task

    @property
    def pooled(self) -> dict[str, Any]:
        """The scores of the validation pixels of all folds together, as in ``metrics.json``.

        With ten folds or more, ``intervals`` has 95 % intervals of a bootstrap of folds: of all groups of points, for
        instance, if each fold is one of them.
        """
        matrices = [fold.trial.metrics["confusion"]["matrix"] for fold in self.folds]
        counts = np.array(matrices, dtype=np.int64).reshape(
            len(self.folds), self.task.n_targets, *[len(self.task.categories)] * 2
        )
        total = Confusion(self.task)
        total.counts += counts.sum(axis=0)
        scores = total.summary()
        del scores["ece"]  # needs more than counts
        intervals = score_intervals(self.task, counts) if len(counts) >= _MIN_FOLDS else None
        return scores | {"intervals": intervals}

    @property
    def measures(self) -> dict[str, Measure]:
        """Each of `FoldScores.scores` over the folds in which it is defined."""
        return {key: Measure.from_values(fold.scores[key] for fold in self.folds) for key in self.folds[0].scores}

    @property
    def scenes(self) -> list[dict[str, Any]]:
        """The scores of each scene that a fold validates, as ``scenes`` of its metrics, and the fold."""
        return [one | {"fold": fold.trial.fold} for fold in self.folds for one in fold.trial.metrics.get("scenes", ())]

    @property
    def rows(self) -> Iterator[tuple[str, list[float | None]]]:
        """The rows of the table: each fold, then mean, spread (standard deviation) and the lowest score."""
        for fold in self.folds:
            yield str(fold.trial.fold), list(fold.scores.values())
        for name, summarize in _SUMMARIES.items():
            yield name, [summarize(measure) for measure in self.measures.values()]

    def render(self) -> str:
        """Return the table as text."""
        learners = list(self.folds[0].baselines)
        starts = ["", *(f"{learner} " for learner in learners)]
        titles = [f"{start}{MEASURES[key]}" for start in starts for key in BASELINE_SCORES]
        rows = [(name, *("-" if value is None else f"{value:.4f}" for value in row)) for name, row in self.rows]
        lines = [format_table(("fold", *titles), rows), self._describe_pooled()]
        lines += [f"{learner}: {full_name(learner)} of single pixels, for comparison" for learner in learners]
        scenes = self.scenes
        lines += [
            f"worst of {len(scenes)} scenes: {describe_scene(worst)}, fold {worst['fold']}"
            for worst in find_worst_scenes(scenes, 1)
        ]
        if correlation := correlate_with_distance(scenes, "overall_accuracy"):
            lines.append(
                f"rank correlation of accuracy and distance: {correlation.value:.2f} ({correlation.scenes} scenes)"
            )
        return "\n".join(lines)

    def _describe_pooled(self) -> str:
        pooled = self.pooled
        texts = []
        for key in BASELINE_SCORES:
            value, interval = pooled[key], (pooled["intervals"] or {}).get(key)
            around = "" if interval is None else f" ({interval[0]:.4f} to {interval[1]:.4f})"
            texts.append(f"{MEASURES[key]} {'-' if value is None else f'{value:.4f}'}{around}")
        note = "" if pooled["intervals"] is None else "; 95 % intervals of a bootstrap of folds"
        return f"all folds together: {', '.join(texts)}, {pooled['pixels']:,} pixels{note}"


def cross_validate(
    recipe: Recipe | PathLike,
    output: PathLike | None = None,
    *,
    folds: int = 5,
    overrides: Sequence[str] = (),
    start_from: PathLike | None = None,
    resume: bool = False,
    force: bool = False,
    overwrite: bool = False,
    show_progress: bool = False,
) -> CrossValidation:
    """Train a model for each of n folds, and score it on the fold that it was not trained on.

    Finished folds in the folder are not trained again, and an interrupted one is resumed. `segkit.predict` takes the
    folder as an ensemble of all models.

    Parameters
    ----------
    recipe
        A recipe or its file. The units of the folds are those of `data.val`, see `with_fold`.
    output
        Folder of the result and of the runs fold0of5, fold1of5, ...; by default ``runs/NAME-folds5``.
    folds
        Number of folds, at least 2.
    overrides
        For a recipe file: ``"train.epochs=3"`` and so on.
    start_from
        Model file whose weights each training starts from, see `with_start`.
    resume
        Continue also runs with another number of epochs, or other values of what `segkit.train` may change.
    force
        Train in spite of the problems that `segkit.check` reports.
    overwrite
        Repeat finished trainings.
    show_progress
        Show the progress of each training on stderr.

    Raises
    ------
    UsageError, DataError
        A fold cannot be trained; nothing was trained.
    """
    base = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe, overrides)
    if start_from is not None:
        base = with_start(base, start_from)
    plans = _plan_folds(base, Path(f"runs/{base.name}-folds{folds}" if output is None else output), folds)
    folder = plans[0].folder.parent
    check_trials(folder, plans, "run", is_default=output is None, overwrite=overwrite, resume=resume)
    written = [folder / "folds.json", folder / "folds.csv"]
    written += [file for plan in plans for file in run_files(plan.folder, plan.recipe)]
    read = [None if isinstance(recipe, Recipe) else recipe, *recipe_files(base)]
    check_distinct(written, read, advice="name another folder (-o)")
    check_names(base)
    with Cache.open(base.data.cache, show_progress=show_progress) as cache:
        areas = ValidationAreas(cache, force=force)
        for plan in plans:
            try:
                areas.open(plan.recipe)
            except SegkitError as error:
                raise type(error)(f"fold {plan.fold}: {error}") from error
        found = []
        for plan in plans:
            if show_progress:
                done = ": already finished" if plan.finished and not overwrite else ""
                print(f"fold {plan.fold}, {plan.folder}{done}", file=sys.stderr, flush=True)
            trial = run_trial(plan, overwrite=overwrite, show_progress=show_progress)
            scores = baseline_scores(trial.metrics)
            unknown = dict.fromkeys(BASELINE_SCORES)
            found.append(FoldScores(trial, {name: scores.get(name, unknown) for name in base.train.baselines}))
    result = CrossValidation(folder, tuple(found), base.task)
    _write(result)
    return result


def _plan_folds(base: Recipe, folder: Path, folds: int) -> list[TrialPlan]:
    if folds < 2:
        raise UsageError(f"folds is {folds}; a cross-validation has 2 or more")
    if base.train.devices != 1 or base.train.num_nodes != 1:
        raise UsageError(
            "all folds in one call are trained on one device; set train.devices and train.num_nodes to 1, or train "
            f"each fold with a call of its own (fold 0/{folds} and so on)"
        )
    return [
        TrialPlan(base.name, base.train.seed, fold, with_fold(base, fold), folder / f"fold{fold.replace('/', 'of')}")
        for fold in (f"{number}/{folds}" for number in range(folds))
    ]


def _write(result: CrossValidation) -> None:
    """Write folds.csv and, last, folds.json."""
    with atomic_write(result.folder / "folds.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["fold", *result.measures])
        for name, row in result.rows:
            writer.writerow([name, *("" if value is None else repr(value) for value in row)])
    folds = [
        {"fold": one.trial.fold, "folder": one.trial.folder.name, "seconds": one.trial.seconds, **one.scores}
        for one in result.folds
    ]
    summary = {
        key: {name: summarize(measure) for name, summarize in _SUMMARIES.items()}
        for key, measure in result.measures.items()
    }
    worst = next(iter(find_worst_scenes(result.scenes, 1)), None)
    stored = {
        "folds": folds,
        "summary": summary,
        "pooled": result.pooled,
        "worst_scene": worst,
        "scenes": result.scenes,
    }
    with atomic_write(result.folder / "folds.json") as part:
        part.write_text(json.dumps(stored, indent=2), encoding="utf-8")
