"""Classes of a model that differ from those that its network was trained on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from segkit.task import Task

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class OutputClasses:
    """The task of a model, and which channels of its network each of its channels is made of.

    The probability of a merged channel is the sum of those of its parts, which is exact for mutually exclusive classes
    of a softmax: its logit is the logarithm of the sum of their exponentials.

    Parameters
    ----------
    task
        With the new classes.
    channels
        For each channel of `task`, the channels of the network.
    """

    task: Task
    channels: tuple[tuple[int, ...], ...]

    @property
    def is_merging(self) -> bool:
        """Whether a channel is made of several."""
        return any(len(parts) > 1 for parts in self.channels)

    def merge(self, logits: Tensor) -> Tensor:
        """Turn logits (N, C, H, W) of the network into those of the task."""
        if not self.is_merging:
            return logits
        import torch

        parts = [logits[:, list(parts)] for parts in self.channels]
        return torch.cat([part if part.shape[1] == 1 else part.logsumexp(dim=1, keepdim=True) for part in parts], dim=1)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        return {"task": asdict(self.task), "channels": [list(parts) for parts in self.channels]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> OutputClasses:
        """Read the value that `to_json` returns.

        Raises
        ------
        ValueError, KeyError, TypeError
            It is damaged.
        """
        task = TypeAdapter(Task).validate_json(json.dumps(value["task"]), strict=True)
        channels = tuple(tuple(int(part) for part in parts) for parts in value["channels"])
        if len(channels) != task.channels or not all(channels):
            raise ValueError(f"{len(channels)} groups of channels, but the task has {task.channels} channels")
        return cls(task, channels)
