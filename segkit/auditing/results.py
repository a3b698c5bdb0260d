"""The result of an audit: a ranked list of suspicious labels, offsets of scenes, and the share of label error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segkit.assess.intervals import cluster_interval
from segkit.auditing.registration import LabelShift
from segkit.runtime.tables import format_table
from segkit.task import Task

FILES = "audit.gpkg", "audit.png", "audit.json"  # in the folder of an audit
KINDS = {
    "swapped": "two classes are swapped in the scene",
    "shifted": "the labels of the scene lie beside their image",
    "class": "a whole segment of labels is of another class",
    "missing": "ground labelled background looks like a class",
    "part": "a part of a segment is of another class",
}
_MIN_SCENES = 10  # with fewer, parts of scenes are compared
_MAX_LISTED = 20  # rows of a table in the text


@dataclass(frozen=True)
class Finding:
    """A suspicious label.

    Parameters
    ----------
    rank
        Its place in the list, from 1: findings about whole scenes first, then by the expected wrong area.
    kind
        One of `KINDS`.
    scene
        Name of the scene.
    label, proposed
        The class that is labelled, and the one that is proposed; of overlapping classes "no water" is the absence of
        water. Empty for an offset.
    score
        How strongly the prediction contradicts the label, 0 to 1.
    confident
        Whether it counts as a label error: the probability of the proposed class is at least the mean where that
        class is labelled.
    pixels, area_ha
        Size; the area is NaN if the scene has no CRS.
    note
        More about it, as text.
    polygon
        Shapely polygon in the CRS of the scene.
    scene_number
        Of the scene, from 0.
    """

    rank: int
    kind: str
    scene: str
    label: str
    proposed: str
    score: float
    confident: bool
    pixels: int
    area_ha: float
    note: str
    polygon: Any
    scene_number: int

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """Return the keys of `row`."""
        return "rank", "kind", "scene", "class", "proposed", "score", "confident", "pixels", "area_ha", "note"

    def row(self) -> dict[str, Any]:
        """Return the finding without its polygon, as a JSON value."""
        values = (
            self.rank, self.kind, self.scene, self.label, self.proposed, self.score, self.confident, self.pixels,
            self.area_ha, self.note,
        )  # fmt: skip
        return dict(zip(self.columns(), values, strict=True))


@dataclass(frozen=True)
class SceneAudit:
    """What was found about a scene as a whole.

    Parameters
    ----------
    audited
        Labelled pixels that were compared; of overlapping classes, those of each.
    unseen
        Those that were not, because their label occurs in no other fold.
    shift
        The offset of its labels; None if it could not be determined.
    swapped
        Pairs of class names.
    """

    name: str
    audited: int
    unseen: int
    shift: LabelShift | None
    swapped: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ErrorShare:
    """The share of the labelled pixels of a class that are confidently of another class.

    Parameters
    ----------
    pixels
        Labelled pixels.
    share
        None without any.
    interval
        95 % interval, from how scenes or parts of them differ; None with fewer than two that have labels of the class.
    into
        {proposed class: share}, largest first.
    """

    pixels: int
    share: float | None
    interval: tuple[float, float] | None
    into: Mapping[str, float]


@dataclass(frozen=True)
class Audit:
    """The result of `segkit.audit`.

    Parameters
    ----------
    findings
        By rank.
    errors
        By name of the label: a class, "background", or "no water" of overlapping classes.
    unit, units
        What the intervals compare: "scene" or "block", and how many there are.
    thresholds
        The mean self-confidence of each label (see `segkit.auditing.confident_learning`); None without labels.
    joint
        float64 (T, K, K): the confident joint, in pixels that are not at a border: labels are rows.
    learner, folds
        What predicted, and how many folds of which units ("5 folds of scenes").
    layer, picture, summary_file
        The files.
    """

    findings: tuple[Finding, ...]
    scenes: tuple[SceneAudit, ...]
    errors: Mapping[str, ErrorShare]
    unit: str
    units: int
    thresholds: Mapping[str, float | None]
    joint: NDArray[np.float64]
    learner: str
    folds: str
    layer: Path
    picture: Path
    summary_file: Path

    def summary(self) -> dict[str, Any]:
        """Return the audit as a JSON value."""
        return {
            "findings": [finding.row() for finding in self.findings],
            "scenes": [_describe_scene(scene) for scene in self.scenes],
            "label_error": {
                name: {"pixels": one.pixels, "share": one.share, "interval": one.interval, "into": dict(one.into)}
                for name, one in self.errors.items()
            },
            "interval_units": {"unit": self.unit, "units": self.units},
            "thresholds": dict(self.thresholds),
            "confident_joint": self.joint.tolist(),
            "learner": self.learner,
            "folds": self.folds,
            "layer": self.layer,
            "picture": self.picture,
        }

    def render(self) -> str:
        """Return the audit as plain text."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        kinds = Counter(finding.kind for finding in self.findings)
        yield f"{len(self.findings)} suspicious labels in {len(self.scenes)} scenes ({self.learner}, {self.folds})"
        if kinds:
            found = [(f"  {kind}", f"{kinds[kind]:,}", what) for kind, what in KINDS.items() if kinds[kind]]
            yield format_table(("  kind", "number", "meaning"), found, left=(0, 2))
        for scene in self.scenes:
            if scene.unseen:
                yield f"  {scene.name}: {scene.unseen:,} pixels have a label that no other fold has; not checked"
        yield ""
        shares = [
            (f"  {name}", f"{one.pixels:,}", _percent(one.share), _interval(one.interval), _into(one.into))
            for name, one in self.errors.items()
        ]
        yield format_table(("  label", "pixels", "error", "95 % interval", "looks like"), shares, left=(0, 4))
        yield (
            "  error: share of the pixels that are confidently of another class. The interval follows from how "
            f"{self.units} {self.unit}s differ; it does not cover errors of the model, which count as label errors"
        )
        if listed := self.findings[:_MAX_LISTED]:
            yield ""
            rows = [
                (
                    f"  {one.rank}", one.kind, one.scene, one.label, one.proposed, f"{one.score:.2f}",
                    f"{one.pixels:,}", one.note,
                )
                for one in listed
            ]  # fmt: skip
            yield format_table(
                ("  rank", "kind", "scene", "label", "proposed", "score", "pixels", ""), rows, left=(0, 1, 2, 3, 4, 7)
            )
            if more := len(self.findings) - len(listed):
                yield f"  ... and {more:,} more in {self.layer}"


