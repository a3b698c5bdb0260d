"""Gallery: the windows of labelled areas in which decisions are most wrong, or most right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.area import Area, pieces
from segkit.evaluation.decisions import Decided, Decider
from segkit.evaluation.metrics import Confusion
from segkit.io.cover import box, overlap
from segkit.io.files import staged
from segkit.io.raster import PathLike
from segkit.plots.images import UNKNOWN, View, any_names, colored, legend_patches
from segkit.runtime.progress import progress
from segkit.task.task import IGNORE, Task

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

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

    Decisions are those that `segkit.evaluation.evaluate.score` counts. What was at `path` is replaced.

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
    segmenter = decider.segmenter
    mean, std = (buffer.flatten().tolist() for buffer in (segmenter.mean, segmenter.std))
    view = View.of(segmenter.band_names, mean, std)
    looks = [_decided_again(decider, piece, view) for piece in found]
    with staged(path) as part, any_names():
        draw(looks, segmenter.task, view.caption).savefig(part, dpi=110)


def worst(
    decider: Decider, areas: Sequence[Area], count: int, size: int, *, show_progress: bool = False
) -> list[Piece]:
    """Return the windows with the largest share of wrong decisions among those with enough known pixels, worst first.

    Of windows that are as bad as each other the first ones are taken. All areas are decided once.
    """
    total = sum(int(window.width * window.height) for area in areas for window in area.windows) / 1e6
    ranking = Ranking(size)
    with progress("worst windows", total, "Mpx", show=show_progress) as advance:
        for area in areas:
            for part in decider(area):
                ranking.add(area, part)
                advance((part.truth != IGNORE).any(axis=0).sum() / 1e6)
    return ranking.worst(count)


class Ranking:
    """Counts right and wrong decisions window by window.

    Parameters
    ----------
    size
        Side of the windows in pixels at most.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._areas: list[_Counted] = []

    def add(self, area: Area, part: Decided) -> None:
        """Count a part of an area; all parts of one come after each other."""
        if not self._areas or self._areas[-1].area is not area:
            self._areas.append(_Counted.of(area, self._size))
        counted = self._areas[-1]
        known = part.truth != IGNORE
        wrong = known & (part.truth != part.planes)
        for place in counted.tree.query(box(part.window)):
            here = (slice(None), *overlap(counted.windows[place], part.window))
            counted.known[place] += known[here].sum()
            counted.wrong[place] += wrong[here].sum()
            for plane, seen in zip(part.truth[here], counted.seen[place], strict=True):
                seen[plane[plane != IGNORE]] = True

    def worst(self, count: int) -> list[Piece]:
        """Return the windows with the largest share of wrong decisions, worst first; of equal ones the first."""
        return [piece for piece, _ in sorted(self._enough(), key=lambda each: -each[0].share)[:count]]

    def best(self, count: int) -> list[Piece]:
        """Return the windows with the smallest share of wrong decisions, best first; of equal ones the first.

        Those in which all is of one kind, which is easily right, come after all others.
        """
        return [piece for piece, _ in sorted(self._enough(), key=lambda each: (not each[1], each[0].share))[:count]]

    def _enough(self) -> list[tuple[Piece, bool]]:
        """Return the windows with enough known pixels to be ranked, and whether they hold truths of several kinds."""
        found = [each for counted in self._areas for each in counted.pieces()]
        enough = max(1, _ENOUGH * max((piece.known for piece, _ in found), default=0))
        return [each for each in found if each[0].known >= enough]


@dataclass(frozen=True)
class _Counted:
    """The windows of an area, their known and wrong decisions (windows,), and the categories met (windows, P, K)."""

    area: Area
    windows: list[Window]
    tree: shapely.STRtree
    known: NDArray[np.int64]
    wrong: NDArray[np.int64]
    seen: NDArray[np.bool_]

    @classmethod
    def of(cls, area: Area, size: int) -> _Counted:
        """Cut an area into windows, of which nothing is counted."""
        task, windows = area.labels.task, list(pieces(area.windows, size))
        known, wrong = np.zeros((2, len(windows)), dtype=np.int64)
        seen = np.zeros((len(windows), task.planes, len(task.categories)), dtype=bool)
        return cls(area, windows, shapely.STRtree([box(window) for window in windows]), known, wrong, seen)

    def pieces(self) -> list[tuple[Piece, bool]]:
        """Return what was counted of each window, and whether it holds truths of several kinds."""
        varied = (self.seen.sum(axis=2) > 1).any(axis=1)
        return [
            (Piece(self.area, window, int(known), int(wrong)), bool(several))
            for window, known, wrong, several in zip(self.windows, self.known, self.wrong, varied, strict=True)
        ]


