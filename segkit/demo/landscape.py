"""The sample landscape: a piece of the Amazon's frontier, made up, for `segkit demo`, tests and first steps.

The land is a stack of patches (a forest, a field, a city block) painted over each other; a patch knows its cover and
how its surface looked in 2019 and in 2024. Labels and imagery come from the same patches, so the labels are true. What
makes the task worth a network is that no pixel tells by itself: plantations are felled, crops ripen, regrowth is
cut again and forest burns, each with the spectra of a fresh clearing; texture, shape and place tell them apart.

Points in the plane are complex numbers, column + 1j * row in pixels: turning is a multiplication. Lengths are in
pixels at full size and are multiplied by `_Frame.unit`, so that a small landscape is a miniature of a large one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

import cv2
import geopandas as gpd
import numpy as np
import rasterio
import shapely
from affine import Affine
from numpy.random import Generator
from numpy.typing import NDArray
from rasterio import features
from rasterio.crs import CRS
from rasterio.windows import Window

from segkit.errors import UsageError
from segkit.io.files import staged
from segkit.io.grid import Grid
from segkit.io.raster import telling

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Points = NDArray[np.complex128]

NODATA = 0
UNKNOWN = 255
BANDS = ("blue", "green", "red", "nir", "swir1", "swir2")
OVERLAPPING = ("tree_canopy", "built_up", "flooded")


class Cover(IntEnum):
    """Codes of `landcover.tif`; `UNKNOWN` is the code of what nobody labelled."""

    OTHER = 0  # natural open ground: rock and sand
    WATER = 1
    FOREST = 2
    AGRICULTURE = 3
    URBAN = 4
    WETLAND = 5


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


@dataclass(frozen=True)
class Landscape:
    """The part to train on, in the west, and the part that no training sees, in the east."""

    train: Part
    heldout: Part


def make_landscape(
    folder: str | os.PathLike[str], *, width: int = 1536, height: int = 1152, seed: int = 0
) -> Landscape:
    """Write the sample landscape into `folder`: `train/` and `heldout/`, the same five files in each.

    The same arguments give the same pixels. Files that are there are replaced.

    Parameters
    ----------
    folder
        Made where it is missing.
    width, height
        Pixels of 10 m, of the two parts and the gap between them together; at least 256 each. So small a landscape is
        a miniature, whose held-out part may miss a class.
    seed
        Another seed is another landscape.

    Raises
    ------
    UsageError
        The landscape is smaller than that.
    """
    if min(width, height) < _SMALLEST:
        raise UsageError(f"a landscape of {width} x {height} pixels is too small; each side needs {_SMALLEST}")
    frame = _Frame(height, width)
    land_rng, scene_rng, label_rng = np.random.default_rng(seed).spawn(3)
    canvas = _paint(land_rng, frame)
    scenes = _scenes(scene_rng, canvas)
    labels = _labels(label_rng, canvas, seen=np.all([scene[0] != NODATA for scene in scenes], axis=0))
    about = {"TIFFTAG_IMAGEDESCRIPTION": f"segkit's sample landscape: synthetic, no real place (seed {seed})"}
    train, heldout = frame.parts
    return Landscape(
        _write_part(Path(folder) / "train", frame, train, scenes, labels, about),
        _write_part(Path(folder) / "heldout", frame, heldout, scenes, labels, about),
    )


_SMALLEST = 256
_GAP = 64  # columns between the parts, so that no pixel is in the view of both
_TRAIN_SHARE = 0.7
_FULL_SIZE = 1152  # shorter side from which everything has its true size
_PIXEL = 10.0  # metres
_CRS = CRS.from_epsg(32721)
_UPPER_LEFT = (652_000.0, 8_962_000.0)  # southern Amazon, near 9.4 S 55.6 W; the real place looks different

# Lengths in pixels at full size.
_RIVER_HALF = 8.0  # half the river's width
_STREAM_HALF = 2.4
_RIVER_PLAIN = 60.0  # from the river's middle to where the floodplain ends, on average
_STREAM_PLAIN = 14.0
_RIVER_BEND, _STREAM_BEND, _ROAD_BEND, _HIGHWAY_BEND = 70.0, 40.0, 70.0, 300.0
_LAKES = 12
_ROAD_SPACING = 185.0  # between side roads
_TRACK_WIDTH, _HIGHWAY_WIDTH = 2.0, 3.0
_LOT_WIDTHS = (20, 28, 84)  # least, most frequent, largest
_FARMLAND = 115.0  # how far farms reach from the highway
_FIELD = 46.0
_PIVOT = 60.0  # smallest field with a centre pivot, the irrigation that leaves circles
_TOWN_RADII = (80.0, 58.0)  # of the part to train on, of the held-out part
_BLOCK = 9.0
_STREET = 0.2  # share of a block's side
_FIRES = 14
_UNLABELLED = 6  # places that nobody looked at

# How settlers use a lot.
_LOTS_LEFT = 0.22  # still forest
_LOTS_NEW = (0.05, 0.26)  # all cleared between the dates: at the highway, at the road's end
_LOTS_EXTENDED = 0.36  # of the rest: new clearing behind the old one
_LOTS_DEEP = 0.32  # of the rest: another old clearing behind it

# Typical surface reflectances as Sentinel-2 sees them in BANDS. Leaves are dark but for the near infrared, and the
# wetter, the darker in the short-wave infrared; soil and dry matter rise steadily with wavelength; water does the
# opposite and is nearly black beyond the red.
_SPECTRA = {
    "forest": (0.022, 0.042, 0.025, 0.290, 0.135, 0.055),
    "gap": (0.012, 0.024, 0.013, 0.190, 0.085, 0.032),  # shade between crowns
    "regrowth": (0.025, 0.052, 0.030, 0.365, 0.165, 0.068),
    "plantation": (0.023, 0.044, 0.026, 0.305, 0.138, 0.056),  # eucalyptus; close to forest on purpose
    "crop": (0.028, 0.060, 0.032, 0.410, 0.180, 0.078),
    "pasture": (0.038, 0.072, 0.058, 0.300, 0.225, 0.115),
    "dry_pasture": (0.048, 0.084, 0.098, 0.255, 0.310, 0.200),
    "stubble": (0.060, 0.095, 0.122, 0.240, 0.330, 0.240),
    "soil": (0.045, 0.072, 0.124, 0.200, 0.315, 0.270),  # red latosol
    "slash": (0.052, 0.074, 0.090, 0.195, 0.270, 0.185),  # felled trunks and dead leaves
    "burnt": (0.032, 0.040, 0.048, 0.095, 0.160, 0.145),
    "sand": (0.105, 0.150, 0.190, 0.265, 0.330, 0.285),
    "rock": (0.074, 0.090, 0.106, 0.165, 0.215, 0.185),  # granite with lichen
    "river": (0.055, 0.078, 0.058, 0.035, 0.012, 0.008),  # carries some silt
    "lake": (0.030, 0.040, 0.026, 0.018, 0.008, 0.005),
    "reed": (0.032, 0.064, 0.042, 0.270, 0.130, 0.060),
    "roof": (0.130, 0.145, 0.165, 0.215, 0.250, 0.225),
    "tile": (0.085, 0.105, 0.165, 0.230, 0.270, 0.235),  # fired clay
    "asphalt": (0.085, 0.093, 0.102, 0.135, 0.160, 0.150),
    "track": (0.066, 0.104, 0.162, 0.240, 0.345, 0.290),  # laterite
}


def _mix(**shares: float) -> Floats:
    """Return the spectrum of an area shared by several grounds."""
    mixed = sum(share * np.array(_SPECTRA[name]) for name, share in shares.items())
    return np.asarray(mixed, np.float32)


@dataclass(frozen=True)
class _Surface:
    """How a patch looks on one date: a ground, spots of something else, and relief.

    Parameters
    ----------
    ground, spots
        Spectra, float32 (6,).
    share
        Share of the spots, 0 to 1.
    grain
        Standard deviation of brightness from crown to crown, furrow to furrow or roof to roof.
    """

    ground: Floats
    spots: Floats
    share: float = 0.0
    grain: float = 0.03

    def varied(self, rng: Generator) -> _Surface:
        """Return this surface as it looks in some other place."""
        shade = np.exp(rng.normal(0, 0.07) + rng.normal(0, 0.02, len(BANDS))).astype(np.float32)
        return replace(self, ground=self.ground * shade, share=self.share * rng.uniform(0.6, 1.4))


_FOREST = _Surface(_mix(forest=1), _mix(gap=1), share=0.12, grain=0.11)
_SECONDARY = _Surface(_mix(forest=0.8, regrowth=0.2), _mix(regrowth=1), share=0.3, grain=0.06)
_REGROWTH = _Surface(_mix(regrowth=0.85, pasture=0.15), _mix(pasture=1), share=0.15, grain=0.05)
_PASTURE = _Surface(_mix(pasture=1), _mix(forest=0.8, pasture=0.2), share=0.05, grain=0.04)
_DRY_PASTURE = _Surface(_mix(dry_pasture=1), _mix(forest=0.7, dry_pasture=0.3), share=0.06, grain=0.04)
_PLANTATION = _Surface(_mix(plantation=1), _mix(plantation=1), grain=0.02)
_BARE = _Surface(_mix(soil=1), _mix(stubble=1), share=0.2)
_BURNT_FIELD = _Surface(_mix(burnt=0.7, stubble=0.3), _mix(soil=1), share=0.25)
_FELLED = _Surface(_mix(slash=0.9, soil=0.1), _mix(burnt=1), share=0.25, grain=0.05)
_CROPS = (
    _Surface(_mix(crop=1), _mix(crop=1)),
    _Surface(_mix(crop=0.6, soil=0.4), _mix(crop=1), share=0.2),
    _Surface(_mix(crop=0.5, stubble=0.5), _mix(stubble=1), share=0.15),
    _Surface(_mix(stubble=1), _mix(soil=1), share=0.15),
    _Surface(_mix(soil=0.85, stubble=0.15), _mix(soil=1), share=0.2),
    _BURNT_FIELD,
)
_NEW_CLEARINGS = (
    _FELLED,
    _Surface(_mix(burnt=0.8, slash=0.2), _mix(slash=0.7, forest=0.3), share=0.35, grain=0.06),
    _Surface(_mix(soil=0.7, slash=0.3), _mix(burnt=0.8, forest=0.2), share=0.2, grain=0.05),
    _Surface(_mix(pasture=0.7, slash=0.3), _mix(forest=0.6, slash=0.4), share=0.2, grain=0.05),
)
_FIRE_SCAR = _Surface(_mix(burnt=0.75, forest=0.25), _mix(forest=0.7, gap=0.3), share=0.35, grain=0.09)
_ROCK = _Surface(_mix(rock=1), _mix(pasture=0.5, rock=0.5), share=0.25, grain=0.10)
_SAND = _Surface(_mix(sand=1), _mix(sand=0.7, river=0.3), share=0.2)
_RIVER = _Surface(_mix(river=1), _mix(river=1), grain=0.0)
_LAKE = _Surface(_mix(lake=1), _mix(reed=0.5, lake=0.5), share=0.08, grain=0.0)
_REED = _Surface(_mix(reed=0.75, lake=0.25), _mix(lake=1), share=0.2, grain=0.05)
_WET_REED = _Surface(_mix(reed=0.4, lake=0.6), _mix(reed=1), share=0.25, grain=0.05)
_FLOODED_FOREST = _Surface(_mix(forest=0.62, lake=0.38), _mix(gap=0.5, lake=0.5), share=0.2, grain=0.09)
_TRACK = _Surface(_mix(track=1), _mix(track=1))
_ASPHALT = _Surface(_mix(asphalt=1), _mix(track=1), share=0.2)
_ROOFS = (
    _Surface(_mix(roof=0.6, tile=0.2, asphalt=0.2), _mix(tile=1), share=0.3, grain=0.14),
    _Surface(_mix(tile=0.6, asphalt=0.4), _mix(roof=1.2), share=0.3, grain=0.14),
    _Surface(_mix(roof=0.4, track=0.6), _mix(forest=0.7, roof=0.3), share=0.2, grain=0.14),
    _Surface(_mix(roof=0.3, tile=0.3, pasture=0.4), _mix(roof=1), share=0.3, grain=0.12),
)
_LEAFY_STREETS = _Surface(_mix(forest=0.5, tile=0.3, asphalt=0.2), _mix(forest=0.85, roof=0.15), share=0.35, grain=0.12)
_STILT_HOUSES = _Surface(_mix(roof=0.55, lake=0.45), _mix(lake=0.7, tile=0.3), share=0.3, grain=0.10)


@dataclass(frozen=True)
class _Patch:
    """Land of one kind: its cover in 2024 and its surface on both dates."""

    cover: Cover
    before: _Surface
    after: _Surface
    deforested: bool = False
    canopy: bool = False
    flooded: bool = False

    def varied(self, rng: Generator) -> _Patch:
        """Return a patch of the same kind in some other place."""
        return replace(self, before=self.before.varied(rng), after=self.after.varied(rng))


_OLD_CLEARINGS: tuple[tuple[float, _Patch], ...] = (  # share, and what such a clearing became
    (0.35, _Patch(Cover.AGRICULTURE, _PASTURE, _DRY_PASTURE)),
    (0.27, _Patch(Cover.AGRICULTURE, _PASTURE, _PASTURE)),
    (0.13, _Patch(Cover.AGRICULTURE, _PASTURE, _BURNT_FIELD)),
    (0.10, _Patch(Cover.AGRICULTURE, _REGROWTH, _FELLED)),  # cut again: no forest was there to lose
    (0.15, _Patch(Cover.FOREST, _REGROWTH, _SECONDARY, canopy=True)),
)


@dataclass(frozen=True)
class _Frame:
    """The pixels that are painted, and what is measured on all of them."""

    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def unit(self) -> float:
        """Pixels that one pixel of the full-size landscape takes."""
        return min(1.0, max(0.3, min(self.shape) / _FULL_SIZE))

    @staticmethod
    def grid(window: Window) -> Grid:
        """Where a window lies."""
        x, y = _UPPER_LEFT[0] + window.col_off * _PIXEL, _UPPER_LEFT[1] - window.row_off * _PIXEL
        return Grid(window.height, window.width, Affine(_PIXEL, 0, x, 0, -_PIXEL, y), _CRS)

    @property
    def parts(self) -> tuple[Window, Window]:
        """Windows of the training and the held-out part."""
        west = round((self.width - _GAP) * _TRAIN_SHARE)
        return (
            Window(0, 0, west, self.height),
            Window(west + _GAP, 0, self.width - west - _GAP, self.height),
        )

    @property
    def pixels(self) -> Points:
        """Each pixel's own point, complex128 (height, width)."""
        return np.arange(self.width) + 1j * np.arange(self.height)[:, None]

    def holds(self, points: Points) -> Mask:
        """Which points lie on a pixel."""
        return (points.real >= 0) & (points.real < self.width) & (points.imag >= 0) & (points.imag < self.height)

    def noise(self, rng: Generator, scale: float) -> Floats:
        """Smooth noise of mean 0 and deviation 1: features of about `scale` pixels with fractal edges."""
        white = rng.standard_normal(self.shape)
        frequency = np.hypot(np.fft.fftfreq(self.height)[:, None], np.fft.rfftfreq(self.width)) * scale
        field = np.fft.irfft2(np.fft.rfft2(white) * (1 + frequency**2) ** -1.5, s=self.shape)
        return np.asarray((field - field.mean()) / field.std(), np.float32)

    def drawn(self, lines: Sequence[Points], width: float = 1.0) -> Mask:
        """Pixels of lines `width` pixels wide."""
        image = np.zeros(self.shape, np.uint8)
        for line in lines:
            cv2.polylines(image, [_sixteenths(line)], False, 1, max(1, round(width)), shift=_FRACTION_BITS)
        return image > 0

    def dotted(self, centres: Points, radius: float) -> Mask:
        """Pixels of discs."""
        image = np.zeros(self.shape, np.uint8)
        for x, y in _sixteenths(centres):
            cv2.circle(image, (int(x), int(y)), round(radius * 2**_FRACTION_BITS), 1, -1, shift=_FRACTION_BITS)
        return image > 0

    def distance(self, lines: Sequence[Points]) -> Floats:
        """Pixels from each pixel to the nearest line."""
        away = (~self.drawn(lines)).astype(np.uint8)
        return np.asarray(cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)

    def blob(self, centre: complex, radius: float, noise: Floats) -> Mask:
        """Pixels of a disc whose outline follows `noise`."""
        return np.abs(self.pixels - centre) < radius * (1 + 0.4 * noise)


