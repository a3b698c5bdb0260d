"""The runtimes of graphs: onnxruntime and OpenVINO, each as one function from pixels to outputs."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segkit.errors import ModelFileError

INPUT = "pixels"  # of a graph
EXPORT_PACKAGES = ("onnx", "onnxscript")  # that writing a graph needs besides torch
Graph = Callable[[NDArray[np.float32]], list[NDArray[Any]]]  # from pixels (N, C, H, W) to outputs
_NO_MEMORY = ("alloc", "memory")  # in messages of runtimes


@dataclass(frozen=True)
class Runtime:
    """A program that runs graphs on the CPU.

    Parameters
    ----------
    open
        Called with the path of an ONNX file, the precision and the number of threads.
    package
        What is imported.
    precisions
        In which it computes.
    """

    open: Callable[[Path, str, int], Graph]
    package: str
    precisions: tuple[str, ...]


def open_graph(path: Path, backend: str, precision: str = "fp32", threads: int = 1) -> Graph:
    """Open an ONNX file; the result computes its outputs.

    Parameters
    ----------
    backend
        A key of `RUNTIMES`.
    precision
        "fp32", or "bf16" if the runtime has it. Layers of integers are not changed.

    Raises
    ------
    ModelFileError
        The runtime cannot run the file; also when the graph is called.
    """
    try:
        graph = RUNTIMES[backend].open(path, precision, threads)
    except Exception as error:
        raise _cannot_run(path, backend, error) from error

    def run(pixels: NDArray[np.float32]) -> list[NDArray[Any]]:
        try:
            return graph(np.ascontiguousarray(pixels))
        except Exception as error:
            if any(text in str(error).lower() for text in _NO_MEMORY):
                raise MemoryError(str(error)) from error
            raise _cannot_run(path, backend, error) from error

    return run


def is_installed(backend: str) -> bool:
    """Whether the package of a runtime is installed."""
    return importlib.util.find_spec(RUNTIMES[backend].package) is not None


def default_runtime() -> str:
    """Return the first runtime that is installed; the first one if none is."""
    return next(filter(is_installed, RUNTIMES), next(iter(RUNTIMES)))


def require_runtime(backend: str) -> None:
    """Import the package of a runtime.

    Raises
    ------
    ModuleNotFoundError
        It is not installed.
    """
    import_module(RUNTIMES[backend].package)


@functools.cache
def has_bf16() -> bool:
    """Whether a runtime that is installed and knows bf16 finds that this CPU computes in it."""
    if not is_installed("openvino"):
        return False
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _cannot_run(path: Path, backend: str, error: Exception) -> ModelFileError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ModelFileError(f"{path}: {backend} cannot run it: {lines[0]}")


def _open_onnxruntime(path: Path, _: str, threads: int) -> Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(pixels: NDArray[np.float32]) -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = session.run(None, {INPUT: pixels})
        return found

    return run


def _open_openvino(path: Path, precision: str, threads: int) -> Graph:
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # others may use the cores, too
    }
    core = openvino.Core()
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()

    def run(pixels: NDArray[np.float32]) -> list[NDArray[Any]]:
        # Outputs are copied: a shared one would change with the next window.
        found = request.infer([pixels], share_inputs=True, share_outputs=False)
        return [np.asarray(output) for output in found.values()]

    return run


RUNTIMES = {
    "onnxruntime": Runtime(_open_onnxruntime, "onnxruntime", ("fp32",)),
    "openvino": Runtime(_open_openvino, "openvino", ("fp32", "bf16")),
}
