"""Charts: the numbers of a training, an evaluation, an assessment and a map, as figures one column wide.

Each function takes what a run's or a command's files hold and returns a figure, which `svg` or `png` then draws.
Nothing is told by colour alone, and colours are told apart by colour-blind readers, too (Okabe and Ito's, and Tol's).
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
    LINE,
    LINES,
    ORANGE,
    PALE,
    RED,
    ROOMY,
    SLANT,
    WIDTH,
    add_title,
    bar_axes,
    chart_style,
    defined_values,
    draw_columns,
    draw_spans,
    lay_out,
    new_figure,
    text_inches,
    text_lines,
)
from segkit.plots.text import (
    NAME_INCHES,
    as_number,
    format_percent,
    format_rounded,
    format_score,
    format_short,
    shorten_name,
    text_color,
    wrap_name,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 30  # classes at most in a confusion matrix; of more, those that are confused most
_FEW = 12  # classes at most whose bars are thick


@chart_style()
def confusion(matrix: Mapping[str, Any]) -> Figure:
    """Draw a confusion matrix: of the pixels of each true class, which share was decided how.

    Of more than 30 classes, those with the most wrong pixels have a row and a column of their own;
    the others share one.
    Where classes overlap, each has a bar instead, of what was found, what was missed and what was falsely found.

    Parameters
    ----------
    matrix
        `labels` and `matrix`, as in an evaluation's `confusion`.
    """
    counts = np.asarray(matrix["matrix"], dtype=np.int64)
    if counts.ndim == 3:
        return _found_and_missed(matrix["labels"], counts)
    return _matrix(*_most_confused(matrix["labels"], counts))


def _most_confused(labels: Sequence[str], counts: NDArray[np.int64]) -> tuple[Sequence[str], NDArray[np.int64]]:
    """Join rows and columns of a matrix (K, K) until it has `_MOST`, those with the fewest wrong pixels."""
    if len(labels) <= _MOST:
        return labels, counts
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    kept = np.sort(np.argsort(-wrong, kind="stable")[: _MOST - 1])
    group = np.full(len(labels), _MOST - 1)
    group[kept] = np.arange(len(kept))
    joined = np.zeros((_MOST, _MOST), dtype=np.int64)
    np.add.at(joined, (group[:, None], group[None]), counts)
    return [*(labels[place] for place in kept), f"{len(labels) - len(kept)} other classes"], joined


def _matrix(labels: Sequence[str], counts: NDArray[np.int64]) -> Figure:
    """Draw counts (K, K), rows are true; cells grow smaller, and then the figure larger, with K."""
    import matplotlib
    from matplotlib.patches import Rectangle

    size, roomy = len(labels), len(labels) <= ROOMY
    rows = [wrap_name(name, 1.1) if roomy else shorten_name(name, 1.9) for name in labels]
    columns = [shorten_name(name, NAME_INCHES if roomy else 1.9) for name in labels]
    left = text_inches(rows) + 0.5
    width = max(WIDTH, left + 0.27 * size)
    high = max(0.46, 0.08 + LINE * text_lines(rows)) if roomy else 0.25
    turn = 90 if not roomy else 0 if text_inches(columns) < 0.95 * (width - left) / size else SLANT
    below = text_inches(columns) * math.sin(math.radians(turn)) + LINE
    figure = new_figure(size * high + below + 0.65, width)
    ax = figure.subplots()
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.ma.masked_invalid(np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0))
    colors = matplotlib.colormaps["Blues"]
    ax.pcolormesh(shares, cmap=colors, vmin=0, vmax=1, edgecolors="white", linewidth=0.8)
    for row, column in np.ndindex(*counts.shape):
        if totals[row, 0]:
            share, count = float(shares[row, column]), int(counts[row, column])
            told = f"{format_percent(share)}\n{format_short(count)}" if roomy else format_rounded(share)
            color = text_color(colors(share))
            text = ax.text(column + 0.5, row + 0.5, told, ha="center", va="center", color=color)
            text.set(fontsize=9 if roomy else 8, linespacing=1.25, in_layout=False)
    for row in np.flatnonzero(totals == 0):
        ax.add_patch(
            Rectangle((0, float(row)), size, 1, facecolor="white", edgecolor="#c8c8c8", hatch="////", linewidth=0)
        )
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        ax.text(size / 2, row + 0.5, "no pixels", ha="center", va="center", color="#444444", bbox=box, in_layout=False)
    ticks = np.arange(size) + 0.5
    ax.set(ylim=(size, 0), yticks=ticks, yticklabels=rows, ylabel="truth", xlabel="decision")
    ax.set_xticks(ticks, columns)
    if turn:  # at their ends, so that they meet the matrix in any font
        how = {"rotation": turn, "rotation_mode": "anchor", "ha": "right", "va": "center" if turn == 90 else "top"}
        for label in ax.get_xticklabels():
            label.set(**how)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    add_title(figure, "each true class: % and pixels" if roomy else "% of each true class (a dot: less than 0.5)")
    return lay_out(figure)


def _found_and_missed(labels: Sequence[str], counts: NDArray[np.int64]) -> Figure:
    """Draw counts (K, 2, 2) of absent and present as shares of what is, or was called, the class."""
    names = [wrap_name(name) for name in labels]
    figure, ax = bar_axes(names, 0.34, 1.0)
    rows = np.arange(len(names))
    parts = (
        ("hit", counts[:, 1, 1], BLUE, None),
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
        for place in np.flatnonzero(shares >= 0.15).tolist():
            box = None if hatch is None else {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
            middle, told = start[place] + shares[place] / 2, f"{100 * shares[place]:.0f} %"
            ax.text(middle, place, told, ha="center", va="center", color="white" if box is None else "black", bbox=box)
        start += shares
    draw_columns(ax, rows, {"pixels": [format_short(total) if total else "-" for total in totals.tolist()]})
    ax.set(xlim=(0, 1), xlabel="share of what is, or was called, the class")
    ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return lay_out(figure)


@chart_style()
def classes(evaluation: Mapping[str, Any]) -> Figure:
    """Draw the scores of each class: IoU and F1 as bars, precision and recall as markers, with their intervals.

    Parameters
    ----------
    evaluation
        `per_class`, and perhaps `intervals`, as in an evaluation's JSON; a score that is None is shown as "-".
    """
    scores, intervals = evaluation["per_class"], evaluation.get("intervals") or {}
    names = [wrap_name(name) for name in scores]
    figure, ax = bar_axes(names, 0.44 if len(names) <= _FEW else 0.36, 1.05)
    rows = np.arange(len(names))
    handles: list[Any] = []
    lanes: tuple[tuple[str, str, float, dict[str, Any]], ...] = (
        ("iou", "IoU", -0.26, {"color": BLUE}),
        ("f1", "F1", 0.0, {"color": "#a6cee8", "hatch": "////", "edgecolor": BLUE}),
        ("precision", "precision", 0.21, {"color": RED, "marker": "o"}),
        ("recall", "recall", 0.33, {"color": "#00664b", "marker": "D", "markerfacecolor": "white"}),
    )
    for key, label, shift, look in lanes:
        values = [as_number(row.get(key)) for row in scores.values()]
        if "marker" in look:
            handles += ax.plot(values, rows + shift, linestyle="none", label=label, zorder=4, clip_on=False, **look)
        else:
            handles.append(ax.barh(rows + shift, np.nan_to_num(values), 0.24, label=label, linewidth=0, **look))
        spans = [(intervals.get("per_class", {}).get(name) or {}).get(key) for name in scores]
        draw_spans(ax, rows + shift, spans, look["color"] if "marker" in look else "black")
    for row, each in enumerate(scores.values()):
        missing = [label for key, label, *_ in lanes[2:] if each.get(key) is None]
        if missing and each.get("iou") is not None:
            ax.text(0.02, row + 0.27, f"{missing[0]} -", va="center", fontsize=8)
    columns = {label: [format_score(row.get(key)) for row in scores.values()] for key, label, *_ in lanes[:2]}
    columns["pixels"] = ["-" if (of := row.get("support")) is None else format_short(of) for row in scores.values()]
    draw_columns(ax, rows, columns)
    units = f"{intervals['units']} {intervals['unit']}s" if intervals else ""
    ax.set(xlim=(0, 1), xlabel=f"score, 95 % intervals over {units}" if intervals else "score")
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return lay_out(figure)


@chart_style()
def reliability(evaluation: Mapping[str, Any]) -> Figure | None:
    """Draw how often decisions are right beside how sure they are, and each class's probability if there are several.

    Parameters
    ----------
    evaluation
        As in an evaluation's JSON.

    Returns
    -------
    None where the evaluation tells no confidence, as that of a map.
    """
    from matplotlib.ticker import LogLocator

    curve = evaluation.get("reliability")
    if not curve or not sum(curve["pixels"]):
        return None
    channels = evaluation.get("calibration") or {}
    if len(channels) < 2:
        channels = {}
    # Of many classes those are named that are furthest off.
    worst = sorted(channels, key=lambda name: -(channels[name]["ece"] or 0))
    named = [name for name in channels if name in worst[: len(LINES)]]
    labels = [shorten_name(name, 1.7) for name in named]
    ncols = min(3, int((WIDTH - 0.2) / (text_inches([*labels, "as sure as right"]) + 0.5)))
    entries = len(named) + 2 + (len(named) < len(channels))
    below = LINE * 1.15 * -(-entries // ncols)
    figure = new_figure(4.1 + below)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    handles = [*upper.plot([0, 1], [0, 1], color="#777777", linestyle="--", linewidth=1, label="as sure as right")]
    others: list[Any] = []
    for name in channels:
        if name not in named:
            points = channels[name]["reliability"]
            others = upper.plot(*defined_values(points["probability"], points["share"]), color=PALE, linewidth=0.8)
    for name, label, (color, marker) in zip(named, labels, LINES, strict=False):
        points = channels[name]["reliability"]
        handles += upper.plot(
            *defined_values(points["probability"], points["share"]),
            color=color,
            marker=marker,
            linewidth=1,
            label=label,
        )
    for line in others:
        line.set_label(f"{len(channels) - len(named)} other classes")
    told = {"color": "black", "marker": "o", "linewidth": 2, "markersize": 5, "label": "decisions"}
    decided = upper.plot(*defined_values(curve["confidence"], curve["right"]), zorder=4, **told)
    handles = [*decided, *handles[1:], *others, handles[0]]
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is so" if channels else "share that is right")
    ece, brier = (format_score(evaluation.get(key)) for key in ("ece", "brier"))
    add_title(figure, f"ECE {ece}, Brier score {brier}")
    upper.grid()
    bins = len(curve["pixels"])
    lower.bar(np.arange(bins) / bins, curve["pixels"], 0.92 / bins, align="edge", color=GREY)
    lower.set(
        yscale="log", ylabel="pixels", xlabel="confidence, or probability of the class" if channels else "confidence"
    )
    lower.set_ylim(0.7, 3 * max(curve["pixels"]))
    lower.yaxis.set_major_formatter(lambda value, _: format_short(value))
    lower.yaxis.set_major_locator(LogLocator(numticks=4))
    lower.minorticks_off()
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols)
    return lay_out(figure)
