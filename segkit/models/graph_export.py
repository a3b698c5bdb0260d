"""Write a graph as ONNX."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx.experimental import _config

from segkit.models.graph_outputs import CARD_KEY
from segkit.models.graph_runtime import INPUT

_OPSET, _IR_VERSION = 18, 8  # that onnxruntime reads since 1.14 (2023)
_AXES = {0: "batch", 2: "height", 3: "width"}


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


def write_onnx(
    program: torch.export.ExportedProgram, outputs: list[str], metadata: Mapping[str, Any], path: Path
) -> None:
    """Write a graph with the names of its outputs and metadata, with all weights inside."""
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
    onnx.save(proto, path)
    write_metadata(path, metadata)


def write_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Replace the metadata of an ONNX file."""
    import onnx

    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, {key: _as_text(key, value) for key, value in metadata.items()})
    onnx.save(proto, path)


def _as_text(key: str, value: Any) -> str:
    """Return a metadata value as JSON, which Deepness reads."""
    return json.dumps(value, separators=(",", ":") if key == CARD_KEY else None, ensure_ascii=False)
