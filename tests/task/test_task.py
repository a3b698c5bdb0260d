import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import BaseModel, ValidationError

from segkit.errors import LabelError, TaskError
from segkit.task import BACKGROUND, IGNORE, LandCoverClass, Task
from segkit.training.losses import pixel

A, B, C = LandCoverClass("a", 1), LandCoverClass("b", 2), LandCoverClass("c", 7)
B3, C8 = LandCoverClass("b", 2, threshold=0.3), LandCoverClass("c", 7, threshold=0.8)

# The decision table of the design, row by row: (task, channels, categories, thresholds).
TABLE = {
    "binary softmax": (Task("binary", (A,)), 2, (BACKGROUND, "a"), None),
    "binary softmax threshold": (Task("binary", (B3,)), 2, (BACKGROUND, "b"), (0.3,)),
    "binary sigmoid": (Task("binary", (A,), head="sigmoid"), 1, (BACKGROUND, "a"), (0.5,)),
    "binary sigmoid threshold": (Task("binary", (C8,), head="sigmoid"), 1, (BACKGROUND, "c"), (0.8,)),
    "multiclass": (Task("multiclass", (A, B, C)), 4, (BACKGROUND, "a", "b", "c"), None),
    "one class and background": (Task("multiclass", (A,)), 2, (BACKGROUND, "a"), None),
    "multiclass without": (Task("multiclass", (A, B, C), background=False), 3, ("a", "b", "c"), None),
    "one-vs-rest": (
        Task("multiclass", (A, B3, C8), head="sigmoid"), 3, (BACKGROUND, "a", "b", "c"), (0.5, 0.3, 0.8),
    ),
    "one-vs-rest without": (
        Task("multiclass", (A, B, C), head="sigmoid", background=False), 3, ("a", "b", "c"), None,
    ),
    "multilabel": (Task("multilabel", (A, B3, C8)), 3, ("absent", "present"), (0.5, 0.3, 0.8)),
    "multilabel of one": (Task("multilabel", (A,)), 1, ("absent", "present"), (0.5,)),
}  # fmt: skip
TASKS = [row[0] for row in TABLE.values()]
every_task = pytest.mark.parametrize("task", TASKS, ids=TABLE)


def random_case(task, seed=0, size=9):
    """Logits (2, C, size, size) and targets, a fifth of them not known."""
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.normal(0, 3, (2, task.channels, size, size)).astype("float32"))
    targets = random.integers(0, len(task.categories), (2, task.n_targets, size, size))
    targets[random.random(targets.shape) < 0.2] = IGNORE
    return logits, torch.from_numpy(targets.astype("int16"))


def brute_probabilities(task, z):
    z = z.astype(np.float64)
    return np.exp(z) / np.exp(z).sum() if task.head == "softmax" else 1 / (1 + np.exp(-z))


def brute_decision(task, p):
    """Categories (P,) and their confidence for the probabilities (C,) of one pixel, by the words of the table."""
    bar = [0.5 if one.threshold is None else one.threshold for one in task.classes]
    if task.type == "multilabel":
        yes = [float(value) >= limit for value, limit in zip(p, bar, strict=True)]
        return yes, [value if there else 1 - value for value, there in zip(p, yes, strict=True)]
    if task.type == "binary":
        yes = p[-1] >= bar[0]  # of two channels the higher one is that with at least one half
        return [yes], [p[-1] if yes else 1 - p[-1]]
    if task.head == "softmax" or not task.background:
        return [np.argmax(p)], [max(p)]
    reached = [position for position, value in enumerate(p) if value >= bar[position]]
    best = max(reached, key=lambda position: p[position], default=None)
    return ([0], [1 - max(p)]) if best is None else ([best + 1], [p[best]])


