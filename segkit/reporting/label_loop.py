"""Sections on the label loop: rounds, suggested windows, suspicious labels."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from segkit.auditing.layer import LAYER, STATUSES
from segkit.auditing.results import FILES, KINDS
from segkit.errors import DataError, GridError, UsageError, suggest
from segkit.evaluation.evaluate import evaluate
from segkit.inference.settings import PredictOptions
from segkit.io.files import require_file
from segkit.io.paths import PathLike
from segkit.io.polygons import Polygons, true_hectares
from segkit.io.scene import Scene
from segkit.io.vector import read_layer
from segkit.labelling.work_file import DONE, SKIP, STATUS, TODO, WorkFile, read_work_file
from segkit.models.model_file import read_header
from segkit.models.run_folder import MODEL
from segkit.plots.learning_curve import learning_curve
from segkit.plots.text import UNDEFINED, format_hectares, format_percent, format_score
from segkit.recipe.label_source import LabelSource
from segkit.reporting.html import Chart, Section, Table
from segkit.reporting.window_pictures import draw_work_windows

OWN_SCORES = (
    "Each model scored on the validation areas of its own run. The scores are comparable if these are the same areas; "
    "all models are scored alike if held-out images and labels are given with the runs."
)
_MAX_WINDOWS, _MAX_PICTURES, _MAX_FINDINGS = 40, 12, 20  # in a table, in a picture, in a table
_STATUS_TEXTS = {TODO: "to do", DONE: "done", SKIP: "skipped"}
_NOT_CHECKED = "not checked"
_ERROR_KEYS = {"pixels", "share", "interval", "into"}


@dataclass(frozen=True)
class Round:
    """A training in the label loop: its labelled pixels (None: not known) and scores."""

    name: str
    labelled: int | None
    scores: Mapping[str, Any]


def read_rounds(folders: Sequence[Path]) -> list[Round]:
    """Return runs with the scores of their validation areas.

    Raises
    ------
    UsageError
        No run has any.
    """
    headers = [read_header(folder / MODEL) for folder in folders]
    rounds = [
        Round(str(folder), _labelled(one.metrics), one.metrics) for folder, one in zip(folders, headers, strict=True)
    ]
    if all(one.scores.get("overall_accuracy") is None for one in rounds):
        raise UsageError(
            f"{', '.join(map(str, folders))}: trained without validation, so no scores show how they differ"
            + suggest("give held-out images and labels (--images and --labels)")
        )
    return rounds


def score_rounds(
    folders: Sequence[Path],
    images: PathLike | Sequence[PathLike],
    labels: PathLike | LabelSource,
    options: PredictOptions,
    *,
    show_progress: bool,
) -> list[Round]:
    """Return runs with the scores of their models on the same labels, as by `segkit.evaluate`."""
    rounds = []
    for folder in folders:
        model = folder / MODEL
        scores = evaluate(
            model, images, labels, device=options.device, precision=options.precision, show_progress=show_progress
        )
        rounds.append(Round(str(folder), _labelled(read_header(model).metrics), scores))
    return rounds


def _labelled(metrics: Mapping[str, Any]) -> int | None:
    found = metrics.get("labelled_pixels")
    return None if found is None else int(found)


def rounds_section(rounds: Sequence[Round], intro: str) -> Section:
    """Return the section on scores by round."""
    labelled = [one.labelled for one in rounds]
    rows = [
        (
            str(number), one.name, UNDEFINED if one.labelled is None else f"{one.labelled:,}",
            *(format_score(one.scores.get(key)) for key in ("overall_accuracy", "mean_iou", "macro_f1")),
        )
        for number, one in enumerate(rounds, 1)
    ]  # fmt: skip
    heads = ("round", "run", "labelled pixels", "accuracy", "mean IoU", "mean F1")
    caption = "Accuracy and mean IoU by labelled pixels." if None not in labelled else "Accuracy and mean IoU by round."
    chart = Chart("rounds", learning_curve(labelled, [one.scores for one in rounds]), caption)
    return Section("Rounds of labelling", intro, charts=[chart], tables=[Table("Scores by round", heads, rows)])


def windows_section(path: Path, scenes: Sequence[Scene], name: str) -> Section:
    """Return the section on a file of suggested windows.

    Parameters
    ----------
    scenes
        Imagery with the bands that are shown.
    name
        Of the picture.
    """
    file = read_work_file(path)
    windows = file.windows.sort_values("id", kind="stable")
    rows: list[dict[str, Any]] = [{str(key): value for key, value in row.items()} for row in windows.to_dict("records")]
    counts = Counter(row["status"] for row in rows)
    who = Counter(_text(row["labeller"]) for row in rows if row["status"] == DONE)
    facts = {
        "file": str(path),
        "windows": ", ".join(f"{counts[status]:,} {_STATUS_TEXTS[status]}" for status in STATUS),
        "area of done windows": _done_area(file),
    }
    if who:
        facts["labelled by"] = ", ".join(f"{one} ({number:,})" for one, number in who.most_common())
    shown = rows[:_MAX_PICTURES]
    pictures = []
    if shown:
        figure, missing = draw_work_windows(file, shown, scenes)
        of_all = "All windows" if len(shown) == len(rows) else f"The first {len(shown)} of {len(rows):,} windows"
        note = f" No imagery was given for {missing} of them." if missing else ""
        pictures = [Chart(name, figure, f"{of_all} with their polygons: pre-labels, or what was drawn.{note}")]
    heads = ("window", "scene", "status", "labeller", "uncertainty", "size", "note")
    cells = [
        (
            str(row["id"]), _text(row.get("scene")), _STATUS_TEXTS[row["status"]], _text(row["labeller"]),
            format_score(row.get("uncertain")), f"{row['rows']} x {row['cols']}", _text(row.get("note")),
        )
        for row in rows[:_MAX_WINDOWS]
    ]  # fmt: skip
    table = Table(_listed("Windows, the most useful first", len(cells), len(rows)), heads, cells)
    return Section(f"Windows to label: {path.stem}", "", facts=facts, tables=[table], pictures=pictures)


def _done_area(file: WorkFile) -> str:
    done = file.windows[file.windows["status"] == DONE]
    if file.crs is None:
        return f"{int((done['rows'] * done['cols']).sum()):,} pixels"
    shapes = done["shape"].to_numpy(dtype=object)
    try:
        areas = true_hectares(Polygons(file.path, file.crs, shapes, None, 0)) if len(shapes) else np.zeros(0)  # type: ignore[arg-type]
    except GridError:
        return UNDEFINED
    return f"{format_hectares(float(areas.sum()))} ha"


def audit_section(folder: Path, name: str) -> Section:
    """Return the section on the results of an audit, with what was found out about them since.

    Raises
    ------
    MissingFileError, DataError
        A file of the audit is missing or damaged.
    """
    from PIL import Image, UnidentifiedImageError

    layer, picture, summary = (require_file(folder / file, "file of an audit") for file in FILES)
    found = _read_summary(summary)
    table = read_layer(layer, LAYER).attributes
    if lost := [field for field in ("rank", "kind", "scene", "status") if field not in table]:
        raise DataError(f"{layer}: has no field {lost[0]!r}; repeat the audit")
    table = table.sort_values("rank", kind="stable")
    try:
        with Image.open(picture) as opened:
            image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{picture}: cannot be read ({error}); repeat the audit") from error
    kinds = Counter(table["kind"])
    statuses = Counter(_text(value) for value in table["status"])
    checked = [f"{statuses[status]:,} {status}" for status in STATUSES if statuses[status]]
    left = len(table) - sum(statuses[status] for status in STATUSES)
    facts = {
        "folder": str(folder),
        "predicted by": f"{found['learner']}, {found['folds']}",
        "suspicious labels": f"{len(table):,} in {len(found['scenes']):,} scenes",
        **{kind: f"{kinds[kind]:,}: {meaning}" for kind, meaning in KINDS.items() if kinds[kind]},
        "checked": ", ".join([*checked, f"{left:,} {_NOT_CHECKED}"]),
    }
    return Section(
        f"Suspicious labels: {folder.name}",
        "Labels that are predicted as another class by models that have not seen them. Whether a label or the model is "
        "wrong is for a person to see.",
        facts=facts,
        tables=[_findings(table), _errors(found["label_error"])],
        pictures=[Chart(name, image, "The first suspicious labels: image, label, prediction.")] if len(table) else [],
    )


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in ("learner", "folds", "scenes", "label_error") if key not in found]
        missing += [] if missing else [key for one in found["label_error"].values() for key in _ERROR_KEYS - one.keys()]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}); repeat the audit") from error
    if missing:
        raise DataError(f"{path}: has no {missing[0]}, so it is no result of an audit; give the folder of segkit audit")
    return dict(found)


def _findings(table: pandas.DataFrame) -> Table:
    rows = [
        (
            str(row["rank"]), _text(row["kind"]), _text(row["scene"]), _text(row.get("class")),
            _text(row.get("proposed")), format_score(row.get("score")), format_hectares(row.get("area_ha")),
            _text(row.get("status"), _NOT_CHECKED), _text(row.get("comment") or row.get("note")),
        )
        for row in table.head(_MAX_FINDINGS).to_dict("records")
    ]  # fmt: skip
    heads = ("rank", "kind", "scene", "label", "proposed", "score", "hectares", "status", "note")
    return Table(
        _listed("Suspicious labels, the largest expected wrong area first", len(rows), len(table)), heads, rows
    )


def _errors(errors: Mapping[str, Any]) -> Table:
    rows: list[Sequence[str]] = []
    for name, one in errors.items():
        low, high = one["interval"] or (None, None)
        interval = UNDEFINED if low is None else f"{format_percent(low)} to {format_percent(high)}"
        into = ", ".join(f"{other} ({format_percent(share)})" for other, share in list(one["into"].items())[:3])
        rows.append((name, f"{one['pixels']:,}", format_percent(one["share"]), interval, into or UNDEFINED))
    heads = ("label", "pixels", "error", "95 % interval", "predicted as")
    return Table(
        "Share of the pixels that are confidently of another class; errors of the model count, too", heads, rows
    )


def _listed(what: str, shown: int, total: int) -> str:
    return what if shown == total else f"{what} (the first {shown} of {total:,})"


def _text(value: Any, empty: str = UNDEFINED) -> str:
    """Return a value of an attribute table as text; `empty` if there is none."""
    return empty if value is None or value != value or not str(value).strip() else str(value).strip()
