"""Scenes: one or more rasters on one grid, read window by window as `Tile`s.

A `SceneReader` can be used in one thread only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rasterio.windows import Window

from segkit.errors import GridError, RasterError, UsageError, suggest
from segkit.io.band_source import BandSource, FileBands, MosaicBands
from segkit.io.grid import Grid
from segkit.io.mosaic import Mosaic
from segkit.io.mosaic_dataset import MosaicDataset
from segkit.io.mosaic_warp import warp_raster
from segkit.io.paths import PathLike, list_files
from segkit.io.raster import current_version, open_raster, read_grid
from segkit.io.remote import Remote, as_path


@dataclass(frozen=True)
class Tile:
    """A window of a scene.

    Parameters
    ----------
    pixels
        float32 (C, H, W): stored values, or scaled ones (`Scene.scaled`); NaN where a band is no data.
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

    @classmethod
    def from_files(
        cls,
        paths: PathLike | Sequence[PathLike],
        *,
        bands: Sequence[int] | None = None,
        resample: bool = False,
        vrt: bool | None = False,
        scaled: bool = False,
        name: str | None = None,
    ) -> Scene:
        """Open and check files, and return the scene that they make up.

        Parameters
        ----------
        paths
            One file, or several whose bands are stacked in this order. The first one gives the grid. Each may be a
            `Mosaic` of files that lie side by side.
        bands
            1-based numbers in the stack, counted through all files. By default all but alpha bands, which are masks.
        resample
            Whether files on another grid are warped to the grid of the first one (bilinear).
        vrt
            Whether files may be virtual rasters, which can read any other file or URL; see `open_raster`.
        scaled
            Whether pixels are stored value * scale + offset, as the files declare for each band.
        name
            Default: the stem of the first file.

        Raises
        ------
        MissingFileError, RasterError
            A file does not exist or cannot be read, or there is no such band.
        GridError
            The files are on different grids and `resample` is false.
        """
        files = [as_path(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
        if not files:
            raise UsageError("a scene needs at least one file; none was given")
        if resample:
            files = [file.with_resampling() if isinstance(file, Mosaic) else file for file in files]
        grid: Grid | None = None
        stack: list[_StackedBand] = []
        for file in files:
            with open_raster(file, vrt=vrt) as dataset:
                _check_pixels(file, dataset, scaled=scaled)
                file_grid = read_grid(dataset)
                grid = grid or file_grid
                resampled = _needs_resampling(files[0], grid, file, file_grid, resample=resample)
                resampled |= isinstance(dataset, MosaicDataset) and dataset.layout.is_resampled
                prefix = f"{file.stem}:" if len(files) > 1 else ""
                stack += [
                    _StackedBand(f"{prefix}{description or index}", interpretation == ColorInterp.alpha, resampled)
                    for index, description, interpretation in zip(
                        dataset.indexes, dataset.descriptions, dataset.colorinterp, strict=True
                    )
                ]
        assert grid is not None
        chosen = _choose_bands(files, stack, bands)
        names = tuple(stack[band - 1].name for band in chosen)
        versions = tuple(_remote_version(file) for file in files)
        return cls(name or files[0].stem, tuple(files), grid, chosen, names, resample, bool(vrt), scaled, versions)

    def with_named_bands(self, names: Sequence[str]) -> Scene:
        """Return the scene with bands of these names, wherever they are in its files.

        The scene itself is returned if its bands have these names already, if a band has no name (`names` then holds
        its number), or if the files do not have one band of each name.
        """
        if self.band_names == tuple(names) or any(name.isdigit() for name in names):
            return self
        whole = Scene.from_files(self.paths, resample=self.resample, vrt=self.vrt, scaled=self.scaled, name=self.name)
        if len({*whole.band_names}) < len(whole.band_names) or not {*names} <= {*whole.band_names}:
            return self
        number = dict(zip(whole.band_names, whole.bands, strict=True))
        return replace(self, bands=tuple(number[name] for name in names), band_names=tuple(names))

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
                places, indexes = [place for place, _ in placed], [index for _, index in placed]
                difference = self.grid.describe_difference(read_grid(dataset))
                if difference and not self.resample:
                    raise GridError(
                        f"{path}: its grid has changed since the scene was opened ({difference}); try again"
                    )
                if isinstance(dataset, MosaicDataset) and not difference:
                    sources.append(MosaicBands(dataset, places, indexes, scaled=self.scaled))
                    continue
                scaling = [(dataset.scales[i - 1], dataset.offsets[i - 1]) for i in indexes] if self.scaled else None
                if difference:
                    dataset = stack.enter_context(warp_raster(dataset, self.grid, Resampling.bilinear))
                sources.append(FileBands(dataset, places, indexes, scaling))
            yield SceneReader(self.grid, len(self.bands), [source for source in sources if source.places])
            for file, version in zip(self.paths, self.versions, strict=True):
                if version and (now := _remote_version(file)) and now != version:
                    raise RasterError(
                        f"{file}: has changed since the scene was opened ({version}, now {now}); try again"
                    )

    def read(self, window: Window | None = None) -> Tile:
        """Open the files and read one window (default: the whole scene)."""
        with self.open() as reader:
            return reader.read(window or self.grid.full_window)


class _StackedBand(NamedTuple):
    """A band of the stack of all files."""

    name: str
    alpha: bool
    resampled: bool


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


def _choose_bands(files: Sequence[Path], stack: Sequence[_StackedBand], bands: Sequence[int] | None) -> tuple[int, ...]:
    """Return the 1-based numbers of the chosen bands, or of all but alpha bands."""
    chosen = tuple(bands) if bands else tuple(number for number, band in enumerate(stack, 1) if not band.alpha)
    for number in chosen:
        if not 1 <= number <= len(stack):
            raise RasterError(
                f"{files[0]}{' and the files stacked on it' if len(files) > 1 else ''}: band {number} was asked for, "
                f"there are {len(stack)} (counted from 1); correct the bands or the files"
            )
        band = stack[number - 1]
        if band.resampled and band.alpha:
            raise GridError(
                f"band {number}, {band.name}, is marked as alpha, which masks other bands when its file is resampled; "
                "mark it as grey first (gdal_edit.py -colorinterp_N gray), or warp the file"
            )
    if not chosen:
        raise RasterError(f"{files[0]}: holds only alpha bands, which are masks; choose bands to use one as imagery")
    return chosen


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
