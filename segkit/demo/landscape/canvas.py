"""The pixels that are painted, and the patches painted on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import cv2
import numpy as np
from affine import Affine
from numpy.random import Generator
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.windows import Window

from segkit.demo.landscape.spectra import (
    BURNT_FIELD,
    DRY_PASTURE,
    FELLED,
    PASTURE,
    REGROWTH,
    SECONDARY,
    Floats,
    Surface,
)
from segkit.io.grid import Grid

Mask = NDArray[np.bool_]
Points = NDArray[np.complex128]


class Cover(IntEnum):
    """Codes of `landcover.tif`; `UNKNOWN` is the code of what nobody labelled."""

    OTHER = 0  # natural open ground: rock and sand
    WATER = 1
    FOREST = 2
    AGRICULTURE = 3
    URBAN = 4
    WETLAND = 5


_GAP = 64  # columns between the parts, so that no pixel is in the view of both
_TRAIN_SHARE = 0.7
_FULL_SIZE = 1152  # shorter side from which everything has its true size
_PIXEL = 10.0  # metres
_CRS = CRS.from_epsg(32721)
_UPPER_LEFT = (652_000.0, 8_962_000.0)  # southern Amazon, near 9.4 S 55.6 W; the real place looks different


@dataclass(frozen=True)
class Patch:
    """Land of one kind: its cover in 2024 and its surface on both dates."""

    cover: Cover
    before: Surface
    after: Surface
    deforested: bool = False
    canopy: bool = False
    flooded: bool = False

    def varied(self, rng: Generator) -> Patch:
        """Return a patch of the same kind in some other place."""
        return replace(self, before=self.before.varied(rng), after=self.after.varied(rng))


OLD_CLEARINGS: tuple[tuple[float, Patch], ...] = (  # share, and what such a clearing became
    (0.35, Patch(Cover.AGRICULTURE, PASTURE, DRY_PASTURE)),
    (0.27, Patch(Cover.AGRICULTURE, PASTURE, PASTURE)),
    (0.13, Patch(Cover.AGRICULTURE, PASTURE, BURNT_FIELD)),
    (0.10, Patch(Cover.AGRICULTURE, REGROWTH, FELLED)),  # cut again: no forest was there to lose
    (0.15, Patch(Cover.FOREST, REGROWTH, SECONDARY, canopy=True)),
)


@dataclass(frozen=True)
class Frame:
    """The pixels that are painted, and what is measured on all of them."""

    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width

    @property
    def unit(self) -> float:
        """Pixels that one pixel of the full-size landscape takes."""
        return min(1.0, max(0.3, min(self.shape) / _FULL_SIZE))

    @staticmethod
    def grid(window: Window) -> Grid:
        """Where a window lies."""
        x, y = _UPPER_LEFT[0] + window.col_off * _PIXEL, _UPPER_LEFT[1] - window.row_off * _PIXEL
        return Grid(window.height, window.width, Affine(_PIXEL, 0, x, 0, -_PIXEL, y), _CRS)

    @property
    def parts(self) -> tuple[Window, Window]:
        """Windows of the training and the held-out part."""
        west = round((self.width - _GAP) * _TRAIN_SHARE)
        return (
            Window(0, 0, west, self.height),
            Window(west + _GAP, 0, self.width - west - _GAP, self.height),
        )

    @property
    def pixels(self) -> Points:
        """Each pixel's own point, complex128 (height, width)."""
        return np.arange(self.width) + 1j * np.arange(self.height)[:, None]

    def holds(self, points: Points) -> Mask:
        """Which points lie on a pixel."""
        return (points.real >= 0) & (points.real < self.width) & (points.imag >= 0) & (points.imag < self.height)

    def noise(self, rng: Generator, scale: float) -> Floats:
        """Smooth noise of mean 0 and deviation 1: features of about `scale` pixels with fractal edges."""
        white = rng.standard_normal(self.shape)
        frequency = np.hypot(np.fft.fftfreq(self.height)[:, None], np.fft.rfftfreq(self.width)) * scale
        field = np.fft.irfft2(np.fft.rfft2(white) * (1 + frequency**2) ** -1.5, s=self.shape)
        return np.asarray((field - field.mean()) / field.std(), np.float32)

    def drawn(self, lines: Sequence[Points], width: float = 1.0) -> Mask:
        """Pixels of lines `width` pixels wide."""
        image = np.zeros(self.shape, np.uint8)
        for line in lines:
            cv2.polylines(image, [_sixteenths(line)], False, 1, max(1, round(width)), shift=_FRACTION_BITS)
        return image > 0

    def dotted(self, centres: Points, radius: float) -> Mask:
        """Pixels of discs."""
        image = np.zeros(self.shape, np.uint8)
        for x, y in _sixteenths(centres):
            cv2.circle(image, (int(x), int(y)), round(radius * 2**_FRACTION_BITS), 1, -1, shift=_FRACTION_BITS)
        return image > 0

    def distance(self, lines: Sequence[Points]) -> Floats:
        """Pixels from each pixel to the nearest line."""
        away = (~self.drawn(lines)).astype(np.uint8)
        return np.asarray(cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)

    def blob(self, centre: complex, radius: float, noise: Floats) -> Mask:
        """Pixels of a disc whose outline follows `noise`."""
        return np.abs(self.pixels - centre) < radius * (1 + 0.4 * noise)


_FRACTION_BITS = 4  # OpenCV draws in integers: sixteenths of a pixel


def _sixteenths(points: Points) -> NDArray[np.int32]:
    pairs = np.stack([points.real, points.imag], axis=-1)
    return np.asarray(np.rint(pairs * 2**_FRACTION_BITS), np.int32)


class Canvas:
    """Patches painted over each other; `numbers` says for every pixel which of `patches` lies on top."""

    def __init__(self, frame: Frame, first: Patch) -> None:
        self.frame = frame
        self.patches = [first]
        self.numbers = np.zeros(frame.shape, np.int32)

    def add(self, patch: Patch) -> int:
        """Return the number of a patch to paint with."""
        self.patches.append(patch)
        return len(self.patches) - 1

    def fill(self, where: Mask, patch: Patch) -> None:
        """Paint a patch where the mask says so."""
        self.numbers[where] = self.add(patch)

    def polygon(self, outline: Points, patch: Patch) -> None:
        """Paint a patch inside an outline."""
        cv2.fillPoly(self.numbers, [_sixteenths(outline)], self.add(patch), shift=_FRACTION_BITS)

    def roughen(self, rng: Generator, reach: float) -> None:
        """Shift every pixel by up to about `reach` pixels, as nobody fells trees along a ruler."""
        rows, columns = np.indices(self.frame.shape)
        down, right = (np.rint(reach * self.frame.noise(rng, 20 * self.frame.unit)).astype(int) for _ in range(2))
        height, width = self.frame.shape
        self.numbers = self.numbers[(rows + down).clip(0, height - 1), (columns + right).clip(0, width - 1)]
