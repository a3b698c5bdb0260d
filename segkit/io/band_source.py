"""Sources of a scene's bands: a file, or files that lie side by side, on the scene's grid or on another one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.errors import GridError
from segkit.io.band_choice import StackedBand
from segkit.io.band_names import read_names
from segkit.io.block_warp import WarpedBlocks
from segkit.io.grid import Grid
from segkit.io.mosaic_dataset import MosaicDataset
from segkit.io.mosaic_layout import find_overlaps, tile_part
from segkit.io.mosaic_warp import warp_bands
from segkit.io.pixel_rules import BandUnits, PixelRules
from segkit.io.product_band import ProductFile
from segkit.io.raster import INTEGER_DTYPES, read_grid, read_mask, read_window

_EXACT_IN_FLOAT32 = ("uint8", "int8", "uint16", "int16")


class BandSource(Protocol):
    """A source of some of a scene's bands; each band comes from one source."""

    def read(self, window: Window, stack: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Read a window inside the scene into these bands of a stack (C, H, W); return the valid mask, bool (H, W)."""


def open_source(
    dataset: Any,
    path: Path,
    grid: Grid,
    places: list[int],
    indexes: list[int],
    rules: PixelRules,
    *,
    scaled: bool,
    resampling: Resampling | None,
) -> FileBands | MosaicBands:
    """Return the source of bands of an open raster: band `indexes[i]` goes to place `places[i]` of a scene.

    Parameters
    ----------
    path
        Of the raster, for messages.
    grid
        That of the scene.
    rules, scaled
        As for `Scene`.
    resampling
        If the raster may be on another grid.

    Raises
    ------
    GridError
        It is on another grid, and may not be.
    RasterError
        Several values mean no data, and it is to be resampled.
    """
    difference = grid.describe_difference(read_grid(dataset))
    product = path if isinstance(path, ProductFile) else None
    if product is not None:
        resampling, rules = product.resampling(indexes), rules.with_nodata(product.nodata)
    if difference and resampling is None:
        raise GridError(f"{path}: its grid has changed since the scene was opened ({difference}); try again")
    if isinstance(dataset, MosaicDataset) and not difference:
        return MosaicBands(dataset, places, indexes, rules, scaled=scaled)
    declared = [_declared_units(path, dataset, index, scaled=scaled) for index in indexes]
    units = [rules.units(place, each) for place, each in zip(places, declared, strict=True)]
    if difference:
        assert resampling is not None
        nodata = rules.resampling_nodata(str(path), dataset.nodatavals)
        dataset = warp_bands(dataset, grid, indexes, resampling, nodata=nodata)
    return FileBands(dataset, places, indexes, units, rules)


def _declared_units(path: Path, dataset: Any, index: int, *, scaled: bool) -> tuple[float, float] | None:
    """Return scale and offset of a band of a file (from 1), to be used if the rules of the scene give none."""
    if isinstance(path, ProductFile):
        return path.declared(dataset, index, scaled=scaled)
    return (dataset.scales[index - 1], dataset.offsets[index - 1]) if scaled else None


class FileBands:
    """Bands of one file: band `indexes[i]` goes to `places[i]` of the stack, in `units[i]`."""

    def __init__(
        self,
        dataset: DatasetReader | WarpedBlocks,
        places: list[int],
        indexes: list[int],
        units: list[BandUnits],
        rules: PixelRules,
    ) -> None:
        self.dataset = dataset
        self.units = units
        self.rules = rules
        self.places = places
        self.indexes = indexes
        flags = {flag for index in indexes for flag in dataset.mask_flag_enums[index - 1]}
        # An alpha band that is chosen as imagery (near-infrared in NAIP) is not a mask.
        chosen_alpha = any(dataset.colorinterp[index - 1] == ColorInterp.alpha for index in indexes)
        self.has_file_mask = MaskFlags.per_dataset in flags and not (MaskFlags.alpha in flags and chosen_alpha)
        self.has_band_masks = MaskFlags.nodata in flags and not self.has_file_mask

    def read(self, window: Window, stack: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Read a window into the stack (C, H, W), and return the valid mask, bool (H, W)."""
        target = stack[self.places[0] : self.places[-1] + 1]
        in_place = len(target) == len(self.places) and self.places == sorted(self.places)
        buffer = target if in_place else np.empty((len(self.places), *stack.shape[1:]), dtype=np.float32)
        pixels = read_window(self.dataset, self.indexes, window, out=buffer)
        finite_or_masked = np.ones(pixels.shape[1:], dtype=bool)
        unmasked = np.full(finite_or_masked.shape, not (self.has_band_masks or self.rules.nodata))
        # Band by band: the masks of all bands at once would take a quarter of the pixels' memory.
        for index, band, units in zip(self.indexes, pixels, self.units, strict=True):
            masked = self._read_band_mask(index, band, window)
            finite = True if self.dataset.dtypes[index - 1] in INTEGER_DTYPES else np.isfinite(band)
            if masked is not None:
                # The no-data value itself may be NaN, or beyond the range of float32.
                finite |= masked
                unmasked |= ~masked
                band[masked] = np.nan
            finite_or_masked &= finite
            units.apply(band)
            if units.decibels is not None:
                finite_or_masked &= np.isfinite(band) if masked is None else np.isfinite(band) | masked
        if self.has_file_mask:
            unmasked &= read_mask(self.dataset, self.indexes[0], window) > 0
        if not in_place:
            stack[self.places] = pixels
        finite_or_masked &= unmasked
        return finite_or_masked

    def _read_band_mask(self, index: int, band: NDArray[np.float32], window: Window) -> NDArray[np.bool_] | None:
        """Return where a band with stored values (H, W) is no data; None if nothing says so for single bands."""
        masked = self.rules.is_nodata(band) if self.rules.nodata else None
        if not self.has_band_masks:
            return masked
        nodata = self.dataset.nodatavals[index - 1]
        exact = nodata is not None and self.dataset.dtypes[index - 1] in _EXACT_IN_FLOAT32
        # GDAL's mask would read the file again.
        declared: NDArray[np.bool_] = band == nodata if exact else read_mask(self.dataset, index, window) == 0
        return declared if masked is None else declared | masked


class MosaicBands:
    """Bands of files that lie side by side: band `indexes[i]` goes to `places[i]` of the stack.

    Each file is read as a single one is, with its own no-data value, mask, and scale if `scaled`. A pixel of several
    files is from the first (or last) file in which it is valid, or the mean of all in which it is valid, band by band.
    """

    def __init__(
        self, dataset: MosaicDataset, places: list[int], indexes: list[int], rules: PixelRules, *, scaled: bool
    ) -> None:
        self.places = places
        self._dataset, self._indexes, self._rules, self._scaled = dataset, indexes, rules, scaled
        dataset.pool.bands, dataset.pool.rules = indexes, rules

    def read(self, window: Window, stack: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Read a window into the stack (C, H, W), and return the valid mask, bool (H, W)."""
        layout = self._dataset.layout
        found = layout.find(window)
        if len(found) == 1:
            in_file, _ = tile_part(layout.tiles[found[0]], window)
            if (in_file.height, in_file.width) == (window.height, window.width):
                return self._tile(found[0], self.places).read(in_file, stack)
        if not any(find_overlaps(layout, found)):
            return self._paste(found, window, stack)
        pixels = np.full((len(self.places), *stack.shape[1:]), np.nan, dtype=np.float32)
        combine = self._average if layout.overlap == "mean" else self._compose
        valid = combine(found, window, pixels)
        stack[self.places] = pixels
        return valid

    def _paste(self, found: list[int], window: Window, stack: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Read files that do not overlap into the stack."""
        stack[self.places] = np.nan
        valid = np.zeros(stack.shape[1:], dtype=bool)
        for index in found:
            in_file, (rows, columns) = tile_part(self._dataset.layout.tiles[index], window)
            valid[rows, columns] = self._tile(index, self.places).read(in_file, stack[:, rows, columns])
        return valid

    def _compose(self, found: list[int], window: Window, pixels: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Take each pixel from one of the files that overlap."""
        valid = np.zeros(pixels.shape[1:], dtype=bool)
        covered = valid.copy()
        for part, part_valid, (rows, columns) in self._parts(found, window):
            own = ~valid[rows, columns] & (part_valid | ~covered[rows, columns])
            np.copyto(pixels[:, rows, columns], part, where=own)
            valid[rows, columns] |= part_valid
            covered[rows, columns] = True
        return valid

    def _average(self, found: list[int], window: Window, pixels: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Take the mean of the files in which a pixel is valid."""
        valid = np.zeros(pixels.shape[1:], dtype=bool)
        sums, counts = np.zeros(pixels.shape), np.zeros(pixels.shape, dtype=np.uint16)
        for part, part_valid, (rows, columns) in self._parts(found, window):
            known = part_valid & ~np.isnan(part)
            np.add(sums[:, rows, columns], part, out=sums[:, rows, columns], where=known)
            counts[:, rows, columns] += known
            valid[rows, columns] |= part_valid
        np.divide(sums, counts, out=pixels, where=counts > 0, casting="same_kind")
        return valid

    def _parts(
        self, found: list[int], window: Window
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_], tuple[slice, slice]]]:
        """Yield the pixels of each file in a window, their valid mask, and their place in the window."""
        for index in found:
            in_file, place = tile_part(self._dataset.layout.tiles[index], window)
            part = np.empty((len(self.places), int(in_file.height), int(in_file.width)), dtype=np.float32)
            part_valid = self._tile(index, list(range(len(self.places)))).read(in_file, part)
            yield part, part_valid, place

    def _tile(self, index: int, places: list[int]) -> FileBands:
        tile = self._dataset.layout.tiles[index]
        units = [
            self._rules.units(place, (tile.scales[band - 1], tile.offsets[band - 1]) if self._scaled else None)
            for place, band in zip(self.places, self._indexes, strict=True)
        ]
        return FileBands(self._dataset.pool.get(index), places, self._indexes, units, self._rules)


def stack_bands(file: Path, dataset: Any, prefix: str, *, resampled: bool) -> list[StackedBand]:
    """Return the bands of one file of a scene, or of a mosaic, with a prefix before their names."""
    if isinstance(file, ProductFile):
        names = {number: f"{prefix}{band.name}" for number, band in file.bands.items()}
        return [StackedBand(name, name, False, resampled, file, number) for number, name in names.items()]
    named, source = next(dataset.parts()) if isinstance(dataset, MosaicDataset) else (file, dataset)
    columns = zip(dataset.indexes, dataset.descriptions, read_names(named, source), dataset.colorinterp, strict=True)
    return [
        StackedBand(
            f"{prefix}{description or number}",
            f"{prefix}{lookup_name}",
            colour == ColorInterp.alpha,
            resampled,
            file,
            number,
        )
        for number, description, lookup_name, colour in columns
    ]
