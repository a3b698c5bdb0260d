"""Lay out roads and towns."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from segkit.demo.landscape.canvas import Canvas, LandCover, Patch
from segkit.demo.landscape.land_use import LandPlan, directions
from segkit.demo.landscape.spectra import ASPHALT, LEAFY_STREETS, ROOFS, SECONDARY, STILT_HOUSES, TRACK

_TRACK_WIDTH, _HIGHWAY_WIDTH = 2.0, 3.0
_TOWN_RADII = (80.0, 58.0)  # in the training part, in the held-out part
_BLOCK = 9.0  # side of a block
_STREET = 0.2  # share of a block's side


def paint_roads(canvas: Canvas, plan: LandPlan) -> None:
    """Paint the highway and its side roads."""
    unit = canvas.frame.unit
    canvas.fill(
        canvas.frame.rasterize_lines(plan.side_roads, _TRACK_WIDTH * unit), Patch(LandCover.URBAN, TRACK, TRACK)
    )
    canvas.fill(
        canvas.frame.rasterize_lines([plan.highway], _HIGHWAY_WIDTH * unit), Patch(LandCover.URBAN, ASPHALT, ASPHALT)
    )


def paint_towns(rng: Generator, canvas: Canvas, plan: LandPlan) -> None:
    """Paint a town where each stream crosses the highway: blocks of houses, green suburbs, houses on stilts."""
    frame = canvas.frame
    outline, leaves = (frame.noise(rng, 30 * frame.unit) for _ in range(2))
    streets = canvas.add(Patch(LandCover.URBAN, ASPHALT, ASPHALT))
    leafy = canvas.add(Patch(LandCover.URBAN, LEAFY_STREETS, LEAFY_STREETS, canopy=True))
    stilts = canvas.add(Patch(LandCover.URBAN, STILT_HOUSES, STILT_HOUSES, flooded=True))
    park = canvas.add(Patch(LandCover.FOREST, SECONDARY, SECONDARY, canopy=True))
    blocks = [canvas.add(Patch(LandCover.URBAN, roofs, roofs).vary(rng)) for roofs in ROOFS for _ in range(3)]
    for stream, radius in zip(plan.streams, _TOWN_RADII, strict=True):
        radius = radius * frame.unit
        crossing = plan.highway[np.argmin([np.abs(stream - point).min() for point in plan.highway])]
        centre = crossing - 0.35 * radius
        turn = directions(plan.highway)[np.argmin(np.abs(plan.highway - centre))]
        grid = (frame.pixels - centre) / turn / max(_BLOCK * frame.unit, 5)
        town = frame.rasterize_blob(centre, radius, outline)
        remoteness = np.abs(frame.pixels - centre) / radius
        column, row = np.floor(grid.real), np.floor(grid.imag)
        # Assigns the kinds of blocks; any rule without a visible pattern works.
        lot = (rng.integers(1, 97) * column + rng.integers(1, 97) * row + column * row).astype(int) % 31
        houses = np.array(blocks)[lot % len(blocks)]
        houses[lot == 30] = park
        houses[(leaves + 1.3 * remoteness) > 1.5] = leafy
        houses[(grid.real % 1 < _STREET) | (grid.imag % 1 < _STREET)] = streets
        houses[plan.wetness > 0] = stilts
        town &= np.array([patch.cover != LandCover.WATER for patch in canvas.patches])[canvas.patch_indices]
        canvas.patch_indices[town] = houses[town]
