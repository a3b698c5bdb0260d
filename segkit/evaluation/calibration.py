"""Fit the calibration of a model's probabilities on labelled pixels."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segkit.models.calibration import Calibration
from segkit.task import Task

_MAX_PIXELS = 2**18  # more do not change the first two digits of any result
_MAX_SCALE = 10.0
_MIN_PROBABILITY, _MAX_PROBABILITY = 1e-12, 1 - 2**-24  # the second is the largest float32 below 1


class CalibrationFit:
    """Collects probabilities and truth, and fits scale and shift of the logits by maximum likelihood.

    Parameters
    ----------
    task
        Defines head and likelihood.
    pixels
        Number of pixels that will be added, at most. Of more than 2^18 a random sample is used.
    """

    def __init__(self, task: Task, pixels: int) -> None:
        self._task = task
        self._sampled_share = min(1.0, _MAX_PIXELS / max(pixels, 1))
        self._random = np.random.default_rng(0)
        self._probabilities: list[Tensor] = []
        self._truth: list[Tensor] = []

    def add(self, probabilities: Tensor | NDArray[np.floating[Any]], truth: NDArray[np.integer[Any]]) -> None:
        """Add pixels: probabilities (C, H, W) and targets (T, H, W), `IGNORE` where unlabelled."""
        sampled = self._random.random(truth.shape[1:]) < self._sampled_share
        chosen = torch.from_numpy(sampled & (truth >= 0).any(axis=0))
        self._probabilities.append(torch.as_tensor(probabilities).detach().cpu().float()[:, chosen])
        self._truth.append(torch.from_numpy(truth.astype(np.int64))[:, chosen])

    def fit(self) -> Calibration | None:
        """Return the calibration that maximises the likelihood of the truth; None if no pixel is labelled.

        The scale is limited to 0.1 to 10, so that no class is inverted. A sigmoid channel whose class is present at no
        pixel or at all pixels is not calibrated.
        """
        if not self._probabilities or not sum(len(part[0]) for part in self._probabilities):
            return None
        probabilities = torch.cat(self._probabilities, dim=1)[None, :, None].double()
        truth = torch.cat(self._truth, dim=1)[None, :, None]
        logits = self._task.logits(probabilities.clamp(_MIN_PROBABILITY, _MAX_PROBABILITY))
        channels = self._task.channels
        target, labelled = self._task.onehot(truth)
        fitted = ((target * labelled).sum(dim=(0, 2, 3)) > 0) & (((1 - target) * labelled).sum(dim=(0, 2, 3)) > 0)
        is_softmax = self._task.is_softmax
        # Row 0: logarithm of the scale; row 1: shift.
        parameters = torch.zeros(2, 1 if is_softmax else channels, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

        def scale_and_shift() -> tuple[Tensor, Tensor]:
            scale = parameters[0].clamp(-np.log(_MAX_SCALE), np.log(_MAX_SCALE)).exp().expand(channels)
            if is_softmax:
                return scale, torch.zeros_like(scale)
            return torch.where(fitted, scale, 1.0), torch.where(fitted, parameters[1], 0.0)

        def loss() -> Tensor:
            solver.zero_grad()
            scale, shift = scale_and_shift()
            terms, weight = self._task.nll_terms(logits * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1), truth)
            value = (terms * weight).sum() / weight.sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        with torch.enable_grad():
            solver.step(loss)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            scale, shift = scale_and_shift()
        if not torch.isfinite(torch.stack([scale, shift])).all():
            warnings.warn(
                "calibration: the fit gave numbers that are not finite; the model is saved uncalibrated", stacklevel=2
            )
            return None
        return Calibration(tuple(scale.tolist()), tuple(shift.tolist()))
