"""What all classical learners share: arrays of any length, which are checked before they are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ABSENT = -1e30  # score of a category without training pixels


class Learner(nn.Module):
    """A fitted classifier of feature vectors, as arrays; empty until `set_arrays` or a state dict fills them.

    Parameters
    ----------
    features, categories
        Number of features of a pixel, and of categories to tell apart.
    """

    ARRAYS: ClassVar[Mapping[str, tuple[torch.dtype, int]]] = {}
    """{name: (type, number of dimensions)}"""

    def __init__(self, features: int, categories: int) -> None:
        super().__init__()
        self.features, self.categories = features, categories
        for name, (dtype, dimensions) in self.ARRAYS.items():
            self.register_buffer(name, torch.zeros((0,) * dimensions, dtype=dtype))

    def forward(self, features: Tensor) -> Tensor:
        """Return the score of each category, float (n, K): logarithms of probabilities up to a constant per pixel.

        Parameters
        ----------
        features
            float32 (n, F), contiguous.
        """
        raise NotImplementedError

    def find_problem(self) -> str | None:
        """Return why the arrays cannot be used; None if they can."""
        raise NotImplementedError

    def set_arrays(self, **arrays: NDArray[Any] | Sequence[float]) -> None:
        """Set all arrays.

        Raises
        ------
        ValueError
            They do not fit together.
        """
        for name, (dtype, _) in self.ARRAYS.items():
            setattr(self, name, torch.as_tensor(np.array(arrays[name])).to(dtype).contiguous())
        if problem := self.find_problem():
            raise ValueError(problem)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take arrays of any length, and check them: prediction does not, and would read outside of them."""
        for name, (dtype, dimensions) in self.ARRAYS.items():
            given = state_dict.get(prefix + name)
            if isinstance(given, Tensor) and (given.dtype, given.ndim) == (dtype, dimensions):
                setattr(self, name, torch.empty_like(given, device=getattr(self, name).device))
        faults = len(missing_keys) + len(error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if len(missing_keys) + len(error_msgs) == faults and (problem := self.find_problem()):
            error_msgs.append(f"{prefix}{problem}")


class Linear(Learner):
    """A linear classifier: the score of a category is weights . features + bias."""

    ARRAYS: ClassVar[Mapping[str, tuple[torch.dtype, int]]] = {"weight": (torch.float32, 2), "bias": (torch.float32, 1)}
    weight: Tensor
    bias: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """Return scores; see `Learner.forward`."""
        return torch.addmm(self.bias, features, self.weight.T)

    def find_problem(self) -> str | None:
        """Return why the arrays cannot be used; None if they can."""
        expected = (self.categories, self.features), (self.categories,)
        found = tuple(self.weight.shape), tuple(self.bias.shape)
        return None if found == expected else f"weight and bias have the shapes {found}, not {expected}"
