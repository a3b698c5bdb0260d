"""`segkit.encoders`: the encoders and architectures that a recipe can name, with their size."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from segkit.models.network import RESERVED_OPTIONS
from segkit.runtime.progress import progress

_TIMM = "tu-"
# For the size of a decoder: it depends on the channels of the encoder. One that has no such encoder gets its own.
REFERENCE_ENCODER = "resnet34"


@dataclass(frozen=True)
class Encoder:
    """An encoder: name in a recipe, weights for three bands, and whether there are published weights ("imagenet")."""

    name: str
    weights: int
    published: bool


@dataclass(frozen=True)
class Architecture:
    """An architecture: name in a recipe, weights without the encoder (resnet34), and {option: default}."""

    name: str
    weights: int | None
    options: dict[str, Any]


@dataclass(frozen=True)
class Catalogue:
    """Encoders and architectures.

    Parameters
    ----------
    encoders
        Those of segmentation-models-pytorch, or those that match a pattern, also of timm.
    architectures
        All.
    further
        Number of encoders of timm that were not looked at, because no pattern was given.
    """

    encoders: tuple[Encoder, ...]
    architectures: tuple[Architecture, ...]
    further: int


def encoders(pattern: str | None = None, *, show_progress: bool = False) -> Catalogue:
    """List encoders and architectures with the number of their weights. Nothing is downloaded.

    Parameters
    ----------
    pattern
        Part of a name, or a pattern with * and ?: then encoders of timm are listed, too ("tu-" and their name there).
        Those that cannot give feature maps are left out.
    """
    import segmentation_models_pytorch as smp
    import timm

    own, of_timm = list(smp.encoders.encoders), [_TIMM + name for name in timm.list_models()]
    chosen = own if pattern is None else [name for name in own + of_timm if _matches(name, pattern)]
    found = tuple(_count(chosen, show_progress=show_progress))
    architectures = tuple(
        Architecture(name, _count_decoder(name), _options(kind))
        for name, kind in sorted(smp.MODEL_ARCHITECTURES_MAPPING.items())
    )
    return Catalogue(found, architectures, len(of_timm) if pattern is None else 0)


def _matches(name: str, pattern: str) -> bool:
    wanted = pattern.lower() if set(pattern) & set("*?[") else f"*{pattern.lower()}*"
    return fnmatch.fnmatchcase(name.lower(), wanted)


def _count(names: Sequence[str], *, show_progress: bool) -> Iterator[Encoder]:
    with progress("encoders", len(names), show=show_progress) as advance:
        for name in names:
            encoder = _build_encoder(name)
            if encoder is not None:
                yield Encoder(name, _weights(encoder), _has_published(name))
            advance(1)


def _build_encoder(name: str) -> nn.Module | None:
    """Build an encoder without values, or with values if it needs them; None if it cannot be one."""
    import segmentation_models_pytorch as smp

    for device in ("meta", "cpu"):
        with suppress(Exception), torch.device(device):  # each of a thousand networks of timm fails in its own way
            made: nn.Module = smp.encoders.get_encoder(name, weights=None)
            return made
    return None


def _has_published(name: str) -> bool:
    import segmentation_models_pytorch as smp
    import timm

    if name.startswith(_TIMM):
        return bool(timm.is_model_pretrained(name.removeprefix(_TIMM)))
    return "imagenet" in smp.encoders.encoders[name]["pretrained_settings"]


def _count_decoder(architecture: str) -> int | None:
    import segmentation_models_pytorch as smp

    kind = smp.MODEL_ARCHITECTURES_MAPPING[architecture]
    for encoder in (REFERENCE_ENCODER, inspect.signature(kind).parameters["encoder_name"].default):
        with suppress(Exception), torch.device("meta"):  # some do not take the encoder
            network = smp.create_model(architecture, encoder, encoder_weights=None, in_channels=3, classes=2)
            return _weights(network) - _weights(network.encoder)
    return None


def _options(kind: Any) -> dict[str, Any]:
    parameters = inspect.signature(kind).parameters
    return {name: each.default for name, each in parameters.items() if name not in RESERVED_OPTIONS}


def _weights(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())
