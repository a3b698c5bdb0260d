"""Scores of a model by the number of labels that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from segkit.plots.style import BLUE, RED, chart_style, freeze_layout, new_figure
from segkit.plots.text import format_short, nan_if_none

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SERIES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("overall_accuracy", "accuracy", {"color": BLUE, "marker": "o"}),
    ("mean_iou", "mean IoU", {"color": RED, "marker": "D", "markerfacecolor": "white"}),
)


@chart_style()
def learning_curve(labelled: Sequence[int | None], scores: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw accuracy and mean IoU of rounds of labelling against their labelled pixels.

    Parameters
    ----------
    labelled
        Labelled pixels of each round; if one is not known (None), the x axis has the number of the round.
    scores
        Of each round: an evaluation.
    """
    from matplotlib.ticker import MaxNLocator

    known = all(number is not None for number in labelled)
    places = [number or 0 for number in labelled] if known else [*range(1, len(labelled) + 1)]
    figure = new_figure(2.8)
    ax = figure.subplots()
    handles: list[Any] = []
    for key, label, how in _SERIES:
        values = [nan_if_none(one.get(key)) for one in scores]
        handles += ax.plot(places, values, label=label, clip_on=False, **how)
    ax.set(ylabel="score", xlabel="labelled pixels" if known else "round")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    if known:
        ax.set_xlim(0, 1.04 * max(1, *places))
        ax.xaxis.set_major_formatter(lambda value, _: format_short(value))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.grid()
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return freeze_layout(figure)
