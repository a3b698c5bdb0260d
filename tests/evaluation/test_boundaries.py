"""Boundary scores against distances between all pairs of pixels, and against themselves cut into strips."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segkit.evaluation.boundaries import Boundaries
from segkit.io import distance
from segkit.task import IGNORE, LandCoverClass, Task

EXCLUSIVE = Task("multiclass", (LandCoverClass("a", 1), LandCoverClass("b", 2)))
OVERLAPPING = Task("multilabel", (LandCoverClass("a", 1), LandCoverClass("b", 2)))


def brute(said, true, known, metres, pixel):
    """The six counts, from all distances."""
    place = np.stack(np.indices(said.shape), axis=-1).reshape(-1, 2) * np.array(pixel[::-1])
    apart = np.sqrt(((place[:, None] - place[None]) ** 2).sum(-1)) <= metres * (1 + 1e-9)

    def near(mask):
        return (apart & mask.ravel()[None]).any(1).reshape(mask.shape)

    def contour(mask):
        found = np.zeros_like(mask)
        for row, column in zip(*np.nonzero(mask), strict=True):
            for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                beside = row + down, column + right
                if 0 <= beside[0] < mask.shape[0] and 0 <= beside[1] < mask.shape[1]:
                    found[row, column] |= known[beside] and not mask[beside]
        return found

    said, true = said & known, true & known
    bands = [mask & near(known & ~mask) for mask in (said, true)]
    edges = [contour(mask) for mask in (said, true)]
    return [
        (bands[0] & bands[1]).sum(), (bands[0] | bands[1]).sum(),
        edges[0].sum(), (edges[0] & near(edges[1])).sum(), edges[1].sum(), (edges[1] & near(edges[0])).sum(),
    ]  # fmt: skip


@st.composite
def pictures(draw):
    task = draw(st.sampled_from([EXCLUSIVE, OVERLAPPING]))
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    kinds = len(task.categories)
    truth = np.kron(random.integers(0, kinds, (task.n_targets, -(-height // 3), -(-width // 3))), np.ones((3, 3), int))
    truth = truth[:, :height, :width].astype(np.int16)
    decided = np.where(random.random(truth.shape) < 0.2, random.integers(0, kinds, truth.shape), truth).astype(np.int16)
    truth[random.random(truth.shape) < draw(st.sampled_from([0, 0.1, 1.0]))] = IGNORE
    pixel = draw(st.sampled_from([(10.0, 10.0), (7.0, 12.5), (30.0, 2.0)]))
    return task, decided, truth, pixel, draw(st.sampled_from([5.0, 10.0, 25.0]))


@given(pictures(), st.integers(1, 12), st.booleans())
@settings(max_examples=200)
def test_counts_are_those_of_all_distances_whole_and_in_strips(picture, rows, distances):
    """Both with shifts, for narrow widths, and with distances, for wide ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distance, "_MAX_SHIFTS", 0 if distances else 400)
        check_counts(picture, rows)


def check_counts(picture, rows):
    task, decided, truth, pixel, metres = picture
    whole, strips = Boundaries(task, metres), Boundaries(task, metres)
    whole.add(decided, truth, pixel)
    for counts, (_, target, category) in zip(whole.counts, task.scored_categories, strict=True):
        known = truth[target] != IGNORE
        expected = brute(decided[target] == category, truth[target] == category, known, metres, pixel)
        assert counts.tolist() == expected
    _, halo = strips.halo(pixel)
    height = truth.shape[1]
    for top in range(0, height, rows):
        above, bottom = max(0, top - halo), min(height, top + rows)
        part = slice(above, min(height, bottom + halo))
        one = Boundaries(task, metres)
        one.add(decided[:, part], truth[:, part], pixel, (slice(top - above, bottom - above), slice(None)))
        strips.merge(one)
    np.testing.assert_array_equal(strips.counts, whole.counts)


def test_a_shifted_square():
    """A square of 20 pixels moved by two: with one metre its contours meet nowhere but where they cross."""
    truth, decided = np.zeros((2, 1, 40, 40), dtype=np.int16)
    truth[:, 10:30, 10:30] = 1
    decided[:, 10:30, 12:32] = 1
    task = Task("binary", (LandCoverClass("a", 1),))
    scores = {}
    for metres in (0.5, 1.0, 2.0):
        found = Boundaries(task, metres)
        found.add(decided, truth, (1.0, 1.0))
        scores[metres] = found.per_class()["a"]
    # Both contours have 76 pixels; 18 of the upper and of the lower side are common.
    assert scores[0.5]["boundary_f1"] == pytest.approx(36 / 76)
    assert scores[2.0]["boundary_f1"] == 1
    assert scores[0.5]["boundary_iou"] is None  # no centre is so near
    # Bands of one pixel: 36 common, 76 + 76 - 36 in all.
    assert scores[1.0]["boundary_iou"] == pytest.approx(36 / 116)
    perfect = Boundaries(task, 1.0)
    perfect.add(truth, truth, (1.0, 1.0))
    assert perfect.per_class()["a"] == {"boundary_iou": 1, "boundary_f1": 1}


def test_what_is_nowhere_has_no_score_and_what_is_missed_has_0():
    task = Task("binary", (LandCoverClass("a", 1),))
    nothing = np.zeros((1, 9, 9), dtype=np.int16)
    something = nothing.copy()
    something[:, 3:6, 3:6] = 1
    found = Boundaries(task, 1.0)
    found.add(nothing, nothing, (1.0, 1.0))
    assert found.per_class()["a"] == {"boundary_iou": None, "boundary_f1": None}
    found.add(something, nothing, (1.0, 1.0))  # sparse labels of one class each have no boundaries
    assert found.per_class()["a"] == {"boundary_iou": None, "boundary_f1": None}
    found.add(nothing, something, (1.0, 1.0))
    assert found.per_class()["a"] == {"boundary_iou": 0, "boundary_f1": 0}
    everywhere = Boundaries(task, 1.0)
    everywhere.add(nothing + 1, nothing + 1, (1.0, 1.0))  # the edge of the scene is no boundary
    assert everywhere.per_class()["a"]["boundary_f1"] is None
