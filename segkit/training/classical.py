"""Fit classical learners to labelled pixels: linear discriminant, and learners of scikit-learn, stored as arrays."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from segkit.data.area import LabelledArea
from segkit.errors import DataError, UsageError, first_line
from segkit.models.classical.classifier import PixelClassifier
from segkit.models.classical.estimators import ESTIMATORS, make_estimator, misfit
from segkit.models.classical.learner import ABSENT
from segkit.models.classical.trees import Boosting
from segkit.models.training_pixels import evenly_spaced
from segkit.recipe.schema import Recipe
from segkit.training.discriminant import MAX_PIXELS, LinearDiscriminant
from segkit.training.pixels import PixelSample, draw_samples

if TYPE_CHECKING:
    from segkit.models.segmenter import Segmenter

_Arrays = dict[str, NDArray[Any]]
_CV_FOLDS, _MAX_CV_PIXELS = 3, 5000  # of the cross-validation of support vector machines
_MAX_COMPARED_PIXELS = 1000  # whose scores by gradient boosting are compared with scikit-learn's


def describe_fit(recipe: Recipe, used: Sequence[int], labelled: Sequence[int]) -> str:
    """Return a line that says to how many pixels a learner was fitted; `used` and `labelled` are per target."""
    name = recipe.model.architecture
    if len(used) == 1:
        sampled = "" if used[0] >= labelled[0] else f", a sample of the {labelled[0]:,} labelled ones"
        return f"{name}: fitted to {used[0]:,} pixels{sampled} (model.options.max_pixels sets the maximum)"
    parts = ", ".join(
        f"{one.name} {number:,} of {total:,}"
        for one, number, total in zip(recipe.task.classes, used, labelled, strict=True)
    )
    return f"{name}: fitted to labelled pixels of each class: {parts} (model.options.max_pixels sets the maximum)"


def fit_learners(
    segmenter: Segmenter,
    training: Sequence[LabelledArea],
    counts: NDArray[np.int64],
    class_weights: Sequence[float] | None,
) -> tuple[list[int], list[int]]:
    """Fit the classical learner of a segmenter, one for each target.

    Parameters
    ----------
    segmenter
        Changed.
    training
        The training areas.
    counts
        int64 (T, K): labelled pixels of each category of each target.
    class_weights
        One per channel; None: all 1.

    Returns
    -------
    used, labelled
        For each target, the number of pixels that the learner was fitted to, and that of all labelled ones.

    Raises
    ------
    DataError
        A target has no pixel with data in all bands, or all have the same category.
    UsageError
        The learner does not accept its options, or this version of scikit-learn stores it in an unknown way.
    """
    classifier, model, seed = segmenter.network, segmenter.recipe.model, segmenter.recipe.train.seed
    assert isinstance(classifier, PixelClassifier)
    labelled = counts.sum(axis=1).tolist()
    if model.architecture == "lda":
        limit = int(model.options.get("max_pixels", MAX_PIXELS))
        fitted = LinearDiscriminant.fit(
            training, segmenter.task, segmenter, max_pixels=limit, class_weights=class_weights
        )
        for target, learner in enumerate(classifier.learners):
            if not fitted.pixels[target]:
                raise DataError(_describe_missing(segmenter, target, []))
            biases = fitted.biases[target]
            learner.set_arrays(weight=fitted.weights[target], bias=np.where(np.isfinite(biases), biases, ABSENT))
        return fitted.pixels, labelled
    limit = int(model.options.get("max_pixels", ESTIMATORS[model.architecture].max_pixels))
    samples = draw_samples(training, segmenter, counts, limit, seed, class_weights)
    for target, (learner, sample) in enumerate(zip(classifier.learners, samples, strict=True)):
        found = np.unique(sample.categories).tolist()
        if len(found) < 2:
            raise DataError(_describe_missing(segmenter, target, found))
        try:
            arrays = fit_arrays(make_estimator(model, seed), sample, len(segmenter.task.categories))
        except UsageError:
            raise
        except (ValueError, TypeError) as error:  # scikit-learn checks its arguments when it fits
            raise misfit(model, error) from error
        learner.set_arrays(**arrays)
    return [len(sample.features) for sample in samples], labelled


def fit_arrays(estimator: Any, sample: PixelSample, categories: int) -> dict[str, NDArray[Any]]:
    """Fit a learner of scikit-learn, and return the arrays of the `Learner` that decides alike."""
    (name,) = (name for name, one in ESTIMATORS.items() if isinstance(estimator, one.make()))
    return _FITTERS[name](estimator, sample, categories)


def _describe_missing(segmenter: Segmenter, target: int, found: Sequence[int]) -> str:
    """Say why a target cannot be learned of whose categories only `found` have pixels."""
    task, name = segmenter.task, segmenter.recipe.model.architecture
    of_class = f" for class {task.classes[target].name}" if task.n_targets > 1 else ""
    if not found:
        return f"{name} cannot be fitted{of_class}: no labelled training pixel has data in all bands; see segkit check"
    return f"{name} cannot be fitted{of_class}: all training pixels are {task.categories[found[0]]}; label others"


def _scatter(values: NDArray[Any], categories: NDArray[Any], size: int, fill: float) -> NDArray[Any]:
    """Return an array with `size` entries along the first axis, those of the given categories set."""
    full = np.full((size, *values.shape[1:]), fill)
    full[categories] = values
    return full


def _standardization(features: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of each feature, float64 (F); 1 for constant ones."""
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    return mean, np.where(std > np.finfo(np.float32).eps * np.abs(mean), std, 1.0)


