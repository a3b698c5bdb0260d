"""Network: tiles go through the network and come out as probabilities; what that takes of memory, and of exactness."""

from __future__ import annotations

import importlib.util
import os
import shutil
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
from torch.utils.flop_counter import FlopCounterMode

from segkit.errors import SegkitError, ways
from segkit.io.scene import Tile

if TYPE_CHECKING:
    from segkit.models.segmenter import Segmenter

# What torch says where a CPU has no memory left: its allocator, C++, and oneDNN, which has none for the code it makes.
_NO_MEMORY = ("DefaultCPUAllocator", "bad_alloc", "could not create a primitive", "could not create a memory")
_COMPILER = ("torch._dynamo", "torch._inductor")  # where the errors of torch.compile are from
# Pixels along a side of the window on which memory is measured.
_SIDE = 256


class TileTooLarge(SegkitError):  # noqa: N818 - it says what is wrong, as all the others do
    """One window is more than the device has memory for."""


class NotCompiled(SegkitError):  # noqa: N818
    """The network cannot be compiled for the device."""


class NotFinite(SegkitError):  # noqa: N818
    """The network's logits for a window are no finite numbers, so nothing can be decided there."""


class Runner:
    """A model on a device, which turns tiles into probabilities.

    Parameters
    ----------
    model
        Stays as it is; a copy prepared for predicting is kept.
    device
        Where to compute.
    precision
        "fp32" or "bf16".
    tta
        Test-time augmentation: whether to average over the eight symmetries of the square.
    compiled
        Whether the network is compiled for each size of tiles that comes, which takes half a minute on two cores.
    """

    def __init__(
        self, model: Segmenter, device: torch.device, precision: str, *, tta: bool = False, compiled: bool = False
    ) -> None:
        self.task = model.task
        self.channels: int = model.task.channels
        self.device, self.precision = device, precision
        self._model = model.prepared(device, precision)
        if compiled:
            compiled_network = torch.compile(self._model.network, dynamic=False, options={"freezing": True})
            self._model.network = cast("nn.Module", compiled_network)
        # By default CUDA rounds what convolutions multiply to TF32, ten bits as in fp16.
        self._tf32 = precision != "fp32"
        self._turns = (
            [(quarters, mirrored) for mirrored in (False, True) for quarters in range(4)] if tta else [(0, False)]
        )
        self._most: int | None = None  # tiles at once that memory was seen to suffice for

    def __call__(self, tiles: Sequence[Tile]) -> Tensor:
        """Return the probabilities of tiles of one size.

        Where memory does not suffice for all of them, fewer go at once, from then on.

        Returns
        -------
        float32 (N, C, H, W) on the device. NaN all over a tile of which a logit is NaN, infinite, or so large that
        float32 cannot hold the sum: nothing can be decided there. Who calls refuses it (`NotFinite`).

        Raises
        ------
        TileTooLarge
            Memory does not suffice for one.
        NotCompiled
            Compiling failed.
        """
        done: list[Tensor] = []
        start = 0
        while start < len(tiles):
            part = tiles[start : start + (self._most or len(tiles))]
            probabilities = self._try(part)
            if probabilities is not None:
                done.append(probabilities)
                start += len(part)
            elif len(part) > 1:
                self._most = len(part) // 2
            else:
                height, width = part[0].valid.shape
                raise TileTooLarge(
                    f"a window of {height} x {width} pixels is more than the {self.device.type} has memory for"
                    + ways("pass a smaller --tile", "compute on another device")
                )
        return done[0] if len(done) == 1 else torch.cat(done)

    def _try(self, tiles: Sequence[Tile]) -> Tensor | None:
        """Return None where memory does not suffice; what was computed until then is free again."""
        try:
            return self._run(tiles)
        except (RuntimeError, MemoryError) as error:
            if any(kind.__module__.startswith(_COMPILER) for kind in type(error).__mro__):
                raise NotCompiled(f"the network cannot be compiled for this {self.device.type} ({error})") from error
            if not _is_no_memory(error):
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    @torch.inference_mode()
    def _run(self, tiles: Sequence[Tile]) -> Tensor:
        pixels = self._upload([tile.pixels for tile in tiles], torch.float32)
        valid = self._upload([tile.valid for tile in tiles], torch.bool)
        cuda = self.device.type == "cuda"
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=self._tf32) if cuda else nullcontext():
            total = self._turned(pixels, valid, *self._turns[0])
            for turn in self._turns[1:]:
                total += self._turned(pixels, valid, *turn)
        return total if len(self._turns) == 1 else total.div_(len(self._turns))

    def _turned(self, pixels: Tensor, valid: Tensor, quarters: int, mirrored: bool) -> Tensor:
        """Mirror and turn what the network sees, and turn and mirror back what it says."""
        if mirrored:
            pixels, valid = pixels.flip(-1), valid.flip(-1)
        logits = self._model(_rotated(pixels, quarters), _rotated(valid, quarters))
        finite = logits.sum(dim=(1, 2, 3)).isfinite()  # quicker than a look at each
        probabilities = self.task.probabilities(logits)
        # A GPU would have to be waited for, to know whether this changes anything.
        if finite.is_cuda or not finite.all():
            probabilities.masked_fill_(~finite[:, None, None, None], torch.nan)
        probabilities = _rotated(probabilities, -quarters)
        return probabilities.flip(-1) if mirrored else probabilities

    def _upload(self, arrays: Sequence[NDArray[Any]], dtype: torch.dtype) -> Tensor:
        """Stack arrays on the device; a GPU fetches them while the host goes on."""
        cuda = self.device.type == "cuda"
        if len(arrays) == 1 and not cuda:
            return torch.from_numpy(np.require(arrays[0], requirements=["C", "W"]))[None]
        stacked = torch.empty((len(arrays), *arrays[0].shape), dtype=dtype, pin_memory=cuda)
        np.stack(arrays, out=stacked.numpy())
        return stacked.to(self.device, non_blocking=cuda)


