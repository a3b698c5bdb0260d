"""Bars of areas, with and without error bars."""

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
    PALE,
    RED,
    add_title,
    bar_axes,
    chart_style,
    draw_columns,
    draw_spans,
    height_of_rows,
    lay_out,
    name_rows,
    new_figure,
)
from segkit.plots.text import (
    as_number,
    format_hectares,
    format_percent,
    format_score,
    format_short,
    format_with_error,
    wrap_name,
)


@chart_style()
def areas(estimate_summary: Mapping[str, Any]) -> Figure:
    """Draw what a map shows beside what is estimated, with 95 % intervals, and the accuracies below.

    Parameters
    ----------
    estimate_summary
        As `segkit.assess.estimation.Estimate.summary` returns it; what is None is shown as "-".
    """
    each = estimate_summary["per_class"].values()
    names = [wrap_name(name) for name in estimate_summary["per_class"]]
    figure = new_figure(2 * len(names) * height_of_rows(names, 0.42) + 2.0)
    upper, lower = figure.subplots(2, 1)
    above, below = np.arange(len(names)) - 0.2, np.arange(len(names)) + 0.2
    handles: list[Any] = []
    looks: tuple[tuple[str, str, NDArray[Any], dict[str, Any]], ...] = (
        ("mapped_ha", "pixels of the map", above, {"color": "#d9d9d9", "hatch": "////", "edgecolor": "#777777"}),
        ("area_ha", "estimated, 95 % interval", below, {"color": BLUE}),
    )
    texts = []
    for key, label, places, look in looks:
        values, halves = ([as_number(row.get(part)) for row in each] for part in (key, f"{key}_ci95"))
        handles.append(upper.barh(places, np.nan_to_num(values), 0.36, label=label, linewidth=0, **look))
        draw_spans(upper, places, [(value - half, value + half) for value, half in zip(values, halves, strict=True)])
        texts += [format_with_error(format_hectares, *pair) for pair in zip(values, halves, strict=True)]
    draw_columns(upper, np.concatenate([above, below]), {"hectares": texts})
    upper.set_xlim(left=0)
    upper.xaxis.set_major_formatter(lambda value, _: format_short(value))
    texts = []
    for key, label, places, marker, color in (
        ("users", "user's accuracy", above, "o", RED),
        ("producers", "producer's accuracy", below, "s", "#00664b"),
    ):
        values, halves = ([as_number(row.get(part)) for row in each] for part in (key, f"{key}_ci95"))
        handles += lower.plot(values, places, marker, color=color, label=label, zorder=4, clip_on=False)
        spans = [(value - half, value + half) for value, half in zip(values, halves, strict=True)]
        draw_spans(lower, places, spans, color)
        texts += [format_with_error(format_score, *pair) for pair in zip(values, halves, strict=True)]
    draw_columns(lower, np.concatenate([above, below]), {"accuracy": texts})
    overall, error = (as_number(estimate_summary.get(key)) for key in ("overall_accuracy", "overall_accuracy_ci95"))
    lower.axvline(overall, color="#666666", linestyle=":", linewidth=1.2, zorder=1)
    lower.set(xlim=(0, 1), xlabel="accuracy (dotted: overall)")
    upper.set(xlabel="hectares")
    for ax in (upper, lower):
        name_rows(ax, names)
    add_title(
        figure,
        f"overall accuracy {format_with_error(format_score, overall, error)}, {estimate_summary['samples']:,} samples",
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return lay_out(figure)


@chart_style()
def mapped(hectares: Mapping[str, float], colors: Mapping[str, str]) -> Figure:
    """Draw the hectares that a map shows of each class, titled so that nobody takes them for an estimate.

    Parameters
    ----------
    hectares
        By class.
    colors
        "#rrggbb" by class; a class that is not there is grey.
    """
    names = [wrap_name(name) for name in hectares]
    figure, ax = bar_axes(names, 0.3, 0.85)
    rows, values = np.arange(len(names)), [as_number(value) for value in hectares.values()]
    shown = [colors.get(name, PALE) for name in hectares]
    ax.barh(rows, np.nan_to_num(values), 0.66, color=shown, edgecolor="#555555", linewidth=0.6)
    total = math.fsum(np.nan_to_num(values))
    shares = ["-" if math.isnan(value) or not total else format_percent(value / total) for value in values]
    draw_columns(ax, rows, {"hectares": [format_hectares(value) for value in values], "share": shares})
    ax.set_xlim(left=0)
    ax.set_xlabel("hectares")
    ax.xaxis.set_major_formatter(lambda value, _: format_short(value))
    add_title(figure, "pixels of the map: a biased estimate of area")
    return lay_out(figure)
