"""A model that a runtime of graphs computes: an ONNX file that `segkit.export` wrote."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segkit.errors import ModelFileError, first_line
from segkit.io.paths import PathLike
from segkit.models.graph_outputs import CARD_FORMAT, CARD_KEY, join_outputs, output_names
from segkit.models.graph_runtime import Graph, default_runtime, open_graph
from segkit.models.model_base import ModelBase, deviations
from segkit.models.model_file import GLOBAL, Header, parse_header
from segkit.models.onnx_file import read_onnx_metadata
from segkit.recipe.schema import Recipe
from segkit.runtime.version import VERSION
from segkit.task import Task

_DAMAGED = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)


class GraphModel(ModelBase):
    """A model whose network, with all that is around it, is the graph of an ONNX file; it computes on the CPU.

    It needs no torch. Of several models that were exported as one, recipe, normalisation and training pixels are those
    of the first one.

    Parameters
    ----------
    stride, window_size
        Those of all models together, as `stride` and `fixed_window_size` of an ensemble.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        task: Task,
        receptive_field: Any,
        fingerprint: str,
        *,
        stride: int,
        window_size: int | None,
        quantization: dict[str, Any] | None = None,
    ) -> None:
        recipe = Recipe.from_dict(header.recipe).model_copy(update={"task": task})
        super().__init__(recipe, header.mean, header.std, header.band_names)
        self.mean, self.std = (
            np.array(values, dtype=np.float32).reshape(1, -1, 1, 1)
            for values in (header.mean, deviations(header.mean, header.std))
        )
        self.stride, self._window_size = stride, window_size
        self.metrics, self.path = header.metrics, path
        self.training_pixels, self.training_scenes = header.training_pixels, header.training_scenes
        self.quantization = quantization
        self._header, self._receptive_field, self._fingerprint = header, receptive_field, fingerprint
        self._graph: Graph | None = None

    def probabilities(self, pixels: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the probabilities of the graph, float32 (N, channels, H, W).

        Parameters
        ----------
        pixels
            float32 (N, C, H, W) in the units of training; NaN where a band has no data.
        valid
            bool (N, H, W).
        """
        assert self._graph is not None
        outputs = self._graph(np.where(valid[:, None], pixels, np.float32(np.nan)))
        count, (height, width) = len(pixels), pixels.shape[-2:]
        expected = [(count, len(names), height, width) for names in output_names(self.task)]
        if [output.shape for output in outputs] != expected:
            raise ModelFileError(f"{self.path}: its outputs are not those of its card, so the file was changed")
        return join_outputs(self.task, outputs)

    def opened(self, backend: str, precision: str, threads: int) -> GraphModel:
        """Return a copy that computes.

        Raises
        ------
        ModelFileError
            The backend cannot run the graph.
        """
        assert self.path is not None
        found = copy.copy(self)
        found._graph = open_graph(self.path, backend, precision, threads)
        return found

    @property
    def backend(self) -> str:  # type: ignore[override]
        """What runs the graph, unless another runtime is asked for."""
        return default_runtime()

    @property
    def receptive_field(self) -> int | None:
        """See `Segmenter.receptive_field`."""
        return self._receptive_field if isinstance(self._receptive_field, int) else None

    @property
    def fixed_window_size(self) -> int | None:
        """See `Segmenter.fixed_window_size`."""
        return self._window_size if self.receptive_field is None else None

    @property
    def header(self) -> Header:
        """The header of the first model, with the task of all."""
        return replace(self._header, recipe=self.recipe.to_dict(), output_classes=None)

    def fingerprint(self) -> str:
        """Return a hash of the file."""
        return self._fingerprint


def load_onnx(path: PathLike) -> GraphModel:
    """Load an ONNX file that `segkit.export` wrote. Weights in other files are refused before a runtime sees the file.

    Raises
    ------
    MissingFileError, ModelFileError
        The file is missing, damaged, not of segkit, or has class values or a fixed window size.
    """
    file = Path(path)
    card = read_card(file)
    try:
        _check_usable(file, card)
        header = parse_header(card["models"][0])
        task = Recipe.from_dict(header.recipe | {"task": card["task"]}).task
        with file.open("rb") as content:
            fingerprint = file_digest(content, "sha256").hexdigest()
        return GraphModel(
            file,
            header,
            task,
            card["receptive_field"],
            fingerprint,
            stride=_positive(card["stride"]),
            window_size=None if card["window_size"] is None else _positive(card["window_size"]),
            quantization=card.get("quantization"),
        )
    except ModelFileError:
        raise
    except _DAMAGED as error:
        raise ModelFileError(f"{file}: its card is damaged: {first_line(error)}") from error


def read_card(file: Path) -> dict[str, Any]:
    """Return what an ONNX file that `segkit.export` wrote says about itself, without loading its graph.

    Raises
    ------
    MissingFileError, ModelFileError
        The file is missing, damaged, or not of segkit.
    """
    text = read_onnx_metadata(file).get(CARD_KEY)
    if text is None:
        raise ModelFileError(
            f"{file}: is an ONNX file that says nothing of bands and classes; give one that segkit export wrote"
        )
    try:
        card: dict[str, Any] = json.loads(text)
        if card["format"] != CARD_FORMAT:
            raise ModelFileError(f"{file}: its card has format {card['format']}, segkit {VERSION} reads {CARD_FORMAT}")
    except ModelFileError:
        raise
    except _DAMAGED as error:
        raise ModelFileError(f"{file}: its card is damaged: {first_line(error)}") from error
    return card


def _positive(number: Any) -> int:
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"{number!r} is no number of pixels")
    return number


def _check_usable(file: Path, card: dict[str, Any]) -> None:
    """Raise a ModelFileError if a graph cannot give the probabilities of all windows of a prediction."""
    is_fixed = card["window_size"] is not None and card["receptive_field"] != GLOBAL
    for problem, text in ((card["decided"], "gives class values"), (is_fixed, "takes windows of one size")):
        if problem:
            raise ModelFileError(f"{file}: {text}, for other programs; a prediction needs probabilities, of any window")
