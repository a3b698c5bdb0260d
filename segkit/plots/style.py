"""One style for all charts: sizes, colours, axes."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segkit.io.raster import PathLike
from segkit.plots.images import any_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


WIDTH = 4.8  # inches
LINE = 0.16  # inches that a line of text takes
BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#8c8c8c"
PALE = "#bdbdbd"
# Of lines, which differ in colour and marker.
LINES = tuple(zip((RED, BLUE, GREEN, ORANGE, "#56b4e9", "#cc79a7", "#332288", "#999933"), "s^DvPX<>", strict=True))
ROOMY = 6  # classes at most where the cells of a confusion matrix hold counts, too
SLANT = 40  # degrees, of names that are too long to stand side by side
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
def chart_style() -> Iterator[None]:
    """Make and draw figures in one style, whatever the user's matplotlibrc says, and with the fonts there are."""
    from matplotlib import style

    with style.context(["default", _STYLE]), any_names():
        yield


@chart_style()
def svg(figure: Figure) -> str:
    """Draw a figure as an SVG element that can stand in a page; the same figure gives the same text."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", facecolor="white", metadata=nothing)
    text = file.getvalue()
    # Groups have names that nothing refers to, and that would come twice in a page with two figures.
    return re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])


@chart_style()
def png(figure: Figure, path: PathLike | IO[bytes], dpi: float = 200) -> None:
    """Draw a figure as a PNG; what was at `path` is replaced."""
    figure.savefig(path, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Make a figure of the common width, sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def lay_out(figure: Figure) -> Figure:
    """Place everything once: each drawing would move it by a hair."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def add_title(figure: Figure, text: str) -> None:
    """Write the title of a figure."""
    figure.suptitle(text, x=0.012, ha="left")


def bar_axes(names: Sequence[str], high: float, more: float) -> tuple[Figure, Axes]:
    """Return a figure with a row of `high` inches for each name, and what lies around with `more` inches."""
    figure = new_figure(len(names) * height_of_rows(names, high) + more)
    ax = figure.subplots()
    name_rows(ax, names)
    return figure, ax


def height_of_rows(names: Sequence[str], least: float) -> float:
    """Return how many inches the rows of names take."""
    return max(least, 0.08 + LINE * text_lines(names))


def name_rows(ax: Axes, names: Sequence[str]) -> None:
    """Write a name beside each row of bars."""
    from matplotlib.ticker import MaxNLocator

    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.45, -0.55))
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")


def draw_columns(ax: Axes, places: NDArray[Any], columns: Mapping[str, Sequence[str]]) -> None:
    """Write columns of text right of the axes, each text at its place on the y axis."""
    edge = 0.0
    for head, texts in columns.items():
        edge += 9 + 72 * text_inches([head, *texts])
        how: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "annotation_clip": False}
        ax.annotate(head, (1, 1), (edge, 3), xycoords="axes fraction", va="bottom", color="#555555", **how)
        for place, text in zip(places, texts, strict=True):
            ax.annotate(text, (1, place), (edge, 0), xycoords=("axes fraction", "data"), va="center", **how)


def draw_spans(ax: Axes, places: NDArray[Any], spans: Sequence[Sequence[float] | None], color: str = "black") -> None:
    """Draw intervals [low, high] as lines with ends; None and NaN are left out."""
    there = [(place, *span) for place, span in zip(places, spans, strict=True) if span and not math.isnan(sum(span))]
    if there:
        at, low, high = np.array(there).T
        ax.errorbar((low + high) / 2, at, xerr=(high - low) / 2, fmt="none", ecolor=color, elinewidth=1, capsize=2)


def defined_values(*values: Sequence[float | None]) -> NDArray[np.float64]:
    """Return the places where all are defined, (values, places)."""
    found = np.array(values, dtype=np.float64)
    return found[:, np.isfinite(found).all(axis=0)]


def text_inches(texts: Sequence[str]) -> float:
    """Return how wide the widest line is."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font, lines = FontProperties(size=9), [line for text in texts for line in text.split("\n")]
    sizes = (text_to_path.get_text_width_height_descent(line, font, ismath=False) for line in lines if line)
    return max((wide for wide, _, _ in sizes), default=0.0) / 72


def text_lines(texts: Sequence[str]) -> int:
    """Return how many lines the highest of some texts has."""
    return max((text.count("\n") + 1 for text in texts), default=1)
