"""Preview: one picture of what a recipe trains on, shares of the classes and crops as the network gets them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segkit.data.area import count_categories, read_pieces
from segkit.data.areas import areas
from segkit.data.cache import Cache
from segkit.data.check import Report
from segkit.data.datasets import TrainTiles
from segkit.data.examination import class_counts
from segkit.data.statistics import Statistics
from segkit.errors import SegkitError
from segkit.io.files import staged
from segkit.io.raster import PathLike
from segkit.plots.images import UNKNOWN, View, any_names, colored, legend_patches, spoken
from segkit.recipe.schema import Recipe
from segkit.task.task import IGNORE, Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_UNSEEN = (1.0, 0.0, 1.0)  # magenta, as no land is
_CROPS, _ACROSS = 12, 4
_PARTS = {"train": "training", "val": "validation"}


@dataclass(frozen=True)
class _Crop:
    """A crop as the network gets it: image (H, W, 3), which pixels it sees (H, W), target planes (P, H, W)."""

    image: NDArray[np.float64]
    valid: NDArray[np.bool_]
    planes: NDArray[np.int16]


def draw_data(recipe: Recipe, report: Report, path: PathLike, *, show_progress: bool = False) -> None:
    """Draw what a recipe trains on; what was at `path` is replaced.

    Shares are those of the known pixels on both sides of the split. Crops are the first of a training: after
    augmentation, with magenta where the network sees nothing.

    Parameters
    ----------
    report
        What `segkit.check` found. Where it found problems there may be no crops; then the reason stands in their place.
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
            shares, crops, caption = _seen(recipe, show_progress=show_progress)
        except SegkitError as error:
            caption = str(error)
    with staged(path) as part:
        _draw(recipe.name, recipe.task, shares, crops, caption, part)


def _seen(recipe: Recipe, *, show_progress: bool) -> tuple[dict[str, dict[str, float | None]], list[_Crop], str]:
    """Return the shares of each side, the first crops, and what there is to say of them."""
    task, setup = recipe.task, recipe.train
    with Cache.opened(recipe.data.cache, show_progress=show_progress) as cache:
        training, validation = areas(recipe, cache=cache)
        statistics = Statistics.of(training, task, show_progress=show_progress)
        shares = {"train": _shares(statistics.counts, task)}
        if validation:
            held = sum(count_categories(planes, task) for _, planes, _ in read_pieces(validation))
            shares["val"] = _shares(np.reshape(held, statistics.counts.shape), task)
        view = View.of(training[0].sample.scene.band_names, statistics.mean, statistics.std)
        tiles = TrainTiles.of(training, setup, statistics)
        crops = []
        for number in range(_CROPS):
            pixels, valid, planes = (each.numpy() for each in tiles[number])
            crops.append(_Crop(view.image(pixels, valid, _UNSEEN), valid, task.settle(planes)))
    caption = (
        f"The first {_CROPS} crops of {setup.tile_size} x {setup.tile_size} pixels after augmentation "
        f"({setup.augment}): {view.caption}. Magenta: what the network does not see (no data, beyond the scene, and "
        "what validates with its gap)."
    )
    return shares, crops, caption


def _shares(counts: NDArray[np.int64], task: Task) -> dict[str, float | None]:
    """Return the share of each class among the known pixels of its plane, from counts (P, K)."""
    return {one.name: one.share for one in class_counts(counts, task)}


