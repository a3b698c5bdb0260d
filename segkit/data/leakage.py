"""Nearness: how near what trains comes to what validates, on the ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyproj
import shapely

from segkit.data.area import Area, pieces
from segkit.io.cover import near
from segkit.io.grid import Grid

_PIECE = 1024  # pixels along a side; memory does not grow with the area
_FURTHEST = 2**24  # pixels; who is further away is no neighbour


@dataclass(frozen=True)
class Nearness:
    """Two scenes, or twice the same one, of which one trains and one validates.

    Parameters
    ----------
    training, validation
        Files of the scenes.
    shared
        Pixels of the training scene that train and lie on ground that validates.
    pixels
        Distance of the nearest edges in pixels of the training scene; 0 where they touch or share ground.
    metres
        The same on the ellipsoid; None without a CRS.
    """

    training: str
    validation: str
    shared: int
    pixels: float
    metres: float | None


def nearest(training: Sequence[Area], validation: Sequence[Area], within: int) -> list[Nearness]:
    """Return the pairs that come within so many pixels of each other, those that share most first; at least one.

    None are returned where no scene of both sides can be compared: without a CRS and a transform nobody knows where
    it lies, but for scenes that train and validate both.
    """
    areas = [*training, *validation]
    grids = [area.sample.scene.grid for area in areas]
    reach = max(1, within)
    while True:
        pairs = near(grids, reach)
        found = [
            _between(areas[min(pair)], areas[max(pair)]) for pair in pairs if min(pair) < len(training) <= max(pair)
        ]
        if found or reach > _FURTHEST:
            break
        reach *= 8
    found += [
        _between(one, other)
        for one in training
        for other in validation
        if one.sample.scene.paths == other.sample.scene.paths and not one.sample.scene.grid.located
    ]
    found.sort(key=lambda each: (-each.shared, each.pixels))
    return [each for each in found if each.shared or each.pixels <= within] or found[:1]


def _between(one: Area, other: Area) -> Nearness:
    grid = one.sample.scene.grid
    there = other.cover if grid == other.sample.scene.grid else other.cover.onto(other.sample.scene.grid, grid)
    trains = shapely.union_all(one.cover.shapes)
    if one.hidden:
        trains = trains.difference(shapely.union_all(one.hidden.shapes))
    validates = shapely.union_all(there.shapes)
    shared = 0
    if trains.intersects(validates):
        shared = sum(int((there.mask(part) & ~one.hidden.mask(part)).sum()) for part in pieces(one.windows, _PIECE))
    line = shapely.shortest_line(trains, validates)
    distance = float(shapely.length(line)) if line is not None else float("inf")
    names = [str(area.sample.scene.paths[0]) for area in (one, other)]
    return Nearness(names[0], names[1], shared, distance, _metres(line, grid))


def _metres(line: Any, grid: Grid) -> float | None:
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