def _fit_svm(estimator: Any, sample: PixelSample, categories: int) -> _Arrays:
    """Fit machines for all pairs of classes on standardised features."""
    shift, scale = _standardization(sample.features)
    pixels = ((sample.features - shift) / scale).astype(np.float32)
    declared, gamma = estimator.gamma, _resolve_gamma(estimator.gamma, pixels)
    estimator.set_params(gamma=gamma).fit(pixels, sample.categories, sample_weight=sample.weights)
    estimator.set_params(gamma=declared)
    classes, ends = estimator.classes_, np.concatenate([[0], np.cumsum(estimator.n_support_)])
    pairs = list(itertools.combinations(range(len(classes)), 2))
    coefficients = np.zeros((len(pairs), ends[-1]))
    for row, (one, other) in zip(coefficients, pairs, strict=True):
        # libsvm has one row less than classes: the machine of (i, j) uses row j - 1 for the vectors of class i, and row
        # i for those of class j.
        for own, used in ((one, other - 1), (other, one)):
            vectors = slice(ends[own], ends[own + 1])
            row[vectors] = estimator.dual_coef_[used, vectors]
    # Of two classes, scikit-learn counts decision values for the second.
    sign = -1.0 if len(classes) == 2 else 1.0
    return {
        "shift": shift,
        "scale": scale,
        "vectors": estimator.support_vectors_,
        "gamma": np.array([gamma]),
        "pairs": classes[np.array(pairs)],
        "coefficients": sign * coefficients,
        "intercepts": sign * estimator.intercept_,
        "slopes": _fit_slopes(estimator, pixels, sample),
    }


def _resolve_gamma(declared: str | float, pixels: NDArray[np.float32]) -> float:
    """Return gamma as a number: "scale" is 1 / (F x variance of all features), "auto" 1 / F, as in scikit-learn."""
    if not isinstance(declared, str):
        return float(declared)
    variance = pixels.astype(np.float64).var() if declared == "scale" else 1.0
    return 1.0 / (pixels.shape[1] * variance) if variance else 1.0


