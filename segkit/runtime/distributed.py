"""Processes that train together: sums and batch normalisation over the batches of all of them.

Each process holds a part of the global batch, and all make the same calls in the same order. Alone, a process is all.
A loss that is made of such sums is that of the global batch in every process. Its gradients are added up over the
processes on the way back, and the strategies of Lightning then take the mean over processes: what comes out is the
gradient that one process with the global batch has.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.nn import functional
from torch.overrides import TorchFunctionMode

T = TypeVar("T")

_PATIENCE = timedelta(days=7)


def count() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def total(values: Tensor) -> Tensor:
    """Sum over all processes, differentiable; the result is the same in each."""
    return values if count() == 1 else _Total.apply(values)


def gathered(values: Tensor) -> tuple[Tensor, slice]:
    """Return the values (..., M) of all processes as (..., processes x M), detached, and where one's own are."""
    if count() == 1:
        return values.detach(), slice(None)
    parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(count())]
    distributed.all_gather(parts, values.detach().contiguous())
    first = distributed.get_rank() * values.shape[-1]
    return torch.cat(parts, dim=-1), slice(first, first + values.shape[-1])


def teller() -> Callable[[T], T]:
    """Return a function that gives the first process's value to all; the others wait for it, whatever it does before.

    (Lightning's own exchanges give up after half an hour.)
    """
    if count() == 1:
        return lambda value: value
    atexit.register(_leave)
    group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    assert isinstance(group, distributed.ProcessGroup)

    def tell(value: T) -> T:
        values = [value]
        distributed.broadcast_object_list(values, src=0, group=group)
        return values[0]

    return tell


def _leave() -> None:
    """End the threads of gloo: a process that ends while one of them runs is aborted now and then."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def batch_norm() -> AbstractContextManager[object]:
    """Return a context in which networks that train normalise with the statistics of the global batch.

    The layers stay as they are, whatever their classes. (torch's SyncBatchNorm replaces them, on GPUs only, and loses
    the activations that timm's layers contain.)
    """
    return nullcontext() if count() == 1 else _Shared()


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)


class _Shared(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return (_batch_norm if func is functional.batch_norm else func)(*args, **kwargs or {})


def _batch_norm(
    values: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise as `torch.nn.functional.batch_norm` does with the batch (N, C, ...) of all processes.

    Crops have one size and steps are whole, so that all processes have as many pixels.
    """
    if not training:
        return functional.batch_norm(values, running_mean, running_var, weight, bias, False, momentum, eps)
    shape = (1, -1, *[1] * (values.ndim - 2))
    exact = values.float()
    own_var, own_mean = torch.var_mean(exact, [axis for axis in range(values.ndim) if axis != 1], correction=0)
    mean = total(own_mean) / count()
    var = total(own_var + (own_mean - mean).square()) / count()
    if running_mean is not None and running_var is not None:
        pixels = count() * values.numel() // values.shape[1]
        running_mean.lerp_(mean.detach().to(running_mean.dtype), momentum)
        running_var.lerp_((var.detach() * pixels / (pixels - 1)).to(running_var.dtype), momentum)
    scale = (var + eps).rsqrt() if weight is None else (var + eps).rsqrt() * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return torch.addcmul(shift.view(shape), exact, scale.view(shape)).to(values.dtype)
