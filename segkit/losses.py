"""Losses: plain functions of one signature in one dict.

Each takes ``(task, logits (N, C, H, W), planes int (N, P, H, W), weights)`` and returns a float32 scalar. Pixels that
are not known change neither value nor gradient, whatever the logits under them; where nothing is known a loss is 0
with gradient 0. `weights` holds one number per channel, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from segkit.task import Task

Loss = Callable[[Task, Tensor, Tensor, Sequence[float] | None], Tensor]

_FOCUS = 2.0  # gamma of Lin et al. 2017, "Focal Loss for Dense Object Detection", table 1b
_MISS, _FALSE = 0.7, 0.3  # beta and alpha of Salehi et al. 2017, "Tversky loss function", section 3
_SMOOTH = 1.0  # pixels; a class that is absent from a batch still pays for false alarms


def pixel(task: Task, logits: Tensor, planes: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Cross-entropy (softmax head) or binary cross-entropy (sigmoid head): the weighted mean over known pixels."""
    terms, weight = task.pixel_terms(logits, planes, weights)
    return _mean(terms, weight)


def focal(task: Task, logits: Tensor, planes: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Cross-entropy in which well-decided pixels count little: (1 - p)^2 times the term (Lin et al. 2017)."""
    terms, weight = task.pixel_terms(logits, planes, weights)
    # 1 - p by expm1: where p rounds to 1 the difference would lose its digits, and its gradient.
    return _mean((-(-terms).expm1()).pow(_FOCUS) * terms, weight)


def dice(task: Task, logits: Tensor, planes: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """One minus the soft Dice coefficient, the weighted mean over channels (Milletari et al. 2016)."""
    return _overlap(task, logits, planes, weights, 0.5, 0.5)


def jaccard(task: Task, logits: Tensor, planes: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """One minus the soft intersection over union, the weighted mean over channels."""
    return _overlap(task, logits, planes, weights, 1.0, 1.0)


def tversky(task: Task, logits: Tensor, planes: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Like Dice, but a missed pixel (0.7) costs more than a false alarm (0.3) (Salehi et al. 2017)."""
    return _overlap(task, logits, planes, weights, _MISS, _FALSE)


LOSSES: dict[str, Loss] = {"pixel": pixel, "focal": focal, "dice": dice, "jaccard": jaccard, "tversky": tversky}


def combined(shares: Mapping[str, float], task: Task, weights: Sequence[float] | None = None) -> Callable[..., Tensor]:
    """Return the weighted sum of named losses as one function of (logits, planes).

    Raises
    ------
    KeyError
        A name is not in `LOSSES`; recipes are checked before.
    """
    parts = [(LOSSES[name], share) for name, share in shares.items() if share]

    def loss(logits: Tensor, planes: Tensor) -> Tensor:
        total = torch.zeros((), device=logits.device)
        for part, share in parts:
            total = total + share * part(task, logits, planes, weights)
        return total

    return loss


def _mean(terms: Tensor, weight: Tensor) -> Tensor:
    total = weight.sum()
    return (terms * weight).sum() / total.where(total > 0, total.new_ones(()))


def _overlap(
    task: Task, logits: Tensor, planes: Tensor, weights: Sequence[float] | None, missed: float, false: float
) -> Tensor:
    """Tversky index per channel over the whole batch; Dice and Jaccard are two of its settings."""
    target, valid = task.onehot(planes)
    p = task.probabilities(logits.float().where(valid, target.new_zeros(()))) * valid
    target = target * valid
    over = (0, 2, 3)
    hit = (p * target).sum(over)
    wrong = missed * ((1 - p) * target).sum(over) + false * (p * (1 - target)).sum(over)
    lost = 1 - (hit + _SMOOTH) / (hit + wrong + _SMOOTH)
    weight = lost.new_tensor([1.0] * task.channels if weights is None else list(weights))
    return _mean(lost, weight * valid.any(dim=0).flatten(1).any(dim=1))
