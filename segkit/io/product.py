"""Products as scenes: a Sentinel-2 SAFE folder, or an item of STAC, whose bands are files of several resolutions."""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, Self

from affine import Affine
from rasterio.io import DatasetReader

from segkit.errors import DataError, RasterError, UsageError, suggest
from segkit.io.band_choice import WantedBands
from segkit.io.band_names import find_band, match_bands, normalize_name
from segkit.io.grid import Grid
from segkit.io.paths import FileSet, PathLike
from segkit.io.product_band import BandFile, ProductBand, ProductFile, pixel_size
from segkit.io.raster import open_raster, read_grid
from segkit.io.remote import Remote
from segkit.io.safe import find_metadata, is_safe, read_safe
from segkit.io.stac_item import read_bands, read_items

PRODUCT_SUFFIXES = (".safe", ".json")
_ROUNDING = 1e-6  # in pixels


class Product(FileSet):
    """A product as a path: it is a scene, called like the product.

    Parameters
    ----------
    path
        The folder of a SAFE product, or the file of an item or of a collection of items.
    item
        The name of the item in the file; None for SAFE.
    """

    is_named = True
    _item: str | None = None

    def __new__(cls, path: PathLike, item: str | None = None) -> Self:
        """Create the path."""
        return PurePath.__new__(cls, os.fspath(path))

    def __init__(self, path: PathLike, item: str | None = None) -> None:
        super().__init__(path)
        self._source, self._item = Path(path), item

    @functools.cached_property
    def bands(self) -> tuple[ProductBand, ...]:
        """All bands.

        Raises
        ------
        RasterError, DataError
            The metadata are missing, damaged or contradict each other.
        """
        if self._item is None:
            return read_safe(self._source)
        items = read_items(self._source)
        if self._item not in items:
            raise DataError(f"{self._source}: has no item {self._item!r} any more; try again")
        return read_bands(self._source, items[self._item])

    @property
    def files(self) -> tuple[Path, ...]:
        """The metadata, and the files of all bands."""
        metadata = find_metadata(self._source) if self._item is None else self._source
        found = [file.path for band in self.bands for file in band.files if not file.problem]
        return tuple(dict.fromkeys([*([] if metadata is None else [metadata]), *found]))

    @contextmanager
    def open_dataset(self, *, vrt: bool | None) -> Iterator[DatasetReader]:
        """Open the file with the smallest pixels, for its grid."""
        files = [file for band in self.bands for file in band.files]
        finest = min(files, key=lambda file: (bool(file.problem), file.resolution))
        with open_raster(_require(finest), vrt=vrt) as dataset:
            yield dataset

    def describe(self) -> str:
        """Return number and a checksum of names, sizes and times of the files."""
        facts = [(file, file.stat()) for file in self.files]
        lines = [f"{file.relative_to(self.parent)} {one.st_size} {one.st_mtime_ns}" for file, one in facts]
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        return f"{self.stem}, {len(facts)} files, sha256 {digest}"

    def select(
        self,
        wanted: WantedBands,
        resolution: float | None = None,
        resampling: str = "bilinear",
        *,
        alone: bool = True,
    ) -> list[ProductFile]:
        """Return the files of all bands in one resolution, in the order of the bands; a file may occur several times.

        Files that are missing are left out if bands are chosen by name, and theirs are not.

        Parameters
        ----------
        wanted
            Which bands are used.
        resolution
            Pixel size in units of the CRS; None: the finest of the chosen bands.
        resampling
            How bands of another resolution are resampled; see `ProductFile`.
        alone
            Whether the product is all of its scene; otherwise bands that are not found are those of other files.

        Raises
        ------
        RasterError
            A chosen band is missing, or its file is.
        """
        chosen = self._choose(wanted, alone=alone)
        pixel = resolution or min(self.bands[at].finest.resolution for at in chosen)
        files = [band.file_at(pixel) for band in self.bands]
        by_number = any(isinstance(band, int) for band in wanted.bands or ())
        for at in range(len(files)) if by_number else chosen:
            _require(files[at])
        grid = self._grid([files[at] for at in chosen], pixel)
        found = [
            (file, replace(band, name=chosen.get(at, band.name)))
            for at, (band, file) in enumerate(zip(self.bands, files, strict=True))
            if not file.problem
        ]
        return [
            ProductFile(path, self, {file.number: band for file, band in pairs}, grid, resampling)
            for path, pairs in _group_by_file(found)
        ]

    def _choose(self, wanted: WantedBands, *, alone: bool) -> dict[int, str]:
        """Return the places of the chosen bands, and the names by which they were asked for."""
        names = [band.name for band in self.bands]
        trained = match_bands(wanted.trained, names) if wanted.trained else None
        if trained is not None:
            return {at: names[at] for at in trained}
        chosen: dict[int, str] = {}
        for band in wanted.bands or ():
            if isinstance(band, int):
                if alone and band <= len(names):
                    chosen[band - 1] = names[band - 1]
                continue
            found = find_band(band, names)
            others = [] if found else self._find_other_name(band)
            if alone and not wanted.band_names and not found and not others:
                raise RasterError(
                    f"{self}: has no band {band!r}; its bands are {', '.join(names)}" + suggest("correct data.bands")
                )
            chosen |= {at: names[at] for at in found} | dict.fromkeys(others, band)
        imagery = {at: names[at] for at, band in enumerate(self.bands) if band.is_imagery}
        return chosen or imagery or dict(enumerate(names))

    def _find_other_name(self, wanted: str) -> list[int]:
        name = normalize_name(wanted)
        return [at for at, band in enumerate(self.bands) if name in map(normalize_name, band.other_names)]

    def _grid(self, files: Sequence[BandFile], resolution: float) -> Grid:
        """Return the grid of a file with this resolution; without one, the finest file's grid with other pixels.

        Raises
        ------
        RasterError
            The product is smaller than a pixel.
        """
        nearest = min(files, key=lambda file: abs(math.log(file.resolution / resolution)))
        same = math.isclose(nearest.resolution, resolution, rel_tol=1e-6)
        file = nearest if same else min(files, key=pixel_size)
        with open_raster(file.path) as dataset:
            grid = read_grid(dataset)
        if same:
            return grid
        factor = resolution / file.resolution
        if factor > max(grid.shape):
            raise RasterError(
                f"{self}: its {grid.height} x {grid.width} pixels of {file.resolution:g} are smaller than one of "
                f"{resolution:g}, in the units of its CRS" + suggest("correct data.resolution")
            )
        height, width = (math.ceil(pixels / factor - _ROUNDING) for pixels in grid.shape)
        return replace(grid, height=height, width=width, transform=grid.transform @ Affine.scale(factor))

    @property
    def stem(self) -> str:
        """The name of the product, or of the item."""
        return self._source.stem if self._item is None else self._item

    @property
    def name(self) -> str:
        """The name of the folder, or of the item as a file."""
        return f"{self.stem}{self.suffix}"

    @property
    def suffix(self) -> str:
        """That of the folder or file."""
        return self._source.suffix

    def absolute(self) -> Product:
        """Return the product with an absolute path, for other processes."""
        return Product(self._source.absolute(), self._item)

    def resolve(self, strict: bool = False) -> Product:
        """Return the product with a resolved path."""
        return Product(self._source.resolve(strict), self._item)

    def __str__(self) -> str:
        inside = self._item is not None and self._item != self._source.stem
        return f"{self._source} ({self._item})" if inside else f"{self._source}"

    def __fspath__(self) -> str:
        return os.fspath(self._source)

    def __repr__(self) -> str:
        return f"Product({str(self._source)!r}, {self._item!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Product) and self._state == other._state

    def __hash__(self) -> int:
        return hash(self._state)

    def __reduce__(self) -> tuple[Any, ...]:
        return Product, self._state

    @property
    def _state(self) -> tuple[Path, str | None]:
        return self._source, self._item


