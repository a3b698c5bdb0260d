"""Lay out rivers, settlers' lots, farms, rocks and fires."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from segkit.demo.landscape.canvas import OLD_CLEARINGS, Canvas, Frame, LandCover, Mask, Patch, Points
from segkit.demo.landscape.spectra import (
    BARE,
    CROPS,
    FIRE_SCAR,
    FLOODED_FOREST,
    FOREST,
    LAKE,
    NEW_CLEARINGS,
    PLANTATION,
    REED,
    RIVER,
    ROCK,
    SAND,
    WET_REED,
    Floats,
)

# Lengths in pixels at full size.
_RIVER_HALF = 8.0  # half the river's width
_STREAM_HALF = 2.4
_RIVER_PLAIN = 60.0  # from the river's middle to where the floodplain ends, on average
_STREAM_PLAIN = 14.0
_RIVER_BEND, _STREAM_BEND, _ROAD_BEND, _HIGHWAY_BEND = 70.0, 40.0, 70.0, 300.0
_LAKES = 12
_ROAD_SPACING = 185.0  # between side roads
_LOT_WIDTHS = (20, 28, 84)  # minimum, mode, maximum
_FARMLAND = 115.0  # distance of farms from the highway
_FIELD = 46.0  # minimum side of a field
_PIVOT = 60.0  # minimum side of a field with centre-pivot irrigation, which is circular
_FIRES = 14
# Use of the lots.
_FOREST_LOTS_SHARE = 0.22  # not cleared
_NEW_LOTS_SHARE = (0.05, 0.26)  # cleared completely between the dates: at the highway, at the end of the road
_EXTENDED_LOTS_SHARE = 0.36  # of the rest: a new clearing behind the old one
_DEEP_LOTS_SHARE = 0.32  # of the rest: another old clearing behind it


def _meandering_line(rng: Generator, start: complex, end: complex, bend: float, swing: float) -> Points:
    """Return a meandering line: a river or, with a small `swing`, a road.

    The heading follows a skewed sine along the line (the sine-generated curve of Langbein and Leopold 1966, "River
    meanders: theory of minimum variance"). `bend` is the length of half a wave in pixels, `swing` the largest heading
    in radians.
    """
    bends = max(2, round(abs(end - start) / bend))
    heading = []
    for side in range(bends):
        phase = np.linspace(0, 1, max(4, round(rng.uniform(0.5, 1.6) * bend)), endpoint=False) ** rng.uniform(0.7, 1.4)
        heading.append((-1) ** side * swing * rng.uniform(0.45, 1.15) * np.sin(np.pi * phase))
    line = np.cumsum(np.exp(1j * np.concatenate(heading)))
    return np.asarray(start + (end - start) * (line - line[0]) / (line[-1] - line[0]))


def directions(line: Points) -> Points:
    """Return the unit vectors along a line, one per point."""
    steps = np.gradient(line)
    return np.asarray(steps / np.abs(steps))


@dataclass(frozen=True)
class LandPlan:
    """The lines of water and roads, on which the layout of the land depends.

    Parameters
    ----------
    river, streams
        Centre lines. There is one stream in each part; it crosses the highway and joins the river.
    highway, side_roads
        Centre lines. Side roads branch off the highway (fishbone pattern) and end at wet ground.
    wetness
        1 at the bank, 0 at the edge of the floodplain, below 0 on dry ground.
    """

    river: Points
    streams: tuple[Points, ...]
    highway: Points
    side_roads: tuple[Points, ...]
    wetness: Floats

    @classmethod
    def draw(cls, rng: Generator, frame: Frame) -> LandPlan:
        """Draw random lines of rivers and roads."""
        height, width, unit = frame.height, frame.width, frame.unit
        margin = 80 * unit

        def across(highest: float, lowest: float, bend: float, swing: float) -> Points:
            west, east = 1j * height * rng.uniform(highest, lowest, 2)
            return _meandering_line(rng, west - margin, east + width + margin, bend * unit, swing)

        river = across(0.14, 0.24, _RIVER_BEND, 1.5)
        highway = across(0.56, 0.64, _HIGHWAY_BEND, 0.2)
        streams = []
        for part in frame.parts:
            middle = part.col_off + part.width * rng.uniform(0.35, 0.5)
            mouth = river[np.argmin(np.abs(river.real - middle))]
            source = middle + 60 * unit + 1j * (height + margin)
            streams.append(_meandering_line(rng, source, mouth, _STREAM_BEND * unit, 1.5))
        reach = unit * (1 + 0.4 * frame.noise(rng, 60 * unit)).clip(0.35, 1.8)
        remoteness = np.minimum(frame.distance([river]) / _RIVER_PLAIN, frame.distance(streams) / _STREAM_PLAIN)
        wetness = 1 - remoteness / reach
        side_roads = tuple(_side_roads(rng, frame, highway, wetness > 0))
        return cls(river, tuple(streams), highway, side_roads, wetness)


def _side_roads(rng: Generator, frame: Frame, highway: Points, wet: Mask) -> Iterator[Points]:
    spacing = _ROAD_SPACING * frame.unit
    for x in np.arange(0.3 * spacing, frame.width, spacing):
        for side in (1j, -1j):
            start = highway[np.argmin(np.abs(highway.real - x - rng.normal(0, 0.06 * spacing)))]
            length = frame.height * rng.uniform(0.28, 0.42)
            end = start + side * np.exp(1j * rng.normal(0, 0.06)) * length
            road = _meandering_line(rng, start, end, _ROAD_BEND * frame.unit, 0.25)
            road = road[frame.contains(road)]
            at = np.rint([road.imag, road.real]).astype(int)
            blocked = wet[at[0].clip(0, frame.height - 1), at[1].clip(0, frame.width - 1)]
            road = road[: np.argmax(blocked)] if blocked.any() else road
            if len(road) > 20 * frame.unit:
                yield road


def paint_lots(rng: Generator, canvas: Canvas, plan: LandPlan) -> None:
    """Paint settlers' clearings, lot by lot along the side roads; they are newer towards the end of the road."""
    unit = canvas.frame.unit
    deepest = 0.5 * _ROAD_SPACING * unit
    for road in plan.side_roads:
        position = 0
        while position < len(road) - 6 * unit:
            lot = round(rng.triangular(*_LOT_WIDTHS) * unit) + 1
            first, last = road[position], road[min(position + lot, len(road) - 1)]
            for side in (1j, -1j):
                out = side * (last - first) / max(abs(last - first), 1e-9)
                _paint_lot(rng, canvas, first, last, out * deepest, age=max(0, 1 - (position + lot) / len(road)))
            position += lot


def _paint_lot(rng: Generator, canvas: Canvas, first: complex, last: complex, out: complex, age: float) -> None:
    """Paint one lot between two points of a road, up to the distance and direction `out`.

    `age` decreases from 1 at the highway to 0 in the last lot of the road, which is always cleared between the dates.
    """

    def field(near: float, far: float, patch: Patch) -> None:
        slack = rng.uniform(0, 0.12, 4) * (far - near)
        reach = np.array([near, far - slack[0], far - slack[1], near])
        canvas.polygon(np.array([first, first, last, last]) + reach * out, patch)

    front, back = rng.uniform(0.25, 0.6), rng.uniform(0.6, 1.0)
    kind = rng.random() - _FOREST_LOTS_SHARE
    if age > 0 and kind < 0:
        return
    if age == 0 or kind < np.interp(1 - age, (0, 1), _NEW_LOTS_SHARE):
        field(0, rng.uniform(0.45, 1), _new_clearing(rng))
        return
    field(0, front, _old_clearing(rng))
    further = rng.random()
    if further < _EXTENDED_LOTS_SHARE:
        field(front, back, _new_clearing(rng))
    elif further < _EXTENDED_LOTS_SHARE + _DEEP_LOTS_SHARE:
        field(front, back, _old_clearing(rng))


def _new_clearing(rng: Generator) -> Patch:
    after = NEW_CLEARINGS[rng.integers(len(NEW_CLEARINGS))]
    return Patch(LandCover.AGRICULTURE, FOREST, after.vary(rng), deforested=True)


def _old_clearing(rng: Generator) -> Patch:
    chosen = rng.choice(len(OLD_CLEARINGS), p=[share for share, _ in OLD_CLEARINGS])
    return OLD_CLEARINGS[chosen][1].vary(rng)


def paint_rocks(rng: Generator, canvas: Canvas) -> None:
    """Paint two granite domes in each part."""
    frame = canvas.frame
    noise = frame.noise(rng, 40 * frame.unit)
    for part in frame.parts:
        for _ in range(2):
            centre = part.col_off + part.width * rng.uniform(0.1, 0.9) + 1j * frame.height * rng.uniform(0.82, 0.97)
            where = frame.rasterize_blob(centre, rng.uniform(35, 60) * frame.unit, noise)
            canvas.fill(where, Patch(LandCover.OTHER, ROCK, ROCK).vary(rng))


def paint_fires(rng: Generator, canvas: Canvas) -> None:
    """Paint fire scars under the canopy: they have the spectrum of a fresh clearing, but are still forest."""
    frame = canvas.frame
    noise = frame.noise(rng, 30 * frame.unit)
    pixels = rng.uniform(size=(_FIRES, 2)) * frame.shape
    for row, column in pixels:
        where = frame.rasterize_blob(complex(column, row), rng.uniform(20, 48) * frame.unit, 1.5 * noise)
        canvas.fill(
            where & (canvas.patch_indices == 0), Patch(LandCover.FOREST, FOREST, FIRE_SCAR.vary(rng), canopy=True)
        )


def paint_farms(rng: Generator, canvas: Canvas, plan: LandPlan) -> None:
    """Paint the fields of large farms along the highway, with some forest between them."""
    frame = canvas.frame
    unit = frame.unit
    remoteness = frame.distance([plan.highway]) / (_FARMLAND * unit)
    suited = 1.6 * np.exp(-(remoteness**2)) + 0.3 * frame.noise(rng, 220 * unit)
    middle = plan.highway[len(plan.highway) // 2]
    turn = np.exp(1j * np.angle(plan.highway[-1] - plan.highway[0]))
    reach = max(frame.shape)
    for left, top, right, bottom in _parcels(rng, (-reach, -reach, reach, reach), _FIELD * unit):
        corners = np.array([left + 1j * top, right + 1j * top, right + 1j * bottom, left + 1j * bottom])
        corners = middle + turn * corners
        centre = corners.mean()
        forest_left = rng.random() < 0.12
        if forest_left or not frame.contains(centre) or suited[int(centre.imag), int(centre.real)] < 0.8:
            continue
        canvas.polygon(corners, _field(rng))
        size = min(right - left, bottom - top)
        if size > _PIVOT * unit and rng.random() < 0.5:
            pivot = centre + 0.47 * size * np.exp(2j * np.pi * np.arange(96) / 96)
            canvas.polygon(pivot, _field(rng))
            sector = np.append(pivot[: rng.integers(24, 60)], centre)
            canvas.polygon(sector, _field(rng))


def _parcels(
    rng: Generator, box: tuple[float, float, float, float], smallest: float
) -> Iterator[tuple[float, float, float, float]]:
    """Split a box (left, top, right, bottom) recursively into fields."""
    left, top, right, bottom = box
    longer, shorter = max(right - left, bottom - top), min(right - left, bottom - top)
    if longer < 1.7 * smallest or (longer < 2.6 * smallest and longer < 1.6 * shorter and rng.random() < 0.4):
        yield box
        return
    cut = rng.uniform(0.36, 0.64)
    if right - left > bottom - top:
        x = left + cut * (right - left)
        yield from _parcels(rng, (left, top, x, bottom), smallest)
        yield from _parcels(rng, (x, top, right, bottom), smallest)
    else:
        y = top + cut * (bottom - top)
        yield from _parcels(rng, (left, top, right, y), smallest)
        yield from _parcels(rng, (left, y, right, bottom), smallest)


def _field(rng: Generator) -> Patch:
    """Return a field with random crops on both dates, or a plantation, which may be felled."""
    if rng.random() < 0.2:
        felled = rng.random() < 0.6
        after = BARE if felled else PLANTATION
        return Patch(LandCover.AGRICULTURE, PLANTATION, after, canopy=not felled).vary(rng)
    before, after = (CROPS[i] for i in rng.integers(len(CROPS), size=2))
    return Patch(LandCover.AGRICULTURE, before, after).vary(rng)


def paint_rivers(rng: Generator, canvas: Canvas, plan: LandPlan) -> None:
    """Paint the floodplain, its lakes, the river and the streams; 2024 is the drier year."""
    frame = canvas.frame
    unit = frame.unit
    water = Patch(LandCover.WATER, RIVER, RIVER, flooded=True)
    lake = Patch(LandCover.WATER, LAKE, LAKE, flooded=True)
    marsh = Patch(LandCover.WETLAND, WET_REED, REED, flooded=True)
    swamp = Patch(LandCover.WETLAND, FLOODED_FOREST, FLOODED_FOREST, canopy=True, flooded=True)
    canvas.fill(plan.wetness > 0, swamp)
    canvas.fill((plan.wetness > 0.25) & (frame.noise(rng, 45 * unit) > 0.75), marsh)

    half = _RIVER_HALF * unit
    bank = half * (1 + 0.22 * frame.noise(rng, 90 * unit))
    along = directions(plan.river)
    turning = np.gradient(np.unwrap(np.angle(along)))
    inwards = half * 1j * along * np.sign(turning)
    lakes = list(_former_bends(rng, plan.river, turning, -inwards))
    low = plan.wetness > -0.2
    canvas.fill(frame.rasterize_lines(lakes, 3.2 * half) & low, marsh)
    canvas.fill(frame.rasterize_lines(lakes, 1.3 * half) & low, lake)

    # Sand bars inside of the bends: some dry on both dates, some under water in 2019.
    sharp = np.abs(turning) > np.quantile(np.abs(turning), 0.72)
    bars = (plan.river + 0.75 * inwards)[sharp]
    canvas.fill(frame.rasterize_discs(bars, 1.05 * half), Patch(LandCover.OTHER, SAND, SAND))
    canvas.fill(frame.distance([plan.river]) < bank, water)
    canvas.fill(frame.rasterize_discs(bars, 0.5 * half), Patch(LandCover.OTHER, RIVER, SAND))
    canvas.fill(frame.distance(plan.streams) < _STREAM_HALF * unit, water)


def _former_bends(rng: Generator, river: Points, turning: NDArray[np.float64], outwards: Points) -> Iterator[Points]:
    """Yield the outlines of oxbow lakes beside the bends of the river.

    `turning` is the change of heading from point to point, `outwards` a vector of half the river's width towards the
    outside of the bend.
    """
    reach = 20  # points of the river to each side of a bend's apex
    sharp = np.abs(turning)[reach:-reach]
    apexes = reach + np.flatnonzero((sharp >= np.roll(sharp, 1)) & (sharp > np.roll(sharp, -1)))
    for k in rng.choice(apexes, min(len(apexes), _LAKES), replace=False):
        length = rng.integers(11, reach)
        loop = (river[k - length : k + length] - river[k]) / outwards[k]
        loop = rng.uniform(1.2, 2.2) * loop.real + 1j * loop.imag
        yield river[k] + outwards[k] * (rng.uniform(3.5, 6) + loop * np.exp(1j * rng.normal(0, 0.35)))
