"""Losses: plain functions of one signature in one dict.

Each takes ``(task, logits (N, C, H, W), planes, weights)`` and returns a float32 scalar. `planes` are targets as
`Task.onehot` takes them: categories, integer (N, P, H, W), or shares of channels, floating (N, C, H, W). Pixels that
are not known change neither value nor gradient, whatever the logits under them; where nothing is known a loss is 0
with gradient 0. `weights` holds one number per channel, or None.

Where several processes train, a loss is that of the batches of all of them together: sums over pixels go through
`distributed.total`.

Where pixels have shares of several categories, overlaps are sums of min(p, target). For hard targets that is the
product p x target; for soft ones it keeps the best prediction at p = target, where the product would push it to 0 or 1
(Wang et al. 2023, "Jaccard Metric Losses" and "Dice Semimetric Losses").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from segkit.runtime.distributed import gathered, total
from segkit.task.task import Task

Loss = Callable[[Task, Tensor, Tensor, Sequence[float] | None], Tensor]

_FOCUS = 2.0  # gamma of Lin et al. 2017, "Focal Loss for Dense Object Detection", table 1b
_MISS, _FALSE = 0.7, 0.3  # beta and alpha of Salehi et al. 2017, "Tversky loss function", section 3
_SMOOTH = 1.0  # pixels; a class that is absent from a batch still pays for false alarms
# Windows in pixels, theta_0 and theta of Bokhovkin and Burnaev 2019: the thinnest boundary, and how far apart two
# boundaries may be and still be one.
_BOUNDARY, _TOLERANCE = 3, 5


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


def lovasz(task: Task, logits: Tensor, planes: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """One minus the intersection over union, extended from 0/1 predictions to probabilities (Berman et al. 2018).

    The Lovász extension of the Jaccard loss at the errors abs(p - target), per channel over the whole batch; the
    weighted mean over channels. For a class that is absent it is the largest false alarm.
    """
    p, target, valid = _chances(task, logits, planes)
    errors = (p - target).abs().movedim(1, 0).flatten(1)
    (every_error, every_target, known), own = gathered(
        torch.stack([errors, *(one.movedim(1, 0).flatten(1).float() for one in (target, valid))])
    )
    slopes = torch.zeros_like(every_error)
    for channel, here in enumerate(known):
        place = here.nonzero().squeeze(1)
        slopes[channel, place] = _slopes(every_error[channel, place], every_target[channel, place])
    return _over_channels(total((errors * slopes[:, own]).sum(dim=1)), valid, weights)


def _slopes(errors: Tensor, target: Tensor) -> Tensor:
    """Gradient of the Lovász extension of the Jaccard loss, float32 (M,): Berman et al. 2018, formula 8.

    Taking pixels in the order of falling errors, the loss of the first i is i / union, and a slope is what a pixel adds
    to it. As a difference of two losses that would cancel to a few digits in large batches, so it is put over one
    denominator, (i union' - (i - 1) union) / (union union'), whose numerator is hits left' + (i - 1) target: a sum of
    what is not negative. (A prime is the state before the pixel.)
    """
    # Floats that are not negative have the order of their bits, and torch sorts integers five times as fast on a CPU.
    order = (-errors.view(torch.int32)).argsort()
    target = target[order]
    before = torch.arange(len(target), dtype=target.dtype, device=target.device)
    total, seen = target.sum(), target.cumsum(dim=0)
    union = total + (before + 1 - seen)
    ahead = union - (1 - target)
    slopes = ((total - (seen - target)).clamp(min=0) + before * target) / (union * ahead)
    slopes[:1] = 1 / union[:1]  # what the formula gives, and means where nothing is ahead
    return torch.empty_like(slopes).scatter_(0, order, slopes)


def boundary(task: Task, logits: Tensor, planes: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """One minus the F1 score of boundaries, the weighted mean over channels (Bokhovkin and Burnaev 2019).

    A class's boundary is by how much the least sure pixel of the 3 x 3 around a pixel falls short of it; two boundaries
    meet that are at most 2 pixels apart. Pixels take part where all that this looks at, 7 x 7 pixels, is known and
    inside the tile.

    A map and its negative have boundaries in the same places, and a flat one has none: this loss makes contours sharp
    beside a loss that tells which side is which, and is not meant to be used alone.
    """
    p, target, valid = _chances(task, logits, planes)
    reach = _BOUNDARY // 2 + _TOLERANCE // 2
    windows = functional.pad(valid, (reach,) * 4).unfold(3, 2 * reach + 1, 1).all(dim=-1)
    sure = windows.unfold(2, 2 * reach + 1, 1).all(dim=-1)
    edges = [_highest(1 - one, _BOUNDARY) - (1 - one) for one in (p, target)]
    near = [_highest(edge, _TOLERANCE) for edge in edges]
    over = (0, 2, 3)
    # Found of the predicted boundary in the true one, and of the true one in the predicted.
    found = [(edge.minimum(other) * sure).sum(over) for edge, other in zip(edges, reversed(near), strict=True)]
    sums = total(torch.stack([*found, *((edge * sure).sum(over) for edge in edges)])) + _SMOOTH
    precision, recall = sums[:2] / sums[2:]
    return _over_channels(1 - 2 * precision * recall / (precision + recall), sure, weights)


LOSSES: dict[str, Loss] = {
    "pixel": pixel,
    "focal": focal,
    "dice": dice,
    "jaccard": jaccard,
    "tversky": tversky,
    "lovasz": lovasz,
    "boundary": boundary,
}
# Likelihoods, whose best logits are infinite with hard targets and finite with smoothed ones.
_SMOOTHED = ("pixel", "focal")


def combined(
    shares: Mapping[str, float], task: Task, weights: Sequence[float] | None = None, smoothing: float = 0.0
) -> Callable[..., Tensor]:
    """Return the weighted sum of named losses as one function of (logits, planes).

    Parameters
    ----------
    shares
        {name: weight}.
    weights
        One per channel.
    smoothing
        Share of the target that `pixel` and `focal` spread over the categories; see `Task.smoothed`.

    Raises
    ------
    KeyError
        A name is not in `LOSSES`; recipes are checked before.
    """
    parts = [(LOSSES[name], share, name in _SMOOTHED) for name, share in shares.items() if share]

    def loss(logits: Tensor, planes: Tensor) -> Tensor:
        spread = task.smoothed(planes, smoothing) if smoothing else planes
        total = torch.zeros((), device=logits.device)
        for part, share, smooth in parts:
            total = total + share * part(task, logits, spread if smooth else planes, weights)
        return total

    return loss


def _mean(terms: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over the pixels of all processes."""
    return _quotient(*total(torch.stack([(terms * weight).sum(), weight.sum()])))


