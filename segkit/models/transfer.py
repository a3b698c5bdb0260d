"""Start a model from the weights of another one, which may have other bands and classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from segkit.errors import ModelFileError, RecipeError
from segkit.io.band_names import are_named
from segkit.io.paths import PathLike
from segkit.models.band_mapping import BandMapping, match_names, match_order
from segkit.models.initial_weights import InitialWeights
from segkit.models.model_file import read_header
from segkit.models.segmenter import Segmenter, load
from segkit.models.weights import describe_number, find_axes
from segkit.recipe.schema import Recipe
from segkit.recipe.yaml import resolve_paths
from segkit.task import LandCoverClass, Task

# The normalisation of the model is kept if the new data is on its scale: means differ by less than this many standard
# deviations, and standard deviations by less than this factor.
_MAX_SHIFT, _MAX_RATIO = 1.0, 2.0
_ENCODER = "network.encoder."  # start of the names of its weights


def with_start(recipe: Recipe, model: PathLike) -> Recipe:
    """Return a recipe whose training starts from a model file, instead of from its encoder weights.

    The same as the keys ``model: {start_from: MODEL, encoder_weights: null, encoder_bands: null}``. The path is
    relative to the current directory.
    """
    path = resolve_paths(str(model), Path(), ("model", "start_from"))
    raw = recipe.to_dict()
    raw["model"] |= {"start_from": path, "encoder_weights": None, "encoder_bands": None}
    return Recipe.from_dict(raw)


def check_start(recipe: Recipe) -> None:
    """Check that training can start from `model.start_from`, from its header only; nothing to do without that key.

    Raises
    ------
    MissingFileError, ModelFileError
        The file is missing or not a model file.
    RecipeError
        The model has another architecture or encoder.
    """
    if recipe.model.start_from is None:
        return
    path, wanted = recipe.model.start_from, recipe.model
    try:
        found = Recipe.from_dict(read_header(path).recipe).model
    except RecipeError as error:
        raise ModelFileError(f"{path}: this segkit cannot use its header: {error}") from error
    if (found.architecture, found.encoder) != (wanted.architecture, wanted.encoder):
        raise RecipeError(
            f"model.start_from: {path} is a {found.architecture} with encoder {found.encoder}, the recipe has a "
            f"{wanted.architecture} with encoder {wanted.encoder}; set model.architecture and model.encoder to those "
            "of the model, or start without it"
        )


def start_from_model(segmenter: Segmenter, path: PathLike) -> None:
    """Give a new segmenter the weights of a model file, as far as they fit.

    Bands are matched by name if those of both have names, else by order, and classes by name. If the options of the
    networks differ, only the encoder is taken. The normalisation of the model is kept for its bands if the new data
    has the same scale: the weights were trained with it, and unchanged data gives unchanged logits. Otherwise (other
    units, another sensor) the statistics of the new data put its values where the weights expect them.

    `segmenter.initial_weights` says what was taken.

    Raises
    ------
    MissingFileError, ModelFileError
        The file is missing, damaged or not a segkit model.
    RecipeError
        The model has another architecture or encoder, or a frozen part would not come from it.
    """
    check_start(segmenter.recipe)
    source = load(path)
    bands = _match_bands(source.band_names, segmenter.band_names)
    channels = _match_channels(source.network_task.channel_names, segmenter.task.channel_names)
    whole = source.recipe.model.options == segmenter.recipe.model.options
    taken = _take_weights(source, segmenter, bands, channels, prefix="" if whole else _ENCODER)
    frozen = set(segmenter.recipe.train.freeze)
    if (not whole and frozen - {"encoder"}) or ("head" in frozen and None in channels):
        why = "classes of the recipe are not in the model" if whole else "the model has other model.options"
        raise RecipeError(f"train.freeze: the head or the decoder would stay random, because {why}; do not freeze it")
    parts = [f"taken: {describe_number(taken, len(segmenter.state_dict()))}"]
    if not whole:
        parts[0] += " (the encoder only, because model.options differ)"
    parts.append(f"first layer: bands {bands.summary}")
    if whole:
        parts.append(f"last layer: {_describe_channels(source.network_task, segmenter.task)}")
    parts.append(f"normalisation: {_take_normalization(source, segmenter, bands)}")
    segmenter.initial_weights = InitialWeights(str(path), source.fingerprint(), tuple(parts))


def _match_bands(old: Sequence[str], new: Sequence[str]) -> BandMapping:
    by_name = match_names(old, new) if are_named(old) and are_named(new) else None
    return by_name or match_order(len(old), new)


def _match_channels(old: Sequence[str], new: Sequence[str]) -> list[int | None]:
    """Return for each new channel the old one of its name, or None."""
    return [old.index(name) if name in old else None for name in new]


def _take_weights(
    source: Segmenter, target: Segmenter, bands: BandMapping, channels: Sequence[int | None], *, prefix: str
) -> int:
    """Copy weights of equal names, mapped to the bands and channels of the target; return how many were taken.

    Parameters
    ----------
    prefix
        Start of the names of the weights to take.
    """
    band_axes, channel_axes = _find_layers(target)
    old, new = source.state_dict(), target.state_dict()
    any_channel, taken = any(at is not None for at in channels), {}
    for name, tensor in new.items():
        if not name.startswith(prefix) or name not in old or (name in channel_axes and not any_channel):
            continue
        weight = old[name]
        if name in band_axes:
            weight = bands.apply(weight, band_axes[name])
        if name in channel_axes:
            weight = _map_channels(weight, tensor, channel_axes[name], channels)
        if weight.shape == tensor.shape:
            taken[name] = weight
    target.load_state_dict(new | taken)
    return len(taken)


def _map_channels(old: Tensor, new: Tensor, axis: int, channels: Sequence[int | None]) -> Tensor:
    """Return `new` with the channels of `old` that have the same class."""
    slices = list(new.unbind(axis))
    for place, at in enumerate(channels):
        if at is not None:
            slices[place] = old.select(axis, at)
    return torch.stack(slices, dim=axis)


def _find_layers(segmenter: Segmenter) -> tuple[dict[str, int], dict[str, int]]:
    """Return {name: axis} of the weights whose size depends on the number of bands, and on that of the channels."""
    bands, channels = segmenter.bands, segmenter.task.channels
    state = segmenter.state_dict()
    with torch.random.fork_rng(devices=[]):
        return (
            find_axes(state, _blank(segmenter.recipe, bands + 1, channels).state_dict()),
            find_axes(state, _blank(segmenter.recipe, bands, channels + 1).state_dict()),
        )


def _blank(recipe: Recipe, bands: int, channels: int) -> Segmenter:
    """Return a segmenter of the same architecture for other numbers of bands and channels."""
    task = Task("multilabel", tuple(LandCoverClass(f"class {value}", value) for value in range(1, channels + 1)))
    names = [str(band) for band in range(1, bands + 1)]
    changed = recipe.model_copy(update={"task": task})
    return Segmenter(changed, [0.0] * bands, [1.0] * bands, names, pretrained=False)


def _take_normalization(source: Segmenter, target: Segmenter, bands: BandMapping) -> str:
    """Keep the model's mean and standard deviation of its bands if the new data has the same scale; return a text."""
    own = {place: at[0] for place, at in enumerate(bands.sources) if bands.matched[place]}
    shifts, ratios = [], []
    means, stds = (target.mean.flatten().tolist(), target.std.flatten().tolist())
    old_means, old_stds = (source.mean.flatten().tolist(), source.std.flatten().tolist())
    for place, at in own.items():
        shifts.append((abs(means[place] - old_means[at]) / old_stds[at], place, at))
        ratios.append((max(stds[place] / old_stds[at], old_stds[at] / stds[place]), place, at))
    shift, ratio = max(shifts), max(ratios)
    if shift[0] < _MAX_SHIFT and ratio[0] < _MAX_RATIO:
        for place, at in own.items():
            target.mean[:, place], target.std[:, place] = source.mean[:, at], source.std[:, at]
        others = "" if len(own) == target.bands else "; of the new data for new bands"
        return (
            f"that of the model{others} (means of the new data differ by at most {shift[0]:.2g} standard deviations, "
            f"standard deviations by a factor of {ratio[0]:.2g})"
        )
    _, place, at = shift if shift[0] >= _MAX_SHIFT else ratio
    return (
        f"of the new data, whose values are on another scale (band {target.band_names[place]}: mean "
        f"{means[place]:.4g} and standard deviation {stds[place]:.4g}, in the model {old_means[at]:.4g} and "
        f"{old_stds[at]:.4g})"
    )


def _describe_channels(old: Task, new: Task) -> str:
    kept = [name for name in new.channel_names if name in old.channel_names]
    started = [name for name in new.channel_names if name not in old.channel_names]
    dropped = [name for name in old.channel_names if name not in new.channel_names]
    parts = [f"{', '.join(kept)} by name"] if kept else []
    parts += [f"new: {', '.join(started)}"] if started else []
    parts += [f"not used: {', '.join(dropped)}"] if dropped else []
    return f"classes {'; '.join(parts)}"
