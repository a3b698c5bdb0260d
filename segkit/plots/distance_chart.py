"""Scores of scenes against their distance from the training scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from segkit.plots.style import BLUE, RED, chart_style, defined_values, freeze_layout, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SERIES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("overall_accuracy", "accuracy", {"color": BLUE, "marker": "o"}),
    ("mean_iou", "mean IoU", {"color": RED, "marker": "D", "markerfacecolor": "white"}),
)
_MIN_SCENES = 2
_MAX_VECTOR_POINTS = 2000  # more are drawn as an image, so that a page stays small
_MAX_LINEAR_RATIO = 10  # largest distance / median distance on a linear axis


@chart_style()
def scores_by_distance(scenes: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw accuracy and mean IoU of scenes against their distance from the training scenes in appearance.

    Parameters
    ----------
    scenes
        ``scenes`` of an evaluation's JSON: `overall_accuracy`, `mean_iou` and `distance`.

    Returns
    -------
    None if fewer than two scenes have an accuracy and a distance.
    """
    points = {
        key: defined_values([one.get("distance") for one in scenes], [one.get(key) for one in scenes])
        for key, *_ in _SERIES
    }
    distances = sorted(points["overall_accuracy"][0].tolist())
    if len(distances) < _MIN_SCENES:
        return None
    figure = new_figure(3.0)
    ax = figure.subplots()
    handles: list[Any] = []
    for key, label, how in _SERIES:
        is_image = len(distances) > _MAX_VECTOR_POINTS
        handles += ax.plot(*points[key], linestyle="none", label=label, clip_on=False, rasterized=is_image, **how)
    ax.axvline(1, color="#666666", linestyle=":", linewidth=1.2, zorder=1)
    ax.set(ylim=(0, 1), ylabel="score", xlabel="distance from the training scenes in appearance (1 is usual)")
    if distances[0] > 0 and distances[-1] > _MAX_LINEAR_RATIO * distances[len(distances) // 2]:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        ax.set_xlim(0, 1.04 * max(1.0, distances[-1]))
    ax.grid()
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return freeze_layout(figure)
