"""Segmenter: a network with its normalisation and task inside, and the one file that it is kept in."""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from segkit.errors import DataError, ModelFileError, RecipeError
from segkit.io.files import existing, staged
from segkit.io.raster import PathLike, Scene
from segkit.io.remote import public
from segkit.models.calibration import Calibration
from segkit.recipe.schema import Model, Recipe
from segkit.runtime.memory import keep_freed

_FORMAT = 1  # of the header; a reader refuses what is newer
_KEY = "segkit"  # the one entry of the safetensors metadata
_GLOBAL: Literal["global"] = "global"  # the reach of a network that looks at all of its window
# What a network raises for a size that it does not take.
_REFUSALS = (RuntimeError, AssertionError, ValueError)
# Two float32 runs of one network differ by less than this share of the largest logit: by 1e-6 to 2e-5, where one that
# computes something else differs by 2e-4 and more.
_ROUNDING = 1e-4
# Lengths of the strips on which the reach is measured; half of the last one is the largest reach that is found.
_STRIPS = (2048, 8192)

keep_freed()  # before weights are made or read, for all that a network does here


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
    reach
        As `Segmenter.reach`, "global" where that is None; None where it was not measured.
    calibration
        What the network's logits are scaled and shifted by; None where they are not.
    """

    recipe: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    band_names: tuple[str, ...]
    metrics: dict[str, Any]
    versions: dict[str, str]
    created: str
    format: int = _FORMAT
    reach: int | Literal["global"] | None = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be a reach."""
        if not (self.reach in (None, _GLOBAL) or (isinstance(self.reach, int) and self.reach >= 0)):
            raise ValueError(f"reach is {self.reach!r}, not a number of pixels or {_GLOBAL!r}")


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
    DataError
        The mean or standard deviation of a band is not a finite number.
    """

    mean: Tensor
    std: Tensor
    _scale: Tensor
    _shift: Tensor

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
        for what, values in (("mean", mean), ("standard deviation", std)):
            for band, value in zip(self.band_names, values, strict=False):
                if not math.isfinite(value):
                    raise DataError(f"the {what} of band {band} is {value}, which no pixel can be normalised with")
        self.metrics: dict[str, Any] = {}
        self.path: Path | None = None
        self._reach: int | Literal["global"] | None = None
        self.calibration: Calibration | None = None
        for name, value in (("_scale", 1.0), ("_shift", 0.0)):
            self.register_buffer(name, torch.full((1, self.task.channels, 1, 1), value), persistent=False)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        resolved = torch.finfo(torch.float32).eps
        scale = [own if own > resolved * abs(middle) else 1.0 for middle, own in zip(mean, std, strict=True)]
        self.register_buffer("std", torch.tensor(scale, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.network = _network(recipe.model, self.bands, self.task.channels, pretrained=pretrained)
        self._takes: torch.dtype | None = None  # what the network is given, if not its own kind
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
        float32 (N, channels, H, W), for any H and W: sizes that the network does not take as they are (`_sides`) are
        continued by their reflection, and what is more is cut off.
        """
        height, width = pixels.shape[-2:]
        # Nothing but what the network holds of its input is held while it runs.
        logits: Tensor = self.network(self._input(pixels, valid))
        logits = logits[..., :height, :width].float()
        return logits if self.calibration is None else torch.addcmul(self._shift, logits, self._scale)

    def _input(self, pixels: Tensor, valid: Tensor) -> Tensor:
        """Return what the network takes: normalised, 0 where nothing is known, of sides that are safe (`_sides`)."""
        pixels = (pixels - self.mean).div_(self.std).nan_to_num_(0.0, 0.0, 0.0).mul_(valid[:, None])
        height, width = pixels.shape[-2:]
        rows, columns = self._sides(height, width)
        if (rows, columns) != (height, width):
            pixels = pixels[
                ..., _reflected(height, rows, pixels.device)[:, None], _reflected(width, columns, pixels.device)
            ]
        return pixels.to(dtype=self._takes, memory_format=torch.channels_last)

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that the network is given for a window: the stride divides both.

        A window of one stride by several is made two strides wide. Its deepest feature map would be one column wide,
        and then torch's bf16 convolutions with a stride are wrong on CPUs with AMX (docs/torch-bf16-convolution.md).
        The other direction is treated alike, so that a window and the same window turned see as much.
        """
        rows, columns = (-(-side // self.stride) * self.stride for side in (height, width))
        if min(rows, columns) == self.stride < max(rows, columns):
            return max(rows, 2 * self.stride), max(columns, 2 * self.stride)
        return rows, columns

    @property
    def reach(self) -> int | None:
        """How far a pixel's influence on the logits goes, in pixels along an axis; measured once, kept in the file.

        An output that lies further than this from every end of its window is the same in a larger window. None where
        no distance suffices, because the network looks at all of its window: it pools or attends over it, or stretches
        with it.
        """
        if self._reach is None:
            self._reach = _measure_reach(self.network, self.stride, self.bands)
        return self._reach if isinstance(self._reach, int) else None

    @property
    def context(self) -> int | None:
        """Pixels along a side of the windows that a network without a finite reach was trained with, else None."""
        return self.recipe.train.tile_size if self.reach is None else None

    @torch.no_grad()
    def prepared(self, device: torch.device, precision: str) -> Segmenter:
        """Return a copy made for predicting, which says the same in less time; this segmenter stays as it is.

        Parameters
        ----------
        device
            Where the copy computes.
        precision
            "fp32", or "bf16": the network computes in bf16, all around it in float32.
        """
        prepared = copy.deepcopy(self).cpu().float().eval()
        # All architectures of smp take 128 pixels; transformers of a fixed size only the one that they were built for.
        sides = [-(-side // self.stride) * self.stride for side in (128, self.recipe.train.tile_size)]
        noise = torch.Generator().manual_seed(0)
        samples = [torch.randn(1, self.bands, side, side, generator=noise) for side in sides]
        prepared.network = _folded(prepared.network, samples).to(memory_format=torch.channels_last)
        if precision == "bf16":
            # Weights are bf16, too, since autocast converts them in each pass; unless an operation wants float32.
            network = copy.deepcopy(prepared.network).to(device, torch.bfloat16)
            pure = _small_run(network, [sample.to(device, torch.bfloat16) for sample in samples]) is not None
            prepared.network = network if pure else _Autocast(prepared.network)
            prepared._takes = torch.bfloat16 if pure else None
        return prepared.to(device)

    def scene(self, paths: PathLike | Sequence[PathLike], *, vrt: bool = False) -> Scene:
        """Describe a scene with the bands, the resampling and the scaling that the model was trained with.

        Parameters
        ----------
        paths, vrt
            As for `Scene.of`.

        Raises
        ------
        ModelFileError
            The scene does not have the model's bands.
        """
        data = self.recipe.data
        scene = Scene.of(paths, bands=data.bands, resample=data.resample, vrt=vrt, scaled=data.scaled)
        self.check_scene(scene)
        return scene

    def set_thresholds(self, thresholds: Sequence[float] | None) -> None:
        """Decide from now on with a threshold for each class, and say so in the model file; None changes nothing."""
        if thresholds is not None:
            self.task = self.task.with_thresholds(thresholds)
            self.recipe = self.recipe.model_copy(update={"task": self.task})

    def set_calibration(self, calibration: Calibration | None) -> None:
        """Scale and shift the network's logits from now on, and say so in the model file; None changes nothing."""
        if calibration is not None:
            self.calibration = calibration
            for buffer, values in ((self._scale, calibration.scale), (self._shift, calibration.shift)):
                buffer.copy_(torch.tensor(values).view(1, -1, 1, 1))

    def check_scene(self, scene: Scene) -> None:
        """Refuse a scene whose bands are not as many as the model's."""
        if len(scene.bands) != self.bands:
            raise ModelFileError(
                f"{scene.paths[0]}: has {len(scene.bands)} bands, the model {self.path or self.recipe.name} was "
                f"trained on {self.bands} ({', '.join(self.band_names)}); give a scene with these, in this order"
            )

    def fingerprint(self) -> str:
        """Return a hash of what decides the logits: recipe, normalisation, weights and calibration."""
        known: list[Any] = [public(self.recipe.to_dict()), self.mean.flatten().tolist(), self.std.flatten().tolist()]
        known += [] if self.calibration is None else [asdict(self.calibration)]
        digest = sha256(json.dumps(known).encode())
        for name, tensor in self.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def header(self) -> Header:
        """What is written into the model file."""
        return Header(
            recipe=public(self.recipe.to_dict()),
            mean=tuple(self.mean.flatten().tolist()),
            std=tuple(self.std.flatten().tolist()),
            band_names=self.band_names,
            metrics=self.metrics,
            versions={name: version(name) for name in ("segkit", "torch", "segmentation-models-pytorch", "timm")},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            reach=self._reach,
            calibration=self.calibration,
        )

    def save(self, path: PathLike) -> None:
        """Write the model file; what was there before is replaced only by a complete file.

        Raises
        ------
        ModelFileError
            A weight is not a finite number.
        """
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        if found := not_finite(weights):
            raise ModelFileError(f"{path}: is not written: it would hold {found}; train the model again")
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
            told: dict[str, Any] = {name: tuple(fields[name]) for name in ("mean", "std", "band_names")}
            if fields.get("calibration") is not None:
                told["calibration"] = Calibration(**{key: tuple(row) for key, row in fields["calibration"].items()})
            return Header(**fields | told)
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
    weights = load_file(path)
    if found := not_finite(weights):
        raise ModelFileError(f"{path}: holds {found}; train the model again")
    try:
        segmenter.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelFileError(f"{path}: its weights do not fit its recipe; was it edited?") from error
    segmenter.metrics = header.metrics
    segmenter._reach = header.reach
    segmenter.set_calibration(header.calibration)
    segmenter.path = Path(path)
    return segmenter.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


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