@pytest.mark.parametrize(("task", "channels", "categories", "thresholds"), TABLE.values(), ids=TABLE)
def test_every_row_of_the_table(task, channels, categories, thresholds):
    assert task.channels == channels == len(task.channel_names)
    assert task.categories == categories
    assert task.thresholds == thresholds
    assert task.n_targets == len(task.band_names) == (len(task.classes) if task.type == "multilabel" else 1)
    logits, _ = random_case(task)
    p = task.probabilities(logits)
    decided = task.decide(p)
    sure = task.confidence(p, decided)
    assert p.dtype == sure.dtype == torch.float32
    assert decided.dtype == torch.int16
    for n, row, column in np.ndindex(2, 9, 9):
        np.testing.assert_allclose(
            p[n, :, row, column], brute_probabilities(task, logits[n, :, row, column].numpy()), rtol=1e-5
        )
        categories, confidence = brute_decision(task, p[n, :, row, column].numpy())
        assert decided[n, :, row, column].tolist() == [int(one) for one in categories]
        np.testing.assert_allclose(sure[n, :, row, column], confidence, rtol=1e-6)


@pytest.mark.parametrize("task", [one for one in TASKS if one.thresholds is not None], ids=lambda task: task.type)
def test_a_threshold_is_reached_by_equality(task):
    # Multiclass: all others are lower, so that the class that just reaches its threshold decides.
    for position, threshold in enumerate(task.thresholds):
        for shift, expected in ((0.0, True), (-1e-4, False)):
            p = torch.zeros(1, task.channels, 1, 1)
            p[0, position - len(task.thresholds)] = threshold + shift
            decided = task.decide(p)
            there = decided[0, position] == 1 if task.n_targets > 1 else decided[0, 0] == position + 1
            assert bool(there) == expected


def test_one_vs_rest_takes_the_highest_of_those_that_reach():
    task = Task("multiclass", (B3, C8), head="sigmoid")
    p = torch.tensor([[0.4, 0.7], [0.4, 0.9], [0.2, 0.7]])[:, :, None, None]
    assert task.decide(p).flatten().tolist() == [1, 2, 0]
    assert task.confidence(p, task.decide(p)).flatten().tolist() == pytest.approx([0.4, 0.9, 0.3])


@every_task
def test_onehot_gives_the_desired_output_of_each_channel(task):
    _, targets = random_case(task)
    target, valid = task.onehot(targets)
    for channel, name in enumerate(task.channel_names):
        own = targets[:, task.band_names.index(name) if task.type == "multilabel" else 0]
        category = 1 if task.type == "multilabel" else task.categories.index(name)
        assert torch.equal(target[:, channel], (own == category).float())
        assert torch.equal(valid[:, channel], own != IGNORE)


@every_task
def test_onehot_takes_soft_targets(task):
    random = np.random.default_rng(0)
    shares = torch.from_numpy(random.random((2, task.channels, 9, 9)))
    unknown = torch.from_numpy(random.random(shares.shape) < 0.2)
    for missing in (float(IGNORE), float("nan")):
        target, valid = task.onehot(shares.masked_fill(unknown, missing))
        assert target.dtype == torch.float32
        known = ~unknown.any(dim=1, keepdim=True).expand_as(unknown) if task.head == "softmax" else ~unknown
        assert torch.equal(valid, known)
        torch.testing.assert_close(target, shares.float() * known)
    with pytest.raises(AssertionError):
        task.onehot(torch.zeros(2, task.channels + 1, 9, 9))


@every_task
@pytest.mark.parametrize("scale", [1, 0, 300])
def test_the_gradient_of_soft_targets_is_p_minus_target_too(task, scale):
    logits, _ = random_case(task)
    logits = (logits * scale).requires_grad_()
    shares = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0))
    if task.head == "softmax":
        shares = shares / shares.sum(dim=1, keepdim=True)
    shares[:, :, :2] = IGNORE
    terms, weight = task.nll_terms(logits, shares)
    assert terms.isfinite().all()
    (terms * weight).sum().backward()
    target, valid = task.onehot(shares)
    expected = (task.probabilities(logits.detach()) - target) * valid
    torch.testing.assert_close(logits.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_terms_of_soft_targets_equal_those_of_torch(head):
    task = Task("multiclass", (A, B, C), head=head, background=False)
    logits, _ = random_case(task)
    shares = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0))
    shares = shares / shares.sum(dim=1, keepdim=True)
    terms, weight = task.nll_terms(logits, shares)
    found = (terms * weight).sum(dim=1)
    if head == "softmax":
        expected = torch.nn.functional.cross_entropy(logits, shares, reduction="none")
        weights = torch.tensor([0.5, 1.0, 4.0])
        terms, weight = task.nll_terms(logits, shares, weights.tolist())
        weighted = torch.nn.functional.cross_entropy(logits, shares, weights, reduction="none")
        torch.testing.assert_close((terms * weight).sum(dim=1), weighted)
    else:
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits, shares, reduction="none")
        expected = each.sum(dim=1)
    torch.testing.assert_close(found, expected)


