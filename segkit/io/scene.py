"""Scenes: one or more rasters on one grid, read window by window as `Tile`s.

A `SceneReader` can be used in one thread only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.windows import Window

from segkit.errors import GridError, RasterError, UsageError, suggest
from segkit.io.band_choice import AlphaBand, BandChoice, StackedBand, WantedBands
from segkit.io.band_source import BandSource, FileBands, MosaicBands, open_source, stack_bands
from segkit.io.derived_bands import BandFormula, DerivedBand, DerivedSource, find_derived
from segkit.io.grid import Grid
from segkit.io.layers import Layer, SceneLayer, find_layers
from segkit.io.mosaic import Mosaic
from segkit.io.mosaic_dataset import MosaicDataset, with_unreadable
from segkit.io.paths import PathLike, list_files
from segkit.io.pixel_rules import AS_STORED, PixelRules
from segkit.io.product import Product, as_image
from segkit.io.product_band import ProductFile
from segkit.io.quality_mask import QualityMask, SceneMask, find_masks, open_mask
from segkit.io.raster import current_version, open_raster, read_grid
from segkit.io.remote import Remote, as_path
from segkit.io.unreadable import UnreadableBlock, UnreadableBlocks


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
    """One or more rasters on one grid, whose bands are stacked; made by `Scene.from_files`.

    Computed bands, and then those of layers, follow those of the files; so do their numbers. With `skip_unreadable`,
    blocks of files that cannot be read are no data; else they are errors.
    """

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
    derived: tuple[DerivedBand, ...] = ()
    layers: tuple[SceneLayer, ...] = ()
    skip_unreadable: bool = False

    @classmethod
    def from_files(
        cls,
        paths: PathLike | Sequence[PathLike],
        *,
        bands: Sequence[int | str] | None = None,
        band_names: Sequence[str] | None = None,
        trained: Sequence[str] | None = None,
        resample: bool = False,
        vrt: bool | None = False,
        scaled: bool = False,
        rules: PixelRules = AS_STORED,
        mask: QualityMask | None = None,
        indices: Sequence[BandFormula] = (),
        layers: Sequence[Layer] = (),
        name: str | None = None,
        resolution: float | None = None,
        resampling: str = "bilinear",
    ) -> Scene:
        """Open and check files, and return the scene that they make up.

        Parameters
        ----------
        paths
            One file, or several whose bands are stacked in this order. The first one gives the grid. Each may be a
            `Mosaic` of files that lie side by side, or a `Product` (a SAFE folder, a STAC item).
        bands, band_names, trained
            Which bands to read, see `segkit.io.band_choice.WantedBands`. By default all but alpha and quality bands.
        resample
            Whether files on another grid are warped to the grid of the first one (bilinear).
        vrt
            Whether files may be virtual rasters, which can read any other file or URL; see `open_raster`.
        scaled
            Whether pixels are stored value * scale + offset, as the files declare for each band.
        rules
            Units and no data that the files do not declare.
        mask
            Quality bands that say which pixels are not valid; if they are in the scene, they are not used as imagery
            unless `bands` lists them.
        indices, layers
            Bands to compute from those of the files, also from bands that are not read; and rasters that cover the
            scene, on any grid. `bands`, `trained` and `rules` are about the bands of the files alone, except that
            `trained` names these bands, too.
        name
            Default: the stem of the first file.
        resolution, resampling
            Pixel size of products, by default that of the finest band that is used, and how their other bands are
            resampled; see `Product.select`.

        Raises
        ------
        MissingFileError, RasterError
            A file does not exist or cannot be read, there is no such band, or `rules` do not fit the bands.
        GridError
            The files are on different grids and `resample` is false; or a layer does not cover the scene.
        """
        files = [as_image(as_path(path)) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
        if not files:
            raise UsageError("a scene needs at least one file; none was given")
        if resample:
            files = [file.with_resampling() if isinstance(file, Mosaic) else file for file in files]
        wanted = WantedBands(bands, band_names, names_in_files(trained, indices, layers))
        alone = len(files) == 1
        parts: list[Path] = []
        for file in files:
            parts += file.select(wanted, resolution, resampling, alone=alone) if isinstance(file, Product) else [file]
        grid: Grid | None = None
        stack: list[StackedBand] = []
        for file in parts:
            with open_raster(file, vrt=vrt) as dataset:
                _check_pixels(file, dataset, scaled=scaled)
                own_grid = read_grid(dataset)
                file_grid = file.grid if isinstance(file, ProductFile) else own_grid
                grid = grid or file_grid
                resampled = _needs_resampling(files[0], grid, file, file_grid, resample=resample)
                resampled |= _needs_resampling(file, grid, file, own_grid, resample=True)
                resampled |= isinstance(dataset, MosaicDataset) and dataset.layout.is_resampled
                source = file.product if isinstance(file, ProductFile) else file
                stack += stack_bands(file, dataset, "" if alone else f"{source.stem}:", resampled=resampled)
        assert grid is not None
        masks: tuple[SceneMask, ...] = ()
        if mask is not None:
            masks = find_masks(mask, [*dict.fromkeys(files)], stack, wanted.lookup_names(stack), vrt=vrt)
        quality = {(one.path, band) for one in masks for band in one.bands}
        products = [(band, band.path) for band in stack if isinstance(band.path, ProductFile)]
        quality |= {(file, band.number) for band, file in products if not file.is_imagery(band.number)}
        chosen = wanted.choose(stack, quality, vrt=vrt)
        rules.check(str(files[0]), len(chosen.numbers))
        for place, number in enumerate(chosen.numbers):
            if isinstance(file := stack[number - 1].path, ProductFile):
                file.check_units(stack[number - 1].number, rules, place)
        derived = find_derived(indices, stack, wanted, chosen, trained)
        _check_units(derived, chosen, rules, files[0])
        covering = find_layers(layers, grid, files[0], len(stack) + len(derived) + 1, vrt=vrt)
        more = [(band.number, band.name) for band in derived]
        more += [pair for layer in covering for pair in zip(layer.numbers, layer.names, strict=True)]
        versions = tuple(_remote_version(file) for file in (*parts, *(layer.declared.path for layer in covering)))
        return cls(
            name or files[0].stem, tuple(parts), grid, (*chosen.numbers, *(number for number, _ in more)),
            (*chosen.names, *(each for _, each in more)), resample, bool(vrt), scaled, versions, rules, masks,
            chosen.alpha_masks, chosen.alpha_imagery, derived, covering,
        )  # fmt: skip

    @property
    def is_of_products(self) -> bool:
        """Whether files are those of products, which may be resampled and converted."""
        return any(isinstance(path, ProductFile) for path in self.paths)

    @property
    def all_paths(self) -> tuple[Path, ...]:
        """The files of the scene and of its layers."""
        return (*self.paths, *(layer.declared.path for layer in self.layers))

    def without_derived(self) -> Scene:
        """Return the scene with the bands of its files alone."""
        others = {band.number for band in self.derived}.union(*(layer.numbers for layer in self.layers))
        kept = [pair for pair in zip(self.bands, self.band_names, strict=True) if pair[0] not in others]
        return self.with_bands(kept)

    def with_bands(self, bands: Sequence[tuple[int, str]]) -> Scene:
        """Return the scene with some of its bands, as pairs of number and name."""
        return replace(self, bands=tuple(number for number, _ in bands), band_names=tuple(name for _, name in bands))

    @contextlib.contextmanager
    def open(self) -> Iterator[SceneReader]:
        """Open the files; use the reader in this thread only.

        Raises
        ------
        RasterError
            A file cannot be opened; or, at the end of the block, a remote file has changed since `from_files`.
        """
        skipped = UnreadableBlocks(self.grid) if self.skip_unreadable else None
        with contextlib.ExitStack() as stack:
            used: list[BandSource] = [*self._open_files(self.bands, stack, skipped)]
            for layer in self.layers:
                found = stack.enter_context(
                    layer.open(self.grid, self.bands, scaled=self.scaled, vrt=self.vrt, unreadable=skipped)
                )
                used += [] if found is None else [found]
            used += [
                stack.enter_context(open_mask(mask, self.grid, vrt=self.vrt, unreadable=skipped)) for mask in self.masks
            ]
            if computed := [band for band in self.derived if band.number in self.bands]:
                inputs = dict.fromkeys(number for band in computed for _, number in band.inputs)
                hidden = [number for number in inputs if number not in self.bands]
                sources = self._open_files(hidden, stack, skipped) if hidden else []
                used.append(DerivedSource(computed, self.bands, hidden, sources))
            yield SceneReader(self.grid, len(self.bands), used, skipped)
            for file, version in zip(self.all_paths, self.versions, strict=True):
                if version and (now := _remote_version(file)) and now != version:
                    raise RasterError(
                        f"{file}: has changed since the scene was opened ({version}, now {now}); try again"
                    )

    def _open_files(
        self, numbers: Sequence[int], stack: contextlib.ExitStack, unreadable: UnreadableBlocks | None
    ) -> list[FileBands | MosaicBands]:
        """Return the sources of bands; band `numbers[i]` of the scene's files goes to place i."""
        sources: list[FileBands | MosaicBands] = []
        first = 1
        for path in self.paths:
            dataset = with_unreadable(stack.enter_context(open_raster(path, vrt=self.vrt)), unreadable)
            in_file = [*path.bands] if isinstance(path, ProductFile) else dataset.indexes
            last = first + len(in_file)
            placed = [(place, in_file[band - first]) for place, band in enumerate(numbers) if first <= band < last]
            first = last
            if not placed:
                continue
            places, indexes = [place for place, _ in placed], [index for _, index in placed]
            resampling = Resampling.bilinear if self.resample else None
            sources.append(
                open_source(
                    dataset, path, self.grid, places, indexes, self.rules, scaled=self.scaled, resampling=resampling
                )
            )
        return sources

    def read(self, window: Window | None = None) -> Tile:
        """Open the files and read one window (default: the whole scene)."""
        with self.open() as reader:
            return reader.read(window or self.grid.full_window)


