import json

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as torchmetrics
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window
from sklearn import metrics as sklearn

from segkit.evaluation.bootstrap import BootstrapIntervals
from segkit.evaluation.metrics import Confusion, Reliability
from segkit.evaluation.thresholds import ThresholdFit
from segkit.task import BACKGROUND, IGNORE, LandCoverClass, Task

A, B, C = LandCoverClass("a", 1), LandCoverClass("b", 2), LandCoverClass("c", 7)
EXCLUSIVE = [
    Task("binary", (A,)),
    Task("binary", (A,), head="sigmoid"),
    Task("multiclass", (A, B, C)),
    Task("multiclass", (A, B, C), background=False),
]
OVERLAPPING = [Task("multilabel", (A, B, C)), Task("multilabel", (A,))]


def random_case(task, seed=0, size=30):
    """Decided and true targets (T, size, size), more often right than wrong, some not known; and confidence."""
    random = np.random.default_rng(seed)
    shape = (task.n_targets, size, size)
    truth = random.integers(0, len(task.categories), shape)
    decided = np.where(random.random(shape) < 0.6, truth, random.integers(0, len(task.categories), shape))
    truth[random.random(shape) < 0.2] = IGNORE
    return decided.astype("int16"), truth.astype("int16"), random.random(shape).astype("float32")


def counted(task, *arrays):
    confusion = Confusion(task)
    confusion.add(*arrays)
    return confusion


def scores(confusion, what):
    return [row[what] for row in confusion.per_class().values()]


@pytest.mark.parametrize("task", EXCLUSIVE)
def test_exclusive_scores_are_those_of_scikit_learn_and_torchmetrics(task):
    decided, truth, sure = random_case(task)
    confusion = counted(task, decided, truth, sure)
    known = truth != IGNORE
    y, guess = truth[known], decided[known]
    labels = range(len(task.categories))
    summary = confusion.summary()
    assert np.array_equal(summary["confusion"]["matrix"], sklearn.confusion_matrix(y, guess, labels=labels))
    assert summary["confusion"]["labels"] == list(summary["per_class"]) == list(task.categories)
    precision, recall, f1, support = sklearn.precision_recall_fscore_support(y, guess, labels=labels)
    for what, expected in {"precision": precision, "recall": recall, "f1": f1, "support": support}.items():
        assert scores(confusion, what) == pytest.approx(expected)
    assert scores(confusion, "iou") == pytest.approx(sklearn.jaccard_score(y, guess, labels=labels, average=None))
    assert summary["overall_accuracy"] == pytest.approx(sklearn.accuracy_score(y, guess))
    assert summary["macro_f1"] == pytest.approx(f1.mean())
    assert summary["pixels"] == known.sum()

    tensors = torch.from_numpy(decided.astype("int64")), torch.from_numpy(truth.astype("int64"))
    iou = torchmetrics.multiclass_jaccard_index(*tensors, len(labels), average=None, ignore_index=IGNORE)
    assert scores(confusion, "iou") == pytest.approx(iou.tolist(), rel=1e-5)
    assert summary["mean_iou"] == pytest.approx(iou.mean().item(), rel=1e-5)


@pytest.mark.parametrize("task", OVERLAPPING)
def test_overlapping_scores_are_those_of_scikit_learn_and_torchmetrics(task):
    decided, truth, sure = random_case(task)
    confusion = counted(task, decided, truth, sure)
    summary = confusion.summary()
    names = [one.name for one in task.classes]
    assert list(summary["per_class"]) == summary["confusion"]["labels"] == names
    for target, name in enumerate(names):
        known = truth[target] != IGNORE
        y, guess = truth[target][known], decided[target][known]
        assert np.array_equal(summary["confusion"]["matrix"][target], sklearn.confusion_matrix(y, guess))
        assert summary["per_class"][name] == pytest.approx(
            {
                "iou": sklearn.jaccard_score(y, guess),
                "f1": sklearn.f1_score(y, guess),
                "precision": sklearn.precision_score(y, guess),
                "recall": sklearn.recall_score(y, guess),
                "support": y.sum(),
            }
        )
    right = (decided == truth)[truth != IGNORE]
    assert summary["overall_accuracy"] == pytest.approx(right.mean())
    assert summary["pixels"] == right.size
    if task.n_targets > 1:
        tensors = (torch.from_numpy(one.astype("int64"))[None] for one in (decided, truth))
        iou = torchmetrics.multilabel_jaccard_index(*tensors, task.n_targets, average=None, ignore_index=IGNORE)
        assert scores(confusion, "iou") == pytest.approx(iou.tolist(), rel=1e-5)


