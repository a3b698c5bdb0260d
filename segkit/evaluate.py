"""Evaluation: a model against labels, over whole scenes, every valid pixel once."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window, intersect, intersection

from segkit.data.sources import resolve
from segkit.data.split import Area, whole
from segkit.errors import DataError
from segkit.files import check_output, staged
from segkit.metrics import Confusion
from segkit.model import Segmenter, load
from segkit.predict.engine import predict_blocks
from segkit.progress import progress
from segkit.raster import PathLike
from segkit.recipe import LabelSource, Source
from segkit.task import IGNORE


def evaluate(
    model: Segmenter | PathLike,
    images: PathLike | Sequence[PathLike | Sequence[PathLike]],
    labels: PathLike | Sequence[PathLike] | LabelSource,
    output: PathLike | None = None,
    *,
    tile: int = 1024,
    overlap: int = 128,
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
    found = resolve(source, segmenter.recipe.data, segmenter.task)
    samples = [sample for sample in found.samples if sample.labels is not None]
    if not samples:
        raise DataError(f"{images} and {labels}: no scene has labels; images and labels pair by file stem")
    confusion = score(
        segmenter,
        whole(samples),
        tile=tile,
        overlap=overlap,
        device=device,
        precision=precision,
        show_progress=show_progress,
    )
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


def score(segmenter: Segmenter, areas: Sequence[Area], *, show_progress: bool = False, **prediction: Any) -> Confusion:
    """Count decisions against labels in areas, streamed; `prediction` goes to `predict_blocks`."""
    task = segmenter.task
    confusion = Confusion(task)
    total = sum(int(window.width * window.height) for area in areas for window in area.windows) / 1e6
    with progress("evaluate", total, "Mpx", show=show_progress) as advance:
        for area in areas:
            region = _Windows(area.windows)
            for block in predict_blocks(segmenter, area.sample.scene, region=region, **prediction):
                if block.valid.any():
                    decided = task.decide(block.probabilities[None])
                    confidence = task.confidence(block.probabilities[None], decided)[0].cpu().numpy()
                    truth = np.where(block.valid, area.labels.read(block.window), np.int16(IGNORE))
                    confusion.add(decided[0].cpu().numpy(), truth, confidence)
                    advance(block.valid.sum() / 1e6)
    return confusion


class _Windows:
    """A region that is made of windows."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self._windows = windows

    def mask(self, window: Window) -> NDArray[np.bool_]:
        inside = np.zeros((int(window.height), int(window.width)), dtype=bool)
        for own in self._windows:
            if intersect([own, window]):
                part = intersection([own, window])
                row, column = int(part.row_off - window.row_off), int(part.col_off - window.col_off)
                inside[row : row + int(part.height), column : column + int(part.width)] = True
        return inside
