"""Distance between training and validation areas on the ground."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely

from segkit.data.area import LabelledArea, iter_windows
from segkit.data.pairing import Sample, pair_files
from segkit.errors import SegkitError
from segkit.io.cover import grids_within
from segkit.io.grid import Grid
from segkit.io.paths import list_files
from segkit.io.raster import open_raster
from segkit.io.remote import as_path
from segkit.models.segmenter import load
from segkit.recipe.schema import Recipe

_WINDOW_PX = 1024  # side; bounds the memory for large areas
_MAX_DISTANCE_PX = 2**24  # scenes further apart are not neighbours


@dataclass(frozen=True)
class SceneProximity:
    """Distance between a training and a validation scene, which may be the same.

    Parameters
    ----------
    training, validation
        Files of the scenes.
    shared
        Number of training pixels on the ground of validation pixels.
    pixels
        Distance of the nearest edges in pixels of the training scene; 0 if they touch or overlap.
    metres
        The same distance on the ellipsoid; None without a CRS.
    """

    training: str
    validation: str
    shared: int
    pixels: float
    metres: float | None


def find_nearest_pairs(
    training: Sequence[LabelledArea], validation: Sequence[LabelledArea], within: int
) -> list[SceneProximity]:
    """Return the pairs of training and validation areas within a distance; at least the nearest pair.

    Pairs are sorted by the number of shared pixels, then by distance. The result is empty if no pair can be compared:
    a scene without CRS and transform has no place on the ground and is compared only with itself.

    Parameters
    ----------
    within
        In pixels.
    """
    areas = [*training, *validation]
    grids = [area.sample.scene.grid for area in areas]
    distance = max(1, within)
    while True:
        pairs = grids_within(grids, distance)
        found = [
            _proximity(areas[min(pair)], areas[max(pair)]) for pair in pairs if min(pair) < len(training) <= max(pair)
        ]
        if found or distance > _MAX_DISTANCE_PX:
            break
        distance *= 8
    found += [
        _proximity(one, other)
        for one in training
        for other in validation
        if one.sample.scene.paths == other.sample.scene.paths and not one.sample.scene.grid.has_location
    ]
    found.sort(key=lambda each: (-each.shared, each.pixels))
    return [each for each in found if each.shared or each.pixels <= within] or found[:1]


def describe_training_labels(recipe: Recipe, labels: Sequence[Path]) -> str | None:
    """Return a text if one of some label files also trained a model; None if none did, or its files are gone.

    Parameters
    ----------
    recipe
        Of the model.
    labels
        Files of labels that scores are computed from.
    """
    with suppress(SegkitError):
        pairs = pair_files(recipe.data.train).pairs
        paths = (as_path(path) for pair in pairs for source in pair.labels for path in source.paths)
        trained = {os.path.realpath(file) for path in paths for file in list_files(path)}
        used = [file for file in labels if os.path.realpath(file) in trained]
        if used:
            return f"these labels also trained the model ({used[0]}), so the scores are too good"
    return None


def recipes_of_map(tags: Mapping[str, str]) -> list[Recipe]:
    """Return the recipes of the models that made a map, as far as their files are where they were, and unchanged.

    Parameters
    ----------
    tags
        Metadata of the map.
    """
    recipes = []
    with suppress(ValueError, RecursionError):  # another program wrote the list
        for path in map(str, json.loads(tags.get("segkit_model_files", "[]"))):
            # A map may come from others: only a file of this machine, as its checksum says it is.
            if path.startswith(("//", "\\\\")) or not Path(path).is_file():
                continue
            with suppress(SegkitError):
                model = load(path)
                if model.fingerprint() in tags.get("segkit_model", ""):
                    recipes.append(model.recipe)
    return recipes


def recipes_of_maps(maps: Sequence[Path]) -> list[Recipe]:
    """Return the recipes of the models that made maps; see `recipes_of_map`. A model of many maps is loaded once."""
    found = {}
    for file in maps:
        with open_raster(file) as dataset:
            tags = dataset.tags()
        made_by = tags.get("segkit_model"), tags.get("segkit_model_files")
        if made_by not in found:
            found[made_by] = recipes_of_map(tags)
    return [recipe for recipes in found.values() for recipe in recipes]


def label_files(samples: Sequence[Sample]) -> list[Path]:
    """Return the files of the labels of samples."""
    paths = (as_path(path) for sample in samples for source in sample.label_sources for path in source.paths)
    return [file for path in dict.fromkeys(paths) for file in list_files(path)]


def _proximity(train: LabelledArea, val: LabelledArea) -> SceneProximity:
    grid = train.sample.scene.grid
    val_region = val.region
    if val.sample.scene.grid != grid:
        val_region = val_region.reprojected(val.sample.scene.grid, grid)
    train_shape = shapely.union_all(train.region.shapes)
    if train.exclude:
        train_shape = train_shape.difference(shapely.union_all(train.exclude.shapes))
    val_shape = shapely.union_all(val_region.shapes)
    shared = 0
    if train_shape.intersects(val_shape):
        windows = iter_windows(train.windows, _WINDOW_PX)
        shared = sum(int((val_region.mask(window) & ~train.exclude.mask(window)).sum()) for window in windows)
    line = shapely.shortest_line(train_shape, val_shape)
    pixels = float(shapely.length(line)) if line is not None else float("inf")
    names = [str(area.sample.scene.paths[0]) for area in (train, val)]
    return SceneProximity(names[0], names[1], shared, pixels, _length_in_metres(line, grid))


def _length_in_metres(line: Any, grid: Grid) -> float | None:
    """Return the geodesic length of a line in pixel coordinates of a grid."""
    if line is None or grid.crs is None:
        return None
    crs = pyproj.CRS.from_wkt(grid.crs.to_wkt())
    geod = crs.get_geod()
    if geod is None or crs.geodetic_crs is None:
        return None
    to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    x, y = np.array([grid.transform @ corner for corner in line.coords]).T
    longitude, latitude = to_degrees.transform(x, y)
    return float(geod.inv(longitude[0], latitude[0], longitude[1], latitude[1])[2])
