"""`segkit.export`: a model as an ONNX or torch.export file, which is compared with torch before it gets its name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from segkit.errors import ModelFileError, SegkitError, UsageError
from segkit.exporting.card import convert_nodata, deepness_keys, list_nodata, make_card
from segkit.exporting.formats import FORMATS
from segkit.exporting.parity import Parity, check_parity
from segkit.io.files import atomic_write, check_distinct, check_output
from segkit.io.paths import PathLike
from segkit.models.ensemble import load_model
from segkit.models.graph import ExportedGraph, check_exportable
from segkit.models.graph_export import trace
from segkit.models.graph_outputs import CARD_KEY, tensor_names
from segkit.models.network import first_line
from segkit.runtime.progress import progress

if TYPE_CHECKING:
    from segkit.models.ensemble import AnyModel

_STEPS = 4  # of an export, for its progress
_MAX_TILE_PX = 8192


@dataclass(frozen=True)
class ExportSummary:
    """What was written.

    Parameters
    ----------
    decided
        Whether the outputs are values of the map, not probabilities.
    outputs
        Name of each output of the graph, and its channels.
    nodata
        Values of the input that mean no data, besides NaN.
    parity
        The comparison with torch.
    deepness_limits
        What the QGIS plugin Deepness cannot do with the file; empty if it works there as it is. None for other formats
        and class values, which Deepness does not take.
    """

    path: Path
    decided: bool
    outputs: dict[str, list[str]]
    nodata: tuple[float, ...]
    parity: Parity
    deepness_limits: list[str] | None


def export(
    model: AnyModel | PathLike | Sequence[AnyModel | PathLike],
    output: PathLike,
    *,
    decide: bool = False,
    tile: int | None = None,
    nodata: Sequence[float] = (),
    check_on: PathLike | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> ExportSummary:
    """Write a model as a file for other programs, with normalisation, no data, calibration and activation inside.

    The graph has one input, ``pixels``: float32 (N, C, H, W) in the units of training, for any N, H and W. NaN and
    no-data values are set to the mean of their band. Its outputs are probabilities, float32 (N, channels, H, W), one
    output for each decision that is independent of the others; see docs/export.md.

    Parameters
    ----------
    model
        As for `segkit.predict`: a model file, or several whose probabilities are averaged.
    output
        Path that ends with .onnx or .pt2 (torch.export).
    decide
        Whether the output is the values of the map: ``classes`` (N, bands of the map, H, W), uint8, or int32 if a
        value is larger.
    tile
        Side of the windows, for programs that need a fixed size. Default: any size; with a global receptive field, the
        size of the training.
    nodata
        Stored values that mean no data. Default: ``data.nodata`` of the recipe.
    check_on
        A scene on which the file is compared with torch. Default: tiles made of the model's training pixels.

    Raises
    ------
    UsageError
        The format is not known, an option is not possible, or a graph cannot hold the model.
    ModelFileError
        The written file gives other results than torch. The output is not changed.
    """
    path = Path(output)
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: the ending gives the format; use {' or '.join(FORMATS)}")
    kind = FORMATS[path.suffix.lower()]
    check_output(path, overwrite=overwrite)
    for package in kind.packages:
        import_module(package)  # before the work
    given = [model] if isinstance(model, (str, Path)) or not isinstance(model, Sequence) else model
    check_distinct([path], [*(one for one in given if isinstance(one, (str, Path))), check_on])
    found = load_model(model)
    check_exportable(found)
    _check_tile(found, tile)
    tile = tile or found.fixed_window_size
    values = tuple(value for value in nodata or list_nodata(found) if math.isfinite(value))
    nodata_in_units = convert_nodata(found, values)
    with progress("exporting", _STEPS, show=show_progress) as advance:
        graph = ExportedGraph(found, nodata_in_units, decide=decide).eval()
        with _as_model_error(path):
            program = trace(graph, found.bands, tile)
        advance(1)
        keys, limits = ({}, None) if decide else deepness_keys(found, tile=tile)
        names = tensor_names(found.task, decide=decide)
        least = 1 if kind.any_size else found.stride + 1
        card = make_card(found, values, decide=decide, tile=tile, least=least)
        with atomic_write(path) as part:
            with _as_model_error(path):
                kind.write(program, names, {CARD_KEY: card} | keys, part)
                advance(2)
                run = kind.open(part)
                parity = check_parity(found, run, path, tile=tile, least=least, decide=decide, check_on=check_on)
            advance(1)
    outputs = {one["name"]: one["channels"] for one in card["outputs"]}
    return ExportSummary(path, decide, outputs, values, parity, limits if path.suffix.lower() == ".onnx" else None)


def _check_tile(model: AnyModel, tile: int | None) -> None:
    """Raise a UsageError if windows cannot have this side."""
    if tile is None:
        return
    if not 1 <= tile <= _MAX_TILE_PX or tile % model.stride:
        raise UsageError(
            f"tile is {tile}; the network takes multiples of {model.stride} pixels, of at most {_MAX_TILE_PX}"
        )
    if model.fixed_window_size not in (None, tile):
        raise UsageError(
            f"tile is {tile}, but the network pools over its whole window and was trained with "
            f"{model.fixed_window_size} pixels; use that"
        )


@contextmanager
def _as_model_error(path: Path) -> Iterator[None]:
    """Turn the errors of exporters, which are of many kinds, into a ModelFileError."""
    try:
        yield
    except (SegkitError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ModelFileError(
            f"{path}: is not written: this model cannot be a {path.suffix} file ({first_line(error)}); try the other "
            f"format ({' or '.join(FORMATS.keys() - {path.suffix.lower()})})"
        ) from error
