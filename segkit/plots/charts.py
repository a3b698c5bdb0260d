"""Charts: the numbers of a training, an evaluation, an assessment and a map, as figures one column wide.

Each function takes what a run's or a command's files hold and returns a figure, which `svg` or `png` then draws.
Nothing is told by colour alone, and colours are told apart by colour-blind readers, too (Okabe and Ito's, and Tol's).
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segkit.io.raster import PathLike
from segkit.plots.images import any_names, spoken

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 4.8  # inches
_LINE = 0.16  # inches that a line of text takes
_NAME = 1.4  # inches that a name takes at most
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#8c8c8c"
_PALE = "#bdbdbd"
# Of lines, which differ in colour and marker.
_LINES = tuple(zip((_RED, _BLUE, _GREEN, _ORANGE, "#56b4e9", "#cc79a7", "#332288", "#999933"), "s^DvPX<>", strict=True))
_VALIDATED = (("val_iou", "mean IoU", _RED, "o"), ("val_accuracy", "accuracy", _GREEN, "s"))
_MARKERS = 12  # on a line at most, about
_ROOMY = 6  # classes at most where the cells of a confusion matrix hold counts, too
_MOST = 30  # classes at most in a confusion matrix; of more, those that are confused most
_MANY_HECTARES = 1e7  # are written in millions
_SLANT = 40  # degrees, of names that are too long to stand side by side
_FEW = 12  # classes at most whose bars are thick
_STYLE = {
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.titlesize": 10,
    "figure.constrained_layout.h_pad": 0.05,
    "figure.constrained_layout.w_pad": 0.05,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.4,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",  # text stays text, and what shows it has the fonts
    "svg.hashsalt": "segkit",
    "text.parse_math": False,  # a "$" in a name is one
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


@contextmanager
def _styled() -> Iterator[None]:
    """Make and draw figures in one style, whatever the user's matplotlibrc says, and with the fonts there are."""
    from matplotlib import style

    with style.context(["default", _STYLE]), any_names():
        yield


