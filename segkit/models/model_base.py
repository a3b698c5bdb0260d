"""What a prediction asks of any model, whatever computes it: classes, bands, how scenes are read. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segkit.errors import DataError, ModelFileError
from segkit.io.band_choice import suggest_stack
from segkit.io.paths import PathLike
from segkit.io.scene import Scene
from segkit.models.description import class_colors, describe_model
from segkit.models.model_file import Header
from segkit.models.training_pixels import TrainingPixels
from segkit.models.training_scenes import TrainingScenes
from segkit.recipe.imagery import Imagery, open_scene
from segkit.recipe.schema import Recipe
from segkit.runtime.tables import Described, list_some
from segkit.task import Task

_MAX_LISTED_BANDS = 8  # in a message


class ModelBase(Described):
    """A model, whatever computes it.

    Parameters
    ----------
    recipe
        Defines the task, and how scenes are read.
    mean, std
        One per input band.
    band_names
        One per input band.

    Raises
    ------
    DataError
        The mean or standard deviation of a band is not a finite number.
    """

    mean: Any  # of each band, float32 (1, C, 1, 1), a tensor or an array
    std: Any
    stride: int  # of the network in pixels
    backend = "torch"  # what computes the network

    def __init__(self, recipe: Recipe, mean: Sequence[float], std: Sequence[float], band_names: Sequence[str]) -> None:
        self.recipe = recipe
        self.task: Task = recipe.task
        self.imagery: Imagery = recipe.data  # how scenes are read; see `segkit.models.ensemble.with_imagery`
        self.band_names = tuple(band_names)
        self.bands = len(mean)
        check_normalization(mean, std, self.band_names)
        self.metrics: dict[str, Any] = {}
        self.path: Path | None = None
        self.training_pixels: TrainingPixels | None = None
        self.training_scenes: TrainingScenes | None = None

    @property
    def is_classical(self) -> bool:
        """Whether a classical learner is in the place of the network; it always computes in fp32."""
        return False

    @property
    def receptive_field(self) -> int | None:
        """Radius in pixels around a pixel that its logits depend on; None if it is global."""
        raise NotImplementedError

    @property
    def fixed_window_size(self) -> int | None:
        """Window size in pixels that a network with a global receptive field was trained with; None for others."""
        raise NotImplementedError

    @property
    def header(self) -> Header:
        """The header of the model file."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Return a hash of all that decides what it predicts."""
        raise NotImplementedError

    def open_scene(self, paths: PathLike | Sequence[PathLike], *, vrt: bool = False) -> Scene:
        """Open a scene with the bands, units, no data and resampling that the model was trained with.

        Bands that have the names of the training bands, or names that mean the same, are found by name, so their order
        in the files does not matter (`segkit.io.band_names.match_bands`).

        Parameters
        ----------
        paths, vrt
            As for `Scene.from_files`.

        Raises
        ------
        ModelFileError
            The number of bands is not the model's.
        DataError
            The units were in a table of the training scenes.
        """
        scene = open_scene(paths, self.imagery, trained=self.band_names, vrt=vrt)
        self.check_scene(scene)
        return scene

    def check_scene(self, scene: Scene) -> None:
        """Raise a ModelFileError if the scene's number of bands is not the model's."""
        if len(scene.bands) != self.bands:
            alpha = ", ".join(str(band.place) for band in scene.alpha_masks)
            masks = f" (without band {alpha}, which is alpha, a mask)" if alpha else ""
            raise ModelFileError(
                f"{scene.paths[0]}: has {len(scene.bands)} band{'s' * (len(scene.bands) > 1)}{masks}, the model "
                f"{self.path or self.recipe.name} was trained on {self.bands} "
                f"({list_some(self.band_names, _MAX_LISTED_BANDS)}); give a scene with these, in this order"
                + suggest_stack(scene.paths)
            )

    def _describe(self) -> tuple[str, list[tuple[str, str]], dict[str, str]]:
        return f"model {self.recipe.name}", describe_model(self.header, self.path), class_colors(self.task)


def deviations(mean: Sequence[float], std: Sequence[float]) -> list[float]:
    """Return the standard deviation of each band by which it is divided: 1 of a constant band."""
    eps = np.finfo(np.float32).eps
    return [deviation if deviation > eps * abs(middle) else 1.0 for middle, deviation in zip(mean, std, strict=True)]


def check_normalization(mean: Sequence[float], std: Sequence[float], band_names: Sequence[str]) -> None:
    """Raise a DataError if a mean or a standard deviation is not a finite number."""
    for what, values in (("mean", mean), ("standard deviation", std)):
        for band, value in zip(band_names, values, strict=False):
            if not math.isfinite(value):
                raise DataError(
                    f"the {what} of band {band} is {value}; normalisation needs a finite number, check the imagery"
                )
