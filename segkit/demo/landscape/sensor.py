"""Simulate two satellite images of the landscape: illumination, haze, swath edges and sensor noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from segkit.demo.landscape.canvas import Canvas, Frame
from segkit.demo.landscape.spectra import Floats, Surface

NODATA = 0


def acquire_scenes(rng: Generator, canvas: Canvas) -> list[NDArray[np.uint16]]:
    """Return the image of each date, uint16 (6, height, width)."""
    frame = canvas.frame
    land_rng, *date_rngs = rng.spawn(1 + len(_DATES))
    hills = -np.abs(frame.noise(land_rng, 70)) + 0.12 * frame.noise(land_rng, 20)  # ridges between sharp valleys
    slopes = np.gradient(hills, axis=1) - np.gradient(hills, axis=0)  # towards a sun in the north-east
    crowns = frame.noise(land_rng, 2.5)
    scenes = []
    for date, date_rng in zip(_DATES, date_rngs, strict=True):
        surfaces = [getattr(patch, date.surface) for patch in canvas.patches]
        # Most crown texture is the same on both dates, some of it differs.
        light = 0.8 * crowns + 0.6 * frame.noise(date_rng, 2.5)
        land = _reflectance(date_rng, canvas, surfaces, light, slopes / slopes.std())
        scenes.append(_observe(date_rng, frame, land, date))
    return scenes


@dataclass(frozen=True)
class _Acquisition:
    """The properties of one image.

    Parameters
    ----------
    surface
        The attribute of a patch with its surface on this date.
    season
        Factor per band: the dry season lowers near infrared and raises short-wave infrared.
    haze
        Reflectance of the thickest haze in the blue band.
    light
        Relative difference of brightness between east and west.
    swath
        Shift of the swath's edges to the east, in pixels.
    """

    surface: str
    season: tuple[float, ...]
    haze: float
    light: float
    swath: float


_DATES = (
    _Acquisition("before", (1.0, 1.0, 1.0, 1.0, 1.0, 1.0), haze=0.006, light=0.06, swath=0.0),
    _Acquisition("after", (1.03, 1.02, 1.06, 0.95, 1.04, 1.07), haze=0.012, light=-0.05, swath=5.0),
)
_HAZE_BY_BAND = (1.0, 0.72, 0.5, 0.25, 0.1, 0.06)  # smoke scatters short waves most
_HILLSHADE = 0.06
_NOISE = 0.0025  # of the sensor, in reflectance
_SWATH_CORNER = 0.06  # of the width
_SWATH_SLANT = 0.24  # columns per row of a descending orbit
_SCALE = 10_000


def _reflectance(rng: Generator, canvas: Canvas, surfaces: Sequence[Surface], light: Floats, slopes: Floats) -> Floats:
    """Return the land's reflectance, float32 (6, height, width)."""
    patch_indices = canvas.patch_indices
    ground, spots = (np.stack([getattr(surface, name) for surface in surfaces], axis=1) for name in ("ground", "spots"))
    share, grain = (
        np.array([getattr(surface, name) for surface in surfaces], np.float32) for name in ("share", "grain")
    )
    # The logistic function makes the normal noise uniform; a share of uniform values is below the threshold `share`.
    clumps = 1 / (1 + np.exp(-1.7 * canvas.frame.noise(rng, 7)))
    spotted = ((1.2 * share[patch_indices] - clumps) / 0.2).clip(0, 1)
    brightness = 1 + grain[patch_indices] * light + _HILLSHADE * (grain > 0)[patch_indices] * slopes
    brightness = brightness.clip(0.3, None)
    land = [
        (low[patch_indices] + spotted * (high - low)[patch_indices]) * brightness
        for low, high in zip(ground, spots, strict=True)
    ]
    return np.stack(land).astype(np.float32)


def _observe(rng: Generator, frame: Frame, land: Floats, date: _Acquisition) -> NDArray[np.uint16]:
    """Return digital numbers: season, light, haze, optics and noise are applied; nodata outside of the swath."""
    east = np.linspace(-0.5, 0.5, frame.width, dtype=np.float32)
    gain = 1 + date.light * east + 0.02 * frame.noise(rng, 300)
    haze = date.haze * (0.5 + 0.4 * frame.noise(rng, 250)).clip(0, 2)
    pixels = frame.pixels
    offset = pixels.real + _SWATH_SLANT * pixels.imag - date.swath * frame.unit
    corner = _SWATH_CORNER * frame.width
    seen = (offset >= corner) & (offset < frame.width + _SWATH_SLANT * frame.height - corner)
    image = np.zeros(land.shape, np.uint16)
    for band, reflectance in enumerate(land):
        sensed = _blur(reflectance * np.float32(date.season[band]) * gain + haze * np.float32(_HAZE_BY_BAND[band]))
        sensed += _NOISE * rng.standard_normal(frame.shape, dtype=np.float32)
        image[band] = np.where(seen, np.rint(sensed * _SCALE).clip(NODATA + 1, 2**16 - 1), NODATA)
    return image


def _blur(image: Floats) -> Floats:
    """Blur with the kernel 1 2 1 along rows and columns, like the optics of a 10 m sensor."""
    padded = np.pad(image, 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16, np.float32)