def _fit_slopes(estimator: Any, pixels: NDArray[np.float32], sample: PixelSample) -> NDArray[np.float64]:
    """Return the slope of the logit of each pair given its decision value, float64 (P).

    Decision values of the pixels that a machine was fitted to are too far from 0 (Platt 1999), so slopes are fitted by
    cross-validation of a part of the sample. The folds are thirds of the pixels of each class in the order of scenes
    and rows, so that most neighbours are in the same fold. A pair of which a fold lacks one side has slope 1.
    """
    from sklearn.base import clone

    order = np.argsort(sample.categories, kind="stable")
    chosen = np.sort(order[evenly_spaced(len(order), _MAX_CV_PIXELS)])
    pixels, truth = pixels[chosen], sample.categories[chosen]
    weights = np.ones(len(truth)) if sample.weights is None else sample.weights[chosen]
    fold = np.zeros(len(truth), dtype=int)
    for category in np.unique(truth):
        places = np.flatnonzero(truth == category)
        fold[places] = np.arange(len(places)) * _CV_FOLDS // len(places)
    pairs = list(itertools.combinations(np.unique(sample.categories).tolist(), 2))
    values = np.full((len(truth), len(pairs)), np.nan)
    for number in range(_CV_FOLDS):
        fitted, tested = fold != number, fold == number
        found = np.unique(truth[fitted]).tolist()
        if len(found) < 2 or not tested.any():
            continue
        machine = clone(estimator).set_params(decision_function_shape="ovo")
        machine.fit(pixels[fitted], truth[fitted], sample_weight=weights[fitted])
        decided = machine.decision_function(pixels[tested])
        decided = -decided[:, None] if len(found) == 2 else decided
        for column, pair in zip(decided.T, itertools.combinations(found, 2), strict=True):
            values[tested, pairs.index(pair)] = column
    slopes = np.ones(len(pairs))
    for column, (one, other) in enumerate(pairs):
        used = np.isin(truth, (one, other)) & np.isfinite(values[:, column])
        is_first = truth[used] == one
        if is_first.any() and not is_first.all():
            slopes[column] = _fit_slope(values[used, column], is_first, weights[used])
    return slopes


