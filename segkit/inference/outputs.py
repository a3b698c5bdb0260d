"""The rasters that a prediction writes: map, probabilities, confidence, uncertainty, applicability."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segkit.inference.uncertainty import DISAGREEMENT, UNCERTAINTY_MEASURES, compute_measures
from segkit.io.class_table import OUTPUT_TAG
from segkit.io.cog import MapProfile
from segkit.task import Task
from segkit.task.array_library import A, cast, without_gradients

# Probabilities are stored as round(254 p).
PROBABILITY_STEPS, NO_PROBABILITY = 254, 255


@dataclass(frozen=True)
class RasterOutput:
    """A raster that a prediction writes.

    Parameters
    ----------
    profile
        Function of (task, names of measures, tags) that returns the profile.
    compute
        Function of (task, channels (C, H, W) of a `Runner`, decided targets (T, H, W), names of measures) that returns
        integers (bands, H, W), a tensor on the device of the channels or an array as they are; None if the targets are
        sufficient.
    values
        Function of (task, these or the targets as an array, valid (H, W)) that returns the stored values.
    from_pixels
        Whether it is computed from the pixels of the scene alone (`Block.dissimilarity`), without the network. Such
        values need no blending, so each row band writes its shared rows at the top, too.
    """

    profile: Callable[[Task, Sequence[str], Mapping[str, str]], MapProfile]
    compute: Callable[[Task, Any, Any, Sequence[str]], Any] | None
    values: Callable[[Task, NDArray[Any], NDArray[np.bool_]], NDArray[Any]]
    from_pixels: bool = False


@dataclass(frozen=True)
class OutputRequest:
    """A raster output that is asked for.

    Parameters
    ----------
    name
        Key of `RASTER_OUTPUTS`.
    measures
        For "uncertainty": keys of `UNCERTAINTY_MEASURES`, in the order of its bands.
    """

    name: str
    measures: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.measures)})" if self.measures else self.name

    @property
    def output(self) -> RasterOutput:
        """The row of `RASTER_OUTPUTS`."""
        return RASTER_OUTPUTS[self.name]

    def profile(self, task: Task, tags: Mapping[str, str]) -> MapProfile:
        """Return the profile of the raster; one that is not the map says so in its tags."""
        kind = {} if self.name == "map" else {OUTPUT_TAG: self.name}
        return self.output.profile(task, self.measures, {**tags, **kind})


def needs_model_entropies(outputs: Sequence[OutputRequest]) -> bool:
    """Whether a `Runner` must give the mean entropy of its models for these outputs."""
    return any(DISAGREEMENT in one.measures for one in outputs)


def compute_outputs(task: Task, channels: A, outputs: Sequence[OutputRequest]) -> dict[str, A]:
    """Return the decided "targets", and by name the raster outputs that are computed from channels of a `Runner`."""
    with without_gradients(channels):
        targets = task.decide(channels[None, : task.channels])[0]
        arrays = {"targets": targets}
        for one in outputs:
            if compute := one.output.compute:
                arrays[one.name] = compute(task, channels, targets, one.measures)
        return arrays


def _map_profile(task: Task, _: Sequence[str], tags: Mapping[str, str]) -> MapProfile:
    return MapProfile(task.dtype, task.nodata, task.band_names, tags, task.colors)


def _probability_profile(names: tuple[str, ...], tags: Mapping[str, str]) -> MapProfile:
    return MapProfile(np.dtype("uint8"), NO_PROBABILITY, names, tags, scale=1 / PROBABILITY_STEPS, overviews="average")


def _uncertainty_profile(_: Task, measures: Sequence[str], tags: Mapping[str, str]) -> MapProfile:
    found = [UNCERTAINTY_MEASURES[name] for name in measures]
    formulas = "; ".join(f"{one.band_name}: {one.formula}" for one in found)
    meaning = f"0 is certain, 1 as uncertain as possible; of overlapping classes the largest value. {formulas}"
    return _probability_profile(tuple(one.band_name for one in found), {**tags, "segkit_uncertainty": meaning})


def _to_bytes(probabilities: A) -> A:
    return cast((probabilities * PROBABILITY_STEPS).round(), "uint8")


def _fill_nodata(_: Task, probabilities: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
    return np.where(valid, probabilities, np.uint8(NO_PROBABILITY))


RASTER_OUTPUTS: dict[str, RasterOutput] = {
    "map": RasterOutput(
        _map_profile,
        None,
        lambda task, targets, valid: task.map_values(targets, valid),
    ),
    "probabilities": RasterOutput(
        lambda task, measures, tags: _probability_profile(task.channel_names, tags),
        lambda task, channels, targets, measures: _to_bytes(channels[: task.channels]),
        _fill_nodata,
    ),
    "confidence": RasterOutput(
        lambda task, measures, tags: _probability_profile(
            task.band_names if task.n_targets > 1 else ("confidence",), tags
        ),
        lambda task, channels, targets, measures: _to_bytes(
            task.confidence(channels[None, : task.channels], targets[None])[0]
        ),
        _fill_nodata,
    ),
    "uncertainty": RasterOutput(
        _uncertainty_profile,
        lambda task, channels, targets, measures: _to_bytes(compute_measures(task, channels, measures)),
        _fill_nodata,
    ),
    "applicability": RasterOutput(
        lambda task, measures, tags: MapProfile(
            np.dtype("float32"), float("nan"), ("dissimilarity index",), tags, overviews="average"
        ),
        None,
        lambda task, index, valid: np.where(valid, index, np.float32(np.nan)),
        from_pixels=True,
    ),
}
