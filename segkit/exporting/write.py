"""`segkit.export`: a model as an ONNX or torch.export file, which is compared with torch before it gets its name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from segkit.errors import ModelFileError, SegkitError, UsageError, first_line
from segkit.exporting.card import convert_nodata, deepness_keys, list_nodata, make_card
from segkit.exporting.formats import FORMATS
from segkit.exporting.parity import Parity, check_parity
from segkit.exporting.quantization import MIN_AGREEMENT, CalibrationTiles, Quantization, quantize_graph
from segkit.io.files import atomic_write, check_distinct, check_output
from segkit.io.paths import PathLike
from segkit.models.ensemble import load_model, with_imagery
from segkit.models.graph import ExportedGraph, check_exportable
from segkit.models.graph_export import trace, write_metadata
from segkit.models.graph_outputs import CARD_KEY, tensor_names
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
    quantization
        What int8 changes; None for fp32.
    """

    path: Path
    decided: bool
    outputs: dict[str, list[str]]
    nodata: tuple[float, ...]
    parity: Parity
    deepness_limits: list[str] | None
    quantization: Quantization | None = None


def export(
    model: AnyModel | PathLike | Sequence[AnyModel | PathLike],
    output: PathLike,
    *,
    decide: bool = False,
    tile: int | None = None,
    nodata: Sequence[float] = (),
    check_on: PathLike | None = None,
    quantize: str | None = None,
    calibrate: PathLike | Sequence[PathLike] = (),
    min_agreement: float = MIN_AGREEMENT,
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
    quantize
        "int8": the inner convolutions of the network compute in integers (ONNX only).
    calibrate
        For that, scenes as for `segkit.predict`, which are cut into tiles of 256 pixels: two thirds give the ranges of
        the values, on the others int8 is compared with fp32.
    min_agreement
        Share of the pixels of the held-out tiles that must have the class of fp32.

    Raises
    ------
    UsageError
        The format is not known, an option is not possible, or a graph cannot hold the model.
    ModelFileError
        The written file gives other results than torch, or int8 changes the class of too many pixels. The output is not
        changed.
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
    scenes = _check_quantization(path, quantize, calibrate, min_agreement, decide=decide)
    _check_tile(found, tile)
    tile = tile or found.fixed_window_size
    values = tuple(value for value in nodata or list_nodata(found) if math.isfinite(value))
    reading = with_imagery(found, {"nodata": list(values)} if values else {})
    tiles = None if quantize is None else CalibrationTiles(reading, scenes, tile)
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
                parity = check_parity(
                    found, run, path, tile=tile, least=least, decide=decide, check_on=check_on, nodata=nodata_in_units
                )
            quantization = None
            if tiles is not None:
                quantization = quantize_graph(found, part, tiles, min_agreement=min_agreement)
                write_metadata(part, {CARD_KEY: card | {"quantization": asdict(quantization)}} | keys)
            advance(1)
    outputs = {one["name"]: one["channels"] for one in card["outputs"]}
    limits = limits if path.suffix.lower() == ".onnx" else None
    return ExportSummary(path, decide, outputs, values, parity, limits, quantization)


def _check_quantization(
    path: Path, quantize: str | None, calibrate: PathLike | Sequence[PathLike], min_agreement: float, *, decide: bool
) -> Sequence[PathLike]:
    """Return the scenes of the calibration; raise a UsageError if the options do not fit together."""
    scenes = [calibrate] if isinstance(calibrate, (str, Path)) else list(calibrate)  # type: ignore[arg-type]
    if quantize not in (None, "int8"):
        raise UsageError(f"quantize {quantize!r} is not known; use int8, or leave it out")
    if not 0 <= min_agreement <= 1:
        raise UsageError(f"the minimum agreement is {min_agreement:g}; it is a share from 0 to 1")
    if quantize is None:
        if scenes:
            raise UsageError("tiles for a calibration are given, which only int8 needs; add --quantize int8")
        return scenes
    if path.suffix.lower() != ".onnx" or decide:
        what = "probabilities (without --decide)" if decide else f".onnx files, not for {path.suffix}"
        raise UsageError(f"int8 is for {what}; leave out one of both")
    if not scenes:
        raise UsageError("int8 needs tiles of your imagery for its calibration; name some with --calibrate")
    return scenes


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
