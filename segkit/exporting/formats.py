"""The formats of exported models: ONNX and torch.export, each written and read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx.experimental import _config

from segkit.exporting.parity import Outputs
from segkit.models.graph_outputs import CARD_KEY, INPUT

_OPSET, _IR_VERSION = 18, 8  # that onnxruntime reads since 1.14 (2023)
_AXES = {0: "batch", 2: "height", 3: "width"}


@dataclass(frozen=True)
class ExportFormat:
    """A format: writes a graph with its metadata, and opens such a file.

    Parameters
    ----------
    write
        Called with the graph as an exported program, the names of its outputs, metadata, and the path.
    open
        Called with the path; returns a function from pixels to outputs.
    packages
        What it needs besides torch.
    any_size
        Whether windows may be as small as a single pixel; else they are larger than the stride of the network.
    """

    write: Callable[[torch.export.ExportedProgram, list[str], Mapping[str, Any], Path], None]
    open: Callable[[Path], Outputs]
    packages: tuple[str, ...]
    any_size: bool


def trace(graph: nn.Module, bands: int, tile: int | None) -> torch.export.ExportedProgram:
    """Return the graph for any number of windows, of any size, or of `tile` x `tile` pixels."""
    side = tile or 96
    free = (0,) if tile else tuple(_AXES)
    shapes = dict.fromkeys(free, torch.export.Dim.DYNAMIC)
    example = torch.zeros(2, bands, side, side if tile else side + 32)
    # Otherwise tensors would have the layout of the example's, which depends on whether its size is a multiple of the
    # stride.
    oblivious = _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), oblivious:
        program = torch.export.export(graph, (example,), dynamic_shapes=(shapes,), strict=False)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
                node.meta.pop(key, None)  # they hold paths of this machine
    return program


def _write_onnx(
    program: torch.export.ExportedProgram, outputs: list[str], metadata: Mapping[str, Any], path: Path
) -> None:
    import onnx

    exported = torch.onnx.export(
        program, dynamo=True, input_names=[INPUT], output_names=outputs, opset_version=_OPSET, verbose=False
    )
    assert exported is not None
    proto = exported.model_proto
    proto.ir_version = min(proto.ir_version, _IR_VERSION)
    for value in (*proto.graph.input, *proto.graph.output):
        for axis, name in _AXES.items():
            dimension = value.type.tensor_type.shape.dim[axis]
            if not dimension.HasField("dim_value"):
                dimension.dim_param = name
    onnx.helper.set_model_props(proto, {key: _as_text(key, value) for key, value in metadata.items()})
    onnx.save(proto, path)


def _as_text(key: str, value: Any) -> str:
    """Return a metadata value as JSON, which Deepness reads."""
    return json.dumps(value, separators=(",", ":") if key == CARD_KEY else None, ensure_ascii=False)


def _open_onnx(path: Path) -> Outputs:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(pixels: NDArray[np.float32]) -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = session.run(None, {INPUT: np.ascontiguousarray(pixels)})
        return found

    return run


def _write_pt2(
    program: torch.export.ExportedProgram, outputs: list[str], metadata: Mapping[str, Any], path: Path
) -> None:
    torch.export.save(program, path, extra_files={CARD_KEY: json.dumps(metadata[CARD_KEY])})


def _open_pt2(path: Path) -> Outputs:
    module = torch.export.load(path).module()

    def run(pixels: NDArray[np.float32]) -> list[NDArray[Any]]:
        with torch.inference_mode():
            return [output.numpy() for output in module(torch.from_numpy(np.ascontiguousarray(pixels)))]

    return run


FORMATS = {
    ".onnx": ExportFormat(_write_onnx, _open_onnx, ("onnx", "onnxruntime", "onnxscript"), any_size=True),
    ".pt2": ExportFormat(_write_pt2, _open_pt2, (), any_size=False),
}
