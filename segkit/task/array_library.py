"""What torch and numpy call differently, for code that computes with the arrays of both.

Probabilities are tensors if torch computed them, so that they stay on their device, and arrays if a runtime of graphs
did, which needs no torch. Most functions have the same name and positional arguments in both libraries (``stack``,
``rot90``), or are methods of both (``clip``): take them from `library_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    Array: TypeAlias = "Tensor | NDArray[Any]"

A = TypeVar("A", "Tensor", NDArray[Any])


def library_of(array: Array) -> Any:
    """Return the module whose functions take an array: torch for a tensor, else numpy."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def as_array(array: NDArray[Any], *, by_torch: bool) -> Any:
    """Return an array of numpy as a tensor on the CPU, or as it is."""
    if not by_torch:
        return array
    import torch

    return torch.from_numpy(array)


def like(array: NDArray[Any], other: A) -> A:
    """Return an array of numpy as another is: as a tensor on its device, or as it is."""
    if isinstance(other, np.ndarray):
        return array
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).to(other.device)


def to_numpy(array: Array) -> NDArray[Any]:
    """Return an array in main memory; it shares the memory of a tensor on the CPU."""
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()


def without_gradients(array: Array) -> AbstractContextManager[Any]:
    """Return a block in which torch records nothing, if the array is a tensor."""
    if isinstance(array, np.ndarray):
        return nullcontext()
    import torch

    return torch.inference_mode()


def highest_channel(values: A) -> A:
    """Return the index of the largest value over axis 1, the first of equal ones, integer (N, 1, H, W)."""
    if values.shape[1] == 2:
        return cast(values[:, 1:] > values[:, :1], "int16")
    if not isinstance(values, np.ndarray):
        # max() finds the same index as argmax() in a sixth of the time on a CPU.
        return values.max(dim=1, keepdim=True).indices
    # Channel by channel; argmax() takes several times as long over an axis that is not the last one.
    highest = values[:, :1].copy()
    found = np.zeros(highest.shape, dtype=np.int16)
    for channel in range(1, values.shape[1]):
        other = values[:, channel : channel + 1]
        np.copyto(found, channel, where=other > highest)
        np.maximum(highest, other, out=highest)
    return found


def where(condition: A, one: A, other: A) -> A:
    """Return the values of one array where the condition is true, elsewhere those of the other."""
    found: A = library_of(one).where(condition, one, other)
    return found


def concatenate(parts: Sequence[A], axis: int = 1) -> A:
    """Join arrays along an axis, by default that of the channels (N, C, H, W)."""
    whole: A = library_of(parts[0]).concatenate(list(parts), axis)
    return whole


def take_channels(values: A, index: A) -> A:
    """Return the values (N, C, H, W) at an index over axis 1, (N, T, H, W)."""
    if not isinstance(values, np.ndarray):
        return values.gather(1, index.long())
    return np.take_along_axis(values, index.astype(np.intp), axis=1)


def copy_of(array: A) -> A:
    """Return a copy."""
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


def per_channel(numbers: Sequence[float], like: A) -> A:
    """Return a number for each channel, (1, C, 1, 1), of the type and on the device of another array."""
    if not isinstance(like, np.ndarray):
        return like.new_tensor(numbers).view(1, -1, 1, 1)
    return np.array(numbers, dtype=like.dtype).reshape(1, -1, 1, 1)


def cast(array: A, dtype: str) -> A:
    """Convert to a type that both libraries name alike: "int16", "uint8"."""
    if isinstance(array, np.ndarray):
        return array.astype(dtype)
    import torch

    return array.to(getattr(torch, dtype))


def entropy_terms(probabilities: A) -> A:
    """Return -p log p, 0 where p is 0."""
    if isinstance(probabilities, np.ndarray):
        return -probabilities * np.log(np.where(probabilities > 0, probabilities, np.float32(1)))
    import torch

    terms: Tensor = torch.special.entr(probabilities)
    return terms
