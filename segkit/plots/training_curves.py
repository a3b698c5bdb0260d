"""The curves of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from segkit.plots.style import BLUE, GREEN, RED, chart_style, lay_out, new_figure

_VALIDATED = (("val_iou", "mean IoU", RED, "o"), ("val_accuracy", "accuracy", GREEN, "s"))
_MARKERS = 12  # on a line at most, about


@chart_style()
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
    lines = [("loss", "training loss", BLUE, "o")]
    scores = [line for line in _VALIDATED if any(line[0] in row for row in rows)]
    figure = new_figure(2.5)
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
    return lay_out(figure)
