"""The formats of exported models: ONNX and torch.export, each written and read back."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segkit.models.graph_export import write_onnx
from segkit.models.graph_outputs import CARD_KEY
from segkit.models.graph_runtime import EXPORT_PACKAGES, Graph, open_graph


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
    open: Callable[[Path], Graph]
    packages: tuple[str, ...]
    any_size: bool


def _open_onnx(path: Path) -> Graph:
    return open_graph(path, "onnxruntime", threads=torch.get_num_threads())


def _write_pt2(
    program: torch.export.ExportedProgram, outputs: list[str], metadata: Mapping[str, Any], path: Path
) -> None:
    content = io.BytesIO()  # if torch cannot write a file, it ends the process
    torch.export.save(program, content, extra_files={CARD_KEY: json.dumps(metadata[CARD_KEY])})
    path.write_bytes(content.getvalue())


def _open_pt2(path: Path) -> Graph:
    module = torch.export.load(path).module()

    def run(pixels: NDArray[np.float32]) -> list[NDArray[Any]]:
        with torch.inference_mode():
            return [output.numpy() for output in module(torch.from_numpy(np.ascontiguousarray(pixels)))]

    return run


FORMATS = {
    ".onnx": ExportFormat(write_onnx, _open_onnx, (*EXPORT_PACKAGES, "onnxruntime"), any_size=True),
    ".pt2": ExportFormat(_write_pt2, _open_pt2, (), any_size=False),
}
