"""What the files of a scene do not declare about their pixels: units, and values that mean no data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from segkit.errors import RasterError

T = TypeVar("T")

Backscatter = Literal["power", "amplitude"]
# Decibels are 10 log10 of a power, and 20 log10 of an amplitude, whose square is the power.
_DECIBELS_PER_DECADE: dict[str, float] = {"power": 10.0, "amplitude": 20.0}


@dataclass(frozen=True)
class BandUnits:
    """How the stored values of a band become values in the units that a model is trained on.

    Parameters
    ----------
    scale, offset
        value = stored value * scale + offset, as in GDAL.
    decibels
        What that value is, if it is to be converted to decibels; None keeps it.
    """

    scale: float = 1.0
    offset: float = 0.0
    decibels: Backscatter | None = None

    def apply(self, band: NDArray[np.float32]) -> None:
        """Convert a band (H, W) in place; what has no logarithm becomes NaN."""
        if (self.scale, self.offset) != (1, 0):
            band[:] = band.astype(np.float64) * self.scale + self.offset
        if self.decibels is not None:
            band[~(band > 0)] = np.nan
            np.log10(band, out=band)
            band *= _DECIBELS_PER_DECADE[self.decibels]


@dataclass(frozen=True)
class PixelRules:
    """Units and no data of a scene that its files do not declare.

    Parameters
    ----------
    scale, offset, decibels
        As in `BandUnits`: one for each band of the scene, one for all, or none (what the files declare if the scene is
        `scaled`, else stored values).
    nodata
        Stored values that mean no data in every band, besides what the files declare.
    for_these_scenes
        Whether scale and offset were given for these scenes, so that they hold whatever metadata say.
    """

    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    decibels: tuple[Backscatter | None, ...] = ()
    nodata: tuple[float, ...] = ()
    for_these_scenes: bool = False

    @property
    def has_scaling(self) -> bool:
        """Whether scale or offset are given."""
        return bool(self.scale or self.offset)

    @property
    def has_units(self) -> bool:
        """Whether stored values are converted."""
        return self.has_scaling or any(self.decibels)

    def check(self, files: str, bands: int) -> None:
        """Raise a RasterError if the number of values is not that of the scene's bands; `files` names the scene."""
        for key in ("scale", "offset", "decibels"):
            given = len(getattr(self, key))
            if given not in (0, 1, bands):
                raise RasterError(
                    f"{files}: {key} has {given} values, but {bands} bands are read; give one value for all bands, or "
                    "one for each in the order of the bands"
                )

    def units(self, place: int, declared: tuple[float, float] | None) -> BandUnits:
        """Return the units of the band at a place of the scene.

        Parameters
        ----------
        declared
            Scale and offset of the file, if they are applied.
        """
        scale, offset = declared or (1.0, 0.0)
        if self.has_scaling:
            scale, offset = _of_band(self.scale, place, 1.0), _of_band(self.offset, place, 0.0)
        return BandUnits(scale, offset, _of_band(self.decibels, place, None))

    def with_nodata(self, nodata: tuple[float, ...]) -> PixelRules:
        """Return the rules with more values that mean no data."""
        return replace(self, nodata=tuple(dict.fromkeys((*self.nodata, *nodata)))) if nodata else self

    def is_nodata(self, band: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return where stored values (H, W) mean no data."""
        with np.errstate(over="ignore"):  # beyond float32, stored values are read as infinite, too
            found: NDArray[np.bool_] = np.logical_or.reduce([band == np.float32(value) for value in self.nodata])
        return found

    def resampling_nodata(self, files: str, declared: Sequence[float | None]) -> float | None:
        """Return the no-data value for resampling, which must not mix it with data; None if the file's own is enough.

        Raises
        ------
        RasterError
            There are several, of which GDAL can leave out only one.
        """
        if not self.nodata:
            return None
        known = {value for value in declared if value is not None and not np.isnan(value)} | {*self.nodata}
        if len(known) > 1:
            listed = " and ".join(f"{value:g}" for value in sorted(known))
            raise RasterError(
                f"{files}: {listed} mean no data, but only one value can when a file is resampled; warp the file first "
                "(gdalwarp -srcnodata)"
            )
        return known.pop()


AS_STORED = PixelRules()


def _of_band(values: Sequence[T], place: int, default: T) -> T:
    """Return the value of a band, of one for all or one for each."""
    return default if not values else values[0] if len(values) == 1 else values[place]
