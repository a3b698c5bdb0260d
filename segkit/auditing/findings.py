"""From out-of-fold probabilities to doubtful labels: whole segments, regions in them, classes swapped in a scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.auditing.confident_learning import (
    class_thresholds,
    confident_joint,
    propose_categories,
)
from segkit.auditing.scenes import AuditedScene
from segkit.auditing.segments import SegmentCollector, Segments
from segkit.task import IGNORE, Task

# Share of the pixels of each of two classes that is predicted as the other one, from which they count as swapped.
_SWAPPED_SHARE = 2 / 3


@dataclass(frozen=True)
class Doubts:
    """Segments or regions of a target of a scene, those that are doubtful, and what is proposed for them.

    Parameters
    ----------
    segments
        All of them.
    label, proposed
        Category of each, and the one that is proposed, int64 (n,).
    margin
        See `segkit.auditing.confident_learning.Proposals`, float64 (n,).
    listed, confident
        Whether each is in the list, and whether it counts as an error, bool (n,).
    """

    segments: Segments
    label: NDArray[np.int64]
    proposed: NDArray[np.int64]
    margin: NDArray[np.float64]
    listed: NDArray[np.bool_]
    confident: NDArray[np.bool_]

    @property
    def errors(self) -> NDArray[np.int64]:
        """The category of which each confidently is, if it is not that of its label; else -1. int64 (n,)."""
        return np.where(self.confident, self.proposed, -1)


@dataclass(frozen=True)
class Swap:
    """Two categories of a target that are swapped in a scene, and the pixels that are labelled as one of them."""

    target: int
    one: int
    other: int
    pixels: int


@dataclass(frozen=True)
class SceneDoubts:
    """The doubts of a scene: for each target those of segments and of regions; and swapped classes."""

    segments: list[Doubts]
    regions: list[Doubts]
    swaps: list[Swap]


@dataclass(frozen=True)
class ConfidentCounts:
    """Thresholds (T, K), and the confident joint (T, K, K) in pixels: rows are labels."""

    thresholds: NDArray[np.float64]
    joint: NDArray[np.float64]


def collect_segments(scene: AuditedScene) -> NDArray[np.int64]:
    """Find the segments of a scene's labels, and sum the probabilities of each.

    Sums are those of each category over all pixels, then over the pixels that are not at a border, then the number of
    these.

    Returns
    -------
    int64 (T, K, K): pixels that are not at a border, by label and by most probable category
    """
    task = scene.task
    size = len(task.categories)
    collectors = [SegmentCollector(2 * size + 1) for _ in range(task.n_targets)]
    decided = np.zeros((task.n_targets, size, size), dtype=np.int64)
    for strip in scene.strips(around=1):
        numbers = []
        for target, collector in enumerate(collectors):
            labels, shares, inner = strip.of_target(target)
            numbers.append(collector.add(labels, [*shares, *(shares * inner), inner]))
            used = inner & (labels != IGNORE)
            pairs = labels[used].astype(np.int64) * size + shares.argmax(axis=0)[used]
            decided[target] += np.bincount(pairs, minlength=size * size).reshape(size, size)
        _store_numbers(scene, strip.first, numbers, 0)
    scene.segments = [collector.finish() for collector in collectors]
    return decided


def _store_numbers(scene: AuditedScene, top: int, numbers: Sequence[NDArray[np.int64]], half: int) -> None:
    """Store provisional numbers of rows in the first or second half of the scene's layers."""
    count, (height, width) = len(numbers), numbers[0].shape
    layers = scene.numbers.read(top, top + height)
    layers[half * count : (half + 1) * count] = np.stack(numbers) + 1
    scene.numbers.write(Window(0, top, width, height), layers)