def test_overlapping_classes_match_scikit_learns_multilabel_confusion():
    task = OVERLAPPING[0]
    decided, truth, _ = random_case(task)
    truth = np.where(truth == IGNORE, 0, truth)
    flat = (one.reshape(3, -1).T for one in (truth, decided))
    expected = sklearn.multilabel_confusion_matrix(*flat)
    assert np.array_equal(counted(task, decided, truth).summary()["confusion"]["matrix"], expected)


@given(st.sampled_from(EXCLUSIVE + OVERLAPPING), st.lists(st.integers(0, 900), max_size=5), st.booleans())
def test_counts_add_up_over_any_partition(task, cuts, merge):
    arrays = [one.reshape(task.n_targets, -1) for one in random_case(task)]
    whole = counted(task, *arrays)
    parts = Confusion(task)
    for piece in zip(*(np.split(one, sorted(cuts), axis=1) for one in arrays), strict=True):
        if merge:
            parts.merge(counted(task, *piece))
        else:
            parts.add(*piece)
    assert np.array_equal(parts.counts, whole.counts)
    ece = whole.summary()["ece"]
    assert parts.summary() == whole.summary() | {"ece": pytest.approx(ece, rel=1e-12)}


def test_counts_are_exact_beyond_float32():
    """Above 16,777,216 a float32 count stands still."""
    task, size = EXCLUSIVE[0], 20_000_001
    truth, decided = np.zeros((1, size), "int16"), np.zeros((1, size), "uint8")
    decided[0, 0] = 1
    confusion = counted(task, decided, truth)
    twice = counted(task, decided, truth)
    twice.merge(confusion)
    assert twice.counts.tolist() == [[[40_000_000, 2], [0, 0]]]
    assert twice.summary()["pixels"] == 40_000_002


def test_an_undefined_score_is_none_and_no_part_of_a_mean():
    task = EXCLUSIVE[2]
    # a: right; b: called, never there, so only its precision is defined; c: there, never called; background: neither
    confusion = counted(task, np.array([[1, 1, 2]]), np.array([[1, 1, 3]]))
    summary = confusion.summary()
    empty = {"iou": None, "f1": None, "precision": None, "recall": None, "support": 0}
    assert summary["per_class"] == {
        BACKGROUND: empty,
        "a": {"iou": 1, "f1": 1, "precision": 1, "recall": 1, "support": 2},
        "b": {"iou": None, "f1": None, "precision": 0, "recall": None, "support": 0},
        "c": {"iou": 0, "f1": 0, "precision": None, "recall": 0, "support": 1},
    }
    assert summary["mean_iou"] == pytest.approx(1 / 2)
    assert summary["macro_f1"] == pytest.approx(1 / 2)
    assert summary["ece"] is None


@pytest.mark.parametrize("seed", range(3))
def test_means_are_those_of_the_classes_that_have_true_pixels(seed):
    """scikit-learn, asked only about the labels that occur in the truth."""
    task = EXCLUSIVE[2]
    random = np.random.default_rng(seed)
    truth = random.choice(np.delete(np.arange(len(task.categories)), 1 + seed), (1, 500)).astype("int16")
    decided = random.integers(0, len(task.categories), truth.shape)
    there, pair = np.unique(truth), (truth[0], decided[0])
    summary = counted(task, decided, truth).summary()
    expected = sklearn.jaccard_score(*pair, labels=there, average="macro")
    assert summary["mean_iou"] == pytest.approx(expected)
    assert summary["macro_f1"] == pytest.approx(sklearn.f1_score(*pair, labels=there, average="macro"))
    # A class that is not there would lower the mean.
    assert sklearn.jaccard_score(*pair, average="macro") < 0.9 * expected


