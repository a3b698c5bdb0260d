"""Losses: functions with one signature, listed in `LOSSES`.

Each takes ``(task, logits (N, C, H, W), targets, weights)`` and returns a float32 scalar. `targets` are as in
`Task.onehot`: category indices, integer (N, T, H, W), or shares of the channels, floating (N, C, H, W). Unlabelled
pixels affect neither value nor gradient, whatever their logits. If no pixel is labelled, a loss is 0 with gradient 0.
`weights` has one number per channel, or is None.

With several processes, a loss is that of the global batch: sums over pixels go through `distributed.all_reduce_sum`.

For soft targets (shares of several categories), overlaps are sums of min(p, target). For hard targets this is the
product p x target. With soft targets the minimum has its optimum at p = target; the product would push p to 0 or 1
(Wang et al. 2023, "Jaccard Metric Losses" and "Dice Semimetric Losses").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from segkit.runtime.distributed import all_gather, all_reduce_sum
from segkit.task import Task

Loss = Callable[[Task, Tensor, Tensor, Sequence[float] | None], Tensor]

_FOCAL_GAMMA = 2.0  # gamma of Lin et al. 2017, "Focal Loss for Dense Object Detection", table 1b
_TVERSKY_BETA, _TVERSKY_ALPHA = 0.7, 0.3  # beta and alpha of Salehi et al. 2017, "Tversky loss function", section 3
_SMOOTHING_PX = 1.0  # so that false positives of a class that is absent from the batch have a gradient
# theta_0 and theta of Bokhovkin and Burnaev 2019: width of the boundary, and largest distance at which two boundaries
# match; both as window sizes.
_BOUNDARY_WINDOW_PX, _TOLERANCE_WINDOW_PX = 3, 5


def pixel(task: Task, logits: Tensor, targets: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Cross-entropy (softmax head) or binary cross-entropy (sigmoid head): the weighted mean over labelled pixels."""
    terms, weight = task.nll_terms(logits, targets, weights)
    return _mean(terms, weight)