def _remote_version(file: Path) -> str:
    """Return the version of a remote file, or of those in a mosaic; empty for local files."""
    return ", ".join(current_version(one) for one in list_files(file) if isinstance(one, Remote))


def names_in_files(
    trained: Sequence[str] | None, indices: Sequence[BandFormula], layers: Sequence[Layer]
) -> Sequence[str] | None:
    """Return the names of a model's bands without those of computed bands and layers, which come last."""
    if trained is None:
        return None
    computed, covering = {one.name for one in indices}, {layer.name for layer in layers}
    number = len(trained)
    while number and (
        trained[number - 1].rpartition(":")[2] in computed or trained[number - 1].partition(":")[0] in covering
    ):
        number -= 1
    return trained[:number]


def _check_units(derived: Sequence[DerivedBand], chosen: BandChoice, rules: PixelRules, scene: Path) -> None:
    """Raise a RasterError if the units of a band that is only an input of another one are not known."""
    for band in derived:
        for variable, number in band.inputs:
            key = next((key for key in ("scale", "offset", "decibels") if len(getattr(rules, key)) > 1), None)
            if key is not None and number not in chosen.numbers:
                raise RasterError(
                    f"{scene}: {band.name} needs band {number} ({variable}), which is not one of the bands that are "
                    f"read, so {key}, with a value for each of these, has none for it"
                    + suggest("add it to data.bands", f"set data.{key} to one value for all bands")
                )


