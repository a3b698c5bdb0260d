"""The landscape as files: imagery, label rasters and polygons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from numpy.random import Generator
from numpy.typing import NDArray
from rasterio import features
from rasterio.windows import Window

from segkit.demo.landscape.canvas import Canvas, Cover, Frame, Mask
from segkit.demo.landscape.sensor import NODATA
from segkit.demo.landscape.spectra import BANDS
from segkit.io.cog import telling
from segkit.io.files import staged
from segkit.io.grid import Grid

UNKNOWN = 255
OVERLAPPING = ("tree_canopy", "built_up", "flooded")


@dataclass(frozen=True)
class Part:
    """Files of one part of the landscape, all on one grid.

    Parameters
    ----------
    scene_2019, scene_2024
        uint16, the six `BANDS` as reflectance x 10000, no data 0.
    deforestation
        uint8: 1 where forest was cleared between the dates, else 0; 255 not known.
    landcover
        uint8: codes of `Cover` in 2024; 255 not known.
    overlapping
        Polygons of 2024 with one of the `OVERLAPPING` classes in the field `class`; a place may lie in several.
    """

    scene_2019: Path
    scene_2024: Path
    deforestation: Path
    landcover: Path
    overlapping: Path


_UNLABELLED = 6  # places that nobody looked at


@dataclass(frozen=True)
class _Labels:
    """What is known about 2024: code rasters, and a mask per overlapping class."""

    deforestation: NDArray[np.uint8]
    landcover: NDArray[np.uint8]
    overlapping: dict[str, Mask]


def make_labels(rng: Generator, canvas: Canvas, seen: Mask) -> _Labels:
    """Return the labels of what was `seen` on both dates, but for a few places that nobody looked at."""
    frame = canvas.frame
    outline = frame.noise(rng, 30 * frame.unit)
    known = seen.copy()
    for row, column in rng.uniform(size=(_UNLABELLED, 2)) * frame.shape:
        known &= ~frame.blob(complex(column, row), rng.uniform(15, 40) * frame.unit, outline)

    def raster(attribute: str) -> NDArray[np.uint8]:
        return np.array([getattr(patch, attribute) for patch in canvas.patches], np.uint8)[canvas.numbers]

    landcover = raster("cover")
    masks = {
        "tree_canopy": raster("canopy") > 0,
        "built_up": landcover == Cover.URBAN,
        "flooded": raster("flooded") > 0,
    }
    return _Labels(
        np.where(known, raster("deforested"), np.uint8(UNKNOWN)),
        np.where(known, landcover, np.uint8(UNKNOWN)),
        {name: masks[name] & seen for name in OVERLAPPING},
    )


def write_part(
    folder: Path,
    frame: Frame,
    window: Window,
    scenes: Sequence[NDArray[np.uint16]],
    labels: _Labels,
    about: dict[str, str],
) -> Part:
    """Write the five files of one window of the landscape."""
    folder.mkdir(parents=True, exist_ok=True)
    part = Part(
        scene_2019=folder / "scene_2019.tif",
        scene_2024=folder / "scene_2024.tif",
        deforestation=folder / "deforestation.tif",
        landcover=folder / "landcover.tif",
        overlapping=folder / "overlapping.gpkg",
    )
    grid = frame.grid(window)
    rows, columns = window.toslices()
    for path, scene in zip((part.scene_2019, part.scene_2024), scenes, strict=True):
        _write_raster(path, grid, scene[:, rows, columns], NODATA, BANDS, about)
    for path, codes in ((part.deforestation, labels.deforestation), (part.landcover, labels.landcover)):
        _write_raster(path, grid, codes[None, rows, columns], UNKNOWN, (path.stem,), about)
    _write_polygons(part.overlapping, grid, {name: mask[rows, columns] for name, mask in labels.overlapping.items()})
    return part


def _write_raster(
    path: Path,
    grid: Grid,
    bands: NDArray[np.uint8] | NDArray[np.uint16],
    nodata: int,
    names: Sequence[str],
    about: dict[str, str],
) -> None:
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    profile |= {"predictor": 2, "nodata": nodata, "dtype": bands.dtype, "count": len(bands)}
    profile |= {"height": grid.height, "width": grid.width, "transform": grid.transform, "crs": grid.crs}
    with staged(path) as unfinished, telling(path), rasterio.open(unfinished, "w", **profile) as raster:
        raster.write(bands)
        raster.descriptions = names
        raster.update_tags(**about)


def _write_polygons(path: Path, grid: Grid, masks: dict[str, Mask]) -> None:
    codes = {name: _smoothed(mask) for name, mask in masks.items()}
    outlines = [
        (name, shapely.make_valid(shapely.geometry.shape(outline)))
        for name, image in codes.items()
        for outline, _ in features.shapes(image, image > 0, connectivity=4, transform=grid.transform)
    ]
    names, geometries = zip(*outlines, strict=True)
    layer = gpd.GeoDataFrame({"class": names}, geometry=list(geometries), crs=grid.crs)
    with staged(path) as unfinished:
        layer.explode(ignore_index=True).to_file(unfinished, engine="pyogrio")


def _smoothed(mask: Mask) -> NDArray[np.uint8]:
    """Give every pixel the majority of its 3 x 3 neighbours, which drops specks, as uint8 0 or 1."""
    votes = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1, mode="edge"), (3, 3)).sum(axis=(2, 3))
    return np.asarray(votes > 4, np.uint8)