_FRACTION_BITS = 4  # OpenCV draws in integers: sixteenths of a pixel


def _sixteenths(points: Points) -> NDArray[np.int32]:
    pairs = np.stack([points.real, points.imag], axis=-1)
    return np.asarray(np.rint(pairs * 2**_FRACTION_BITS), np.int32)


class _Canvas:
    """Patches painted over each other; `numbers` says for every pixel which of `patches` lies on top."""

    def __init__(self, frame: _Frame, first: _Patch) -> None:
        self.frame = frame
        self.patches = [first]
        self.numbers = np.zeros(frame.shape, np.int32)

    def add(self, patch: _Patch) -> int:
        """Return the number of a patch to paint with."""
        self.patches.append(patch)
        return len(self.patches) - 1

    def fill(self, where: Mask, patch: _Patch) -> None:
        self.numbers[where] = self.add(patch)

    def polygon(self, outline: Points, patch: _Patch) -> None:
        cv2.fillPoly(self.numbers, [_sixteenths(outline)], self.add(patch), shift=_FRACTION_BITS)

    def roughen(self, rng: Generator, reach: float) -> None:
        """Shift every pixel by up to about `reach` pixels, as nobody fells trees along a ruler."""
        rows, columns = np.indices(self.frame.shape)
        down, right = (np.rint(reach * self.frame.noise(rng, 20 * self.frame.unit)).astype(int) for _ in range(2))
        height, width = self.frame.shape
        self.numbers = self.numbers[(rows + down).clip(0, height - 1), (columns + right).clip(0, width - 1)]


