import itertools

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from sklearn.metrics import jaccard_score
from torch.nn import functional

from segkit.recipe.schema import LOSS_NAMES
from segkit.task import IGNORE, LandCoverClass, Task
from segkit.training.losses import LOSSES, combine_losses

A, B, C = LandCoverClass("a", 1), LandCoverClass("b", 2), LandCoverClass("c", 7)
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
assert tuple(LOSSES) == LOSS_NAMES  # those that recipes may name
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
softmax_task = pytest.mark.parametrize("task", [t for t in TASKS.values() if t.head == "softmax"])
sigmoid_task = pytest.mark.parametrize("task", [t for t in TASKS.values() if t.head == "sigmoid"])


hard_and_soft = pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])


def random_case(task, seed=0, size=16, unknown=0.25, soft=False):
    """Logits (2, C, size, size) and targets, some of them not known in the left half; hard or soft."""
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.normal(0, 2, (2, task.channels, size, size)).astype("float32"))
    targets = random.integers(0, len(task.categories), (2, task.n_targets, size, size))
    unseen = random.random(targets.shape) < unknown
    unseen[..., size // 2 :] = False
    if soft:
        unseen = unseen[:, [target for target, _ in task.channel_categories]]
        targets = random.uniform(0, 1, (2, task.channels, size, size))
        targets /= targets.sum(axis=1, keepdims=True) if task.head == "softmax" else 1
    targets[unseen] = IGNORE
    return logits, torch.from_numpy(targets.astype("float32" if soft else "int16"))


def value_and_gradient(loss, task, logits, targets, weights=None):
    logits = logits.detach().requires_grad_()
    value = loss(task, logits, targets, weights)
    value.backward()
    assert value.dtype == torch.float32
    assert value.shape == ()
    return value.item(), logits.grad


def weights_of(task):
    return [0.5 + channel for channel in range(task.channels)]


@hard_and_soft
@every_loss
@every_task
@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_not_known_changes_neither_value_nor_gradient(loss, task, weighted, soft):
    logits, targets = random_case(task, soft=soft)
    _, valid = task.onehot(targets)
    weights = weights_of(task) if weighted else None
    value, gradient = value_and_gradient(loss, task, logits, targets, weights)
    assert value > 0
    assert gradient[valid].any()
    assert not gradient[~valid].any()
    for poison in (float("nan"), float("inf"), 1e30):
        poisoned = logits.where(valid, torch.tensor(poison))
        again = value_and_gradient(loss, task, poisoned, targets, weights)
        assert again[0] == value
        assert torch.equal(again[1], gradient)


@hard_and_soft
@every_loss
@every_task
def test_where_nothing_is_known_the_loss_is_zero(loss, task, soft):
    logits, targets = random_case(task, soft=soft)
    for weights in (None, weights_of(task)):
        value, gradient = value_and_gradient(loss, task, logits, torch.full_like(targets, IGNORE), weights)
        assert value == 0
        assert not gradient.any()


@hard_and_soft
@every_loss
@every_task
def test_one_known_pixel_is_enough(loss, task, soft):
    """And means the same as an image of that pixel alone."""
    logits, targets = random_case(task, unknown=0, soft=soft)
    one = torch.full_like(targets, IGNORE)
    one[1, :, 3, 4] = targets[1, :, 3, 4]
    value, gradient = value_and_gradient(loss, task, logits, one)
    alone = value_and_gradient(loss, task, logits[1:, :, 3:4, 4:5], targets[1:, :, 3:4, 4:5])
    assert value == pytest.approx(alone[0])
    torch.testing.assert_close(gradient[1:, :, 3:4, 4:5], alone[1])
    assert gradient.count_nonzero() <= task.channels


@pytest.mark.parametrize("name", LOSSES)
@every_task
def test_absent_classes_are_defined_and_false_alarms_cost(name, task):
    logits, targets = random_case(task)
    targets = targets.where(targets == IGNORE, torch.zeros_like(targets))  # the first category everywhere
    value, gradient = value_and_gradient(LOSSES[name], task, logits, targets)
    assert np.isfinite(value)
    assert gradient.isfinite().all()
    if name == "boundary":  # it sees false contours, whatever their height
        assert value_and_gradient(LOSSES[name], task, logits / 10, targets)[0] < value
        return
    target, valid = task.onehot(targets)
    # Lowering the logits of what is nowhere lowers the loss.
    absent = valid & (target.amax((0, 2, 3), keepdim=True) == 0)
    assert gradient[absent].sum() > 1e-4


@pytest.mark.parametrize("name", LOSSES)
@every_task
@pytest.mark.parametrize("kind", ["right", "wrong"])
def test_gradients_are_finite_at_a_thousand(name, task, kind):
    _, targets = random_case(task)
    target, _ = task.onehot(targets)
    logits = (2000 * target - 1000) * (1 if kind == "right" else -1)
    value, gradient = value_and_gradient(LOSSES[name], task, logits, targets)
    assert np.isfinite(value)
    assert gradient.isfinite().all()
    if kind == "right":
        assert value < 0.01
    elif name != "boundary":  # which a negative shares with its map
        assert value > 0.5


@every_loss
@every_task
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_a_float32_loss(loss, task, dtype):
    logits, targets = random_case(task)
    low = logits.to(dtype)
    value, gradient = value_and_gradient(loss, task, low, targets)
    assert gradient.dtype == dtype
    assert value == value_and_gradient(loss, task, low.float(), targets)[0]


@every_loss
@every_task
def test_overlaps_of_many_pixels_do_not_overflow(loss, task):
    """Sums over 512 x 512 ones are NaN in float16."""
    logits = torch.full((1, task.channels, 512, 512), 8.0, dtype=torch.float16)
    targets = torch.ones(1, task.n_targets, 512, 512, dtype=torch.int16)
    assert np.isfinite(value_and_gradient(loss, task, logits, targets)[0])


@pytest.mark.parametrize("name", LOSSES)
@every_task
def test_class_weights_are_relative(name, task):
    logits, targets = random_case(task)
    weights = weights_of(task)
    unweighted = value_and_gradient(LOSSES[name], task, logits, targets)
    ones = value_and_gradient(LOSSES[name], task, logits, targets, [1.0] * task.channels)
    assert ones[0] == pytest.approx(unweighted[0])
    if task.head == "sigmoid" and name in ("pixel", "focal"):
        return  # there a weight is that of "is" against "is not", which weighs 1
    value, gradient = value_and_gradient(LOSSES[name], task, logits, targets, weights)
    scaled = value_and_gradient(LOSSES[name], task, logits, targets, [1000 * weight for weight in weights])
    assert scaled[0] == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(scaled[1], gradient, rtol=1e-4, atol=1e-8)
    if task.channels > 1:
        assert value != pytest.approx(unweighted[0], rel=1e-5)


@softmax_task
@pytest.mark.parametrize("weighted", [False, True])
def test_pixel_is_torchs_cross_entropy(task, weighted):
    logits, targets = random_case(task)
    weights = weights_of(task) if weighted else None
    value, gradient = value_and_gradient(LOSSES["pixel"], task, logits, targets, weights)
    logits.requires_grad_()
    torch_weights = torch.tensor(weights) if weighted else None
    expected = functional.cross_entropy(logits, targets[:, 0].long(), torch_weights, ignore_index=IGNORE)
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gradient, logits.grad)


