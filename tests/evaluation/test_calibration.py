"""What a calibration finds is what made the probabilities wrong, and what scikit-learn finds."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression

import segkit.evaluation.calibration as module
from segkit.evaluation.calibration import CalibrationFit
from segkit.models.calibration import Calibration
from segkit.task import IGNORE, LandCoverClass, Task

SIDE = 200


def task_of(kind, head, count=3):
    return Task(kind, tuple(LandCoverClass(f"c{at}", at) for at in range(1, count + 1)), head=head)


def fitted(task, said, truth, *, parts=4):
    """Give a picture in strips."""
    fit = CalibrationFit(task, truth[0].size)
    for probabilities, targets in zip(said.chunk(parts, dim=1), np.array_split(truth, parts, axis=1), strict=True):
        fit.add(probabilities, targets)
    return fit.fit()


def drawn(probabilities, seed=1):
    """Categories (H, W) with the probabilities (C, H, W)."""
    return (
        (np.random.default_rng(seed).random(probabilities.shape[1:]) > probabilities.cumsum(0).numpy())
        .sum(0)
        .clip(0, len(probabilities) - 1)
    )


def noise(channels, seed=0):
    return 2 * torch.randn(channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_found(temperature):
    task = task_of("multiclass", "softmax")
    logits = noise(4)
    truth = drawn(logits.softmax(0))[None]
    truth[:, :20] = IGNORE
    said = (logits * temperature).softmax(0)
    said[:, :20] = 0.25
    found = fitted(task, said, truth)
    assert len(set(found.scale)) == 1
    assert found.shift == (0.0,) * 4
    assert found.scale[0] == pytest.approx(1 / temperature, rel=0.03)
    known, right = said[:, 20:].double().log(), torch.from_numpy(truth[0, 20:])

    def loss(scale):
        return float(torch.nn.functional.cross_entropy((scale * known)[None], right[None]))

    assert found.scale[0] == pytest.approx(minimize_scalar(loss, bounds=(0.1, 10), method="bounded").x, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "head"), [("multilabel", "sigmoid"), ("multiclass", "sigmoid"), ("binary", "sigmoid")]
)
def test_factor_and_summand_are_those_of_logistic_regression(kind, head):
    task = task_of(kind, head, 1 if kind == "binary" else 3)
    logits = noise(task.channels)
    if kind == "multiclass":
        truth = drawn(torch.cat([torch.zeros(1, SIDE, SIDE), logits]).softmax(0))[None]
    else:
        truth = (np.random.default_rng(1).random(logits.shape) < logits.sigmoid().numpy()).astype(int)
    said = (3 * logits - 2).sigmoid()
    truth[0, :30] = IGNORE
    found = fitted(task, said, truth)
    for channel, (target, category) in enumerate(task.channel_categories):
        known = truth[target] != IGNORE
        column = said[channel].double().clamp(1e-12, 1 - 2**-24).logit().numpy()[known][:, None]
        oracle = LogisticRegression(C=np.inf, tol=1e-8).fit(column, truth[target][known] == category)
        assert found.scale[channel] == pytest.approx(oracle.coef_[0, 0], rel=2e-3)
        assert found.shift[channel] == pytest.approx(oracle.intercept_[0], abs=5e-3)


def test_a_part_of_many_pixels_says_the_same(monkeypatch):
    task = task_of("multiclass", "softmax")
    logits = noise(4)
    truth = drawn(logits.softmax(0))[None]
    whole = fitted(task, (2 * logits).softmax(0), truth)
    monkeypatch.setattr(module, "_MAX_PIXELS", 8000)
    part = fitted(task, (2 * logits).softmax(0), truth)
    assert part != whole
    assert part == fitted(task, (2 * logits).softmax(0), truth)
    assert part.scale[0] == pytest.approx(whole.scale[0], rel=0.05)


def test_what_cannot_be_known_stays():
    """Classes that are nowhere, not known anywhere, and everywhere."""
    task = task_of("multilabel", "sigmoid", 4)
    logits = noise(4)
    truth = (np.random.default_rng(1).random(logits.shape) < logits.sigmoid().numpy()).astype(int)
    truth[1], truth[2], truth[3] = 0, IGNORE, 1
    found = fitted(task, (2 * logits).sigmoid(), truth)
    assert (found.scale[1:], found.shift[1:]) == ((1.0,) * 3, (0.0,) * 3)
    assert found.scale[0] == pytest.approx(0.5, rel=0.05)
    assert fitted(task, logits.sigmoid(), np.full_like(truth, IGNORE)) is None
    assert CalibrationFit(task, 0).fit() is None


def test_probabilities_of_0_and_1_that_are_right_are_not_blown_up():
    task = task_of("binary", "softmax", 1)
    truth = np.random.default_rng(0).integers(0, 2, (1, SIDE, SIDE))
    said = torch.from_numpy(np.stack([1 - truth[0], truth[0]])).float()
    found = fitted(task, said, truth)
    assert np.isfinite([*found.scale, *found.shift]).all()
    assert 0.1 <= found.scale[0] <= 10.001
    assert isinstance(found, Calibration)
