"""A model that onnxruntime runs: an ONNX file that `segkit.export` wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segkit.errors import ModelFileError
from segkit.io.files import require_file
from segkit.io.paths import PathLike
from segkit.models.graph_outputs import CARD_FORMAT, CARD_KEY, INPUT, join_outputs
from segkit.models.model_file import GLOBAL, Header, parse_header
from segkit.models.network import first_line
from segkit.models.segmenter import Segmenter
from segkit.recipe.schema import Recipe
from segkit.runtime.version import VERSION
from segkit.task import Task

_SMALLEST = 1e-7  # probability; the logit of 0 would be infinite
_NO_MEMORY = ("alloc", "memory")


class OnnxModel(Segmenter):
    """A model whose network, with all that is around it, is the graph of an ONNX file; it computes in fp32 on the CPU.

    Of several models that were exported as one, recipe, normalisation and training pixels are those of the first one.
    """

    backend = "onnxruntime"

    def __init__(self, path: Path, header: Header, task: Task, receptive_field: Any, fingerprint: str) -> None:
        recipe = Recipe.from_dict(header.recipe).model_copy(update={"task": task})
        super().__init__(recipe, header.mean, header.std, header.band_names, pretrained=False)
        self.network, self.pixel_branch = nn.Identity(), None  # the graph has them
        self.metrics, self.path = header.metrics, path
        self.training_pixels, self.training_scenes = header.training_pixels, header.training_scenes
        self._receptive_field, self._fingerprint = receptive_field, fingerprint
        self._session: Any = None

    def forward(self, pixels: Tensor, valid: Tensor) -> Tensor:
        """Return logits that give the probabilities of the graph; see `Segmenter.forward`."""
        given = pixels.masked_fill(~valid[:, None], torch.nan).cpu().numpy()
        try:
            outputs = self._session.run(None, {INPUT: np.ascontiguousarray(given)})
        except Exception as error:
            if any(text in str(error).lower() for text in _NO_MEMORY):
                raise MemoryError(str(error)) from error
            raise
        probabilities = join_outputs(self.task, [torch.from_numpy(output) for output in outputs])
        return self.task.logits(probabilities.clamp(_SMALLEST, 1 - _SMALLEST)).to(pixels.device)

    def optimized_for_inference(self, device: torch.device, precision: str) -> OnnxModel:
        """Return this model with a session of as many threads as torch has."""
        assert self.path is not None
        self._session = _open_session(self.path, torch.get_num_threads())
        return self

    @property
    def receptive_field(self) -> int | None:
        """See `Segmenter.receptive_field`."""
        return self._receptive_field if isinstance(self._receptive_field, int) else None

    def fingerprint(self) -> str:
        """Return a hash of the file."""
        return self._fingerprint

    def save(self, path: PathLike) -> None:
        """Refuse; a graph cannot become a model file again."""
        raise ModelFileError(f"{self.path}: is a graph (ONNX), which cannot be saved as a model file")


def _open_session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelFileError(f"{path}: onnxruntime cannot run it: {first_line(error)}") from error


def load_onnx(path: PathLike) -> OnnxModel:
    """Load an ONNX file that `segkit.export` wrote.

    Raises
    ------
    MissingFileError, ModelFileError
        The file is missing, damaged, not of segkit, or has class values or a fixed window size.
    """
    file = require_file(path, "model file")
    session = _open_session(file, 1)
    text = session.get_modelmeta().custom_metadata_map.get(CARD_KEY)
    if text is None:
        raise ModelFileError(
            f"{file}: is an ONNX file that says nothing of bands and classes; give one that segkit export wrote"
        )
    try:
        card = json.loads(text)
        if card["format"] != CARD_FORMAT:
            raise ModelFileError(f"{file}: its card has format {card['format']}, segkit {VERSION} reads {CARD_FORMAT}")
        _check_usable(file, card, session.get_inputs()[0].shape)
        header = parse_header(card["models"][0])
        task = Recipe.from_dict(header.recipe | {"task": card["task"]}).task
        with file.open("rb") as content:
            fingerprint = file_digest(content, "sha256").hexdigest()
        return OnnxModel(file, header, task, card["receptive_field"], fingerprint).eval()
    except ModelFileError:
        raise
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ModelFileError(f"{file}: its card is damaged: {first_line(error)}") from error


def _check_usable(file: Path, card: dict[str, Any], shape: Sequence[Any]) -> None:
    """Raise a ModelFileError if a graph cannot give the probabilities of all windows of a prediction."""
    is_fixed = isinstance(shape[-1], int) and card["receptive_field"] != GLOBAL
    for problem, text in ((card["decided"], "gives class values"), (is_fixed, "takes windows of one size")):
        if problem:
            raise ModelFileError(f"{file}: {text}, for other programs; a prediction needs probabilities, of any window")
