"""Calibration: scale and shift of a model's logits. `segkit.evaluation.calibration` fits them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Calibration:
    """Scale and shift of the logits, one pair per channel: ``scale * logit + shift``.

    With softmax all channels have the same scale, 1 / temperature (Guo et al. 2017, "On Calibration of Modern Neural
    Networks"), and no shift, so the most probable category stays the same. With sigmoid each channel has its own scale
    and shift (Platt 1999, "Probabilistic Outputs for Support Vector Machines").
    """

    scale: tuple[float, ...]
    shift: tuple[float, ...]

    def __post_init__(self) -> None:
        """Raise a ValueError if a number is not finite."""
        if not np.isfinite([*self.scale, *self.shift]).all():
            raise ValueError(f"calibration has scale {self.scale} and shift {self.shift}; all must be finite numbers")