def _fit_slope(values: NDArray[np.float64], is_first: NDArray[np.bool_], weights: NDArray[np.float64]) -> float:
    """Return the slope of the logit of "first" given a decision value, by Platt's soft targets.

    There is no offset, so that the probability is over one half where the machine decides for the first class.
    """
    from scipy.optimize import minimize_scalar

    ones, zeros = int(is_first.sum()), int((~is_first).sum())
    target = np.where(is_first, (ones + 1) / (ones + 2), 1 / (zeros + 2))

    def loss(logarithm: float) -> float:
        logits = np.exp(logarithm) * values
        return float(weights @ (np.logaddexp(0, logits) - target * logits))

    return float(np.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded").x))


def _fit_forest(estimator: Any, sample: PixelSample, categories: int) -> _Arrays:
    estimator.set_params(n_jobs=-1).fit(sample.features, sample.categories, sample_weight=sample.weights)
    builder = _TreeArrays()
    for each in estimator.estimators_:
        tree = each.tree_
        # scikit-learn compares float32 pixels with float64 thresholds: the next lower float32 decides alike.
        shares = tree.value[:, 0] / tree.value[:, 0].sum(axis=1, keepdims=True)
        leaves = _scatter(shares.T, estimator.classes_, categories, 0.0).T
        builder.add(tree.feature, tree.threshold, tree.children_left, tree.children_right, leaves)
    return builder.arrays(np.zeros(categories))


def _fit_boosting(estimator: Any, sample: PixelSample, categories: int) -> _Arrays:
    estimator.fit(sample.features, sample.categories, sample_weight=sample.weights)
    try:
        arrays = _read_boosting(estimator, categories)
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise _unreadable_boosting(first_line(error)) from error
    _compare_boosting(estimator, arrays, sample.features, categories)
    return arrays


def _read_boosting(estimator: Any, categories: int) -> _Arrays:
    """Return the arrays of fitted trees, which scikit-learn holds in private attributes: it has no public way."""
    classes, builder = estimator.classes_, _TreeArrays()
    # Of two classes, there is one tree per iteration, for the log odds of the second.
    columns = classes if len(classes) > 2 else classes[1:]
    for iteration in estimator._predictors:
        for category, predictor in zip(columns, iteration, strict=True):
            nodes = predictor.nodes
            leaf, values = nodes["is_leaf"].astype(bool), np.zeros((len(nodes), categories))
            values[:, category] = nodes["value"]
            low = np.where(leaf, -1, nodes["left"].astype(np.int64))
            high = np.where(leaf, -1, nodes["right"].astype(np.int64))
            builder.add(nodes["feature_idx"].astype(np.int64), nodes["num_threshold"], low, high, values)
    base = np.full(categories, ABSENT)
    base[classes] = 0.0
    base[columns] = np.ravel(estimator._baseline_prediction)
    return builder.arrays(base)


def _compare_boosting(estimator: Any, arrays: _Arrays, features: NDArray[np.float32], categories: int) -> None:
    """Raise a UsageError if arrays do not give scikit-learn's scores: another version may hold its trees otherwise."""
    chosen = features[evenly_spaced(len(features), _MAX_COMPARED_PIXELS)]
    learner = Boosting(features.shape[1], categories)
    learner.set_arrays(**arrays)
    classes, expected = estimator.classes_, estimator.decision_function(chosen)
    columns = classes if len(classes) > 2 else classes[1:]
    with torch.inference_mode():
        found = learner(torch.from_numpy(np.ascontiguousarray(chosen))).numpy()[:, columns]
    if not np.allclose(found, expected.reshape(found.shape), rtol=1e-3, atol=1e-3):
        raise _unreadable_boosting("its trees give other scores")


def _unreadable_boosting(problem: str) -> UsageError:
    from sklearn import __version__

    return UsageError(
        f"model.architecture: segkit cannot read boosting as scikit-learn {__version__} stores it ({problem}); install "
        "an earlier scikit-learn, or use forest"
    )


class _TreeArrays:
    """Collects the inner nodes of trees, and their leaves, of which equal ones become one."""

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
        self._roots: list[int] = []
        self._leaves: list[NDArray[np.float64]] = []
        self._nodes = self._number = 0

    def add(
        self, feature: NDArray[Any], threshold: NDArray[Any], low: NDArray[Any], high: NDArray[Any], leaf: NDArray[Any]
    ) -> None:
        """Add a tree, root first; `low` and `high` are -1 in leaves, whose values `leaf` (nodes, K) holds."""
        inner = low >= 0
        numbers = np.where(
            inner, self._nodes + np.cumsum(inner) - 1, -1 - (self._number + np.cumsum(~inner) - 1)
        )  # places in the arrays of all trees
        below = threshold[inner].astype(np.float32)
        below = np.where(below > threshold[inner], np.nextafter(below, np.float32(-np.inf)), below)
        children = np.stack([numbers[low[inner]], numbers[high[inner]]], axis=1)
        self._parts.append((feature[inner], below, children))
        self._roots.append(int(numbers[0]))
        self._leaves.append(leaf[~inner].astype(np.float32))
        self._nodes, self._number = self._nodes + int(inner.sum()), self._number + int((~inner).sum())

    def arrays(self, base: NDArray[np.float64]) -> _Arrays:
        """Return the arrays of `Trees`."""
        feature, threshold, children = (np.concatenate(each) for each in zip(*self._parts, strict=True))
        values, places = np.unique(np.concatenate(self._leaves), axis=0, return_inverse=True)
        places = -1 - places.reshape(-1)
        roots = np.array(self._roots)
        for numbers in (children, roots):
            leaf = numbers < 0
            numbers[leaf] = places[-1 - numbers[leaf]]
        return {
            "feature": feature,
            "threshold": threshold,
            "below": children.reshape(-1, 2),
            "roots": roots,
            "values": values,
            "base": base,
        }


_FITTERS: dict[str, Callable[[Any, PixelSample, int], _Arrays]] = {
    "svm": _fit_svm,
    "forest": _fit_forest,
    "boosting": _fit_boosting,
}
