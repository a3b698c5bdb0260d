"""Products: the rasters that a prediction gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segkit.io.cog import MapFormat
from segkit.task.task import Task

if TYPE_CHECKING:
    from torch import Tensor

# A share is stored as round(254 p), so that 255 is free for no data.
_STEPS = 254


@dataclass(frozen=True)
class Product:
    """One raster of a prediction.

    Parameters
    ----------
    format
        (task, tags) to how it is written.
    compute
        (task, probabilities (C, H, W), decided planes (P, H, W)) to an integer tensor (bands, H, W), on their device;
        None where the planes are all that it takes.
    values
        (task, that tensor or the planes as an array, valid (H, W)) to what is written.
    """

    format: Callable[[Task, Mapping[str, str]], MapFormat]
    compute: Callable[[Task, Tensor, Tensor], Tensor] | None
    values: Callable[[Task, NDArray[Any], NDArray[np.bool_]], NDArray[Any]]


def _map_format(task: Task, tags: Mapping[str, str]) -> MapFormat:
    return MapFormat(task.dtype, task.nodata, task.band_names, tags, task.colors)


def _share_format(names: tuple[str, ...], tags: Mapping[str, str]) -> MapFormat:
    return MapFormat(np.dtype("uint8"), 255, names, tags, scale=1 / _STEPS, overviews="average")


def _bytes(shares: Tensor) -> Tensor:
    return (shares * _STEPS).round().byte()


def _masked(_: Task, shares: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
    return np.where(valid, shares, np.uint8(255))


PRODUCTS: dict[str, Product] = {
    "map": Product(
        _map_format,
        None,
        lambda task, planes, valid: task.map_values(planes, valid),
    ),
    "probabilities": Product(
        lambda task, tags: _share_format(task.channel_names, tags),
        lambda task, probabilities, planes: _bytes(probabilities),
        _masked,
    ),
    "confidence": Product(
        lambda task, tags: _share_format(task.band_names if task.planes > 1 else ("confidence",), tags),
        lambda task, probabilities, planes: _bytes(task.confidence(probabilities[None], planes[None])[0]),
        _masked,
    ),
}
