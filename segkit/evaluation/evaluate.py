"""Evaluation: a model against labels, over whole scenes, every valid pixel once."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.area import Area, whole
from segkit.data.areas import labelled_samples
from segkit.data.pairing import Sample, source_files
from segkit.errors import LabelError, ways
from segkit.evaluation.bootstrap import Resampling
from segkit.evaluation.boundaries import Boundaries
from segkit.evaluation.calibration import CalibrationFit
from segkit.evaluation.decisions import Decided, Decider, MapDecider, Predicted, map_task
from segkit.evaluation.metrics import Confusion, Reliability, disagreement
from segkit.evaluation.objects import Objects
from segkit.evaluation.thresholds import ThresholdFit
from segkit.inference.settings import Options
from segkit.io import quantities
from segkit.io.files import check_apart, check_output, staged
from segkit.io.grid import Grid
from segkit.io.quantities import Quantity
from segkit.io.raster import PathLike
from segkit.models.calibration import Calibration
from segkit.models.segmenter import Segmenter, load
from segkit.recipe.schema import Data, LabelSource, Source
from segkit.runtime.progress import progress
from segkit.task.task import Task
from segkit.vector.tracing.pixel_measures import Squares, ground_of

_STRIP_PIXELS = 2**22
_OF_A_SCENE = ("overall_accuracy", "mean_iou", "macro_f1", "ece", "pixels")


def evaluate(
    model: Segmenter | PathLike,
    images: PathLike | Sequence[PathLike | Sequence[PathLike]] | None,
    labels: PathLike | Sequence[PathLike] | LabelSource,
    output: PathLike | None = None,
    *,
    boundary: str = "2px",
    objects: str = "1px",
    ignore: Sequence[int] = (),
    names: PathLike | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    overwrite: bool = False,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Score a model on labelled scenes, as it would map them; or maps that are there.

    Parameters
    ----------
    model
        A model file, or a loaded one. Or a map (.tif) or a folder of maps, with `images` None.
    images, labels
        As in a recipe's ``data.train``: a folder, a file, a glob or a list; paired by file stem. Labels of maps pair
        with the maps.
    output
        Where to write the result as JSON.
    boundary
        Width of boundaries: "10m" on the ground, "2px" in pixels.
    objects
        Smallest object that is counted: "0.5ha" on the ground, "12px" in pixels.
    ignore
        Of maps: label codes that mean "not known". A model has its own.
    names
        Of maps: a file of class names, as for `segkit.vectorize`.
    tile, overlap, device, precision
        As for `segkit.predict`.

    Returns
    -------
    dict
        As in ``metrics.json`` (see `segkit.evaluation.metrics.Confusion.summary`), and more; docs/evaluate.md has a
        table.

    Raises
    ------
    DataError
        No scene has labels, a scene does not have the model's bands, or labels declare as no data what is also a code
        and do not say what it means (`LabelSource.nodata`).
    """
    target = None if output is None else check_output(output, overwrite=overwrite)
    width, size = quantities.length(boundary, "boundary"), quantities.area(objects, "objects")
    decider: Decider | MapDecider
    if images is None:
        assert not isinstance(model, Segmenter)
        task = map_task(model, names=names)
        source = Source.model_validate({"images": _text(model), "labels": _text(labels)})
        data = Data(train=source, ignore=tuple(ignore))
        samples = labelled_samples(source, data, task, "evaluate", show_progress=show_progress)
        decider = MapDecider(task)
    else:
        segmenter = model if isinstance(model, Segmenter) else load(model)
        recipe = segmenter.recipe
        source = Source.model_validate({"images": _text(images), "labels": _text(labels)})
        samples = labelled_samples(source, recipe.data, recipe.task, "evaluate", show_progress=show_progress)
        decider = Decider(segmenter, Options(tile=tile, overlap=overlap, device=device, precision=precision))
    check_apart([target], [None if isinstance(model, Segmenter) else model, names, *source_files(source)])
    refuse_doubts(samples)
    result = scores(decider, whole(samples), width, size, show_progress=show_progress)
    if target is not None:
        with staged(target) as part:
            part.write_text(json.dumps(result, indent=2))
    return result


