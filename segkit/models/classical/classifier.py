"""A classical learner in the place of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segkit.models.classical.learner import Learner, Linear
from segkit.models.classical.pixel_features import PixelFeatures
from segkit.models.classical.svm import SupportVectors
from segkit.models.classical.trees import Boosting, Forest
from segkit.recipe.schema import Recipe
from segkit.task import Task

LEARNERS: dict[str, type[Learner]] = {
    "lda": Linear,
    "svm": SupportVectors,
    "forest": Forest,
    "boosting": Boosting,
}
_MIN_PROBABILITY = 1e-7  # that of a forest may be 0, whose logarithm is infinite
_STRIP_PX = 2**15  # pixels whose features are in memory at once


class PixelClassifier(nn.Module):
    """Maps normalised pixels to logits by a classical learner for each target, with a limited receptive field.

    Parameters
    ----------
    recipe
        Names the learner, its features and the task.
    mean, std
        Normalisation of each band.
    band_names
        One per band.

    Raises
    ------
    RecipeError
        A band of `model.features.indices` does not exist.
    """

    def __init__(self, recipe: Recipe, mean: Tensor, std: Tensor, band_names: Sequence[str]) -> None:
        super().__init__()
        self.task: Task = recipe.task
        self.features = PixelFeatures(recipe.model.features, mean, std, band_names, recipe.data.bands)
        learner = LEARNERS[recipe.model.architecture]
        size = len(self.task.categories)
        self.targets = nn.ModuleList(learner(self.features.count, size) for _ in range(self.task.n_targets))

    @property
    def learners(self) -> list[Learner]:
        """The learner of each target."""
        return list(self.targets)  # type: ignore[arg-type]

    @property
    def receptive_field(self) -> int:
        """Radius in pixels around a pixel that its logits depend on."""
        return self.features.radius

    @torch.no_grad()
    def forward(self, pixels: Tensor, valid: Tensor) -> Tensor:
        """Return logits, float32 (N, channels, H, W), strip by strip, so that the features of a window need not fit.

        Parameters
        ----------
        pixels
            Normalised, float32 (N, C, H, W); 0 where there is no data.
        valid
            bool (N, H, W).
        """
        number, _, height, width = pixels.shape
        if torch.compiler.is_compiling():  # a graph that is exported has no loop over strips of an unknown window
            return self._classify(pixels, valid, slice(None)).permute(0, 3, 1, 2)
        logits = pixels.new_empty(number, height, width, self.task.channels)
        rows, margin = max(1, _STRIP_PX // max(1, number * width)), self.features.radius
        for start in range(0, height, rows):
            stop, first = min(start + rows, height), max(0, start - margin)
            part = slice(first, stop + margin)
            logits[:, start:stop] = self._classify(
                pixels[:, :, part], valid[:, part], slice(start - first, stop - first)
            )
        return logits.permute(0, 3, 1, 2)

    def _classify(self, pixels: Tensor, valid: Tensor, rows: slice) -> Tensor:
        """Return the logits of some rows, float32 (N, rows, W, channels)."""
        features = self.features(pixels, valid)[:, :, rows].permute(0, 2, 3, 1)
        vectors = features.reshape(-1, self.features.count).contiguous()
        return self._logits(vectors).view(*features.shape[:3], -1)

    def _logits(self, vectors: Tensor) -> Tensor:
        """Return the logits (n, channels) of feature vectors (n, F): log probabilities, or log odds with sigmoid."""
        scores = [learner(vectors).log_softmax(dim=1) for learner in self.learners]
        limit = -math.log(_MIN_PROBABILITY)
        if self.task.is_softmax:
            log_probabilities: Tensor = scores[0].clamp(min=-limit).float()
            return log_probabilities
        channels = []
        for target, category in self.task.channel_categories:
            others = [other for other in range(scores[target].shape[1]) if other != category]
            odds = scores[target][:, category] - scores[target][:, others].logsumexp(dim=1)
            channels.append(odds.clamp(-limit, limit))
        return torch.stack(channels, dim=1).float()
