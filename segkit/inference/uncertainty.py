"""Measures of uncertainty of a prediction, from the probabilities of a pixel: 0 is certain, 1 as uncertain as possible.

If classes overlap, each class is a decision of its own, and the measure of a pixel is the largest of its classes: a
mean would hide one uncertain class among many that are certainly absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from segkit.errors import UsageError
from segkit.task import Task
from segkit.task.array_library import A, concatenate, library_of

DISAGREEMENT = "disagreement"
_CHUNK_PIXELS = 2**18  # computed at a time, which limits the memory of intermediate results


@dataclass(frozen=True)
class UncertaintyMeasure:
    """A measure of uncertainty.

    Parameters
    ----------
    band_name
        Description of its band.
    formula
        For the metadata.
    compute
        Function of (task, channels (C, H, W) of a `Runner`) that returns float32 (T, H, W), 0 to 1, for each target:
        a tensor of a tensor, an array of an array.
    """

    band_name: str
    formula: str
    compute: Callable[[Task, Any], Any]


def _entropy(task: Task, channels: A) -> A:
    entropy: A = task.entropy(channels[None, : task.channels])[0]
    return entropy


def _one_minus_margin(task: Task, channels: A) -> A:
    library = library_of(channels)
    shares = task.category_probabilities(channels[None, : task.channels])[0]
    first, second = shares[:, 0], library.zeros_like(shares[:, 0])
    for category in range(1, shares.shape[1]):
        share = shares[:, category]
        first, second = library.maximum(first, share), library.maximum(library.minimum(first, share), second)
    margin: A = first - second
    return 1 - margin


def _disagreement(task: Task, channels: A) -> A:
    # Rounding, and the division of one-vs-rest probabilities by their sum, may make the difference negative.
    difference: A = _entropy(task, channels) - channels[task.channels :]
    return difference.clip(0)


UNCERTAINTY_MEASURES: dict[str, UncertaintyMeasure] = {
    "entropy": UncertaintyMeasure(
        "entropy",
        "entropy of the probabilities of the categories, divided by the logarithm of their number (Shannon 1948)",
        _entropy,
    ),
    "margin": UncertaintyMeasure(
        "1 - margin",
        "1 - (highest probability - second highest probability)",
        _one_minus_margin,
    ),
    DISAGREEMENT: UncertaintyMeasure(
        DISAGREEMENT,
        "entropy of the mean of the models' probabilities minus the mean of their entropies, divided by the logarithm "
        "of the number of categories: mutual information of class and model (Smith and Gal 2018)",
        _disagreement,
    ),
}


def check_measures(measures: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names of measures, each once, in the order in which they are given.

    Raises
    ------
    UsageError
        A measure is not known.
    """
    names = tuple(dict.fromkeys([measures] if isinstance(measures, str) else measures))
    for name in names:
        if name not in UNCERTAINTY_MEASURES:
            raise UsageError(f"uncertainty {name!r} is not known; use {', '.join(UNCERTAINTY_MEASURES)}")
    return names


def compute_measures(task: Task, channels: A, measures: Sequence[str]) -> A:
    """Return measures of uncertainty, float32 (measures, H, W), 0 to 1; of overlapping classes the largest.

    Parameters
    ----------
    channels
        (C, H, W): the probabilities of the task's channels; for disagreement followed by the mean entropy of each
        target, see `Runner`.
    """
    library = library_of(channels)
    rows = max(1, _CHUNK_PIXELS // channels.shape[2])
    parts = []
    for top in range(0, channels.shape[1], rows):
        chunk = channels[:, top : top + rows]
        found = [UNCERTAINTY_MEASURES[name].compute(task, chunk) for name in measures]
        largest: A = library.stack([library.amax(one, 0) for one in found])
        parts.append(largest)
    return concatenate(parts)