def _check_pixels(file: Path, dataset: Any, *, scaled: bool) -> None:
    if any(dtype.startswith("complex") for dtype in dataset.dtypes):
        raise RasterError(f"{file}: holds complex numbers; make amplitude or phase bands first")
    declared = _declared_scaling(file, dataset, scaled=scaled)
    for one, scales, offsets in declared if scaled else ():
        if not (np.isfinite([*scales, *offsets]).all() and all(scales)):
            raise RasterError(
                f"{one}: declares scales {scales} and offsets {offsets}; all must be finite, and no scale may be 0"
                + suggest("correct the file", "set data.apply_scale_offset: false")
            )


def _declared_scaling(
    file: Path, dataset: Any, *, scaled: bool
) -> list[tuple[Path, tuple[float, ...], tuple[float, ...]]]:
    """Return (file, scales, offsets) of a raster, or of each file of a mosaic.

    Raises
    ------
    RasterError
        The files of a mosaic differ, and the scene has stored values, which then mean different things.
    """
    if not isinstance(dataset, MosaicDataset):
        return [(file, dataset.scales, dataset.offsets)]
    found = [(tile.path, tile.scales, tile.offsets) for tile in dataset.layout.tiles]
    for path, *other in () if scaled else found[1:]:
        if other != list(found[0][1:]):
            raise RasterError(
                f"{found[0][0]} declares scales {found[0][1]} and offsets {found[0][2]}, {path} {other[0]} and "
                f"{other[1]}, so their stored values mean different things"
                + suggest("set data.apply_scale_offset: true", "convert one of them")
            )
    return found


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


class SceneReader:
    """Reads windows of an open scene; made by `Scene.open`."""

    def __init__(
        self, grid: Grid, count: int, sources: Sequence[BandSource], unreadable: UnreadableBlocks | None = None
    ) -> None:
        self.grid = grid
        self._count = count
        self._sources = sources
        self._unreadable = unreadable

    @property
    def unreadable(self) -> list[UnreadableBlock]:
        """The blocks that could not be read so far, if they are skipped."""
        return [] if self._unreadable is None else self._unreadable.blocks

    def read(self, window: Window) -> Tile:
        """Read one window; pixels outside the scene are no data.

        A pixel is valid if in every file at least one chosen band is not masked (by no-data value, mask band or alpha
        band), and all unmasked values of chosen bands are finite. A single band that is masked at a valid pixel is NaN.
        A pixel in a block that cannot be read, of any file, is not valid if such blocks are skipped.

        Raises
        ------
        UnreadableError
            A file is damaged there, and such blocks are not skipped.
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
        lost = None if self._unreadable is None else self._unreadable.mask(inside)
        if lost is not None:
            valid &= ~lost
            tile.pixels[:, top:bottom, left:right][:, lost] = np.nan
        return tile