@sigmoid_task
@pytest.mark.parametrize("weighted", [False, True])
def test_pixel_is_torchs_binary_cross_entropy_of_what_is_known(task, weighted):
    logits, targets = random_case(task)
    weights = weights_of(task) if weighted else None
    value, gradient = value_and_gradient(LOSSES["pixel"], task, logits, targets, weights)
    logits.requires_grad_()
    target, valid = task.onehot(targets)
    each = torch.tensor(weights or [1.0] * task.channels).view(1, -1, 1, 1)
    each = torch.where(target == 1, each, torch.ones(()))[valid]
    terms = functional.binary_cross_entropy_with_logits(logits[valid], target[valid], reduction="none")
    expected = (terms * each).sum() / each.sum()
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gradient, logits.grad)


@every_task
def test_focal_is_the_formula_of_its_paper(task):
    logits, targets = random_case(task)
    target, valid = task.onehot(targets)
    z, t, known = (one.double().numpy() for one in (logits, target, valid))
    if task.head == "softmax":
        p = (np.exp(z) * t).sum(axis=1) / np.exp(z).sum(axis=1)
        known = known[:, 0]
    else:
        p = np.where(t == 1, 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z)))
    p = p[known == 1]
    value, _ = value_and_gradient(LOSSES["focal"], task, logits, targets)
    assert value == pytest.approx(((1 - p) ** 2 * -np.log(p)).mean(), rel=1e-5)


