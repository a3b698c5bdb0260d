"""Find and draw the windows of labelled areas with the most, or the fewest, wrong decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.area import LabelledArea, iter_windows
from segkit.evaluation.decisions import ModelPredictor, PredictedBlock
from segkit.evaluation.metrics import Confusion
from segkit.io.cover import overlap, window_polygon
from segkit.io.files import atomic_write
from segkit.io.paths import PathLike
from segkit.models.ensemble import members
from segkit.plots.images import UNLABELLED_COLOR, BandRendering, colorize, font_fallback, legend_patches
from segkit.runtime.progress import progress
from segkit.task import IGNORE, Task

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

# A window is ranked if it has at least this share of the labelled pixels of the window with the most.
_MIN_LABELLED_SHARE = 0.25
_CONFIDENCE_COLORMAP = "YlOrRd"  # matplotlib, from low to high confidence
_CORRECT_FADE = 0.55  # how far the image fades to white where the decision is correct


@dataclass(frozen=True)
class RankedWindow:
    """A window of an area, with its numbers of labelled and of wrong decisions."""

    area: LabelledArea
    window: Window
    labelled: int
    wrong: int

    @property
    def error_rate(self) -> float:
        """`wrong` / `labelled`."""
        return self.wrong / self.labelled if self.labelled else 0.0


def draw_worst_windows(
    predictor: ModelPredictor,
    areas: Sequence[LabelledArea],
    path: PathLike,
    count: int = 6,
    size: int = 256,
    *,
    show_progress: bool = False,
) -> None:
    """Draw the windows with the largest error rate: image, truth, prediction, and the confidence of errors.

    Decisions are those that `segkit.evaluation.evaluate.score_areas` counts. An existing file is replaced.

    Parameters
    ----------
    areas
        Areas to search; they are cut into windows.
    path
        PNG file to write.
    count
        Number of windows (maximum).
    size
        Side of the windows in pixels (maximum).
    """
    ranked_windows = find_worst_windows(predictor, areas, count, size, show_progress=show_progress)
    segmenter = members(predictor.segmenter)[0]
    mean, std = (buffer.flatten().tolist() for buffer in (segmenter.mean, segmenter.std))
    rendering = BandRendering.from_statistics(segmenter.band_names, mean, std)
    views = [_predict_window(predictor, ranked_window, rendering) for ranked_window in ranked_windows]
    with atomic_write(path) as part, font_fallback():
        draw_windows(views, segmenter.task, rendering.caption).savefig(part, dpi=110)


def find_worst_windows(
    predictor: ModelPredictor, areas: Sequence[LabelledArea], count: int, size: int, *, show_progress: bool = False
) -> list[RankedWindow]:
    """Return the windows with the largest error rate among those with enough labelled pixels, worst first.

    Ties keep their order. All areas are predicted once.
    """
    total = sum(int(window.width * window.height) for area in areas for window in area.windows) / 1e6
    ranking = WindowRanking(size)
    with progress("worst windows", total, "Mpx", show=show_progress) as advance:
        for area in areas:
            for block in predictor(area):
                ranking.add(area, block)
                advance((block.truth != IGNORE).any(axis=0).sum() / 1e6)
    return ranking.worst(count)


class WindowRanking:
    """Counts labelled and wrong decisions by window.

    Parameters
    ----------
    size
        Side of the windows in pixels (maximum).
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._areas: list[_AreaCounts] = []

    def add(self, area: LabelledArea, block: PredictedBlock) -> None:
        """Count a block of an area. All blocks of an area have to be added before those of another."""
        if not self._areas or self._areas[-1].area is not area:
            self._areas.append(_AreaCounts.from_area(area, self._size))
        counts = self._areas[-1]
        labelled = block.truth != IGNORE
        wrong = labelled & (block.truth != block.decided)
        for index in counts.tree.query(window_polygon(block.window)):
            here = (slice(None), *overlap(counts.windows[index], block.window))
            counts.labelled[index] += labelled[here].sum()
            counts.wrong[index] += wrong[here].sum()
            for target, present in zip(block.truth[here], counts.present[index], strict=True):
                present[target[target != IGNORE]] = True

    def worst(self, count: int) -> list[RankedWindow]:
        """Return the windows with the largest error rate, worst first; ties keep their order."""
        ranked = sorted(self._sufficiently_labelled(), key=lambda each: -each[0].error_rate)
        return [ranked_window for ranked_window, _ in ranked[:count]]

    def best(self, count: int) -> list[RankedWindow]:
        """Return the windows with the smallest error rate, best first; ties keep their order.

        Windows with a single category, which are easy to predict, come after all others.
        """
        ranked = sorted(self._sufficiently_labelled(), key=lambda each: (not each[1], each[0].error_rate))
        return [ranked_window for ranked_window, _ in ranked[:count]]

    def _sufficiently_labelled(self) -> list[tuple[RankedWindow, bool]]:
        """Return the windows with enough labelled pixels, and whether they have several true categories."""
        windows = [each for counts in self._areas for each in counts.ranked_windows()]
        most = max((ranked_window.labelled for ranked_window, _ in windows), default=0)
        return [each for each in windows if each[0].labelled >= max(1, _MIN_LABELLED_SHARE * most)]


