"""The learners of scikit-learn that fit classical learners: classes, default options, and which options there are."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from segkit.errors import RecipeError, first_line
from segkit.recipe.schema import Model

# Arguments that segkit sets or does not support.
_RESERVED = {
    "break_ties", "categorical_features", "class_weight", "coef0", "decision_function_shape", "degree",
    "interaction_cst", "kernel", "loss", "monotonic_cst", "n_jobs", "oob_score", "probability", "random_state",
    "scoring", "verbose", "warm_start",
}  # fmt: skip


@dataclass(frozen=True)
class Estimator:
    """A learner of scikit-learn.

    Parameters
    ----------
    make
        Return the class, which is imported late.
    defaults
        Its arguments where they differ from scikit-learn's.
    max_pixels
        Default of the option of this name.
    """

    make: Callable[[], Any]
    defaults: dict[str, Any]
    max_pixels: int


def check_options(model: Model) -> None:
    """Check names and values of the options of a classical learner.

    Raises
    ------
    RecipeError
        An option is not known, or scikit-learn does not accept its value.
    ModuleNotFoundError
        scikit-learn is not installed.
    """
    known = {"max_pixels"}
    if model.architecture in ESTIMATORS:
        known |= set(inspect.signature(ESTIMATORS[model.architecture].make()).parameters) - _RESERVED
    for name in model.options:
        if name not in known:
            listed = ", ".join(sorted(known))
            raise RecipeError(f"model.options.{name}: {model.architecture} has no such option; it has {listed}")
    limit = model.options.get("max_pixels", 1)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise RecipeError(f"model.options.max_pixels: found {limit!r}; must be a whole number of 1 or more")
    if model.architecture in ESTIMATORS:
        _check_values(model)


def _check_values(model: Model) -> None:
    """Let scikit-learn check the values of options, which it does before it looks at the pixels: there are none."""
    try:
        make_estimator(model, 0).fit(np.zeros((0, 1)), np.zeros(0))
    except ValueError as error:
        if isinstance(error, TypeError):  # as scikit-learn's InvalidParameterError; the other is about the pixels
            raise misfit(model, error) from error


def misfit(model: Model, error: Exception) -> RecipeError:
    """Return the error of a learner that scikit-learn cannot fit with the options of a recipe."""
    return RecipeError(f"model.options: {model.architecture} cannot be fitted: {first_line(error)}")


def make_estimator(model: Model, seed: int) -> Any:
    """Return the learner of scikit-learn that a recipe declares, unfitted."""
    estimator = ESTIMATORS[model.architecture]
    options = {key: value for key, value in model.options.items() if key != "max_pixels"}
    return estimator.make()(**estimator.defaults | {"random_state": seed} | options)


def _svm() -> Any:
    from sklearn.svm import SVC

    return SVC


def _forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier


def _boosting() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier


ESTIMATORS = {
    "svm": Estimator(_svm, {}, 10_000),
    "forest": Estimator(_forest, {"n_estimators": 300}, 100_000),
    "boosting": Estimator(_boosting, {"early_stopping": False}, 200_000),
}