@sigmoid_task
def test_focal_is_that_of_smp(task):
    logits, targets = random_case(task, unknown=0)
    target, _ = task.onehot(targets)
    expected = smp.losses.FocalLoss("multilabel", gamma=2.0)(logits, target)
    assert LOSSES["focal"](task, logits, targets, None).item() == pytest.approx(expected.item(), rel=1e-5)


def brute_overlap(task, logits, targets, missed, false, weights):
    """1 - (hit + 1) / (hit + missed x misses + false x false alarms + 1) of each channel, pixel by pixel."""
    target, valid = (one.numpy() for one in task.onehot(targets))
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
    logits, targets = random_case(task)
    if task.n_targets > 1:
        targets[:, 1] = IGNORE  # a class that nobody looked for is no part of the mean
    for weights in (None, weights_of(task)):
        value, _ = value_and_gradient(LOSSES[name], task, logits, targets, weights)
        expected = brute_overlap(task, logits, targets, missed, false, weights or [1.0] * task.channels)
        assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "reference"), [("dice", smp.losses.DiceLoss), ("jaccard", smp.losses.JaccardLoss)])
@every_task
def test_overlaps_are_those_of_smp_where_every_class_is_there(name, reference, task):
    logits, targets = random_case(task, unknown=0, size=16)
    target, _ = task.onehot(targets)
    chance = task.probabilities(logits)
    expected = reference("multilabel", from_logits=False, smooth=1.0)(chance, target)
    assert LOSSES[name](task, logits, targets, None).item() == pytest.approx(expected.item(), rel=1e-5)


@every_task
def test_combined_is_the_weighted_sum(task):
    logits, targets = random_case(task)
    weights = weights_of(task)
    loss = combine_losses({"pixel": 0.5, "dice": 2.0, "focal": 0.0}, task, weights)
    logits.requires_grad_()
    value = loss(logits, targets)
    value.backward()
    pixel = value_and_gradient(LOSSES["pixel"], task, logits, targets, weights)
    dice = value_and_gradient(LOSSES["dice"], task, logits, targets, weights)
    assert value.item() == pytest.approx(0.5 * pixel[0] + 2 * dice[0])
    torch.testing.assert_close(logits.grad, 0.5 * pixel[1] + 2 * dice[1])
    assert combine_losses({"pixel": 1.0}, task)(logits.half(), targets).dtype == torch.float32
    with pytest.raises(KeyError, match="hinge"):
        combine_losses({"hinge": 1.0}, task)


@every_loss
@every_task
@pytest.mark.parametrize("weighted", [False, True])
def test_soft_targets_of_nothing_and_all_are_hard_ones(loss, task, weighted):
    logits, targets = random_case(task)
    target, valid = task.onehot(targets)
    soft = target.masked_fill(~valid, IGNORE)
    weights = weights_of(task) if weighted else None
    value, gradient = value_and_gradient(loss, task, logits, soft, weights)
    expected = value_and_gradient(loss, task, logits, targets, weights)
    assert value == expected[0]
    assert torch.equal(gradient, expected[1])
    half = value_and_gradient(loss, task, logits, soft.half(), weights)
    assert half[0] == value


