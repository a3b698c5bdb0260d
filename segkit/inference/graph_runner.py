"""A runtime of graphs computes the probabilities of tiles, on the CPU. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segkit.inference.device import CPU, default_threads
from segkit.inference.runner_base import Runner
from segkit.io.scene import Tile
from segkit.models.backends import open_graph_model
from segkit.models.ensemble import members

if TYPE_CHECKING:
    from segkit.models.ensemble import AnyModel
    from segkit.models.graph_model import GraphModel


class GraphRunner(Runner[NDArray[Any]]):
    """A `Runner` that computes with onnxruntime or OpenVINO; probabilities are numpy's arrays.

    Parameters
    ----------
    model
        A graph, or a model of torch, which is converted.
    precision, backend, tta, model_entropies
        See `open_runner`.
    threads
        By default as many as torch would take.
    """

    def __init__(
        self,
        model: AnyModel,
        precision: str,
        backend: str,
        *,
        threads: int | None = None,
        tta: bool = False,
        model_entropies: bool = False,
    ) -> None:
        self._threads = threads or default_threads()
        models = [open_graph_model(one, backend, precision, self._threads) for one in members(model)]
        super().__init__(model.task, CPU, precision, backend, models, tta=tta, model_entropies=model_entropies)

    @property
    def threads(self) -> int:
        """See `Runner.threads`."""
        return self._threads

    def from_numpy(self, array: NDArray[Any]) -> NDArray[Any]:
        """See `Runner.from_numpy`."""
        return array

    def _try(self, tiles: Sequence[Tile]) -> NDArray[Any] | None:
        try:
            return self._run(tiles)
        except MemoryError:
            return None

    def _upload(self, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)

    def _predict(self, model: GraphModel, pixels: NDArray[Any], valid: NDArray[Any]) -> NDArray[Any]:
        probabilities = model.probabilities(pixels, valid)
        finite = np.isfinite(probabilities.sum(axis=(1, 2, 3)))  # faster than testing each
        if not finite.all():
            probabilities[~finite] = np.nan
        return probabilities
