"""Where the weights of a model came from that its training started from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class InitialWeights:
    """Where the weights came from that a training started from; kept in the model file.

    Parameters
    ----------
    source
        Path of the file, or the name of published weights.
    fingerprint
        Hash of the content: `Segmenter.fingerprint` of a model, SHA-256 of another file; None of published weights.
    summary
        What was taken and what was not: the number of tensors, the first layer and so on.
    """

    source: str
    fingerprint: str | None
    summary: tuple[str, ...]

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> InitialWeights:
        """Return what a model file holds."""
        return cls(stored["source"], stored["fingerprint"], tuple(stored["summary"]))

    def render(self) -> str:
        """Return the summary as text, with a line for each part."""
        return "\n  ".join((f"weights from {self.source}", *self.summary))
