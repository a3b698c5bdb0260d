"""The rasters that a prediction writes: map, probabilities, confidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segkit.io.cog import MapProfile
from segkit.task import Task

if TYPE_CHECKING:
    from torch import Tensor

# Probabilities are stored as round(254 p); 255 is no data.
_PROBABILITY_STEPS = 254


@dataclass(frozen=True)
class RasterOutput:
    """A raster that a prediction writes.

    Parameters
    ----------
    profile
        Function of (task, tags) that returns the profile.
    compute
        Function of (task, probabilities (C, H, W), decided targets (T, H, W)) that returns an integer tensor
        (bands, H, W) on the same device; None if the targets are sufficient.
    values
        Function of (task, that tensor or the targets as an array, valid (H, W)) that returns the stored values.
    """

    profile: Callable[[Task, Mapping[str, str]], MapProfile]
    compute: Callable[[Task, Tensor, Tensor], Tensor] | None
    values: Callable[[Task, NDArray[Any], NDArray[np.bool_]], NDArray[Any]]


def _map_profile(task: Task, tags: Mapping[str, str]) -> MapProfile:
    return MapProfile(task.dtype, task.nodata, task.band_names, tags, task.colors)


def _probability_profile(names: tuple[str, ...], tags: Mapping[str, str]) -> MapProfile:
    return MapProfile(np.dtype("uint8"), 255, names, tags, scale=1 / _PROBABILITY_STEPS, overviews="average")


def _to_bytes(probabilities: Tensor) -> Tensor:
    return (probabilities * _PROBABILITY_STEPS).round().byte()


def _fill_nodata(_: Task, probabilities: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
    return np.where(valid, probabilities, np.uint8(255))


RASTER_OUTPUTS: dict[str, RasterOutput] = {
    "map": RasterOutput(
        _map_profile,
        None,
        lambda task, targets, valid: task.map_values(targets, valid),
    ),
    "probabilities": RasterOutput(
        lambda task, tags: _probability_profile(task.channel_names, tags),
        lambda task, probabilities, targets: _to_bytes(probabilities),
        _fill_nodata,
    ),
    "confidence": RasterOutput(
        lambda task, tags: _probability_profile(task.band_names if task.n_targets > 1 else ("confidence",), tags),
        lambda task, probabilities, targets: _to_bytes(task.confidence(probabilities[None], targets[None])[0]),
        _fill_nodata,
    ),
}
