"""Loss and validation scores by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from segkit.plots.style import BLUE, GREEN, RED, chart_style, freeze_layout, new_figure

_VALIDATION_LINES = (("val_iou", "mean IoU", RED, "o"), ("val_accuracy", "accuracy", GREEN, "s"))
_MAX_MARKERS = 12  # on a line, approximately


@chart_style()
def curves(rows: Sequence[Mapping[str, float]], saved_epoch: int) -> Figure:
    """Draw training loss, and validation scores if there are any, against the epoch.

    Parameters
    ----------
    rows
        Rows of a run's log.csv, one per epoch: `epoch`, `loss`, and optionally `val_iou` and `val_accuracy`.
    saved_epoch
        The epoch whose weights are in the model file.
    """
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in rows]
    lines = [("loss", "training loss", BLUE, "o")]
    scores = [line for line in _VALIDATION_LINES if any(line[0] in row for row in rows)]
    figure = new_figure(2.5)
    panels = [("training loss", lines), ("validation score", scores)][: 2 if scores else 1]
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    handles = []
    for ax, (title, panel_lines) in zip(axes, panels, strict=True):
        for key, label, color, marker in panel_lines:
            values = [row.get(key, math.nan) for row in rows]
            every = max(1, math.ceil(len(rows) / _MAX_MARKERS))
            handles += ax.plot(epochs, values, color=color, marker=marker, markevery=every, label=label)
        mark = ax.axvline(
            saved_epoch, color="#666666", linestyle=":", linewidth=1.2, label=f"saved: epoch {saved_epoch}", zorder=1
        )
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.set(title=title, xlabel="epoch")
        ax.grid(axis="y")
    figure.legend(handles=[*handles[1:], mark], loc="outside lower center", ncols=3)
    return freeze_layout(figure)
