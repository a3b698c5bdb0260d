"""Segmenter: a network with its normalisation, calibration and task, saved in one file."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segkit.errors import ModelFileError, first_line
from segkit.io.files import as_output_error, atomic_write
from segkit.io.paths import PathLike
from segkit.io.remote import redact
from segkit.models.calibration import Calibration
from segkit.models.classical.classifier import PixelClassifier
from segkit.models.initial_weights import InitialWeights
from segkit.models.model_base import ModelBase, check_normalization, deviations
from segkit.models.model_file import HEADER_KEY, Header, read_header, read_shapes
from segkit.models.network import describe_non_finite, make_network, network_shapes
from segkit.models.output_classes import OutputClasses
from segkit.models.prepare import Autocast, fold_batch_norm
from segkit.models.receptive_field import measure_receptive_field, try_forward
from segkit.models.weights import load_encoder_weights
from segkit.recipe.schema import Model, Recipe
from segkit.runtime.version import VERSION
from segkit.task import Task

_MIN_PROBABILITY = 1e-7  # of a mean of two; the logit of 0 would be infinite


class Segmenter(ModelBase, nn.Module):
    """Network, or classical learner in its place, that maps pixels in the units of the files to logits.

    Parameters
    ----------
    recipe
        Defines task and network: a recipe or its file.
    mean, std
        One per input band. A band whose standard deviation is below the float32 resolution of its mean is constant; its
        standard deviation is set to 1.
    band_names
        One per input band.
    pretrained
        Whether to load `model.encoder_weights`; not needed if a state dict is loaded afterwards.

    Raises
    ------
    RecipeError
        The architecture, encoder or an option is unknown, or the pretrained weights cannot be loaded.
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
        recipe: Recipe | PathLike,
        mean: Sequence[float],
        std: Sequence[float],
        band_names: Sequence[str],
        *,
        pretrained: bool = True,
    ) -> None:
        nn.Module.__init__(self)
        recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
        ModelBase.__init__(self, recipe, mean, std, band_names)
        self.output_classes: OutputClasses | None = None
        self._trained_recipe = recipe  # with the task of the network, if `output_classes` has another one
        self._stored_recipe: tuple[Recipe | None, dict[str, Any]] = None, {}  # as loaded, and as it is in the file
        self._receptive_field: int | Literal["global"] | None = None
        self.calibration: Calibration | None = None
        for name, value in (("_scale", 1.0), ("_shift", 0.0)):
            self.register_buffer(name, torch.full((1, self.task.channels, 1, 1), value), persistent=False)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer(
            "std", torch.tensor(deviations(mean, std), dtype=torch.float32).view(1, -1, 1, 1), persistent=False
        )
        self.network: nn.Module
        self.initial_weights: InitialWeights | None = None
        if recipe.model.is_classical:
            self.network, self.stride = PixelClassifier(recipe, self.mean, self.std, self.band_names), 1
        else:
            self.network = make_network(recipe.model, self.bands, self.task.channels, pretrained=pretrained)
            self.stride = self.network.encoder.output_stride  # type: ignore[assignment, union-attr]
            if pretrained:
                self.initial_weights = load_encoder_weights(self.network, recipe.model, self.band_names)
        self.pixel_branch: nn.Module | None = None
        if recipe.model.pixel_branch:
            of_pixels = recipe.model_copy(update={"model": Model(architecture="lda")})
            self.pixel_branch = PixelClassifier(of_pixels, self.mean, self.std, self.band_names)
        self._input_dtype: torch.dtype | None = None  # of the network's input; None: float32
        self._folded = False  # whether batch normalisation is folded, as for prediction

    def forward(self, pixels: Tensor, valid: Tensor) -> Tensor:
        """Return logits.

        Parameters
        ----------
        pixels
            float32 (N, C, H, W) in the units of the files; NaN where a band has no data.
        valid
            bool (N, H, W).

        Returns
        -------
        float32 (N, channels, H, W), for any H and W. Sizes that the network does not accept (`_padded_size`) are padded
        by reflection; the logits are cropped. In evaluation mode they are those of the mean of the probabilities of
        network and pixel branch, if there is one.
        """
        height, width = pixels.shape[-2:]
        # In a list, from which it is taken, so that it can be freed while the network runs.
        normalized = [self._normalize(pixels, valid)]
        of_branch: Tensor | None = None
        if self.is_classical:
            logits: Tensor = self.network(normalized[0], valid)
        else:
            if self.pixel_branch is not None and not self.training:
                of_branch = self.pixel_branch(normalized[0], valid)
            logits = self.network(self._to_network_input(normalized.pop()))
        logits = logits[..., :height, :width].float()
        if of_branch is not None:
            logits = self._average(logits, of_branch)
        if self.calibration is not None:
            logits = torch.addcmul(self._shift, logits, self._scale)
        return logits if self.output_classes is None else self.output_classes.merge(logits)

    def _average(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the logits of the mean of the probabilities that two tensors of logits give."""
        task = self.network_task
        mean = task.probabilities(one).add_(task.probabilities(other)).div_(2)
        return task.logits(mean.clamp_(_MIN_PROBABILITY, 1 - _MIN_PROBABILITY))

    @property
    def network_task(self) -> Task:
        """The task that the network was trained on; `task` has other classes if they were changed."""
        return self.task if self.output_classes is None else self._trained_recipe.task

    @property
    def is_classical(self) -> bool:
        """Whether a classical learner is in the place of the network; it always computes in fp32."""
        return isinstance(self.network, PixelClassifier)

    @property
    def n_features(self) -> int:
        """Number of features of a pixel, of a classical learner."""
        assert isinstance(self.network, PixelClassifier)
        return self.network.features.count

    def pixel_features(self, pixels: Tensor, valid: Tensor) -> Tensor:
        """Return the features from which a classical learner decides, float32 (N, F, H, W); arguments as `forward`."""
        assert isinstance(self.network, PixelClassifier)
        features: Tensor = self.network.features(self._normalize(pixels, valid), valid)
        return features

    @torch.inference_mode()
    def embed(self, pixels: Tensor, valid: Tensor) -> Tensor:
        """Return the mean over each window of the deepest features of the encoder, float32 (N, F).

        Of networks alone; arguments as `forward`.
        """
        features: list[Tensor] = self.network.encoder(  # type: ignore[operator]
            self._to_network_input(self._normalize(pixels, valid))
        )
        return features[-1].float().mean(dim=(2, 3))

    def _normalize(self, pixels: Tensor, valid: Tensor) -> Tensor:
        """Normalise, and set pixels without data to 0 (the mean)."""
        return (pixels - self.mean).div_(self.std).nan_to_num_(0.0, 0.0, 0.0).mul_(valid[:, None])

    def _to_network_input(self, pixels: Tensor) -> Tensor:
        """Pad normalised pixels to `_padded_size`, and convert them to the type and layout of the network's weights."""
        height, width = pixels.shape[-2:]
        rows, columns = self._padded_size(height, width)
        # A graph that is exported (`segkit.exporting`) takes any size, so it always pads.
        if torch.compiler.is_compiling() or (rows, columns) != (height, width):
            pixels = pixels[
                ...,
                _reflect_indices(height, rows, pixels.device)[:, None],
                _reflect_indices(width, columns, pixels.device),
            ]
        return pixels.to(dtype=self._input_dtype, memory_format=torch.channels_last)

    def _padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of the network's input for a window: multiples of the stride.

        A window of one stride by several is made two strides wide. Otherwise its deepest feature map would be one
        column wide, where torch's strided bf16 convolutions are wrong on CPUs with AMX
        (docs/torch-bf16-convolution.md). Rows are treated like columns, so that a window and its transpose get the
        same padding.
        """
        # Without branches, and without division of negative numbers, which ONNX rounds up: this is exported, too.
        rows, columns = ((side + self.stride - 1) // self.stride for side in (height, width))
        least = torch.sym_min(2, torch.sym_max(rows, columns))
        padded = (torch.sym_max(side, least) * self.stride for side in (rows, columns))
        return cast("tuple[int, int]", tuple(padded))

    @property
    def receptive_field(self) -> int | None:
        """Radius in pixels around a pixel that its logits depend on; measured once and stored in the model file.

        Logits farther than this from all edges of the window are the same in a larger window. None if it is global:
        the network pools or attends over its whole window, or scales with it.
        """
        if isinstance(self.network, PixelClassifier):
            return self.network.receptive_field
        if self._receptive_field is None:
            self._receptive_field = measure_receptive_field(self.network, self.stride, self.bands)
        return self._receptive_field if isinstance(self._receptive_field, int) else None

    @property
    def fixed_window_size(self) -> int | None:
        """Window size in pixels that a network with a global receptive field was trained with; None for others."""
        return self.recipe.train.tile_size if self.receptive_field is None else None

    def _copied(self) -> Segmenter:
        """Return a copy that predicts on the CPU in float32."""
        return copy.deepcopy(self).cpu().float().eval()

    @torch.no_grad()
    def optimized_for_inference(self, device: torch.device, precision: str) -> Segmenter:
        """Return a faster copy for prediction, with the same results up to rounding; this segmenter does not change.

        A copy of an fp32 copy takes less time, because its batch normalisation is folded already; on the same device it
        shares the network with it.

        Parameters
        ----------
        device
            Device of the copy.
        precision
            "fp32", or "bf16": the network computes in bf16, normalisation and calibration in float32. Classical
            learners compute in fp32.
        """
        if self._folded and precision == "fp32" and self.mean.device == device:
            shared = (self.network, self.training_pixels)  # which prediction only reads
            return copy.deepcopy(self, {id(one): one for one in shared})
        prepared = self._copied()
        if self.is_classical:
            return prepared.to(device)
        # All architectures of smp accept 128 pixels; transformers of a fixed size only that size.
        sides = [-(-side // self.stride) * self.stride for side in (128, self.recipe.train.tile_size)]
        noise = torch.Generator().manual_seed(0)
        samples = [torch.randn(1, self.bands, side, side, generator=noise) for side in sides]
        if not self._folded:
            prepared = prepared if fold_batch_norm(prepared.network, samples) else self._copied()
            prepared.network.to(memory_format=torch.channels_last)
            prepared._folded = True
        if precision == "bf16":
            # Weights are bf16 as well, because autocast would convert them in each pass; except if an operation needs
            # float32.
            network = copy.deepcopy(prepared.network).to(device, torch.bfloat16)
            pure = try_forward(network, [sample.to(device, torch.bfloat16) for sample in samples]) is not None
            prepared.network = network if pure else Autocast(prepared.network)
            prepared._input_dtype = torch.bfloat16 if pure else None
        return prepared.to(device)

    def set_thresholds(self, thresholds: Sequence[float] | None) -> None:
        """Set one threshold per class, here and in the recipe of the model file; None changes nothing."""
        if thresholds is not None:
            self.set_task(self.task.with_thresholds(thresholds))

    def set_task(self, task: Task) -> None:
        """Set a task that differs in thresholds only, here and in the model file."""
        self.task = task
        self.recipe = self.recipe.model_copy(update={"task": task})
        if self.output_classes is None:
            self._trained_recipe = self.recipe
        else:
            self.output_classes = replace(self.output_classes, task=task)

    def set_output_classes(self, classes: OutputClasses | None) -> None:
        """Set other classes than those of the network, here and in the model file; None changes nothing."""
        if classes is not None:
            self.output_classes, self.task = classes, classes.task
            self.recipe = self._trained_recipe.model_copy(update={"task": self.task})

    def set_calibration(self, calibration: Calibration | None) -> None:
        """Set scale and shift of the logits, here and in the model file; None changes nothing."""
        if calibration is not None:
            self.calibration = calibration
            for buffer, values in ((self._scale, calibration.scale), (self._shift, calibration.shift)):
                buffer.copy_(torch.tensor(values).view(1, -1, 1, 1))

    def fingerprint(self) -> str:
        """Return a hash of recipe, normalisation, weights and calibration."""
        # The recipe as in the file, so that a key that a later segkit adds or renames does not change the hash.
        loaded, stored = self._stored_recipe
        recipe = stored if loaded is self._trained_recipe else redact(self._trained_recipe.to_dict())
        hashed: list[Any] = [recipe, self.mean.flatten().tolist(), self.std.flatten().tolist()]
        hashed += [] if self.calibration is None else [asdict(self.calibration)]
        hashed += [] if self.output_classes is None else [self.output_classes.to_json()]
        digest = sha256(json.dumps(hashed).encode())
        for name, tensor in self.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def header(self) -> Header:
        """The header of the model file."""
        return Header(
            recipe=redact(self._trained_recipe.to_dict()),
            mean=tuple(self.mean.flatten().tolist()),
            std=tuple(self.std.flatten().tolist()),
            band_names=self.band_names,
            metrics=self.metrics,
            versions={"segkit": VERSION}
            | {name: version(name) for name in ("torch", "segmentation-models-pytorch", "timm")},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            receptive_field=self._receptive_field,
            calibration=self.calibration,
            training_pixels=self.training_pixels,
            training_scenes=self.training_scenes,
            initial_weights=self.initial_weights,
            output_classes=self.output_classes,
        )

    def save(self, path: PathLike) -> None:
        """Write the model file; an existing file is replaced only by a complete one.

        Raises
        ------
        ModelFileError
            A weight is not a finite number.
        """
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        if problem := describe_non_finite(weights):
            raise ModelFileError(f"{path}: is not written: it would hold {problem}; train the model again")
        with atomic_write(path) as part, as_output_error(part, SafetensorError):
            save_file(weights, part, metadata={HEADER_KEY: json.dumps(asdict(self.header))})
            part.chmod(0o644)  # safetensors makes files that only their owner can read
            read_header(part)


def load(path: PathLike, device: str | torch.device = "cpu") -> Segmenter:
    """Load a model file in evaluation mode.

    Raises
    ------
    MissingFileError, ModelFileError
        The file is missing, damaged or not a segkit model.
    """
    header = read_header(path)
    try:
        recipe = Recipe.from_dict(header.recipe)
        check_normalization(header.mean, header.std, header.band_names)
        if not _may_fit(Path(path), recipe, len(header.mean)):
            raise ModelFileError(_describe_misfit(path))
        segmenter = Segmenter(recipe, header.mean, header.std, header.band_names, pretrained=False)
    except ModelFileError:
        raise
    except ValueError as error:
        raise ModelFileError(f"{path}: this segkit cannot use its header: {first_line(error)}") from error
    weights = load_file(path)
    if problem := describe_non_finite(weights):
        raise ModelFileError(f"{path}: holds {problem}; train the model again")
    try:
        segmenter.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelFileError(_describe_misfit(path)) from error
    segmenter.metrics = header.metrics
    segmenter._receptive_field = header.receptive_field
    if header.calibration is not None and len(header.calibration.scale) != recipe.task.channels:
        raise ModelFileError(f"{path}: its calibration is of another number of channels; train the model again")
    segmenter.set_calibration(header.calibration)
    segmenter.training_pixels = header.training_pixels
    segmenter.training_scenes = header.training_scenes
    segmenter.initial_weights = header.initial_weights
    segmenter.set_output_classes(header.output_classes)
    segmenter.path = Path(path)
    segmenter._stored_recipe = recipe, header.recipe
    return segmenter.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _may_fit(path: Path, recipe: Recipe, bands: int) -> bool:
    """Return whether the network of a model file has the shapes of its weights, before memory is taken for it."""
    if recipe.model.is_classical:
        return True
    planned = network_shapes(recipe.model.model_dump_json(), bands, recipe.task.channels) or {}
    return {f"network.{name}": shape for name, shape in planned.items()}.items() <= read_shapes(path).items()


def _describe_misfit(path: PathLike) -> str:
    return f"{path}: its weights do not fit its recipe, so the file was changed; train the model again"


def _reflect_indices(size: int, padded: int, device: torch.device) -> Tensor:
    """Return indices into an axis of `size` pixels that pad it to `padded` by repeated reflection, int64 (padded,)."""
    last = torch.full((1,), size - 1, device=device)
    steps = torch.arange(padded, device=device) % (2 * last).clamp(min=1)
    return torch.minimum(steps, 2 * last - steps)
