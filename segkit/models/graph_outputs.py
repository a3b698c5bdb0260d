"""Outputs of a model as a graph (ONNX, torch.export): one per target, in which the highest channel is the class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from segkit.task import Task
from segkit.task.array_library import A, concatenate

if TYPE_CHECKING:
    from torch import Tensor

CARD_KEY = "segkit"  # of the metadata
CARD_FORMAT = 1


def output_names(task: Task, *, decide: bool = False) -> list[list[str]]:
    """Return the names of the channels of each output of the graph."""
    if decide:
        return [list(task.band_names)]
    names = list(task.channel_names)
    if task.n_targets > 1:
        return [[name] for name in names]
    if task.type == "binary":
        return [names[-1:]]
    return [[task.categories[0], *names] if _lacks_background(task) else names]


def tensor_names(task: Task, *, decide: bool = False) -> list[str]:
    """Return the names of the outputs of the graph."""
    count = len(output_names(task, decide=decide))
    if count > 1:
        return [f"probability_{number}" for number in range(1, count + 1)]
    return ["classes" if decide else "probabilities"]


def split_outputs(task: Task, probabilities: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs of the graph, one per target, in which the highest channel is the class, for (N, C, H, W).

    A binary target has one channel, the probability of its class. The sigmoid channels of exclusive classes with
    background get a channel for background before them: 1 - the highest probability.
    """
    if task.n_targets > 1:
        channels: tuple[Tensor, ...] = probabilities.split(1, dim=1)  # type: ignore[no-untyped-call]
        return channels
    if task.type == "binary":
        return (probabilities[:, -1:],)
    if _lacks_background(task):
        return (concatenate([1 - probabilities.amax(dim=1, keepdim=True), probabilities]),)
    return (probabilities,)


def join_outputs(task: Task, outputs: Sequence[A]) -> A:
    """Return probabilities (N, C, H, W) as the task has them; the inverse of `split_outputs`."""
    if task.type == "binary" and task.is_softmax:
        return concatenate([1 - outputs[0], outputs[0]])
    if task.n_targets == 1 and _lacks_background(task):
        return outputs[0][:, 1:]
    return outputs[0] if len(outputs) == 1 else concatenate(outputs)


def _lacks_background(task: Task) -> bool:
    """Whether exclusive classes have background, but no channel for it."""
    return task.type == "multiclass" and len(task.categories) > task.channels
