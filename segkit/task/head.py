"""From logits to decisions: activation, likelihood, label smoothing, decision, confidence, entropy.

Tensors are torch's. What follows from probabilities is the same code for numpy's arrays (`array_library`). This module
does not import torch until a method needs it: its caller has it loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from segkit.task.array_library import (
    A,
    cast,
    concatenate,
    entropy_terms,
    highest_channel,
    library_of,
    per_channel,
    take_channels,
    where,
)
from segkit.task.declaration import IGNORE, TaskDeclaration

if TYPE_CHECKING:
    from torch import Tensor


class Head(TaskDeclaration):
    """The methods of `Task` that work on the output of a network."""

    def onehot(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the desired output of each channel, and where it is labelled.

        Parameters
        ----------
        targets
            Targets, integer (N, T, H, W); or soft targets, floating (N, C, H, W): the fraction of a pixel in the
            channel's category, 0 to 1 (with softmax they sum to 1), or `IGNORE` where unlabelled.

        Returns
        -------
        target
            float32 (N, C, H, W), 0 to 1; 0 where unlabelled.
        valid
            bool (N, C, H, W). With softmax a pixel is labelled in all channels or in none.
        """
        if targets.is_floating_point():
            assert targets.shape[1] == self.channels
            valid = targets >= 0
            if self.head == "softmax":
                valid = valid.all(dim=1, keepdim=True).expand_as(targets)
            return targets.float().masked_fill(~valid, 0.0), valid
        target = targets[:, [target for target, _ in self.channel_categories]]
        category = targets.new_tensor([category for _, category in self.channel_categories]).view(1, -1, 1, 1)
        return (target == category).float(), target != IGNORE

    def smooth_labels(self, targets: Tensor, smoothing: float) -> Tensor:
        """Spread a share of each label evenly over the categories (Szegedy et al. 2016, section 7).

        Parameters
        ----------
        targets
            As for `onehot`.
        smoothing
            The share, 0 to 1. With softmax it is spread over all channels, with sigmoid over present and absent.

        Returns
        -------
        Soft targets, float32 (N, C, H, W), `IGNORE` where unlabelled.
        """
        target, valid = self.onehot(targets)
        categories = self.channels if self.head == "softmax" else 2
        return (target * (1 - smoothing) + smoothing / categories).masked_fill(~valid, IGNORE)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits (N, C, H, W) into float32 probabilities of the same shape."""
        return logits.float().softmax(dim=1) if self.head == "softmax" else logits.float().sigmoid()

    def logits(self, probabilities: Tensor) -> Tensor:
        """Turn probabilities (N, C, H, W) between 0 and 1 (exclusive) into logits that give them."""
        return probabilities.log() if self.head == "softmax" else probabilities.logit()

    @property
    def is_softmax(self) -> bool:
        """Whether the probabilities of the channels sum to 1 (softmax), or are independent (sigmoid)."""
        return self.head == "softmax"

    def nll_terms(
        self, logits: Tensor, targets: Tensor, weights: Sequence[float] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the negative log-likelihood of each category and its weight.

        Activation and logarithm are fused (log-softmax, log-sigmoid), so nothing saturates. A mixed pixel counts in
        each category with its fraction. If all weights are 1, the gradient of a pixel's weighted sum with respect to
        the logits is p - target, for both heads.

        Parameters
        ----------
        logits
            (N, C, H, W); at unlabelled pixels any value, also NaN.
        targets
            As for `onehot`.
        weights
            One per channel, for pixels of its category; the other pixels of a sigmoid channel have weight 1.
            Default: all 1.

        Returns
        -------
        terms
            float32 (N, Q, H, W), finite. Softmax: -log p of the C channels (their sum is cross-entropy). Sigmoid: the
            terms of "present" of all channels, then those of "absent" (binary cross-entropy).
        weight
            float32 of the same shape: fraction of the category times its weight; 0 where unlabelled.
        """
        import torch

        target, valid = self.onehot(targets)
        logits = logits.float().masked_fill(~valid, 0.0)
        weight = target.new_tensor([1.0] * self.channels if weights is None else list(weights)).view(1, -1, 1, 1)
        if self.head == "softmax":
            return -logits.log_softmax(dim=1), target * weight
        log_sigmoid = torch.nn.functional.logsigmoid
        terms = -torch.cat([log_sigmoid(logits), log_sigmoid(-logits)], dim=1)
        return terms, torch.cat([target * weight, valid * (1 - target)], dim=1)

    def decide(self, probabilities: A) -> A:
        """Decide the category of each target.

        Parameters
        ----------
        probabilities
            (N, C, H, W).

        Returns
        -------
        int16 (N, T, H, W), never `IGNORE`
        """
        thresholds = self.thresholds
        if thresholds is None:
            first = self.channel_categories[0][1]
            return cast(highest_channel(probabilities) + first, "int16")
        library = library_of(probabilities)
        p = probabilities[:, -len(thresholds) :]  # the classes; a softmax over two has background first
        reached = p >= per_channel(thresholds, p)
        if self.n_targets > 1:
            return cast(reached, "int16")
        best: A = highest_channel(library.where(reached, p, -1.0)) + 1
        some: A = library.any(reached, 1, keepdims=True)
        return cast(best * some, "int16")

    def confidence(self, probabilities: A, decided: A) -> A:
        """Return the probability of the decided category, float32 (N, T, H, W).

        If the head has no channel for a category (background of a sigmoid head, "absent" of a multilabel target), its
        probability is one minus the highest of the target's channels.

        Parameters
        ----------
        probabilities
            (N, C, H, W).
        decided
            What `decide` returned, (N, T, H, W).
        """
        if self.head == "softmax":
            return take_channels(probabilities, decided)
        if self.n_targets > 1:
            return where(decided == 1, probabilities, 1 - probabilities)
        first = self.channel_categories[0][1]
        of_class = take_channels(probabilities, (decided - first).clip(0))
        return where(decided >= first, of_class, 1 - _highest(probabilities))

    def category_probabilities(self, probabilities: A) -> A:
        """Return the probability of each category of each target; they sum to 1 over the categories of a target.

        A category without a channel has one minus the highest probability of the target's channels, as in `confidence`.
        The channels of a sigmoid head of mutually exclusive classes are independent: they are divided by their sum.

        Parameters
        ----------
        probabilities
            (N, C, H, W).

        Returns
        -------
        float32 (N, T, K, H, W)
        """
        library = library_of(probabilities)
        shares: A
        # Weights of blending sum to 1 but for rounding, so a probability may exceed 1 a little.
        if self.type == "multilabel":
            shares = library.stack([(1 - probabilities).clip(0), probabilities], 2)
            return shares
        if self.head == "softmax":
            return probabilities[:, None]
        if self.background:
            none = (1 - _highest(probabilities)).clip(0)
            probabilities = concatenate([none, probabilities])
        total = library.sum(probabilities, 1, keepdims=True)
        # Without background all channels may be 0; then no category is more probable than another.
        known = total > 0
        shares = library.where(known, probabilities / library.where(known, total, 1.0), 1 / probabilities.shape[1])
        return shares[:, None]

    def entropy(self, probabilities: A) -> A:
        """Return the entropy of the categories of each target, divided by that of equally probable categories.

        Parameters
        ----------
        probabilities
            (N, C, H, W).

        Returns
        -------
        float32 (N, T, H, W), 0 (one category is certain) to 1 (all are equally probable)
        """
        shares = self.category_probabilities(probabilities)
        nats: A = library_of(shares).sum(entropy_terms(shares), 2)
        return nats / math.log(shares.shape[2])


def _highest(probabilities: A) -> A:
    """Return the largest value over axis 1, (N, 1, H, W)."""
    highest: A = library_of(probabilities).amax(probabilities, 1, keepdims=True)
    return highest
