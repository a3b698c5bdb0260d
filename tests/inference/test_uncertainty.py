import numpy as np
import pytest
import scipy.stats
import torch
from predicting import TASKS

from segkit.cli.options import Uncertainty
from segkit.errors import UsageError
from segkit.inference import uncertainty
from segkit.inference.uncertainty import UNCERTAINTY_MEASURES, check_measures, compute_measures

ALL = tuple(UNCERTAINTY_MEASURES)
EXCLUSIVE, SIGMOID, BINARY, OVERLAPPING = TASKS[0], TASKS[2], TASKS[4], TASKS[5]


def shares_of(task, p):
    """Oracle: probabilities (targets, categories) of one pixel, from those of its channels."""
    if task.type == "multilabel":
        return [[1 - one, one] for one in p]
    if task.head == "sigmoid":
        p = [1 - max(p), *p] if task.background else p
        return [[one / sum(p) for one in p]]
    return [p]


def some(task, seed=0):
    logits = torch.randn(1, task.channels, 5, 7, generator=torch.Generator().manual_seed(seed)) * 3
    return task.probabilities(logits)[0]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.type}-{task.head}-{len(task.classes)}")
def test_measures_are_their_definitions(task, monkeypatch):
    monkeypatch.setattr(uncertainty, "_CHUNK_PIXELS", 15)
    first, second = some(task), some(task, 1)
    mean = (first + second) / 2
    entropies = (task.entropy(first[None])[0] + task.entropy(second[None])[0]) / 2
    found = compute_measures(task, torch.cat([mean, entropies]), ALL).numpy()
    assert found.shape == (3, 5, 7)
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-6
    for row, column in np.ndindex(5, 7):
        shares = [shares_of(task, p[:, row, column].double().tolist()) for p in (mean, first, second)]
        entropy, *of_models = ([scipy.stats.entropy(each, base=len(each)) for each in one] for one in shares)
        margins = [np.diff(sorted(each)[-2:])[0] for each in shares[0]]
        expected = [
            max(entropy),
            1 - min(margins),
            max(max(of_mean - (a + b) / 2, 0) for of_mean, a, b in zip(entropy, *of_models, strict=True)),
        ]
        np.testing.assert_allclose(found[:, row, column], expected, atol=1e-5)


def pixel(*p):
    return torch.tensor(p)[:, None, None]


@pytest.mark.parametrize(
    ("task", "p", "entropy", "one_minus_margin"),
    [
        (EXCLUSIVE, (1, 0, 0), 0, 0),
        (EXCLUSIVE, (1 / 3, 1 / 3, 1 / 3), 1, 1),
        (EXCLUSIVE, (0.5, 0.5, 0), np.log(2) / np.log(3), 1),
        (EXCLUSIVE, (0.1, 0.7, 0.2), 0.7298466991620975, 0.5),
        (BINARY, (0.5,), 1, 1),
        (BINARY, (0.9,), 0.4689955935892812, 0.2),
        (OVERLAPPING, (0.5, 0), 1, 1),  # one uncertain class is enough
        (OVERLAPPING, (1, 0), 0, 0),
        (SIGMOID, (0, 0), 0, 0),  # certainly background
        (TASKS[1], (0, 1), 0, 0),
    ],
)
def test_measures_by_hand(task, p, entropy, one_minus_margin):
    found = compute_measures(task, pixel(*map(float, p)), ("margin", "entropy"))[:, 0, 0]
    assert found.tolist() == pytest.approx([one_minus_margin, entropy], abs=1e-6)


def test_models_that_contradict_each_other_disagree_and_those_that_doubt_alike_do_not():
    no_entropy, full_entropy = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    half = torch.full((1, 1, 1), 0.5)
    assert compute_measures(BINARY, torch.cat([half, no_entropy]), ("disagreement",)).item() == pytest.approx(1)
    assert compute_measures(BINARY, torch.cat([half, full_entropy]), ("disagreement",)).item() == pytest.approx(0)


def test_rounding_beyond_one_is_no_infinity():
    above = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)).item()
    for task in (OVERLAPPING, BINARY, SIGMOID):
        found = compute_measures(task, pixel(*[above] * task.channels), ("entropy", "margin"))
        assert found.isfinite().all()
    independent = TASKS[2].__class__("multiclass", TASKS[2].classes, head="sigmoid", background=False)
    assert compute_measures(independent, pixel(0.0, 0.0), ("entropy",)).item() == pytest.approx(1)


def test_names_of_measures_are_checked():
    assert check_measures("margin") == ("margin",)
    assert check_measures(["margin", "entropy", "margin"]) == ("margin", "entropy")
    with pytest.raises(UsageError, match="uncertainty 'variance' is not known; use entropy, margin, disagreement"):
        check_measures(["variance"])
    assert tuple(one.value for one in Uncertainty) == ALL
