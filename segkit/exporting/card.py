"""What an exported model says about itself: everything in its model files, and the keys that Deepness (QGIS) reads."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from segkit.errors import UsageError, suggest
from segkit.models.ensemble import members, naming_member
from segkit.models.graph import count_stored_bands
from segkit.models.graph_outputs import CARD_FORMAT, output_names, tensor_names
from segkit.models.graph_runtime import INPUT
from segkit.runtime.version import VERSION

if TYPE_CHECKING:
    from segkit.models.ensemble import AnyModel

_MAX_CARD_CHARS = 2**22  # longer ones are left without the samples of training pixels and scenes
_SAMPLES = ("training_pixels", "training_scenes")
_ABSOLUTE = re.compile(r"[/~]|[A-Za-z]:[\\/]|\\\\|file:", re.ASCII)
# For Deepness: window and overlap in pixels, as predict has them at most for a window of this size.
_DEEPNESS_TILE, _MAX_OVERLAP = 512, 160
_PROJECTION_STRETCH = 0.002
_MAX_FLOAT32 = 3.4028235e38  # larger numbers round to infinity
_ONE_RESOLUTION = 1.1  # ratio of the largest to the smallest pixel of training scenes that count as the same


def make_card(
    model: AnyModel, nodata: Sequence[float], *, decide: bool, tile: int | None, least: int
) -> dict[str, Any]:
    """Return the card: input, outputs, window sizes, and the header of each model file, first that which names bands.

    Paths of this machine are shortened to file names. A card that is too long is left without the samples of training
    pixels and scenes.
    """
    first = naming_member(model)
    models = [first, *(one for one in members(model) if one is not first)]
    headers = [strip_paths(asdict(one.header)) for one in models]
    card = {
        "format": CARD_FORMAT,
        "segkit": VERSION,
        "fingerprint": model.fingerprint(),
        "license": model.recipe.license,
        "task": model.recipe.to_dict()["task"],
        "classes": list(model.task.legend),
        "map_nodata": model.task.nodata,
        "thresholds": model.task.thresholds,
        "input": {"name": INPUT, "bands": list(model.band_names), "units": _units(model), "nodata": list(nodata)},
        "outputs": [
            {"name": name, "channels": channels}
            for name, channels in zip(
                tensor_names(model.task, decide=decide), output_names(model.task, decide=decide), strict=True
            )
        ],
        "decided": decide,
        "window_size": tile or model.fixed_window_size,
        "smallest_window": tile or least,
        "receptive_field": "global" if model.receptive_field is None else model.receptive_field,
        "stride": model.stride,
        "models": headers,
    }
    if len(json.dumps(card)) > _MAX_CARD_CHARS:
        card["models"] = [header | dict.fromkeys(_SAMPLES) for header in headers]
    return card


def strip_paths(value: Any) -> Any:
    """Return values of a JSON file in which absolute paths are shortened to their last part."""
    if isinstance(value, str) and _ABSOLUTE.match(value):
        kind = PureWindowsPath if "\\" in value else PurePosixPath
        return kind(value).name or value
    if isinstance(value, Mapping):
        return {strip_paths(key): strip_paths(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [strip_paths(one) for one in value]
    return value


def _units(model: AnyModel) -> dict[str, Any]:
    """Return how stored values become the numbers of the input."""
    imagery = model.imagery
    keys = ("apply_scale_offset", "scale", "offset", "decibels")
    return imagery.model_dump(mode="json", include=set(keys))


def unit_factors(model: AnyModel) -> tuple[list[float], list[float]] | None:
    """Return scale and offset of each band, from stored values to the input of the graph; None if they are not fixed.

    They are fixed if the recipe gives them, or all training files declare the same. Computed bands and layers, which
    come last, are not converted.
    """
    imagery, bands = model.imagery, count_stored_bands(model)
    derived = model.bands - bands
    if imagery.decibels is not None:
        return None
    if imagery.apply_scale_offset:
        pairs = {
            pair for one in members(model) for pair in (one.training_pixels.scaling if one.training_pixels else ())
        }
        if len(pairs) != 1:
            return None
        ((scale, offset),) = pairs
        return [scale] * bands + [1.0] * derived, [offset] * bands + [0.0] * derived
    factors = [_per_band(given, default, bands) for given, default in ((imagery.scale, 1.0), (imagery.offset, 0.0))]
    if factors[0] is None or factors[1] is None:
        return None
    return factors[0] + [1.0] * derived, factors[1] + [0.0] * derived


def list_nodata(model: AnyModel) -> tuple[float, ...]:
    """Return the stored values that mean no data by the recipe."""
    given = model.imagery.nodata
    return () if given is None else tuple(given) if isinstance(given, tuple) else (float(given),)


def convert_nodata(model: AnyModel, values: Sequence[float]) -> list[list[float]]:
    """Return stored values in the units of training, one number for each band; NaN for computed bands and layers.

    Also NaN beyond float32, where values of the input are infinite, which is no data anyhow.

    Raises
    ------
    UsageError
        How stored values are converted is not known.
    """
    factors = unit_factors(model)
    if factors is None and values:
        raise UsageError(
            f"no data is {' and '.join(f'{value:g}' for value in values)} in the files, but what that is in the units "
            "of training is not fixed (decibels, or a scale for each scene), so the graph cannot find it; its input "
            "has NaN there" + suggest("pass --nodata nan")
        )
    scale, offset = factors or ([], [])
    stored = count_stored_bands(model)
    converted = [[value * factor + shift for factor, shift in zip(scale, offset, strict=True)] for value in values]
    return [
        [one if band < stored and abs(one) <= _MAX_FLOAT32 else math.nan for band, one in enumerate(row)]
        for row in converted
    ]


def _per_band(given: Any, default: float, bands: int) -> list[float] | None:
    if given is None:
        return [default] * bands
    if isinstance(given, (int, float)):
        return [float(given)] * bands
    return list(given) if isinstance(given, tuple) and len(given) == bands else None


def deepness_keys(model: AnyModel, *, tile: int | None) -> tuple[dict[str, Any], list[str]]:
    """Return the metadata keys of the QGIS plugin Deepness, and what it cannot do with this model.

    Deepness divides stored values by 255, subtracts ``standardization_mean`` and divides by ``standardization_std``;
    these two undo the division, and convert the values to the units of training. It takes the highest channel above
    ``seg_thresh``, or the one channel that reaches it.
    """
    task, limits = model.task, []
    size = tile or model.fixed_window_size or _DEEPNESS_TILE
    radius = model.receptive_field
    overlap = min(size // 4, _MAX_OVERLAP, *([] if radius is None else [2 * (radius + 1)]))
    names = [dict(enumerate(channels)) for channels in output_names(task)]
    thresholds = set(task.thresholds or ())
    by_highest = len(names[0]) > 1
    if len(thresholds) > 1 or (by_highest and thresholds - {0.5}):
        limits.append("it has one threshold for all classes, so classes may differ from those of segkit")
    keys: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": names[0] if len(names) == 1 else names,
        "tile_size": size,
        "tiles_size": size,
        "tiles_overlap": -(-100 * overlap // size),
        "seg_thresh": 0.0 if by_highest else sum(thresholds) / len(thresholds) if thresholds else 0.5,
        "seg_small_segment": 0,
    }
    factors = unit_factors(model)
    if factors is None:
        limits.append("it cannot convert stored values to the units of training; give it converted rasters")
    scale, offset = factors or ([1.0] * model.bands, [0.0] * model.bands)
    keys["standardization_mean"] = [-shift / (255 * factor) for factor, shift in zip(scale, offset, strict=True)]
    keys["standardization_std"] = [1 / (255 * factor) for factor in scale]
    if derived := model.band_names[count_stored_bands(model) :]:
        limits.append(f"it does not compute bands; add to the layer: {', '.join(derived)}")
    if (metres := _resolution(model)) is not None:
        keys["resolution"] = _nominal(100 * metres)
    else:
        limits.append("it needs the pixel size of training, which is not one number here; set it there")
    if tile is None:
        limits.append("it needs windows of one size; export with --tile for it")
    return keys, limits


def _resolution(model: AnyModel) -> float | None:
    """Return the pixel size of the training scenes in metres; None if it is unknown, or there are several."""
    pairs = [one.training_pixels.resolution for one in members(model) if one.training_pixels is not None]
    sides = [side for pair in pairs if pair is not None for side in pair]
    if not sides or None in pairs or max(sides) > _ONE_RESOLUTION * min(sides):
        return None
    return (max(sides) + min(sides)) / 2


def _nominal(size: float) -> float:
    """Return a pixel size with the fewest digits that change it by at most 0.2 %, as map projections do."""
    rounded = (float(f"{size:.{digits}g}") for digits in range(1, 17))
    return next(one for one in rounded if abs(one - size) <= _PROJECTION_STRETCH * size)