@_styled()
def svg(figure: Figure) -> str:
    """Draw a figure as an SVG element that can stand in a page; the same figure gives the same text."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", facecolor="white", metadata=nothing)
    text = file.getvalue()
    # Groups have names that nothing refers to, and that would come twice in a page with two figures.
    return re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])


@_styled()
def png(figure: Figure, path: PathLike | IO[bytes], dpi: float = 200) -> None:
    """Draw a figure as a PNG; what was at `path` is replaced."""
    figure.savefig(path, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})


@_styled()
def curves(rows: Sequence[Mapping[str, float]], kept: int) -> Figure:
    """Draw a training's loss, and its validation scores where it has some, against the epoch.

    Parameters
    ----------
    rows
        Of a run's log.csv: `epoch` and `loss`, and perhaps `val_iou` and `val_accuracy`, of each epoch.
    kept
        The epoch whose weights were kept.
    """
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in rows]
    lines = [("loss", "training loss", _BLUE, "o")]
    scores = [line for line in _VALIDATED if any(line[0] in row for row in rows)]
    figure = _figure(2.5)
    panels = [("training loss", lines), ("validation score", scores)][: 2 if scores else 1]
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    handles = []
    for ax, (title, shown) in zip(axes, panels, strict=True):
        for key, label, color, marker in shown:
            values = [row.get(key, math.nan) for row in rows]
            every = max(1, math.ceil(len(rows) / _MARKERS))
            handles += ax.plot(epochs, values, color=color, marker=marker, markevery=every, label=label)
        mark = ax.axvline(kept, color="#666666", linestyle=":", linewidth=1.2, label=f"kept: epoch {kept}", zorder=1)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.set(title=title, xlabel="epoch")
        ax.grid(axis="y")
    figure.legend(handles=[*handles[1:], mark], loc="outside lower center", ncols=3)
    return _laid_out(figure)


@_styled()
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

    size, roomy = len(labels), len(labels) <= _ROOMY
    rows = [_wrapped(name, 1.1) if roomy else _shortened(name, 1.9) for name in labels]
    columns = [_shortened(name, _NAME if roomy else 1.9) for name in labels]
    left = _inches(rows) + 0.5
    width = max(_WIDTH, left + 0.27 * size)
    high = max(0.46, 0.08 + _LINE * _lines(rows)) if roomy else 0.25
    turn = 90 if not roomy else 0 if _inches(columns) < 0.95 * (width - left) / size else _SLANT
    below = _inches(columns) * math.sin(math.radians(turn)) + _LINE
    figure = _figure(size * high + below + 0.65, width)
    ax = figure.subplots()
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.ma.masked_invalid(np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0))
    colors = matplotlib.colormaps["Blues"]
    ax.pcolormesh(shares, cmap=colors, vmin=0, vmax=1, edgecolors="white", linewidth=0.8)
    for row, column in np.ndindex(*counts.shape):
        if totals[row, 0]:
            share, count = float(shares[row, column]), int(counts[row, column])
            told = f"{_percent(share)}\n{_short(count)}" if roomy else _rounded(share)
            color = _readable(colors(share))
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
    _title(figure, "each true class: % and pixels" if roomy else "% of each true class (a dot: less than 0.5)")
    return _laid_out(figure)


def _found_and_missed(labels: Sequence[str], counts: NDArray[np.int64]) -> Figure:
    """Draw counts (K, 2, 2) of absent and present as shares of what is, or was called, the class."""
    names = [_wrapped(name) for name in labels]
    figure, ax = _bars(names, 0.34, 1.0)
    rows = np.arange(len(names))
    parts = (
        ("hit", counts[:, 1, 1], _BLUE, None),
        ("missed", counts[:, 1, 0], _ORANGE, "////"),
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
    _columns(ax, rows, {"pixels": [_short(total) if total else "-" for total in totals.tolist()]})
    ax.set(xlim=(0, 1), xlabel="share of what is, or was called, the class")
    ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return _laid_out(figure)


@_styled()
def classes(evaluation: Mapping[str, Any]) -> Figure:
    """Draw the scores of each class: IoU and F1 as bars, precision and recall as markers, with their intervals.

    Parameters
    ----------
    evaluation
        `per_class`, and perhaps `intervals`, as in an evaluation's JSON; a score that is None is shown as "-".
    """
    scores, intervals = evaluation["per_class"], evaluation.get("intervals") or {}
    names = [_wrapped(name) for name in scores]
    figure, ax = _bars(names, 0.44 if len(names) <= _FEW else 0.36, 1.05)
    rows = np.arange(len(names))
    handles: list[Any] = []
    lanes: tuple[tuple[str, str, float, dict[str, Any]], ...] = (
        ("iou", "IoU", -0.26, {"color": _BLUE}),
        ("f1", "F1", 0.0, {"color": "#a6cee8", "hatch": "////", "edgecolor": _BLUE}),
        ("precision", "precision", 0.21, {"color": _RED, "marker": "o"}),
        ("recall", "recall", 0.33, {"color": "#00664b", "marker": "D", "markerfacecolor": "white"}),
    )
    for key, label, shift, look in lanes:
        values = [_number(row.get(key)) for row in scores.values()]
        if "marker" in look:
            handles += ax.plot(values, rows + shift, linestyle="none", label=label, zorder=4, clip_on=False, **look)
        else:
            handles.append(ax.barh(rows + shift, np.nan_to_num(values), 0.24, label=label, linewidth=0, **look))
        spans = [(intervals.get("per_class", {}).get(name) or {}).get(key) for name in scores]
        _draw_spans(ax, rows + shift, spans, look["color"] if "marker" in look else "black")
    for row, each in enumerate(scores.values()):
        missing = [label for key, label, *_ in lanes[2:] if each.get(key) is None]
        if missing and each.get("iou") is not None:
            ax.text(0.02, row + 0.27, f"{missing[0]} -", va="center", fontsize=8)
    columns = {label: [_score(row.get(key)) for row in scores.values()] for key, label, *_ in lanes[:2]}
    columns["pixels"] = ["-" if (of := row.get("support")) is None else _short(of) for row in scores.values()]
    _columns(ax, rows, columns)
    units = f"{intervals['units']} {intervals['unit']}s" if intervals else ""
    ax.set(xlim=(0, 1), xlabel=f"score, 95 % intervals over {units}" if intervals else "score")
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return _laid_out(figure)


@_styled()
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
    named = [name for name in channels if name in worst[: len(_LINES)]]
    labels = [_shortened(name, 1.7) for name in named]
    ncols = min(3, int((_WIDTH - 0.2) / (_inches([*labels, "as sure as right"]) + 0.5)))
    entries = len(named) + 2 + (len(named) < len(channels))
    below = _LINE * 1.15 * -(-entries // ncols)
    figure = _figure(4.1 + below)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    handles = [*upper.plot([0, 1], [0, 1], color="#777777", linestyle="--", linewidth=1, label="as sure as right")]
    others: list[Any] = []
    for name in channels:
        if name not in named:
            points = channels[name]["reliability"]
            others = upper.plot(*_defined(points["probability"], points["share"]), color=_PALE, linewidth=0.8)
    for name, label, (color, marker) in zip(named, labels, _LINES, strict=False):
        points = channels[name]["reliability"]
        handles += upper.plot(
            *_defined(points["probability"], points["share"]), color=color, marker=marker, linewidth=1, label=label
        )
    for line in others:
        line.set_label(f"{len(channels) - len(named)} other classes")
    told = {"color": "black", "marker": "o", "linewidth": 2, "markersize": 5, "label": "decisions"}
    decided = upper.plot(*_defined(curve["confidence"], curve["right"]), zorder=4, **told)
    handles = [*decided, *handles[1:], *others, handles[0]]
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is so" if channels else "share that is right")
    ece, brier = (_score(evaluation.get(key)) for key in ("ece", "brier"))
    _title(figure, f"ECE {ece}, Brier score {brier}")
    upper.grid()
    bins = len(curve["pixels"])
    lower.bar(np.arange(bins) / bins, curve["pixels"], 0.92 / bins, align="edge", color=_GREY)
    lower.set(
        yscale="log", ylabel="pixels", xlabel="confidence, or probability of the class" if channels else "confidence"
    )
    lower.set_ylim(0.7, 3 * max(curve["pixels"]))
    lower.yaxis.set_major_formatter(lambda value, _: _short(value))
    lower.yaxis.set_major_locator(LogLocator(numticks=4))
    lower.minorticks_off()
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols)
    return _laid_out(figure)


@_styled()
def areas(estimate_summary: Mapping[str, Any]) -> Figure:
    """Draw what a map shows beside what is estimated, with 95 % intervals, and the accuracies below.

    Parameters
    ----------
    estimate_summary
        As `segkit.assess.estimation.Estimate.summary` returns it; what is None is shown as "-".
    """
    each = estimate_summary["per_class"].values()
    names = [_wrapped(name) for name in estimate_summary["per_class"]]
    figure = _figure(2 * len(names) * _high(names, 0.42) + 2.0)
    upper, lower = figure.subplots(2, 1)
    above, below = np.arange(len(names)) - 0.2, np.arange(len(names)) + 0.2
    handles: list[Any] = []
    looks: tuple[tuple[str, str, NDArray[Any], dict[str, Any]], ...] = (
        ("mapped_ha", "pixels of the map", above, {"color": "#d9d9d9", "hatch": "////", "edgecolor": "#777777"}),
        ("area_ha", "estimated, 95 % interval", below, {"color": _BLUE}),
    )
    texts = []
    for key, label, places, look in looks:
        values, halves = ([_number(row.get(part)) for row in each] for part in (key, f"{key}_ci95"))
        handles.append(upper.barh(places, np.nan_to_num(values), 0.36, label=label, linewidth=0, **look))
        _draw_spans(upper, places, [(value - half, value + half) for value, half in zip(values, halves, strict=True)])
        texts += [_with_error(_hectares, *pair) for pair in zip(values, halves, strict=True)]
    _columns(upper, np.concatenate([above, below]), {"hectares": texts})
    upper.set_xlim(left=0)
    upper.xaxis.set_major_formatter(lambda value, _: _short(value))
    texts = []
    for key, label, places, marker, color in (
        ("users", "user's accuracy", above, "o", _RED),
        ("producers", "producer's accuracy", below, "s", "#00664b"),
    ):
        values, halves = ([_number(row.get(part)) for row in each] for part in (key, f"{key}_ci95"))
        handles += lower.plot(values, places, marker, color=color, label=label, zorder=4, clip_on=False)
        spans = [(value - half, value + half) for value, half in zip(values, halves, strict=True)]
        _draw_spans(lower, places, spans, color)
        texts += [_with_error(_score, *pair) for pair in zip(values, halves, strict=True)]
    _columns(lower, np.concatenate([above, below]), {"accuracy": texts})
    overall, error = (_number(estimate_summary.get(key)) for key in ("overall_accuracy", "overall_accuracy_ci95"))
    lower.axvline(overall, color="#666666", linestyle=":", linewidth=1.2, zorder=1)
    lower.set(xlim=(0, 1), xlabel="accuracy (dotted: overall)")
    upper.set(xlabel="hectares")
    for ax in (upper, lower):
        _name_rows(ax, names)
    _title(figure, f"overall accuracy {_with_error(_score, overall, error)}, {estimate_summary['samples']:,} samples")
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return _laid_out(figure)


@_styled()
def mapped(hectares: Mapping[str, float], colors: Mapping[str, str]) -> Figure:
    """Draw the hectares that a map shows of each class, titled so that nobody takes them for an estimate.

    Parameters
    ----------
    hectares
        By class.
    colors
        "#rrggbb" by class; a class that is not there is grey.
    """
    names = [_wrapped(name) for name in hectares]
    figure, ax = _bars(names, 0.3, 0.85)
    rows, values = np.arange(len(names)), [_number(value) for value in hectares.values()]
    shown = [colors.get(name, _PALE) for name in hectares]
    ax.barh(rows, np.nan_to_num(values), 0.66, color=shown, edgecolor="#555555", linewidth=0.6)
    total = math.fsum(np.nan_to_num(values))
    shares = ["-" if math.isnan(value) or not total else _percent(value / total) for value in values]
    _columns(ax, rows, {"hectares": [_hectares(value) for value in values], "share": shares})
    ax.set_xlim(left=0)
    ax.set_xlabel("hectares")
    ax.xaxis.set_major_formatter(lambda value, _: _short(value))
    _title(figure, "pixels of the map: a biased estimate of area")
    return _laid_out(figure)


def _figure(height: float, width: float = _WIDTH) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _laid_out(figure: Figure) -> Figure:
    """Place everything once: each drawing would move it by a hair."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.012, ha="left")