@every_task
def test_thresholds_are_stored_in_the_classes(task):
    stated = [one.threshold is not None for one in task.classes]
    assert task.thresholds_to_fit == (None if task.thresholds is None else tuple(not one for one in stated))
    values = tuple(0.1 + 0.2 * position for position in range(len(task.classes)))
    if task.thresholds is None and task.type != "binary":
        with pytest.raises(TaskError, match="takes the highest probability"):
            task.with_thresholds(values)
        return
    fitted = task.with_thresholds(values)
    assert fitted.thresholds == values
    assert fitted.thresholds_to_fit == (False,) * len(values)
    assert dataclasses.replace(fitted, classes=task.classes) == task  # nothing else changed
    if task.thresholds is not None:
        assert task.with_thresholds(task.thresholds).thresholds == task.thresholds
    with pytest.raises(TaskError, match=r"threshold 1\.0; it must lie between 0 and 1"):
        task.with_thresholds([1.0] * len(values))
    with pytest.raises(ValueError):
        task.with_thresholds([*values, 0.5])


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (("multilabel", (A, B), "softmax"), "softmax makes classes mutually exclusive, multilabel classes overlap"),
        (("multilabel", (A, B), None, True), "a multilabel task has no background category"),
        (("binary", (A,), None, False), "a binary task decides between its class and background"),
        (("binary", (A, B)), "a binary task has one class and background, found 2 classes"),
        (("multiclass", (A,), None, False), "without background needs at least two classes"),
        (("multiclass", ()), "the task has no classes"),
        (("regression", (A,)), "'regression' does not exist; use binary, multiclass or multilabel"),
        (("binary", (A,), "tanh"), "head 'tanh' does not exist"),
        (("multiclass", (A, LandCoverClass("a", 2))), "two classes have the name 'a'"),
        (("multiclass", (A, LandCoverClass("b", 1))), "two classes have the value 1"),
        (("multiclass", (LandCoverClass("a", 0),)), "both have the value 0.*background: false if there is none"),
        (
            ("multilabel", (LandCoverClass("a", 0),)),
            "set task.background_value to the code of background$",
        ),
        (("binary", (A,), None, None, 1), "class 'a' and background both have the value 1"),
        (("binary", (A,), None, None, 70_000), "background_value is 70000"),
        (("multiclass", (A, LandCoverClass(BACKGROUND, 2))), "'background' is listed as a class"),
        (("multilabel", (A, LandCoverClass(BACKGROUND, 2))), "'background' is listed as a class.* another name"),
        (("multiclass", (A, B3)), "class 'b' has a threshold, but this task takes the highest probability"),
        (("multiclass", (A, B3), "sigmoid", False), "class 'b' has a threshold"),
        (("multiclass", (A, B), None, None, 0, [["a", "b"]]), "are for overlapping classes"),
    ],
)
def test_contradictory_declarations_are_refused(declared, message):
    with pytest.raises(TaskError, match=message):
        Task(*declared)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ((" ", 1), "empty name"),
        (("a", -1), "values are integers from 0 to 65534"),
        (("a", 65_535), "values are integers from 0 to 65534"),
        (("a", 1, "red"), "write it as '#rrggbb'"),
        (("a", 1, None, 0), "class 'a' has threshold 0; it must lie between 0 and 1"),
        (("a", 1, None, 1.0), "it must lie between 0 and 1"),
    ],
)
def test_invalid_classes_are_refused(declared, message):
    with pytest.raises(TaskError, match=message):
        LandCoverClass(*declared)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([[0.3, 0.3, 0.4], [0.3, 0.4, 0.3], [0.1, 0.2, 0.7]], 1.3783888522474517),
        ([[0.1, 0.2, 0.7], [0.1, 0.7, 0.2], [0.3, 0.4, 0.3]], 0.6391075640678003),
    ],
)
def test_log_losses(p, expected):
    y = [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    logits = torch.tensor(p).log()[:, :, None, None]  # a softmax of log-probabilities is the probabilities
    targets = torch.tensor(y).argmax(dim=1)[:, None, None, None]
    task = Task("multiclass", (A, B, C), background=False)
    assert pixel(task, logits, targets).item() == pytest.approx(expected, rel=1e-6)
    # A sigmoid head takes the same labels as nine Bernoullis.
    bernoulli = Task("multiclass", (A, B, C), head="sigmoid", background=False)
    odds = torch.tensor(p).logit()[:, :, None, None]
    chance = np.where(y, p, 1 - np.array(p))
    assert pixel(bernoulli, odds, targets).item() == pytest.approx(-np.log(chance).mean(), rel=1e-6)


@every_task
@pytest.mark.parametrize("scale", [1, 0, 30])
def test_the_gradient_at_the_logits_is_p_minus_target(task, scale):
    logits, targets = random_case(task)
    logits = (logits * scale).requires_grad_()  # all zero: where a formula of pieces has its kink
    pixel(task, logits, targets).backward()
    target, valid = task.onehot(targets)
    decisions = valid.sum() / (task.channels if task.head == "softmax" else 1)
    expected = (task.probabilities(logits.detach()) - target) * valid / decisions
    torch.testing.assert_close(logits.grad, expected, rtol=1e-4, atol=1e-7)


def test_a_softmax_of_two_is_a_sigmoid_of_the_difference():
    two, one = Task("binary", (A,)), Task("binary", (A,), head="sigmoid")
    logits, targets = random_case(two)
    logits.requires_grad_()
    difference = (logits[:, 1:] - logits[:, :1]).detach().requires_grad_()
    torch.testing.assert_close(two.probabilities(logits)[:, 1:], one.probabilities(difference))
    losses = pixel(two, logits, targets), pixel(one, difference, targets)
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(logits.grad, torch.cat([-difference.grad, difference.grad], dim=1))


@every_task
def test_terms_and_gradients_are_finite_at_a_thousand(task):
    _, targets = random_case(task)
    signs = torch.from_numpy(np.random.default_rng(1).choice([-1000.0, 1000.0], (2, task.channels, 9, 9))).float()
    logits = signs.requires_grad_()
    terms, weight = task.nll_terms(logits, targets)
    assert terms.dtype == weight.dtype == torch.float32
    assert terms.isfinite().all()
    assert terms.max() >= 1000  # and not cut off at a small number's logarithm
    (terms * weight).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() == pytest.approx(1)


@every_task
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_unlabelled_pixels_change_nothing(task, poison):
    logits, targets = random_case(task)
    _, valid = task.onehot(targets)
    results = []
    for under in (0.0, poison):
        z = logits.where(valid, torch.tensor(under)).requires_grad_()
        terms, weight = task.nll_terms(z, targets, [2.0] * task.channels)
        assert terms.isfinite().all()
        (terms * weight).sum().backward()
        assert not z.grad[~valid].any()
        results.append((terms * weight, z.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@settings(max_examples=40)
@given(st.sampled_from(TASKS), st.data())
def test_codes_to_targets_to_map_values_and_back(task, data):
    known = [one.value for one in task.classes] + ([0] if task.background or task.type == "multilabel" else [])
    codes = data.draw(arrays("uint8", (3, 4), elements=st.sampled_from([*known, 200])))
    targets = task.encode(codes, ignore=[200])
    assert targets.dtype == np.int16
    assert targets.shape == (task.n_targets, 3, 4)
    assert ((targets == IGNORE) == (codes == 200)).all()
    values = task.map_values(targets, codes != 200)
    assert values.dtype == task.dtype
    if task.type == "multilabel":
        expected = [np.where(codes == 200, 255, codes == one.value) for one in task.classes]
        masks = np.stack([codes == one.value for one in task.classes]).astype("uint8")
    else:
        expected = [np.where(codes == 200, 255, codes)]
        masks = np.stack([codes == one.value for one in task.classes])
    assert np.array_equal(values, expected)
    masks = np.where(codes == 200, 255, masks).astype("uint8")
    if task.type == "multilabel" or task.background:
        assert np.array_equal(task.encode_masks(masks, ignore=[255]), targets)


@pytest.mark.parametrize("task", [Task("binary", (A,)), Task("multiclass", (A, B)), Task("multilabel", (A, B))])
def test_a_table_of_codes_replaces_the_values_of_the_task(task):
    values = {3: "a", 4: "a", 9: "background", 1: None, 255: "background"}
    codes = np.array([[3, 4, 9, 1, 255, 77]])
    targets = task.encode(codes, ignore=[77, 255], values=values)
    assert targets[0].tolist() == [[1, 1, 0, IGNORE, 0, IGNORE]]  # the table wins over ignore
    if task.type == "multilabel":
        assert targets[1].tolist() == [[0, 0, 0, IGNORE, 0, IGNORE]]
    with pytest.raises(
        LabelError, match=r"m\.tif: code 2 \(3 pixels\) is not defined, labels\.values defines 1, 3, 4, 9, 2"
    ):
        task.encode(np.array([[2, 2, 3, 2]]), values=values, source="m.tif")  # 2 is b's value, but the table counts


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_partial_labels_of_codes_cover_only_the_classes_of_their_source(kind):
    task = Task(kind, (A, B, C))
    #             a  none  not known
    codes = np.array([[1, 0, 200]])
    assert task.partial_labels(codes, ignore=[200], classes=["c", "a"]).tolist() == [
        [[1, 0, IGNORE]],
        [[IGNORE] * 3],
        [[0, 0, IGNORE]],
    ]
    with pytest.raises(LabelError, match=r"code 2 \(1 pixels\) is of a class .* cover c, a \(codes 0, 1, 7\)"):
        task.partial_labels(np.array([[1, 2]]), classes=["c", "a"])
    masks = np.array([[[1, 0, 9]], [[0, 1, 1]]])
    assert task.partial_labels_from_masks(masks, ignore=[9], classes=["c", "a"]).tolist() == [
        [[0, 1, 1]],
        [[IGNORE] * 3],
        [[1, 0, IGNORE]],
    ]
    with pytest.raises(LabelError, match=r"2 bands, but these labels cover 1 classes \(c\)"):
        task.partial_labels_from_masks(masks, ignore=[9], classes=["c"])


def brute_shares(task, fractions, rest, tolerance):
    """Shares of background and each class at one pixel by the words of `encode_fractions`; None where not known."""
    *own, background = fractions
    given = [value for value in fractions if value == value]
    total = sum(given)
    if total > 1 + tolerance:
        return "refused"
    all_own = all(value == value for value in own)
    if all_own and background != background and task.background and rest != "ignore" and total <= 1:
        return [1 - total, *own]
    if total >= 1 - tolerance:
        return [0 if value != value else value / total for value in (background, *own)]
    if all_own and rest != "ignore":
        return "refused"
    return None


some_shares = st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.695, 0.7, 1.0, float("nan")])


@settings(max_examples=300)
@given(st.sampled_from(TASKS), st.data(), st.sampled_from([None, "background", "ignore"]))
def test_fractions_become_soft_targets(task, data, rest):
    k = len(task.classes)
    fractions = np.array([data.draw(some_shares) for _ in range(k + 1)])
    if not task.background:
        fractions[-1] = np.nan
    stack = fractions[:, None, None]
    if task.type == "multilabel":
        expected = [IGNORE if value != value else value for value in fractions[:-1]]
    else:
        shares = brute_shares(task, fractions.tolist(), rest, 0.01)
        if shares == "refused":
            with pytest.raises(LabelError, match=r"f\.tif: fractions add up to .* \(1 pixels\)"):
                task.encode_fractions(stack, rest=rest, source="f.tif")
            return
        names = [BACKGROUND, *(one.name for one in task.classes)]
        expected = [IGNORE if shares is None else shares[names.index(name)] for name in task.channel_names]
    soft = task.encode_fractions(stack, rest=rest)
    assert soft.dtype == np.float32
    assert soft.shape == (task.channels, 1, 1)
    np.testing.assert_allclose(soft[:, 0, 0], expected, atol=1e-6)
    known = soft[:, 0, 0] != IGNORE
    if task.head == "softmax" and known.any():
        assert soft.sum() == pytest.approx(1, abs=1e-6)


@every_task
def test_a_fraction_of_0_is_known_and_only_ignore_is_not(task):
    soft = torch.zeros((1, task.channels, 1, 2))
    soft[:, -1, :, 1] = IGNORE
    target, valid = task.onehot(soft)
    assert (target == 0).all()
    assert valid[..., 0].all()
    assert valid[0, :, 0, 1].tolist() == [task.head == "sigmoid"] * (task.channels - 1) + [False]


def test_where_no_class_is_probable_all_are_equally_so():
    shares = TABLE["one-vs-rest without"][0].category_probabilities(torch.zeros((1, 3, 2, 2)))
    torch.testing.assert_close(shares, torch.full((1, 1, 3, 2, 2), 1 / 3))


@every_task
def test_colours_are_those_of_maps_with_one_band(task):
    if task.n_targets > 1:
        assert task.colors is None
    else:
        assert task.colors.keys() == {row["value"] for row in task.legend}


@every_task
def test_fractions_of_0_and_1_harden_to_masks(task):
    random, k = np.random.default_rng(3), len(task.classes)
    masks = random.integers(0, 2, (k, 30, 40))
    if task.type != "multilabel":
        masks = (
            random.integers(0 if task.background else 1, k + 1, (30, 40)) == np.arange(1, k + 1)[:, None, None]
        ) * 1
    unknown = random.random((1 if task.type != "multilabel" else k, 30, 40)) < 0.2
    fractions = np.where(unknown, np.nan, masks.astype(float))
    background = np.full((1, 30, 40), np.nan)
    hard = task.encode_masks(np.where(unknown, 9, masks), ignore=[9])
    hardened = task.harden(task.encode_fractions(np.concatenate([fractions, background])))
    assert hardened.dtype == np.int16
    assert np.array_equal(hardened, hard)
    assert np.array_equal(task.harden(hard), hard)
    batch = np.stack([task.encode_fractions(np.concatenate([fractions, background]))] * 2)
    assert np.array_equal(task.harden(batch), np.stack([hard] * 2))


@settings(max_examples=200)
@given(st.integers(1, 4), st.booleans(), st.data())
def test_hard_targets_are_the_largest_fraction_for_both_heads(k, background, data):
    classes = tuple(LandCoverClass(f"c{i}", i + 1) for i in range(max(k, 2 - background)))
    cuts = sorted(data.draw(st.lists(st.integers(0, 100), min_size=len(classes), max_size=len(classes))))
    own = np.diff([0, *cuts])  # in percent; the rest is background
    if not background:
        own[-1] += 100 - own.sum()
    best = max(range(len(own)), key=lambda place: own[place])
    expected = best + background if own[best] >= 100 - own.sum() or not background else 0
    for head in ("softmax", "sigmoid"):
        task = Task("multiclass", classes, head=head, background=background)
        soft = task.encode_fractions(np.array([*(own * 0.01), np.nan])[:, None, None])
        assert task.harden(soft).item() == expected
    overlapping = Task("multilabel", classes)
    soft = overlapping.encode_fractions(np.array([*(own * 0.01), np.nan])[:, None, None])
    assert overlapping.harden(soft)[:, 0, 0].tolist() == [int(percent >= 50) for percent in own]


def test_a_sum_within_the_tolerance_is_scaled_to_1():
    task = Task("multiclass", (A, B), background=False)
    stack = np.array([[0.33, 0.7], [0.66, 0.31], [np.nan] * 2])[:, None]
    soft = task.encode_fractions(stack, tolerance=0.011)
    np.testing.assert_allclose(soft[0, 0], [0.33 / 0.99, 0.7 / 1.01], rtol=1e-6)
    with pytest.raises(LabelError, match=r"add up to 1\.01 \(1 pixels\); mutually exclusive classes cover"):
        task.encode_fractions(stack, tolerance=0.005, rest="ignore")
    with pytest.raises(LabelError, match=r"add up to 0\.99 \(1 pixels\); the rest .* labels\.outside_polygons: ignore"):
        task.encode_fractions(stack[..., :1], tolerance=0.005)


def test_ignore_takes_precedence_over_background_and_classes():
    codes = np.array([[0, 1, 2]])
    assert Task("multiclass", (A, B)).encode(codes, ignore=[0, 2]).tolist() == [[[IGNORE, 1, IGNORE]]]
    overlapping = Task("multilabel", (A, B)).encode(codes, ignore=[0])
    assert overlapping.tolist() == [[[IGNORE, 1, 0]], [[IGNORE, 0, 1]]]


def test_background_has_its_declared_code():
    task = Task("multiclass", (LandCoverClass("a", 0), B), background_value=9)
    targets = task.encode(np.array([[9, 0, 2]]))
    assert targets.tolist() == [[[0, 1, 2]]]
    assert task.map_values(targets, np.ones((1, 3), bool)).tolist() == [[[9, 0, 2]]]


def test_an_undefined_code_is_an_error_that_counts_its_pixels():
    codes = np.array([[0, 1, 9], [9, 30, 9], [255, 255, 2]])
    with pytest.raises(LabelError) as caught:
        Task("multiclass", (A, B)).encode(codes, ignore=[255], source="north.tif")
    assert str(caught.value) == (
        "north.tif: code 9 (3 pixels), 30 (1 pixels) is not defined, the task defines 0, 1, 2; "
        "add it to task.classes or to data.ignore"
    )
    with pytest.raises(LabelError, match=r"code 10 \(1 pixels\), .*, 14 \(1 pixels\) and 15 more is not"):
        Task("binary", (A,)).encode(np.arange(10, 30).reshape(4, 5))
    with pytest.raises(LabelError, match="if 0 means unlabelled"):
        Task("multiclass", (A, B), background=False).encode(codes % 3)


def test_masks_of_exclusive_classes():
    #              a only  b only  none  unknown  a, b not known  none of a, b not known
    masks = np.array([[[1, 0, 0, 9, 1, 0]], [[0, 1, 0, 9, 9, 9]]])
    assert Task("multiclass", (A, B)).encode_masks(masks, ignore=[9]).tolist() == [[[1, 2, 0, -1, 1, -1]]]
    full = Task("multiclass", (A, B), background=False)
    assert full.encode_masks(masks, ignore=[9]).tolist() == [[[0, 1, -1, -1, 0, -1]]]
    overlapping = Task("multilabel", (A, B)).encode_masks(masks, ignore=[9])
    assert overlapping.tolist() == [[[1, 0, 0, -1, 1, 0]], [[0, 1, 0, -1, -1, -1]]]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.zeros((3, 2, 2)), r"x\.tif: 3 bands, but the task has 2 classes \(a, b\)"),
        (np.full((2, 2, 2), 3), r"x\.tif: code 3 \(8 pixels\) is neither 0 nor 1"),
        (np.ones((2, 2, 2)), r"x\.tif: 4 pixels are in several classes, which a multiclass task does not allow"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, message):
    with pytest.raises(LabelError, match=message):
        Task("multiclass", (A, B)).encode_masks(masks.astype("uint8"), source="x.tif")


