"""Scenes: one or more rasters on one grid, read window by window as `Tile`s.

A `SceneReader` can be used in one thread only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.errors import GridError, RasterError, UsageError, suggest
from segkit.io.band_choice import AlphaBand, StackedBand, WantedBands
from segkit.io.band_names import read_names
from segkit.io.grid import Grid
from segkit.io.paths import PathLike
from segkit.io.pixel_rules import AS_STORED, BandUnits, PixelRules
from segkit.io.quality_mask import QualityMask, SceneMask, find_masks, open_mask
from segkit.io.raster import INTEGER_DTYPES, current_version, open_raster, read_grid, read_mask, read_window
from segkit.io.remote import Remote, as_path
from segkit.io.warping import warp_to

_EXACT_IN_FLOAT32 = ("uint8", "int8", "uint16", "int16")


@dataclass(frozen=True)
class Tile:
    """A window of a scene.

    Parameters
    ----------
    pixels
        float32 (C, H, W): stored values, or in the units of `Scene.scaled` and `Scene.rules`; NaN where a band is no
        data.
    valid
        bool (H, W); false where the scene is no data.
    """

    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]

    def padded(self, height: int, width: int) -> Tile:
        """Extend the tile by reflection at the bottom and right, to (C, height, width)."""
        beyond = ((0, height - self.valid.shape[0]), (0, width - self.valid.shape[1]))
        if not any(after for _, after in beyond):
            return self
        pixels = np.pad(self.pixels, ((0, 0), *beyond), mode="reflect")
        return Tile(pixels, np.pad(self.valid, beyond, mode="reflect"))


@dataclass(frozen=True)
class Scene:
    """One or more rasters on one grid, whose bands are stacked; made by `Scene.from_files`."""

    name: str
    paths: tuple[Path, ...]
    grid: Grid
    bands: tuple[int, ...]
    band_names: tuple[str, ...]
    resample: bool
    vrt: bool = False
    scaled: bool = False
    versions: tuple[str, ...] = ()
    rules: PixelRules = AS_STORED
    masks: tuple[SceneMask, ...] = ()
    alpha_masks: tuple[AlphaBand, ...] = ()
    alpha_imagery: tuple[AlphaBand, ...] = ()

    @classmethod
    def from_files(
        cls,
        paths: PathLike | Sequence[PathLike],
        *,
        bands: Sequence[int | str] | None = None,
        band_names: Sequence[str] | None = None,
        trained: Sequence[str] | None = None,
        resample: bool = False,
        vrt: bool = False,
        scaled: bool = False,
        rules: PixelRules = AS_STORED,
        mask: QualityMask | None = None,
        name: str | None = None,
    ) -> Scene:
        """Open and check files, and return the scene that they make up.

        Parameters
        ----------
        paths
            One file, or several whose bands are stacked in this order. The first one gives the grid.
        bands, band_names, trained
            Which bands to read, see `segkit.io.band_choice.WantedBands`. By default all but alpha and quality bands.
        resample
            Whether files on another grid are warped to the grid of the first one (bilinear).
        vrt
            Whether files may be virtual rasters, which can read any other file or URL.
        scaled
            Whether pixels are stored value * scale + offset, as the files declare for each band.
        rules
            Units and no data that the files do not declare.
        mask
            Quality bands that say which pixels are not valid; if they are in the scene, they are not used as imagery
            unless `bands` lists them.
        name
            Default: the stem of the first file.

        Raises
        ------
        MissingFileError, RasterError
            A file does not exist or cannot be read, there is no such band, or `rules` do not fit the bands.
        GridError
            The files are on different grids and `resample` is false.
        """
        files = [as_path(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
        if not files:
            raise UsageError("a scene needs at least one file; none was given")
        grid: Grid | None = None
        stack: list[StackedBand] = []
        for file in files:
            with open_raster(file, vrt=vrt) as dataset:
                _check_pixels(file, dataset, scaled=scaled)
                file_grid = read_grid(dataset)
                grid = grid or file_grid
                resampled = _needs_resampling(files[0], grid, file, file_grid, resample=resample)
                stack += _stack_bands(file, dataset, f"{file.stem}:" if len(files) > 1 else "", resampled=resampled)
        assert grid is not None
        wanted = WantedBands(bands, band_names, trained)
        masks: tuple[SceneMask, ...] = ()
        if mask is not None:
            masks = find_masks(mask, stack, wanted.lookup_names(stack), vrt=vrt)
        quality = {(one.path, band) for one in masks for band in one.bands}
        chosen = wanted.choose(stack, quality, vrt=vrt)
        rules.check(str(files[0]), len(chosen.numbers))
        versions = tuple(current_version(file) if isinstance(file, Remote) else "" for file in files)
        return cls(
            name or files[0].stem, tuple(files), grid, chosen.numbers, chosen.names, resample, vrt, scaled, versions,
            rules, masks, chosen.alpha_masks, chosen.alpha_imagery,
        )  # fmt: skip

    @contextlib.contextmanager
    def open(self) -> Iterator[SceneReader]:
        """Open the files; use the reader in this thread only.

        Raises
        ------
        RasterError
            A file cannot be opened; or, at the end of the block, a remote file has changed since `from_files`.
        """
        with contextlib.ExitStack() as stack:
            sources, first = [], 1
            for path in self.paths:
                dataset = stack.enter_context(open_raster(path, vrt=self.vrt))
                declared = list(zip(dataset.scales, dataset.offsets, strict=True))
                last = first + dataset.count
                placed = [(place, band - first + 1) for place, band in enumerate(self.bands) if first <= band < last]
                first = last
                if difference := self.grid.describe_difference(read_grid(dataset)):
                    if not self.resample:
                        raise GridError(
                            f"{path}: its grid has changed since the scene was opened ({difference}); try again"
                        )
                    nodata = self.rules.resampling_nodata(str(path), dataset.nodatavals)
                    dataset = stack.enter_context(warp_to(dataset, self.grid, Resampling.bilinear, nodata=nodata))
                indexes = [index for _, index in placed]
                units = [
                    self.rules.units(place, declared[index - 1] if self.scaled else None) for place, index in placed
                ]
                sources.append(_FileBands(dataset, [place for place, _ in placed], indexes, units, self.rules))
            used: list[BandSource] = [source for source in sources if source.places]
            used += [stack.enter_context(open_mask(mask, self.grid, vrt=self.vrt)) for mask in self.masks]
            yield SceneReader(self.grid, len(self.bands), used)
            for file, version in zip(self.paths, self.versions, strict=True):
                if isinstance(file, Remote) and version and (now := current_version(file)) and now != version:
                    raise RasterError(
                        f"{file}: has changed since the scene was opened ({version}, now {now}); try again"
                    )

    def read(self, window: Window | None = None) -> Tile:
        """Open the files and read one window (default: the whole scene)."""
        with self.open() as reader:
            return reader.read(window or self.grid.full_window)


def _stack_bands(file: Path, dataset: DatasetReader, prefix: str, *, resampled: bool) -> list[StackedBand]:
    """Return the bands of one file of a scene, with a prefix before their names."""
    columns = zip(dataset.indexes, dataset.descriptions, read_names(file, dataset), dataset.colorinterp, strict=True)
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


def _check_pixels(file: Path, dataset: DatasetReader, *, scaled: bool) -> None:
    if any(dtype.startswith("complex") for dtype in dataset.dtypes):
        raise RasterError(f"{file}: holds complex numbers; make amplitude or phase bands first")
    if scaled and not (np.isfinite([*dataset.scales, *dataset.offsets]).all() and all(dataset.scales)):
        raise RasterError(
            f"{file}: declares scales {dataset.scales} and offsets {dataset.offsets}; all must be finite, and no scale "
            "may be 0" + suggest("correct the file", "set data.apply_scale_offset: false")
        )


def _needs_resampling(first: Path, grid: Grid, file: Path, file_grid: Grid, *, resample: bool) -> bool:
    """Whether a file must be warped to the grid of the first one.

    Raises
    ------
    GridError
        It must, but `resample` is false or a CRS is missing.
    """
    difference = grid.describe_difference(file_grid)
    if difference and (grid.crs is None or file_grid.crs is None):
        raise GridError(
            f"{first} and {file} lie on different grids ({difference}), and one of them has no CRS, so it cannot be "
            "resampled; give both the same georeference"
        )
    if difference and not resample:
        raise GridError(
            f"{first} and {file} lie on different grids ({difference}); a scene has one grid"
            + suggest("warp one of them (gdalwarp)", "set data.resample: true")
        )
    return difference is not None


class BandSource(Protocol):
    """A source of some of a scene's bands; each band comes from one source."""

    def read(self, window: Window, stack: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Read a window inside the scene into these bands of a stack (C, H, W); return the valid mask, bool (H, W)."""


class SceneReader:
    """Reads windows of an open scene; made by `Scene.open`."""

    def __init__(self, grid: Grid, count: int, sources: Sequence[BandSource]) -> None:
        self.grid = grid
        self._count = count
        self._sources = sources

    def read(self, window: Window) -> Tile:
        """Read one window; pixels outside the scene are no data.

        A pixel is valid if in every file at least one chosen band is not masked (by no-data value, mask band or alpha
        band), and all unmasked values of chosen bands are finite. A single band that is masked at a valid pixel is NaN.

        Raises
        ------
        RasterError
            A file is damaged there.
        """
        shape = int(window.height), int(window.width)
        tile = Tile(np.empty((self._count, *shape), dtype=np.float32), np.zeros(shape, dtype=bool))
        top, left = max(0, -int(window.row_off)), max(0, -int(window.col_off))
        bottom = min(shape[0], self.grid.height - int(window.row_off))
        right = min(shape[1], self.grid.width - int(window.col_off))
        if (top, left, bottom, right) != (0, 0, *shape):
            tile.pixels.fill(np.nan)
        if top >= bottom or left >= right:
            return tile
        inside = Window(window.col_off + left, window.row_off + top, right - left, bottom - top)
        valid = tile.valid[top:bottom, left:right]
        valid[:] = True
        for source in self._sources:
            valid &= source.read(inside, tile.pixels[:, top:bottom, left:right])
        return tile


class _FileBands:
    """Bands of one file: band `indexes[i]` goes to `places[i]` of the stack, in `units[i]`."""

    def __init__(
        self,
        dataset: DatasetReader,
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
        in_place = len(target) == len(self.places) and self.places == sorted(self.places) and target.flags.c_contiguous
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
