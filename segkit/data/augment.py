"""Augmentation of training crops through albumentations, which nothing else touches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segkit.raster import Tile

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version
import albumentations

_GAIN = 0.1  # standard deviation of the factor on a band's contrast about its mean
_SHIFT = 0.1  # of the shift of a band, in its standard deviations
_SHARED = 0.7  # share of gain and shift that all bands have in common: light and haze change bands together


# Of albumentations' names: quarter turns, after a mirror or not.
_SYMMETRIES = {
    "e": (0, False),
    "r90": (1, False),
    "r180": (2, False),
    "r270": (3, False),
    "v": (0, True),
    "hvt": (1, True),
    "h": (2, True),
    "t": (3, True),
}


class Symmetry(albumentations.D4):  # type: ignore[misc]
    """One of the eight symmetries of the square, by numpy: OpenCV 5, which albumentations asks, has 128 bands."""

    def apply(self, img: NDArray[Any], group_element: str, **_: Any) -> Any:
        """Change an image (H, W, C) or a mask (H, W)."""
        turns, mirrored = _SYMMETRIES[group_element]
        return np.rot90(img[::-1] if mirrored else img, turns)


class Radiometry(albumentations.ImageOnlyTransform):  # type: ignore[misc]
    """Random gain and shift of each band, for any number of bands, about the bands' own mean and deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], p: float = 0.8) -> None:
        super().__init__(p=p)
        self.mean = np.asarray(mean, dtype=np.float32)
        self.std = np.asarray(std, dtype=np.float32)

    def apply(self, img: NDArray[np.float32], gain: NDArray[np.float32], shift: NDArray[np.float32], **_: Any) -> Any:
        """Change an image (H, W, C)."""
        return (img - self.mean) * gain + (self.mean + shift * self.std)

    def get_params(self) -> dict[str, Any]:
        """Draw gain and shift of each band."""
        bands = len(self.mean)
        common, own = self.random_generator.standard_normal((2, 1)), self.random_generator.standard_normal((2, bands))
        gain, shift = _SHARED * common + np.sqrt(1 - _SHARED**2) * own
        return {"gain": (1 + _GAIN * gain).astype(np.float32), "shift": (_SHIFT * shift).astype(np.float32)}


def _none(mean: Sequence[float], std: Sequence[float]) -> list[Any]:
    return []


def _geometric(mean: Sequence[float], std: Sequence[float]) -> list[Any]:
    return [Symmetry(p=1.0)]


def _default(mean: Sequence[float], std: Sequence[float]) -> list[Any]:
    return [Symmetry(p=1.0), Radiometry(mean, std)]


AUGMENTATIONS = {"none": _none, "geometric": _geometric, "default": _default}


class Augmentation:
    """One of `AUGMENTATIONS` by name, for bands of a given mean and standard deviation."""

    def __init__(self, name: str, mean: Sequence[float], std: Sequence[float]) -> None:
        self._compose = albumentations.Compose(AUGMENTATIONS[name](mean, std))

    def __call__(self, tile: Tile, planes: NDArray[np.int16], seed: int) -> tuple[Tile, NDArray[np.int16]]:
        """Return a changed square tile and its target planes; the same seed changes them in the same way."""
        self._compose.set_random_seed(seed)
        masks = [tile.valid.astype(np.int16), *planes]
        out = self._compose(image=np.moveaxis(tile.pixels, 0, 2), masks=masks)
        valid, *changed = out["masks"]
        pixels = np.ascontiguousarray(np.moveaxis(out["image"], 2, 0))
        return Tile(pixels, valid.astype(bool)), np.stack(changed)
