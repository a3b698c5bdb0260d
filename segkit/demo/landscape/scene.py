"""The sample landscape: a piece of the Amazon's frontier, made up, for `segkit demo`, tests and first steps.

The land is a stack of patches (a forest, a field, a city block) painted over each other; a patch knows its cover and
how its surface looked in 2019 and in 2024. Labels and imagery come from the same patches, so the labels are true. What
makes the task worth a network is that no pixel tells by itself: plantations are felled, crops ripen, regrowth is
cut again and forest burns, each with the spectra of a fresh clearing; texture, shape and place tell them apart.

Points in the plane are complex numbers, column + 1j * row in pixels: turning is a multiplication. Lengths are in
pixels at full size and are multiplied by `Frame.unit`, so that a small landscape is a miniature of a large one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator

from segkit.demo.landscape.canvas import Canvas, Cover, Frame, Patch
from segkit.demo.landscape.files import Part, make_labels, write_part
from segkit.demo.landscape.land_use import LandPlan, paint_farms, paint_fires, paint_lots, paint_rivers, paint_rocks
from segkit.demo.landscape.sensor import NODATA, acquire_scenes
from segkit.demo.landscape.settlements import paint_roads, paint_towns
from segkit.demo.landscape.spectra import FOREST
from segkit.errors import UsageError


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
    frame = Frame(height, width)
    land_rng, scene_rng, label_rng = np.random.default_rng(seed).spawn(3)
    canvas = _paint(land_rng, frame)
    scenes = acquire_scenes(scene_rng, canvas)
    labels = make_labels(label_rng, canvas, seen=np.all([scene[0] != NODATA for scene in scenes], axis=0))
    about = {"TIFFTAG_IMAGEDESCRIPTION": f"segkit's sample landscape: synthetic, no real place (seed {seed})"}
    train, heldout = frame.parts
    return Landscape(
        write_part(Path(folder) / "train", frame, train, scenes, labels, about),
        write_part(Path(folder) / "heldout", frame, heldout, scenes, labels, about),
    )


_SMALLEST = 256


def _paint(rng: Generator, frame: Frame) -> Canvas:
    plan_rng, rock_rng, lot_rng, fire_rng, farm_rng, water_rng, town_rng = rng.spawn(7)
    plan = LandPlan.draw(plan_rng, frame)
    canvas = Canvas(frame, Patch(Cover.FOREST, FOREST, FOREST, canopy=True))
    paint_lots(lot_rng, canvas, plan)
    canvas.roughen(lot_rng, frame.unit)
    paint_rocks(rock_rng, canvas)
    paint_fires(fire_rng, canvas)
    paint_farms(farm_rng, canvas, plan)
    paint_rivers(water_rng, canvas, plan)
    paint_roads(canvas, plan)
    paint_towns(town_rng, canvas, plan)
    return canvas
