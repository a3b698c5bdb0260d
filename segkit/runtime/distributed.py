"""Distributed training: sums and batch normalisation over the batches of all processes.

Each process holds a part of the global batch, and all make the same calls in the same order. With a single process the
functions return its own values. A loss made of such sums has the value of the global batch in every process. The
backward pass sums its gradients over the processes, and Lightning's strategies then average over the processes, which
gives the gradient that one process would compute for the global batch.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.nn import functional
from torch.overrides import TorchFunctionMode

T = TypeVar("T")

_BROADCAST_TIMEOUT = timedelta(days=7)


def world_size() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among those that train together."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def declared_rank() -> int:
    """Return the number that torchrun, SLURM or Lightning gave this process, as known before they are connected."""
    # SLURM sets its variable for other launchers' processes, too.
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return int(next((os.environ[name] for name in names if name in os.environ), "0"))


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum over all processes, differentiably; the result is the same in each."""
    return values if world_size() == 1 else _AllReduceSum.apply(values)


def all_gather(values: Tensor) -> tuple[Tensor, slice]:
    """Concatenate the values (..., M) of all processes.

    Returns
    -------
    values
        (..., world_size * M), detached.
    own
        Where the values of this process are along the last axis.
    """
    if world_size() == 1:
        return values.detach(), slice(None)
    parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(world_size())]
    distributed.all_gather(parts, values.detach().contiguous())
    first = distributed.get_rank() * values.shape[-1]
    return torch.cat(parts, dim=-1), slice(first, first + values.shape[-1])


def broadcaster() -> Callable[[T], T]:
    """Return a function that sends the first process's value to all processes.

    The others wait up to seven days for it. (Lightning's own exchanges time out after half an hour.)
    """
    if world_size() == 1:
        return lambda value: value
    atexit.register(_destroy_process_group)
    group = distributed.new_group(backend="gloo", timeout=_BROADCAST_TIMEOUT)
    assert isinstance(group, distributed.ProcessGroup)

    def broadcast(value: T) -> T:
        values = [value]
        distributed.broadcast_object_list(values, src=0, group=group)
        return values[0]

    return broadcast


def _destroy_process_group() -> None:
    """End the threads of gloo; a process that exits while one of them runs is sometimes aborted."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def sync_batch_norm() -> AbstractContextManager[object]:
    """Return a context in which networks in training mode normalise with the statistics of the global batch.

    The layers themselves are not changed. (torch's SyncBatchNorm replaces them, works on GPUs only, and drops the
    activations that timm's layers contain.)
    """
    return nullcontext() if world_size() == 1 else _SyncBatchNormMode()


class _AllReduceSum(torch.autograd.Function):
    """A sum whose backward pass sums, too; torch.distributed.nn.functional.all_reduce does it, but is deprecated."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient)


class _SyncBatchNormMode(TorchFunctionMode):
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
    """Compute `torch.nn.functional.batch_norm` of values (N, C, ...) with the statistics of all processes.

    Every process must have the same number of pixels: crops have one size, and the last, incomplete batch is dropped.
    """
    if not training:
        return functional.batch_norm(values, running_mean, running_var, weight, bias, False, momentum, eps)
    shape = (1, -1, *[1] * (values.ndim - 2))
    exact = values.float()
    own_var, own_mean = torch.var_mean(exact, [axis for axis in range(values.ndim) if axis != 1], correction=0)
    mean = all_reduce_sum(own_mean) / world_size()
    var = all_reduce_sum(own_var + (own_mean - mean).square()) / world_size()
    if running_mean is not None and running_var is not None:
        pixels = world_size() * values.numel() // values.shape[1]
        running_mean.lerp_(mean.detach().to(running_mean.dtype), momentum)
        running_var.lerp_((var.detach() * pixels / (pixels - 1)).to(running_var.dtype), momentum)
    scale = (var + eps).rsqrt() if weight is None else (var + eps).rsqrt() * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return torch.addcmul(shift.view(shape), exact, scale.view(shape)).to(values.dtype)
