"""Calibration: what a model's logits are multiplied by and shifted by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Calibration:
    """What logits are multiplied by and what is added, one number a channel.

    With softmax all are multiplied by one number, one over the temperature (Guo et al. 2017, "On Calibration of Modern
    Neural Networks"), which changes no decision by the highest probability. With sigmoid each channel has a factor and
    a summand of its own (Platt 1999, "Probabilistic Outputs for Support Vector Machines").
    """

    scale: tuple[float, ...]
    shift: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse what is not a number."""
        if not np.isfinite([*self.scale, *self.shift]).all():
            raise ValueError(f"calibration is {self.scale} and {self.shift}, not finite numbers")
