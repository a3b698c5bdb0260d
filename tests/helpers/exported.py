"""Models to export, and what segkit itself predicts with them."""

import numpy as np
import torch
from synthetic import segmenter

from segkit.inference.runner import Runner
from segkit.io.scene import Tile
from segkit.models.calibration import Calibration
from segkit.models.segmenter import Segmenter
from segkit.recipe.schema import Recipe


def moderate(folder, kind, shift=0):
    """Return an untrained network whose probabilities are not all 0 or 1; `shift` makes others."""
    model = segmenter(folder, kind, mean=[500.0 + shift, 510.0, 520.0])
    platt = 0.1 * (kind != "multiclass")
    model.set_calibration(Calibration((1e-3,) * model.task.channels, (platt,) * model.task.channels))
    model._receptive_field = 40  # takes a second to measure
    return model


def classical(folder, kind="binary", architecture="lda", **features):
    """Return a classical learner, with random numbers if it is lda."""
    raw = segmenter(folder, kind).recipe.to_dict()
    raw["model"] = {"architecture": architecture, "features": features or None}
    model = Segmenter(Recipe.from_dict(raw), [500.0] * 3, [50.0] * 3, ["r", "g", "b"]).eval()
    random = np.random.default_rng(0)
    for learner in model.network.learners if architecture == "lda" else ():
        shape = learner.categories, learner.features
        learner.set_arrays(weight=random.normal(size=shape), bias=random.normal(size=shape[0]))
    return model


def an_input(height=37, width=45):
    """Return pixels (2, 3, height, width), a tenth of them NaN, and more in one band."""
    random = np.random.default_rng(0)
    pixels = random.normal(510, 50, (2, 3, height, width)).astype(np.float32)
    pixels[:, :, random.random((height, width)) < 0.1] = np.nan
    pixels[:, 1, random.random((height, width)) < 0.1] = np.nan
    return pixels


def predicted(model, pixels):
    """Return the probabilities, and the values of the map, by segkit's own prediction."""
    valid = ~np.isnan(pixels).all(axis=1)
    tiles = [Tile(*one) for one in zip(pixels, valid, strict=True)]
    probabilities = Runner(model, torch.device("cpu"), "fp32")(tiles)
    decided = zip(model.task.decide(probabilities).numpy(), valid, strict=True)
    return probabilities, np.stack([model.task.map_values(*one) for one in decided])