@pytest.mark.parametrize("name", LOSSES)
@every_task
def test_the_best_prediction_of_a_soft_target_is_the_target(name, task):
    if name == "focal":
        return  # it trusts the likelier category more than the shares say (Charoenphakdee et al. 2021)
    _, targets = random_case(task, soft=True)
    target, _ = task.onehot(targets)
    best = target.clamp(1e-6, 1 - 1e-6)
    best = best.log() if task.head == "softmax" else best.logit()
    value, _ = value_and_gradient(LOSSES[name], task, best, targets)
    if name != "pixel":
        assert value == pytest.approx(0, abs=1e-5)
    generator = torch.Generator().manual_seed(0)
    for size in (0.1, 1.0, 10.0):
        other = best + size * torch.randn(best.shape, generator=generator)
        assert value_and_gradient(LOSSES[name], task, other, targets)[0] > value
    surer = best * 3
    assert value_and_gradient(LOSSES[name], task, surer, targets)[0] > value


@pytest.mark.parametrize("name", ["pixel", "focal"])
@every_task
@pytest.mark.parametrize("weighted", [False, True])
def test_a_share_of_a_pixel_is_a_share_of_a_pixel(name, task, weighted):
    """A pixel of which a quarter is of a category costs what four pixels do of which one is."""
    logits, _ = random_case(task)
    copies = [random_case(task, seed)[1] for seed in range(4)]
    known = torch.stack([one != IGNORE for one in copies]).all(dim=0)
    copies = [one.where(known, torch.tensor(IGNORE, dtype=one.dtype)) for one in copies]
    targets, (valid, *_) = zip(*(task.onehot(one) for one in copies), strict=True)
    soft = torch.stack(targets).mean(dim=0).masked_fill(~valid, IGNORE)
    weights = weights_of(task) if weighted else None
    value, gradient = value_and_gradient(LOSSES[name], task, logits, soft, weights)
    each = value_and_gradient(LOSSES[name], task, torch.cat([logits] * 4), torch.cat(copies), weights)
    assert value == pytest.approx(each[0], rel=1e-5)
    torch.testing.assert_close(gradient, sum(each[1].split(2)), rtol=1e-4, atol=1e-8)


@softmax_task
def test_smoothing_is_torchs(task):
    logits, targets = random_case(task)
    logits.requires_grad_()
    value = combine_losses({"pixel": 1.0}, task, smoothing=0.2)(logits, targets)
    (gradient,) = torch.autograd.grad(value, logits)
    expected = functional.cross_entropy(logits, targets[:, 0].long(), ignore_index=IGNORE, label_smoothing=0.2)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gradient, logits.grad)
    # With weights torch divides by those of the labels, this loss by those of the smoothed ones.
    weights = torch.tensor(weights_of(task))
    value = combine_losses({"pixel": 1.0}, task, weights.tolist(), smoothing=0.2)(logits, targets)
    total = functional.cross_entropy(logits, targets[:, 0].long(), weights, None, IGNORE, None, "sum", 0.2)
    known = weights[targets[targets != IGNORE].long()]
    assert value.item() == pytest.approx(total.item() / (0.8 * known + 0.2 * weights.mean()).sum().item(), rel=1e-5)