def find_products(path: Path) -> list[Product] | None:
    """Return the products that a path holds; None if it is another file or folder, or does not exist.

    Raises
    ------
    DataError
        It is a JSON file, but not of STAC.
    """
    if isinstance(path, FileSet):
        return None
    if path.suffix.casefold() == ".json":
        if isinstance(path, Remote):
            raise UsageError(f"{path}: items of STAC must be local, with the files of their assets; download them")
        return [Product(path, name) for name in read_items(path)] if path.is_file() else None
    if not isinstance(path, Remote) and path.name.startswith("MTD_MSIL") and path.suffix.casefold() == ".xml":
        path = path.parent
    return [Product(path)] if not isinstance(path, Remote) and is_safe(path) else None


def holds_products(path: Path) -> bool:
    """Return whether a path holds products; a JSON file that is not of STAC does not."""
    try:
        return bool(find_products(path))
    except DataError:
        return False


def as_image(path: Path) -> Path:
    """Return a path as an image: a product if it holds one, else unchanged.

    Raises
    ------
    UsageError
        It holds several.
    """
    found = find_products(path)
    if found is None:
        return path
    if len(found) != 1:
        raise UsageError(
            f"{path}: holds {len(found)} items of STAC, of which each is a scene, and one is needed here; give a file "
            "with one item"
        )
    return found[0]


def _group_by_file(
    bands: Sequence[tuple[BandFile, ProductBand]],
) -> Iterator[tuple[Path, list[tuple[BandFile, ProductBand]]]]:
    """Yield files with their bands so that all bands keep their order: in a file, their numbers ascend."""
    group: list[tuple[BandFile, ProductBand]] = []
    for file, band in bands:
        if group and (file.path != group[-1][0].path or file.number <= group[-1][0].number):
            yield group[0][0].path, group
            group = []
        group.append((file, band))
    if group:
        yield group[0][0].path, group


def _require(file: BandFile) -> Path:
    """Return the path of a file that must be there.

    Raises
    ------
    RasterError
        It is not, or must not be read.
    """
    if file.problem:
        raise RasterError(file.problem + suggest("or choose other bands (data.bands, data.resolution)"))
    return file.path