@pytest.mark.parametrize("task", EXCLUSIVE + OVERLAPPING)
def test_nothing_known_is_nothing_counted(task):
    decided, truth, sure = random_case(task)
    sure[:] = np.nan  # what was decided there is nobody's concern
    for confusion in (Confusion(task), counted(task, decided, np.full_like(truth, IGNORE), sure)):
        summary = confusion.summary()
        assert summary["pixels"] == 0
        assert [summary[key] for key in ("overall_accuracy", "mean_iou", "macro_f1", "ece")] == [None] * 4
        assert not np.any(summary["confusion"]["matrix"])


@pytest.mark.parametrize("task", EXCLUSIVE + OVERLAPPING)
def test_the_calibration_error_is_that_of_fifteen_bins(task):
    decided, truth, sure = random_case(task)
    sure[:, :2] = np.array([0.0, 1.0])[:, None]  # the ends belong to the outer bins
    found = counted(task, decided, truth, sure).summary()["ece"]
    known = truth != IGNORE
    right, chance = (decided == truth)[known], sure[known].astype(float)
    expected = 0.0
    for low in range(15):
        inside = (chance >= low / 15) & ((chance < (low + 1) / 15) | (low == 14))
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - chance[inside].mean())
    assert found == pytest.approx(expected, rel=1e-9)
    # torchmetrics: the probability that the decision is right, against whether it is.
    reference = torchmetrics.binary_calibration_error(
        torch.from_numpy(chance), torch.from_numpy(right.astype("int64")), n_bins=15
    )
    assert found == pytest.approx(reference.item(), rel=1e-4)


def test_perfect_confidence_has_no_calibration_error():
    truth = np.array([[0, 1, 1, 0]])
    assert counted(EXCLUSIVE[0], truth, truth, np.ones((1, 4))).summary()["ece"] == 0
    assert counted(EXCLUSIVE[0], 1 - truth, truth, np.ones((1, 4))).summary()["ece"] == 1


@pytest.mark.parametrize("task", EXCLUSIVE + OVERLAPPING)
def test_the_summary_is_metrics_json(task):
    summary = counted(task, *random_case(task)).summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary.keys() == {
        "overall_accuracy", "mean_iou", "macro_f1", "ece", "pixels", "per_class", "confusion",
    }  # fmt: skip
    assert summary["confusion"].keys() == {"labels", "matrix"}
    for row in summary["per_class"].values():
        assert row.keys() == {"iou", "f1", "precision", "recall", "support"}
        assert isinstance(row["support"], int)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64"])
def test_any_integer_type_counts_alike(dtype):
    """Also where the number of pairs of classes is beyond the type."""
    task = Task("multiclass", tuple(LandCoverClass(f"class {value}", value) for value in range(1, 251)))
    decided, truth, _ = random_case(task)
    assert np.array_equal(counted(task, decided.astype(dtype), truth).counts, counted(task, decided, truth).counts)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint64"])
@pytest.mark.parametrize("shape", [(65_537, 1), (1, 65_537)])
def test_scenes_of_one_row_or_column_are_counted_whatever_the_type(shape, dtype):
    """Their pixels do not fit 16 bits; and numpy makes floats of int64 and uint64."""
    task = Task("binary", (A,), head="sigmoid")
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, (1, *shape)).astype("int8" if dtype.startswith("u") else dtype)
    decided = random.integers(0, 2, (1, *shape)).astype(dtype)
    sure = random.random((1, *shape)).astype("float32")
    expected = sklearn.confusion_matrix(truth.ravel(), decided.ravel())
    assert np.array_equal(counted(task, decided, truth, sure).counts[0], expected)
    resampling = BootstrapIntervals(task)
    resampling.add(0, Window(0, 0, shape[1], shape[0]), decided, truth)
    assert np.array_equal(sum(resampling._counts.values())[0], expected)
    reliability, fit = Reliability(task), ThresholdFit(task)
    reliability.add(sure, truth)
    fit.add(sure, truth)
    assert sum(reliability.per_channel()["a"]["reliability"]["pixels"]) == fit.counts.sum() == 65_537
