import itertools
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import segmenter

from segkit.errors import ModelFileError
from segkit.models import training_scenes
from segkit.models.segmenter import load
from segkit.models.training_scenes import TrainingScenes, _choose_spread


def some_scenes(seed=0, number=6, features=4):
    return np.random.default_rng(seed).normal(500, 80, (number, features))


def brute_force(training, scenes):
    """Oracle: the definition, scene by scene."""
    std = [np.std(column) for column in training.T]

    def distance(one, other):
        return np.sqrt(sum(((a - b) / s) ** 2 for a, b, s in zip(one, other, std, strict=True) if s))

    number = len(training)
    nearest = [min(distance(training[a], training[b]) for b in range(number) if b != a) for a in range(number)]
    return [min(distance(one, other) for other in training) / np.median(nearest) for one in scenes]


@given(st.integers(0, 10_000), st.integers(2, 8), st.integers(1, 6))
def test_distances_are_those_of_the_definition(seed, number, features):
    training, scenes = some_scenes(seed, number, features), some_scenes(seed + 1, 4, features) * 1.2
    found = TrainingScenes.from_features(training).distances(scenes)
    np.testing.assert_allclose(found, brute_force(training, scenes), rtol=1e-5, atol=1e-6)


def test_a_distance_does_not_depend_on_other_scenes_or_on_units():
    training, scenes = some_scenes(), some_scenes(1, 3)
    found = TrainingScenes.from_features(training)
    together = found.distances(np.vstack([scenes, 1e6 * scenes]))
    for one, expected in zip(scenes, together, strict=False):
        assert found.distances(one[None])[0] == expected
    units, offset = np.array([1e-4, 1, 30, 1e5]), np.array([0, -70, 3, 0])
    other = TrainingScenes.from_features(training * units + offset)
    np.testing.assert_allclose(other.distances(scenes * units + offset), together[:3], rtol=1e-5)


def test_training_scenes_are_at_zero_and_their_neighbours_at_one():
    training = some_scenes(number=7)
    found = TrainingScenes.from_features(training)
    np.testing.assert_allclose(found.distances(training), 0, atol=1e-6)
    scaled = (training - training.mean(axis=0)) / training.std(axis=0)
    between = np.linalg.norm(scaled[:, None] - scaled[None], axis=2)
    nearest = np.sort(between, axis=1)[:, 1]
    assert np.median(nearest / found.usual_distance) == pytest.approx(1)


def test_a_feature_that_is_unknown_or_the_same_everywhere_does_not_count():
    training, scenes = some_scenes(), some_scenes(1, 3)
    constant = np.hstack([training, np.full((6, 1), 1e4)])
    more = np.hstack([scenes, [[0.0], [1e4], [np.nan]]])
    expected = TrainingScenes.from_features(training).distances(scenes)
    np.testing.assert_allclose(TrainingScenes.from_features(constant).distances(more), expected)
    training[2, 1] = np.nan
    filled = np.where(np.isnan(training), np.nanmean(training, axis=0), training)
    np.testing.assert_allclose(
        TrainingScenes.from_features(training).features, TrainingScenes.from_features(filled).features
    )
    assert np.isfinite(TrainingScenes.from_features(training).distances(scenes)).all()


@pytest.mark.parametrize("training", [some_scenes(number=0), some_scenes(number=1), np.ones((5, 4))])
def test_scenes_that_cannot_be_compared(training):
    assert TrainingScenes.from_features(training) is None


@given(st.integers(0, 1000), st.integers(1, 4))
def test_kept_scenes_are_near_all_others(seed, number):
    """At most twice as far as those of the best choice of as many (Gonzalez 1985)."""
    points = np.random.default_rng(seed).normal(size=(9, 2))
    between = np.linalg.norm(points[:, None] - points[None], axis=2)

    def farthest(chosen):
        return between[:, list(chosen)].min(axis=1).max()

    best = min(farthest(chosen) for chosen in itertools.combinations(range(9), number))
    found = _choose_spread(points, number)
    assert len(found) == number
    assert farthest(found) <= 2 * best + 1e-9
    np.testing.assert_array_equal(_choose_spread(points, 9), range(9))


def test_it_is_bounded(monkeypatch):
    many = some_scenes(number=200)
    everything = TrainingScenes.from_features(many)
    monkeypatch.setattr(training_scenes, "MAX_VALUES", 40)
    found = TrainingScenes.from_features(many)
    assert (len(everything.features), len(found.features)) == (200, 10)
    assert {*found.features} <= {*everything.features}
    assert replace(found, features=everything.features) == everything  # the rest is that of all scenes


def test_it_is_in_the_model_file(tmp_path):
    model, training = segmenter(tmp_path, pretrained=False), some_scenes(features=6)
    model.save(tmp_path / "old.safetensors")
    fingerprint = model.fingerprint()
    model.training_scenes = TrainingScenes.from_features(training)
    model.save(tmp_path / "new.safetensors")
    again = load(tmp_path / "new.safetensors")
    assert again.training_scenes == model.training_scenes
    assert load(tmp_path / "old.safetensors").training_scenes is None
    assert again.fingerprint() == fingerprint
    stored = json.loads(json.dumps(asdict(model.training_scenes)))
    assert TrainingScenes.from_json(stored) == model.training_scenes
    model.training_scenes = replace(model.training_scenes, mean=(1.0,))
    with pytest.raises(ModelFileError, match="header is damaged: training_scenes: rows of different lengths"):
        model.save(tmp_path / "damaged.safetensors")
