"""The results of a run: calibration, scores, pictures and the model file."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segkit.data.applicability import describe_training_pixels
from segkit.data.examination import Examination
from segkit.data.statistics import Statistics
from segkit.evaluation.decisions import ModelPredictor
from segkit.evaluation.worst_windows import draw_worst_windows
from segkit.inference.settings import PredictOptions
from segkit.io.files import atomic_write
from segkit.models.description import class_colors, describe_model
from segkit.models.model_file import read_header
from segkit.models.run_folder import LOG, METRICS, MODEL, read_log
from segkit.models.segmenter import Segmenter
from segkit.plots import style, training_curves
from segkit.runtime.tables import Described
from segkit.training.baselines import compare_with_baselines, score_baselines
from segkit.training.scoring import calibrate_and_score

CURVES, WORST = "curves.png", "worst.png"  # in the run folder
_MIN_SHOWN_CHANGE = 5e-5  # smallest change of a score that shows in four digits


@dataclass(frozen=True, repr=False)
class Run(Described):
    """A run with its results.

    Parameters
    ----------
    folder
        Run folder.
    model
        Model file, with the best validation IoU or of the last epoch (`train.checkpoint`).
    metrics
        Scores of the model on the validation areas, as in `metrics.json`.
    seconds
        Duration of the call.
    """

    folder: Path
    model: Path
    metrics: dict[str, Any]
    seconds: float

    def _describe(self) -> tuple[str, list[tuple[str, str]], dict[str, str]]:
        title = f"run {self.folder}"
        if not self.model.is_file():
            return title, [("model", f"{self.model} (no such file any more)")], {}
        header = read_header(self.model)
        return title, describe_model(header, self.model), class_colors(header.to_recipe().task)


@dataclass(frozen=True)
class Epochs:
    """The epochs of a run, counted from 1; in the metrics of the model file as `epochs`.

    Parameters
    ----------
    kept
        The epoch whose weights are in the model file.
    finished
        The last epoch that was trained: fewer than planned after early stopping or `segkit finish`.
    planned
        `train.epochs`.
    """

    kept: int
    finished: int
    planned: int


def write_results(
    folder: Path,
    segmenter: Segmenter,
    examination: Examination,
    statistics: Statistics,
    epochs: Epochs | None,
    accelerator: str,
    *,
    show_progress: bool,
) -> None:
    """Fit calibration and thresholds, score the model, and write the run's results, the model file last.

    `epochs` is None for a classical learner, which has none.
    """
    training, validation = examination.training, examination.validation
    predictor = ModelPredictor(segmenter, PredictOptions(device=accelerator))
    segmenter.metrics |= calibrate_and_score(predictor, validation, examination.distances)
    segmenter.metrics.setdefault("labelled_pixels", int(statistics.counts.sum()))
    segmenter.training_pixels = describe_training_pixels(training)
    segmenter.training_scenes = examination.training_scenes
    if validation:
        segmenter.metrics["baselines"] = score_baselines(
            segmenter, training, validation, statistics.counts, accelerator
        )
        if show_progress and (warning := compare_with_baselines(segmenter)):
            print(f"warning: {warning}", file=sys.stderr)
    if epochs is not None:
        segmenter.metrics["epochs"] = asdict(epochs)
        _write_curves(folder, epochs.kept, segmenter.metrics["mean_iou"], show_progress=show_progress)
    with atomic_write(folder / METRICS) as part:
        part.write_text(json.dumps(segmenter.metrics, indent=2), encoding="utf-8")
    if validation:
        draw_worst_windows(predictor, validation, folder / WORST)
    segmenter.save(folder / MODEL)


def _write_curves(folder: Path, epoch: int, iou: float | None, *, show_progress: bool) -> None:
    """Draw the log, and say how far the final validation IoU is from that of the epoch that was kept."""
    log = read_log(folder / LOG)
    logged_iou = next((row.get("val_iou") for row in log if row["epoch"] == epoch), None)
    if show_progress and logged_iou is not None and iou is not None and abs(iou - logged_iou) >= _MIN_SHOWN_CHANGE:
        print(
            f"kept epoch {epoch}; IoU {iou:.4f} with calibration and thresholds fitted on the validation data "
            f"(before: {logged_iou:.4f})",
            file=sys.stderr,
        )
    with atomic_write(folder / CURVES) as part:
        style.write_png(training_curves.curves(log, epoch), part)
