"""Charts of an evaluation's scores, one column wide.

Each function takes the contents of an evaluation's JSON file and returns a figure, for `style.to_svg` or
`style.write_png`. No information is in colour alone, and the palettes are safe for colour-blind readers (Okabe and Ito;
Tol).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segkit.plots.style import (
    BLUE,
    GREY,
    LINE_INCHES,
    LINE_STYLES,
    MAX_CLASSES_WITH_COUNTS,
    ORANGE,
    PALE_GREY,
    RED,
    SLANT_DEGREES,
    WIDTH_INCHES,
    add_title,
    chart_style,
    defined_values,
    draw_intervals,
    draw_text_columns,
    freeze_layout,
    max_line_count,
    new_bar_chart,
    new_figure,
    text_inches,
)
from segkit.plots.text import (
    MAX_NAME_INCHES,
    UNDEFINED,
    format_cell_percent,
    format_percent,
    format_score,
    format_short,
    nan_if_none,
    shorten_name,
    text_color,
    wrap_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_CLASSES = 30  # in a confusion matrix; the others, with the fewest errors, share one row and column
_PERFECT = "perfect calibration"
_MAX_CLASSES_WIDE_BARS = 12  # bars of more classes are narrower


@chart_style()
def confusion_matrix(matrix: Mapping[str, Any]) -> Figure:
    """Draw a confusion matrix: the predicted classes of the pixels of each true class, as shares of the row.

    With more than 30 classes, the classes with the fewest errors share one row and one column.
    Overlapping classes have a bar each instead: correct, missed and false alarm.

    Parameters
    ----------
    matrix
        `labels` and `matrix`, as in an evaluation's `confusion`.
    """
    counts = np.asarray(matrix["matrix"], dtype=np.int64)
    if counts.ndim == 3:
        return _draw_hits_and_errors(matrix["labels"], counts)
    return _draw_matrix(*_join_least_confused(matrix["labels"], counts))


def _join_least_confused(labels: Sequence[str], counts: NDArray[np.int64]) -> tuple[Sequence[str], NDArray[np.int64]]:
    """Reduce a matrix (K, K) to `_MAX_CLASSES`; the classes with the fewest errors become one row and column."""
    if len(labels) <= _MAX_CLASSES:
        return labels, counts
    errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    separate = np.sort(np.argsort(-errors, kind="stable")[: _MAX_CLASSES - 1])
    group = np.full(len(labels), _MAX_CLASSES - 1)
    group[separate] = np.arange(len(separate))
    joined = np.zeros((_MAX_CLASSES, _MAX_CLASSES), dtype=np.int64)
    np.add.at(joined, (group[:, None], group[None]), counts)
    return [*(labels[index] for index in separate), f"{len(labels) - len(separate)} other classes"], joined


def _draw_matrix(labels: Sequence[str], counts: NDArray[np.int64]) -> Figure:
    """Draw counts (K, K), rows are the truth; with many classes cells get smaller and the figure larger."""
    size, with_counts = len(labels), len(labels) <= MAX_CLASSES_WITH_COUNTS
    rows = [wrap_name(name, 1.1) if with_counts else shorten_name(name, 1.9) for name in labels]
    columns = [shorten_name(name, MAX_NAME_INCHES if with_counts else 1.9) for name in labels]
    left = text_inches(rows) + 0.5
    width = max(WIDTH_INCHES, left + 0.27 * size)
    cell_height = max(0.46, 0.08 + LINE_INCHES * max_line_count(rows)) if with_counts else 0.25
    rotation = 90 if not with_counts else 0 if text_inches(columns) < 0.95 * (width - left) / size else SLANT_DEGREES
    below = text_inches(columns) * math.sin(math.radians(rotation)) + LINE_INCHES
    figure = new_figure(size * cell_height + below + 0.65, width)
    ax = figure.subplots()
    _draw_cells(ax, counts, with_counts=with_counts)
    ticks = np.arange(size) + 0.5
    ax.set(ylim=(size, 0), yticks=ticks, yticklabels=rows, ylabel="truth", xlabel="prediction")
    ax.set_xticks(ticks, columns)
    if rotation:  # anchored at the end of the text, so that labels touch the matrix in any font
        vertical = "center" if rotation == 90 else "top"
        for label in ax.get_xticklabels():
            label.set(rotation=rotation, rotation_mode="anchor", ha="right", va=vertical)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    cells = "% of the row and pixels" if with_counts else "% of the row, · is below 0.5"
    add_title(figure, f"confusion matrix (rows: truth; {cells})")
    return freeze_layout(figure)


def _draw_cells(ax: Axes, counts: NDArray[np.int64], *, with_counts: bool) -> None:
    """Draw the cells of a confusion matrix, with text that is readable on their colour."""
    import matplotlib
    from matplotlib.patches import Rectangle

    totals = counts.sum(axis=1, keepdims=True)
    shares = np.ma.masked_invalid(np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0))
    colors = matplotlib.colormaps["Blues"]
    ax.pcolormesh(shares, cmap=colors, vmin=0, vmax=1, edgecolors="white", linewidth=0.8)
    for row, column in np.ndindex(*counts.shape):
        if totals[row, 0]:
            share, count = float(shares[row, column]), int(counts[row, column])
            cell = f"{format_percent(share)}\n{format_short(count)}" if with_counts else format_cell_percent(share)
            color = text_color(colors(share))
            text = ax.text(column + 0.5, row + 0.5, cell, ha="center", va="center", color=color)
            text.set(fontsize=9 if with_counts else 8, linespacing=1.25, in_layout=False)
    size = len(counts)
    for row in np.flatnonzero(totals == 0):
        ax.add_patch(
            Rectangle((0, float(row)), size, 1, facecolor="white", edgecolor="#c8c8c8", hatch="////", linewidth=0)
        )
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        ax.text(size / 2, row + 0.5, "no pixels", ha="center", va="center", color="#444444", bbox=box, in_layout=False)


def _draw_hits_and_errors(labels: Sequence[str], counts: NDArray[np.int64]) -> Figure:
    """Draw counts (K, 2, 2) of absent and present as shares of all pixels of the class in truth or prediction."""
    names = [wrap_name(name) for name in labels]
    figure, ax = new_bar_chart(names, 0.34, 1.0)
    rows = np.arange(len(names))
    parts = (
        ("correct", counts[:, 1, 1], BLUE, None),
        ("missed", counts[:, 1, 0], ORANGE, "////"),
        ("false alarm", counts[:, 0, 1], "#d9d9d9", "\\\\\\\\"),
    )
    totals = counts[:, 1, 1] + counts[:, 1, 0] + counts[:, 0, 1]
    start = np.zeros(len(labels))
    handles: list[Any] = []
    for label, part, color, hatch in parts:
        shares = np.divide(part, totals, out=np.zeros(len(labels)), where=totals > 0)
        edge = "white" if hatch is None else "#555555"
        bars = ax.barh(rows, shares, 0.62, start, color=color, hatch=hatch, edgecolor=edge, linewidth=0, label=label)
        handles.append(bars)
        for row in np.flatnonzero(shares >= 0.15).tolist():  # narrower bars have no space for text
            box = None if hatch is None else {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
            middle, text = start[row] + shares[row] / 2, f"{100 * shares[row]:.0f} %"
            ax.text(middle, row, text, ha="center", va="center", color="white" if box is None else "black", bbox=box)
        start += shares
    draw_text_columns(ax, rows, {"pixels": [format_short(total) if total else "-" for total in totals.tolist()]})
    ax.set(xlim=(0, 1), xlabel="share of the class's pixels in truth or prediction")
    ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return freeze_layout(figure)


@chart_style()
def class_scores(evaluation: Mapping[str, Any]) -> Figure:
    """Draw the scores of each class: IoU and F1 as bars, precision and recall as markers, with 95 % intervals.

    Parameters
    ----------
    evaluation
        `per_class`, and optionally `intervals`, as in an evaluation's JSON; undefined scores are shown as "-".
    """
    scores, intervals = evaluation["per_class"], evaluation.get("intervals") or {}
    names = [wrap_name(name) for name in scores]
    figure, ax = new_bar_chart(names, 0.44 if len(names) <= _MAX_CLASSES_WIDE_BARS else 0.36, 1.05)
    rows = np.arange(len(names))
    handles: list[Any] = []
    series: tuple[tuple[str, str, float, dict[str, Any]], ...] = (
        ("iou", "IoU", -0.26, {"color": BLUE}),
        ("f1", "F1", 0.0, {"color": "#a6cee8", "hatch": "////", "edgecolor": BLUE}),
        ("precision", "precision", 0.21, {"color": RED, "marker": "o"}),
        ("recall", "recall", 0.33, {"color": "#00664b", "marker": "D", "markerfacecolor": "white"}),
    )
    for key, label, offset, style in series:
        values = [nan_if_none(row.get(key)) for row in scores.values()]
        if "marker" in style:
            handles += ax.plot(values, rows + offset, linestyle="none", label=label, zorder=4, clip_on=False, **style)
        else:
            handles.append(ax.barh(rows + offset, np.nan_to_num(values), 0.24, label=label, linewidth=0, **style))
        ends = [(intervals.get("per_class", {}).get(name) or {}).get(key) for name in scores]
        draw_intervals(ax, rows + offset, ends, style["color"] if "marker" in style else "black")
    for row, of_class in enumerate(scores.values()):
        undefined = [label for key, label, *_ in series[2:] if of_class.get(key) is None]
        if undefined and of_class.get("iou") is not None:
            ax.text(0.02, row + 0.27, f"{undefined[0]}: undefined", va="center", fontsize=8)
    columns = {label: [format_score(row.get(key)) for row in scores.values()] for key, label, *_ in series[:2]}
    support = [row.get("support") for row in scores.values()]
    columns["pixels"] = [UNDEFINED if pixels is None else format_short(pixels) for pixels in support]
    draw_text_columns(ax, rows, columns)
    units = f"{intervals['units']} {intervals['unit']}s" if intervals else ""
    ax.set(xlim=(0, 1), xlabel=f"score, 95 % intervals over {units}" if intervals else "score")
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return freeze_layout(figure)


@chart_style()
def reliability_diagram(evaluation: Mapping[str, Any]) -> Figure | None:
    """Draw a reliability diagram of the predictions, and of the probability of each class if there are several.

    Parameters
    ----------
    evaluation
        As in an evaluation's JSON.

    Returns
    -------
    None if the evaluation has no confidence, for example that of a map.
    """
    curve = evaluation.get("reliability")
    if not curve or not sum(curve["pixels"]):
        return None
    channels = evaluation.get("calibration") or {}
    if len(channels) < 2:
        channels = {}
    # Only the classes with the largest calibration errors have a colour and a legend entry.
    by_error = sorted(channels, key=lambda name: -(channels[name]["ece"] or 0))
    named = [name for name in channels if name in by_error[: len(LINE_STYLES)]]
    labels = [shorten_name(name, 1.7) for name in named]
    ncols = min(3, int((WIDTH_INCHES - 0.2) / (text_inches([*labels, _PERFECT]) + 0.5)))
    entries = len(named) + 2 + (len(named) < len(channels))
    figure = new_figure(4.1 + LINE_INCHES * 1.15 * -(-entries // ncols))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    handles = _draw_reliability_curves(upper, curve, channels, dict(zip(named, labels, strict=True)))
    _draw_confidence_histogram(lower, curve["pixels"])
    lower.set_xlabel("confidence, or probability of the class" if channels else "confidence")
    ece, brier = (format_score(evaluation.get(key)) for key in ("ece", "brier"))
    add_title(figure, f"ECE {ece}, Brier score {brier}")
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols)
    return freeze_layout(figure)


def _draw_reliability_curves(
    ax: Axes, curve: Mapping[str, Any], channels: Mapping[str, Any], labels: Mapping[str, str]
) -> list[Any]:
    """Draw the curves of predictions and of channels, those with a label in colour; return the legend's handles."""
    diagonal = ax.plot([0, 1], [0, 1], color="#777777", linestyle="--", linewidth=1, label=_PERFECT)
    points = {
        name: defined_values(channel["reliability"]["probability"], channel["reliability"]["share"])
        for name, channel in channels.items()
    }
    others: list[Any] = []
    for name, place in points.items():
        if name not in labels:
            others = ax.plot(*place, color=PALE_GREY, linewidth=0.8)
    for line in others:
        line.set_label(f"{len(channels) - len(labels)} other classes")
    classes: list[Any] = []
    for (name, label), (color, marker) in zip(labels.items(), LINE_STYLES, strict=False):
        classes += ax.plot(*points[name], color=color, marker=marker, linewidth=1, label=label)
    style: dict[str, Any] = {"color": "black", "marker": "o", "linewidth": 2, "markersize": 5, "label": "predictions"}
    predictions = ax.plot(*defined_values(curve["confidence"], curve["right"]), zorder=4, **style)
    ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="observed frequency")
    ax.grid()
    return [*predictions, *classes, *others, *diagonal]


def _draw_confidence_histogram(ax: Axes, pixels: Sequence[int]) -> None:
    from matplotlib.ticker import LogLocator

    bins = len(pixels)
    ax.bar(np.arange(bins) / bins, pixels, 0.92 / bins, align="edge", color=GREY)
    ax.set(yscale="log", ylabel="pixels")
    ax.set_ylim(0.7, 3 * max(pixels))
    ax.yaxis.set_major_formatter(lambda value, _: format_short(value))
    ax.yaxis.set_major_locator(LogLocator(numticks=4))
    ax.minorticks_off()
