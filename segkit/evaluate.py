"""Evaluation: a model against labels, over whole scenes, every valid pixel once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from segkit.calibration import Calibration, CalibrationFit
from segkit.data.cache import Cache
from segkit.data.sources import Sample, resolve
from segkit.data.split import Area, whole
from segkit.decide import Decider
from segkit.errors import DataError
from segkit.files import check_output, staged
from segkit.metrics import Confusion
from segkit.model import Segmenter, load
from segkit.predict.choice import Options
from segkit.progress import progress
from segkit.raster import PathLike
from segkit.recipe import LabelSource, Recipe, Source
from segkit.thresholds import ThresholdFit


def evaluate(
    model: Segmenter | PathLike,
    images: PathLike | Sequence[PathLike | Sequence[PathLike]],
    labels: PathLike | Sequence[PathLike] | LabelSource,
    output: PathLike | None = None,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    overwrite: bool = False,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Score a model on labelled scenes, as it would map them.

    Parameters
    ----------
    model
        A model file, or a loaded one.
    images, labels
        As in a recipe's ``data.train``: a folder, a file, a glob or a list; paired by file stem.
    output
        Where to write the result as JSON.
    tile, overlap, device, precision
        As for `segkit.predict`.

    Returns
    -------
    dict
        As in ``metrics.json``; see `segkit.metrics.Confusion.summary`.

    Raises
    ------
    DataError
        No scene has labels, or a scene does not have the model's bands.
    """
    target = None if output is None else check_output(output, overwrite=overwrite)
    segmenter = model if isinstance(model, Segmenter) else load(model)
    source = Source.model_validate({"images": _text(images), "labels": _text(labels)})
    samples = labelled_samples(source, segmenter.recipe, "evaluate", show_progress=show_progress)
    options = Options(tile=tile, overlap=overlap, device=device, precision=precision)
    confusion = score(Decider(segmenter, options), whole(samples), show_progress=show_progress)
    result = confusion.summary()
    if target is not None:
        with staged(target) as part:
            part.write_text(json.dumps(result, indent=2))
    return result


def _text(paths: Any) -> Any:
    """Write paths as a recipe does."""
    if isinstance(paths, (str, os.PathLike)):
        return os.fspath(paths)
    return paths if isinstance(paths, LabelSource) else [_text(path) for path in paths]


def labelled_samples(
    source: Source, recipe: Recipe, where: str, *, cache: Cache | None = None, show_progress: bool = False
) -> list[Sample]:
    """Open the scenes of a source that have labels; with progress, list on stderr what has no partner.

    Raises
    ------
    DataError
        No scene has labels; `where` is named.
    """
    found = resolve(source, recipe.data, recipe.task, cache)
    labelled = [sample for sample in found.samples if sample.labels is not None]
    if not labelled:
        raise DataError(f"{where}: no scene has labels; images and labels pair by file stem, see segkit check")
    if found.unmatched and show_progress:
        listed = ", ".join(str(path) for path in found.unmatched)
        print(f"{where}: left out, without a partner: {listed}", file=sys.stderr)
    return labelled


def score(decider: Decider, areas: Sequence[Area], *, show_progress: bool = False) -> Confusion:
    """Count decisions against labels in areas, streamed."""
    confusion = Confusion(decider.segmenter.task)
    total = sum(int(window.width * window.height) for area in areas for window in area.windows) / 1e6
    with progress("evaluate", total, "Mpx", show=show_progress) as advance:
        for area in areas:
            for part in decider(area):
                confusion.add(part.planes, part.truth, part.confidence)
                advance(part.window.width * part.window.height / 1e6)
    return confusion


def fitted_calibration(decider: Decider, areas: Sequence[Area]) -> tuple[Calibration | None, Confusion]:
    """Return what makes the truth in areas most likely, and how the decisions score without it."""
    task = decider.segmenter.task
    confusion = Confusion(task)
    fit = CalibrationFit(task, sum(int(window.width * window.height) for area in areas for window in area.windows))
    for area in areas:
        for _, probabilities, truth in decider.probabilities(area):
            fit.add(probabilities, truth)
            planes = task.decide(probabilities[None])
            confusion.add(planes[0].cpu().numpy(), truth, task.confidence(probabilities[None], planes)[0].cpu().numpy())
    return fit.fit(), confusion


def fitted_thresholds(decider: Decider, areas: Sequence[Area]) -> tuple[float, ...] | None:
    """Return the thresholds with which each class has its best F1 in areas; None where the task leaves none open."""
    task = decider.segmenter.task
    if not any(task.open_thresholds or ()):
        return None
    fit = ThresholdFit(task)
    for area in areas:
        for _, probabilities, truth in decider.probabilities(area):
            fit.add(probabilities, truth)
    return fit.fit()