@torch.no_grad()
def _folded(network: nn.Module, samples: Sequence[Tensor]) -> nn.Module:
    """Return a copy with each BatchNorm2d folded into the Conv2d whose output it takes, or the network itself.

    Which one takes what is seen in a run. A run shows only what goes through modules, so the copy is compared with the
    network, and not used where something else took such an output, too.
    """
    from timm.layers.norm_act import BatchNormAct2d

    folded = copy.deepcopy(network)
    # What remains of a normalisation that is folded.
    rest: dict[nn.BatchNorm2d, nn.Module] = {}
    for module in folded.modules():
        if isinstance(module, BatchNormAct2d):
            rest[module] = nn.Sequential(module.drop, module.act)
        elif type(module) is nn.BatchNorm2d:
            rest[module] = nn.Identity()
    made: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}  # by identity, which holds while the tensor is kept
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    runs: Counter[nn.Module] = Counter()

    def convolved(conv: nn.Conv2d, _: Any, output: Tensor) -> None:
        runs[conv] += 1
        made[id(output)] = conv, output, output._version

    def normalising(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        runs[norm] += 1
        if id(inputs[0]) in made:
            conv, output, version = made[id(inputs[0])]
            if output._version == version:  # no activation changed it in place
                pairs.append((conv, norm))

    hooks = [module.register_forward_hook(convolved) for module in folded.modules() if isinstance(module, nn.Conv2d)]
    hooks += [norm.register_forward_pre_hook(normalising) for norm in rest]
    accepted = _small_run(folded, samples)
    for hook in hooks:
        hook.remove()
    if accepted is None:
        return network  # the prediction will tell what it does not take
    done: dict[nn.Module, nn.Module] = {}
    for conv, norm in pairs:
        if runs[conv] == runs[norm] == 1 and norm.running_mean is not None and norm.running_var is not None:
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            done[norm] = rest[norm]
    for parent in list(folded.modules()):
        for name, child in parent.named_children():
            if child in done:
                setattr(parent, name, done[child])
    sample, before = accepted
    return folded if _alike(folded(sample), before) else network


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two runs of a network differ only as float32 rounds."""
    return bool((one - other).abs().max() <= _ROUNDING * other.abs().max())


@torch.no_grad()
def _small_run(network: nn.Module, samples: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Return the first sample that a network takes, and what it makes of it."""
    for sample in samples:
        with suppress(*_REFUSALS):
            return sample, network(sample)
    return None


class _Autocast(nn.Module):
    """A network some of whose operations want float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, torch.bfloat16):
            return self.network(pixels)  # type: ignore[no-any-return]


def _reflected(size: int, wanted: int, device: torch.device) -> Tensor:
    """Return which of `size` pixels lie along an axis of `wanted` that goes on by reflection, as often as it must."""
    steps = torch.arange(wanted, device=device) % max(1, 2 * (size - 1))
    return torch.minimum(steps, 2 * (size - 1) - steps)


def _measure_reach(network: nn.Module, stride: int, bands: int) -> int | Literal["global"]:
    """Measure `Segmenter.reach` with NaN, which every operation passes on, whatever the weights.

    It is an upper bound, less than a stride above the true reach.
    """
    network = copy.deepcopy(network).cpu().float().eval()
    with torch.inference_mode(), suppress(*_REFUSALS):
        reaches = [_reach_along(network, stride, bands, turned=turned) for turned in (False, True)]
        finite = [reach for reach in reaches if reach is not None]
        return max(finite) if len(finite) == 2 else _GLOBAL
    return _GLOBAL  # it takes no strips


def _reach_along(network: nn.Module, stride: int, bands: int, *, turned: bool) -> int | None:
    """Measure the reach along a strip of some rows, or, turned, of columns; None where it has no end."""
    rows = max(2 * stride, 64)

    def run(strip: Tensor) -> Tensor:
        strip = strip.mT if turned else strip
        out: Tensor = network(strip.contiguous(memory_format=torch.channels_last))
        return out.mT if turned else out

    for length in _STRIPS:
        strip = torch.zeros(1, bands, rows, length)
        start = length // 2 // stride * stride
        strip[..., start : start + stride] = torch.nan
        met: list[int] = run(strip).isnan().any(dim=(0, 1, 2)).nonzero().flatten().tolist()
        if not met or met[0] == 0 or met[-1] == length - 1:
            continue
        reach = max(start + stride - 1 - met[0], met[-1] - start)
        # Some networks see so far only, but from other places in another window: the mesh of shifted windows, or an
        # interpolation whose corners are those of the window.
        margin = (reach // stride + 1) * stride
        strip = torch.randn(1, bands, rows, 4 * margin + 4 * stride, generator=torch.Generator().manual_seed(0))
        inner = slice(margin, margin + 2 * stride)
        part = strip[..., stride : stride + 2 * margin + 2 * stride]
        if _alike(run(part)[..., inner], run(strip)[..., stride:][..., inner]):
            return reach
    return None


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
