"""Augmentation of training crops; the only module that uses albumentations."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segkit.io.scene import Tile
from segkit.runtime.garbage_collection import pause_collection
from segkit.task import IGNORE

_NO_UPDATE_CHECK = "NO_ALBUMENTATIONS_UPDATE"
# A random change of a square tile and its targets (T, H, W).
_Step = Callable[[Tile, NDArray[Any], np.random.Generator], tuple[Tile, NDArray[Any]]]


def _import_albumentations() -> Any:
    """Import albumentations without its check for updates, which uses the network."""
    before = os.environ.get(_NO_UPDATE_CHECK)
    os.environ[_NO_UPDATE_CHECK] = before or "1"
    try:
        with pause_collection():
            import albumentations
    finally:
        if before is None:
            del os.environ[_NO_UPDATE_CHECK]
        else:
            os.environ[_NO_UPDATE_CHECK] = before
    return albumentations


def apply_symmetry(tile: Tile, targets: NDArray[Any], random: np.random.Generator) -> tuple[Tile, NDArray[Any]]:
    """Apply one of the eight symmetries of the square."""
    turns, mirrored = int(random.integers(4)), bool(random.integers(2))

    def change(array: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(np.rot90(array[..., ::-1] if mirrored else array, turns, (-2, -1)))

    return Tile(change(tile.pixels), change(tile.valid)), change(targets)


class RadiometricJitter:
    """Random gain and offset for all bands jointly, with a small individual part per band.

    Sun and season make a scene brighter or darker as a whole (a factor), haze adds an offset. Both change bands in
    proportion to their level, and so keep the ratios and differences of bands that distinguish land cover. An
    independent gain and offset per band would teach the network to ignore these.

    The level of a band is its mean, limited to six standard deviations, so that bands with an arbitrary zero (height,
    kelvin) stay in their range. With a single band, brightness and land cover cannot be distinguished: there the limit
    is one standard deviation.

    Parameters
    ----------
    mean, std
        Of the bands.
    shared
        Standard deviation of the joint part: of the logarithm of the gain, and of the offset in levels.
    per_band
        The same of the individual part of each band.
    probability
        Share of tiles that are changed.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], shared: float, per_band: float, probability: float
    ) -> None:
        self._mean = np.asarray(mean, dtype=np.float64)
        limit = (6.0 if len(self._mean) > 1 else 1.0) * np.asarray(std, dtype=np.float64)
        self._level = np.clip(self._mean, -limit, limit)
        self._shared, self._per_band, self._probability = shared, per_band, probability

    def __call__(self, tile: Tile, targets: NDArray[Any], random: np.random.Generator) -> tuple[Tile, NDArray[Any]]:
        """Return the changed tile and its targets."""
        shared, per_band = random.standard_normal((2, 1)), random.standard_normal((2, len(self._mean)))
        if random.random() >= self._probability:
            return tile, targets
        drawn = self._shared * shared + self._per_band * per_band
        gain, offset = np.exp(drawn[0]), drawn[1]
        # (pixels - mean) * gain + mean + (gain - 1 + offset) * level, as one product and one sum.
        pixels = tile.pixels * gain.astype(np.float32)[:, None, None]
        rest = self._mean * (1 - gain) + (gain - 1 + offset) * self._level
        pixels += rest.astype(np.float32)[:, None, None]
        return Tile(pixels, tile.valid), targets


class GeometricTransform:
    """Random scale and rotation; pixels from outside the tile become no data."""

    def __init__(self, mean: Sequence[float], scale: tuple[float, float], degrees: float, probability: float) -> None:
        albumentations = _import_albumentations()
        self._mean = np.asarray(mean, dtype=np.float32)[:, None, None]
        affine = albumentations.Affine(
            scale=scale,
            rotate=(-degrees, degrees),
            interpolation=1,  # linear; masks take the nearest pixel
            mask_interpolation=0,
            fill_mask=IGNORE,
            p=probability,
        )
        self._compose = albumentations.Compose([affine])

    def __call__(self, tile: Tile, targets: NDArray[Any], random: np.random.Generator) -> tuple[Tile, NDArray[Any]]:
        """Return the changed tile and its targets."""
        self._compose.set_random_seed(int(random.integers(2**31)))
        # NaN would spread to neighbours when interpolated, so it is 0, which is the mean here.
        missing = np.isnan(tile.pixels)
        partly = missing & tile.valid
        bands = np.flatnonzero(partly.any(axis=(1, 2)))
        pixels = np.where(missing, np.float32(0), tile.pixels - self._mean)
        masks = [tile.valid.astype(np.float32), *targets.astype(np.float32), *partly[bands].astype(np.float32)]
        out = self._compose(image=np.ascontiguousarray(np.moveaxis(pixels, 0, 2)), masks=masks)
        changed = np.moveaxis(out["image"].reshape(*tile.valid.shape, -1), 2, 0) + self._mean
        valid = out["masks"][0] == 1
        changed[:, ~valid] = np.nan
        for band, nan in zip(bands, out["masks"][1 + len(targets) :], strict=True):
            changed[band, nan == 1] = np.nan
        moved = np.stack(out["masks"][1 : 1 + len(targets)]).astype(targets.dtype)
        return Tile(np.ascontiguousarray(changed), valid), moved


def _none(mean: Sequence[float], std: Sequence[float]) -> list[_Step]:
    return []


def _geometric(mean: Sequence[float], std: Sequence[float]) -> list[_Step]:
    return [apply_symmetry]


def _default(mean: Sequence[float], std: Sequence[float]) -> list[_Step]:
    return [apply_symmetry, RadiometricJitter(mean, std, shared=0.1, per_band=0.01, probability=0.9)]


def _strong(mean: Sequence[float], std: Sequence[float]) -> list[_Step]:
    return [
        apply_symmetry,
        GeometricTransform(mean, scale=(0.75, 1.33), degrees=45, probability=0.7),
        RadiometricJitter(mean, std, shared=0.2, per_band=0.02, probability=0.9),
    ]


AUGMENTATIONS = {"none": _none, "geometric": _geometric, "default": _default, "strong": _strong}


class Augmentation:
    """One of `AUGMENTATIONS` by name, for bands of a given mean and standard deviation."""

    def __init__(self, name: str, mean: Sequence[float], std: Sequence[float]) -> None:
        self._steps = AUGMENTATIONS[name](mean, std)

    def __call__(self, tile: Tile, targets: NDArray[Any], seed: int) -> tuple[Tile, NDArray[Any]]:
        """Return an augmented square tile and its targets; the same seed gives the same result."""
        random = np.random.default_rng(seed)
        for step in self._steps:
            tile, targets = step(tile, targets, random)
        return tile, targets
