import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional

from segkit.losses import LOSSES, combined
from segkit.task import IGNORE, LandClass, Task

A, B, C = LandClass("a", 1), LandClass("b", 2), LandClass("c", 7)
TASKS = {
    "binary softmax": Task("binary", (A,)),
    "binary sigmoid": Task("binary", (A,), head="sigmoid"),
    "multiclass": Task("multiclass", (A, B, C)),
    "multiclass without": Task("multiclass", (A, B, C), background=False),
    "one-vs-rest": Task("multiclass", (A, B, C), head="sigmoid"),
    "one-vs-rest without": Task("multiclass", (A, B, C), head="sigmoid", background=False),
    "multilabel": Task("multilabel", (A, B, C)),
    "multilabel of one": Task("multilabel", (A,)),
}
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
softmax_task = pytest.mark.parametrize("task", [t for t in TASKS.values() if t.head == "softmax"])
sigmoid_task = pytest.mark.parametrize("task", [t for t in TASKS.values() if t.head == "sigmoid"])


def random_case(task, seed=0, size=8, unknown=0.25):
    """Logits (2, C, size, size) and target planes, some of them not known."""
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.normal(0, 2, (2, task.channels, size, size)).astype("float32"))
    planes = random.integers(0, len(task.categories), (2, task.planes, size, size))
    planes[random.random(planes.shape) < unknown] = IGNORE
    return logits, torch.from_numpy(planes.astype("int16"))


def value_and_gradient(loss, task, logits, planes, weights=None):
    logits = logits.detach().requires_grad_()
    value = loss(task, logits, planes, weights)
    value.backward()
    assert value.dtype == torch.float32
    assert value.shape == ()
    return value.item(), logits.grad


def weights_of(task):
    return [0.5 + channel for channel in range(task.channels)]


@every_loss
@every_task
@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_not_known_changes_neither_value_nor_gradient(loss, task, weighted):
    logits, planes = random_case(task)
    _, valid = task.onehot(planes)
    weights = weights_of(task) if weighted else None
    value, gradient = value_and_gradient(loss, task, logits, planes, weights)
    assert value > 0
    assert gradient[valid].any()
    assert not gradient[~valid].any()
    for poison in (float("nan"), float("inf"), 1e30):
        poisoned = logits.where(valid, torch.tensor(poison))
        again = value_and_gradient(loss, task, poisoned, planes, weights)
        assert again[0] == value
        assert torch.equal(again[1], gradient)


@every_loss
@every_task
def test_where_nothing_is_known_the_loss_is_zero(loss, task):
    logits, planes = random_case(task)
    for weights in (None, weights_of(task)):
        value, gradient = value_and_gradient(loss, task, logits, torch.full_like(planes, IGNORE), weights)
        assert value == 0
        assert not gradient.any()


@every_loss
@every_task
def test_one_known_pixel_is_enough(loss, task):
    """And means the same as an image of that pixel alone."""
    logits, planes = random_case(task, unknown=0)
    one = torch.full_like(planes, IGNORE)
    one[1, :, 3, 4] = planes[1, :, 3, 4]
    value, gradient = value_and_gradient(loss, task, logits, one)
    alone = value_and_gradient(loss, task, logits[1:, :, 3:4, 4:5], planes[1:, :, 3:4, 4:5])
    assert value == pytest.approx(alone[0])
    torch.testing.assert_close(gradient[1:, :, 3:4, 4:5], alone[1])
    assert gradient.count_nonzero() <= task.channels


@every_loss
@every_task
def test_absent_classes_are_defined_and_false_alarms_cost(loss, task):
    logits, planes = random_case(task)
    planes = planes.where(planes == IGNORE, torch.zeros_like(planes))  # the first category everywhere
    value, gradient = value_and_gradient(loss, task, logits, planes)
    assert np.isfinite(value)
    assert gradient.isfinite().all()
    target, valid = task.onehot(planes)
    # Lowering the logits of what is nowhere lowers the loss.
    absent = valid & (target.amax((0, 2, 3), keepdim=True) == 0)
    assert gradient[absent].sum() > 1e-3


