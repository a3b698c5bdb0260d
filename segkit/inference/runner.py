"""Forward passes of the network: from tiles to probabilities; their memory, cost and precision."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segkit.errors import SegkitError, suggest
from segkit.inference.outputs import OutputRequest, compute_outputs, needs_model_entropies
from segkit.io.scene import Tile
from segkit.models.backends import prepare_model
from segkit.models.ensemble import members
from segkit.models.graph_model import GraphModel
from segkit.runtime.memory import retain_freed_memory

if TYPE_CHECKING:
    from segkit.models.ensemble import AnyModel
    from segkit.models.segmenter import Segmenter
    from segkit.task import Task

# Texts of errors if no memory is left: of torch's allocator on a CPU, of C++, of oneDNN, and of an Apple GPU.
_OUT_OF_MEMORY_TEXTS = (
    "DefaultCPUAllocator", "bad_alloc", "could not create a primitive", "could not create a memory",
    "MPS backend out of memory",
)  # fmt: skip
_COMPILER_MODULES = ("torch._dynamo", "torch._inductor")  # modules of the errors of torch.compile
# Side of the window with which memory is measured.
_MEASURED_SIDE_PX = 256
AMPLE_BYTES_PER_PIXEL = 4096  # more than almost any network needs for a pixel of a window


class OutOfMemoryError(SegkitError):
    """A single window does not fit into the memory of the device."""


class CompilationError(SegkitError):
    """The network cannot be compiled for the device."""


class NonFiniteLogitsError(SegkitError):
    """The network gives NaN or infinite logits for a window, so no class can be decided."""


class Runner:
    """A model on a device; computes the probabilities of tiles.

    Parameters
    ----------
    model
        Not changed; a copy optimised for inference is used. Of an ensemble, the mean of the models' probabilities.
    device
        Where to compute.
    precision
        "fp32" or "bf16".
    tta
        Test-time augmentation: whether to average over the eight rotations and flips of the square.
    backend
        A key of `segkit.models.backends.BACKENDS`; by default that of the model.
    compiled
        Whether to compile the network for each size of tiles, which takes half a minute on two cores.
    model_entropies
        Whether to add channels after the probabilities: for each target, the mean of the models' entropies
        (`Task.entropy`). Each is the entropy of one model's probabilities, averaged over test-time augmentation.
    """

    def __init__(
        self,
        model: AnyModel,
        device: torch.device,
        precision: str,
        *,
        backend: str | None = None,
        tta: bool = False,
        compiled: bool = False,
        model_entropies: bool = False,
    ) -> None:
        retain_freed_memory()
        self.task = model.task
        self.channel_names: tuple[str, ...] = model.task.channel_names
        if model_entropies:
            self.channel_names += tuple(f"mean entropy of {name}" for name in model.task.band_names)
        self.device, self.precision = device, precision
        self.backend = backend or model.backend
        models = [prepare_model(one, device, precision, self.backend) for one in members(model)]
        for one in models if compiled else ():
            if one.is_classical:
                continue
            one.network = cast("nn.Module", torch.compile(one.network, dynamic=False, options={"freezing": True}))
        # By default CUDA rounds the inputs of convolutions to TF32, with ten bits as in fp16.
        self._tf32 = precision != "fp32"
        turns = [(quarters, mirrored) for mirrored in (False, True) for quarters in range(4)] if tta else [(0, False)]
        self._passes = [(one, *turn) for one in models for turn in turns]
        self._turns, self._model_entropies = len(turns), model_entropies
        self._max_batch: int | None = None  # tiles per batch, once memory was short

    @property
    def channels(self) -> int:
        """Number of channels of the result."""
        return len(self.channel_names)

    def __call__(self, tiles: Sequence[Tile]) -> Tensor:
        """Return the probabilities of tiles of the same size.

        If memory is short, the batch is halved, also for later calls.

        Returns
        -------
        float32 (N, `channels`, H, W) on the device. All values of a tile are NaN if one of its logits is NaN, infinite,
        or so large that the sum overflows float32; the caller should raise a `NonFiniteLogitsError`.

        Raises
        ------
        OutOfMemoryError
            A single tile does not fit into memory.
        CompilationError
            The network cannot be compiled.
        """
        done: list[Tensor] = []
        start = 0
        while start < len(tiles):
            part = tiles[start : start + (self._max_batch or len(tiles))]
            probabilities = self._try(part)
            if probabilities is not None:
                done.append(probabilities)
                start += len(part)
            elif len(part) > 1:
                self._max_batch = len(part) // 2
            else:
                height, width = part[0].valid.shape
                raise OutOfMemoryError(
                    f"a window of {height} x {width} pixels does not fit into the memory of the {self.device.type}"
                    + suggest("pass a smaller --tile", "compute on another device")
                )
        return done[0] if len(done) == 1 else torch.cat(done)

    def _try(self, tiles: Sequence[Tile]) -> Tensor | None:
        """Return None if memory is short; what was allocated is then freed."""
        try:
            return self._run(tiles)
        except (RuntimeError, MemoryError) as error:
            if any(kind.__module__.startswith(_COMPILER_MODULES) for kind in type(error).__mro__):
                raise CompilationError(
                    f"the network cannot be compiled for this {self.device.type} ({error})"
                ) from error
            if not _is_out_of_memory(error):
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()
        return None

    @torch.inference_mode()
    def _run(self, tiles: Sequence[Tile]) -> Tensor:
        pixels = self._upload([tile.pixels for tile in tiles], torch.float32)
        valid = self._upload([tile.valid for tile in tiles], torch.bool)
        cuda = self.device.type == "cuda"
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=self._tf32) if cuda else nullcontext():
            entropies = _MeanEntropy(self.task, self._turns) if self._model_entropies else None
            total = self._predict_once(*self._passes[0], pixels, valid)
            if entropies is not None:
                entropies.add(total)
            for one in self._passes[1:]:
                probabilities = self._predict_once(*one, pixels, valid)
                if entropies is not None:
                    entropies.add(probabilities)
                total += probabilities
                del probabilities  # frees its memory before the next pass
        total = total if len(self._passes) == 1 else total.div_(len(self._passes))
        return total if entropies is None else torch.cat([total, entropies.mean()], dim=1)

    def _predict_once(self, model: Segmenter, quarters: int, mirrored: bool, pixels: Tensor, valid: Tensor) -> Tensor:
        """Flip and rotate the input, and rotate and flip the probabilities back."""
        if mirrored:
            pixels, valid = pixels.flip(-1), valid.flip(-1)
        turned = _rotate(pixels, quarters), _rotate(valid, quarters)
        found = model.probabilities(*turned) if isinstance(model, GraphModel) else model(*turned)
        finite = found.sum(dim=(1, 2, 3)).isfinite()  # faster than testing each
        probabilities = found if isinstance(model, GraphModel) else self.task.probabilities(found)
        # Testing on the host whether this is needed would wait for a GPU.
        if finite.device.type != "cpu" or not finite.all():
            probabilities.masked_fill_(~finite[:, None, None, None], torch.nan)
        probabilities = _rotate(probabilities, -quarters)
        return probabilities.flip(-1) if mirrored else probabilities

    def _upload(self, arrays: Sequence[NDArray[Any]], dtype: torch.dtype) -> Tensor:
        """Stack arrays on the device; copies to a GPU run asynchronously."""
        cuda = self.device.type == "cuda"
        if len(arrays) == 1 and not cuda:
            return torch.from_numpy(np.require(arrays[0], requirements=["C", "W"]))[None]
        stacked = torch.empty((len(arrays), *arrays[0].shape), dtype=dtype, pin_memory=cuda)
        np.stack(arrays, out=stacked.numpy())
        return stacked.to(self.device, non_blocking=cuda)


class _MeanEntropy:
    """The mean of the entropies of models; the probabilities of a model are the mean of a number of passes."""

    def __init__(self, task: Task, passes_per_model: int) -> None:
        self._task, self._passes_per_model = task, passes_per_model
        self._passes = self._models = 0
        self._probabilities: Tensor | None = None
        self._sum: Tensor | None = None

    def add(self, probabilities: Tensor) -> None:
        """Add the probabilities (N, C, H, W) of the next pass, which are not changed; passes of a model in sequence."""
        self._passes += 1
        if self._passes_per_model > 1:
            so_far = self._probabilities
            probabilities = probabilities.clone() if so_far is None else so_far.add_(probabilities)
        self._probabilities = probabilities
        if self._passes == self._passes_per_model:
            entropy = self._task.entropy(probabilities if self._passes == 1 else probabilities / self._passes)
            self._sum = entropy if self._sum is None else self._sum.add_(entropy)
            self._models, self._passes, self._probabilities = self._models + 1, 0, None

    def mean(self) -> Tensor:
        """Return the mean over the models, float32 (N, T, H, W)."""
        assert self._sum is not None
        return self._sum / self._models


def _rotate(array: Tensor, quarters: int) -> Tensor:
    return array.rot90(quarters, (-2, -1)) if quarters else array  # rot90 by 0 would copy


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)


def precision_agreement(
    model: AnyModel,
    device: torch.device,
    tiles: Iterable[Tile],
    precision: str = "bf16",
    backend: str | None = None,
) -> float | None:
    """Return the share of valid pixels with the same class as in fp32, in all targets; None if there are none.

    Tiles with NaN or infinite numbers in one of both count as different.

    Parameters
    ----------
    precision, backend
        What is compared with fp32 of the model's own backend.
    """
    fp32, bf16 = Runner(model, device, "fp32"), Runner(model, device, precision, backend=backend)
    equal = valid = 0
    for tile in tiles:
        exact, rounded = fp32([tile]), bf16([tile])
        same = (model.task.decide(exact) == model.task.decide(rounded)).all(dim=1)[0]
        same &= (exact + rounded).isfinite().all(dim=1)[0]
        equal += int(same.cpu().numpy()[tile.valid].sum())
        valid += int(tile.valid.sum())
    return equal / valid if valid else None


def time_forward(runner: Runner, tile: Tile) -> float:
    """Return the seconds of a forward pass for a tile: the shorter of two, after a first one that warms up."""
    found = []
    for _ in range(3):
        started = time.perf_counter()
        runner([tile]).cpu()
        found.append(time.perf_counter() - started)
    return min(found[1:])


def bytes_per_pixel(
    model: AnyModel, precision: str, outputs: Sequence[OutputRequest] = (), backend: str = "torch"
) -> float:
    """Return the peak memory of a window per pixel, in bytes, without the weights.

    It is that of the forward pass, or of the raster outputs that are computed from its result, whichever is more,
    measured on the CPU without what single operations allocate internally.
    """
    if model.backend != "torch":
        return AMPLE_BYTES_PER_PIXEL  # of other memory only the machine knows
    precision = precision if backend == "torch" else "fp32"  # other backends need about as much
    meter = _MemoryMeter()
    peak = _measure_per_pixel(model, precision, meter, lambda: meter.peak, outputs)
    # Pixels and mask of the tile were allocated before, and a float32 number for each output from its pixels.
    return peak + 4 * model.bands + 1 + 4 * sum(one.output.from_pixels for one in outputs)


def operations_per_pixel(model: AnyModel) -> float:
    """Return the multiply-adds of a forward pass per pixel of a window, measured on the CPU."""
    from torch.utils.flop_counter import FlopCounterMode  # here, as it imports Triton

    counter = FlopCounterMode(display=False)
    return _measure_per_pixel(model, "fp32", counter, counter.get_total_flops) / 2


def _measure_per_pixel(
    model: AnyModel,
    precision: str,
    meter: AbstractContextManager[Any],
    result: Callable[[], int],
    outputs: Sequence[OutputRequest] = (),
) -> float:
    """Run one forward pass on the CPU inside `meter`, compute outputs of it, and return `result()` per pixel."""
    side = model.fixed_window_size or _MEASURED_SIDE_PX
    runner = Runner(model, torch.device("cpu"), precision, model_entropies=needs_model_entropies(outputs))
    tile = Tile(np.zeros((model.bands, side, side), dtype=np.float32), np.ones((side, side), dtype=bool))
    with meter:
        probabilities = runner([tile])
        if outputs:
            compute_outputs(runner.task, probabilities[0], outputs)
    return result() / side**2


class _MemoryMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the bytes of all tensors that exist; `peak` is the maximum."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {storage._cdata for storage in _storages((args, kwargs))}  # results may be views or in place
        outputs = func(*args, **(kwargs or {}))
        for storage in _storages(outputs):
            if storage._cdata not in inputs:
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return outputs

    def _add(self, size: int) -> None:
        self._now += size
        self.peak = max(self.peak, self._now)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has its requirements: a C++ compiler for a CPU, Triton for a GPU."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is not None
