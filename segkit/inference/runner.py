"""Open the runner of a backend, which computes probabilities of tiles, and measure it. Needs no torch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from segkit.inference.device import Device
from segkit.inference.graph_runner import GraphRunner
from segkit.inference.outputs import OutputRequest
from segkit.inference.runner_base import Runner
from segkit.io.scene import Tile
from segkit.runtime.memory import retain_freed_memory
from segkit.task.array_library import A, library_of, to_numpy

if TYPE_CHECKING:
    from segkit.models.ensemble import AnyModel
    from segkit.task import Task

AMPLE_BYTES_PER_PIXEL = 4096  # more than almost any network needs for a pixel of a window


def open_runner(
    model: AnyModel,
    device: Device,
    precision: str,
    *,
    backend: str | None = None,
    threads: int | None = None,
    tta: bool = False,
    compiled: bool = False,
    model_entropies: bool = False,
) -> Runner[Any]:
    """Prepare a model for prediction.

    Parameters
    ----------
    model
        Not changed. Of an ensemble, the mean of the models' probabilities.
    device
        Where torch computes.
    precision
        "fp32" or "bf16".
    backend
        A key of `segkit.models.backends.BACKENDS`; by default that of the model. All but torch compute on the CPU.
    threads
        Of a runtime of graphs; torch has a number for the process.
    tta, model_entropies
        See `Runner`.
    compiled
        Whether torch compiles the network for each size of tiles, which takes half a minute on two cores.
    """
    retain_freed_memory()
    backend = backend or model.backend
    if backend == "torch":
        from segkit.inference.torch_runner import TorchRunner

        return TorchRunner(model, device, precision, tta=tta, compiled=compiled, model_entropies=model_entropies)
    return GraphRunner(model, precision, backend, threads=threads, tta=tta, model_entropies=model_entropies)


def precision_agreement(
    model: AnyModel,
    device: Device,
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
    runners = open_runner(model, device, "fp32"), open_runner(model, device, precision, backend=backend)
    equal = valid = 0
    for tile in tiles:
        exact, rounded = ([to_numpy(one) for one in _decide(model.task, runner([tile]))] for runner in runners)
        same = (exact[0] == rounded[0]).all(axis=0) & exact[1] & rounded[1]
        equal += int(same[tile.valid].sum())
        valid += int(tile.valid.sum())
    return equal / valid if valid else None


def _decide(task: Task, probabilities: A) -> tuple[A, A]:
    """Return the decisions (T, H, W) for a single window, and where its probabilities are finite numbers (H, W)."""
    finite: A = library_of(probabilities).isfinite(probabilities)
    everywhere: A = library_of(finite).all(finite, 1)
    return task.decide(probabilities)[0], everywhere[0]


def time_forward(runner: Runner[Any], tile: Tile) -> float:
    """Return the seconds of a forward pass for a tile: the shorter of two, after a first one that warms up."""
    found = []
    for _ in range(3):
        started = time.perf_counter()
        to_numpy(runner([tile]))
        found.append(time.perf_counter() - started)
    return min(found[1:])


def bytes_per_pixel(
    model: AnyModel, precision: str, outputs: Sequence[OutputRequest] = (), backend: str = "torch"
) -> float:
    """Return the peak memory of a window per pixel, in bytes, without the weights; see `measure_bytes_per_pixel`."""
    if model.backend != "torch":
        return AMPLE_BYTES_PER_PIXEL  # of other memory only the machine knows
    from segkit.inference.torch_runner import measure_bytes_per_pixel

    return measure_bytes_per_pixel(model, precision if backend == "torch" else "fp32", outputs)  # others need as much