def _paint(rng: Generator, frame: _Frame) -> _Canvas:
    plan_rng, rock_rng, lot_rng, fire_rng, farm_rng, water_rng, town_rng = rng.spawn(7)
    plan = _Plan.draw(plan_rng, frame)
    canvas = _Canvas(frame, _Patch(Cover.FOREST, _FOREST, _FOREST, canopy=True))
    _paint_lots(lot_rng, canvas, plan)
    canvas.roughen(lot_rng, frame.unit)
    _paint_rocks(rock_rng, canvas)
    _paint_fires(fire_rng, canvas)
    _paint_farms(farm_rng, canvas, plan)
    _paint_rivers(water_rng, canvas, plan)
    _paint_roads(canvas, plan)
    _paint_towns(town_rng, canvas, plan)
    return canvas


def _winding(rng: Generator, start: complex, end: complex, bend: float, swing: float) -> Points:
    """Return a line that swings to both sides on its way, as rivers do and, with little `swing`, roads.

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


def _directions(line: Points) -> Points:
    """Unit vectors along a line, one per point."""
    steps = np.gradient(line)
    return np.asarray(steps / np.abs(steps))


@dataclass(frozen=True)
class _Plan:
    """Where water and roads run: the lines that everything else keeps to.

    Parameters
    ----------
    river, streams
        Centre lines. Each stream crosses the highway in another part of the landscape and joins the river.
    highway, side_roads
        Centre lines. Side roads leave the highway like the bones of a fish and end where the ground gets wet.
    wetness
        1 on the bank, 0 where the floodplain ends, below 0 on dry ground.
    """

    river: Points
    streams: tuple[Points, ...]
    highway: Points
    side_roads: tuple[Points, ...]
    wetness: Floats

    @classmethod
    def draw(cls, rng: Generator, frame: _Frame) -> _Plan:
        height, width, unit = frame.height, frame.width, frame.unit
        margin = 80 * unit

        def across(highest: float, lowest: float, bend: float, swing: float) -> Points:
            west, east = 1j * height * rng.uniform(highest, lowest, 2)
            return _winding(rng, west - margin, east + width + margin, bend * unit, swing)

        river = across(0.14, 0.24, _RIVER_BEND, 1.5)
        highway = across(0.56, 0.64, _HIGHWAY_BEND, 0.2)
        streams = []
        for part in frame.parts:
            middle = part.col_off + part.width * rng.uniform(0.35, 0.5)
            mouth = river[np.argmin(np.abs(river.real - middle))]
            source = middle + 60 * unit + 1j * (height + margin)
            streams.append(_winding(rng, source, mouth, _STREAM_BEND * unit, 1.5))
        reach = unit * (1 + 0.4 * frame.noise(rng, 60 * unit)).clip(0.35, 1.8)
        remoteness = np.minimum(frame.distance([river]) / _RIVER_PLAIN, frame.distance(streams) / _STREAM_PLAIN)
        wetness = 1 - remoteness / reach
        side_roads = tuple(_side_roads(rng, frame, highway, wetness > 0))
        return cls(river, tuple(streams), highway, side_roads, wetness)


def _side_roads(rng: Generator, frame: _Frame, highway: Points, wet: Mask) -> Iterator[Points]:
    spacing = _ROAD_SPACING * frame.unit
    for x in np.arange(0.3 * spacing, frame.width, spacing):
        for side in (1j, -1j):
            start = highway[np.argmin(np.abs(highway.real - x - rng.normal(0, 0.06 * spacing)))]
            length = frame.height * rng.uniform(0.28, 0.42)
            end = start + side * np.exp(1j * rng.normal(0, 0.06)) * length
            road = _winding(rng, start, end, _ROAD_BEND * frame.unit, 0.25)
            road = road[frame.holds(road)]
            at = np.rint([road.imag, road.real]).astype(int)
            blocked = wet[at[0].clip(0, frame.height - 1), at[1].clip(0, frame.width - 1)]
            road = road[: np.argmax(blocked)] if blocked.any() else road
            if len(road) > 20 * frame.unit:
                yield road


def _paint_lots(rng: Generator, canvas: _Canvas, plan: _Plan) -> None:
    """Paint the clearings of settlers, lot after lot along the side roads: old ones first, new ones towards the end."""
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


def _paint_lot(rng: Generator, canvas: _Canvas, first: complex, last: complex, out: complex, age: float) -> None:
    """Paint one lot between two points of a road, reaching up to `out` from it.

    `age` falls from 1 at the highway to 0 in the lot at the road's end, which is always cleared between the dates.
    """

    def field(near: float, far: float, patch: _Patch) -> None:
        slack = rng.uniform(0, 0.12, 4) * (far - near)
        reach = np.array([near, far - slack[0], far - slack[1], near])
        canvas.polygon(np.array([first, first, last, last]) + reach * out, patch)

    front, back = rng.uniform(0.25, 0.6), rng.uniform(0.6, 1.0)
    kind = rng.random() - _LOTS_LEFT
    if age > 0 and kind < 0:
        return
    if age == 0 or kind < np.interp(1 - age, (0, 1), _LOTS_NEW):
        field(0, rng.uniform(0.45, 1), _new_clearing(rng))
        return
    field(0, front, _old_clearing(rng))
    further = rng.random()
    if further < _LOTS_EXTENDED:
        field(front, back, _new_clearing(rng))
    elif further < _LOTS_EXTENDED + _LOTS_DEEP:
        field(front, back, _old_clearing(rng))


def _new_clearing(rng: Generator) -> _Patch:
    after = _NEW_CLEARINGS[rng.integers(len(_NEW_CLEARINGS))]
    return _Patch(Cover.AGRICULTURE, _FOREST, after.varied(rng), deforested=True)


def _old_clearing(rng: Generator) -> _Patch:
    chosen = rng.choice(len(_OLD_CLEARINGS), p=[share for share, _ in _OLD_CLEARINGS])
    return _OLD_CLEARINGS[chosen][1].varied(rng)


def _paint_rocks(rng: Generator, canvas: _Canvas) -> None:
    """Paint granite domes, some in each part."""
    frame = canvas.frame
    noise = frame.noise(rng, 40 * frame.unit)
    for part in frame.parts:
        for _ in range(2):
            centre = part.col_off + part.width * rng.uniform(0.1, 0.9) + 1j * frame.height * rng.uniform(0.82, 0.97)
            where = frame.blob(centre, rng.uniform(35, 60) * frame.unit, noise)
            canvas.fill(where, _Patch(Cover.OTHER, _ROCK, _ROCK).varied(rng))


def _paint_fires(rng: Generator, canvas: _Canvas) -> None:
    """Paint what burnt under the canopy: the spectrum of a fresh clearing, but the forest still stands."""
    frame = canvas.frame
    noise = frame.noise(rng, 30 * frame.unit)
    pixels = rng.uniform(size=(_FIRES, 2)) * frame.shape
    for row, column in pixels:
        where = frame.blob(complex(column, row), rng.uniform(20, 48) * frame.unit, 1.5 * noise)
        canvas.fill(where & (canvas.numbers == 0), _Patch(Cover.FOREST, _FOREST, _FIRE_SCAR.varied(rng), canopy=True))


def _paint_farms(rng: Generator, canvas: _Canvas, plan: _Plan) -> None:
    """Paint the fields of large farms where the highway runs; between them some forest is left."""
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
        if forest_left or not frame.holds(centre) or suited[int(centre.imag), int(centre.real)] < 0.8:
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
    """Halve a box (left, top, right, bottom), roughly, until its pieces are fields."""
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


def _field(rng: Generator) -> _Patch:
    """Return a field with the crop that happens to stand on it on each date, or a plantation, perhaps felled."""
    if rng.random() < 0.2:
        felled = rng.random() < 0.6
        after = _BARE if felled else _PLANTATION
        return _Patch(Cover.AGRICULTURE, _PLANTATION, after, canopy=not felled).varied(rng)
    before, after = (_CROPS[i] for i in rng.integers(len(_CROPS), size=2))
    return _Patch(Cover.AGRICULTURE, before, after).varied(rng)


def _paint_rivers(rng: Generator, canvas: _Canvas, plan: _Plan) -> None:
    """Paint the floodplain, its lakes, the river and its streams; 2024 was the drier year."""
    frame = canvas.frame
    unit = frame.unit
    water = _Patch(Cover.WATER, _RIVER, _RIVER, flooded=True)
    lake = _Patch(Cover.WATER, _LAKE, _LAKE, flooded=True)
    marsh = _Patch(Cover.WETLAND, _WET_REED, _REED, flooded=True)
    swamp = _Patch(Cover.WETLAND, _FLOODED_FOREST, _FLOODED_FOREST, canopy=True, flooded=True)
    canvas.fill(plan.wetness > 0, swamp)
    canvas.fill((plan.wetness > 0.25) & (frame.noise(rng, 45 * unit) > 0.75), marsh)

    half = _RIVER_HALF * unit
    bank = half * (1 + 0.22 * frame.noise(rng, 90 * unit))
    along = _directions(plan.river)
    turning = np.gradient(np.unwrap(np.angle(along)))
    inwards = half * 1j * along * np.sign(turning)
    lakes = list(_former_bends(rng, plan.river, turning, -inwards))
    low = plan.wetness > -0.2
    canvas.fill(frame.drawn(lakes, 3.2 * half) & low, marsh)
    canvas.fill(frame.drawn(lakes, 1.3 * half) & low, lake)

    # Sand settles inside the bends: some of it stays dry, some was under water in 2019.
    sharp = np.abs(turning) > np.quantile(np.abs(turning), 0.72)
    bars = (plan.river + 0.75 * inwards)[sharp]
    canvas.fill(frame.dotted(bars, 1.05 * half), _Patch(Cover.OTHER, _SAND, _SAND))
    canvas.fill(frame.distance([plan.river]) < bank, water)
    canvas.fill(frame.dotted(bars, 0.5 * half), _Patch(Cover.OTHER, _RIVER, _SAND))
    canvas.fill(frame.distance(plan.streams) < _STREAM_HALF * unit, water)


def _former_bends(rng: Generator, river: Points, turning: NDArray[np.float64], outwards: Points) -> Iterator[Points]:
    """Yield loops beside the river's bends, where it ran before it cut them off: oxbow lakes.

    `turning` is the change of heading from point to point, `outwards` half the river's width away from the bend's
    inside.
    """
    reach = 20  # points of the river to each side of a bend's apex
    sharp = np.abs(turning)[reach:-reach]
    apexes = reach + np.flatnonzero((sharp >= np.roll(sharp, 1)) & (sharp > np.roll(sharp, -1)))
    for k in rng.choice(apexes, min(len(apexes), _LAKES), replace=False):
        length = rng.integers(11, reach)
        loop = (river[k - length : k + length] - river[k]) / outwards[k]
        loop = rng.uniform(1.2, 2.2) * loop.real + 1j * loop.imag
        yield river[k] + outwards[k] * (rng.uniform(3.5, 6) + loop * np.exp(1j * rng.normal(0, 0.35)))


def _paint_roads(canvas: _Canvas, plan: _Plan) -> None:
    unit = canvas.frame.unit
    canvas.fill(canvas.frame.drawn(plan.side_roads, _TRACK_WIDTH * unit), _Patch(Cover.URBAN, _TRACK, _TRACK))
    canvas.fill(canvas.frame.drawn([plan.highway], _HIGHWAY_WIDTH * unit), _Patch(Cover.URBAN, _ASPHALT, _ASPHALT))


def _paint_towns(rng: Generator, canvas: _Canvas, plan: _Plan) -> None:
    """Paint a town where each stream meets the highway: blocks of houses, leafy outskirts, houses on stilts."""
    frame = canvas.frame
    outline, leaves = (frame.noise(rng, 30 * frame.unit) for _ in range(2))
    streets = canvas.add(_Patch(Cover.URBAN, _ASPHALT, _ASPHALT))
    leafy = canvas.add(_Patch(Cover.URBAN, _LEAFY_STREETS, _LEAFY_STREETS, canopy=True))
    stilts = canvas.add(_Patch(Cover.URBAN, _STILT_HOUSES, _STILT_HOUSES, flooded=True))
    park = canvas.add(_Patch(Cover.FOREST, _SECONDARY, _SECONDARY, canopy=True))
    blocks = [canvas.add(_Patch(Cover.URBAN, roofs, roofs).varied(rng)) for roofs in _ROOFS for _ in range(3)]
    for stream, radius in zip(plan.streams, _TOWN_RADII, strict=True):
        radius = radius * frame.unit
        near = plan.highway[np.argmin([np.abs(stream - point).min() for point in plan.highway])]
        centre = near - 0.35 * radius
        turn = _directions(plan.highway)[np.argmin(np.abs(plan.highway - centre))]
        grid = (frame.pixels - centre) / turn / max(_BLOCK * frame.unit, 5)
        town = frame.blob(centre, radius, outline)
        remoteness = np.abs(frame.pixels - centre) / radius
        column, row = np.floor(grid.real), np.floor(grid.imag)
        # Any rule without a visible pattern will do to deal out the kinds of blocks.
        lot = (rng.integers(1, 97) * column + rng.integers(1, 97) * row + column * row).astype(int) % 31
        houses = np.array(blocks)[lot % len(blocks)]
        houses[lot == 30] = park
        houses[(leaves + 1.3 * remoteness) > 1.5] = leafy
        houses[(grid.real % 1 < _STREET) | (grid.imag % 1 < _STREET)] = streets
        houses[plan.wetness > 0] = stilts
        town &= np.array([patch.cover != Cover.WATER for patch in canvas.patches])[canvas.numbers]
        canvas.numbers[town] = houses[town]


def _scenes(rng: Generator, canvas: _Canvas) -> list[NDArray[np.uint16]]:
    """Return what the satellite saw on each date, uint16 (6, height, width)."""
    frame = canvas.frame
    land_rng, *date_rngs = rng.spawn(1 + len(_DATES))
    hills = -np.abs(frame.noise(land_rng, 70)) + 0.12 * frame.noise(land_rng, 20)  # ridges between sharp valleys
    slopes = np.gradient(hills, axis=1) - np.gradient(hills, axis=0)  # towards a sun in the north-east
    crowns = frame.noise(land_rng, 2.5)
    scenes = []
    for date, date_rng in zip(_DATES, date_rngs, strict=True):
        surfaces = [getattr(patch, date.surface) for patch in canvas.patches]
        # The same trees stand on both dates, but no two images of them are the same.
        light = 0.8 * crowns + 0.6 * frame.noise(date_rng, 2.5)
        land = _reflectance(date_rng, canvas, surfaces, light, slopes / slopes.std())
        scenes.append(_observed(date_rng, frame, land, date))
    return scenes


@dataclass(frozen=True)
class _Date:
    """What differs between two images of the same land.

    Parameters
    ----------
    surface
        The attribute of a patch that is seen.
    season
        Factor per band: the dry season takes near infrared and adds short-wave infrared.
    haze
        Reflectance of the thickest haze in the blue band.
    light
        How much brighter the east is than the west.
    swath
        Pixels by which the edges of the swath lie further east.
    """

    surface: str
    season: tuple[float, ...]
    haze: float
    light: float
    swath: float


_DATES = (
    _Date("before", (1.0, 1.0, 1.0, 1.0, 1.0, 1.0), haze=0.006, light=0.06, swath=0.0),
    _Date("after", (1.03, 1.02, 1.06, 0.95, 1.04, 1.07), haze=0.012, light=-0.05, swath=5.0),
)
_HAZE_BY_BAND = (1.0, 0.72, 0.5, 0.25, 0.1, 0.06)  # smoke scatters short waves most
_HILLSHADE = 0.06
_NOISE = 0.0025  # of the sensor, in reflectance
_SWATH_CORNER = 0.06  # of the width
_SWATH_SLANT = 0.24  # columns per row of a descending orbit
_SCALE = 10_000


def _reflectance(
    rng: Generator, canvas: _Canvas, surfaces: Sequence[_Surface], light: Floats, slopes: Floats
) -> Floats:
    """Return the land's reflectance, float32 (6, height, width)."""
    numbers = canvas.numbers
    ground, spots = (np.stack([getattr(surface, name) for surface in surfaces], axis=1) for name in ("ground", "spots"))
    share, grain = (
        np.array([getattr(surface, name) for surface in surfaces], np.float32) for name in ("share", "grain")
    )
    # A share of the pixels is where a uniform number falls below it; the logistic curve makes normal numbers uniform.
    clumps = 1 / (1 + np.exp(-1.7 * canvas.frame.noise(rng, 7)))
    spotted = ((1.2 * share[numbers] - clumps) / 0.2).clip(0, 1)
    brightness = 1 + grain[numbers] * light + _HILLSHADE * (grain > 0)[numbers] * slopes
    brightness = brightness.clip(0.3, None)
    land = [
        (low[numbers] + spotted * (high - low)[numbers]) * brightness for low, high in zip(ground, spots, strict=True)
    ]
    return np.stack(land).astype(np.float32)


