"""What computes a network: torch, or a runtime of graphs, for which a model of torch is converted."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from segkit.errors import ModelFileError, UsageError, first_line, suggest
from segkit.models.ensemble import members
from segkit.models.graph_model import GraphModel
from segkit.models.graph_outputs import tensor_names
from segkit.models.graph_runtime import EXPORT_PACKAGES, RUNTIMES, is_installed, require_runtime
from segkit.models.model_file import GLOBAL

if TYPE_CHECKING:
    from segkit.models.ensemble import AnyModel, OneModel
    from segkit.models.segmenter import Segmenter

BACKENDS = ("torch", *RUNTIMES)
AUTO = "auto"


def open_graph_model(model: OneModel, backend: str, precision: str, threads: int) -> GraphModel:
    """Return a copy of a model that a runtime of graphs computes; a model of torch is converted.

    Raises
    ------
    UsageError
        A graph cannot hold the model.
    ModelFileError
        It cannot be converted, or the runtime cannot run it.
    """
    graph = model if isinstance(model, GraphModel) else _convert(model)
    return graph.opened(backend, precision, threads)


_converted: dict[str, GraphModel] = {}  # by fingerprint
_folder: TemporaryDirectory[str] | None = None  # of the converted models of this process, removed at its end


def _convert(model: Segmenter) -> GraphModel:
    """Return a model as a graph in a temporary file, which is written once in a process."""
    global _folder
    from segkit.models.graph import ExportedGraph, check_exportable
    from segkit.models.graph_export import trace, write_onnx

    fingerprint = model.fingerprint()
    if fingerprint not in _converted:
        check_exportable(model)
        for package in EXPORT_PACKAGES:
            import_module(package)
        _folder = _folder or TemporaryDirectory(prefix="segkit_")
        path = Path(_folder.name) / f"{fingerprint[:16]}.onnx"
        try:
            program = trace(ExportedGraph(model).eval(), model.bands, model.fixed_window_size)
            write_onnx(program, tensor_names(model.task), {}, path)
        except Exception as error:
            raise ModelFileError(
                f"{model.path or model.recipe.name}: cannot be converted to a graph ({first_line(error)})"
                + suggest("predict with --backend torch")
            ) from error
        receptive_field = model.receptive_field
        graph = GraphModel(
            path,
            model.header,
            model.task,
            GLOBAL if receptive_field is None else receptive_field,
            fingerprint,
            stride=model.stride,
            window_size=model.fixed_window_size,
        )
        _converted[fingerprint] = graph
    return _converted[fingerprint]


def is_quantized(model: AnyModel) -> bool:
    """Whether a graph computes in integers."""
    return any(isinstance(one, GraphModel) and one.quantization is not None for one in members(model))


def possible_precisions(model: AnyModel, backend: str) -> tuple[str, ...]:
    """Return the precisions in which a backend computes a model, the most exact one first."""
    if is_quantized(model):
        return ("int8",)
    if model.is_classical:
        return ("fp32",)
    return ("fp32", "bf16") if backend == "torch" else RUNTIMES[backend].precisions


def check_backend(model: AnyModel, backend: str) -> None:
    """Check that a backend can compute a model on the CPU of this machine.

    Raises
    ------
    UsageError
        The backend is not known, or cannot compute this model.
    ModuleNotFoundError
        A package is not installed.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r} is not known; use {', '.join(BACKENDS)} or {AUTO}")
    if backend == "torch":
        graphs = [one.path for one in members(model) if isinstance(one, GraphModel)]
        if graphs:
            raise UsageError(
                f"{graphs[0]}: is a graph, which torch does not run; use {' or '.join(RUNTIMES)}, or the model file "
                "(.safetensors)" + suggest("leave out --backend")
            )
        return
    require_runtime(backend)
    for one in members(model):
        if not isinstance(one, GraphModel):
            from segkit.models.graph import check_exportable

            check_exportable(one)
            for package in EXPORT_PACKAGES:
                import_module(package)


def candidate_backends(model: AnyModel, *, convert: bool) -> list[str]:
    """Return the backends that can compute a model on the CPU of this machine; that of the model first.

    Parameters
    ----------
    convert
        Whether a model of torch may be converted, which takes some seconds.
    """
    installed = [name for name in RUNTIMES if is_installed(name)]
    if model.backend != "torch":
        return [model.backend, *(name for name in installed if name != model.backend)]
    found = ["torch"]
    if convert and not model.is_classical and all(find_spec(package) is not None for package in EXPORT_PACKAGES):
        found += installed
    return found
