"""The graph that is exported: from pixels as other programs read them to probabilities or class values."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from segkit.errors import UsageError
from segkit.io.scene import names_in_files
from segkit.models.classical.classifier import PixelClassifier
from segkit.models.classical.learner import Linear
from segkit.models.ensemble import members, torch_members
from segkit.models.graph_outputs import split_outputs
from segkit.models.segmenter import Segmenter
from segkit.task import Task

if TYPE_CHECKING:
    from segkit.models.ensemble import AnyModel, OneModel

# Other programs scale values before they pass them on, which changes the last bits. Integers of 16 bits differ by more.
SAME_VALUE = 2e-6  # relative


class ExportedGraph(nn.Module):
    """One input, float32 (N, C, H, W) in the units of training; NaN, infinite or a no-data value: no data in that band.

    Normalisation, calibration, activation and, for an ensemble, the mean are those of `Segmenter` and `Runner`. A pixel
    is valid if one of its bands that files store has data; the others are set to their mean.

    Parameters
    ----------
    nodata
        For each value that means no data, its number in the units of each band; NaN where it is data.
    decide
        Whether the output is class values, the map's no-data value where a pixel is not valid; else probabilities.
    """

    values: Tensor
    nodata: Tensor

    def __init__(self, model: AnyModel, nodata: Sequence[Sequence[float]] = (), *, decide: bool = False) -> None:
        super().__init__()
        self.task: Task = model.task
        self.models = nn.ModuleList(
            copy.deepcopy(one).cpu().float().eval().to(memory_format=torch.contiguous_format)
            for one in torch_members(model)
        )
        self.decide, self.stored = decide, count_stored_bands(model)
        self.register_buffer("nodata", torch.tensor(nodata, dtype=torch.float32).view(-1, model.bands, 1, 1))
        self.register_buffer("values", torch.tensor(self.task.category_values, dtype=torch.int32))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return class values (N, T, H, W), uint8 or int32; or probabilities as `split_outputs` returns them."""
        missing = ~pixels.isfinite()
        for at in range(len(self.nodata)):
            value = self.nodata[at]
            missing = missing | ((pixels - value).abs() <= SAME_VALUE * value.abs())
        valid = ~missing[:, : self.stored].all(dim=1)
        pixels = pixels.masked_fill(missing, torch.nan)
        total = self.task.probabilities(self.models[0](pixels, valid))
        for model in list(self.models)[1:]:
            total = total + self.task.probabilities(model(pixels, valid))
        probabilities = total / len(self.models)
        if not self.decide:
            return split_outputs(self.task, probabilities)
        values = self.values[self.task.decide(probabilities).long()]
        values = values.masked_fill(~valid[:, None], self.task.nodata)
        return (values.to(torch.uint8 if self.task.dtype == "uint8" else torch.int32),)


def count_stored_bands(model: AnyModel) -> int:
    """Return the number of bands that files of scenes store; computed bands and layers come after them."""
    formulas = [index.to_formula() for index in model.imagery.indices]
    return len(names_in_files(model.band_names, formulas, model.imagery.covering_layers) or ())


def check_exportable(model: AnyModel) -> None:
    """Raise a UsageError if a graph cannot hold a model."""
    for one in members(model):
        if one.backend != "torch":
            raise UsageError(f"{_name(one)}: is exported already; give the model file (.safetensors)")
        assert isinstance(one, Segmenter)
        learner = one.network.learners[0] if isinstance(one.network, PixelClassifier) else None
        if learner is not None and not isinstance(learner, Linear):
            raise UsageError(
                f"{_name(one)}: a classical learner of the kind {one.recipe.model.architecture} cannot be exported; of "
                "these only lda can, and all networks"
            )


def _name(model: OneModel) -> str:
    return str(model.path or model.recipe.name)