@any_names()
def _draw(
    name: str,
    task: Task,
    shares: Mapping[str, Mapping[str, float | None]],
    crops: Sequence[_Crop],
    caption: str,
    path: Path,
) -> None:
    from matplotlib.figure import Figure

    rows, classes = -(-len(crops) // _ACROSS), len(task.scored)
    bars, side = max(1.4, 0.55 + 0.42 * classes), 1.55
    pictures = rows * (side + 0.12) + 0.95 if crops else 0.7
    figure = Figure(figsize=(2 * _ACROSS * side + 0.9, bars + pictures), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.0, hspace=0.0)  # type: ignore[union-attr, call-arg]
    halves: Any = figure.subfigures(2, 1, height_ratios=[bars, pictures], hspace=0.02)
    top, bottom = halves
    ax = top.subplots()
    _draw_shares(ax, task, shares)
    ax.set_title(name, loc="left", fontsize=11)
    if crops:
        bottom.suptitle("\n".join(textwrap.wrap(caption, 130)), fontsize=9)
        # Image and label of a crop stand close together, and apart from the next ones.
        axes = bottom.subplots(rows, 3 * _ACROSS - 1, squeeze=False, width_ratios=([1, 1, 0.08] * _ACROSS)[:-1])
        for crop, (row, column) in zip(crops, np.ndindex(rows, _ACROSS), strict=False):
            left, right = axes[row, 3 * column : 3 * column + 2]
            left.imshow(crop.image, interpolation="nearest")
            _draw_labels(right, crop, task)
        for ax in axes.flat:
            ax.set_axis_off()
    else:
        bottom.suptitle("\n".join(textwrap.wrap(f"No crops: {caption}", 130)), fontsize=9, color="#b2182b")
    handles = legend_patches(task, background=task.planes == 1)
    bottom.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)


def _draw_shares(ax: Axes, task: Task, shares: Mapping[str, Mapping[str, float | None]]) -> None:
    """Draw a bar for each class and part: training filled, validation hatched."""
    colors = {row["name"]: row["color"] for row in task.legend}
    names = [name for name, _, _ in task.scored]
    high = 0.8 / max(1, len(shares))
    for number, (part, own) in enumerate(shares.items()):
        for place, name in enumerate(names):
            share, y = own.get(name), place + (number - (len(shares) - 1) / 2) * high
            filled = part == "train"
            ax.barh(
                y, share or 0, 0.86 * high, hatch=None if filled else "////", lw=0.7,
                facecolor=colors[name] if filled else "white", edgecolor="#777777" if filled else _dark(colors[name]),
            )  # fmt: skip
            told = "nothing known" if share is None else _percent(share)
            ax.annotate(
                f"{told}  {_PARTS.get(part, part)}", (share or 0, y), (4, 0), textcoords="offset points",
                va="center", fontsize=8, color="#333333",
            )  # fmt: skip
    largest = max((share or 0 for own in shares.values() for share in own.values()), default=1) or 1
    ax.set(yticks=range(len(names)), yticklabels=[spoken(name) for name in names], ylim=(len(names) - 0.45, -0.55))
    ticks = [tick for tick in ax.get_xticks() if 0 <= tick <= 1]
    ax.set(xticks=ticks, xlim=(0, 1.2 * largest))
    ax.set_xlabel("share of the pixels whose label is known", fontsize=9)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.tick_params(axis="y", length=0, labelsize=10)
    ax.tick_params(axis="x", labelsize=8)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _dark(color: str) -> NDArray[np.float64]:
    """Return a colour that is seen on white."""
    rgb = np.array([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.asarray(rgb * min(1.0, 0.7 / rgb.mean() if rgb.mean() else 1.0))


def _percent(share: float) -> str:
    return "0 %" if not share else f"{share:.1%}".replace("%", " %") if share >= 0.001 else "< 0.1 %"


def _draw_labels(ax: Axes, crop: _Crop, task: Task) -> None:
    """Draw labels in the legend's colours; where classes overlap, outlined on the image, which fades."""
    if task.planes == 1:
        ax.imshow(colored(crop.planes, task), interpolation="nearest")
        return
    faded = 0.5 + 0.5 * crop.image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    faded[(crop.planes == IGNORE).all(axis=0)] = UNKNOWN
    ax.imshow(faded, interpolation="nearest")
    colors: dict[str, Any] = {row["name"]: row["color"] for row in task.legend}
    for name, plane, category in task.scored:
        # A rim of nothing, so that outlines close at the crop's end.
        here = np.pad(crop.planes[plane] == category, 1).astype(float)
        if here.any():
            along = [np.arange(-1, length - 1) for length in here.shape]
            ax.contourf(along[1], along[0], here, levels=[0.5, 1.5], colors=[colors[name]], alpha=0.35)
            ax.contour(along[1], along[0], here, levels=[0.5], colors=[colors[name]], linewidths=1.1)
    partly = (crop.planes == IGNORE).any(axis=0) & (crop.planes != IGNORE).any(axis=0)
    if partly.any():
        ax.contourf(partly.astype(float), levels=[0.5, 1.5], colors="none", hatches=["...."])
    height, width = crop.valid.shape
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
