"""Folds of the labels of a recipe, and for each a model that has not seen its labels."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segkit.data.area import LabelledArea
from segkit.data.areas import open_labelled_samples, with_fold
from segkit.data.cache import Cache
from segkit.data.examination import Examination, count_scenes, examine
from segkit.data.pairing import Sample
from segkit.data.split import SceneCounts, group_overlapping, resolve_split
from segkit.errors import DataError, UsageError, suggest
from segkit.evaluation.decisions import ModelPredictor
from segkit.models.run_folder import MODEL, RECIPE, find_folds, read_metrics
from segkit.models.segmenter import Segmenter, load
from segkit.recipe.schema import Recipe
from segkit.recipe.sources import DatasetSource
from segkit.recipe.splits import SpatialSplit
from segkit.training.classical import fit_learners
from segkit.training.train import check_names
from segkit.training.trials import check_trials, run_trial
from segkit.training.variants import TrialPlan

# What `model` is for a quick learner. Leaves of several pixels, so that a wrong label is outvoted by its neighbours.
_TEXTURE = {"features": {"texture": [3, 7]}}
_MODELS: dict[str, dict[str, Any]] = {
    "lda": {"architecture": "lda", **_TEXTURE},
    "forest": {
        "architecture": "forest",
        "options": {"n_estimators": 100, "min_samples_leaf": 10, "max_pixels": 30_000},
        **_TEXTURE,
    },
}
LEARNERS = (*_MODELS, "network")
# What a training must not choose by the labels that are to be predicted.
_WITHOUT_CHOICE: dict[str, Any] = {
    "checkpoint": "last", "early_stopping": None, "calibrate": False, "fit_thresholds": False, "baselines": [],
}  # fmt: skip


@dataclass(frozen=True)
class Fold:
    """A part of the labels, and how its model is made.

    Parameters
    ----------
    recipe
        Validates on the part.
    validation
        Samples of `data.val`, if that is a source; else the part is one of the training samples.
    model
        The model file of a finished training.
    plan
        A training that makes the model. Without a model and a plan, a quick learner is fitted.
    """

    name: str
    recipe: Recipe
    validation: tuple[Sample, ...] = ()
    model: Path | None = None
    plan: TrialPlan | None = None


@dataclass(frozen=True)
class FoldPrediction:
    """The model of a fold, and the areas that it did not see.

    Parameters
    ----------
    examination
        Of the fold: its areas, and what was counted in those that train.
    """

    predictor: ModelPredictor
    examination: Examination

    @property
    def areas(self) -> Sequence[LabelledArea]:
        """The areas to predict."""
        return self.examination.validation


class Folds:
    """The folds of a recipe's labels.

    Parameters
    ----------
    samples
        The labelled scenes of `data.train`.
    others
        Those of `data.val`, if that is a source: a model of all training scenes predicts them.
    overwrite
        Repeat finished trainings.
    """

    def __init__(
        self,
        folds: Sequence[Fold],
        samples: Sequence[Sample],
        others: Sequence[Sample] = (),
        *,
        overwrite: bool = False,
    ) -> None:
        self._folds, self.samples, self.others, self._overwrite = folds, samples, others, overwrite
        self._counts: list[SceneCounts | None] | None = None

    def describe(self) -> str:
        """Return how many folds there are of what: "5 folds of blocks"."""
        rule = self._folds[0].recipe.data.val
        assert isinstance(rule, SpatialSplit)
        number = len(self._folds) - bool(self.others)
        return f"{number} folds of {rule.by}s" + (" of data.train, and data.val" if self.others else "")

    def predictions(self, *, show_progress: bool) -> Iterator[FoldPrediction]:
        """Yield the model of each fold; it was not fitted to a label of its areas, nor within the gap around them.

        Raises
        ------
        DataError
            A fold cannot be trained, or the labels have changed since its model was trained.
        """
        for fold in self._folds:
            found = self._examine(fold, show_progress=show_progress)
            segmenter = self._make_model(fold, found, show_progress=show_progress)
            yield FoldPrediction(ModelPredictor(segmenter), found)

    def _make_model(self, fold: Fold, found: Examination, *, show_progress: bool) -> Segmenter:
        if fold.model is not None:
            _check_same_labels(fold.model.parent, found, "train the folds again, or leave out --run")
            return load(fold.model)
        if show_progress:
            print(f"{fold.name}: training {fold.recipe.model.architecture}", file=sys.stderr, flush=True)
        if fold.plan is None:
            return _fit(fold.recipe, found)
        run_trial(fold.plan, overwrite=self._overwrite, show_progress=show_progress)
        _check_same_labels(fold.plan.folder, found, "train it again (--overwrite)")
        return load(fold.plan.folder / MODEL)

    def _examine(self, fold: Fold, *, show_progress: bool) -> Examination:
        if fold.validation:
            found = examine(fold.recipe, self.samples, fold.validation)
        else:
            if self._counts is None:  # the same for all folds
                resolved = resolve_split(fold.recipe, self.samples)
                self._counts, _ = count_scenes(self.samples, resolved, show_progress=show_progress, fail_fast=True)
            found = examine(fold.recipe, self.samples, scene_counts=self._counts)
        found.require_trainable(force=fold.model is not None)
        return found


def open_folds(
    recipe: Recipe,
    folder: Path,
    *,
    folds: int,
    learner: str,
    run: Path | None,
    cache: Cache | None,
    overwrite: bool,
    show_progress: bool,
) -> Folds:
    """Open the labelled scenes of a recipe, and plan its folds.

    The units of the folds are those of `data.val` if it is a spatial split that draws them; else whole scenes, or
    blocks of them if there are fewer scenes than folds.

    Parameters
    ----------
    folder
        For the trainings of networks.
    run
        The folder of a cross-validation, whose models are used.

    Raises
    ------
    UsageError
        The recipe has no network, or `run` is not a complete cross-validation of it.
    """
    data = recipe.data
    samples = open_labelled_samples(
        data.train, data, recipe.task, "data.train", cache=cache, show_progress=show_progress
    )
    if run is not None:
        return Folds(_read_run(recipe, run), samples)
    others: list[Sample] = []
    if isinstance(data.val, DatasetSource):
        others = open_labelled_samples(
            data.val, data, recipe.task, "data.val", cache=cache, show_progress=show_progress
        )
    based = _with_learner(recipe, learner)
    split = _with_units(based, samples, folds)
    planned = [Fold(f"fold {number}/{folds}", with_fold(split, f"{number}/{folds}")) for number in range(folds)]
    planned += [Fold("data.val", based, tuple(others))] if others else []
    check_names(planned[0].recipe)
    if learner == "network":
        planned = _plan_trainings(planned, folder, overwrite=overwrite)
    return Folds(planned, samples, others, overwrite=overwrite)


def _with_learner(recipe: Recipe, learner: str) -> Recipe:
    """Return the recipe with a quick learner, or with a network that chooses nothing by its validation labels."""
    raw = recipe.to_dict()
    if learner == "network":
        if recipe.model.is_classical:
            raise UsageError(
                f"model.architecture is {recipe.model.architecture}, which is no network"
                + suggest("choose a quick learner (--learner forest)", "audit with its own folds (--run)")
            )
        raw["train"] |= _WITHOUT_CHOICE
    else:
        raw["model"] = _MODELS[learner]
        # Weights would make rare classes more probable than they are, and be counted as label errors.
        raw["train"] |= {"class_weights": None, "baselines": []}
    return Recipe.from_dict(raw)


def _with_units(recipe: Recipe, samples: Sequence[Sample], folds: int) -> Recipe:
    """Return the recipe with a spatial split, without its fold, that `with_fold` can divide."""
    raw, rule = recipe.to_dict(), recipe.data.val
    if isinstance(rule, SpatialSplit) and rule.values is None:
        raw["data"]["val"]["fold"] = None
    else:
        groups = group_overlapping([sample.scene.grid for sample in samples])
        raw["data"]["val"] = {"by": "scene" if len(groups) >= folds else "block"}
    return Recipe.from_dict(raw)


def _fit(recipe: Recipe, found: Examination) -> Segmenter:
    statistics = found.require_trainable(force=False)
    names = found.training[0].sample.scene.band_names
    segmenter = Segmenter(recipe, statistics.mean, statistics.std, names).eval()
    fit_learners(segmenter, found.training, statistics.counts, None)
    return segmenter


def _plan_trainings(folds: Sequence[Fold], folder: Path, *, overwrite: bool) -> list[Fold]:
    """Plan a training for each fold in a folder of its own; finished ones are kept."""
    plans = [
        TrialPlan(
            fold.recipe.name, fold.recipe.train.seed, None, fold.recipe,
            folder / fold.name.replace(" ", "").replace("/", "of"),
        )
        for fold in folds
    ]  # fmt: skip
    check_trials(folder, plans, "trainings", is_default=True, overwrite=overwrite)
    return [replace(fold, plan=plan) for fold, plan in zip(folds, plans, strict=True)]


def _read_run(recipe: Recipe, run: Path) -> list[Fold]:
    """Return the folds of a cross-validation."""
    found = find_folds(run)
    number = max((total for _, total in found), default=0)
    missing = [index for index in range(number) if not (found.get((index, number), run) / MODEL).is_file()]
    if not number or missing:
        what = f"fold {missing[0]} of {number} is not finished" if number else "it has no folds"
        raise UsageError(f"{run} is not a finished cross-validation: {what}; train it: segkit train RECIPE --folds 5")
    folds = []
    for index in range(number):
        folder = found[index, number]
        stored = Recipe.load(folder / RECIPE)
        for key, one, other in (
            ("task.classes", stored.task.legend, recipe.task.legend),
            ("data.train", stored.data.train, recipe.data.train),
            ("data.bands", stored.data.bands, recipe.data.bands),
            ("data.ignore", stored.data.ignore, recipe.data.ignore),
        ):
            if one != other:
                raise UsageError(f"{folder} was trained with another {key} than the recipe has; give its own recipe")
        folds.append(Fold(f"fold {index}/{number}", stored, model=folder / MODEL))
    return folds


def _check_same_labels(run: Path, found: Examination, advice: str) -> None:
    """Raise a DataError if a fold has other labels than when its model was scored: it may have seen those of its part.

    Folds are drawn by the labels, so with other labels another part would be predicted.
    """
    assert found.validation_counts is not None
    matrix = read_metrics(run).get("confusion", {}).get("matrix", [])
    if matrix and _row_sums(matrix) != found.validation_counts.ravel().tolist():
        raise DataError(
            f"{run}: the labels have changed since this fold was trained, so its model may have seen some of those "
            f"that it would check; {advice}"
        )


def _row_sums(matrix: list[Any]) -> list[int]:
    """Return the true pixels of each category of each target, from a confusion matrix or a list of them."""
    return (
        [sum(row) for row in matrix] if isinstance(matrix[0][0], int) else [n for one in matrix for n in _row_sums(one)]
    )