def focal(task: Task, logits: Tensor, targets: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Cross-entropy with terms multiplied by (1 - p)^2, so that easy pixels count little (Lin et al. 2017)."""
    terms, weight = task.nll_terms(logits, targets, weights)
    # 1 - p by expm1: for p close to 1 the difference would lose its digits and its gradient.
    return _mean((-(-terms).expm1()).pow(_FOCAL_GAMMA) * terms, weight)


def dice(task: Task, logits: Tensor, targets: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """One minus the soft Dice coefficient, as the weighted mean over channels (Milletari et al. 2016)."""
    return _tversky_loss(task, logits, targets, weights, 0.5, 0.5)


def jaccard(task: Task, logits: Tensor, targets: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """One minus the soft intersection over union, as the weighted mean over channels."""
    return _tversky_loss(task, logits, targets, weights, 1.0, 1.0)


def tversky(task: Task, logits: Tensor, targets: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Like Dice, but a false negative (0.7) costs more than a false positive (0.3) (Salehi et al. 2017)."""
    return _tversky_loss(task, logits, targets, weights, _TVERSKY_BETA, _TVERSKY_ALPHA)


def lovasz(task: Task, logits: Tensor, targets: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """One minus the intersection over union, extended from 0/1 predictions to probabilities (Berman et al. 2018).

    The Lovász extension of the Jaccard loss at the errors abs(p - target), per channel over the whole batch, as the
    weighted mean over channels. For an absent class it is the largest false positive probability.
    """
    p, target, valid = _masked_probabilities(task, logits, targets)
    errors = (p - target).abs().movedim(1, 0).flatten(1)
    (all_errors, all_targets, all_valid), own = all_gather(
        torch.stack([errors, *(each.movedim(1, 0).flatten(1).float() for each in (target, valid))])
    )
    gradients = torch.zeros_like(all_errors)
    for channel, here in enumerate(all_valid):
        index = here.nonzero().squeeze(1)
        gradients[channel, index] = _lovasz_gradient(all_errors[channel, index], all_targets[channel, index])
    return _channel_mean(all_reduce_sum((errors * gradients[:, own]).sum(dim=1)), valid, weights)


def _lovasz_gradient(errors: Tensor, target: Tensor) -> Tensor:
    """Return the gradient of the Lovász extension of the Jaccard loss, float32 (M,): Berman et al. 2018, formula 8.

    With pixels sorted by decreasing error, the loss of the first i is i / union, and the gradient at a pixel is the
    loss that it adds. The difference of two losses would cancel to a few digits in large batches. With a common
    denominator it is (i union' - (i - 1) union) / (union union'), where a prime marks the state before the pixel. The
    numerator is (remaining true pixels)' + (i - 1) target, a sum of non-negative terms.
    """
    # Non-negative floats sort like their bits, and torch sorts integers five times as fast on a CPU.
    order = (-errors.view(torch.int32)).argsort()
    target = target[order]
    n_before = torch.arange(len(target), dtype=target.dtype, device=target.device)
    total, seen = target.sum(), target.cumsum(dim=0)
    union = total + (n_before + 1 - seen)
    union_before = union - (1 - target)
    gradient = ((total - (seen - target)).clamp(min=0) + n_before * target) / (union * union_before)
    gradient[:1] = 1 / union[:1]  # the same, without 0 / 0 if union_before is 0
    return torch.empty_like(gradient).scatter_(0, order, gradient)


def boundary(task: Task, logits: Tensor, targets: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """One minus the F1 score of boundaries, as the weighted mean over channels (Bokhovkin and Burnaev 2019).

    A pixel's boundary strength is its probability minus the lowest probability in the 3 x 3 window around it.
    Boundaries match if they are at most 2 pixels apart. A pixel counts only if its 7 x 7 window is labelled and inside
    the tile.

    A map and its negative have the same boundaries, and a constant map has none. So this loss sharpens contours, but
    needs another loss beside it that tells the inside from the outside.
    """
    p, target, valid = _masked_probabilities(task, logits, targets)
    radius = _BOUNDARY_WINDOW_PX // 2 + _TOLERANCE_WINDOW_PX // 2
    windows = functional.pad(valid, (radius,) * 4).unfold(3, 2 * radius + 1, 1).all(dim=-1)
    counted = windows.unfold(2, 2 * radius + 1, 1).all(dim=-1)
    edges = [_max_filter(1 - each, _BOUNDARY_WINDOW_PX) - (1 - each) for each in (p, target)]
    dilated = [_max_filter(edge, _TOLERANCE_WINDOW_PX) for edge in edges]
    over = (0, 2, 3)
    # Predicted boundary that matches the true one, and true boundary that matches the predicted one.
    matched = [(edge.minimum(other) * counted).sum(over) for edge, other in zip(edges, reversed(dilated), strict=True)]
    sums = all_reduce_sum(torch.stack([*matched, *((edge * counted).sum(over) for edge in edges)])) + _SMOOTHING_PX
    precision, recall = sums[:2] / sums[2:]
    return _channel_mean(1 - 2 * precision * recall / (precision + recall), counted, weights)


LOSSES: dict[str, Loss] = {
    "pixel": pixel,
    "focal": focal,
    "dice": dice,
    "jaccard": jaccard,
    "tversky": tversky,
    "lovasz": lovasz,
    "boundary": boundary,
}
# Likelihoods: with hard targets their optimal logits are infinite, with smoothed targets finite.
_LIKELIHOOD_LOSSES = ("pixel", "focal")


def combine_losses(
    shares: Mapping[str, float], task: Task, weights: Sequence[float] | None = None, smoothing: float = 0.0
) -> Callable[..., Tensor]:
    """Return the weighted sum of named losses as one function of (logits, targets).

    Parameters
    ----------
    shares
        {name: weight}.
    weights
        One per channel.
    smoothing
        Label smoothing of `pixel` and `focal`: share of the target that is spread over the categories; see
        `Task.smooth_labels`.

    Raises
    ------
    KeyError
        A name is not in `LOSSES`; for recipes this is checked before.
    """
    parts = [(LOSSES[name], share, name in _LIKELIHOOD_LOSSES) for name, share in shares.items() if share]

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        smoothed = task.smooth_labels(targets, smoothing) if smoothing else targets
        total = torch.zeros((), device=logits.device)
        for part, share, smooth in parts:
            total = total + share * part(task, logits, smoothed if smooth else targets, weights)
        return total

    return loss


def _mean(terms: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean over the pixels of all processes."""
    return _divide_or_zero(*all_reduce_sum(torch.stack([(terms * weight).sum(), weight.sum()])))


def _divide_or_zero(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide sums of non-negative terms; 0 if both are 0."""
    return numerator / denominator.where(denominator > 0, denominator.new_ones(()))


def _masked_probabilities(task: Task, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities and targets, float32 (N, C, H, W), and the mask of labelled pixels; 0 outside the mask."""
    target, valid = task.onehot(targets)
    return task.probabilities(logits.float().masked_fill(~valid, 0.0)) * valid, target, valid


def _channel_mean(losses: Tensor, valid: Tensor, weights: Sequence[float] | None) -> Tensor:
    """Return the weighted mean of losses (C,) over the channels that have a valid pixel in any process."""
    weight = torch.ones_like(losses) if weights is None else losses.new_tensor(list(weights))
    weight = weight * (all_reduce_sum(valid.any(dim=0).flatten(1).any(dim=1).float()) > 0)
    return _divide_or_zero((losses * weight).sum(), weight.sum())


def _max_filter(values: Tensor, window: int) -> Tensor:
    """Return the maximum of the window x window pixels around each pixel; pixels outside the tile are left out."""
    half = window // 2
    rows = functional.max_pool2d(values, (1, window), stride=1, padding=(0, half))
    return functional.max_pool2d(rows, (window, 1), stride=1, padding=(half, 0))


def _tversky_loss(
    task: Task, logits: Tensor, targets: Tensor, weights: Sequence[float] | None, beta: float, alpha: float
) -> Tensor:
    """Return one minus the Tversky index over the whole batch; Dice and Jaccard are two of its settings.

    Parameters
    ----------
    beta, alpha
        Weights of false negatives and false positives.
    """
    p, target, valid = _masked_probabilities(task, logits, targets)
    over = (0, 2, 3)
    common, true, predicted = all_reduce_sum(torch.stack([p.minimum(target).sum(over), target.sum(over), p.sum(over)]))
    errors = beta * (true - common) + alpha * (predicted - common)
    return _channel_mean(1 - (common + _SMOOTHING_PX) / (common + errors + _SMOOTHING_PX), valid, weights)
