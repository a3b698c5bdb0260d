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
from segkit.losses import pixel
from segkit.task import BACKGROUND, IGNORE, LandClass, Task

A, B, C = LandClass("a", 1), LandClass("b", 2), LandClass("c", 7)
B3, C8 = LandClass("b", 2, threshold=0.3), LandClass("c", 7, threshold=0.8)

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
    """Logits (2, C, size, size) and target planes, a fifth of them not known."""
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.normal(0, 3, (2, task.channels, size, size)).astype("float32"))
    planes = random.integers(0, len(task.categories), (2, task.planes, size, size))
    planes[random.random(planes.shape) < 0.2] = IGNORE
    return logits, torch.from_numpy(planes.astype("int16"))


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
    assert task.planes == len(task.band_names) == (len(task.classes) if task.type == "multilabel" else 1)
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


@every_task
def test_a_threshold_is_reached_by_equality(task):
    if task.thresholds is None:
        return
    # Multiclass: all others are lower, so that the class that just reaches its threshold decides.
    for position, threshold in enumerate(task.thresholds):
        for shift, expected in ((0.0, True), (-1e-4, False)):
            p = torch.zeros(1, task.channels, 1, 1)
            p[0, position - len(task.thresholds)] = threshold + shift
            decided = task.decide(p)
            there = decided[0, position] == 1 if task.planes > 1 else decided[0, 0] == position + 1
            assert bool(there) == expected


def test_one_vs_rest_takes_the_highest_of_those_that_reach():
    task = Task("multiclass", (B3, C8), head="sigmoid")
    p = torch.tensor([[0.4, 0.7], [0.4, 0.9], [0.2, 0.7]])[:, :, None, None]
    assert task.decide(p).flatten().tolist() == [1, 2, 0]
    assert task.confidence(p, task.decide(p)).flatten().tolist() == pytest.approx([0.4, 0.9, 0.3])


