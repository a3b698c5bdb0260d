"""Segmenter: a network with its normalisation and task inside, and the one file that it is kept in."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segkit.errors import DataError, ModelFileError
from segkit.io.files import staged
from segkit.io.raster import PathLike
from segkit.io.remote import public
from segkit.io.scene import Scene
from segkit.models.calibration import Calibration
from segkit.models.model_file import HEADER_KEY, Header, read_header
from segkit.models.network import first_line, make_network, not_finite
from segkit.models.prepare import Autocast, fold_batch_norm
from segkit.models.receptive_field import measure_receptive_field, try_forward
from segkit.recipe.schema import Recipe
from segkit.runtime.memory import keep_freed

keep_freed()  # before weights are made or read, for all that a network does here


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
        self.network = make_network(recipe.model, self.bands, self.task.channels, pretrained=pretrained)
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
            self._reach = measure_receptive_field(self.network, self.stride, self.bands)
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
        prepared.network = fold_batch_norm(prepared.network, samples).to(memory_format=torch.channels_last)
        if precision == "bf16":
            # Weights are bf16, too, since autocast converts them in each pass; unless an operation wants float32.
            network = copy.deepcopy(prepared.network).to(device, torch.bfloat16)
            pure = try_forward(network, [sample.to(device, torch.bfloat16) for sample in samples]) is not None
            prepared.network = network if pure else Autocast(prepared.network)
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
            save_file(weights, part, metadata={HEADER_KEY: json.dumps(asdict(self.header))})
            part.chmod(0o644)  # safetensors makes files that nobody else may read
            read_header(part)


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
        raise ModelFileError(f"{path}: this segkit cannot use its header: {first_line(error)}") from error
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


def _reflected(size: int, wanted: int, device: torch.device) -> Tensor:
    """Return which of `size` pixels lie along an axis of `wanted` that goes on by reflection, as often as it must."""
    steps = torch.arange(wanted, device=device) % max(1, 2 * (size - 1))
    return torch.minimum(steps, 2 * (size - 1) - steps)