def _rotated(planes: Tensor, quarters: int) -> Tensor:
    return planes.rot90(quarters, (-2, -1)) if quarters else planes  # torch would copy


def _is_no_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in _NO_MEMORY)


def agreement(model: Segmenter, device: torch.device, tiles: Iterable[Tile]) -> float | None:
    """Return the share of valid pixels that are decided alike in bf16 and in fp32, in all planes; None without any.

    Where one of both gives no finite numbers, nothing is alike.
    """
    exact, rounded = (Runner(model, device, precision) for precision in ("fp32", "bf16"))
    alike = valid = 0
    for tile in tiles:
        one, other = exact([tile]), rounded([tile])
        same = (model.task.decide(one) == model.task.decide(other)).all(dim=1)[0]
        same &= (one + other).isfinite().all(dim=1)[0]
        alike += int(same.cpu().numpy()[tile.valid].sum())
        valid += int(tile.valid.sum())
    return alike / valid if valid else None


def bytes_per_pixel(model: Segmenter, precision: str) -> float:
    """Return how much memory a pixel of a window takes at the peak of one pass, in bytes, without the weights.

    It is measured on the CPU. What single operations allocate inside is not seen.
    """
    ledger = _Ledger()
    return _watched(model, precision, ledger, lambda: ledger.peak) + 4 * model.bands + 1  # the tile was there before


def operations_per_pixel(model: Segmenter) -> float:
    """Return how often a pixel of a window makes the network multiply and add, counted on the CPU."""
    counter = FlopCounterMode(display=False)
    return _watched(model, "fp32", counter, counter.get_total_flops) / 2


def _watched(model: Segmenter, precision: str, watch: AbstractContextManager[Any], found: Callable[[], int]) -> float:
    """Return what is found for a pixel of a window, after one pass under watch on the CPU."""
    side = model.context or _SIDE
    runner = Runner(model, torch.device("cpu"), precision)
    tile = Tile(np.zeros((model.bands, side, side), dtype=np.float32), np.ones((side, side), dtype=bool))
    with watch:
        runner([tile])
    return found() / side**2


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the tensors that were made and are not yet gone; `peak` is the most there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}  # what is made in place, or is a view
        made = func(*args, **(kwargs or {}))
        for storage in _storages(made):
            if storage._cdata not in given:
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return made

    def _add(self, size: int) -> None:
        self._now += size
        self.peak = max(self.peak, self._now)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs: a C++ compiler for a CPU, Triton for a GPU."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return shutil.which(os.environ.get("CXX", "g++")) is not None