@pytest.mark.parametrize(
    ("task", "nodata", "dtype"),
    [
        (Task("multiclass", (A, LandCoverClass("z", 254))), 255, "uint8"),
        (Task("multiclass", (A, LandCoverClass("z", 255))), 65535, "uint16"),
        (Task("multiclass", (A, LandCoverClass("z", 65_534))), 65535, "uint16"),
        (Task("binary", (A,), background_value=255), 65535, "uint16"),
        (Task("multiclass", (A, B), background=False, background_value=300), 255, "uint8"),
        (Task("multilabel", (A, LandCoverClass("z", 1000))), 255, "uint8"),
    ],
)
def test_nodata_is_never_a_class(task, nodata, dtype):
    assert (task.nodata, task.dtype) == (nodata, np.dtype(dtype))
    values = task.map_values(np.zeros((task.n_targets, 1, 2), dtype="int16"), np.array([[True, False]]))
    assert values.dtype == dtype
    assert (values[:, 0, 1] == nodata).all()
    assert (values[:, 0, 0] != nodata).all()


@every_task
def test_the_legend_names_every_value_of_the_map(task):
    rows = task.legend
    assert [row["name"] for row in rows] == [name for name, _, _ in task.scored_categories]
    assert len({row["color"] for row in rows}) == len(rows)
    assert [row.get("background", False) for row in rows] == [row["name"] == BACKGROUND for row in rows]
    own = Task(task.type, (LandCoverClass("own", 3, "#123456"),)).legend
    assert own[-1] == {"name": "own", "value": 3, "color": "#123456"}


