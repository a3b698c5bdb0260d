"""Evaluate a model or maps against labels, over whole scenes, each valid pixel once."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from rasterio.windows import Window

from segkit.data.applicability import compare_with_model, describe_unlike_scenes
from segkit.data.area import LabelledArea, full_areas
from segkit.data.areas import open_labelled_samples
from segkit.data.band_warnings import describe_alpha_bands, describe_partial_layers, describe_unmatched_bands
from segkit.data.leakage import describe_training_labels, label_files, recipes_of_maps
from segkit.data.pairing import Sample, paths_as_text, source_files
from segkit.errors import LabelError, UsageError, suggest
from segkit.evaluation.bootstrap import BootstrapIntervals
from segkit.evaluation.boundaries import Boundaries
from segkit.evaluation.calibration import CalibrationFit
from segkit.evaluation.decisions import MapReader, ModelPredictor, PredictedBlock, PredictedProbabilities, map_task
from segkit.evaluation.metrics import Confusion, Reliability, disagreement
from segkit.evaluation.objects import Objects
from segkit.evaluation.scene_scores import measure_distances, summarize_scene
from segkit.evaluation.thresholds import ThresholdFit
from segkit.inference.request import given_imagery
from segkit.inference.settings import PredictOptions
from segkit.io.files import atomic_write, check_distinct, check_output
from segkit.io.grid import Grid
from segkit.io.layer_file import LayerFile
from segkit.io.paths import PathLike
from segkit.io.quantities import Quantity, parse_area, parse_length
from segkit.models.calibration import Calibration
from segkit.models.ensemble import load_model
from segkit.recipe.imagery import change_imagery
from segkit.recipe.label_source import LabelSource
from segkit.recipe.schema import Data, Recipe
from segkit.recipe.sources import DatasetSource
from segkit.runtime.deprecation import renamed_keywords
from segkit.runtime.progress import progress
from segkit.task import CoOccurrence, Task
from segkit.vector.tracing.pixel_measures import PixelMeasures, fit_pixel_measures

if TYPE_CHECKING:
    from segkit.models.ensemble import AnyModel

_STRIP_PIXELS = 2**22


@renamed_keywords(names="class_names", boundary="boundary_width", objects="min_object_area")
def evaluate(
    model: AnyModel | PathLike | Sequence[AnyModel | PathLike],
    images: PathLike | Sequence[PathLike | Sequence[PathLike]] | None,
    labels: PathLike | Sequence[PathLike] | LabelSource,
    output: PathLike | None = None,
    *,
    boundary_width: str = "2px",
    min_object_area: str = "1px",
    pair: str | None = None,
    dates: str | None = None,
    ignore: Sequence[int] = (),
    class_names: PathLike | None = None,
    nodata: float | Sequence[float] | None = None,
    scale: float | Sequence[float] | None = None,
    offset: float | Sequence[float] | None = None,
    mask: PathLike | None = None,
    mask_preset: str | None = None,
    layers: Mapping[str, PathLike] | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    backend: str | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Score a model on labelled scenes, which are predicted as by `segkit.predict`; or score existing maps.

    Parameters
    ----------
    model
        A model file or a loaded model, or several as for `segkit.predict`. For maps: a map (.tif), a folder of maps, or
        a `segkit.Mosaic` of maps that are one, with `images` None.
    images, labels
        As in a recipe's ``data.train``: a folder, a file, a glob, a `segkit.Mosaic` or a list, paired by file stem. For
        maps, the labels are paired with the maps.
    output
        JSON file for the result.
    pair, dates
        Patterns of the names of images (of maps), as in a recipe's ``data.train``.
    boundary_width
        Boundary width: "10m" on the ground, "2px" in pixels.
    min_object_area
        Minimum object size: "0.5ha" on the ground, "12px" in pixels.
    ignore
        For maps: label codes that mean unlabelled. A model has its own.
    class_names
        For maps: a file of class names, as for `segkit.vectorize`.
    nodata, scale, offset, mask, mask_preset, layers
        For a model: as for `segkit.predict`, of the images.
    tile, overlap, device, precision, backend
        As for `segkit.predict`.

    Returns
    -------
    dict
        The content of ``metrics.json`` (see `segkit.evaluation.metrics.Confusion.summary`) and more; docs/evaluate.md
        lists all keys.

    Raises
    ------
    DataError
        No scene has labels, a scene does not have the model's bands, or the labels' no-data value is also the code of a
        class and `LabelSource.nodata` does not say which it is.
    """
    target = None if output is None else check_output(output, overwrite=overwrite)
    width = parse_length(boundary_width, "boundary width")
    size = parse_area(min_object_area, "minimum object area")
    predictor: ModelPredictor | MapReader
    distances: Sequence[float | None] | None = None
    if images is None:
        assert isinstance(model, (str, os.PathLike))
        task = map_task(model, class_names=class_names)
        if dates is not None:
            raise UsageError("dates are of images, and maps have none; leave dates out")
        source = _labelled_source(model, labels, {"pair": pair})
        data = Data(train=source, ignore=tuple(ignore))
        samples = open_labelled_samples(source, data, task, "evaluate", show_progress=show_progress)
        predictor = MapReader(task)
    else:
        segmenter = load_model(model)
        recipe = segmenter.recipe
        data = change_imagery(recipe.data, given_imagery(nodata, scale, offset, mask, mask_preset, layers))
        source = _labelled_source(images, labels, {"pair": pair, "dates": dates})
        samples = open_labelled_samples(
            source, data, recipe.task, "evaluate", trained=segmenter.band_names, show_progress=show_progress
        )
        _warn_of_unlike_scenes(segmenter, samples)
        scenes = [one.scene for one in samples]
        found = (*describe_alpha_bands(scenes), *describe_partial_layers(scenes))
        for text in (*found, describe_unmatched_bands(segmenter.band_names, scenes)):
            if text is not None:
                warnings.warn(text, stacklevel=3)
        options = PredictOptions(tile=tile, overlap=overlap, device=device, precision=precision, backend=backend)
        predictor = ModelPredictor(segmenter, options)
        distances = measure_distances(segmenter, [one.scene for one in samples])
    models = model if isinstance(model, Sequence) and not isinstance(model, str) else [model]
    read = [one for one in (*models, class_names) if isinstance(one, (str, os.PathLike))]
    check_distinct([target], [*read, *source_files(source, data)])
    refuse_ambiguous_labels(samples)
    if show_progress:
        recipes = recipes_of_maps([one.scene.paths[0] for one in samples]) if images is None else [segmenter.recipe]
        _warn_of_training_labels(recipes, label_files(samples))
    result = evaluate_areas(
        predictor, full_areas(samples), width, size, distances=distances, show_progress=show_progress
    )
    if target is not None:
        with atomic_write(target) as part:
            part.write_text(json.dumps(result, indent=2), encoding="utf-8")
    return result


