"""The common style of all charts: sizes, colours, axes."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segkit.io.paths import PathLike
from segkit.plots.images import font_fallback

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


WIDTH_INCHES = 4.8  # inches
LINE_INCHES = 0.16  # height of a line of text
BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#8c8c8c"
PALE_GREY = "#bdbdbd"
# (colour, marker) of lines; they differ in both.
LINE_STYLES = tuple(
    zip((RED, BLUE, GREEN, ORANGE, "#56b4e9", "#cc79a7", "#332288", "#999933"), "s^DvPX<>", strict=True)
)
MAX_CLASSES_WITH_COUNTS = 6  # up to this number, the cells of a confusion matrix also show pixel counts
SLANT_DEGREES = 40  # rotation of labels that are too long to fit side by side
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
    "svg.fonttype": "none",  # text stays text; the browser has the fonts
    "svg.hashsalt": "segkit",
    "text.parse_math": False,  # a "$" in a class name is a dollar sign
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


@contextmanager
def chart_style() -> Iterator[None]:
    """Use the common style and fallback fonts for figures, independent of the user's matplotlibrc."""
    from matplotlib import style

    with style.context(["default", _STYLE]), font_fallback():
        yield


@chart_style()
def to_svg(figure: Figure) -> str:
    """Return a figure as an SVG element for an HTML page; the same figure gives the same text."""
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", facecolor="white", metadata=no_metadata)
    text = file.getvalue()
    # Ids of groups are not referenced, and would be duplicates in a page with two figures.
    return re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])


@chart_style()
def write_png(figure: Figure, path: PathLike | IO[bytes], dpi: float = 200) -> None:
    """Write a figure as a PNG; an existing file is replaced."""
    if figure.get_layout_engine() is not None:
        freeze_layout(figure)  # savefig would compute it twice
    figure.savefig(path, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})


def new_figure(height: float, width: float = WIDTH_INCHES) -> Figure:
    """Return a figure of this height and width in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def freeze_layout(figure: Figure) -> Figure:
    """Compute the layout once; otherwise each drawing would change it slightly."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine("none")
    return figure


def add_title(figure: Figure, text: str) -> None:
    """Add a left-aligned title to a figure."""
    figure.suptitle(text, x=0.012, ha="left")


def new_bar_chart(names: Sequence[str], row_inches: float, other_inches: float) -> tuple[Figure, Axes]:
    """Return a figure with a row (>= `row_inches`) per name, and `other_inches` for title, legend and x axis."""
    figure = new_figure(len(names) * row_height(names, row_inches) + other_inches)
    ax = figure.subplots()
    label_rows(ax, names)
    return figure, ax


def row_height(names: Sequence[str], min_inches: float) -> float:
    """Return the height of a row in inches, so that the name with the most lines fits."""
    return max(min_inches, 0.08 + LINE_INCHES * max_line_count(names))


def label_rows(ax: Axes, names: Sequence[str]) -> None:
    """Label the rows of a bar chart on the y axis, the first at the top."""
    from matplotlib.ticker import MaxNLocator

    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.45, -0.55))
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")


def draw_text_columns(ax: Axes, y: NDArray[Any], columns: Mapping[str, Sequence[str]]) -> None:
    """Write columns of text, {heading: texts}, to the right of the axes, at the data coordinates `y`."""
    right_edge = 0.0  # in points
    for heading, texts in columns.items():
        right_edge += 9 + 72 * text_inches([heading, *texts])
        how: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "annotation_clip": False}
        ax.annotate(heading, (1, 1), (right_edge, 3), xycoords="axes fraction", va="bottom", color="#555555", **how)
        for row, text in zip(y, texts, strict=True):
            ax.annotate(text, (1, row), (right_edge, 0), xycoords=("axes fraction", "data"), va="center", **how)


def draw_intervals(
    ax: Axes, y: NDArray[Any], intervals: Sequence[Sequence[float] | None], color: str = "black"
) -> None:
    """Draw horizontal error bars [low, high] at `y`; None and NaN are skipped."""
    defined = [(row, *ends) for row, ends in zip(y, intervals, strict=True) if ends and not math.isnan(sum(ends))]
    if defined:
        rows, low, high = np.array(defined).T
        ax.errorbar((low + high) / 2, rows, xerr=(high - low) / 2, fmt="none", ecolor=color, elinewidth=1, capsize=2)


def defined_values(*values: Sequence[float | None]) -> NDArray[np.float64]:
    """Return sequences of N values without the positions at which any is None or NaN, (sequences, <= N)."""
    array = np.array(values, dtype=np.float64)
    return array[:, np.isfinite(array).all(axis=0)]


def text_inches(texts: Sequence[str]) -> float:
    """Return the width of the widest line of some texts in inches."""
    from matplotlib import rcParams

    fonts = (*rcParams["font.family"], *rcParams["font.sans-serif"])
    return max((_line_inches(line, fonts) for text in texts for line in text.split("\n") if line), default=0.0)


@lru_cache(maxsize=10_000)
def _line_inches(line: str, fonts: tuple[str, ...]) -> float:
    """Return the width of a line; `fonts` are the current font settings, as part of the cache's key."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(line, FontProperties(size=9), ismath=False)
    return float(width) / 72


def max_line_count(texts: Sequence[str]) -> int:
    """Return the maximum number of lines of some texts."""
    return max((text.count("\n") + 1 for text in texts), default=1)
