"""Bands of a product: a scene whose metadata say in which files its bands are, and what their values mean."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Self

from rasterio.enums import Resampling
from rasterio.io import DatasetReader

from segkit.errors import RasterError, suggest
from segkit.io.grid import Grid
from segkit.io.paths import FileSet, PathLike
from segkit.io.pixel_rules import PixelRules
from segkit.io.raster import open_raster

_TOLERANCE = 1e-6  # relative; pixel sizes are read from files
RESAMPLING = {"nearest": Resampling.nearest, "bilinear": Resampling.bilinear, "average": Resampling.average}


@dataclass(frozen=True)
class BandFile:
    """A file with a band of a product.

    Parameters
    ----------
    path, number
        The file, and the number of the band in it, from 1.
    resolution
        Pixel size in units of the CRS; infinite if the file cannot be opened.
    problem
        Why it cannot be opened, for messages; empty if it can.
    """

    path: Path
    number: int
    resolution: float
    problem: str = ""


@dataclass(frozen=True)
class ProductBand:
    """A band of a product.

    Parameters
    ----------
    name, other_names
        "B04"; other names by which a user may call it.
    files
        Files with this band, which differ in resolution.
    scale, offset
        Physical value = stored value * scale + offset; None: as the file declares.
    shift
        What is added to stored values so that products of all versions have the same units; None if there are no
        versions.
    nodata
        Stored value that means no data, besides what the file declares.
    is_imagery
        Whether it is used if no bands are asked for.
    is_categorical
        Whether its values are codes, which have no mean.
    """

    name: str
    files: tuple[BandFile, ...]
    other_names: tuple[str, ...] = ()
    scale: float | None = None
    offset: float = 0.0
    shift: float | None = None
    nodata: float | None = None
    is_imagery: bool = True
    is_categorical: bool = False

    def file_at(self, resolution: float) -> BandFile:
        """Return the file for a resolution: the coarsest that is not coarser, else the finest."""
        fine = [file for file in self.files if file.resolution <= resolution * (1 + _TOLERANCE)]
        return max(fine, key=pixel_size) if fine else self.finest

    @property
    def finest(self) -> BandFile:
        """The file with the smallest pixels."""
        return min(self.files, key=pixel_size)


def pixel_size(file: BandFile) -> float:
    """Return the resolution of a file, to compare files."""
    return file.resolution


class ProductFile(FileSet):
    """A file of a product as a path, with what the product's metadata say about its bands.

    Parameters
    ----------
    path
        The file.
    product
        The path of the product, which is that of the file in messages.
    bands
        Its bands by their number in the file, from 1. Others are not used.
    grid
        The grid on which the bands of the product are read.
    resampling
        How they are resampled if the file has another one: a key of `RESAMPLING`.
    """

    product: Path
    bands: Mapping[int, ProductBand]
    grid: Grid
    _resampling: str

    def __new__(
        cls, path: PathLike, product: Path, bands: Mapping[int, ProductBand], grid: Grid, resampling: str
    ) -> Self:
        """Create the path."""
        return PurePath.__new__(cls, os.fspath(path))

    def __init__(
        self, path: PathLike, product: Path, bands: Mapping[int, ProductBand], grid: Grid, resampling: str
    ) -> None:
        super().__init__(path)
        self._file, self.product, self.bands = Path(path), product, dict(bands)
        self.grid, self._resampling = grid, resampling

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self._file,)

    @contextmanager
    def open_dataset(self, *, vrt: bool | None) -> Iterator[DatasetReader]:
        """Open the file."""
        with open_raster(self._file, vrt=vrt) as dataset:
            yield dataset

    def describe(self) -> str:
        """Return how the bands are read, besides what is in the file: units, no data, resampling."""
        units = [(band.name, band.scale, band.offset, band.shift, band.nodata) for band in self.bands.values()]
        return f"{units} {self._resampling}"

    def resampling(self, numbers: Sequence[int]) -> Resampling:
        """Return how bands are resampled; codes, and what is read with them, by nearest neighbour."""
        categorical = any(self.bands[number].is_categorical for number in numbers if number in self.bands)
        return Resampling.nearest if categorical else RESAMPLING[self._resampling]

    @property
    def nodata(self) -> tuple[float, ...]:
        """Stored values that mean no data, besides what the file declares."""
        return tuple(dict.fromkeys(band.nodata for band in self.bands.values() if band.nodata is not None))

    def is_imagery(self, number: int) -> bool:
        """Whether a band is used if no bands are asked for."""
        return self.bands[number].is_imagery

    def check_units(self, number: int, rules: PixelRules, place: int) -> None:
        """Check that units given for a band, at a place of its scene, do not contradict those of the product.

        Raises
        ------
        RasterError
            They do: products of different versions would have different units.
        """
        band = self.bands.get(number)
        if band is None or band.shift is None or not rules.has_scaling or rules.for_these_scenes:
            return
        given = rules.units(place, None)
        if not math.isclose(given.offset, given.scale * band.shift, rel_tol=1e-6, abs_tol=1e-6 * abs(given.scale)):
            raise RasterError(
                f"{self}: scale {given.scale:g} and offset {given.offset:g} are given for {band.name}, but its "
                f"metadata say that {band.shift:g} is to be added to stored values, which is done for all products"
                + suggest("leave scale and offset out", "give those of this scene (--offset, --scale)")
            )

    def declared(self, dataset: DatasetReader, index: int, *, scaled: bool) -> tuple[float, float] | None:
        """Return scale and offset of a band (from 1): of physical values if `scaled`, else of comparable ones."""
        band = self.bands.get(index)
        if not scaled:
            return None if band is None or band.shift is None else (1.0, band.shift)
        if band is None or band.scale is None:
            return dataset.scales[index - 1], dataset.offsets[index - 1]
        return band.scale, band.offset

    def __str__(self) -> str:
        return str(self.product)

    def __fspath__(self) -> str:
        return os.fspath(self._file)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ProductFile) and self._state == other._state

    def __hash__(self) -> int:
        return hash(self._file)

    def __reduce__(self) -> tuple[Any, ...]:
        return ProductFile, self._state

    @property
    def _state(self) -> tuple[Any, ...]:
        return self._file, self.product, self.bands, self.grid, self._resampling
