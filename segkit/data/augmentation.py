"""Augmentation of training crops; albumentations, where it is used, is used here alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segkit.io.scene import Tile
from segkit.task.task import IGNORE

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version

# Changes a square tile and its target planes, (P, H, W), by what it draws.
_Step = Callable[[Tile, NDArray[Any], np.random.Generator], tuple[Tile, NDArray[Any]]]


def _symmetry(tile: Tile, planes: NDArray[Any], random: np.random.Generator) -> tuple[Tile, NDArray[Any]]:
    """Change to one of the eight symmetries of the square."""
    turns, mirrored = int(random.integers(4)), bool(random.integers(2))

    def change(array: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(np.rot90(array[..., ::-1] if mirrored else array, turns, (-2, -1)))

    return Tile(change(tile.pixels), change(tile.valid)), change(planes)


class _Light:
    """Random gain and offset that all bands share, and a little of each band's own.

    A scene is brighter or darker as a whole (sun, season: a factor), and veiled (haze: something added). Both change
    bands in proportion to their level, and so keep the ratios and differences by which cover is told. A gain and a
    shift of each band alone would teach the network to ignore just these.

    A level is the band's mean, of at most six of its standard deviations, so that bands whose zero says nothing
    (height, kelvin) are not moved beyond what they hold. Where there is one band alone nothing tells light from cover:
    there the level is at most one standard deviation.

    Parameters
    ----------
    mean, std
        Of the bands.
    shared
        Standard deviation of the logarithm of the gain, and of the offset in levels.
    own
        The same of what each band has for itself.
    probability
        Share of the tiles that are changed.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], shared: float, own: float, probability: float):
        self._mean = np.asarray(mean, dtype=np.float64)
        most = (6.0 if len(self._mean) > 1 else 1.0) * np.asarray(std, dtype=np.float64)
        self._level = np.clip(self._mean, -most, most)
        self._shared, self._own, self._probability = shared, own, probability

    def __call__(self, tile: Tile, planes: NDArray[Any], random: np.random.Generator) -> tuple[Tile, NDArray[Any]]:
        shared, own = random.standard_normal((2, 1)), random.standard_normal((2, len(self._mean)))
        if random.random() >= self._probability:
            return tile, planes
        drawn = self._shared * shared + self._own * own
        gain, offset = np.exp(drawn[0]), drawn[1]
        # (pixels - mean) * gain + mean + (gain - 1 + offset) * level, in one product and one sum.
        pixels = tile.pixels * gain.astype(np.float32)[:, None, None]
        rest = self._mean * (1 - gain) + (gain - 1 + offset) * self._level
        pixels += rest.astype(np.float32)[:, None, None]
        return Tile(pixels, tile.valid), planes


class _Warp:
    """Random scale and rotation; what comes from beyond the tile is no data."""

    def __init__(self, mean: Sequence[float], scale: tuple[float, float], degrees: float, probability: float) -> None:
        import albumentations

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

    def __call__(self, tile: Tile, planes: NDArray[Any], random: np.random.Generator) -> tuple[Tile, NDArray[Any]]:
        self._compose.set_random_seed(int(random.integers(2**31)))
        # What holds no data would spread over its neighbours; as 0, the fill, it is the mean.
        gone = np.isnan(tile.pixels)
        partly = gone & tile.valid
        bands = np.flatnonzero(partly.any(axis=(1, 2)))
        pixels = np.where(gone, np.float32(0), tile.pixels - self._mean)
        masks = [tile.valid.astype(np.float32), *planes.astype(np.float32), *partly[bands].astype(np.float32)]
        out = self._compose(image=np.ascontiguousarray(np.moveaxis(pixels, 0, 2)), masks=masks)
        changed = np.moveaxis(out["image"].reshape(*tile.valid.shape, -1), 2, 0) + self._mean
        valid = out["masks"][0] == 1
        changed[:, ~valid] = np.nan
        for band, nan in zip(bands, out["masks"][1 + len(planes) :], strict=True):
            changed[band, nan == 1] = np.nan
        moved = np.stack(out["masks"][1 : 1 + len(planes)]).astype(planes.dtype)
        return Tile(np.ascontiguousarray(changed), valid), moved


def _none(mean: Sequence[float], std: Sequence[float]) -> list[_Step]:
    return []


def _geometric(mean: Sequence[float], std: Sequence[float]) -> list[_Step]:
    return [_symmetry]


def _default(mean: Sequence[float], std: Sequence[float]) -> list[_Step]:
    return [_symmetry, _Light(mean, std, shared=0.1, own=0.01, probability=0.9)]


def _strong(mean: Sequence[float], std: Sequence[float]) -> list[_Step]:
    return [
        _symmetry,
        _Warp(mean, scale=(0.75, 1.33), degrees=45, probability=0.7),
        _Light(mean, std, shared=0.2, own=0.02, probability=0.9),
    ]


AUGMENTATIONS = {"none": _none, "geometric": _geometric, "default": _default, "strong": _strong}


class Augmentation:
    """One of `AUGMENTATIONS` by name, for bands of a given mean and standard deviation."""

    def __init__(self, name: str, mean: Sequence[float], std: Sequence[float]) -> None:
        self._steps = AUGMENTATIONS[name](mean, std)

    def __call__(self, tile: Tile, planes: NDArray[Any], seed: int) -> tuple[Tile, NDArray[Any]]:
        """Return a changed square tile and its target planes; the same seed changes them in the same way."""
        random = np.random.default_rng(seed)
        for step in self._steps:
            tile, planes = step(tile, planes, random)
        return tile, planes
