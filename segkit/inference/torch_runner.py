"""Torch computes the probabilities of tiles; memory and cost of its forward passes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segkit.inference.device import Device
from segkit.inference.outputs import OutputRequest, compute_outputs, needs_model_entropies
from segkit.inference.runner_base import CompilationError, Runner
from segkit.io.scene import Tile
from segkit.models.ensemble import torch_members

if TYPE_CHECKING:
    from segkit.models.ensemble import AnyModel
    from segkit.models.segmenter import Segmenter

# Texts of errors if no memory is left: of torch's allocator on a CPU, of C++, of oneDNN, and of an Apple GPU.
_OUT_OF_MEMORY_TEXTS = (
    "DefaultCPUAllocator", "bad_alloc", "could not create a primitive", "could not create a memory",
    "MPS backend out of memory",
)  # fmt: skip
_COMPILER_MODULES = ("torch._dynamo", "torch._inductor")  # modules of the errors of torch.compile
# Side of the window with which memory is measured.
_MEASURED_SIDE_PX = 256


class TorchRunner(Runner[Tensor]):
    """A `Runner` that computes with torch, on its devices.

    Parameters
    ----------
    model
        A model of torch; a copy optimised for inference is used.
    device, precision, tta, compiled, model_entropies
        See `open_runner`.
    """

    def __init__(
        self,
        model: AnyModel,
        device: Device,
        precision: str,
        *,
        tta: bool = False,
        compiled: bool = False,
        model_entropies: bool = False,
    ) -> None:
        on = torch.device(str(device))
        models = [one.optimized_for_inference(on, precision) for one in torch_members(model)]
        for one in models if compiled else ():
            if one.is_classical:
                continue
            one.network = cast("nn.Module", torch.compile(one.network, dynamic=False, options={"freezing": True}))
        super().__init__(model.task, on, precision, model.backend, models, tta=tta, model_entropies=model_entropies)
        self.device: torch.device = on
        # By default CUDA rounds the inputs of convolutions to TF32, with ten bits as in fp16.
        self._tf32 = precision != "fp32"

    @property
    def threads(self) -> int:
        """See `Runner.threads`."""
        return torch.get_num_threads()

    def from_numpy(self, array: NDArray[Any]) -> Tensor:
        """See `Runner.from_numpy`."""
        return torch.from_numpy(array).to(self.device)

    def _try(self, tiles: Sequence[Tile]) -> Tensor | None:
        """Return None if memory is short; what was allocated is then freed."""
        try:
            return self._run(tiles)
        except (RuntimeError, MemoryError) as error:
            if any(kind.__module__.startswith(_COMPILER_MODULES) for kind in type(error).__mro__):
                raise CompilationError(
                    f"the network cannot be compiled for this {self.device.type} ({error})"
                ) from error
            if not is_out_of_memory(error):
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()
        return None

    @torch.inference_mode()
    def _run(self, tiles: Sequence[Tile]) -> Tensor:
        cuda = self.device.type == "cuda"
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=self._tf32) if cuda else nullcontext():
            return super()._run(tiles)

    def _predict(self, model: Segmenter, pixels: Tensor, valid: Tensor) -> Tensor:
        logits = model(pixels, valid)
        finite = logits.sum(dim=(1, 2, 3)).isfinite()  # faster than testing each
        # Channel by channel, softmax takes half the time that it takes in the layout of the network.
        logits = logits.to(torch.float32, memory_format=torch.contiguous_format)
        probabilities = self.task.probabilities(logits)
        # Testing on the host whether this is needed would wait for a GPU.
        if finite.device.type != "cpu" or not finite.all():
            probabilities.masked_fill_(~finite[:, None, None, None], torch.nan)
        return probabilities

    def _upload(self, arrays: Sequence[NDArray[Any]]) -> Tensor:
        """Stack arrays on the device; copies to a GPU run asynchronously."""
        cuda = self.device.type == "cuda"
        if len(arrays) == 1 and not cuda:
            return torch.from_numpy(np.require(arrays[0], requirements=["C", "W"]))[None]
        kind = torch.bool if arrays[0].dtype == np.bool_ else torch.float32
        stacked = torch.empty((len(arrays), *arrays[0].shape), dtype=kind, pin_memory=cuda)
        np.stack(arrays, out=stacked.numpy())
        return stacked.to(self.device, non_blocking=cuda)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error of torch or of Python says that no memory is left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)


def measure_bytes_per_pixel(model: AnyModel, precision: str, outputs: Sequence[OutputRequest] = ()) -> float:
    """Return the peak memory of a window per pixel, in bytes, without the weights.

    It is that of the forward pass, or of the raster outputs that are computed from its result, whichever is more,
    measured on the CPU without what single operations allocate internally.
    """
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
    runner = TorchRunner(model, torch.device("cpu"), precision, model_entropies=needs_model_entropies(outputs))
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


def can_compile(device: Device) -> bool:
    """Whether torch.compile has its requirements: a C++ compiler for a CPU, Triton for a GPU."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is not None