def describe_shift(shift: LabelShift) -> str:
    """Return an offset as text: "labels lie 2.0 px right and 0.1 px down of the image (standard error 0.05)"."""
    across, down = "right" if shift.x >= 0 else "left", "down" if shift.y >= 0 else "up"
    errors = [error for error in (shift.error_x, shift.error_y) if error is not None]
    spread = f" (standard error {max(errors):.2f})" if errors else ""
    return f"labels lie {abs(shift.x):.1f} px {across} and {abs(shift.y):.1f} px {down} of the image{spread}"


def _describe_scene(scene: SceneAudit) -> dict[str, Any]:
    shift = scene.shift
    return {
        "scene": scene.name,
        "audited": scene.audited,
        "unseen": scene.unseen,
        "shift": None if shift is None else {
            "x": shift.x, "y": shift.y, "error_x": shift.error_x, "error_y": shift.error_y,
            "significant": shift.significant,
        },
        "swapped": [list(pair) for pair in scene.swapped],
    }  # fmt: skip


def estimate_errors(task: Task, parts: Sequence[NDArray[np.int64]]) -> tuple[dict[str, ErrorShare], str, int]:
    """Return the share of label error by label, what the intervals compare, and how many there are.

    Parameters
    ----------
    parts
        For each scene, int64 (parts, T, K, K): see `segkit.auditing.outlines.PartCounts`.
    """
    by_scene = len(parts) >= _MIN_SCENES
    units = np.stack([each.sum(axis=0) for each in parts]) if by_scene else np.concatenate(parts)
    units = units[units.any(axis=(1, 2, 3))]
    number = len(units)
    found = {}
    for target in range(task.n_targets):
        for category in range(len(task.categories)):
            rows = units[:, target, category]  # (units, K)
            name = category_name(task, target, category)
            found[name] = _estimate_share(task, target, category, rows)
    return found, "scene" if by_scene else "block", number


def _estimate_share(task: Task, target: int, category: int, rows: NDArray[np.int64]) -> ErrorShare:
    total, wrong = rows.sum(axis=1), rows.sum(axis=1) - rows[:, category]
    pixels = int(total.sum())
    if not pixels:
        return ErrorShare(0, None, None, {})
    others = {
        category_name(task, target, other): float(rows[:, other].sum() / pixels)
        for other in np.argsort(-rows.sum(axis=0), kind="stable").tolist()
        if other != category and rows[:, other].any()
    }
    return ErrorShare(pixels, float(wrong.sum() / pixels), cluster_interval(wrong, total), others)


def category_name(task: Task, target: int, category: int) -> str:
    """Return the name of a category: a class or background, or the absence of an overlapping class ("no water")."""
    names = {(of, index): name for name, of, index in task.scored_categories}
    return names.get((target, category)) or f"no {task.classes[target].name}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.2%} to {interval[1]:.2%}"


def _into(into: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.2%}" for name, share in list(into.items())[:3])
