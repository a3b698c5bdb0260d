"""Scores of single scenes: where a model fails, and whether it fails on scenes that look unlike its training scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from segkit.data.appearance import appearance_features, measure_appearance
from segkit.data.area import LabelledArea
from segkit.evaluation.metrics import Confusion
from segkit.io.scene import Scene
from segkit.models.ensemble import members

if TYPE_CHECKING:
    from segkit.models.ensemble import AnyModel

SCENE_SCORES = ("overall_accuracy", "mean_iou", "macro_f1", "ece", "pixels")
# A scene is ranked if it has at least this share of the labelled pixels of the median scene: of few pixels, all may be
# wrong by chance.
_MIN_PIXEL_SHARE = 0.1
_MIN_CORRELATED = 5  # scenes


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation, -1 to 1, and the number of scenes that it is computed from."""

    value: float
    scenes: int


def summarize_scene(area: LabelledArea, confusion: Confusion, distance: float | None) -> dict[str, Any]:
    """Return the name, the scores and the distance of a scene, as in ``scenes`` of an evaluation."""
    summary = confusion.summary()
    return {"scene": area.sample.scene.name} | {key: summary[key] for key in SCENE_SCORES} | {"distance": distance}


def measure_distances(model: AnyModel, scenes: Sequence[Scene]) -> list[float | None]:
    """Return how far scenes are from a model's training scenes in appearance; see `TrainingScenes`.

    Of several models, the smallest distance counts.

    Returns
    -------
    None for a scene with other bands or without valid pixels, and if the model does not hold its training scenes.
    """
    trainings = [one.training_scenes for one in members(model) if one.training_scenes is not None]
    distances: list[float | None] = []
    for scene in scenes:
        distances.append(None)
        if trainings and len(scene.bands) == model.bands:
            moments = measure_appearance(scene)
            if moments.number.any():
                features = appearance_features([moments])
                distances[-1] = min(float(each.distances(features)[0]) for each in trainings)
    return distances


def find_worst_scenes(scenes: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Return the scenes with the lowest accuracy, worst first; none if there is a single scene.

    Scenes with less than a tenth of the labelled pixels of the median scene are left out.

    Parameters
    ----------
    scenes
        ``scenes`` of an evaluation.
    """
    labelled = [one for one in scenes if one["overall_accuracy"] is not None]
    if len(labelled) < 2:
        return []
    enough = _MIN_PIXEL_SHARE * median(one["pixels"] for one in labelled)
    ranked = [one for one in labelled if one["pixels"] >= enough]
    return sorted(ranked, key=lambda one: (one["overall_accuracy"], one["mean_iou"] or 0.0))[:count]


def correlate_with_distance(scenes: Sequence[Mapping[str, Any]], key: str) -> RankCorrelation | None:
    """Return the rank correlation of a score and the distance over the scenes in which both are defined.

    Returns
    -------
    None if there are fewer than five such scenes, or one of the two is the same in all.
    """
    pairs = [(one[key], one["distance"]) for one in scenes if None not in (one.get(key), one.get("distance"))]
    if len(pairs) < _MIN_CORRELATED or any(len(set(values)) < 2 for values in zip(*pairs, strict=True)):
        return None
    from scipy.stats import spearmanr

    scores, distances = zip(*pairs, strict=True)
    return RankCorrelation(float(spearmanr(scores, distances).statistic), len(pairs))


def describe_scene(scene: Mapping[str, Any]) -> str:
    """Return the scores of a scene in one line."""
    values = [("accuracy", scene["overall_accuracy"]), ("mean IoU", scene["mean_iou"])]
    scores = ", ".join(f"{name} {value:.4f}" for name, value in values if value is not None)
    distance = scene.get("distance")
    far = "" if distance is None else f", distance {distance:.1f}"
    return f"{scene['scene']} ({scores}, {scene['pixels']:,} pixels{far})"