def mean_probabilities(segments: Segments, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean probabilities (n, K) of segments, and how many pixels they are from (n,).

    Pixels at a border count only if a segment has no others.
    """
    inner = segments.sums[2 * size]
    has_inner = inner > 0
    pixels = np.where(has_inner, inner, segments.pixels)
    sums = np.where(has_inner, segments.sums[size : 2 * size], segments.sums[:size])
    return (sums / pixels).T, pixels


def count_confident(scenes: Sequence[AuditedScene], task: Task) -> ConfidentCounts:
    """Return thresholds and confident joint of the segments of all scenes."""
    size = len(task.categories)
    thresholds = np.zeros((task.n_targets, size))
    joint = np.zeros((task.n_targets, size, size))
    for target in range(task.n_targets):
        means = [mean_probabilities(scene.segments[target], size) for scene in scenes]
        labels = np.concatenate([scene.segments[target].code for scene in scenes])
        probabilities, pixels = (np.concatenate(part) for part in zip(*means, strict=True))
        thresholds[target] = class_thresholds(labels, probabilities, pixels)
        joint[target] = confident_joint(labels, probabilities, thresholds[target], pixels)
    return ConfidentCounts(thresholds, joint)


def find_doubts(
    scene: AuditedScene, decided: NDArray[np.int64], counts: ConfidentCounts, min_pixels: float
) -> SceneDoubts:
    """Find the doubtful labels of a scene.

    Parameters
    ----------
    decided
        What `collect_segments` returned.
    min_pixels
        Smallest region that is listed.
    """
    size = len(scene.task.categories)
    swaps = [swap for target in range(scene.task.n_targets) for swap in find_swaps(target, decided[target], min_pixels)]
    doubts = []
    for target, segments in enumerate(scene.segments):
        probabilities, _ = mean_probabilities(segments, size)
        found = propose_categories(segments.code, probabilities, counts.thresholds[target])
        swapped = _is_swapped(target, segments.code, swaps)
        listed = found.confident & (found.margin > 0) & (segments.pixels >= min_pixels) & ~swapped
        proposed = np.where(swapped, _partners(target, segments.code, swaps), found.category)
        doubts.append(Doubts(segments, segments.code, proposed, found.margin, listed, listed | swapped))
    regions = _find_regions(scene, doubts, counts, min_pixels)
    return SceneDoubts(doubts, regions, swaps)


def _find_regions(
    scene: AuditedScene, doubts: Sequence[Doubts], counts: ConfidentCounts, min_pixels: float
) -> list[Doubts]:
    """Find connected pixels of another class within segments that are not doubtful as a whole."""
    task = scene.task
    size = len(task.categories)
    collectors = [SegmentCollector(2 * size + 1) for _ in range(task.n_targets)]
    for strip in scene.strips(around=1):
        stored = scene.numbers.read(strip.first, strip.top + strip.rows.stop)
        numbers = []
        for target, collector in enumerate(collectors):
            labels, shares, inner = strip.of_target(target)
            segment = doubts[target].segments.find(stored[target].astype(np.int64) - 1)
            used = ~np.append(doubts[target].confident, True)[segment]  # the last is for pixels in no segment
            codes = np.full(labels.shape, -1, dtype=np.int64)
            found = propose_categories(labels[used], shares[:, used].T.astype(np.float64), counts.thresholds[target])
            codes[used] = np.where(found.margin > 0, labels[used] * size + found.category, -1)
            numbers.append(collector.add(codes, [*shares, *(shares * inner), inner]))
        _store_numbers(scene, strip.first, numbers, 1)
    scene.regions = [collector.finish() for collector in collectors]
    return [
        _judge_regions(regions, counts.thresholds[target], size, min_pixels)
        for target, regions in enumerate(scene.regions)
    ]


def _judge_regions(regions: Segments, thresholds: NDArray[np.float64], size: int, min_pixels: float) -> Doubts:
    """List regions that are large enough without their pixels at borders of labels, which are mixed."""
    label, proposed = np.divmod(regions.code, size)
    means, _ = mean_probabilities(regions, size)
    every = np.arange(len(label))
    own, other = (means[every, each] - thresholds[each] for each in (label, proposed))
    listed = (regions.sums[2 * size] >= min_pixels) & (other > own)
    return Doubts(regions, label, proposed, other - own, listed, listed & (other >= 0))


def find_swaps(target: int, decided: NDArray[np.int64], min_pixels: float) -> list[Swap]:
    """Return the pairs of categories each of which is mostly predicted as the other one.

    Parameters
    ----------
    decided
        int64 (K, K): pixels of a scene by label and by most probable category.
    """
    total = decided.sum(axis=1)
    shares = decided / np.maximum(total, 1)[:, None]
    size = len(total)
    return [
        Swap(target, one, other, int(total[one] + total[other]))
        for one in range(size)
        for other in range(one + 1, size)
        if min(total[one], total[other]) >= max(min_pixels, 1)
        and min(shares[one, other], shares[other, one]) >= _SWAPPED_SHARE
    ]


def _is_swapped(target: int, label: NDArray[np.int64], swaps: Sequence[Swap]) -> NDArray[np.bool_]:
    swapped = [category for swap in swaps if swap.target == target for category in (swap.one, swap.other)]
    return np.isin(label, swapped)


def _partners(target: int, label: NDArray[np.int64], swaps: Sequence[Swap]) -> NDArray[np.int64]:
    """Return the category with which each label is swapped, or the label itself."""
    found = label.copy()
    for swap in (one for one in swaps if one.target == target):
        found[label == swap.one], found[label == swap.other] = swap.other, swap.one
    return found
