"""Scenes: one or more rasters on one grid, read window by window as `Tile`s.

A `SceneReader` can be used in one thread only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rasterio.windows import Window

from segkit.errors import GridError, RasterError, UsageError, suggest
from segkit.io.band_choice import AlphaBand, StackedBand, WantedBands
from segkit.io.band_names import read_names
from segkit.io.band_source import BandSource, FileBands, MosaicBands
from segkit.io.grid import Grid
from segkit.io.mosaic import Mosaic
from segkit.io.mosaic_dataset import MosaicDataset
from segkit.io.mosaic_warp import warp_bands
from segkit.io.paths import PathLike, list_files
from segkit.io.pixel_rules import AS_STORED, PixelRules
from segkit.io.product import Product, as_image
from segkit.io.product_band import ProductFile
from segkit.io.quality_mask import QualityMask, SceneMask, find_masks, open_mask
from segkit.io.raster import current_version, open_raster, read_grid
from segkit.io.remote import Remote, as_path


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
        vrt: bool | None = False,
        scaled: bool = False,
        rules: PixelRules = AS_STORED,
        mask: QualityMask | None = None,
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
            The files are on different grids and `resample` is false.
        """
        files = [as_image(as_path(path)) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
        if not files:
            raise UsageError("a scene needs at least one file; none was given")
        if resample:
            files = [file.with_resampling() if isinstance(file, Mosaic) else file for file in files]
        wanted = WantedBands(bands, band_names, trained)
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
                stack += _stack_bands(file, dataset, "" if alone else f"{source.stem}:", resampled=resampled)
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
        versions = tuple(_remote_version(file) for file in parts)
        return cls(
            name or files[0].stem, tuple(parts), grid, chosen.numbers, chosen.names, resample, bool(vrt), scaled,
            versions, rules, masks, chosen.alpha_masks, chosen.alpha_imagery,
        )  # fmt: skip

    @property
    def is_of_products(self) -> bool:
        """Whether files are those of products, which may be resampled and converted."""
        return any(isinstance(path, ProductFile) for path in self.paths)

    @contextlib.contextmanager
    def open(self) -> Iterator[SceneReader]:
        """Open the files; use the reader in this thread only.

        Raises
        ------
        RasterError
            A file cannot be opened; or, at the end of the block, a remote file has changed since `from_files`.
        """
        with contextlib.ExitStack() as stack:
            sources: list[FileBands | MosaicBands] = []
            first = 1
            for path in self.paths:
                dataset = stack.enter_context(open_raster(path, vrt=self.vrt))
                last = first + dataset.count
                placed = [(place, band - first + 1) for place, band in enumerate(self.bands) if first <= band < last]
                first = last
                if not placed:
                    continue
                places, indexes = [place for place, _ in placed], [index for _, index in placed]
                difference = self.grid.describe_difference(read_grid(dataset))
                product = path if isinstance(path, ProductFile) else None
                if difference and not self.resample and product is None:
                    raise GridError(
                        f"{path}: its grid has changed since the scene was opened ({difference}); try again"
                    )
                if isinstance(dataset, MosaicDataset) and not difference:
                    sources.append(MosaicBands(dataset, places, indexes, self.rules, scaled=self.scaled))
                    continue
                declared = [_declared_units(path, dataset, index, scaled=self.scaled) for index in indexes]
                units = [self.rules.units(place, each) for place, each in zip(places, declared, strict=True)]
                rules = self.rules if product is None else self.rules.with_nodata(product.nodata)
                if difference:
                    nodata = rules.resampling_nodata(str(path), dataset.nodatavals)
                    resampling = Resampling.bilinear if product is None else product.resampling(indexes)
                    dataset = warp_bands(dataset, self.grid, indexes, resampling, nodata=nodata)
                sources.append(FileBands(dataset, places, indexes, units, rules))
            used: list[BandSource] = [*sources]
            used += [stack.enter_context(open_mask(mask, self.grid, vrt=self.vrt)) for mask in self.masks]
            yield SceneReader(self.grid, len(self.bands), used)
            for file, version in zip(self.paths, self.versions, strict=True):
                if version and (now := _remote_version(file)) and now != version:
                    raise RasterError(
                        f"{file}: has changed since the scene was opened ({version}, now {now}); try again"
                    )

    def read(self, window: Window | None = None) -> Tile:
        """Open the files and read one window (default: the whole scene)."""
        with self.open() as reader:
            return reader.read(window or self.grid.full_window)


def _stack_bands(file: Path, dataset: Any, prefix: str, *, resampled: bool) -> list[StackedBand]:
    """Return the bands of one file of a scene, or of a mosaic, with a prefix before their names."""
    if isinstance(file, ProductFile):
        names = [f"{prefix}{file.band_name(number)}" for number in dataset.indexes]
        return [StackedBand(name, name, False, resampled, file, number) for number, name in enumerate(names, 1)]
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


def _declared_units(path: Path, dataset: Any, index: int, *, scaled: bool) -> tuple[float, float] | None:
    """Return scale and offset of a band of a file (from 1), to be used if the rules of the scene give none."""
    if isinstance(path, ProductFile):
        return path.declared(dataset, index, scaled=scaled)
    return (dataset.scales[index - 1], dataset.offsets[index - 1]) if scaled else None


def _remote_version(file: Path) -> str:
    """Return the version of a remote file, or of those in a mosaic; empty for local files."""
    return ", ".join(current_version(one) for one in list_files(file) if isinstance(one, Remote))


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
