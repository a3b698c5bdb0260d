import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segkit.models import training_pixels
from segkit.models.training_pixels import TrainingPixels


def describe(groups):
    return TrainingPixels.from_samples(groups, ["uint16"], [(1.0, 0.0)], (10.0, 10.0))


def some_groups(seed=0, number=5, size=60, bands=3):
    random = np.random.default_rng(seed)
    return [(random.normal(500 + 20 * at, 50, (size, bands))).astype(np.float32) for at in range(number)]


@given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 40), st.integers(1, 4))
def test_the_index_is_that_of_meyer_and_pebesma(seed, number, size, bands):
    """Oracle: their definition, written out pixel by pixel."""
    groups = some_groups(seed, number, size, bands)
    found = describe(groups)
    everything = np.concatenate(groups).astype(float)
    std = everything.std(axis=0)
    std[std == 0] = 1
    scaled = everything / std
    distance = np.sqrt(((scaled[:, None] - scaled[None]) ** 2).sum(axis=2))
    mean = distance[~np.eye(len(scaled), dtype=bool)].mean() or 1.0
    assert found.mean_distance == pytest.approx(mean)
    group = np.repeat(np.arange(number), size)
    index = np.array([min(distance[at, group != group[at]]) for at in range(len(scaled))]) / mean
    lower, upper = np.percentile(index, [25, 75])
    assert found.threshold == pytest.approx(max(index[index <= upper + 1.5 * (upper - lower)]))
    pixels = np.random.default_rng(seed + 1).normal(550, 120, (20, bands)).astype(np.float32)
    nearest = [min(np.sqrt((((pixel - everything) / std) ** 2).sum(axis=1))) / mean for pixel in pixels.astype(float)]
    np.testing.assert_allclose(found.dissimilarity(pixels), nearest, rtol=1e-3, atol=1e-4)  # six digits are stored
    assert found.is_outside(pixels).mean() == pytest.approx(np.mean(np.array(nearest) > found.threshold), abs=0.05)


def test_training_pixels_are_inside_and_others_outside():
    groups = some_groups()
    found = describe(groups)
    assert found.is_outside(np.concatenate(groups)).mean() == 0
    assert found.is_outside(np.concatenate(groups) + 1000).mean() == 1


def test_units_and_a_constant_band_make_no_difference():
    groups = some_groups()
    other = [np.hstack([group / 10_000, np.full((len(group), 1), 7)]).astype(np.float32) for group in groups]
    pixels = np.concatenate(groups) * 1.1
    scaled = np.hstack([pixels / 10_000, np.full((len(pixels), 1), 7)]).astype(np.float32)
    np.testing.assert_allclose(describe(groups).dissimilarity(pixels), describe(other).dissimilarity(scaled), rtol=1e-3)


def test_it_is_bounded_and_survives_json(monkeypatch):
    monkeypatch.setattr(training_pixels, "MAX_PIXELS", 50)
    found = describe(some_groups(number=7, size=1000))
    assert len(found.pixels) == 7 * (50 // 7)
    assert TrainingPixels.from_json(json.loads(json.dumps(asdict(found)))) == found
    many = describe(some_groups(number=120, size=3))
    assert len(many.pixels) == 50
    monkeypatch.setattr(training_pixels, "MAX_VALUES", 30)
    assert len(describe(some_groups(number=2, size=1000)).pixels) == 10


@pytest.mark.parametrize("groups", [[], some_groups(number=1), [*some_groups(number=1), np.zeros((0, 3), np.float32)]])
def test_a_single_group_says_nothing_about_others(groups):
    assert describe(groups) is None
