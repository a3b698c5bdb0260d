"""Sources of a scene's bands: a file, or files that lie side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.io.mosaic_dataset import MosaicDataset
from segkit.io.mosaic_layout import find_overlaps, tile_part
from segkit.io.raster import read_mask, read_window

_EXACT_IN_FLOAT32 = ("uint8", "int8", "uint16", "int16")
_INTEGER_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")


class BandSource(Protocol):
    """A source of some of a scene's bands; each band comes from one source."""

    def read(self, window: Window, stack: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Read a window inside the scene into these bands of a stack (C, H, W); return the valid mask, bool (H, W)."""


class FileBands:
    """Bands of one file: band `indexes[i]` goes to `places[i]` of the stack.

    `scaling` is the (scale, offset) of each band; None keeps stored values.
    """

    def __init__(
        self,
        dataset: DatasetReader,
        places: list[int],
        indexes: list[int],
        scaling: list[tuple[float, float]] | None = None,
    ) -> None:
        self.dataset = dataset
        self.scaling = scaling or [(1.0, 0.0)] * len(indexes)
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
        unmasked = np.full(finite_or_masked.shape, not self.has_band_masks)
        if self.has_file_mask:
            unmasked &= read_mask(self.dataset, self.indexes[0], window) > 0
        # Band by band: the masks of all bands at once would take a quarter of the pixels' memory.
        for index, band, (scale, offset) in zip(self.indexes, pixels, self.scaling, strict=True):
            finite = True if self.dataset.dtypes[index - 1] in _INTEGER_DTYPES else np.isfinite(band)
            if self.has_band_masks:
                nodata = self.dataset.nodatavals[index - 1]
                exact = nodata is not None and self.dataset.dtypes[index - 1] in _EXACT_IN_FLOAT32
                # GDAL's mask would read the file again.
                masked = band == nodata if exact else read_mask(self.dataset, index, window) == 0
                # The no-data value itself may be NaN, or beyond the range of float32.
                finite_or_masked &= finite | masked
                unmasked |= ~masked
                band[masked] = np.nan
            else:
                finite_or_masked &= finite
            if (scale, offset) != (1, 0):
                band[:] = band.astype(np.float64) * scale + offset
        if not in_place:
            stack[self.places] = pixels
        finite_or_masked &= unmasked
        return finite_or_masked


class MosaicBands:
    """Bands of files that lie side by side: band `indexes[i]` goes to `places[i]` of the stack.

    Each file is read as a single one is, with its own no-data value, mask, and scale if `scaled`. A pixel of several
    files is from the first (or last) file in which it is valid, or the mean of all in which it is valid, band by band.
    """

    def __init__(self, dataset: MosaicDataset, places: list[int], indexes: list[int], *, scaled: bool) -> None:
        self.places = places
        self._dataset, self._indexes, self._scaled = dataset, indexes, scaled

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
        scaling = [(tile.scales[band - 1], tile.offsets[band - 1]) for band in self._indexes] if self._scaled else None
        return FileBands(self._dataset.pool.get(index), places, self._indexes, scaling)
