"""Layers: rasters that cover scenes, such as an elevation model, read on the grid of each scene."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.warp import transform

from segkit.errors import GridError, MissingFileError, suggest
from segkit.io.band_choice import WantedBands
from segkit.io.band_source import BandSource, open_source, stack_bands
from segkit.io.grid import Grid
from segkit.io.mosaic_dataset import with_unreadable
from segkit.io.pixel_rules import PixelRules
from segkit.io.placement import describe_extents
from segkit.io.raster import open_raster, read_grid
from segkit.io.remote import Remote
from segkit.io.unreadable import UnreadableBlocks

Values = NDArray[np.float64]

_POINTS = 65  # along each side of a scene at which it is tested whether a layer covers it
_ROUNDING_PX = 1e-3


@dataclass(frozen=True)
class Layer:
    """A raster that covers scenes.

    Parameters
    ----------
    name
        Its name, by which its bands are called.
    path
        A file, a URL, or files that lie side by side.
    bands
        Names, or numbers from 1; by default all but alpha bands.
    resampling
        Name of the method of GDAL if it is on another grid than a scene.
    nodata
        Stored values that mean no data, besides what the file declares.
    """

    name: str
    path: Path
    bands: tuple[int | str, ...] = ()
    resampling: str = "bilinear"
    nodata: tuple[float, ...] = ()

    def require_file(self) -> Path:
        """Return the path of the file, or files.

        Raises
        ------
        MissingFileError
            It does not exist.
        """
        missing = not isinstance(self.path, Remote) and not self.path.exists()
        if missing:
            raise MissingFileError(
                f"{self.path}: no such file; it is the layer {self.name!r}"
                + suggest(f"name it (--layer {self.name}=FILE)", "correct data.layers")
            )
        return self.path


@dataclass(frozen=True)
class SceneLayer:
    """A layer of a scene; numbers of its bands count on after those of the scene's files and computed bands.

    Parameters
    ----------
    bands
        Numbers in the file.
    numbers, names
        Of the same bands in the scene.
    covered
        Share of the scene on which the file lies, whatever it holds there.
    """

    declared: Layer
    bands: tuple[int, ...]
    numbers: tuple[int, ...]
    names: tuple[str, ...]
    covered: float = 1.0

    @contextlib.contextmanager
    def open(
        self,
        grid: Grid,
        numbers: Sequence[int],
        *,
        scaled: bool,
        vrt: bool,
        unreadable: UnreadableBlocks | None = None,
    ) -> Iterator[BandSource | None]:
        """Open the source of those bands that are among the bands `numbers` of a scene; None if there are none.

        Blocks that cannot be read are added to `unreadable`; without it, they are errors.

        Raises
        ------
        RasterError
            The file cannot be opened, or its no-data values cannot be kept apart when it is resampled.
        """
        own = zip(self.numbers, self.bands, strict=True)
        used = [(numbers.index(number), band) for number, band in own if number in numbers]
        if not used:
            yield None
            return
        places, indexes = [place for place, _ in used], [band for _, band in used]
        with open_raster(self.declared.path, vrt=vrt) as opened:
            dataset = with_unreadable(opened, unreadable)
            rules = PixelRules(nodata=self.declared.nodata)
            resampling = Resampling[self.declared.resampling]
            yield open_source(
                dataset, self.declared.path, grid, places, indexes, rules, scaled=scaled, resampling=resampling
            )


def find_layers(
    layers: Sequence[Layer], grid: Grid, scene: Path, first: int, *, vrt: bool | None
) -> tuple[SceneLayer, ...]:
    """Return the layers of a scene; their bands are numbered from `first` on.

    Raises
    ------
    MissingFileError, RasterError
        A file does not exist or cannot be read, or has no such band.
    GridError
        A layer lies elsewhere, or it is on another grid and one of the two has no CRS.
    """
    found: list[SceneLayer] = []
    for layer in layers:
        with open_raster(layer.require_file(), vrt=vrt) as dataset:
            covered = _check_place(layer, read_grid(dataset), grid, scene)
            stack = stack_bands(layer.path, dataset, "", resampled=False)
            chosen = WantedBands(layer.bands or None).choose(stack, vrt=vrt)
        names = tuple(f"{layer.name}:{name}" for name in chosen.names) if len(chosen.names) > 1 else (layer.name,)
        numbers = tuple(range(first, first + len(names)))
        found.append(SceneLayer(layer, chosen.numbers, numbers, names, covered))
        first += len(names)
    return tuple(found)


def _check_place(layer: Layer, own: Grid, grid: Grid, scene: Path) -> float:
    """Return the share of a scene on which a layer lies.

    Raises
    ------
    GridError
        It lies elsewhere, or cannot be resampled.
    """
    difference = grid.describe_difference(own)
    if difference is None:
        return 1.0
    if grid.crs is None or own.crs is None:
        raise GridError(
            f"{scene} and its layer {layer.name!r} ({layer.path}) lie on different grids ({difference}), and one of "
            "them has no CRS, so it cannot be resampled; give both the same georeference"
        )
    share = _share_inside(grid, own)
    if not share and not _share_inside(own, grid):
        raise GridError(
            f"the layer {layer.name!r} does not cover {scene}: {describe_extents(layer.path, own, grid)}"
            + suggest(f"name another file (--layer {layer.name}=FILE)", "correct data.layers")
        )
    return share


def _share_inside(grid: Grid, other: Grid) -> float:
    """Return the share of a lattice of points of a grid that lie in another one."""
    along = np.linspace(0, 1, _POINTS)
    columns, rows = (each.ravel() for each in np.meshgrid(along * grid.width, along * grid.height))
    x, y = _apply(grid.transform, columns, rows)
    if grid.crs != other.crs:
        x, y = (np.array(values) for values in transform(grid.crs, other.crs, x, y)[:2])
    columns, rows = _apply(~other.transform, x, y)
    inside = (columns >= -_ROUNDING_PX) & (columns <= other.width + _ROUNDING_PX)
    inside &= (rows >= -_ROUNDING_PX) & (rows <= other.height + _ROUNDING_PX)
    return float(inside.mean())


def _apply(affine: Affine, x: Values, y: Values) -> tuple[Values, Values]:
    return affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f
