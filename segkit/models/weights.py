"""Load pretrained weights into the encoder of a network, from files in the layouts of common projects."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import file_digest
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from segkit.errors import ModelFileError, RecipeError, first_line
from segkit.io.files import require_file
from segkit.models.band_mapping import BandMapping, match_names, match_order, repeat_inputs
from segkit.models.initial_weights import InitialWeights
from segkit.models.network import check_published, describe_non_finite, is_published, make_network
from segkit.recipe.schema import Model

# Keys under which files keep their weights. Of DINO's two networks the teacher, the average, is the one to use.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher", "student")
# Parts of the prefixes of averaged copies, if a file has two networks: the trained one is used (MoCo's query encoder).
_COPIES = re.compile(r"encoder_k|momentum|target")
# Stages of a ResNet in the order of torchvision; projects that drop the classifier by `nn.Sequential(*children[:-1])`
# (SeCo, many others) name them by number.
_NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_PUBLISHED_BANDS = ("red", "green", "blue")


def load_encoder_weights(network: nn.Module, model: Model, band_names: Sequence[str]) -> InitialWeights | None:
    """Load `model.encoder_weights` into the encoder of a new network, and adapt the first layer to the bands.

    Parameters
    ----------
    network
        Made by `make_network`, so that it has published weights already.
    band_names
        Of the imagery.

    Returns
    -------
    None if the recipe names no weights.

    Raises
    ------
    MissingFileError, ModelFileError
        The file is missing, not a file of weights, or of another encoder.
    RecipeError
        No band of the imagery is in `model.encoder_bands`.
    """
    name = model.encoder_weights
    if name is None:
        return None
    encoder: nn.Module = network.encoder  # type: ignore[assignment]
    state = encoder.state_dict()
    if is_published(name):
        if model.encoder_bands is None:
            mapping = repeat_inputs(len(_PUBLISHED_BANDS), band_names)
            return _describe(name, None, len(state), len(state), mapping)
        with torch.random.fork_rng(devices=[]):
            stored = make_network(model, len(_PUBLISHED_BANDS), 1, pretrained=True).encoder.state_dict()  # type: ignore[union-attr]
        path, fingerprint = Path(name), None
    else:
        path = require_file(name, "file of encoder weights")
        stored = _read_state(path)
        with path.open("rb") as file:
            fingerprint = file_digest(file, "sha256").hexdigest()
    names_by_flat_name = {_flat_name(each): each for each in state}
    stored = _select_encoder(stored, list(names_by_flat_name))
    weights = {names_by_flat_name[key]: tensor for key, tensor in stored.items() if key in names_by_flat_name}
    mapping = _adapt_first_layer(weights, state, path, model, band_names)
    _check_fit(weights, state, stored, path)
    encoder.load_state_dict(state | weights)
    return _describe(name, fingerprint, len(weights), len(state), mapping)


def check_encoder_weights(network: nn.Module, model: Model, band_names: Sequence[str]) -> None:
    """Raise the errors of `load_encoder_weights`, whose arguments these are, without a download."""
    name = model.encoder_weights
    if name is None or not is_published(name):
        load_encoder_weights(network, model, band_names)
        return
    check_published(model)
    if model.encoder_bands is not None:
        _map_inputs(len(_PUBLISHED_BANDS), Path(name), model.encoder_bands, band_names)


def _describe(source: str, fingerprint: str | None, number: int, total: int, mapping: BandMapping) -> InitialWeights:
    taken = f"taken: {describe_number(number, total)} of the encoder"
    return InitialWeights(source, fingerprint, (taken, f"first layer: bands {mapping.summary}"))


def describe_number(number: int, total: int) -> str:
    """Return "all 120 tensors" or "118 of 120 tensors"."""
    return f"all {total} tensors" if number == total else f"{number} of {total} tensors"


def find_axes(state: Mapping[str, Tensor], larger: Mapping[str, Tensor]) -> dict[str, int]:
    """Return {name: axis} of the weights that differ along one axis between two networks.

    Parameters
    ----------
    state, larger
        State dicts of networks that differ in the number of bands (or of channels) only.
    """
    axes = {}
    for name, tensor in state.items():
        differing = [
            axis for axis, sizes in enumerate(zip(tensor.shape, larger[name].shape, strict=True)) if len({*sizes}) > 1
        ]
        if len(differing) == 1:
            axes[name] = differing[0]
    return axes


def _adapt_first_layer(
    weights: dict[str, Tensor], state: Mapping[str, Tensor], path: Path, model: Model, band_names: Sequence[str]
) -> BandMapping:
    """Replace the weights of the first layer by those for the bands of the imagery; return how."""
    bands = len(band_names)
    if model.encoder_bands is None and all(tensor.shape == state[name].shape for name, tensor in weights.items()):
        return match_order(bands, band_names)
    with torch.random.fork_rng(devices=[]):
        larger = make_network(model, bands + 1, 1, pretrained=False).encoder.state_dict()  # type: ignore[union-attr]
    axes = {name: axis for name, axis in find_axes(state, larger).items() if name in weights}
    # Space-to-depth stems have each band several times.
    sizes = {weights[name].shape[axis] * bands // state[name].shape[axis] for name, axis in axes.items()}
    inputs = sizes.pop() if len(sizes) == 1 else bands
    mapping = _map_inputs(inputs, path, model.encoder_bands, band_names)
    for name, axis in axes.items():
        if weights[name].shape[axis] % inputs == 0:
            weights[name] = mapping.apply(weights[name], axis)
    return mapping


def _map_inputs(inputs: int, path: Path, names: Sequence[str | int] | None, band_names: Sequence[str]) -> BandMapping:
    if names is None:
        repeated = repeat_inputs(inputs, band_names)
        if inputs == len(band_names):
            return repeated
        return replace(repeated, summary=f"{repeated.summary}; model.encoder_bands would match them by name")
    if len(names) != inputs:
        raise ModelFileError(
            f"{path}: has {inputs} input bands, model.encoder_bands names {len(names)}; name the bands that the "
            "weights were trained on, in their order"
        )
    mapping = match_names([str(name) for name in names], band_names)
    if mapping is None:
        raise RecipeError(
            f"model.encoder_bands: none of {', '.join(map(str, names))} is a band of the imagery "
            f"({', '.join(band_names)}); name the input bands of {path.name} as the imagery names its bands (a band "
            "without a name by its number)"
        )
    return mapping


def _check_fit(
    weights: Mapping[str, Tensor], state: Mapping[str, Tensor], stored: Mapping[str, Tensor], path: Path
) -> None:
    """Raise a ModelFileError if weights are not those of the encoder, all of them and finite."""
    if problem := describe_non_finite(weights):
        raise ModelFileError(f"{path}: holds {problem}; name another file in model.encoder_weights")
    missing = sorted(name for name in state if name not in weights and not name.endswith("num_batches_tracked"))
    misshapen = sorted(name for name in weights if weights[name].shape != state[name].shape)
    # The file may hold a classifier and deeper stages as well. Additional layers in a stage that the encoder has mean
    # that the file is of another encoder.
    stages = tuple({_flat_name(name.removeprefix("model.").split(".")[0]) + "_" for name in state})
    known = {_flat_name(name) for name in state}
    unknown = sorted(key for key in stored if key not in known and key.startswith(stages))
    for what, names in (("lacks", missing), ("has other shapes for", misshapen), ("has unknown", unknown)):
        if names:
            raise ModelFileError(
                f"{path}: does not fit the encoder: {what} {len(names)} of {len(state)} weights, first {names[0]}; "
                "name the encoder that the file was made from in model.encoder"
            )


def _flat_name(name: str) -> str:
    """Return a weight's name in the form that timm's files and smp's encoders (which wrap or flatten them) share."""
    return name.removeprefix("model.").replace(".", "_")