def _observed(rng: Generator, frame: _Frame, land: Floats, date: _Date) -> NDArray[np.uint16]:
    """Return digital numbers: season, light, haze, the optics' blur, noise and the edges of the swath."""
    east = np.linspace(-0.5, 0.5, frame.width, dtype=np.float32)
    gain = 1 + date.light * east + 0.02 * frame.noise(rng, 300)
    haze = date.haze * (0.5 + 0.4 * frame.noise(rng, 250)).clip(0, 2)
    pixels = frame.pixels
    offset = pixels.real + _SWATH_SLANT * pixels.imag - date.swath * frame.unit
    corner = _SWATH_CORNER * frame.width
    seen = (offset >= corner) & (offset < frame.width + _SWATH_SLANT * frame.height - corner)
    image = np.zeros(land.shape, np.uint16)
    for band, reflectance in enumerate(land):
        sensed = _blurred(reflectance * np.float32(date.season[band]) * gain + haze * np.float32(_HAZE_BY_BAND[band]))
        sensed += _NOISE * rng.standard_normal(frame.shape, dtype=np.float32)
        image[band] = np.where(seen, np.rint(sensed * _SCALE).clip(NODATA + 1, 2**16 - 1), NODATA)
    return image


def _blurred(image: Floats) -> Floats:
    """Spread every pixel over its neighbours, 1 2 1 along rows and columns: the optics of a 10 m sensor."""
    padded = np.pad(image, 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16, np.float32)


@dataclass(frozen=True)
class _Labels:
    """What is known about 2024: code rasters, and a mask per overlapping class."""

    deforestation: NDArray[np.uint8]
    landcover: NDArray[np.uint8]
    overlapping: dict[str, Mask]


def _labels(rng: Generator, canvas: _Canvas, seen: Mask) -> _Labels:
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


def _write_part(
    folder: Path,
    frame: _Frame,
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