@dataclass(frozen=True)
class Look:
    """A window with what is to be seen in it.

    Parameters
    ----------
    image
        float64 (H, W, 3) in 0..1.
    truth, planes
        True and decided categories, int16 (P, H, W).
    confidence
        Probability of what was decided, float32 (P, H, W); None where it is not known.
    """

    piece: Piece
    image: NDArray[np.float64]
    truth: NDArray[np.int16]
    planes: NDArray[np.int16]
    confidence: NDArray[np.float32] | None

    @property
    def caption(self) -> str:
        """Where it lies, and how good the decision is."""
        scores = Confusion(self.piece.area.labels.task)
        scores.add(self.planes, self.truth)
        window, iou = self.piece.window, scores.summary()["mean_iou"]
        top, left = int(window.row_off), int(window.col_off)
        place = f"rows {top}-{top + int(window.height) - 1}\ncolumns {left}-{left + int(window.width) - 1}"
        told = "" if iou is None else f"\nmean IoU {iou:.3f}"
        right = 1 - self.piece.share
        return f"{self.piece.area.sample.scene.name}\n{place}\n{right:.1%} right{told}\n{self.piece.known:,} known"


def _decided_again(decider: Decider, piece: Piece, view: View) -> Look:
    task, window = piece.area.labels.task, piece.window
    shape = task.planes, int(window.height), int(window.width)
    planes, truth = np.full((2, *shape), IGNORE, dtype=np.int16)
    confidence = np.zeros(shape, dtype=np.float32)
    for part in decider(piece.area, [window]):
        here = (slice(None), *overlap(part.window, window))
        there = (slice(None), *overlap(window, part.window))
        planes[here], truth[here], confidence[here] = part.planes[there], part.truth[there], part.confidence[there]
    tile = piece.area.sample.scene.read(window)
    return Look(piece, view.image(tile.pixels, tile.valid), truth, planes, confidence)


def draw(looks: Sequence[Look], task: Task, caption: str) -> Figure:
    """Draw windows below each other: image, truth, decision, and where it is wrong.

    Parameters
    ----------
    caption
        What the image shows.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    side = 2.4
    # A flat window takes less room, but for what is written beside it.
    tall = [min(1.0, max(0.5, look.image.shape[0] / look.image.shape[1])) for look in looks] or [1.0]
    figure = Figure(figsize=(4 * side + 1.7, sum(tall) * side + 1.4), layout="constrained")
    axes = figure.subplots(len(tall), 4, squeeze=False, height_ratios=tall)
    lowest = 0.5 if len(task.categories) == 2 else 0.0
    sureness = ScalarMappable(Normalize(lowest, 1), _SURE)
    told = all(look.confidence is not None for look in looks)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    titles = ("image", "truth", "decided", "wrong, and how sure" if told else "wrong")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=11)
    for own, look in zip(axes, looks, strict=False):
        # What nobody knows is shown in neither of both.
        decided = np.where(look.truth == IGNORE, IGNORE, look.planes).astype(np.int16)
        shown = (look.image, colored(look.truth, task), colored(decided, task), _errors(look, sureness))
        for ax, each in zip(own, shown, strict=True):
            ax.imshow(each, interpolation="nearest")
        own[0].set_ylabel(look.caption, rotation=0, ha="right", va="center", fontsize=9, labelpad=6)
    if not looks:
        axes[0, 0].set_xlabel("no label is known where there is data")
    if told:
        bar = figure.colorbar(sureness, ax=axes, location="bottom", shrink=0.22, anchor=(1.0, 0.0), aspect=25, pad=0.01)
        bar.set_label("probability of the wrong decision", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    handles = legend_patches(task)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False, fontsize=9,
        title=f"image: {caption}", title_fontsize=8,
    )  # fmt: skip
    return figure


def _errors(look: Look, sureness: ScalarMappable) -> NDArray[np.float64]:
    """Return the image faded to grey, with wrong decisions in the colour of their confidence (the surest plane's)."""
    known = look.truth != IGNORE
    wrong = known & (look.planes != look.truth)
    sure = np.where(wrong, 1.0 if look.confidence is None else look.confidence, 0).max(axis=0)
    grey = look.image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    shown: NDArray[np.float64] = grey * (1 - _RIGHT) + _RIGHT
    shown[~known.any(axis=0)] = UNKNOWN
    here = wrong.any(axis=0)
    shown[here] = sureness.to_rgba(sure)[..., :3][here]
    return shown