@every_loss
@every_task
@pytest.mark.parametrize("kind", ["right", "wrong"])
def test_gradients_are_finite_at_a_thousand(loss, task, kind):
    _, planes = random_case(task)
    target, _ = task.onehot(planes)
    logits = (2000 * target - 1000) * (1 if kind == "right" else -1)
    value, gradient = value_and_gradient(loss, task, logits, planes)
    assert np.isfinite(value)
    assert gradient.isfinite().all()
    assert (value < 0.01) if kind == "right" else (value > 0.5)


@every_loss
@every_task
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_a_float32_loss(loss, task, dtype):
    logits, planes = random_case(task)
    low = logits.to(dtype)
    value, gradient = value_and_gradient(loss, task, low, planes)
    assert gradient.dtype == dtype
    assert value == value_and_gradient(loss, task, low.float(), planes)[0]


@every_loss
@every_task
def test_overlaps_of_many_pixels_do_not_overflow(loss, task):
    """Sums over 512 x 512 ones are NaN in float16."""
    logits = torch.full((1, task.channels, 512, 512), 8.0, dtype=torch.float16)
    planes = torch.ones(1, task.planes, 512, 512, dtype=torch.int16)
    assert np.isfinite(value_and_gradient(loss, task, logits, planes)[0])


@pytest.mark.parametrize("name", LOSSES)
@every_task
def test_class_weights_are_relative(name, task):
    logits, planes = random_case(task)
    weights = weights_of(task)
    unweighted = value_and_gradient(LOSSES[name], task, logits, planes)
    ones = value_and_gradient(LOSSES[name], task, logits, planes, [1.0] * task.channels)
    assert ones[0] == pytest.approx(unweighted[0])
    if task.head == "sigmoid" and name in ("pixel", "focal"):
        return  # there a weight is that of "is" against "is not", which weighs 1
    value, gradient = value_and_gradient(LOSSES[name], task, logits, planes, weights)
    scaled = value_and_gradient(LOSSES[name], task, logits, planes, [1000 * weight for weight in weights])
    assert scaled[0] == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(scaled[1], gradient, rtol=1e-4, atol=1e-8)
    if task.channels > 1:
        assert value != pytest.approx(unweighted[0], rel=1e-3)


@softmax_task
@pytest.mark.parametrize("weighted", [False, True])
def test_pixel_is_torchs_cross_entropy(task, weighted):
    logits, planes = random_case(task)
    weights = weights_of(task) if weighted else None
    value, gradient = value_and_gradient(LOSSES["pixel"], task, logits, planes, weights)
    logits.requires_grad_()
    torch_weights = torch.tensor(weights) if weighted else None
    expected = functional.cross_entropy(logits, planes[:, 0].long(), torch_weights, ignore_index=IGNORE)
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gradient, logits.grad)


@sigmoid_task
@pytest.mark.parametrize("weighted", [False, True])
def test_pixel_is_torchs_binary_cross_entropy_of_what_is_known(task, weighted):
    logits, planes = random_case(task)
    weights = weights_of(task) if weighted else None
    value, gradient = value_and_gradient(LOSSES["pixel"], task, logits, planes, weights)
    logits.requires_grad_()
    target, valid = task.onehot(planes)
    each = torch.tensor(weights or [1.0] * task.channels).view(1, -1, 1, 1)
    each = torch.where(target == 1, each, torch.ones(()))[valid]
    terms = functional.binary_cross_entropy_with_logits(logits[valid], target[valid], reduction="none")
    expected = (terms * each).sum() / each.sum()
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gradient, logits.grad)