def _bars(names: Sequence[str], high: float, more: float) -> tuple[Figure, Axes]:
    """Return a figure with a row of `high` inches for each name, and what lies around with `more` inches."""
    figure = _figure(len(names) * _high(names, high) + more)
    ax = figure.subplots()
    _name_rows(ax, names)
    return figure, ax


def _high(names: Sequence[str], least: float) -> float:
    """Return how many inches the rows of names take."""
    return max(least, 0.08 + _LINE * _lines(names))


def _name_rows(ax: Axes, names: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.45, -0.55))
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")


def _columns(ax: Axes, places: NDArray[Any], columns: Mapping[str, Sequence[str]]) -> None:
    """Write columns of text right of the axes, each text at its place on the y axis."""
    edge = 0.0
    for head, texts in columns.items():
        edge += 9 + 72 * _inches([head, *texts])
        how: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "annotation_clip": False}
        ax.annotate(head, (1, 1), (edge, 3), xycoords="axes fraction", va="bottom", color="#555555", **how)
        for place, text in zip(places, texts, strict=True):
            ax.annotate(text, (1, place), (edge, 0), xycoords=("axes fraction", "data"), va="center", **how)


def _draw_spans(ax: Axes, places: NDArray[Any], spans: Sequence[Sequence[float] | None], color: str = "black") -> None:
    """Draw intervals [low, high] as lines with ends; None and NaN are left out."""
    there = [(place, *span) for place, span in zip(places, spans, strict=True) if span and not math.isnan(sum(span))]
    if there:
        at, low, high = np.array(there).T
        ax.errorbar((low + high) / 2, at, xerr=(high - low) / 2, fmt="none", ecolor=color, elinewidth=1, capsize=2)


