"""The sample landscape: a synthetic Amazon frontier, for `segkit demo`, tests and first steps.

The land is a stack of patches (a forest, a field, a city block) painted over each other; a patch has a land cover and
surfaces in 2019 and in 2024. Labels and imagery are made from the same patches, so the labels are exact. The task needs
a network, since the spectrum of a single pixel is ambiguous: felled plantations, ripe crops, regrowth that is cut again
and burnt forest all look like a fresh clearing; texture, shape and context differ.

Points in the plane are complex numbers, column + 1j * row in pixels, so that a rotation is a multiplication. Lengths
are in pixels at full size and are multiplied by `Frame.unit`, so that a small landscape is a miniature of a large one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator

from segkit.demo.landscape.canvas import Canvas, Frame, LandCover, Patch
from segkit.demo.landscape.files import SceneFiles, make_labels, write_scene_files
from segkit.demo.landscape.land_use import LandPlan, paint_farms, paint_fires, paint_lots, paint_rivers, paint_rocks
from segkit.demo.landscape.sensor import NODATA, acquire_scenes
from segkit.demo.landscape.settlements import paint_roads, paint_towns
from segkit.demo.landscape.spectra import FOREST
from segkit.errors import UsageError


@dataclass(frozen=True)
class Landscape:
    """The files of the training part, in the west, and of the held-out part, in the east."""

    train: SceneFiles
    heldout: SceneFiles


def make_landscape(
    folder: str | os.PathLike[str], *, width: int = 1536, height: int = 1152, seed: int = 0
) -> Landscape:
    """Write the sample landscape to `folder`: `train/` and `heldout/`, with the same five files in each.

    The same arguments give the same pixels. Existing files are replaced.

    Parameters
    ----------
    folder
        Created if it does not exist.
    width, height
        Size in pixels of 10 m, including both parts and the gap between them; at least 256 each. The held-out part of
        so small a landscape, a miniature, may lack a class.
    seed
        Another seed gives another landscape.

    Raises
    ------
    UsageError
        The landscape is too small.
    """
    if min(width, height) < _MIN_SIZE_PX:
        raise UsageError(f"a landscape of {width} x {height} pixels is too small; each side needs {_MIN_SIZE_PX} px")
    frame = Frame(height, width)
    land_rng, scene_rng, label_rng = np.random.default_rng(seed).spawn(3)
    canvas = _paint(land_rng, frame)
    scenes = acquire_scenes(scene_rng, canvas)
    labels = make_labels(label_rng, canvas, seen=np.all([scene[0] != NODATA for scene in scenes], axis=0))
    tags = {"TIFFTAG_IMAGEDESCRIPTION": f"segkit's sample landscape: synthetic, no real place (seed {seed})"}
    train, heldout = frame.parts
    return Landscape(
        write_scene_files(Path(folder) / "train", frame, train, scenes, labels, tags),
        write_scene_files(Path(folder) / "heldout", frame, heldout, scenes, labels, tags),
    )


_MIN_SIZE_PX = 256


def _paint(rng: Generator, frame: Frame) -> Canvas:
    plan_rng, rock_rng, lot_rng, fire_rng, farm_rng, water_rng, town_rng = rng.spawn(7)
    plan = LandPlan.draw(plan_rng, frame)
    canvas = Canvas(frame, Patch(LandCover.FOREST, FOREST, FOREST, canopy=True))
    paint_lots(lot_rng, canvas, plan)
    canvas.roughen(lot_rng, frame.unit)
    paint_rocks(rock_rng, canvas)
    paint_fires(fire_rng, canvas)
    paint_farms(farm_rng, canvas, plan)
    paint_rivers(water_rng, canvas, plan)
    paint_roads(canvas, plan)
    paint_towns(town_rng, canvas, plan)
    return canvas
