"""Bar charts of areas: mapped areas, and estimated areas with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from segkit.plots.style import (
    BLUE,
    PALE_GREY,
    RED,
    add_title,
    chart_style,
    draw_intervals,
    draw_text_columns,
    freeze_layout,
    label_rows,
    new_bar_chart,
    new_figure,
    row_height,
)
from segkit.plots.text import (
    format_estimate,
    format_hectares,
    format_percent,
    format_score,
    format_short,
    interval_of,
    nan_if_none,
    wrap_name,
)


@chart_style()
def estimated_areas(estimate_summary: Mapping[str, Any]) -> Figure:
    """Draw mapped and estimated areas with 95 % confidence intervals, and the accuracies below.

    Parameters
    ----------
    estimate_summary
        As returned by `segkit.assess.estimation.Estimate.summary`; None is shown as "-".
    """
    classes = estimate_summary["per_class"].values()
    names = [wrap_name(name) for name in estimate_summary["per_class"]]
    figure = new_figure(2 * len(names) * row_height(names, 0.42) + 2.0)
    upper, lower = figure.subplots(2, 1)
    above, below = np.arange(len(names)) - 0.2, np.arange(len(names)) + 0.2
    handles: list[Any] = []
    bars: tuple[tuple[str, str, NDArray[Any], dict[str, Any]], ...] = (
        ("mapped_ha", "mapped", above, {"color": "#d9d9d9", "hatch": "////", "edgecolor": "#777777"}),
        ("area_ha", "estimated, 95 % interval", below, {"color": BLUE}),
    )
    texts = []
    for key, label, y, style in bars:
        values = [nan_if_none(row.get(key)) for row in classes]
        handles.append(upper.barh(y, np.nan_to_num(values), 0.36, label=label, linewidth=0, **style))
        if key == "mapped_ha":  # has no interval
            texts += [format_hectares(value) for value in values]
        else:
            draw_intervals(upper, y, [interval_of(row, key) for row in classes])
            texts += [format_estimate(format_hectares, row, key) for row in classes]
    draw_text_columns(upper, np.concatenate([above, below]), {"hectares": texts})
    upper.set_xlim(left=0)
    upper.xaxis.set_major_formatter(lambda value, _: format_short(value))
    texts = []
    for key, label, y, marker, color in (
        ("users", "user's accuracy", above, "o", RED),
        ("producers", "producer's accuracy", below, "s", "#00664b"),
    ):
        values = [nan_if_none(row.get(key)) for row in classes]
        handles += lower.plot(values, y, marker, color=color, label=label, zorder=4, clip_on=False)
        draw_intervals(lower, y, [interval_of(row, key) for row in classes], color)
        texts += [format_estimate(format_score, row, key) for row in classes]
    draw_text_columns(lower, np.concatenate([above, below]), {"accuracy": texts})
    overall = nan_if_none(estimate_summary["overall_accuracy"])
    lower.axvline(overall, color="#666666", linestyle=":", linewidth=1.2, zorder=1)
    lower.set(xlim=(0, 1), xlabel="accuracy (dotted: overall)")
    upper.set(xlabel="hectares")
    for ax in (upper, lower):
        label_rows(ax, names)
    accuracy = format_estimate(format_score, estimate_summary, "overall_accuracy")
    add_title(figure, f"overall accuracy {accuracy}, {estimate_summary['samples']:,} samples")
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return freeze_layout(figure)


@chart_style()
def mapped_areas(hectares: Mapping[str, float | None], colors: Mapping[str, str]) -> Figure:
    """Draw the hectares of each class on a map; the title says that pixel counts are biased estimates.

    Parameters
    ----------
    hectares
        {class: hectares}.
    colors
        {class: "#rrggbb"}; classes without a colour are grey.
    """
    names = [wrap_name(name) for name in hectares]
    figure, ax = new_bar_chart(names, 0.3, 0.85)
    rows, values = np.arange(len(names)), [nan_if_none(value) for value in hectares.values()]
    bar_colors = [colors.get(name, PALE_GREY) for name in hectares]
    ax.barh(rows, np.nan_to_num(values), 0.66, color=bar_colors, edgecolor="#555555", linewidth=0.6)
    total = math.fsum(np.nan_to_num(values))
    shares = [format_percent(value / total if total else None) for value in values]
    draw_text_columns(ax, rows, {"hectares": [format_hectares(value) for value in values], "share": shares})
    ax.set_xlim(left=0)
    ax.set_xlabel("hectares")
    ax.xaxis.set_major_formatter(lambda value, _: format_short(value))
    add_title(figure, "area by pixel count (a biased estimate)")
    return freeze_layout(figure)
