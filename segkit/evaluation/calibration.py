"""Calibration: probabilities that mean what they say, fitted where the truth is known."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segkit.models.calibration import Calibration
from segkit.task.task import Task

_MOST_PIXELS = 2**18  # more change the second digit of nothing
_MOST_SCALE = 10.0
_LEAST, _HIGHEST = 1e-12, 1 - 2**-24  # float32 has nothing between the second and 1


class CalibrationFit:
    """Collects what a model said and what was true, of at most so many pixels as say enough.

    Parameters
    ----------
    task
        Whose head and likelihood count.
    pixels
        How many will come, at most; of more than enough a random part is kept.
    """

    def __init__(self, task: Task, pixels: int) -> None:
        self._task = task
        self._share = min(1.0, _MOST_PIXELS / max(pixels, 1))
        self._random = np.random.default_rng(0)
        self._said: list[Tensor] = []
        self._true: list[Tensor] = []

    def add(self, probabilities: Tensor | NDArray[np.floating[Any]], truth: NDArray[np.integer[Any]]) -> None:
        """Look at pixels: probabilities (C, H, W), and target planes (P, H, W), `IGNORE` where they are not known."""
        wanted = self._random.random(truth.shape[1:]) < self._share
        chosen = torch.from_numpy(wanted & (truth >= 0).any(axis=0))
        self._said.append(torch.as_tensor(probabilities).detach().cpu().float()[:, chosen])
        self._true.append(torch.from_numpy(truth.astype(np.int64))[:, chosen])

    def fit(self) -> Calibration | None:
        """Return what makes the truth most likely; None where nothing is known.

        A factor stays between a tenth and ten, so that no class is turned round. A sigmoid channel whose class is
        nowhere, or everywhere, stays as it is.
        """
        if not self._said or not sum(len(part[0]) for part in self._said):
            return None
        said = torch.cat(self._said, dim=1)[None, :, None].double().clamp(_LEAST, _HIGHEST)
        true = torch.cat(self._true, dim=1)[None, :, None]
        logits = self._task.logits(said)
        channels = self._task.channels
        target, known = self._task.onehot(true)
        seen = ((target * known).sum(dim=(0, 2, 3)) > 0) & (((1 - target) * known).sum(dim=(0, 2, 3)) > 0)
        compete = self._task.channels_compete
        # Logarithms of the factors, and summands.
        free = torch.zeros(2, 1 if compete else channels, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([free], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

        def parts() -> tuple[Tensor, Tensor]:
            scale = free[0].clamp(-np.log(_MOST_SCALE), np.log(_MOST_SCALE)).exp().expand(channels)
            if compete:
                return scale, torch.zeros_like(scale)
            return torch.where(seen, scale, 1.0), torch.where(seen, free[1], 0.0)

        def loss() -> Tensor:
            solver.zero_grad()
            scale, shift = parts()
            terms, weight = self._task.pixel_terms(logits * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1), true)
            value = (terms * weight).sum() / weight.sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        with torch.enable_grad():
            solver.step(loss)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            scale, shift = parts()
        if not torch.isfinite(torch.stack([scale, shift])).all():
            warnings.warn("calibration: the fit gave no finite numbers; probabilities stay as they are", stacklevel=2)
            return None
        return Calibration(tuple(scale.tolist()), tuple(shift.tolist()))
