"""Gallery: the windows of the validation areas in which a model is most wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.cover import box, overlap
from segkit.data.split import Area, pieces
from segkit.decide import Decided, Decider
from segkit.files import staged
from segkit.metrics import Confusion
from segkit.model import Segmenter
from segkit.picture import UNKNOWN, View, colored, legend_patches
from segkit.progress import progress
from segkit.raster import PathLike
from segkit.task import IGNORE

_ENOUGH = 0.25  # of the known pixels of the window that has most; those with fewer are not ranked
_SURE = "YlOrRd"  # matplotlib's colours from hardly sure to quite sure
_RIGHT = 0.55  # how far the image fades where the decision is right


@dataclass(frozen=True)
class Piece:
    """A window of an area, and how many of its decisions could be judged and were wrong."""

    area: Area
    window: Window
    known: int
    wrong: int

    @property
    def share(self) -> float:
        """`wrong` / `known`."""
        return self.wrong / self.known if self.known else 0.0


def draw_worst(
    decider: Decider,
    areas: Sequence[Area],
    path: PathLike,
    count: int = 6,
    size: int = 256,
    *,
    show_progress: bool = False,
) -> None:
    """Draw the windows with the largest share of wrong decisions: image, truth, decision, and how sure the errors are.

    Decisions are those that `segkit.evaluate.score` counts. What was at `path` is replaced.

    Parameters
    ----------
    areas
        Where to look; they are cut into windows.
    path
        Of the PNG.
    count
        How many windows at most.
    size
        Their side in pixels at most.
    """
    found = worst(decider, areas, count, size, show_progress=show_progress)
    with staged(path) as part:
        _draw(decider.segmenter, [_Look.of(decider, piece) for piece in found], part)


def worst(
    decider: Decider, areas: Sequence[Area], count: int, size: int, *, show_progress: bool = False
) -> list[Piece]:
    """Return the windows with the largest share of wrong decisions among those with enough known pixels, worst first.

    Of windows that are as bad as each other the first ones are taken. All areas are decided once.
    """
    total = sum(int(window.width * window.height) for area in areas for window in area.windows) / 1e6
    found: list[Piece] = []
    with progress("worst windows", total, "Mpx", show=show_progress) as advance:
        for area in areas:
            windows = list(pieces(area.windows, size))
            tree = shapely.STRtree([box(window) for window in windows])
            counts = np.zeros((len(windows), 2), dtype=np.int64)
            for part in decider(area):
                known = part.truth != IGNORE
                wrong = known & (part.truth != part.planes)
                for place in tree.query(box(part.window)):
                    rows, columns = overlap(windows[place], part.window)
                    counts[place] += known[:, rows, columns].sum(), wrong[:, rows, columns].sum()
                advance(known.any(axis=0).sum() / 1e6)
            found += [Piece(area, window, *map(int, each)) for window, each in zip(windows, counts, strict=True)]
    enough = max(1, _ENOUGH * max((piece.known for piece in found), default=0))
    return sorted((piece for piece in found if piece.known >= enough), key=lambda piece: -piece.share)[:count]


@dataclass(frozen=True)
class _Look:
    """A window with what is to be seen in it: truth and decision (P, H, W), and the confidence of the latter."""

    piece: Piece
    whole: Decided
    confidence: NDArray[np.float32]
    scores: Confusion

    @classmethod
    def of(cls, decider: Decider, piece: Piece) -> _Look:
        """Decide a window again."""
        task, window = piece.area.labels.task, piece.window
        shape = task.planes, int(window.height), int(window.width)
        planes, truth = np.full((2, *shape), IGNORE, dtype=np.int16)
        confidence, scores = np.zeros(shape, dtype=np.float32), Confusion(task)
        for part in decider(piece.area, [window]):
            here = (slice(None), *overlap(part.window, window))
            there = (slice(None), *overlap(window, part.window))
            planes[here], truth[here], confidence[here] = part.planes[there], part.truth[there], part.confidence[there]
        scores.add(planes, truth)
        return cls(piece, Decided(window, planes, truth), confidence, scores)

    @property
    def caption(self) -> str:
        """Where it lies, and how good the decision is."""
        window, summary = self.piece.window, self.scores.summary()
        top, left = int(window.row_off), int(window.col_off)
        place = f"rows {top}-{top + int(window.height) - 1}\ncolumns {left}-{left + int(window.width) - 1}"
        right, iou = 1 - self.piece.share, summary["mean_iou"]
        told = "" if iou is None else f"\nmean IoU {iou:.3f}"
        return f"{self.piece.area.sample.scene.name}\n{place}\n{right:.1%} right{told}\n{self.piece.known:,} known"


def _draw(segmenter: Segmenter, looks: Sequence[_Look], path: PathLike) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    task = segmenter.task
    mean, std = (buffer.flatten().tolist() for buffer in (segmenter.mean, segmenter.std))
    view = View.of(segmenter.band_names, mean, std)
    side, rows = 2.4, max(1, len(looks))
    figure = Figure(figsize=(4 * side + 1.7, rows * side + 1.4), layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False)
    lowest = 0.5 if len(task.categories) == 2 else 0.0
    sureness = ScalarMappable(Normalize(lowest, 1), _SURE)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for ax, title in zip(axes[0], ("image", "truth", "decided", "wrong, and how sure"), strict=True):
        ax.set_title(title, fontsize=11)
    for own, look in zip(axes, looks, strict=False):
        tile = look.piece.area.sample.scene.read(look.piece.window)
        image = view.image(tile.pixels, tile.valid)
        # What nobody knows is shown in neither of both.
        decided = np.where(look.whole.truth == IGNORE, IGNORE, look.whole.planes).astype(np.int16)
        shown = (image, colored(look.whole.truth, task), colored(decided, task), _errors(image, look, sureness))
        for ax, each in zip(own, shown, strict=True):
            ax.imshow(each, interpolation="nearest")
        own[0].set_ylabel(look.caption, rotation=0, ha="right", va="center", fontsize=9, labelpad=6)
    if not looks:
        axes[0, 0].set_xlabel("no label is known where there is data")
    bar = figure.colorbar(sureness, ax=axes[:, 3], location="bottom", shrink=0.9, aspect=25, pad=0.01)
    bar.set_label("probability of the wrong decision", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    handles = legend_patches(task)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False, fontsize=9,
        title=f"image: {view.caption}", title_fontsize=8,
    )  # fmt: skip
    figure.savefig(path, dpi=110)


def _errors(image: NDArray[np.float64], look: _Look, sureness: object) -> NDArray[np.float64]:
    """Return the image faded to grey, with wrong decisions in the colour of their confidence (the surest plane's)."""
    known = look.whole.truth != IGNORE
    wrong = known & (look.whole.planes != look.whole.truth)
    sure = np.where(wrong, look.confidence, 0).max(axis=0)
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    shown: NDArray[np.float64] = grey * (1 - _RIGHT) + _RIGHT
    shown[~known.any(axis=0)] = UNKNOWN
    colors = sureness.to_rgba(sure)[..., :3]  # type: ignore[attr-defined]
    here = wrong.any(axis=0)
    shown[here] = colors[here]
    return shown
