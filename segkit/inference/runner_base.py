"""What the runners of torch and of graphs have in common: batches, test-time augmentation, means of models.

Needs no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic

from numpy.typing import NDArray

from segkit.errors import SegkitError, suggest
from segkit.inference.device import Device
from segkit.io.scene import Tile
from segkit.task.array_library import A, concatenate, copy_of, library_of

if TYPE_CHECKING:
    from segkit.task import Task


class OutOfMemoryError(SegkitError):
    """A single window does not fit into the memory of the device."""


class CompilationError(SegkitError):
    """The network cannot be compiled for the device."""


class NonFiniteLogitsError(SegkitError):
    """The network gives NaN or infinite logits for a window, so no class can be decided."""


class Runner(ABC, Generic[A]):
    """A model on a device; computes the probabilities of tiles, as tensors or as arrays.

    Parameters
    ----------
    task
        That of the model.
    device, precision, backend
        See `open_runner`.
    models
        What computes, prepared for that; of an ensemble, all its models.
    tta
        Test-time augmentation: whether to average over the eight rotations and flips of the square.
    model_entropies
        Whether to add channels after the probabilities: for each target, the mean of the models' entropies
        (`Task.entropy`). Each is the entropy of one model's probabilities, averaged over test-time augmentation.
    """

    def __init__(
        self,
        task: Task,
        device: Device,
        precision: str,
        backend: str,
        models: Sequence[Any],
        *,
        tta: bool = False,
        model_entropies: bool = False,
    ) -> None:
        self.task = task
        self.device = device
        self.precision = precision
        self.backend = backend
        self.channel_names: tuple[str, ...] = task.channel_names
        if model_entropies:
            self.channel_names += tuple(f"mean entropy of {name}" for name in task.band_names)
        turns = [(quarters, mirrored) for mirrored in (False, True) for quarters in range(4)] if tta else [(0, False)]
        self._passes = [(one, quarters, mirrored) for one in models for quarters, mirrored in turns]
        self._turns, self._model_entropies = len(turns), model_entropies
        self._max_batch: int | None = None  # tiles per batch, once memory was short

    @property
    def channels(self) -> int:
        """Number of channels of the result."""
        return len(self.channel_names)

    @property
    @abstractmethod
    def threads(self) -> int:
        """Threads that compute on a CPU."""

    @abstractmethod
    def from_numpy(self, array: NDArray[Any]) -> A:
        """Return an array as the probabilities are: as a tensor on the device, or as it is."""

    def __call__(self, tiles: Sequence[Tile]) -> A:
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
        done: list[A] = []
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
        return done[0] if len(done) == 1 else concatenate(done, 0)

    @abstractmethod
    def _try(self, tiles: Sequence[Tile]) -> A | None:
        """Return what `_run` returns, or None if memory is short; what was allocated is then freed."""

    @abstractmethod
    def _upload(self, arrays: Sequence[NDArray[Any]]) -> A:
        """Stack arrays of tiles on the device."""

    @abstractmethod
    def _predict(self, model: Any, pixels: A, valid: A) -> A:
        """Return the probabilities of one model; all are NaN in a window if one of its logits is not finite."""

    def _run(self, tiles: Sequence[Tile]) -> A:
        pixels, valid = self._upload([tile.pixels for tile in tiles]), self._upload([tile.valid for tile in tiles])
        entropies = _MeanEntropy[A](self.task, self._turns) if self._model_entropies else None
        total = self._predict_turned(*self._passes[0], pixels, valid)
        if entropies is not None:
            entropies.add(total)
        for one in self._passes[1:]:
            probabilities = self._predict_turned(*one, pixels, valid)
            if entropies is not None:
                entropies.add(probabilities)
            total += probabilities
            del probabilities  # frees its memory before the next pass
        if len(self._passes) > 1:
            total /= len(self._passes)
        return total if entropies is None else concatenate([total, entropies.mean()])

    def _predict_turned(self, model: Any, quarters: int, mirrored: bool, pixels: A, valid: A) -> A:
        """Flip and rotate the input, and rotate and flip the probabilities back."""
        if mirrored:
            pixels, valid = _flip(pixels), _flip(valid)
        probabilities = self._predict(model, _rotate(pixels, quarters), _rotate(valid, quarters))
        probabilities = _rotate(probabilities, -quarters)
        return _flip(probabilities) if mirrored else probabilities


class _MeanEntropy(Generic[A]):
    """The mean of the entropies of models; the probabilities of a model are the mean of a number of passes."""

    def __init__(self, task: Task, passes_per_model: int) -> None:
        self._task, self._passes_per_model = task, passes_per_model
        self._passes = self._models = 0
        self._probabilities: A | None = None
        self._sum: A | None = None

    def add(self, probabilities: A) -> None:
        """Add the probabilities (N, C, H, W) of the next pass, which are not changed; passes of a model in sequence."""
        self._passes += 1
        if self._passes_per_model > 1:
            so_far = self._probabilities
            if so_far is None:
                probabilities = copy_of(probabilities)
            else:
                so_far += probabilities
                probabilities = so_far
        self._probabilities = probabilities
        if self._passes == self._passes_per_model:
            entropy = self._task.entropy(probabilities if self._passes == 1 else probabilities / self._passes)
            if self._sum is None:
                self._sum = entropy
            else:
                self._sum += entropy
            self._models, self._passes, self._probabilities = self._models + 1, 0, None

    def mean(self) -> A:
        """Return the mean over the models, float32 (N, T, H, W)."""
        assert self._sum is not None
        return self._sum / self._models


def _rotate(array: A, quarters: int) -> A:
    if not quarters:
        return array  # rot90 by 0 would copy
    turned: A = library_of(array).rot90(array, quarters, (-2, -1))
    return turned


def _flip(array: A) -> A:
    flipped: A = library_of(array).flip(array, (-1,))
    return flipped