@every_task
def test_focal_is_the_formula_of_its_paper(task):
    logits, planes = random_case(task)
    target, valid = task.onehot(planes)
    z, t, known = (one.double().numpy() for one in (logits, target, valid))
    if task.head == "softmax":
        p = (np.exp(z) * t).sum(axis=1) / np.exp(z).sum(axis=1)
        known = known[:, 0]
    else:
        p = np.where(t == 1, 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z)))
    p = p[known == 1]
    value, _ = value_and_gradient(LOSSES["focal"], task, logits, planes)
    assert value == pytest.approx(((1 - p) ** 2 * -np.log(p)).mean(), rel=1e-5)


@sigmoid_task
def test_focal_is_that_of_smp(task):
    logits, planes = random_case(task, unknown=0)
    target, _ = task.onehot(planes)
    expected = smp.losses.FocalLoss("multilabel", gamma=2.0)(logits, target)
    assert LOSSES["focal"](task, logits, planes, None).item() == pytest.approx(expected.item(), rel=1e-5)


def brute_overlap(task, logits, planes, missed, false, weights):
    """1 - (hit + 1) / (hit + missed x misses + false x false alarms + 1) of each channel, pixel by pixel."""
    target, valid = (one.numpy() for one in task.onehot(planes))
    z = logits.double().numpy()
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) if task.head == "softmax" else 1 / (1 + np.exp(-z))
    losses, shares = [], []
    for channel in range(task.channels):
        here = valid[:, channel]
        if not here.any():
            continue
        chance, is_there = p[:, channel][here], target[:, channel][here] == 1
        hit, misses, alarms = chance[is_there].sum(), (1 - chance[is_there]).sum(), chance[~is_there].sum()
        losses.append(1 - (hit + 1) / (hit + missed * misses + false * alarms + 1))
        shares.append(weights[channel])
    return np.average(losses, weights=shares)


@every_task
@pytest.mark.parametrize(("name", "missed", "false"), [("dice", 0.5, 0.5), ("jaccard", 1, 1), ("tversky", 0.7, 0.3)])
def test_overlaps_are_their_formulas(task, name, missed, false):
    logits, planes = random_case(task)
    if task.planes > 1:
        planes[:, 1] = IGNORE  # a class that nobody looked for is no part of the mean
    for weights in (None, weights_of(task)):
        value, _ = value_and_gradient(LOSSES[name], task, logits, planes, weights)
        expected = brute_overlap(task, logits, planes, missed, false, weights or [1.0] * task.channels)
        assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "reference"), [("dice", smp.losses.DiceLoss), ("jaccard", smp.losses.JaccardLoss)])
@every_task
def test_overlaps_are_those_of_smp_where_every_class_is_there(name, reference, task):
    logits, planes = random_case(task, unknown=0, size=16)
    target, _ = task.onehot(planes)
    chance = task.probabilities(logits)
    expected = reference("multilabel", from_logits=False, smooth=1.0)(chance, target)
    assert LOSSES[name](task, logits, planes, None).item() == pytest.approx(expected.item(), rel=1e-5)


@every_task
def test_combined_is_the_weighted_sum(task):
    logits, planes = random_case(task)
    weights = weights_of(task)
    loss = combined({"pixel": 0.5, "dice": 2.0, "focal": 0.0}, task, weights)
    logits.requires_grad_()
    value = loss(logits, planes)
    value.backward()
    pixel = value_and_gradient(LOSSES["pixel"], task, logits, planes, weights)
    dice = value_and_gradient(LOSSES["dice"], task, logits, planes, weights)
    assert value.item() == pytest.approx(0.5 * pixel[0] + 2 * dice[0])
    torch.testing.assert_close(logits.grad, 0.5 * pixel[1] + 2 * dice[1])
    assert combined({"pixel": 1.0}, task)(logits.half(), planes).dtype == torch.float32
    with pytest.raises(KeyError, match="lovasz"):
        combined({"lovasz": 1.0}, task)