def _quotient(above: Tensor, below: Tensor) -> Tensor:
    return above / below.where(below > 0, below.new_ones(()))


def _chances(task: Task, logits: Tensor, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities and targets, float32, and where they are known; the two are 0 where they are not."""
    target, valid = task.onehot(planes)
    return task.probabilities(logits.float().masked_fill(~valid, 0.0)) * valid, target, valid


def _over_channels(lost: Tensor, valid: Tensor, weights: Sequence[float] | None) -> Tensor:
    """Weighted mean of the losses (C,) of the channels that have a valid pixel in some process."""
    weight = torch.ones_like(lost) if weights is None else lost.new_tensor(list(weights))
    weight = weight * (total(valid.any(dim=0).flatten(1).any(dim=1).float()) > 0)
    return _quotient((lost * weight).sum(), weight.sum())


def _highest(values: Tensor, window: int) -> Tensor:
    """Highest value of the window x window pixels around each pixel, as far as they lie inside the tile."""
    half = window // 2
    rows = functional.max_pool2d(values, (1, window), stride=1, padding=(0, half))
    return functional.max_pool2d(rows, (window, 1), stride=1, padding=(half, 0))


def _overlap(
    task: Task, logits: Tensor, planes: Tensor, weights: Sequence[float] | None, missed: float, false: float
) -> Tensor:
    """Tversky index per channel over the whole batch; Dice and Jaccard are two of its settings."""
    p, target, valid = _chances(task, logits, planes)
    over = (0, 2, 3)
    hit, true, found = total(torch.stack([p.minimum(target).sum(over), target.sum(over), p.sum(over)]))
    wrong = missed * (true - hit) + false * (found - hit)
    return _over_channels(1 - (hit + _SMOOTH) / (hit + wrong + _SMOOTH), valid, weights)
