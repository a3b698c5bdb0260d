"""Decision trees: random forests and gradient boosting."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segkit.models.classical.learner import Learner

_MAX_PATHS = 2**22  # pixels x trees at once, on a GPU
_PART = 4096  # pixels of a part that one thread takes; few enough that their features stay in its cache


class Trees(Learner):
    """Sums of the values of the leaves that a pixel reaches, one leaf per tree.

    Arrays
    ------
    feature, threshold
        int32 and float32 (M): a node sends a pixel to its first child if ``x[feature] <= threshold``. Only inner nodes
        are listed.
    below
        int32 (M, 2): numbers of two nodes, which are higher than that of their parent; or -1 - the number of a leaf.
    roots
        int32 (trees): the first node, or leaf, of each tree.
    values
        float32 (leaves, K). Leaves with the same values are one.
    base
        float32 (K): added to the sum.
    """

    ARRAYS: ClassVar[Mapping[str, tuple[torch.dtype, int]]] = {
        "feature": (torch.int32, 1),
        "threshold": (torch.float32, 1),
        "below": (torch.int32, 2),
        "roots": (torch.int32, 1),
        "values": (torch.float32, 2),
        "base": (torch.float32, 1),
    }
    feature: Tensor
    threshold: Tensor
    below: Tensor
    roots: Tensor
    values: Tensor
    base: Tensor

    def __init__(self, features: int, categories: int) -> None:
        super().__init__(features, categories)
        self._packed: tuple[Tensor, NDArray[Any], NDArray[Any]] | None = None

    def sum_values(self, features: Tensor) -> Tensor:
        """Return the sums of leaf values and base, float64 (n, K)."""
        if features.device.type != "cpu":
            size = max(1, _MAX_PATHS // len(self.roots))
            return torch.cat([self._walk(part) for part in torch.split(features, size)]) + self.base.double()
        from segkit.models.classical.tree_kernel import LANES, sum_leaves  # here, as networks need no numba

        (nodes, roots), values = self._pack(), self.values.double().numpy()
        pixels = np.zeros((-(-len(features) // LANES) * LANES, self.features), np.float32)
        pixels[: len(features)] = features.numpy()
        sums = np.tile(self.base.double().numpy(), (len(pixels), 1))

        def add(start: int) -> None:
            part = slice(start, start + _PART)
            sum_leaves(pixels[part], nodes, roots, values, sums[part])

        threads = min(torch.get_num_threads(), -(-len(pixels) // _PART))
        starts = range(0, len(pixels), _PART)
        if threads <= 1:
            for start in starts:
                add(start)
        else:
            with ThreadPoolExecutor(threads) as pool:  # sum_leaves releases the GIL
                list(pool.map(add, starts))
        return torch.from_numpy(sums[: len(features)])

    def _pack(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return nodes and roots as `sum_leaves` takes them: records, which need one access to memory each."""
        from segkit.models.classical.tree_kernel import NODE

        if self._packed is None or self._packed[0] is not self.feature:
            inner, leaves = len(self.feature), len(self.values)
            nodes, roots = np.zeros(inner + leaves, NODE), self.roots.numpy()
            below = self.below.numpy()
            nodes["feature"][:inner], nodes["threshold"][:inner] = self.feature.numpy(), self.threshold.numpy()
            nodes["low"][:inner], nodes["high"][:inner] = np.where(below < 0, inner - 1 - below, below).T
            nodes["threshold"][inner:] = np.inf
            nodes["low"][inner:] = nodes["high"][inner:] = np.arange(inner, inner + leaves)
            self._packed = self.feature, nodes, np.where(roots < 0, inner - 1 - roots, roots)
        return self._packed[1:]

    def _walk(self, features: Tensor) -> Tensor:
        """Return the sums by operations of torch, level by level; for a GPU."""
        at = self.roots.long().expand(len(features), -1)
        while (inner := at >= 0).any():
            node = at.clamp(min=0)
            high = features.gather(1, self.feature[node].long()) > self.threshold[node]
            at = torch.where(inner, self.below[node, high.long()].long(), at)
        sums = torch.zeros(len(features), self.categories, dtype=torch.float64, device=features.device)
        for leaf in (-1 - at).unbind(dim=1):
            sums += self.values[leaf]
        return sums

    def find_problem(self) -> str | None:
        """Return why the arrays cannot be used; None if they can."""
        nodes, leaves = len(self.feature), len(self.values)
        expected = {
            "threshold": (nodes,),
            "below": (nodes, 2),
            "values": (leaves, self.categories),
            "base": (self.categories,),
        }
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                return f"{name} has the shape {tuple(getattr(self, name).shape)}, not {shape}"
        if not len(self.roots) or not leaves:
            return "there are no trees"
        if nodes and (self.feature.min() < 0 or self.feature.max() >= self.features):
            return f"feature names features outside 0 to {self.features - 1}"
        # A child comes after its parent, so no walk is endless.
        parents = torch.arange(nodes, dtype=torch.int32)[:, None]
        inside = ((self.below > parents) & (self.below < nodes)) | ((self.below < 0) & (self.below >= -leaves))
        first = (self.roots < nodes) & (self.roots >= -leaves)
        return None if inside.all() and first.all() else "below or roots name nodes that do not exist"


class Forest(Trees):
    """A random forest: the probability of a category is the mean of the shares in the leaves (Breiman 2001)."""

    def forward(self, features: Tensor) -> Tensor:
        """Return scores; see `Learner.forward`. A probability of 0 is minus infinity."""
        return (self.sum_values(features) / len(self.roots)).log()

    def find_problem(self) -> str | None:
        """Return why the arrays cannot be used; None if they can."""
        if problem := super().find_problem():
            return problem
        sums = self.values.double().sum(dim=1)
        return None if self.values.min() >= 0 and (sums - 1).abs().max() < 1e-3 else "values are not probabilities"


class Boosting(Trees):
    """Gradient boosting: the score of a category is the sum of the values of its trees (Friedman 2001)."""

    def forward(self, features: Tensor) -> Tensor:
        """Return scores; see `Learner.forward`."""
        return self.sum_values(features)
