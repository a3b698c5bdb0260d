"""A picture of the training data of a recipe: class shares, and crops as the network gets them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segkit.data.area import count_categories, read_tiles
from segkit.data.areas import open_areas
from segkit.data.cache import Cache
from segkit.data.check import Report
from segkit.data.datasets import TrainDataset
from segkit.data.examination import class_counts
from segkit.data.statistics import Statistics
from segkit.errors import SegkitError
from segkit.io.class_table import parse_color
from segkit.io.files import atomic_write
from segkit.io.paths import PathLike
from segkit.plots.images import UNLABELLED_COLOR, BandRendering, colorize, display_name, font_fallback, legend_patches
from segkit.plots.text import format_percent
from segkit.recipe.schema import Recipe
from segkit.task import IGNORE, Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MASKED_RGB = (1.0, 0.0, 1.0)  # magenta, which no land cover has
_N_CROPS, _N_COLUMNS = 12, 4
_PARTS = {"train": "training", "val": "validation"}


@dataclass(frozen=True)
class _Crop:
    """A crop as the network gets it: image (H, W, 3), valid pixels (H, W), targets (T, H, W)."""

    image: NDArray[np.float64]
    valid: NDArray[np.bool_]
    targets: NDArray[np.int16]


def draw_data(recipe: Recipe, report: Report, path: PathLike, *, show_progress: bool = False) -> None:
    """Draw the training data of a recipe; an existing file at `path` is replaced.

    Shares are those of the labelled pixels on both sides of the split. Crops are the first of a training, after
    augmentation, with masked pixels in magenta.

    Parameters
    ----------
    report
        Returned by `segkit.check`. If it has problems, the picture shows the first of them instead of crops.
    path
        Of the PNG.
    """
    shares = {
        part: {one.name: one.share for one in report.classes(part)}
        for part in dict.fromkeys(scene.part for scene in report.scenes)
    }
    crops: list[_Crop] = []
    caption = next(iter(report.problems), "")
    if not report.problems:
        try:
            shares, crops, caption = _collect(recipe, show_progress=show_progress)
        except SegkitError as error:
            caption = str(error)
    together = report.together("train").shares() if recipe.task.n_targets > 1 else None
    with atomic_write(path) as part:
        _draw(recipe.name, recipe.task, shares, together, crops, caption, part)


def _collect(recipe: Recipe, *, show_progress: bool) -> tuple[dict[str, dict[str, float | None]], list[_Crop], str]:
    """Return the class shares of each side, the first crops, and their caption."""
    task, settings = recipe.task, recipe.train
    with Cache.open(recipe.data.cache, show_progress=show_progress) as cache:
        training, validation = open_areas(recipe, cache=cache)
        statistics = Statistics.from_areas(training, task, show_progress=show_progress)
        shares = {"train": _shares(statistics.counts, task)}
        if validation:
            counts = sum(count_categories(targets, task) for _, targets, _ in read_tiles(validation))
            shares["val"] = _shares(np.reshape(counts, statistics.counts.shape), task)
        view = BandRendering.from_statistics(training[0].sample.scene.band_names, statistics.mean, statistics.std)
        tiles = TrainDataset.from_areas(training, settings, statistics)
        crops = []
        for number in range(_N_CROPS):
            pixels, valid, targets = (each.numpy() for each in tiles[number])
            crops.append(_Crop(view.render(pixels, valid, _MASKED_RGB), valid, task.harden(targets)))
    caption = (
        f"The first {_N_CROPS} crops of {settings.tile_size} x {settings.tile_size} pixels after augmentation "
        f"({settings.augment}): {view.caption}. Magenta: masked pixels (no data, outside the scene, validation areas "
        "and their gap)."
    )
    return shares, crops, caption


def _shares(counts: NDArray[np.int64], task: Task) -> dict[str, float | None]:
    """Return the share of each class in the labelled pixels of its target, from counts (T, K)."""
    return {one.name: one.share for one in class_counts(counts, task)}


@font_fallback()
def _draw(
    name: str,
    task: Task,
    shares: Mapping[str, Mapping[str, float | None]],
    together: NDArray[np.float64] | None,
    crops: Sequence[_Crop],
    caption: str,
    path: Path,
) -> None:
    from matplotlib.figure import Figure

    rows, classes = -(-len(crops) // _N_COLUMNS), len(task.scored_categories)
    bar_height, side = max(1.4, 0.55 + 0.42 * classes), 1.55
    crops_height = rows * (side + 0.12) + 0.95 if crops else 0.7
    figure = Figure(figsize=(2 * _N_COLUMNS * side + 0.9, bar_height + crops_height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.0, hspace=0.0)  # type: ignore[union-attr, call-arg]
    halves: Any = figure.subfigures(2, 1, height_ratios=[bar_height, crops_height], hspace=0.02)
    top, bottom = halves
    ax, *others = np.atleast_1d(top.subplots(1, 1 if together is None else 2))
    _draw_shares(ax, task, shares)
    if together is not None:
        _draw_together(others[0], task, together)
    ax.set_title(name, loc="left", fontsize=11)
    if crops:
        bottom.suptitle("\n".join(textwrap.wrap(caption, 130)), fontsize=9)
        # Image and label of a crop are close together, with a space before the next crop.
        axes = bottom.subplots(rows, 3 * _N_COLUMNS - 1, squeeze=False, width_ratios=([1, 1, 0.08] * _N_COLUMNS)[:-1])
        for crop, (row, column) in zip(crops, np.ndindex(rows, _N_COLUMNS), strict=False):
            left, right = axes[row, 3 * column : 3 * column + 2]
            left.imshow(crop.image, interpolation="nearest")
            _draw_labels(right, crop, task)
        for ax in axes.flat:
            ax.set_axis_off()
    else:
        bottom.suptitle("\n".join(textwrap.wrap(f"No crops: {caption}", 130)), fontsize=9, color="#b2182b")
    handles = legend_patches(task, background=task.n_targets == 1)
    bottom.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)


def _draw_shares(ax: Axes, task: Task, shares: Mapping[str, Mapping[str, float | None]]) -> None:
    """Draw a bar for each class and side of the split: training filled, validation hatched."""
    colors = {row["name"]: row["color"] for row in task.legend}
    names = [name for name, _, _ in task.scored_categories]
    height = 0.8 / max(1, len(shares))
    for number, (part, of_part) in enumerate(shares.items()):
        for position, name in enumerate(names):
            share, y = of_part.get(name), position + (number - (len(shares) - 1) / 2) * height
            filled = part == "train"
            ax.barh(
                y, share or 0, 0.86 * height, hatch=None if filled else "////", lw=0.7,
                facecolor=colors[name] if filled else "white", edgecolor="#777777" if filled else _darken(colors[name]),
            )  # fmt: skip
            text = "unlabelled" if share is None else format_percent(share)
            ax.annotate(
                f"{text}  {_PARTS.get(part, part)}", (share or 0, y), (4, 0), textcoords="offset points",
                va="center", fontsize=8, color="#333333",
            )  # fmt: skip
    largest = max((share or 0 for of_part in shares.values() for share in of_part.values()), default=1) or 1
    ax.set(
        yticks=range(len(names)), yticklabels=[display_name(name) for name in names], ylim=(len(names) - 0.45, -0.55)
    )
    ticks = [tick for tick in ax.get_xticks() if 0 <= tick <= 1]
    ax.set(xticks=ticks, xlim=(0, 1.2 * largest))
    ax.set_xlabel("share of labelled pixels", fontsize=9)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.tick_params(axis="y", length=0, labelsize=10)
    ax.tick_params(axis="x", labelsize=8)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _draw_together(ax: Axes, task: Task, together: NDArray[np.float64]) -> None:
    """Draw the share of the pixels of each class (row) that are of another (column), too; grey where undefined."""
    names = [display_name(one.name) for one in task.classes]
    shown = np.where(np.eye(len(names), dtype=bool), np.nan, together)
    ax.set_facecolor(UNLABELLED_COLOR)
    ax.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.argwhere(np.isfinite(shown)):
        share = float(shown[row, column])
        color = "black" if share < 0.6 else "white"
        ax.text(column, row, format_percent(share), ha="center", va="center", fontsize=7, color=color)
    ax.set(xticks=range(len(names)), yticks=range(len(names)))
    ax.set_xticklabels(names, rotation=20, ha="right", fontsize=8)
    ax.set_yticklabels(names, fontsize=8)
    ax.set_title("share of pixels of ... (row) that are also ... (column)", fontsize=9)
    ax.tick_params(length=0)


def _darken(color: str) -> NDArray[np.float64]:
    """Darken a colour so that it is visible on white."""
    rgb = np.array(parse_color(color)) / 255
    return np.asarray(rgb * min(1.0, 0.7 / rgb.mean() if rgb.mean() else 1.0))


def _draw_labels(ax: Axes, crop: _Crop, task: Task) -> None:
    """Draw labels in the colours of the legend; overlapping classes as outlines on the faded image."""
    if task.n_targets == 1:
        ax.imshow(colorize(crop.targets, task), interpolation="nearest")
        return
    faded = 0.5 + 0.5 * crop.image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    faded[(crop.targets == IGNORE).all(axis=0)] = UNLABELLED_COLOR
    ax.imshow(faded, interpolation="nearest")
    colors: dict[str, Any] = {row["name"]: row["color"] for row in task.legend}
    for name, target, category in task.scored_categories:
        # Padded, so that outlines close at the edge of the crop.
        present = np.pad(crop.targets[target] == category, 1).astype(float)
        if present.any():
            axes = [np.arange(-1, length - 1) for length in present.shape]
            ax.contourf(axes[1], axes[0], present, levels=[0.5, 1.5], colors=[colors[name]], alpha=0.35)
            ax.contour(axes[1], axes[0], present, levels=[0.5], colors=[colors[name]], linewidths=1.1)
    partly = (crop.targets == IGNORE).any(axis=0) & (crop.targets != IGNORE).any(axis=0)
    if partly.any():
        ax.contourf(partly.astype(float), levels=[0.5, 1.5], colors="none", hatches=["...."])
    height, width = crop.valid.shape
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
