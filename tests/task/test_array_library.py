import numpy as np
import pytest
import torch
from predicting import TASKS

from segkit.task import LandCoverClass, Task
from segkit.task.array_library import (
    as_array,
    cast,
    concatenate,
    copy_of,
    entropy_terms,
    highest_channel,
    library_of,
    like,
    per_channel,
    take_channels,
    to_numpy,
    where,
    without_gradients,
)

FOUR = tuple(LandCoverClass(name, value, threshold=0.3) for value, name in enumerate("abcd", 1))
PLAIN = tuple(LandCoverClass(name, value) for value, name in enumerate("abcd", 1))
MORE = [Task("multiclass", FOUR, head="sigmoid"), Task("multiclass", PLAIN, head="sigmoid", background=False)]


def draw(channels):
    """Probabilities with ties, zeros and ones."""
    return (np.random.default_rng(0).integers(0, 9, (2, channels, 31, 17)) / 8).astype(np.float32)


@pytest.mark.parametrize("task", TASKS + MORE, ids=lambda task: f"{task.type}-{task.head}-{task.channels}")
def test_an_array_is_decided_like_a_tensor(task):
    array = draw(task.channels)
    if task.is_softmax:
        array = array / np.maximum(array.sum(axis=1, keepdims=True), 1)
    tensor = torch.tensor(array)
    decided, of_torch = task.decide(array), task.decide(tensor)
    assert decided.dtype == np.int16
    np.testing.assert_array_equal(decided, of_torch.numpy())
    confidence = task.confidence(array, decided)
    np.testing.assert_array_equal(confidence, task.confidence(tensor, of_torch).numpy())
    for compute in (task.category_probabilities, task.entropy):
        found = compute(array)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, compute(tensor).numpy(), rtol=0, atol=1e-6)  # logarithms differ in a last bit


@pytest.mark.parametrize("make", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_each_function_does_the_same_in_both(make):
    values = draw(5)
    given = make(values)
    assert library_of(given) is (torch if make is torch.tensor else np)
    tied = np.round(values, 1)
    for channels in (2, 3, 5):
        highest = to_numpy(highest_channel(make(tied[:, :channels])))
        np.testing.assert_array_equal(highest, tied[:, :channels].argmax(axis=1)[:, None])
    np.testing.assert_array_equal(
        to_numpy(take_channels(given, highest_channel(given))), values.max(axis=1, keepdims=True)
    )
    np.testing.assert_array_equal(
        to_numpy(where(given > 0.5, given, 1 - given)), np.where(values > 0.5, values, 1 - values)
    )
    np.testing.assert_array_equal(to_numpy(cast(given * 8, "uint8")), (values * 8).astype(np.uint8))
    np.testing.assert_array_equal(to_numpy(per_channel([0.1, 0.2], given))[0, :, 0, 0], np.float32([0.1, 0.2]))
    np.testing.assert_array_equal(to_numpy(concatenate([given, given])), np.concatenate([values, values], axis=1))
    terms = to_numpy(entropy_terms(given))
    assert (terms[values == 0] == 0).all()
    np.testing.assert_allclose(terms[values > 0], -values[values > 0] * np.log(values[values > 0]), rtol=1e-6)
    with without_gradients(given):
        copied = copy_of(given)
        copied *= 2
    np.testing.assert_array_equal(to_numpy(given), values)
    assert type(like(values, given)) is type(given)


def test_an_array_becomes_a_tensor_if_torch_computes():
    values = draw(1)
    assert as_array(values, by_torch=False) is values
    assert isinstance(as_array(values, by_torch=True), torch.Tensor)
