"""Write the landscape as files: imagery, label rasters and polygons."""

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

from segkit.demo.landscape.canvas import Canvas, Frame, LandCover, Mask
from segkit.demo.landscape.sensor import NODATA
from segkit.demo.landscape.spectra import BANDS
from segkit.io.cog import gdal_as_output_error
from segkit.io.files import atomic_write
from segkit.io.grid import Grid

UNLABELLED = 255
OVERLAPPING = ("tree_canopy", "built_up", "flooded")


@dataclass(frozen=True)
class SceneFiles:
    """Files of one part of the landscape, all on the same grid.

    Parameters
    ----------
    scene_2019, scene_2024
        uint16: the six `BANDS` as reflectance x 10000; 0 is nodata.
    deforestation
        uint8: 1 where forest was cleared between the dates, else 0; 255 is unlabelled.
    landcover
        uint8: codes of `LandCover` in 2024; 255 is unlabelled.
    overlapping
        Polygons of 2024 with one of the `OVERLAPPING` classes in the field `class`; polygons of different classes
        overlap.
    """

    scene_2019: Path
    scene_2024: Path
    deforestation: Path
    landcover: Path
    overlapping: Path


_UNLABELLED_PLACES = 6  # number of unlabelled patches


@dataclass(frozen=True)
class _Labels:
    """The labels of 2024: code rasters, and a mask per overlapping class."""

    deforestation: NDArray[np.uint8]
    landcover: NDArray[np.uint8]
    overlapping: dict[str, Mask]


def make_labels(rng: Generator, canvas: Canvas, seen: Mask) -> _Labels:
    """Return labels of the pixels `seen` on both dates, except for a few unlabelled patches."""
    frame = canvas.frame
    outline = frame.noise(rng, 30 * frame.unit)
    labelled = seen.copy()
    for row, column in rng.uniform(size=(_UNLABELLED_PLACES, 2)) * frame.shape:
        labelled &= ~frame.rasterize_blob(complex(column, row), rng.uniform(15, 40) * frame.unit, outline)

    def raster(attribute: str) -> NDArray[np.uint8]:
        return np.array([getattr(patch, attribute) for patch in canvas.patches], np.uint8)[canvas.patch_indices]

    landcover = raster("cover")
    masks = {
        "tree_canopy": raster("canopy") > 0,
        "built_up": landcover == LandCover.URBAN,
        "flooded": raster("flooded") > 0,
    }
    return _Labels(
        np.where(labelled, raster("deforested"), np.uint8(UNLABELLED)),
        np.where(labelled, landcover, np.uint8(UNLABELLED)),
        {name: masks[name] & seen for name in OVERLAPPING},
    )


def write_scene_files(
    folder: Path,
    frame: Frame,
    window: Window,
    scenes: Sequence[NDArray[np.uint16]],
    labels: _Labels,
    tags: dict[str, str],
) -> SceneFiles:
    """Write the five files of one window of the landscape."""
    folder.mkdir(parents=True, exist_ok=True)
    files = SceneFiles(
        scene_2019=folder / "scene_2019.tif",
        scene_2024=folder / "scene_2024.tif",
        deforestation=folder / "deforestation.tif",
        landcover=folder / "landcover.tif",
        overlapping=folder / "overlapping.gpkg",
    )
    grid = frame.grid(window)
    rows, columns = window.toslices()
    for path, scene in zip((files.scene_2019, files.scene_2024), scenes, strict=True):
        _write_raster(path, grid, scene[:, rows, columns], NODATA, BANDS, tags)
    for path, codes in ((files.deforestation, labels.deforestation), (files.landcover, labels.landcover)):
        _write_raster(path, grid, codes[None, rows, columns], UNLABELLED, (path.stem,), tags)
    _write_polygons(files.overlapping, grid, {name: mask[rows, columns] for name, mask in labels.overlapping.items()})
    return files


def _write_raster(
    path: Path,
    grid: Grid,
    bands: NDArray[np.uint8] | NDArray[np.uint16],
    nodata: int,
    names: Sequence[str],
    tags: dict[str, str],
) -> None:
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    profile |= {"predictor": 2, "nodata": nodata, "dtype": bands.dtype, "count": len(bands)}
    profile |= {"height": grid.height, "width": grid.width, "transform": grid.transform, "crs": grid.crs}
    with (
        atomic_write(path) as unfinished,
        gdal_as_output_error(path),
        rasterio.open(unfinished, "w", **profile) as raster,
    ):
        raster.write(bands)
        raster.descriptions = names
        raster.update_tags(**tags)


def _write_polygons(path: Path, grid: Grid, masks: dict[str, Mask]) -> None:
    codes = {name: _majority_filter(mask) for name, mask in masks.items()}
    outlines = [
        (name, shapely.make_valid(shapely.geometry.shape(outline)))
        for name, image in codes.items()
        for outline, _ in features.shapes(image, image > 0, connectivity=4, transform=grid.transform)
    ]
    names, geometries = zip(*outlines, strict=True)
    layer = gpd.GeoDataFrame({"class": names}, geometry=list(geometries), crs=grid.crs)
    with atomic_write(path) as unfinished:
        layer.explode(ignore_index=True).to_file(unfinished, engine="pyogrio")


def _majority_filter(mask: Mask) -> NDArray[np.uint8]:
    """Return the majority of the 3 x 3 neighbourhood of each pixel, uint8 0 or 1; this removes single pixels."""
    votes = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1, mode="edge"), (3, 3)).sum(axis=(2, 3))
    return np.asarray(votes > 4, np.uint8)
