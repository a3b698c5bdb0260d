"""Scenes: one or more rasters on one grid, read window by window as `Tile`s.

A `SceneReader` belongs to one thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from segkit.errors import GridError, RasterError, UsageError, ways
from segkit.io.grid import Grid
from segkit.io.raster import GDAL_ERRORS, PathLike, grid_of, open_raster, read_mask, read_window, version_now
from segkit.io.remote import Remote, located

_EXACT = ("uint8", "int8", "uint16", "int16")  # in float32
_WHOLE_NUMBERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")


@dataclass(frozen=True)
class Tile:
    """A window of a scene.

    Parameters
    ----------
    pixels
        float32 (C, H, W) as the files store them, or scaled as they declare; NaN where a band holds no data.
    valid
        bool (H, W); false where the scene holds no data.
    """

    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]

    def padded(self, height: int, width: int) -> Tile:
        """Return the tile continued below and to the right by its reflection, (C, height, width)."""
        beyond = ((0, height - self.valid.shape[0]), (0, width - self.valid.shape[1]))
        if not any(after for _, after in beyond):
            return self
        pixels = np.pad(self.pixels, ((0, 0), *beyond), mode="reflect")
        return Tile(pixels, np.pad(self.valid, beyond, mode="reflect"))


@dataclass(frozen=True)
class Scene:
    """One or more rasters on one grid, stacked band after band.

    Use `Scene.of`, which opens and checks the files.
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

    @classmethod
    def of(
        cls,
        paths: PathLike | Sequence[PathLike],
        *,
        bands: Sequence[int] | None = None,
        resample: bool = False,
        vrt: bool = False,
        scaled: bool = False,
        name: str | None = None,
    ) -> Scene:
        """Describe the scene that files make up.

        Parameters
        ----------
        paths
            One file, or several whose bands are stacked in this order. The first one gives the grid.
        bands
            1-based numbers in the stack, counted through all files. By default all but alpha bands, which are masks.
        resample
            Whether files on another grid are warped to the first one's (bilinear).
        vrt
            Whether files may be virtual rasters, which can read any other file or URL.
        scaled
            Whether pixels are stored number * scale + offset, as a file declares them of each band.
        name
            By default the first file's stem.

        Raises
        ------
        MissingFileError, RasterError
            A file is missing or unreadable.
        GridError
            The files lie on different grids and `resample` is false.
        """
        files = [located(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
        if not files:
            raise UsageError("no file was named; a scene has at least one file")
        grid: Grid | None = None
        stacked: list[tuple[str, bool]] = []
        moved: set[int] = set()
        for file in files:
            with open_raster(file, vrt=vrt) as dataset:
                if any(dtype.startswith("complex") for dtype in dataset.dtypes):
                    raise RasterError(f"{file}: holds complex numbers; make amplitude or phase bands first")
                if scaled and not (np.isfinite([*dataset.scales, *dataset.offsets]).all() and all(dataset.scales)):
                    raise RasterError(
                        f"{file}: declares scales {dataset.scales} and offsets {dataset.offsets}; they are finite, "
                        "and no scale is 0: correct the file, or leave scaled out"
                    )
                own = grid_of(dataset)
                grid = grid or own
                difference = grid.difference(own)
                if difference and (grid.crs is None or own.crs is None):
                    raise GridError(
                        f"{files[0]} and {file} lie on different grids ({difference}), and one of them has no CRS, so "
                        "it cannot be resampled; give both the same georeference"
                    )
                if difference and not resample:
                    raise GridError(
                        f"{files[0]} and {file} lie on different grids ({difference}); a scene has one grid"
                        + ways("warp one of them (gdalwarp)", "set data.resample: true")
                    )
                if difference:
                    moved.update(range(len(stacked) + 1, len(stacked) + dataset.count + 1))
                prefix = f"{file.stem}:" if len(files) > 1 else ""
                stacked += [
                    (f"{prefix}{description or index}", interpretation == ColorInterp.alpha)
                    for index, description, interpretation in zip(
                        dataset.indexes, dataset.descriptions, dataset.colorinterp, strict=True
                    )
                ]
        chosen = tuple(bands) if bands else tuple(i for i, (_, alpha) in enumerate(stacked, 1) if not alpha)
        for band in chosen:
            if not 1 <= band <= len(stacked):
                raise RasterError(
                    f"{files[0]}{' and the files stacked on it' if len(files) > 1 else ''}: band {band} was asked for, "
                    f"there are {len(stacked)} (counted from 1); correct the bands or the files"
                )
            if band in moved and stacked[band - 1][1]:
                raise GridError(
                    f"band {band}, {stacked[band - 1][0]}, is marked as alpha, which hides other bands when its file "
                    "is resampled; mark it as grey first (gdal_edit.py -colorinterp_N gray), or warp the file"
                )
        if not chosen:
            raise RasterError(
                f"{files[0]}: holds alpha bands only, which are masks; choose bands to use one as imagery"
            )
        assert grid is not None
        names = tuple(stacked[band - 1][0] for band in chosen)
        versions = tuple(version_now(file) if isinstance(file, Remote) else "" for file in files)
        return cls(name or files[0].stem, tuple(files), grid, chosen, names, resample, vrt, scaled, versions)

    @contextlib.contextmanager
    def open(self) -> Iterator[SceneReader]:
        """Open the files; the reader belongs to the thread that opened it.

        Raises
        ------
        RasterError
            A file cannot be opened. Or, when the block ends, a remote one is not that which was looked at first.
        """
        with contextlib.ExitStack() as stack:
            sources, first = [], 1
            for path in self.paths:
                dataset = stack.enter_context(open_raster(path, vrt=self.vrt))
                declared = list(zip(dataset.scales, dataset.offsets, strict=True))
                last = first + dataset.count
                own = [(place, band - first + 1) for place, band in enumerate(self.bands) if first <= band < last]
                first = last
                if difference := self.grid.difference(grid_of(dataset)):
                    if not self.resample:
                        raise GridError(f"{path}: lies on another grid than when it was looked at first ({difference})")
                    dataset = stack.enter_context(warped(dataset, self.grid, Resampling.bilinear))
                indexes = [index for _, index in own]
                scaling = [declared[index - 1] for index in indexes] if self.scaled else None
                sources.append(_Source(dataset, [place for place, _ in own], indexes, scaling))
            yield SceneReader(self.grid, len(self.bands), [source for source in sources if source.places])
            for file, version in zip(self.paths, self.versions, strict=True):
                if isinstance(file, Remote) and version and (now := version_now(file)) and now != version:
                    raise RasterError(
                        f"{file}: has changed since it was looked at first ({version}, now {now}); try again"
                    )

    def read(self, window: Window | None = None) -> Tile:
        """Open the files and read one window (default: the whole scene)."""
        with self.open() as reader:
            return reader.read(window or self.grid.whole)


def warped(dataset: DatasetReader, grid: Grid, resampling: Resampling, *, ignore_nodata: bool = False) -> WarpedVRT:
    """Present an open raster on another grid; outside of it there is no data, nor where the declared value says so.

    Raises
    ------
    RasterError
        GDAL cannot take one grid to the other.
    """
    # GDAL shows what a no-data value or an alpha band hides; a mask band it heeds, but does not pass on.
    masked = any({MaskFlags.nodata, MaskFlags.alpha} & set(flags) for flags in dataset.mask_flag_enums)
    undeclared: dict[str, Any] = {"src_nodata": None, "nodata": None} if ignore_nodata else {}
    try:
        return WarpedVRT(
            dataset,
            crs=grid.crs,
            transform=grid.transform,
            height=grid.height,
            width=grid.width,
            resampling=resampling,
            add_alpha=ignore_nodata or not masked,
            **undeclared,
        )
    except GDAL_ERRORS as error:
        raise RasterError(f"{dataset.name}: cannot be resampled ({error}); warp it first (gdalwarp)") from error


class BandSource(Protocol):
    """Some of a scene's bands, all sources together each of them once."""

    def read(self, window: Window, stack: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Fill these bands of a stack (C, H, W) with a window inside the scene; return where there is data."""


class SceneReader:
    """Reads windows of an open scene; made by `Scene.open`."""

    def __init__(self, grid: Grid, count: int, sources: Sequence[BandSource]) -> None:
        self.grid = grid
        self._count = count
        self._sources = sources

    def read(self, window: Window) -> Tile:
        """Read one window; what reaches beyond the scene is no data.

        A pixel is valid where every file's mask (declared no-data value, mask band, alpha band) shows it in some
        chosen band, and every chosen value shown is a finite number. A band that alone holds no data at a valid pixel
        is NaN.

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
        inner = tile.valid[top:bottom, left:right]
        inner[:] = True
        for source in self._sources:
            inner &= source.read(inside, tile.pixels[:, top:bottom, left:right])
        return tile


class _Source:
    """The bands of one file: which of its bands (`indexes`) go where in the stack (`places`).

    `scaling` is (scale, offset) of each of them; None leaves all as they are stored.
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
        # A band marked as alpha but chosen as imagery (near-infrared in NAIP) is no mask.
        chosen_alpha = any(dataset.colorinterp[index - 1] == ColorInterp.alpha for index in indexes)
        self.whole_mask = MaskFlags.per_dataset in flags and not (MaskFlags.alpha in flags and chosen_alpha)
        self.band_masks = MaskFlags.nodata in flags and not self.whole_mask

    def read(self, window: Window, stack: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Fill this file's places in a stack (C, H, W), and return where it holds data."""
        own = stack[self.places[0] : self.places[-1] + 1]
        direct = len(own) == len(self.places) and self.places == sorted(self.places) and own.flags.c_contiguous
        room = own if direct else np.empty((len(self.places), *stack.shape[1:]), dtype=np.float32)
        pixels = read_window(self.dataset, self.indexes, window, out=room)
        known = np.ones(pixels.shape[1:], dtype=bool)
        shown = np.full(known.shape, not self.band_masks)
        if self.whole_mask:
            shown &= read_mask(self.dataset, self.indexes[0], window) > 0
        # Band by band, since masks of all bands at once are a quarter of the pixels' memory each.
        for index, band, (scale, offset) in zip(self.indexes, pixels, self.scaling, strict=True):
            finite = True if self.dataset.dtypes[index - 1] in _WHOLE_NUMBERS else np.isfinite(band)
            if self.band_masks:
                nodata = self.dataset.nodatavals[index - 1]
                exact = nodata is not None and self.dataset.dtypes[index - 1] in _EXACT
                # GDAL's mask costs another look at the file.
                hidden = band == nodata if exact else read_mask(self.dataset, index, window) == 0
                # The no-data value itself need not be finite: float files declare NaN, or one beyond float32.
                known &= finite | hidden
                shown |= ~hidden
                band[hidden] = np.nan
            else:
                known &= finite
            if (scale, offset) != (1, 0):
                band[:] = band.astype(np.float64) * scale + offset
        if not direct:
            stack[self.places] = pixels
        known &= shown
        return known
