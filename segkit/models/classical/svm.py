"""Support vector machine with a Gaussian kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from segkit.models.classical.learner import ABSENT, Learner

_MAX_KERNEL_VALUES = 2**22  # pixels x support vectors at once


class SupportVectors(Learner):
    """Support vector machines between each pair of categories, with coupled probabilities.

    The decision value of a pair times its slope is the logit z of "first, not second" (after Platt 1999). The
    probability of category i is 1 / (1 + sum of exp(-z_ij) over the other categories j), from Price et al. 1995,
    "Pairwise neural network classifiers with probabilistic outputs", equation 6; it is exact if the pairs agree.

    Arrays
    ------
    shift, scale
        float32 (F): features are standardised, (x - shift) / scale.
    vectors
        float32 (S, F): support vectors, standardised.
    gamma
        float32 (1): the kernel is exp(-gamma ||x - v||^2).
    pairs
        int32 (P, 2): the two categories of each machine.
    coefficients, intercepts
        float32 (P, S) and (P).
    slopes
        float32 (P).
    """

    ARRAYS: ClassVar[Mapping[str, tuple[torch.dtype, int]]] = {
        "shift": (torch.float32, 1),
        "scale": (torch.float32, 1),
        "vectors": (torch.float32, 2),
        "gamma": (torch.float32, 1),
        "pairs": (torch.int32, 2),
        "coefficients": (torch.float32, 2),
        "intercepts": (torch.float32, 1),
        "slopes": (torch.float32, 1),
    }
    shift: Tensor
    scale: Tensor
    vectors: Tensor
    gamma: Tensor
    pairs: Tensor
    coefficients: Tensor
    intercepts: Tensor
    slopes: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """Return scores; see `Learner.forward`."""
        logits = self.decisions(features) * self.slopes
        pairs: list[tuple[int, int]] = self.pairs.tolist()
        # exp(-z) of each category against the others, as terms of a sum of exponentials; the first is the 1.
        terms: list[list[Tensor]] = [[] for _ in range(self.categories)]
        for number, (first, second) in enumerate(pairs):
            terms[first].append(-logits[:, number])
            terms[second].append(logits[:, number])
        one = torch.zeros_like(logits[:, 0])
        scores = [
            -torch.stack([one, *others], dim=1).logsumexp(dim=1) if others else torch.full_like(one, ABSENT)
            for others in terms
        ]
        return torch.stack(scores, dim=1)

    def decisions(self, features: Tensor) -> Tensor:
        """Return the decision value of each pair, float32 (n, P); above 0 for its first category."""
        size = max(1, _MAX_KERNEL_VALUES // len(self.vectors))
        return torch.cat([self._decide(part) for part in torch.split(features, size)])

    def _decide(self, features: Tensor) -> Tensor:
        x = (features - self.shift) / self.scale
        distance = torch.addmm(self.vectors.square().sum(dim=1), x, self.vectors.T, alpha=-2.0)
        distance += x.square().sum(dim=1, keepdim=True)
        kernel = distance.clamp_(min=0).mul_(-self.gamma).exp_()
        return torch.addmm(self.intercepts, kernel, self.coefficients.T)

    def find_problem(self) -> str | None:
        """Return why the arrays cannot be used; None if they can."""
        count, number = len(self.vectors), len(self.pairs)
        expected = {
            "shift": (self.features,),
            "scale": (self.features,),
            "vectors": (count, self.features),
            "gamma": (1,),
            "pairs": (number, 2),
            "coefficients": (number, count),
            **dict.fromkeys(("intercepts", "slopes"), (number,)),
        }
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                return f"{name} has the shape {tuple(getattr(self, name).shape)}, not {shape}"
        if not count or not number:
            return "there are no support vectors"
        if self.pairs.min() < 0 or self.pairs.max() >= self.categories:
            return f"pairs name categories outside 0 to {self.categories - 1}"
        return None if (self.scale > 0).all() else "scale is not positive"
