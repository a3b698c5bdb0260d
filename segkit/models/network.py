"""Networks by segmentation-models-pytorch and timm, with weights from files."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from segkit.errors import ModelFileError, RecipeError
from segkit.io.files import existing
from segkit.recipe.schema import Model


def make_network(model: Model, bands: int, channels: int, *, pretrained: bool) -> nn.Module:
    """All wiring of the network: smp's architecture and encoder by name."""
    import segmentation_models_pytorch as smp

    architectures = smp.MODEL_ARCHITECTURES_MAPPING
    if model.architecture not in architectures:
        known = ", ".join(sorted(architectures))
        raise RecipeError(f"model.architecture: {model.architecture!r} is not known; use one of {known}")
    if not model.encoder.startswith("tu-") and model.encoder not in smp.encoders.encoders:
        known = ", ".join(sorted(smp.encoders.encoders))
        raise RecipeError(f"model.encoder: {model.encoder!r} is not known; use tu- and a timm name, or one of {known}")
    options = set(inspect.signature(architectures[model.architecture]).parameters) - _WIRED
    for option in model.options:
        # smp swallows what it does not know, so it is told here.
        if option not in options and not model.encoder.startswith("tu-"):
            known = ", ".join(sorted(options))
            raise RecipeError(f"model.options.{option}: {model.architecture} has no such option; it has {known}")
    weights = model.encoder_weights if pretrained else None
    local = weights not in (None, "imagenet")
    published: str | bool | None = None if local else weights
    if published and model.encoder.startswith("tu-"):
        published = True  # timm has its own name for them
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
        hint = "; without a network, name a local file in model.encoder_weights" if published else ""
        raise RecipeError(f"model: {what} cannot be built: {first_line(error)}{hint}") from error
    if local:
        _load_encoder(network.encoder, existing(str(weights), "file of encoder weights"), bands)  # type: ignore[arg-type]
    return network


_WIRED = {"encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params", "kwargs"}


def _load_encoder(encoder: nn.Module, path: Path, bands: int) -> None:
    """Load pretrained weights from a local file into an encoder, its first layer adapted to the number of bands."""
    own = encoder.state_dict()
    places = {_key(name): name for name in own}
    stored = _encoder_state(path, next(iter(places)))
    weights = {places[key]: tensor for key, tensor in stored.items() if key in places}
    for name, tensor in weights.items():
        if tensor.ndim == 4 and tensor.shape[1] != own[name].shape[1] == bands:
            weights[name] = _adapt_input(tensor, bands)
    if found := not_finite(weights):
        raise ModelFileError(f"{path}: holds {found}; name another file in model.encoder_weights")
    missing = sorted(name for name in own if name not in weights and not name.endswith("num_batches_tracked"))
    wrong = sorted(name for name in weights if weights[name].shape != own[name].shape)
    # A classifier and deeper stages may be left over; more layers in a part that the encoder has are another encoder's.
    parts = tuple({_key(name.removeprefix("model.").split(".")[0]) + "_" for name in own})
    strange = sorted(key for key in stored if key not in places and key.startswith(parts))
    for what, names in (("lacks", missing), ("has other shapes for", wrong), ("has unknown", strange)):
        if names:
            raise ModelFileError(
                f"{path}: does not fit the encoder: {what} {len(names)} of {len(own)} weights, first {names[0]}; "
                "name the encoder that the file was made from in model.encoder"
            )
    encoder.load_state_dict(own | weights)


def _key(name: str) -> str:
    """Write a weight's name so that timm's own files and smp's encoders, which wrap and flatten them, have the same."""
    return name.removeprefix("model.").replace(".", "_")


def _encoder_state(path: Path, first: str) -> dict[str, Tensor]:
    """Read a state dict by key; of a whole network only the part that `first` lies in, without the part's prefix."""
    try:
        stored: Any = (
            load_file(path)
            if path.suffix.lower() == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # torch raises many kinds for a file that is no state dict
        raise ModelFileError(f"{path}: not a file of weights (.safetensors, .pth): {first_line(error)}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(stored, dict) and isinstance(stored.get(wrapper), dict):
            stored = stored[wrapper]
    if not isinstance(stored, dict):
        raise ModelFileError(f"{path}: holds a {type(stored).__name__}, not a table of weights (a state dict)")
    found = {_key(str(name)): tensor for name, tensor in stored.items() if isinstance(tensor, Tensor)}
    prefix = min((key.removesuffix(first) for key in found if key.endswith(first)), key=len, default="")
    return {key.removeprefix(prefix): tensor for key, tensor in found.items() if key.startswith(prefix)}


def _adapt_input(weight: Tensor, bands: int) -> Tensor:
    """Repeat the input channels of a first layer over `bands`, scaled so that its output keeps its size."""
    pretrained = weight.shape[1]
    if bands == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight[:, torch.arange(bands) % pretrained] * (pretrained / bands)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@torch.no_grad()
def not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """Say how many weights are not finite numbers, and which is the first; None where all are."""
    bad, first = 0, ""
    for name, tensor in weights.items():
        # A sum is not finite where a number in it is not, and takes an eighth of the time of looking at each.
        if not tensor.sum().isfinite() and (here := int((~tensor.isfinite()).sum())):
            bad, first = bad + here, first or name
    whole = sum(tensor.numel() for tensor in weights.values())
    return f"{bad:,} of {whole:,} weights that are not finite numbers (first in {first})" if bad else None