@every_task
def test_onehot_says_what_each_channel_should(task):
    _, planes = random_case(task)
    target, valid = task.onehot(planes)
    for channel, name in enumerate(task.channel_names):
        plane = planes[:, task.band_names.index(name) if task.type == "multilabel" else 0]
        category = 1 if task.type == "multilabel" else task.categories.index(name)
        assert torch.equal(target[:, channel], (plane == category).float())
        assert torch.equal(valid[:, channel], plane != IGNORE)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (("multilabel", (A, B), "softmax"), "softmax makes classes exclude each other, multilabel classes overlap"),
        (("multilabel", (A, B), None, True), "multilabel has no background class"),
        (("binary", (A,), None, False), "a binary task decides between its class and background"),
        (("binary", (A, B)), "a binary task has one class beside background, found 2"),
        (("multiclass", (A,), None, False), "without background needs at least two classes"),
        (("multiclass", ()), "the task has no classes"),
        (("regression", (A,)), "'regression' is not known; use binary, multiclass or multilabel"),
        (("binary", (A,), "tanh"), "head 'tanh' is not known"),
        (("multiclass", (A, LandClass("a", 2))), "two classes have the name 'a'"),
        (("multiclass", (A, LandClass("b", 1))), "two classes have the value 1"),
        (("multiclass", (LandClass("a", 0),)), "which is background's.*background: false if there is none"),
        (
            ("multilabel", (LandClass("a", 0),)),
            "which is background's; set task.background_value to background's code$",
        ),
        (("binary", (A,), None, None, 1), "class 'a' has the value 1, which is background's"),
        (("binary", (A,), None, None, 70_000), "background_value is 70000"),
        (("multiclass", (A, LandClass(BACKGROUND, 2))), "'background' is not listed as a class"),
        (("multiclass", (A, B3)), "class 'b' has a threshold, but this task decides for the highest probability"),
        (("multiclass", (A, B3), "sigmoid", False), "class 'b' has a threshold"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(declared, message):
    with pytest.raises(TaskError, match=message):
        Task(*declared)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ((" ", 1), "empty name"),
        (("a", -1), "values are integers from 0 to 65534"),
        (("a", 65_535), "values are integers from 0 to 65534"),
        (("a", 1, "red"), "write it as '#rrggbb'"),
        (("a", 1, None, 0), "class 'a' has threshold 0; it lies between 0 and 1"),
        (("a", 1, None, 1.0), "it lies between 0 and 1"),
    ],
)
def test_a_class_that_cannot_be_is_refused(declared, message):
    with pytest.raises(TaskError, match=message):
        LandClass(*declared)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([[0.3, 0.3, 0.4], [0.3, 0.4, 0.3], [0.1, 0.2, 0.7]], 1.3783888522474517),
        ([[0.1, 0.2, 0.7], [0.1, 0.7, 0.2], [0.3, 0.4, 0.3]], 0.6391075640678003),
    ],
)
def test_the_log_losses_of_the_design(p, expected):
    y = [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    logits = torch.tensor(p).log()[:, :, None, None]  # a softmax of log-probabilities is the probabilities
    planes = torch.tensor(y).argmax(dim=1)[:, None, None, None]
    task = Task("multiclass", (A, B, C), background=False)
    assert pixel(task, logits, planes).item() == pytest.approx(expected, rel=1e-6)
    # A sigmoid head takes the same labels as nine Bernoullis.
    bernoulli = Task("multiclass", (A, B, C), head="sigmoid", background=False)
    odds = torch.tensor(p).logit()[:, :, None, None]
    chance = np.where(y, p, 1 - np.array(p))
    assert pixel(bernoulli, odds, planes).item() == pytest.approx(-np.log(chance).mean(), rel=1e-6)


@every_task
@pytest.mark.parametrize("scale", [1, 0, 30])
def test_the_gradient_at_the_logits_is_p_minus_target(task, scale):
    logits, planes = random_case(task)
    logits = (logits * scale).requires_grad_()  # all zero: where a formula of pieces has its kink
    pixel(task, logits, planes).backward()
    target, valid = task.onehot(planes)
    decisions = valid.sum() / (task.channels if task.head == "softmax" else 1)
    expected = (task.probabilities(logits.detach()) - target) * valid / decisions
    torch.testing.assert_close(logits.grad, expected, rtol=1e-4, atol=1e-7)


def test_a_softmax_of_two_is_a_sigmoid_of_the_difference():
    two, one = Task("binary", (A,)), Task("binary", (A,), head="sigmoid")
    logits, planes = random_case(two)
    logits.requires_grad_()
    difference = (logits[:, 1:] - logits[:, :1]).detach().requires_grad_()
    torch.testing.assert_close(two.probabilities(logits)[:, 1:], one.probabilities(difference))
    losses = pixel(two, logits, planes), pixel(one, difference, planes)
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(logits.grad, torch.cat([-difference.grad, difference.grad], dim=1))


@every_task
def test_terms_and_gradients_are_finite_at_a_thousand(task):
    _, planes = random_case(task)
    signs = torch.from_numpy(np.random.default_rng(1).choice([-1000.0, 1000.0], (2, task.channels, 9, 9))).float()
    logits = signs.requires_grad_()
    terms, weight = task.pixel_terms(logits, planes)
    assert terms.dtype == weight.dtype == torch.float32
    assert terms.isfinite().all()
    assert terms.max() >= 1000  # and not cut off at a small number's logarithm
    (terms * weight).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() == pytest.approx(1)


@every_task
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_is_not_known_changes_nothing(task, poison):
    logits, planes = random_case(task)
    _, valid = task.onehot(planes)
    results = []
    for under in (0.0, poison):
        z = logits.where(valid, torch.tensor(under)).requires_grad_()
        terms, weight = task.pixel_terms(z, planes, [2.0] * task.channels)
        assert terms.isfinite().all()
        (terms * weight).sum().backward()
        assert not z.grad[~valid].any()
        results.append((terms * weight, z.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@settings(max_examples=40)
@given(st.sampled_from(TASKS), st.data())
def test_codes_to_planes_to_map_values_and_back(task, data):
    known = [one.value for one in task.classes] + ([0] if task.background or task.type == "multilabel" else [])
    codes = data.draw(arrays("uint8", (3, 4), elements=st.sampled_from([*known, 200])))
    planes = task.encode(codes, ignore=[200])
    assert planes.dtype == np.int16
    assert planes.shape == (task.planes, 3, 4)
    assert ((planes == IGNORE) == (codes == 200)).all()
    values = task.map_values(planes, codes != 200)
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
        assert np.array_equal(task.encode_masks(masks, ignore=[255]), planes)


def test_ignore_wins_over_background_and_classes():
    codes = np.array([[0, 1, 2]])
    assert Task("multiclass", (A, B)).encode(codes, ignore=[0, 2]).tolist() == [[[IGNORE, 1, IGNORE]]]
    overlapping = Task("multilabel", (A, B)).encode(codes, ignore=[0])
    assert overlapping.tolist() == [[[IGNORE, 1, 0]], [[IGNORE, 0, 1]]]


def test_background_has_the_code_that_is_declared():
    task = Task("multiclass", (LandClass("a", 0), B), background_value=9)
    planes = task.encode(np.array([[9, 0, 2]]))
    assert planes.tolist() == [[[0, 1, 2]]]
    assert task.map_values(planes, np.ones((1, 3), bool)).tolist() == [[[9, 0, 2]]]


def test_an_unknown_code_is_named_with_its_pixels_and_never_folded():
    codes = np.array([[0, 1, 9], [9, 30, 9], [255, 255, 2]])
    with pytest.raises(LabelError) as caught:
        Task("multiclass", (A, B)).encode(codes, ignore=[255], source="north.tif")
    assert str(caught.value) == (
        "north.tif: code 9 (3 pixels), 30 (1 pixels) is not in the task, which knows 0, 1, 2; "
        "list it under task.classes or data.ignore"
    )
    with pytest.raises(LabelError, match=r"code 10 \(1 pixels\), .*, 14 \(1 pixels\) and 15 more is not"):
        Task("binary", (A,)).encode(np.arange(10, 30).reshape(4, 5))
    with pytest.raises(LabelError, match="where 0 means that nobody looked"):
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
        (np.zeros((3, 2, 2)), r"x\.tif: 3 bands, the task has 2 classes \(a, b\)"),
        (np.full((2, 2, 2), 3), r"x\.tif: code 3 \(8 pixels\) is neither 0 nor 1"),
        (np.ones((2, 2, 2)), r"x\.tif: 4 pixels lie in several classes, which exclude each other in a multiclass task"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, message):
    with pytest.raises(LabelError, match=message):
        Task("multiclass", (A, B)).encode_masks(masks.astype("uint8"), source="x.tif")


@pytest.mark.parametrize(
    ("task", "nodata", "dtype"),
    [
        (Task("multiclass", (A, LandClass("z", 254))), 255, "uint8"),
        (Task("multiclass", (A, LandClass("z", 255))), 65535, "uint16"),
        (Task("multiclass", (A, LandClass("z", 65_534))), 65535, "uint16"),
        (Task("binary", (A,), background_value=255), 65535, "uint16"),
        (Task("multiclass", (A, B), background=False, background_value=300), 255, "uint8"),
        (Task("multilabel", (A, LandClass("z", 1000))), 255, "uint8"),
    ],
)
def test_nodata_is_never_a_class(task, nodata, dtype):
    assert (task.nodata, task.dtype) == (nodata, np.dtype(dtype))
    values = task.map_values(np.zeros((task.planes, 1, 2), dtype="int16"), np.array([[True, False]]))
    assert values.dtype == dtype
    assert (values[:, 0, 1] == nodata).all()
    assert (values[:, 0, 0] != nodata).all()


@every_task
def test_the_legend_names_every_value_of_the_map(task):
    rows = task.legend
    assert [row["name"] for row in rows] == [name for name, _, _ in task.scored]
    assert len({row["color"] for row in rows}) == len(rows)
    assert [row.get("background", False) for row in rows] == [row["name"] == BACKGROUND for row in rows]
    own = Task(task.type, (LandClass("own", 3, "#123456"),)).legend
    assert own[-1] == {"name": "own", "value": 3, "color": "#123456"}


def test_what_is_scored():
    assert Task("multiclass", (A, B)).scored == ((BACKGROUND, 0, 0), ("a", 0, 1), ("b", 0, 2))
    assert Task("multiclass", (A, B), background=False).scored == (("a", 0, 0), ("b", 0, 1))
    assert Task("multilabel", (A, B)).scored == (("a", 0, 1), ("b", 1, 1))


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
def test_a_task_in_a_recipe_dumps_what_was_declared_and_no_more(task):
    for name in ("planes", "categories", "speaks_for", "nodata", "legend", "channels", "thresholds"):
        getattr(task, name)  # what is derived is kept in the instance
    dumped = Experiment(task=task).model_dump(mode="json")
    assert dumped["task"].keys() == {field.name for field in dataclasses.fields(Task)}
    assert Experiment.model_validate(dumped).task == task


def test_a_recipe_refuses_what_a_task_refuses():
    declared = {"type": "binary", "classes": [{"name": "a", "value": 1}]}
    with pytest.raises(ValidationError, match="softmax makes classes exclude each other"):
        Experiment.model_validate({"task": declared | {"type": "multilabel", "head": "softmax"}})
    with pytest.raises(ValidationError, match="activation"):
        Experiment.model_validate({"task": declared | {"activation": "relu"}})


def test_importing_the_task_does_not_import_torch():
    code = "import sys, segkit.task; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
