"""Measures of uncertainty of a prediction, from the probabilities of a pixel: 0 is certain, 1 as uncertain as possible.

If classes overlap, each class is a decision of its own, and the measure of a pixel is the largest of its classes: a
mean would hide one uncertain class among many that are certainly absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segkit.errors import UsageError
from segkit.task import Task

if TYPE_CHECKING:
    from torch import Tensor

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
        Function of (task, channels (C, H, W) of a `Runner`) that returns float32 (T, H, W), 0 to 1, for each target.
    """

    band_name: str
    formula: str
    compute: Callable[[Task, Tensor], Tensor]


def _entropy(task: Task, channels: Tensor) -> Tensor:
    return task.entropy(channels[None, : task.channels])[0]


def _one_minus_margin(task: Task, channels: Tensor) -> Tensor:
    shares = task.category_probabilities(channels[None, : task.channels])[0]
    first, second = shares[:, 0], shares.new_zeros(())
    for share in shares.unbind(dim=1)[1:]:
        first, second = first.maximum(share), first.minimum(share).maximum(second)
    return 1 - (first - second)


def _disagreement(task: Task, channels: Tensor) -> Tensor:
    # Rounding, and the division of one-vs-rest probabilities by their sum, may make the difference negative.
    return (_entropy(task, channels) - channels[task.channels :]).clamp(min=0)


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


def compute_measures(task: Task, channels: Tensor, measures: Sequence[str]) -> Tensor:
    """Return measures of uncertainty, float32 (measures, H, W), 0 to 1; of overlapping classes the largest.

    Parameters
    ----------
    channels
        (C, H, W): the probabilities of the task's channels; for disagreement followed by the mean entropy of each
        target, see `Runner`.
    """
    import torch

    rows = max(1, _CHUNK_PIXELS // channels.shape[2])
    parts = []
    for top in range(0, channels.shape[1], rows):
        chunk = channels[:, top : top + rows]
        parts.append(torch.stack([UNCERTAINTY_MEASURES[name].compute(task, chunk).amax(dim=0) for name in measures]))
    return torch.cat(parts, dim=1)
