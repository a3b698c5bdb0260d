"""Groups of label points that are near each other, which a split keeps on one side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from segkit.data.labels.features import read_label_features
from segkit.data.labels.open import has_features
from segkit.data.pairing import Sample
from segkit.errors import DataError, GridError
from segkit.io.points import Points, draw_points
from segkit.io.remote import as_path
from segkit.recipe.splits import SpatialSplit

_MAX_PAIRS = 10**6  # that are in memory at a time


@dataclass(frozen=True)
class PointGroup:
    """Label points that are near each other.

    Parameters
    ----------
    pixels
        (index of a sample, polygon in the pixel coordinates of its grid): the pixels that the points label.
    marked
        Whether the rule marks one of the points for validation.
    """

    pixels: tuple[tuple[int, Any], ...]
    marked: bool


def group_points(samples: Sequence[Sample], rule: SpatialSplit) -> list[PointGroup]:
    """Return the groups of the label points of samples.

    Points at most `rule.distance` metres apart are in one group (single linkage); points outside of all scenes connect
    others, too.

    Raises
    ------
    DataError
        The labels have no points, the field of the rule is missing, or points have no CRS.
    """
    assert rule.distance is not None
    layers = _point_layers(samples)
    if not layers:
        raise DataError("data.val.by is point, but no label file of the training scenes has points; split by block")
    starts = dict(zip(layers, np.cumsum([0, *(len(layer.shapes) for layer in layers.values())]), strict=False))
    places = np.concatenate([_places_on_earth(layer) for layer in layers.values()])
    group_of = _connect(places, rule.distance)
    marked = np.zeros(group_of.max(initial=-1) + 1, dtype=bool)
    if rule.field is not None:
        values = [value for layer in layers.values() for value in layer.field_values(rule.field)]
        marked[group_of[np.isin(np.array(values, dtype=object).astype(str), rule.values or ())]] = True
    pixels: list[list[tuple[int, Any]]] = [[] for _ in marked]
    for index, sample in enumerate(samples):
        for source in sample.label_sources:
            for path in (os.fspath(each) for each in source.paths):
                if (path, source.layer) in layers:
                    layer = layers[path, source.layer]
                    shapes, numbers = draw_points(layer, sample.scene.grid, source.radius)
                    for shape, number in zip(shapes, numbers + starts[path, source.layer], strict=True):
                        pixels[group_of[number]].append((index, shape))
    return [PointGroup(tuple(each), bool(mark)) for each, mark in zip(pixels, marked, strict=True) if each]


def _point_layers(samples: Sequence[Sample]) -> dict[tuple[str, str | None], Points]:
    """Return the label points of samples by file and layer."""
    layers: dict[tuple[str, str | None], Points] = {}
    for source in dict.fromkeys(source for sample in samples for source in sample.label_sources):
        for path in (os.fspath(each) for each in source.paths):
            if has_features(as_path(path)) and (path, source.layer) not in layers:
                found = read_label_features(as_path(path), source)
                if isinstance(found, Points):
                    layers[path, source.layer] = found
    return layers


def _places_on_earth(points: Points) -> NDArray[np.float64]:
    """Return geocentric coordinates (N, 3) in metres; not finite for points without a place on the ground."""
    if points.crs is None:
        raise GridError(f"{points.path}: data.val.distance is in metres, which needs a CRS; assign one to the points")
    to_degrees = pyproj.Transformer.from_crs(points.crs.to_wkt(), "EPSG:4326", always_xy=True)
    longitude, latitude = to_degrees.transform(*shapely.get_coordinates(points.shapes).T)
    to_geocentric = pyproj.Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
    return np.stack(to_geocentric.transform(longitude, latitude, np.zeros(len(longitude))), axis=-1)


def _connect(places: NDArray[np.float64], distance: float) -> NDArray[np.intp]:
    """Return the number of each point's group: the components of the graph of points within a distance.

    Dense points have very many pairs, so these are found for some points at a time and joined to the groups so far.
    """
    from scipy.spatial import cKDTree

    located = np.flatnonzero(np.isfinite(places).all(axis=1))
    groups: NDArray[np.intp] = np.arange(len(places))
    if not located.size:
        return groups
    tree = cKDTree(places[located])
    numbers = tree.query_ball_point(places[located], distance, return_length=True)
    for part in np.split(located, _cuts(numbers, _MAX_PAIRS)):
        near = tree.query_ball_point(places[part], distance)
        starts = np.repeat(part, [len(each) for each in near])
        groups = _join_groups(groups, starts, located[np.concatenate(near).astype(np.intp)])
    return groups


def _cuts(numbers: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """Return where to cut a list so that each part has about `most` of what is counted for each element."""
    return np.flatnonzero(np.diff(np.cumsum(numbers) // most)) + 1


def _join_groups(groups: NDArray[np.intp], starts: NDArray[np.intp], ends: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the groups after points `starts[i]` and `ends[i]` are joined."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first_members = np.unique(groups, return_index=True)[1]
    rows = np.concatenate([np.arange(len(groups)), starts])
    columns = np.concatenate([first_members[groups], ends])
    graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(len(groups), len(groups)))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.intp)