@dataclass(frozen=True)
class _AreaCounts:
    """The windows of an area, their labelled and wrong decisions (windows,), and true categories (windows, T, K)."""

    area: LabelledArea
    windows: list[Window]
    tree: shapely.STRtree
    labelled: NDArray[np.int64]
    wrong: NDArray[np.int64]
    present: NDArray[np.bool_]

    @classmethod
    def from_area(cls, area: LabelledArea, size: int) -> _AreaCounts:
        """Cut an area into windows, with counts of 0."""
        task, windows = area.labels.task, list(iter_windows(area.windows, size))
        labelled, wrong = np.zeros((2, len(windows)), dtype=np.int64)
        present = np.zeros((len(windows), task.n_targets, len(task.categories)), dtype=bool)
        tree = shapely.STRtree([window_polygon(window) for window in windows])
        return cls(area, windows, tree, labelled, wrong, present)

    def ranked_windows(self) -> list[tuple[RankedWindow, bool]]:
        """Return each window with its counts, and whether it has several true categories."""
        several = (self.present.sum(axis=2) > 1).any(axis=1)
        return [
            (RankedWindow(self.area, window, int(labelled), int(wrong)), bool(varied))
            for window, labelled, wrong, varied in zip(self.windows, self.labelled, self.wrong, several, strict=True)
        ]


@dataclass(frozen=True)
class WindowView:
    """A window with the arrays that are drawn.

    Parameters
    ----------
    image
        float64 (H, W, 3), 0 to 1.
    truth, decided
        True and predicted category indices, int16 (T, H, W).
    confidence
        Probability of the decided category, float32 (T, H, W); None if not available.
    """

    ranked_window: RankedWindow
    image: NDArray[np.float64]
    truth: NDArray[np.int16]
    decided: NDArray[np.int16]
    confidence: NDArray[np.float32] | None

    @property
    def caption(self) -> str:
        """Position and scores of the window."""
        ranked = self.ranked_window
        confusion = Confusion(ranked.area.labels.task)
        confusion.add(self.decided, self.truth)
        window, iou = ranked.window, confusion.summary()["mean_iou"]
        top, left = int(window.row_off), int(window.col_off)
        rows, columns = (
            f"{start}-{start + int(length) - 1}" for start, length in ((top, window.height), (left, window.width))
        )
        lines = [ranked.area.sample.scene.name, f"rows {rows}", f"columns {columns}"]
        lines.append(f"{1 - ranked.error_rate:.1%} correct")
        if iou is not None:
            lines.append(f"mean IoU {iou:.3f}")
        return "\n".join([*lines, f"{ranked.labelled:,} px labelled"])


def _predict_window(predictor: ModelPredictor, ranked_window: RankedWindow, rendering: BandRendering) -> WindowView:
    area, window = ranked_window.area, ranked_window.window
    shape = area.labels.task.n_targets, int(window.height), int(window.width)
    decided, truth = np.full((2, *shape), IGNORE, dtype=np.int16)
    confidence = np.zeros(shape, dtype=np.float32)
    for block in predictor(area, [window]):
        here = (slice(None), *overlap(block.window, window))
        there = (slice(None), *overlap(window, block.window))
        decided[here], truth[here] = block.decided[there], block.truth[there]
        confidence[here] = block.confidence[there]
    tile = area.sample.scene.read(window)
    return WindowView(ranked_window, rendering.render(tile.pixels, tile.valid), truth, decided, confidence)


def draw_windows(views: Sequence[WindowView], task: Task, caption: str) -> Figure:
    """Draw windows, one per row: image, truth, prediction, and errors with their confidence.

    Parameters
    ----------
    caption
        Bands that the image shows.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    side = 2.4
    # A flat window needs less height, but its caption needs some.
    heights = [min(1.0, max(0.5, view.image.shape[0] / view.image.shape[1])) for view in views] or [1.0]
    figure = Figure(figsize=(4 * side + 1.7, sum(heights) * side + 1.4), layout="constrained")
    axes = figure.subplots(len(heights), 4, squeeze=False, height_ratios=heights)
    lowest = 0.5 if len(task.categories) == 2 else 0.0
    colors = ScalarMappable(Normalize(lowest, 1), _CONFIDENCE_COLORMAP)
    has_confidence = all(view.confidence is not None for view in views)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    titles = ("image", "truth", "prediction", "errors and their confidence" if has_confidence else "errors")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=11)
    for row, view in zip(axes, views, strict=False):
        # Unlabelled pixels are drawn as such in both truth and prediction.
        decided = np.where(view.truth == IGNORE, IGNORE, view.decided).astype(np.int16)
        images = (view.image, colorize(view.truth, task), colorize(decided, task), _draw_errors(view, colors))
        for ax, image in zip(row, images, strict=True):
            ax.imshow(image, interpolation="nearest")
        row[0].set_ylabel(view.caption, rotation=0, ha="right", va="center", fontsize=9, labelpad=6)
    if not views:
        axes[0, 0].set_xlabel("no labelled pixel has data")
    if has_confidence:
        bar = figure.colorbar(colors, ax=axes, location="bottom", shrink=0.22, anchor=(1.0, 0.0), aspect=25, pad=0.01)
        bar.set_label("probability of the wrong decision", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    handles = legend_patches(task)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False, fontsize=9,
        title=f"image: {caption}", title_fontsize=8,
    )  # fmt: skip
    return figure


def _draw_errors(view: WindowView, colors: ScalarMappable) -> NDArray[np.float64]:
    """Return the image faded to grey, with errors in the colour of their confidence (the highest of all targets)."""
    labelled = view.truth != IGNORE
    wrong = labelled & (view.decided != view.truth)
    confidence = np.where(wrong, 1.0 if view.confidence is None else view.confidence, 0).max(axis=0)
    grey = view.image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    image: NDArray[np.float64] = grey * (1 - _CORRECT_FADE) + _CORRECT_FADE
    image[~labelled.any(axis=0)] = UNLABELLED_COLOR
    here = wrong.any(axis=0)
    image[here] = colors.to_rgba(confidence)[..., :3][here]
    return image
