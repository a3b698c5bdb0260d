"""Segmenter: a network with its normalisation and task inside, and the one file that it is kept in."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from segkit.errors import ModelFileError, RecipeError
from segkit.files import existing, staged
from segkit.raster import PathLike, Scene
from segkit.recipe import Model, Recipe

_FORMAT = 1  # of the header; a reader refuses what is newer
_KEY = "segkit"  # the one entry of the safetensors metadata


@dataclass(frozen=True)
class Header:
    """What a model file says about itself; all but the weights.

    Parameters
    ----------
    recipe
        As `Recipe.to_dict` gives it: the task with its classes and thresholds, the bands, the network, the training.
    mean, std
        Of each input band over valid training pixels, in the files' own units.
    band_names
        Of the imagery it was trained on.
    metrics
        On the validation data, as in `metrics.json`; empty before the first evaluation.
    versions
        Of segkit and of the libraries that trained it.
    created
        UTC, ISO 8601.
    format
        Of this header.
    """

    recipe: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    band_names: tuple[str, ...]
    metrics: dict[str, Any]
    versions: dict[str, str]
    created: str
    format: int = _FORMAT


class Segmenter(nn.Module):
    """Pixels in their own units to logits.

    Parameters
    ----------
    recipe
        Names task and network.
    mean, std
        One per input band. A band that varies by less than float32 resolves about its mean is a constant one, whose
        standard deviation counts as 1.
    band_names
        Of the input bands.
    pretrained
        Whether `model.encoder_weights` are loaded; not where a state is loaded afterwards.

    Raises
    ------
    RecipeError
        The architecture, encoder or an option is not known, or the pretrained weights are not there.
    ModelFileError
        A local file of pretrained weights does not fit the encoder.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        recipe: Recipe,
        mean: Sequence[float],
        std: Sequence[float],
        band_names: Sequence[str],
        *,
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.task = recipe.task
        self.band_names = tuple(band_names)
        self.bands = len(mean)
        self.metrics: dict[str, Any] = {}
        self.path: Path | None = None
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        resolved = torch.finfo(torch.float32).eps
        scale = [own if own > resolved * abs(middle) else 1.0 for middle, own in zip(mean, std, strict=True)]
        self.register_buffer("std", torch.tensor(scale, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.network = _network(recipe.model, self.bands, self.task.channels, pretrained=pretrained)
        self.stride: int = self.network.encoder.output_stride  # type: ignore[assignment, union-attr]

    def forward(self, pixels: Tensor, valid: Tensor) -> Tensor:
        """Return logits.

        Parameters
        ----------
        pixels
            float32 (N, C, H, W) in the files' own units; NaN where a band holds no data.
        valid
            bool (N, H, W).

        Returns
        -------
        float32 (N, channels, H, W), for any H and W: sizes that the stride does not divide are padded and cut.
        """
        pixels = (pixels - self.mean) / self.std
        pixels = pixels.where(valid[:, None] & pixels.isfinite(), pixels.new_zeros(()))
        height, width = pixels.shape[-2:]
        below, right = -height % self.stride, -width % self.stride
        if below or right:
            pixels = functional.pad(pixels, (0, right, 0, below), mode="replicate")
        logits: Tensor = self.network(pixels.contiguous(memory_format=torch.channels_last))
        return logits[..., :height, :width].float()

    def scene(self, paths: PathLike | Sequence[PathLike]) -> Scene:
        """Describe a scene with the bands and the resampling that the model was trained with.

        Raises
        ------
        ModelFileError
            The scene does not have the model's bands.
        """
        data = self.recipe.data
        scene = Scene.of(paths, bands=data.bands, resample=data.resample)
        self.check_scene(scene)
        return scene

    def check_scene(self, scene: Scene) -> None:
        """Refuse a scene whose bands are not as many as the model's."""
        if len(scene.bands) != self.bands:
            raise ModelFileError(
                f"{scene.paths[0]}: has {len(scene.bands)} bands, the model {self.path or self.recipe.name} was "
                f"trained on {self.bands} ({', '.join(self.band_names)}); give a scene with these, in this order"
            )

    @property
    def header(self) -> Header:
        """What is written into the model file."""
        return Header(
            recipe=self.recipe.to_dict(),
            mean=tuple(self.mean.flatten().tolist()),
            std=tuple(self.std.flatten().tolist()),
            band_names=self.band_names,
            metrics=self.metrics,
            versions={name: version(name) for name in ("segkit", "torch", "segmentation-models-pytorch", "timm")},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def save(self, path: PathLike) -> None:
        """Write the model file; what was there before is replaced only by a complete file."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with staged(path) as part:
            save_file(weights, part, metadata={_KEY: json.dumps(asdict(self.header))})
            part.chmod(0o644)  # safetensors makes files that nobody else may read
            read_header(part)


def read_header(path: PathLike) -> Header:
    """Read what a model file says about itself, without its weights.

    Raises
    ------
    MissingFileError, ModelFileError
        The file is missing, damaged, or no segkit model.
    """
    file = existing(path, "model file")
    if file.is_dir():
        raise ModelFileError(f"{file} is a folder; name the model file in it (model.safetensors)")
    try:
        with safe_open(file, framework="pt") as stored:
            text = (stored.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{file}: not a model file (.safetensors), or damaged: {error}") from error
    if text is None:
        raise ModelFileError(
            f"{file}: a safetensors file, but not one that segkit train wrote: its header has no recipe"
        )
    try:
        fields = dict(json.loads(text))
        found = fields.get("format")
        if found == _FORMAT:
            return Header(**fields | {name: tuple(fields[name]) for name in ("mean", "std", "band_names")})
    except (ValueError, TypeError, KeyError) as error:
        raise ModelFileError(f"{file}: its header is damaged: {_first_line(error)}") from error
    raise ModelFileError(
        f"{file}: its header has format {found}, this segkit {version('segkit')} reads {_FORMAT}; update segkit"
    )


def load(path: PathLike, device: str | torch.device = "cpu") -> Segmenter:
    """Load a model file, ready to predict.

    Raises
    ------
    MissingFileError, ModelFileError
        The file is missing, damaged, or no segkit model.
    """
    header = read_header(path)
    try:
        recipe = Recipe.from_dict(header.recipe)
        segmenter = Segmenter(recipe, header.mean, header.std, header.band_names, pretrained=False)
    except ValueError as error:
        raise ModelFileError(f"{path}: this segkit cannot use its header: {_first_line(error)}") from error
    try:
        segmenter.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ModelFileError(f"{path}: its weights do not fit its recipe; was it edited?") from error
    segmenter.metrics = header.metrics
    segmenter.path = Path(path)
    return segmenter.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _network(model: Model, bands: int, channels: int, *, pretrained: bool) -> nn.Module:
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
        raise RecipeError(f"model: {what} cannot be built: {_first_line(error)}{hint}") from error
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
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # torch raises many kinds for a file that is no state dict
        raise ModelFileError(f"{path}: not a file of weights (.safetensors, .pth): {_first_line(error)}") from error
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
