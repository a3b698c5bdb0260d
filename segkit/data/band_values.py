"""The values of the bands of scenes, for `segkit check`: ranges, and values that look like undeclared no data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.io.grid import Grid, lattice_windows
from segkit.io.pixel_rules import PixelRules
from segkit.io.scene import Scene, SceneReader

# The rim is sampled in segments of one pixel by this many, evenly spaced along each side.
_SEGMENTS, _SEGMENT_PX = 32, 64
_LATTICE = 4  # windows along each side of the interior
# A value is suspect if it is in all bands of at least this share of the rim.
_MIN_SHARE = 0.1


class BandRanges:
    """Number, minimum, mean and maximum of the values of each band, computed from parts.

    Parameters
    ----------
    bands
        Number of bands. Before the first value, minima and maxima are infinite.
    """

    def __init__(self, bands: int) -> None:
        self.number, self._sum = np.zeros(bands, dtype=np.int64), np.zeros(bands)
        self.min, self.max = np.full(bands, np.inf), np.full(bands, -np.inf)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of each band; NaN without values."""
        return np.where(self.number > 0, self._sum / np.maximum(self.number, 1), np.nan)

    def add(self, pixels: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
        """Add the finite values of pixels (C, H, W) where `valid` (H, W)."""
        for band, layer in enumerate(pixels):
            values = layer[valid]
            values = values[np.isfinite(values)]
            if values.size:
                self.number[band] += values.size
                self._sum[band] += values.sum(dtype=np.float64)
                self.min[band] = min(self.min[band], values.min())
                self.max[band] = max(self.max[band], values.max())

    def merge(self, other: BandRanges) -> None:
        """Add the values of another scene with the same bands."""
        self.number += other.number
        self._sum += other._sum
        self.min, self.max = np.minimum(self.min, other.min), np.maximum(self.max, other.max)


@dataclass(frozen=True)
class RimValue:
    """A stored value that fills all bands at the rim of a scene, and the share of the rim that it fills."""

    scene: Scene
    value: float
    share: float


def find_rim_value(scene: Scene) -> RimValue | None:
    """Return the value that is in all bands of at least a tenth of a scene's valid rim, if any.

    In a single band of integers, where equal values are common, it must be the smallest or the largest value of the
    rim. Values are stored ones, as `data.nodata` names them, and the rim is sampled.

    Raises
    ------
    RasterError
        A file is damaged there.
    """
    stored = replace(scene.without_derived(), scaled=False, rules=PixelRules(nodata=scene.rules.nodata))
    found: Counter[float] = Counter()
    valid, integers = 0, True
    lowest, highest = math.inf, -math.inf
    with stored.open() as reader:
        for window in _rim_windows(scene.grid):
            tile = reader.read(window)
            pixels = tile.pixels[:, tile.valid]
            valid += pixels.shape[1]
            if pixels.size and np.isfinite(pixels).any():
                integers = integers and bool((pixels == np.rint(pixels)).all())
                lowest, highest = min(lowest, float(np.nanmin(pixels))), max(highest, float(np.nanmax(pixels)))
            same = pixels[0, (pixels == pixels[:1]).all(axis=0)]
            values, counts = np.unique(same, return_counts=True)
            found.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        for value, count in found.most_common(1):
            is_expected = len(stored.bands) == 1 and integers and value not in (lowest, highest)
            # A scene of one value has nothing to compare it with.
            has_others = lowest < highest or _has_other_values(reader, value)
            if count >= _MIN_SHARE * valid and has_others and not is_expected:
                return RimValue(scene, value, count / valid)
    return None


def _has_other_values(reader: SceneReader, value: float) -> bool:
    """Whether a sample of the valid pixels inside of a scene has other values."""
    tiles = (reader.read(window) for window in lattice_windows(reader.grid, _LATTICE, _SEGMENT_PX))
    return any((tile.pixels[:, tile.valid] != value).any() for tile in tiles)


def describe_rim_values(found: Sequence[RimValue], nodata: Sequence[float]) -> Iterator[str]:
    """Yield one warning about each value at the rim of scenes; `nodata` are the values of `data.nodata`."""
    for value in dict.fromkeys(one.value for one in found):
        scenes = sorted((one for one in found if one.value == value), key=lambda one: -one.share)
        line = f"{value:.9g}" if not nodata else f"[{', '.join(f'{each:.9g}' for each in (*nodata, value))}]"
        which = "1 scene" if len(scenes) == 1 else f"{len(scenes)} scenes"
        example = "" if len(scenes) == 1 else "for example "
        yield (
            f"{value:.9g} fills all bands at the rim of {which} ({example}{scenes[0].share:.0%} of the rim of "
            f"{scenes[0].scene.paths[0]}), and is used as data: if it means no data, set data.nodata: {line}"
        )


def _rim_windows(grid: Grid) -> Iterator[Window]:
    """Yield windows of one pixel's width along the four sides of a grid."""
    for start, length in _segments(grid.width):
        for row in dict.fromkeys((0, grid.height - 1)):
            yield Window(start, row, length, 1)
    for start, length in _segments(grid.height):
        for column in dict.fromkeys((0, grid.width - 1)):
            yield Window(column, start, 1, length)


def _segments(size: int) -> list[tuple[int, int]]:
    """Return the starts and lengths of the sampled segments of a side, from end to end."""
    if size <= _SEGMENTS * _SEGMENT_PX:
        return [(0, size)]
    return [(int(start), _SEGMENT_PX) for start in np.linspace(0, size - _SEGMENT_PX, _SEGMENTS)]
