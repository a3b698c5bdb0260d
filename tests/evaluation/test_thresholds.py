import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segkit.evaluation.metrics import Confusion
from segkit.evaluation.thresholds import ThresholdFit
from segkit.task import IGNORE, LandCoverClass, Task

A, B, C = LandCoverClass("a", 1), LandCoverClass("b", 2), LandCoverClass("c", 7)
B3 = LandCoverClass("b", 2, threshold=0.3)
ONE = Task("binary", (A,), head="sigmoid")
FITTED = {
    "binary sigmoid": ONE,
    "one-vs-rest": Task("multiclass", (A, B, C), head="sigmoid"),
    "multilabel": Task("multilabel", (A, B, C)),
    "multilabel of one": Task("multilabel", (A,)),
}
by_threshold = pytest.mark.parametrize("task", FITTED.values(), ids=FITTED)
EDGE = 1 / 1024


def random_case(task, seed=0, size=40):
    """Probabilities (C, size, size) that know something of the truth (T, size, size), a fifth of which is not known."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, len(task.categories), (task.n_targets, size, size))
    there = np.stack([truth[target] == category for target, category in task.channel_categories])
    skew = np.linspace(-3, 2, task.channels)[:, None, None]
    p = 1 / (1 + np.exp(-random.normal(0, 1.5, there.shape) - 1.5 * there - skew))
    truth[random.random(truth.shape) < 0.2] = IGNORE
    return p.astype("float32"), truth.astype("int16")


def fitted(task, *pairs):
    fit = ThresholdFit(task)
    for p, truth in pairs:
        fit.add(p, truth)
    return fit.fit()


def f1(p, there, threshold):
    called = p >= np.float32(threshold)
    return 2 * (called & there).sum() / (called.sum() + there.sum())


def of_each_class(task, p, truth):
    """Known probabilities of each class, and whether they are of pixels of it."""
    for position, (target, category) in enumerate(task.channel_categories):
        known = truth[target] != IGNORE
        yield p[position][known], truth[target][known] == category


@by_threshold
@pytest.mark.parametrize("seed", range(3))
def test_no_other_threshold_is_better_by_more_than_a_bin(task, seed):
    p, truth = random_case(task, seed)
    for found, (probabilities, there) in zip(fitted(task, (p, truth)), of_each_class(task, p, truth), strict=True):
        assert 0 < found < 1
        assert (found / EDGE).is_integer()
        score = f1(probabilities, there, found)
        assert score >= max(f1(probabilities, there, edge * EDGE) for edge in range(1, 1024))
        # A threshold inside a bin is at most its pixels better than the bin's edge.
        every = {value: f1(probabilities, there, value) for value in np.unique(probabilities)}
        best = max(every, key=every.get)
        inside = (np.floor(probabilities / EDGE) == np.floor(best / EDGE)).sum()
        called = (probabilities >= best).sum()
        assert score >= every[best] * (1 - inside / (called + there.sum()))
        assert score >= f1(probabilities, there, 0.5)


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=40))
def test_probabilities_at_edges_have_the_best_threshold_there_is(pixels):
    probabilities, there = (np.array(one) for one in zip(*pixels, strict=True))
    probabilities = (probabilities / 12 * 1024).round() * EDGE
    truth = there.astype("int16")[None, None]
    (found,) = fitted(ONE, (probabilities[None, None], truth))
    if there.all() or not there.any():
        assert found == 0.5
        return
    score = f1(probabilities, there, found)
    assert score == max(
        f1(probabilities, there, value)
        for value in (*probabilities[(probabilities > 0) & (probabilities < 1)], EDGE, 1 - EDGE)
    )
    # The score is the same in a run of edges around it, whose middle it is.
    called = probabilities >= np.arange(1, 1024)[:, None] * EDGE
    scores = 2 * (called & there).sum(axis=1) / (called.sum(axis=1) + there.sum())
    same = (np.flatnonzero(scores == score) + 1).tolist()
    low = high = round(found / EDGE)
    while low - 1 in same:
        low -= 1
    while high + 1 in same:
        high += 1
    assert found / EDGE == (low + high) // 2
    runs = np.split(same, np.flatnonzero(np.diff(same) > 1) + 1)
    assert abs(found - 0.5) == min(abs((run[0] + run[-1]) // 2 * EDGE - 0.5) for run in runs)


def test_classes_that_come_apart_are_cut_in_the_middle_between_them():
    p = np.array([[[0.0625, 0.125, 0.375, 0.5]]])
    assert fitted(ONE, (p, np.array([[[0, 0, 1, 1]]]))) == (0.25,)  # of the edges above 0.125, up to 0.375


@by_threshold
def test_pieces_add_up(task):
    p, truth = random_case(task)
    whole = fitted(task, (p, truth))
    assert fitted(task, *((p[:, rows], truth[:, rows]) for rows in (slice(0, 7), slice(7, 40)))) == whole
    assert fitted(task, (torch.from_numpy(p), truth)) == whole
    assert fitted(task, (torch.from_numpy(p).double().requires_grad_(), truth)) == whole
    parts = [ThresholdFit(task) for _ in range(2)]
    for part, rows in zip(parts, (slice(0, 7), slice(7, 40)), strict=True):
        part.add(p[:, rows], truth[:, rows])
    parts[0].counts += parts[1].counts
    assert parts[0].fit() == whole
    known = sum((truth[target] != IGNORE).sum() for target, _ in task.channel_categories)
    assert parts[0].counts.sum() == known
    assert parts[0].counts.dtype == np.int64


@by_threshold
def test_what_is_not_known_changes_nothing(task):
    p, truth = random_case(task)
    poisoned = p.copy()
    for channel, (target, _) in enumerate(task.channel_categories):
        poisoned[channel][truth[target] == IGNORE] = np.nan
    assert fitted(task, (poisoned, truth)) == fitted(task, (p, truth))


@by_threshold
def test_classes_that_are_nowhere_or_everywhere_keep_a_half(task):
    p, truth = random_case(task)
    half = (0.5,) * len(task.classes)
    assert fitted(task) == half
    for truth_of_all in (IGNORE, 0):
        assert fitted(task, (p, np.full_like(truth, truth_of_all))) == half
    assert fitted(task, (p, np.full_like(truth, 1)))[0] == 0.5


def test_what_the_task_states_stays():
    task = Task("multilabel", (A, B3, C))
    p, truth = random_case(task)
    free = fitted(FITTED["multilabel"], (p, truth))
    assert free[1] != 0.3
    assert fitted(task, (p, truth)) == (free[0], 0.3, free[2])
    two = Task("binary", (B3,))
    p, truth = random_case(two)
    assert fitted(two, (p, truth)) == (0.3,)
    assert ThresholdFit(two).counts.shape == (1, 2, 1024)


@pytest.mark.parametrize(
    "task",
    [
        Task("binary", (A,)),
        Task("multiclass", (A, B, C)),
        Task("multiclass", (A, B, C), head="sigmoid", background=False),
    ],
)
def test_where_the_highest_probability_decides_there_is_none(task):
    assert fitted(task, random_case(task)) is None


@pytest.mark.parametrize("task", [FITTED["binary sigmoid"], FITTED["multilabel"]])
def test_decisions_with_fitted_thresholds_have_the_best_scores(task):
    p, truth = random_case(task)
    task = task.with_thresholds(fitted(task, (p, truth)))
    confusion = Confusion(task)
    confusion.add(task.decide(torch.from_numpy(p)[None])[0].numpy(), truth)
    for one, (probabilities, there) in zip(task.classes, of_each_class(task, p, truth), strict=True):
        best = max(f1(probabilities, there, edge * EDGE) for edge in range(1, 1024))
        assert confusion.per_class()[one.name]["f1"] == pytest.approx(best)
