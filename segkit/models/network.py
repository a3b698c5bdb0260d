"""Build networks of segmentation-models-pytorch (smp) and timm, and load encoder weights from files."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from segkit.errors import ModelFileError, RecipeError
from segkit.io.files import require_file
from segkit.recipe.schema import Model


def make_network(model: Model, bands: int, channels: int, *, pretrained: bool) -> nn.Module:
    """Build smp's architecture and encoder by name, for `bands` inputs and `channels` outputs.

    Raises
    ------
    RecipeError
        The architecture, encoder or an option is unknown, or the network cannot be built.
    MissingFileError, ModelFileError
        The file of encoder weights is missing or does not fit.
    """
    import segmentation_models_pytorch as smp

    architectures = smp.MODEL_ARCHITECTURES_MAPPING
    if model.architecture not in architectures:
        known = ", ".join(sorted(architectures))
        raise RecipeError(f"model.architecture: {model.architecture!r} is not known; use one of {known}")
    if not model.encoder.startswith("tu-") and model.encoder not in smp.encoders.encoders:
        known = ", ".join(sorted(smp.encoders.encoders))
        raise RecipeError(f"model.encoder: {model.encoder!r} is not known; use tu- and a timm name, or one of {known}")
    options = set(inspect.signature(architectures[model.architecture]).parameters) - _RESERVED_OPTIONS
    for option in model.options:
        # smp ignores unknown options silently. With timm encoders they are passed on to timm.
        if option not in options and not model.encoder.startswith("tu-"):
            known = ", ".join(sorted(options))
            raise RecipeError(f"model.options.{option}: {model.architecture} has no such option; it has {known}")
    weights = model.encoder_weights if pretrained else None
    local = weights not in (None, "imagenet")
    published: str | bool | None = None if local else weights
    if published and model.encoder.startswith("tu-"):
        published = True  # timm takes a flag
    try:
        network: nn.Module = smp.create_model(
            model.architecture,
            encoder_name=model.encoder,
            encoder_weights=published,
            in_channels=bands,
            classes=channels,
            **model.options,
        )
    except (KeyError, ValueError, RuntimeError, TypeError, OSError) as error:
        what = f"{model.architecture} with encoder {model.encoder} and weights {weights}"
        hint = "; without internet access, name a local file in model.encoder_weights" if published else ""
        raise RecipeError(f"model: {what} cannot be built: {first_line(error)}{hint}") from error
    if local:
        _load_encoder_weights(network.encoder, require_file(str(weights), "file of encoder weights"), bands)  # type: ignore[arg-type]
    return network


_RESERVED_OPTIONS = {"encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params", "kwargs"}


def _load_encoder_weights(encoder: nn.Module, path: Path, bands: int) -> None:
    """Load pretrained weights from a local file into an encoder; adapt the first layer to the number of bands."""
    state = encoder.state_dict()
    names_by_flat_name = {_flat_name(name): name for name in state}
    stored = _read_encoder_weights(path, next(iter(names_by_flat_name)))
    weights = {names_by_flat_name[key]: tensor for key, tensor in stored.items() if key in names_by_flat_name}
    for name, tensor in weights.items():
        if tensor.ndim == 4 and tensor.shape[1] != state[name].shape[1] == bands:
            weights[name] = _adapt_first_layer(tensor, bands)
    if problem := describe_non_finite(weights):
        raise ModelFileError(f"{path}: holds {problem}; name another file in model.encoder_weights")
    missing = sorted(name for name in state if name not in weights and not name.endswith("num_batches_tracked"))
    misshapen = sorted(name for name in weights if weights[name].shape != state[name].shape)
    # The file may hold a classifier and deeper stages as well. Additional layers in a stage that the encoder has mean
    # that the file is of another encoder.
    stages = tuple({_flat_name(name.removeprefix("model.").split(".")[0]) + "_" for name in state})
    unknown = sorted(key for key in stored if key not in names_by_flat_name and key.startswith(stages))
    for what, names in (("lacks", missing), ("has other shapes for", misshapen), ("has unknown", unknown)):
        if names:
            raise ModelFileError(
                f"{path}: does not fit the encoder: {what} {len(names)} of {len(state)} weights, first {names[0]}; "
                "name the encoder that the file was made from in model.encoder"
            )
    encoder.load_state_dict(state | weights)


def _flat_name(name: str) -> str:
    """Return a weight's name in the form that timm's files and smp's encoders (which wrap or flatten them) share."""
    return name.removeprefix("model.").replace(".", "_")


def _read_encoder_weights(path: Path, first: str) -> dict[str, Tensor]:
    """Read a state dict by flat name.

    If the file holds a whole network, return only the part that contains the weight `first`, without its prefix.
    """
    try:
        stored: Any = (
            load_file(path)
            if path.suffix.lower() == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # torch raises many types for a file that is not a state dict
        raise ModelFileError(f"{path}: not a file of weights (.safetensors, .pth): {first_line(error)}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(stored, dict) and isinstance(stored.get(wrapper), dict):
            stored = stored[wrapper]
    if not isinstance(stored, dict):
        raise ModelFileError(f"{path}: holds a {type(stored).__name__}, not a table of weights (a state dict)")
    tensors = {_flat_name(str(name)): tensor for name, tensor in stored.items() if isinstance(tensor, Tensor)}
    prefix = min((key.removesuffix(first) for key in tensors if key.endswith(first)), key=len, default="")
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _adapt_first_layer(weight: Tensor, bands: int) -> Tensor:
    """Repeat the input channels of a first layer over `bands`, scaled so that its outputs keep their magnitude."""
    pretrained = weight.shape[1]
    if bands == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight[:, torch.arange(bands) % pretrained] * (pretrained / bands)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@torch.no_grad()
def describe_non_finite(weights: Mapping[str, Tensor]) -> str | None:
    """Return a text with the number of non-finite weights and the first such tensor; None if all are finite."""
    bad, first = 0, ""
    for name, tensor in weights.items():
        # The sum of non-finite numbers is not finite, and takes an eighth of the time of checking each number.
        if not tensor.sum().isfinite() and (bad_here := int((~tensor.isfinite()).sum())):
            bad, first = bad + bad_here, first or name
    total = sum(tensor.numel() for tensor in weights.values())
    return f"{bad:,} of {total:,} weights that are not finite numbers (first in {first})" if bad else None