def _select_encoder(stored: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
    """Return the part of a state dict that is an encoder, by flat name without the prefix that its names have there.

    Parameters
    ----------
    stored
        As in the file: of an encoder, of a network that contains one, or of several.
    wanted
        Flat names of the encoder's weights.
    """
    flat = {_flat_name(name): tensor for name, tensor in stored.items()}
    best, most = dict(flat), 0
    for rename in (_keep, _name_numbered_stages):
        for prefix in _find_prefixes(flat, wanted, rename):
            part = {rename(key.removeprefix(prefix)): tensor for key, tensor in flat.items() if key.startswith(prefix)}
            number = len(part.keys() & set(wanted))
            if number > most:
                best, most = part, number
    return best


def _find_prefixes(flat: Iterable[str], wanted: Sequence[str], rename: Any) -> list[str]:
    """Return what may stand before the names of an encoder in a file, the most plausible first."""
    numbers = {stage: number for number, stage in _NUMBERED.items()} if rename is _name_numbered_stages else {}
    ends = set()
    for name in wanted:
        stage, _, rest = name.partition("_")
        if not numbers or stage in numbers:
            ends.add(f"{numbers.get(stage, stage)}_{rest}" if rest else name)
    prefixes = {
        key[: len(key) - len(end)]
        for key in flat
        for end in ends
        if key.endswith(end) and (len(key) == len(end) or key[-len(end) - 1] == "_")
    }
    return sorted(prefixes, key=lambda prefix: (bool(_COPIES.search(prefix)), len(prefix), prefix))


def _keep(name: str) -> str:
    return name


def _name_numbered_stages(name: str) -> str:
    """Return the flat name in torchvision's ResNet of a weight of an `nn.Sequential` of its children."""
    stage, _, rest = name.partition("_")
    return f"{_NUMBERED[stage]}_{rest}" if stage in _NUMBERED else name


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a file of weights or in a checkpoint, whatever else that holds."""
    try:
        stored: Any = load_file(path) if path.suffix.lower() == ".safetensors" else _load_checkpoint(path)
    except Exception as error:  # torch raises many types for a file that is not a state dict
        raise ModelFileError(f"{path}: not a file of weights (.safetensors, .pth): {first_line(error)}") from error
    while isinstance(stored, dict):
        inner = next((stored[key] for key in _WRAPPERS if isinstance(stored.get(key), dict)), None)
        if inner is None:
            break
        stored = inner
    if not isinstance(stored, dict):
        raise ModelFileError(f"{path}: holds a {type(stored).__name__}, not a table of weights (a state dict)")
    return {str(name): tensor for name, tensor in stored.items() if isinstance(tensor, Tensor)}


class _Placeholder:
    """Stands for an object of a checkpoint that is not a tensor: arguments, callbacks. Nothing of it is used."""

    def __new__(cls, *_: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _load_checkpoint(path: Path) -> Any:
    """Load a .pth file without running code of it.

    torch's weights-only loading refuses a checkpoint that also holds other objects (DINO's arguments, Lightning's
    callbacks). Placeholders stand for these, so it needs to know neither them nor their packages.
    """
    placeholders: list[Any] = []
    if _is_zip(path):
        # Lightning's hyperparameters are a kind of dict, which is filled item by item.
        placeholders += [
            (dict if name.endswith("AttributeDict") else _Placeholder, name)
            for name in torch.serialization.get_unsafe_globals_in_checkpoint(path)
        ]
    with torch.serialization.safe_globals(placeholders):
        return torch.load(path, map_location="cpu", weights_only=True)


def _is_zip(path: Path) -> bool:
    """Return whether a file is in torch's format since 1.6; older ones are read, but without placeholders."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
