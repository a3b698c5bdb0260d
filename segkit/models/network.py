"""Build networks of segmentation-models-pytorch (smp) and timm."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from segkit.errors import RecipeError, first_line
from segkit.recipe.features import CLASSICAL
from segkit.recipe.messages import suggest_name
from segkit.recipe.schema import Model
from segkit.runtime.garbage_collection import pause_collection

# Options of architectures that are no options of a recipe.
RESERVED_OPTIONS = {"encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params", "kwargs"}
# Arguments of timm with which it would read files, download, or build another network.
_TIMM_OPTIONS = {
    "cache_dir", "checkpoint_path", "exportable", "features_only", "no_jit", "model_name", "pretrained",
    "pretrained_cfg", "pretrained_cfg_overlay", "scriptable",
}  # fmt: skip
# Names with a source (hf-hub:, local-dir:) would be downloaded or read from a folder.
_TIMM_NAME = re.compile(r"tu-\w[\w.]*")
_MAX_OPTION = 8_192  # of a number in model.options: channels, sizes in pixels


def make_network(model: Model, bands: int, channels: int, *, pretrained: bool) -> nn.Module:
    """Build smp's architecture and encoder by name, for `bands` inputs and `channels` outputs.

    Parameters
    ----------
    pretrained
        Whether the encoder gets the published weights that `model.encoder_weights` names; `load_encoder_weights` loads
        those of a file.

    Raises
    ------
    RecipeError
        The architecture, encoder or an option is unknown, or the network cannot be built.
    """
    with pause_collection():
        import segmentation_models_pytorch as smp

    architectures = smp.MODEL_ARCHITECTURES_MAPPING
    if model.architecture not in architectures:
        near = suggest_name(model.architecture, [*sorted(architectures), *CLASSICAL])
        raise RecipeError(f"model.architecture: {model.architecture!r} is not known{near}")
    if not _TIMM_NAME.fullmatch(model.encoder) and model.encoder not in smp.encoders.encoders:
        near = suggest_name(model.encoder, sorted(smp.encoders.encoders))
        raise RecipeError(f"model.encoder: {model.encoder!r} is not known{near} (or tu- and a timm name)")
    options = set(inspect.signature(architectures[model.architecture]).parameters) - RESERVED_OPTIONS
    for option, value in model.options.items():
        # smp ignores unknown options silently. With timm encoders they are passed on to timm.
        is_timm = model.encoder.startswith("tu-") and option not in RESERVED_OPTIONS | _TIMM_OPTIONS
        if option not in options and not is_timm:
            known = ", ".join(sorted(options))
            raise RecipeError(f"model.options.{option}: {model.architecture} has no such option; it has {known}")
        if (largest := _largest(value)) > _MAX_OPTION:
            raise RecipeError(f"model.options.{option}: {largest:g} is more than {_MAX_OPTION:,}, which fits no memory")
    weights = model.encoder_weights if pretrained else None
    published: str | bool | None = weights if is_published(weights) else None
    if published:
        check_published(model)
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
    return network


@functools.lru_cache(maxsize=32)
def network_shapes(model: str, bands: int, channels: int) -> dict[str, list[int]] | None:
    """Return {name: shape} of the weights of a network, without memory for them; see `make_network`.

    Half the time of loading a small model file would go into it, so it is computed once for networks of the same kind.

    Parameters
    ----------
    model
        The `Model` of a recipe as JSON.

    Returns
    -------
    dict or None
        None if the network cannot be built without memory: some encoders compute with their weights.
    """
    try:
        with torch.device("meta"):
            network = make_network(Model.model_validate_json(model), bands, channels, pretrained=False)
    except RecipeError:
        return None
    return {name: list(one.shape) for name, one in network.state_dict().items()}


def _largest(value: Any) -> float:
    """Return the largest number in the value of an option; 0 without one."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return max((_largest(part) for part in parts), default=float(value) if isinstance(value, int | float) else 0.0)


def is_published(weights: str | None) -> bool:
    """Return whether `model.encoder_weights` names weights that smp or timm download, not a local file."""
    return weights == "imagenet"


def check_published(model: Model) -> None:
    """Raise a RecipeError if there are no published weights `model.encoder_weights` of the encoder."""
    import segmentation_models_pytorch as smp
    import timm

    if model.encoder.startswith("tu-"):
        found = timm.is_model_pretrained(model.encoder.removeprefix("tu-"))
    else:
        found = model.encoder_weights in smp.encoders.encoders[model.encoder]["pretrained_settings"]
    if not found:
        raise RecipeError(
            f"model.encoder_weights: there are no published weights {model.encoder_weights} of the encoder "
            f"{model.encoder}; name a local file, or another encoder, or use null"
        )


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
