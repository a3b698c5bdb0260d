"""The pixel grid of the landscape, and patches of land painted on it."""

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


class LandCover(IntEnum):
    """Codes of `landcover.tif`; unlabelled pixels have the code `UNLABELLED`."""

    OTHER = 0  # natural open ground: rock and sand
    WATER = 1
    FOREST = 2
    AGRICULTURE = 3
    URBAN = 4
    WETLAND = 5


_GAP_PX = 64  # columns between the parts, so that no pixel is in the field of view of both
_TRAIN_SHARE = 0.7
_FULL_SIZE_PX = 1152  # shorter side at which objects have their full size; smaller landscapes are miniatures
_PIXEL_METRES = 10.0
_CRS = CRS.from_epsg(32721)
_UPPER_LEFT = (652_000.0, 8_962_000.0)  # southern Amazon, near 9.4 S 55.6 W; the real place looks different


@dataclass(frozen=True)
class Patch:
    """A piece of uniform land: its cover in 2024 and its surface on both dates."""

    cover: LandCover
    before: Surface
    after: Surface
    deforested: bool = False
    canopy: bool = False
    flooded: bool = False

    def vary(self, rng: Generator) -> Patch:
        """Return a patch of the same kind with random variation of its surfaces."""
        return replace(self, before=self.before.vary(rng), after=self.after.vary(rng))


OLD_CLEARINGS: tuple[tuple[float, Patch], ...] = (  # share of the clearings before 2019, and their present use
    (0.35, Patch(LandCover.AGRICULTURE, PASTURE, DRY_PASTURE)),
    (0.27, Patch(LandCover.AGRICULTURE, PASTURE, PASTURE)),
    (0.13, Patch(LandCover.AGRICULTURE, PASTURE, BURNT_FIELD)),
    (0.10, Patch(LandCover.AGRICULTURE, REGROWTH, FELLED)),  # regrowth cut again: not deforestation
    (0.15, Patch(LandCover.FOREST, REGROWTH, SECONDARY, canopy=True)),
)


@dataclass(frozen=True)
class Frame:
    """The pixel grid, and functions that rasterize shapes on it."""

    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width

    @property
    def unit(self) -> float:
        """Scale of this landscape: pixels per pixel of the full-size landscape."""
        return min(1.0, max(0.3, min(self.shape) / _FULL_SIZE_PX))

    @staticmethod
    def grid(window: Window) -> Grid:
        """Return the grid of a window."""
        x, y = _UPPER_LEFT[0] + window.col_off * _PIXEL_METRES, _UPPER_LEFT[1] - window.row_off * _PIXEL_METRES
        return Grid(window.height, window.width, Affine(_PIXEL_METRES, 0, x, 0, -_PIXEL_METRES, y), _CRS)

    @property
    def parts(self) -> tuple[Window, Window]:
        """Windows of the training and the held-out part."""
        west = round((self.width - _GAP_PX) * _TRAIN_SHARE)
        return (
            Window(0, 0, west, self.height),
            Window(west + _GAP_PX, 0, self.width - west - _GAP_PX, self.height),
        )

    @property
    def pixels(self) -> Points:
        """The coordinates of each pixel as complex numbers, complex128 (height, width)."""
        return np.arange(self.width) + 1j * np.arange(self.height)[:, None]

    def contains(self, points: Points) -> Mask:
        """Return which points are inside of the grid."""
        return (points.real >= 0) & (points.real < self.width) & (points.imag >= 0) & (points.imag < self.height)

    def noise(self, rng: Generator, scale: float) -> Floats:
        """Return smooth noise of mean 0 and standard deviation 1: features of about `scale` pixels, fractal edges."""
        white = rng.standard_normal(self.shape)
        frequency = np.hypot(np.fft.fftfreq(self.height)[:, None], np.fft.rfftfreq(self.width)) * scale
        field = np.fft.irfft2(np.fft.rfft2(white) * (1 + frequency**2) ** -1.5, s=self.shape)
        return np.asarray((field - field.mean()) / field.std(), np.float32)

    def rasterize_lines(self, lines: Sequence[Points], width: float = 1.0) -> Mask:
        """Return the pixels of lines that are `width` pixels wide."""
        image = np.zeros(self.shape, np.uint8)
        for line in lines:
            cv2.polylines(image, [_to_fixed_point(line)], False, 1, max(1, round(width)), shift=_FRACTION_BITS)
        return image > 0

    def rasterize_discs(self, centres: Points, radius: float) -> Mask:
        """Return the pixels of discs."""
        image = np.zeros(self.shape, np.uint8)
        for x, y in _to_fixed_point(centres):
            cv2.circle(image, (int(x), int(y)), round(radius * 2**_FRACTION_BITS), 1, -1, shift=_FRACTION_BITS)
        return image > 0

    def distance(self, lines: Sequence[Points]) -> Floats:
        """Return the distance from each pixel to the nearest line in pixels."""
        not_on_line = (~self.rasterize_lines(lines)).astype(np.uint8)
        return np.asarray(cv2.distanceTransform(not_on_line, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)

    def rasterize_blob(self, centre: complex, radius: float, noise: Floats) -> Mask:
        """Return the pixels of a disc with an irregular outline given by `noise`."""
        return np.abs(self.pixels - centre) < radius * (1 + 0.4 * noise)


_FRACTION_BITS = 4  # OpenCV coordinates are integers: sixteenths of a pixel


def _to_fixed_point(points: Points) -> NDArray[np.int32]:
    pairs = np.stack([points.real, points.imag], axis=-1)
    return np.asarray(np.rint(pairs * 2**_FRACTION_BITS), np.int32)


class Canvas:
    """Patches painted over each other; `patch_indices` is the index in `patches` of the topmost patch of each pixel."""

    def __init__(self, frame: Frame, first: Patch) -> None:
        self.frame = frame
        self.patches = [first]
        self.patch_indices = np.zeros(frame.shape, np.int32)

    def add(self, patch: Patch) -> int:
        """Add a patch and return its index."""
        self.patches.append(patch)
        return len(self.patches) - 1

    def fill(self, where: Mask, patch: Patch) -> None:
        """Paint a patch on the pixels of a mask."""
        self.patch_indices[where] = self.add(patch)

    def polygon(self, outline: Points, patch: Patch) -> None:
        """Paint a patch inside an outline."""
        cv2.fillPoly(self.patch_indices, [_to_fixed_point(outline)], self.add(patch), shift=_FRACTION_BITS)

    def roughen(self, rng: Generator, reach: float) -> None:
        """Shift pixels randomly by up to about `reach` pixels, to make straight borders irregular."""
        rows, columns = np.indices(self.frame.shape)
        down, right = (np.rint(reach * self.frame.noise(rng, 20 * self.frame.unit)).astype(int) for _ in range(2))
        height, width = self.frame.shape
        self.patch_indices = self.patch_indices[(rows + down).clip(0, height - 1), (columns + right).clip(0, width - 1)]
