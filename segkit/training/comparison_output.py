"""Write a comparison as CSV, JSON and picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from segkit.io.files import atomic_write, escape_formula
from segkit.plots.images import font_fallback
from segkit.plots.text import format_percent, format_score, format_short
from segkit.training.comparison import MEASURES, Comparison, Measure, Row, Trial

# Colours of Okabe and Ito, which colour-blind readers can distinguish.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def summarize_trials(variant: str, trials: Sequence[Trial]) -> Row:
    """Return mean and standard deviation of each measure over the trials of a variant."""
    measures = {key: Measure.from_values(trial.measure(key) for trial in trials) for key in MEASURES}
    return Row(variant, len(trials), measures)


def write_comparison(result: Comparison) -> None:
    """Write compare.png, compare.csv and, last, compare.json."""
    with atomic_write(result.picture) as part:
        draw_comparison(result, part)
    with atomic_write(result.folder / "compare.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "trials", *(f"{key}{end}" for key in MEASURES for end in ("", "_spread"))])
        for row in result.rows:
            numbers = [value for key in MEASURES for value in (row.measures[key].mean, row.measures[key].std)]
            writer.writerow(
                [escape_formula(row.variant), row.trials, *("" if value is None else repr(value) for value in numbers)]
            )
    trials = [asdict(trial) | {"folder": str(trial.folder.relative_to(result.folder))} for trial in result.trials]
    variants = [
        {
            "variant": row.variant,
            "trials": row.trials,
            "measures": {key: measure.to_dict() for key, measure in row.measures.items()},
        }
        for row in result.rows
    ]
    agreement = {"labels": [row.variant for row in result.rows], "matrix": result.agreement}
    with atomic_write(result.folder / "compare.json") as part:
        part.write_text(
            json.dumps({"variants": variants, "agreement": agreement, "trials": trials}, indent=2), encoding="utf-8"
        )


@font_fallback()
def draw_comparison(result: Comparison, path: Path) -> None:
    """Draw scores and seconds (mean, standard deviation and each trial), and the matrix of agreement."""
    from matplotlib.figure import Figure

    names, count = [row.variant.replace(", ", "\n") for row in result.rows], len(result.rows)
    lines = max(name.count("\n") + 1 for name in names)
    shown = [key for key in MEASURES if key != "cpu_seconds"]
    side = 1.6 + 0.75 * count
    figure = Figure(
        figsize=(2.1 * len(shown) + side + 2, max(2.6, 1.5 + count * (0.28 + 0.24 * lines))), layout="constrained"
    )
    axes = figure.subplots(1, len(shown) + 1, width_ratios=[2.1] * len(shown) + [side])
    for ax, key in zip(axes, shown, strict=False):
        for place, row in enumerate(result.rows):
            measure, color = row.measures[key], _COLORS[place % len(_COLORS)]
            if measure.mean is None:
                continue
            ax.plot(measure.values, [place + 0.2] * len(measure.values), ".", color=color, alpha=0.55, ms=7, mew=0)
            ax.errorbar(measure.mean, place, xerr=measure.std, fmt="D", color=color, ms=6, capsize=4, lw=1.8)
            ax.annotate(
                format_short(measure.mean) if key == "seconds" else format_score(measure.mean),
                (measure.mean, place),
                (0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        ax.set(yticks=range(count), yticklabels=names if ax is axes[0] else [], ylim=(count - 0.4, -0.6))
        ax.set_title(MEASURES[key], fontsize=10)
        ax.margins(x=0.25)
        ax.locator_params(axis="x", nbins=4)
        ax.tick_params(axis="x", labelsize=8)
        ax.grid(axis="x", color="#dddddd", lw=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    _draw_matrix(axes[-1], result, names)
    trials = {row.trials for row in result.rows}
    count_text = f"{min(trials)} trainings each" if len(trials) == 1 and max(trials) > 1 else "one training each"
    figure.supxlabel(f"diamond and bar: mean and standard deviation, dots: single trainings ({count_text})", fontsize=8)
    figure.savefig(path, dpi=130)


def _draw_matrix(ax: Any, result: Comparison, names: Sequence[str]) -> None:
    shares = np.array([[np.nan if each is None else each for each in row] for row in result.agreement], dtype=float)
    ax.set_facecolor("#eeeeee")
    low = np.nanmin(shares) if np.isfinite(shares).any() else 0.0
    ax.imshow(shares, cmap="cividis", vmin=min(low, 0.99) - 0.02, vmax=1)
    for row, column in np.ndindex(*shares.shape):
        share = shares[row, column]
        dark = np.isfinite(share) and share < (1 + min(low, 0.99)) / 2
        color = "white" if dark else "black"
        ax.text(column, row, format_percent(float(share)), ha="center", va="center", fontsize=8, color=color)
    ticks = range(len(names))
    ax.set(xticks=ticks, yticks=ticks, xticklabels=names, yticklabels=names)
    ax.tick_params(labelsize=8, length=0)
    ax.set_title("agreement\n(diagonal: with another seed)", fontsize=10)