def test_scored_categories():
    assert Task("multiclass", (A, B)).scored_categories == ((BACKGROUND, 0, 0), ("a", 0, 1), ("b", 0, 2))
    assert Task("multiclass", (A, B), background=False).scored_categories == (("a", 0, 0), ("b", 0, 1))
    assert Task("multilabel", (A, B)).scored_categories == (("a", 0, 1), ("b", 1, 1))


class Experiment(BaseModel):
    task: Task


def test_a_task_is_frozen_and_equal_by_value():
    task = Task("binary", [A])
    assert task == Task("binary", (A,), head="softmax", background=True)
    assert hash(task) == hash(Task("binary", (A,)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.head = "sigmoid"
    with pytest.raises(dataclasses.FrozenInstanceError):
        A.value = 2


@every_task
def test_a_task_in_a_recipe_dumps_only_its_declaration(task):
    for name in ("n_targets", "categories", "channel_categories", "nodata", "legend", "channels", "thresholds"):
        getattr(task, name)  # what is derived is kept in the instance
    dumped = Experiment(task=task).model_dump(mode="json")
    assert dumped["task"].keys() == {field.name for field in dataclasses.fields(Task)}
    assert Experiment.model_validate(dumped).task == task


def test_a_recipe_refuses_what_a_task_refuses():
    declared = {"type": "binary", "classes": [{"name": "a", "value": 1}]}
    with pytest.raises(ValidationError, match="softmax makes classes mutually exclusive"):
        Experiment.model_validate({"task": declared | {"type": "multilabel", "head": "softmax"}})
    with pytest.raises(ValidationError, match="activation"):
        Experiment.model_validate({"task": declared | {"activation": "relu"}})


def test_importing_the_task_does_not_import_torch():
    code = "import sys, segkit.task; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_old_name_of_a_class_warns():
    with pytest.warns(DeprecationWarning, match="LandClass is now called segkit.LandCoverClass"):
        from segkit.task import LandClass
    assert LandClass is LandCoverClass


@every_task
@settings(max_examples=15)
@given(data=st.data())
def test_categories_of_a_target_share_its_probability(task, data):
    """Their probabilities sum to one, those of softmax are unchanged, and the entropy is that of their definition."""
    logits = torch.tensor(
        data.draw(arrays(np.float32, (1, task.channels, 2, 3), elements=st.floats(-50, 50, width=32)))
    )
    probabilities = task.probabilities(logits)
    shares = task.category_probabilities(probabilities)
    assert shares.shape == (1, task.n_targets, len(task.categories), 2, 3)
    torch.testing.assert_close(shares.sum(dim=2), torch.ones(1, task.n_targets, 2, 3))
    if task.is_softmax:
        assert shares[:, 0].equal(probabilities)
    entropy = -torch.special.xlogy(shares.double(), shares.double()).sum(dim=2) / np.log(len(task.categories))
    torch.testing.assert_close(task.entropy(probabilities).double(), entropy, rtol=0, atol=1e-5)