def _defined(*values: Sequence[float | None]) -> NDArray[np.float64]:
    """Return the places where all are defined, (values, places)."""
    found = np.array(values, dtype=np.float64)
    return found[:, np.isfinite(found).all(axis=0)]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _readable(color: Sequence[float]) -> str:
    """Return black or white, whichever has more contrast against a colour (WCAG 2.2)."""
    rgb = np.array(color[:3])
    light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
    return "black" if (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) else "white"


def _short(value: float) -> str:
    """Write a number with three digits: 987, 12.3 k, 4.5 M."""
    value = float(f"{value:.3g}")
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _hectares(value: float) -> str:
    if math.isnan(value):
        return "-"
    if abs(value) >= _MANY_HECTARES:
        return _short(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _score(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _with_error(form: Callable[[float], str], value: float, error: float) -> str:
    if form is _hectares and abs(value) >= _MANY_HECTARES:
        form = _short  # the error in the unit of the value
    return form(value) if math.isnan(error) else f"{form(value)} ± {form(error)}"


def _percent(share: float) -> str:
    """Write a share with one decimal; what is not all or nothing does not look so."""
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    return "< 0.1 %" if share < 0.0005 else "> 99.9 %" if share > 0.9995 else f"{100 * share:.1f} %"


def _rounded(share: float) -> str:
    """Write a share in whole percent, hardly any as a dot, and nothing as nothing."""
    return "" if not share else "·" if share < 0.005 else f"{100 * share:.0f}"


def _plain(name: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in spoken(name)).split())


def _wrapped(name: str, inches: float = _NAME) -> str:
    """Write a class's name in up to three lines that are not wider."""
    text = _plain(name)
    for width in range(24, 3, -2):
        lines = textwrap.wrap(text, width, max_lines=3, placeholder=" …")
        if _inches(lines) <= inches:
            break
    return "\n".join(lines)


def _shortened(name: str, inches: float) -> str:
    """Write a class's name in one line, without its middle where it is too wide: names often begin alike."""
    text = short = _plain(name)
    left, right = text[: len(text) // 2], text[len(text) // 2 :]
    while _inches([short]) > inches:
        left, right = (left[:-1], right) if len(left) >= len(right) else (left, right[1:])
        short = f"{left.rstrip()}…{right.lstrip()}"
    return short


def _inches(texts: Sequence[str]) -> float:
    """Return how wide the widest line is."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font, lines = FontProperties(size=9), [line for text in texts for line in text.split("\n")]
    sizes = (text_to_path.get_text_width_height_descent(line, font, ismath=False) for line in lines if line)
    return max((wide for wide, _, _ in sizes), default=0.0) / 72


def _lines(texts: Sequence[str]) -> int:
    return max((text.count("\n") + 1 for text in texts), default=1)