@sigmoid_task
def test_smoothing_of_a_sigmoid_is_between_is_and_is_not(task):
    logits, targets = random_case(task)
    target, valid = (one.numpy() for one in task.onehot(targets))
    z, t = logits.numpy().astype(float)[valid], 0.8 * target[valid] + 0.1
    terms = t * np.log1p(np.exp(-z)) + (1 - t) * np.log1p(np.exp(z))
    value = combine_losses({"pixel": 1.0}, task, smoothing=0.2)(logits, targets)
    assert value.item() == pytest.approx(terms.mean(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@every_task
@hard_and_soft
def test_smoothing_is_for_likelihoods_only(name, task, soft):
    logits, targets = random_case(task, soft=soft)
    plain = combine_losses({name: 1.0}, task)(logits, targets)
    smooth = combine_losses({name: 1.0}, task, smoothing=0.2)(logits, targets)
    assert (smooth != plain) == (name in ("pixel", "focal"))
    target, valid = task.onehot(targets)
    among = task.channels if task.head == "softmax" else 2
    smooth_labels = torch.where(valid, 0.8 * target + 0.2 / among, torch.tensor(-1.0))
    if smooth != plain:
        assert smooth.item() == pytest.approx(LOSSES[name](task, logits, smooth_labels, None).item(), rel=1e-6)
    known = task.smooth_labels(targets, 0.2)
    torch.testing.assert_close(known, smooth_labels)
    if task.head == "softmax":
        torch.testing.assert_close(known.sum(dim=1)[valid[:, 0]], torch.ones(int(valid[:, 0].sum())))


def choquet(errors, target):
    """Lovász extension of the Jaccard loss, as an integral: of its loss of {errors >= level} over all levels."""
    levels = torch.cat([errors.new_zeros(1), errors.sort().values])
    total = errors.new_zeros(())
    for low, high in itertools.pairwise(levels):
        there, wrong = target == 1, errors.detach() >= high.detach()
        hit, union = (there & ~wrong).sum(), (there | wrong).sum()
        total = total + (high - low) * (1 - hit / union)
    return total


@every_task
def test_lovasz_is_the_extension_of_one_minus_iou(task):
    logits, targets = random_case(task, size=6)
    if task.n_targets > 1:
        targets[:, 1] = IGNORE  # a class that nobody looked for is no part of the mean
    target, valid = task.onehot(targets)
    for weights in (None, weights_of(task)):
        value, gradient = value_and_gradient(LOSSES["lovasz"], task, logits, targets, weights)
        z = logits.double().requires_grad_()
        p = z.softmax(dim=1) if task.head == "softmax" else z.sigmoid()
        losses, shares = [], []
        for channel in range(task.channels):
            here = valid[:, channel]
            if here.any():
                losses.append(choquet((p[:, channel] - target[:, channel]).abs()[here], target[:, channel][here]))
                shares.append(1.0 if weights is None else weights[channel])
        shares = torch.tensor(shares, dtype=torch.float64)
        expected = (torch.stack(losses) * shares).sum() / shares.sum()
        expected.backward()
        assert value == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(gradient, z.grad.float(), rtol=1e-3, atol=1e-6)


@every_task
def test_lovasz_of_a_decision_is_one_minus_iou(task):
    _, targets = random_case(task)
    _, other = random_case(task, seed=1, unknown=0)
    target, valid = task.onehot(targets)
    called, _ = task.onehot(other)
    value, _ = value_and_gradient(LOSSES["lovasz"], task, 2000 * called - 1000, targets)
    pairs = [(target[:, c][valid[:, c]], called[:, c][valid[:, c]]) for c in range(task.channels)]
    assert value == pytest.approx(1 - np.mean([jaccard_score(*pair) for pair in pairs]), rel=1e-5)


def test_lovasz_of_an_absent_class_is_its_surest_false_alarm():
    task = TASKS["multilabel of one"]
    logits, targets = random_case(task)
    value, gradient = value_and_gradient(LOSSES["lovasz"], task, logits, targets.clamp(max=0))
    surest = logits.where(targets != IGNORE, torch.tensor(-100.0)).max()
    assert value == pytest.approx(surest.sigmoid().item(), rel=1e-6)
    assert gradient.count_nonzero() == 1


def test_lovasz_keeps_its_digits_in_large_batches():
    """Differences of losses that are one pixel in many apart would not."""
    task, random = TASKS["binary sigmoid"], np.random.default_rng(0)
    there = random.random(400_000) < 0.3
    logits = torch.from_numpy(random.normal(0, 1, there.size) + there).float()
    targets = torch.from_numpy(there.astype("int16")).view(1, 1, 1, -1)
    _, gradient = value_and_gradient(LOSSES["lovasz"], task, logits.view(1, 1, 1, -1), targets)
    p = 1 / (1 + np.exp(-logits.numpy().astype(np.float64)))
    order = np.argsort(-np.abs(there - p.astype(np.float32)), kind="stable")
    missed = there[order].cumsum()
    lost = 1 - (there.sum() - missed) / (there.sum() + np.arange(1, there.size + 1) - missed)
    slope = np.empty(there.size)
    slope[order] = np.diff(lost, prepend=0)
    expected = np.where(there, -1, 1) * slope * p * (1 - p)
    # Pixels of one error may be taken in any order.
    close = np.isclose(gradient.flatten().numpy(), expected, rtol=1e-3, atol=0)
    assert close.mean() > 0.99


def around(values, row, column, reach):
    """Values (H, W) of the square around a pixel, as far as it lies inside."""
    return values[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1]


def brute_boundary(task, logits, targets, weights):
    """1 - F1 of the boundaries of each channel, window by window."""
    target, valid = (one.double().numpy() for one in task.onehot(targets))
    z = logits.double().numpy()
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) if task.head == "softmax" else 1 / (1 + np.exp(-z))
    losses, shares = [], []
    height, width = z.shape[2:]
    for channel in range(task.channels):
        sums = np.zeros(4)
        seen = 0
        for n in range(len(z)):
            edges, reached = [], []
            for one in (p[n, channel], target[n, channel]):
                edge = np.zeros((height, width))
                for y, x in np.ndindex(height, width):
                    edge[y, x] = around(1 - one, y, x, 1).max() - (1 - one[y, x])
                edges.append(edge)
                reached.append([[around(edge, y, x, 2).max() for x in range(width)] for y in range(height)])
            for y, x in np.ndindex(height, width):
                window = around(valid[n, channel], y, x, 3)
                if window.shape != (7, 7) or not window.all():
                    continue
                seen += 1
                (mine, true), (my_reach, true_reach) = (edge[y, x] for edge in edges), (r[y][x] for r in reached)
                sums += mine * true_reach, mine, true * my_reach, true
        if seen:
            precision, recall = (sums[0] + 1) / (sums[1] + 1), (sums[2] + 1) / (sums[3] + 1)
            losses.append(1 - 2 * precision * recall / (precision + recall))
            shares.append(weights[channel])
    return np.average(losses, weights=shares)


@every_task
def test_boundary_is_the_formula_of_its_paper(task):
    logits, targets = random_case(task, unknown=0.1)
    targets[0, :, :12, :12] = targets[0, :, :1, :1].clamp(min=0)  # a plain field, so that not all is boundary
    if task.n_targets > 1:
        targets[:, 1] = IGNORE
    for weights in (None, weights_of(task)):
        value, _ = value_and_gradient(LOSSES["boundary"], task, logits, targets, weights)
        assert value == pytest.approx(brute_boundary(task, logits, targets, weights or [1.0] * task.channels), rel=1e-4)


def square(shift=0):
    field = torch.zeros(1, 1, 64, 64)
    field[..., 20 + shift : 40 + shift, 20:40] = 1
    return field


@pytest.mark.parametrize(("shift", "low", "high"), [(0, 0, 1e-6), (1, 0, 1e-6), (2, 0, 0.1), (5, 0.2, 0.7)])
def test_boundaries_meet_within_two_pixels(shift, low, high):
    task = TASKS["binary sigmoid"]
    value, _ = value_and_gradient(LOSSES["boundary"], task, 2000 * square(shift) - 1000, square().short())
    assert low <= value <= high
    negative, _ = value_and_gradient(LOSSES["boundary"], task, 1000 - 2000 * square(shift), square().short())
    assert negative < 0.1 or shift > 1  # its boundary is on the other side of the same line
    flat, _ = value_and_gradient(LOSSES["boundary"], task, torch.zeros(1, 1, 64, 64), square().short())
    assert flat > 0.95