def scores(
    decider: Decider | MapDecider,
    areas: Sequence[Area],
    boundary: Quantity,
    size: Quantity = Quantity(1, pixels=True),
    *,
    watch: Callable[[Area, Decided], None] = lambda area, part: None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Return all that is told about decisions in areas; see docs/evaluate.md.

    Decisions and truth of one scene at a time are kept in a file of the temporary folder, for boundaries and objects
    reach beyond the windows in which a scene is decided.
    """
    task = decider.task
    total, reliability, resampling = Confusion(task), Reliability(task), Resampling(task)
    boundaries, objects, told = Boundaries(task, boundary.number), Objects(task, size), []
    mpx = sum(area.sample.scene.grid.height * area.sample.scene.grid.width for area in areas) / 1e6
    with progress("evaluate", mpx, "Mpx", show=show_progress) as advance:
        for number, area in enumerate(areas):
            grid, own = area.sample.scene.grid, Confusion(task)
            ground = None if size.pixels else ground_of(grid)
            with TemporaryFile() as file:
                kept = _Kept(file, task, grid)
                for part in decider(area):
                    sure = part if isinstance(part, Predicted) else None
                    own.add(part.planes, part.truth, None if sure is None else sure.confidence)
                    resampling.add(number, part.window, part.planes, part.truth)
                    if sure is not None:
                        reliability.add(sure.probabilities, part.truth)
                    kept.write(part)
                    watch(area, part)
                    advance(part.window.width * part.window.height / 1e6)
                _add_shapes(boundaries, objects, kept, grid, boundary, ground)
            total.merge(own)
            one = own.summary()
            told.append({"scene": area.sample.scene.name} | {key: one[key] for key in _OF_A_SCENE})
    result = total.summary()
    shares = disagreement(total.counts[0]) if task.planes == 1 and result["pixels"] else (None, None)
    shapes, wholes = boundaries.per_class(), objects.per_class()
    for name, found in result["per_class"].items():
        found |= shapes[name] | wholes[name]
    result |= {"quantity_disagreement": shares[0], "allocation_disagreement": shares[1]}
    result["boundary_width"] = f"{boundary.number:g}{'px' if boundary.pixels else 'm'}"
    result["object_size"] = f"{size.number:g}px" if size.pixels else f"{size.number / 10_000:g}ha"
    if isinstance(decider, Decider):
        result |= {"brier": reliability.brier(), "reliability": total.reliability()}
        result["calibration"] = reliability.per_channel()
    return result | {"intervals": resampling.intervals(), "scenes": told}


class _Kept:
    """Decisions and truth of a scene in a file; what was not written is not known."""

    def __init__(self, file: IO[bytes], task: Task, grid: Grid) -> None:
        self._file, self._grid = file, grid
        # One more than the category, so that what the file does not hold, which reads as 0, is `IGNORE`.
        self._dtype = np.dtype(np.int8 if len(task.categories) < np.iinfo(np.int8).max else np.int16)
        self._layers = 2, task.planes
        file.truncate(math.prod((*self._layers, *grid.shape)) * self._dtype.itemsize)

    def write(self, part: Decided) -> None:
        """Keep a part of the scene."""
        top, left = int(part.window.row_off), int(part.window.col_off)
        layers = np.stack([part.planes, part.truth]).astype(self._dtype) + self._dtype.type(1)
        for layer, rows in enumerate(layers.reshape(-1, *layers.shape[2:])):
            for row, values in enumerate(rows, top):
                self._file.seek(self._place(layer, row) + left * self._dtype.itemsize)
                self._file.write(values.tobytes())

    def read(self, top: int, bottom: int) -> NDArray[np.int16]:
        """Return decided and true planes (2, P, H, W) of some rows."""
        size = (bottom - top) * self._grid.width
        layers = np.empty((math.prod(self._layers), size), dtype=self._dtype)
        for layer, values in enumerate(layers):
            self._file.seek(self._place(layer, top))
            values[:] = np.frombuffer(self._file.read(size * self._dtype.itemsize), self._dtype)
        found: NDArray[np.int16] = layers.astype(np.int16) - np.int16(1)
        return found.reshape(*self._layers, bottom - top, self._grid.width)

    def _place(self, layer: int, row: int) -> int:
        return (layer * self._grid.height + row) * self._grid.width * self._dtype.itemsize


def _add_shapes(
    boundaries: Boundaries, objects: Objects, kept: _Kept, grid: Grid, width: Quantity, ground: Squares | None
) -> None:
    """Count the boundaries and objects of a scene, strip by strip."""
    rows = max(1, _STRIP_PIXELS // grid.width)
    for top in range(0, grid.height, rows):
        bottom = min(top + rows, grid.height)
        window = Window(0, top, grid.width, bottom - top)
        pixel = (1.0, 1.0) if width.pixels else grid.pixel_metres(window)
        halo = boundaries.halo(pixel)[1]
        above, below = max(0, top - halo), min(grid.height, bottom + halo)
        decided, truth = kept.read(above, below)
        own = slice(top - above, bottom - above)
        boundaries.add(decided, truth, pixel, (own, slice(None)))
        objects.add(decided[:, own], truth[:, own], ground, end=bottom == grid.height)


def _text(paths: Any) -> Any:
    """Write paths as a recipe does."""
    if isinstance(paths, (str, os.PathLike)):
        return os.fspath(paths)
    return paths if isinstance(paths, LabelSource) else [_text(path) for path in paths]


def refuse_doubts(samples: Sequence[Sample]) -> None:
    """Raise a LabelError where labels may not mean what they seem to, which scores would not show.

    Training asks `segkit.data.examination.examine`.
    """
    for sample in samples:
        if sample.labels is not None and sample.labels.doubts:
            raise LabelError(
                sample.labels.doubts[0]
                + ways("add --nodata code if such pixels are that", "--nodata ignore if they are not known")
            )


def score(decider: Decider, areas: Sequence[Area], *, show_progress: bool = False) -> Confusion:
    """Count decisions against labels in areas, streamed."""
    confusion = Confusion(decider.task)
    total = sum(int(window.width * window.height) for area in areas for window in area.windows) / 1e6
    with progress("evaluate", total, "Mpx", show=show_progress) as advance:
        for area in areas:
            for part in decider(area):
                confusion.add(part.planes, part.truth, part.confidence)
                advance(part.window.width * part.window.height / 1e6)
    return confusion


def fitted_calibration(decider: Decider, areas: Sequence[Area]) -> tuple[Calibration | None, Confusion]:
    """Return what makes the truth in areas most likely, and how the decisions score without it."""
    confusion = Confusion(decider.task)
    pixels = sum(int(window.width * window.height) for area in areas for window in area.windows)
    fit = CalibrationFit(decider.task, pixels)
    for area in areas:
        for part in decider(area):
            fit.add(part.probabilities, part.truth)
            confusion.add(part.planes, part.truth, part.confidence)
    return fit.fit(), confusion


def fitted_thresholds(decider: Decider, areas: Sequence[Area]) -> tuple[float, ...] | None:
    """Return the thresholds with which each class has its best F1 in areas; None where the task leaves none open."""
    task = decider.task
    if not any(task.open_thresholds or ()):
        return None
    fit = ThresholdFit(task)
    for area in areas:
        for block, truth in decider.blocks(area):
            fit.add(block.probabilities, truth)
    return fit.fit()
