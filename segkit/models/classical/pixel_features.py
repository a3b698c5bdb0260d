"""Features of each pixel for a classical learner: its bands, local texture, normalised differences of bands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from segkit.errors import RecipeError
from segkit.recipe.features import Features


class PixelFeatures(nn.Module):
    """Computes the features that a recipe declares; nothing in it is learned.

    The features of a pixel are its normalised bands; for each side k of `texture` the mean and the standard deviation
    of each band in the k x k pixels around it; and for each pair (a, b) of `indices` the normalised difference
    (a - b) / (a + b) of two bands in the units of the files, limited to -1 to 1 (0 if a + b is 0).

    Parameters
    ----------
    declared
        None for the bands only.
    mean, std
        Normalisation of each band.
    band_names
        One per band.
    bands
        `data.bands`: the numbers (or names) of the bands in the files; None: 1, 2, ...

    Raises
    ------
    RecipeError
        A band of `indices` does not exist.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        declared: Features | None,
        mean: Tensor,
        std: Tensor,
        band_names: Sequence[str],
        bands: Sequence[int | str] | None = None,
    ) -> None:
        super().__init__()
        declared = declared or Features()
        numbers: list[int | str] = list(range(1, len(band_names) + 1)) if bands is None else list(bands)
        numbers += band_names[len(numbers) :]  # computed bands and layers, which have no numbers
        self.sides = declared.texture
        self.pairs = [tuple(_find_band(one, band_names, numbers) for one in pair) for pair in declared.indices]
        self.count = len(band_names) * (1 + 2 * len(self.sides)) + len(self.pairs)
        self.radius: int = max((side // 2 for side in self.sides), default=0)
        # Copies of the segmenter's numbers, which its model file stores.
        self.register_buffer("mean", mean.detach().flatten().clone(), persistent=False)
        self.register_buffer("std", std.detach().flatten().clone(), persistent=False)

    def forward(self, pixels: Tensor, valid: Tensor) -> Tensor:
        """Return features, float32 (N, F, H, W).

        Parameters
        ----------
        pixels
            Normalised, float32 (N, C, H, W); 0 where there is no data.
        valid
            bool (N, H, W). Pixels without data do not count in the texture of others, nor does anything beyond the
            edges.
        """
        parts = [pixels]
        parts += [_local_statistics(pixels, valid, side) for side in self.sides]
        parts += [self._normalized_difference(pixels, first, second)[:, None] for first, second in self.pairs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _normalized_difference(self, pixels: Tensor, first: int, second: int) -> Tensor:
        one, other = (pixels[:, band] * self.std[band] + self.mean[band] for band in (first, second))
        total = one + other
        index = (one - other) / torch.where(total == 0, 1.0, total)
        return index.masked_fill(total == 0, 0.0).clamp(-1, 1)


def _find_band(wanted: int | str, names: Sequence[str], numbers: Sequence[int | str]) -> int:
    """Return the position of a band that is given by name or by its number in the files."""
    listed: Sequence[int | str] = numbers if isinstance(wanted, int) else names
    if wanted not in listed:
        known = ", ".join(f"{number} ({name})" for number, name in zip(numbers, names, strict=True))
        raise RecipeError(f"model.features.indices: there is no band {wanted}; the bands in use are {known}")
    if list(listed).count(wanted) > 1:
        raise RecipeError(f"model.features.indices: several bands are called {wanted!r}; give the number of one")
    return listed.index(wanted)


def _local_statistics(pixels: Tensor, valid: Tensor, side: int) -> Tensor:
    """Return mean and standard deviation of each band in windows of `side` x `side` pixels, float32 (N, 2C, H, W).

    The sums are those of the window's pixels in a fixed order, so the result does not depend on what lies around it.
    They are float64, since the variance is a small difference of large numbers.
    """
    share = _window_mean(valid[:, None].double(), side).clamp(min=1e-9)  # 0 only where all sums are 0, too
    means, deviations = [], []
    for band in torch.split(pixels, 1, dim=1):
        values = band.double() * valid[:, None]
        mean = _window_mean(values, side) / share
        square = _window_mean(values.square(), side) / share
        means.append(mean.float())
        deviations.append((square - mean.square()).clamp(min=0).sqrt().float())
    return torch.cat(means + deviations, dim=1)


def _window_mean(values: Tensor, side: int) -> Tensor:
    """Return the mean of each window, with zeros beyond the edges; rows and columns one after the other."""
    if torch.compiler.is_compiling():  # exported: onnxruntime has no pooling of float64
        return _shifted_mean(_shifted_mean(values, side, -2), side, -1)
    rows = avg_pool2d(values, (side, 1), stride=1, padding=(side // 2, 0))
    return avg_pool2d(rows, (1, side), stride=1, padding=(0, side // 2))


def _shifted_mean(values: Tensor, side: int, axis: int) -> Tensor:
    """Return the mean of each pixel and its neighbours along an axis, with zeros beyond the edges."""
    margin, length = side // 2, values.shape[axis]
    padded = pad(values, (margin, margin) if axis == -1 else (0, 0, margin, margin))
    total = padded.narrow(axis, 0, length)
    for start in range(1, side):
        total = total + padded.narrow(axis, start, length)
    return total / side
