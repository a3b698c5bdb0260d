"""Intervals: those of a bootstrap written out, wide where units differ, and none where there is one unit."""

import numpy as np
import pytest
from rasterio.windows import Window

from segkit.evaluation.bootstrap import BootstrapIntervals
from segkit.evaluation.metrics import Confusion
from segkit.task import IGNORE, LandCoverClass, Task

TASKS = {
    "multiclass": Task("multiclass", (LandCoverClass("a", 1), LandCoverClass("b", 2))),
    "multilabel": Task("multilabel", (LandCoverClass("a", 1), LandCoverClass("b", 2))),
}


def scene(task, seed, size=70):
    random = np.random.default_rng(seed)
    truth = random.integers(0, len(task.categories), (task.n_targets, size, size)).astype(np.int16)
    wrong = random.random(truth.shape) < 0.05 + 0.4 * random.random()
    decided = np.where(wrong, random.integers(0, len(task.categories), truth.shape), truth).astype(np.int16)
    truth[:, :5] = IGNORE
    return decided, truth


@pytest.mark.parametrize("kind", TASKS)
def test_scenes_are_drawn_with_replacement(kind):
    task = TASKS[kind]
    scenes = [scene(task, seed) for seed in range(12)]
    made = BootstrapIntervals(task, block=32)
    for number, (decided, truth) in enumerate(scenes):
        for window in (Window(0, 0, 70, 33), Window(0, 33, 41, 37), Window(41, 33, 29, 37)):
            rows, columns = window.toslices()
            made.add(number, window, decided[:, rows, columns], truth[:, rows, columns])
    found = made.intervals()
    assert (found["unit"], found["units"]) == ("scene", 12)
    random, drawn = np.random.default_rng(5), []
    singles = []
    for decided, truth in scenes:
        singles.append(Confusion(task))
        singles[-1].add(decided, truth)
    for _ in range(1000):
        total = Confusion(task)
        for place in random.integers(0, 12, 12):
            total.merge(singles[place])
        drawn.append(total.summary())
    for key in ("overall_accuracy", "mean_iou", "macro_f1"):
        expected = np.percentile([one[key] for one in drawn], [2.5, 97.5])
        np.testing.assert_allclose(found[key], expected, atol=0.15 * np.ptp(expected))
    for key in ("iou", "f1", "precision", "recall"):
        expected = np.percentile([one["per_class"]["a"][key] for one in drawn], [2.5, 97.5])
        np.testing.assert_allclose(found["per_class"]["a"][key], expected, atol=0.15 * np.ptp(expected))
    assert found == made.intervals()


@pytest.mark.parametrize("kind", TASKS)
def test_blocks_stand_in_for_few_scenes(kind):
    task = TASKS[kind]
    made = BootstrapIntervals(task, block=32)
    decided, truth = scene(task, 0)
    made.add(0, Window(10, 20, 70, 70), decided, truth)
    found = made.intervals()
    # Rows 25 to 89 have known labels, columns 10 to 79: three by three blocks.
    assert (found["unit"], found["units"]) == ("block", 9)
    total = Confusion(task)
    total.add(decided, truth)
    low, high = found["overall_accuracy"]
    assert low < total.summary()["overall_accuracy"] < high


def test_nothing_to_draw_from():
    task = TASKS["multiclass"]
    made = BootstrapIntervals(task)
    assert made.intervals() is None
    decided, truth = scene(task, 0)
    made.add(0, Window(0, 0, 70, 70), decided, truth)
    assert made.intervals() is None
    made.add(1, Window(0, 0, 70, 70), decided, np.full_like(truth, IGNORE))
    assert made.intervals() is None
    made.add(1, Window(0, 0, 70, 70), decided * 0 + 1, truth * 0 + 1)
    assert made.intervals()["per_class"]["b"]["iou"] is not None


def test_a_class_without_true_pixels_has_no_interval_and_lowers_none():
    task = TASKS["multiclass"]
    made, others = BootstrapIntervals(task), BootstrapIntervals(task)
    truth = np.zeros((1, 8, 8), np.int16)
    for number in range(12):
        decided = truth.copy()
        decided[0, : 1 + number % 3] = 1  # "a", which is never there
        made.add(number, Window(0, 0, 8, 8), decided, truth)
        others.add(number, Window(0, 0, 8, 8), np.where(decided == 1, 2, 0).astype(np.int16), truth)
    found = made.intervals()
    assert found["per_class"]["a"]["iou"] is found["per_class"]["a"]["f1"] is None
    assert found["mean_iou"] == found["per_class"]["background"]["iou"] == others.intervals()["mean_iou"]