def evaluate_areas(
    predictor: ModelPredictor | MapReader,
    areas: Sequence[LabelledArea],
    boundary: Quantity,
    size: Quantity = Quantity(1, pixels=True),
    *,
    distances: Sequence[float | None] | None = None,
    on_block: Callable[[LabelledArea, PredictedBlock], None] = lambda area, block: None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Return all scores of the decisions in areas; docs/evaluate.md lists the keys.

    Decisions and truth of one scene at a time are stored in a temporary file, because boundaries and objects extend
    beyond the blocks in which a scene is predicted.

    Parameters
    ----------
    boundary, size
        Boundary width and minimum object size.
    distances
        Of each area, for its scores: how far its scene is from the training scenes in appearance; None if unknown.
    on_block
        Called with each predicted block.
    """
    task = predictor.task
    total, reliability, bootstrap = Confusion(task), Reliability(task), BootstrapIntervals(task)
    together = CoOccurrence(task)
    boundaries, objects, scene_scores = Boundaries(task, boundary.number), Objects(task, size), []
    mpx = sum(area.sample.scene.grid.height * area.sample.scene.grid.width for area in areas) / 1e6
    with progress("evaluate", mpx, "Mpx", show=show_progress) as advance:
        for number, area in enumerate(areas):
            grid, confusion = area.sample.scene.grid, Confusion(task)
            measures = None if size.pixels else fit_pixel_measures(grid)
            with TemporaryFile() as file:
                decisions = _SceneDecisions(file, task, grid)
                for block in predictor(area):
                    if isinstance(block, PredictedProbabilities):
                        confusion.add(block.decided, block.truth, block.confidence)
                        reliability.add(block.probabilities, block.truth)
                    else:
                        confusion.add(block.decided, block.truth)
                    bootstrap.add(number, block.window, block.decided, block.truth)
                    decisions.write(block)
                    if task.relations:
                        together.add(block.decided[:, block.valid])
                    on_block(area, block)
                    advance(block.window.width * block.window.height / 1e6)
                _add_boundaries_and_objects(boundaries, objects, decisions, grid, boundary, measures)
            total.merge(confusion)
            scene_scores.append(summarize_scene(area, confusion, None if distances is None else distances[number]))
    result = total.summary()
    quantity, allocation = disagreement(total.counts[0]) if task.n_targets == 1 and result["pixels"] else (None, None)
    boundary_scores, object_scores = boundaries.per_class(), objects.per_class()
    for name, scores in result["per_class"].items():
        scores |= boundary_scores[name] | object_scores[name]
    result |= {"quantity_disagreement": quantity, "allocation_disagreement": allocation}
    result["boundary_width"] = f"{boundary.number:g}{'px' if boundary.pixels else 'm'}"
    result["object_size"] = f"{size.number:g}px" if size.pixels else f"{size.number / 10_000:g}ha"
    if isinstance(predictor, ModelPredictor):
        result |= {"brier": reliability.brier(), "reliability": total.reliability()}
        result["calibration"] = reliability.per_channel()
    if task.relations:
        result["contradictions"] = together.summary()
    return result | {"intervals": bootstrap.intervals(), "scenes": scene_scores}


class _SceneDecisions:
    """Decisions and truth of a scene in a file; pixels that are not written are unlabelled."""

    def __init__(self, file: IO[bytes], task: Task, grid: Grid) -> None:
        # Category + 1 is stored, so that pixels that were not written, which are read as 0, become `IGNORE`.
        dtype = np.int8 if len(task.categories) < np.iinfo(np.int8).max else np.int16
        self._layers = LayerFile(file, 2 * task.n_targets, grid.shape, dtype)

    def write(self, block: PredictedBlock) -> None:
        """Store a block of the scene."""
        self._layers.write(block.window, np.concatenate([block.decided, block.truth]) + 1)

    def read(self, top: int, bottom: int) -> NDArray[np.int16]:
        """Return predicted and true category indices (2, T, H, W) of the rows from `top` to `bottom` (exclusive)."""
        layers = self._layers.read(top, bottom).astype(np.int16) - np.int16(1)
        return layers.reshape(2, -1, *layers.shape[1:])


def _add_boundaries_and_objects(
    boundaries: Boundaries,
    objects: Objects,
    decisions: _SceneDecisions,
    grid: Grid,
    width: Quantity,
    measures: PixelMeasures | None,
) -> None:
    """Add the boundaries and objects of a scene, strip by strip."""
    rows = max(1, _STRIP_PIXELS // grid.width)
    for top in range(0, grid.height, rows):
        bottom = min(top + rows, grid.height)
        window = Window(0, top, grid.width, bottom - top)
        pixel = (1.0, 1.0) if width.pixels else grid.pixel_metres(window)
        halo = boundaries.halo(pixel)[1]
        first, last = max(0, top - halo), min(grid.height, bottom + halo)
        decided, truth = decisions.read(first, last)
        rows_of_strip = slice(top - first, bottom - first)
        boundaries.add(decided, truth, pixel, (rows_of_strip, slice(None)))
        objects.add(decided[:, rows_of_strip], truth[:, rows_of_strip], measures, end=bottom == grid.height)


def _labelled_source(images: Any, labels: Any, patterns: dict[str, str | None]) -> DatasetSource:
    """Return images and labels with patterns of their names as a source.

    Raises
    ------
    UsageError
        A pattern is not valid, or does not fit the images.
    """
    try:
        return DatasetSource.model_validate(
            {"images": paths_as_text(images), "labels": paths_as_text(labels), **patterns}
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(str(first.get("ctx", {}).get("error", first["msg"]))) from error


def _warn_of_training_labels(recipes: Sequence[Recipe], labels: Sequence[Path]) -> None:
    if trained := next(filter(None, (describe_training_labels(recipe, labels) for recipe in recipes)), None):
        print(f"warning: {trained}", file=sys.stderr)


def _warn_of_unlike_scenes(model: AnyModel, samples: Sequence[Sample]) -> None:
    comparisons = [compare_with_model(model, sample.scene) for sample in samples]
    if warning := describe_unlike_scenes([one for one in comparisons if one is not None]):
        warnings.warn(warning, stacklevel=4)


def refuse_ambiguous_labels(samples: Sequence[Sample]) -> None:
    """Raise a LabelError if the meaning of a label value is ambiguous, which would not show in the scores.

    For training, `segkit.data.examination.examine` reports this.
    """
    for sample in samples:
        if sample.labels is not None and sample.labels.ambiguities:
            raise LabelError(
                sample.labels.ambiguities[0]
                + suggest("add --nodata code if such pixels are of the class", "--nodata ignore if they are unlabelled")
            )


def score_areas(
    predictor: ModelPredictor, areas: Sequence[LabelledArea], distances: Sequence[float | None] | None = None
) -> dict[str, Any]:
    """Return the scores of a model in areas, of all together and by scene, without boundaries, objects and intervals.

    Parameters
    ----------
    distances
        As for `evaluate_areas`.
    """
    total, scene_scores = Confusion(predictor.task), []
    for area, distance in zip(areas, distances or (None,) * len(areas), strict=True):
        confusion = Confusion(predictor.task)
        for block in predictor(area):
            confusion.add(block.decided, block.truth, block.confidence)
        total.merge(confusion)
        scene_scores.append(summarize_scene(area, confusion, distance))
    return total.summary() | {"scenes": scene_scores}


def fit_calibration(predictor: ModelPredictor, areas: Sequence[LabelledArea]) -> tuple[Calibration | None, Confusion]:
    """Fit the calibration on labelled areas; return it and the confusion without it."""
    confusion = Confusion(predictor.task)
    pixels = sum(int(window.width * window.height) for area in areas for window in area.windows)
    fit = CalibrationFit(predictor.task, pixels)
    for area in areas:
        for block in predictor(area):
            fit.add(block.probabilities, block.truth)
            confusion.add(block.decided, block.truth, block.confidence)
    return fit.fit(), confusion


def fit_thresholds(predictor: ModelPredictor, areas: Sequence[LabelledArea]) -> tuple[float, ...] | None:
    """Return the thresholds with the highest F1 of each class in areas; None if the task has no thresholds to fit."""
    task = predictor.task
    if not any(task.thresholds_to_fit or ()):
        return None
    fit = ThresholdFit(task)
    for area in areas:
        for block, truth in predictor.blocks(area):
            fit.add(block.probabilities, truth)
    return fit.fit()
