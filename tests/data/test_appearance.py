import itertools
import shutil
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import TASKS, write_raster

from segkit.data.appearance import cut_end, cut_folds, describe_appearance, distance_to_training, order_by_appearance
from segkit.data.check import check
from segkit.data.pairing import open_samples
from segkit.data.split import spatial_split
from segkit.data.statistics import BandMoments
from segkit.errors import DataError
from segkit.recipe.schema import Recipe, SpatialSplit

SIDE = 20
AREAS = st.lists(st.integers(1, 1000), min_size=2, max_size=12)


def moments(*scenes):
    """The statistics of scenes of random pixels: (mean, standard deviation) of two bands each."""
    made = []
    for number, (mean, std) in enumerate(scenes):
        random = np.random.default_rng(number)
        one = BandMoments(2)
        one.add(random.normal(mean, std, (SIDE, SIDE, 2)).transpose(2, 0, 1), np.ones((SIDE, SIDE), bool))
        made.append(one)
    return made


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Twelve scenes in random order of brightness; j and k, which look quite different, show the same ground."""
    folder, random = tmp_path_factory.mktemp("scenes"), np.random.default_rng(3)
    for number, (name, light) in enumerate(zip("abcdefghijkl", random.permutation(12), strict=True)):
        truth = random.integers(0, 2, (SIDE, SIDE)) * 7
        pixels = random.normal(1000 + 150 * light, 20 + 5 * light, (3, SIDE, SIDE)) + 10 * truth
        left = 500_000 + 10_000 * (number if name != "k" else number - 1)
        write_raster(folder / "images" / f"{name}.tif", pixels.astype(np.uint16), left=left)
        write_raster(folder / "labels" / f"{name}.tif", truth.astype(np.uint8), left=left)
    return folder


def recipe(folder, **val):
    source = {"images": str(folder / "images"), "labels": str(folder / "labels")}
    return Recipe.from_dict(
        {"name": "scenes", "task": TASKS["binary"], "data": {"train": source, "val": {"by": "appearance"} | val}}
    )


def samples_of(folder):
    one = recipe(folder)
    return open_samples(one.data.train, one.data, one.task).samples, one.task


def validation_names(samples, task, **rule):
    train, validation = spatial_split(samples, task, SpatialSplit(by="appearance", gap=0, **rule))
    names = [{area.sample.scene.name for area in side} for side in (train, validation)]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {sample.scene.name for sample in samples}
    return frozenset(names[1])


def test_every_scene_is_in_one_fold_with_those_that_overlap_it(scenes):
    samples, task = samples_of(scenes)
    folds = [validation_names(samples, task, fold=f"{fold}/4") for fold in range(4)]
    assert sorted("".join("".join(sorted(fold)) for fold in folds)) == list("abcdefghijkl")
    assert all(("j" in fold) == ("k" in fold) for fold in folds)
    assert all(2 <= len(fold) <= 4 for fold in folds)


@pytest.mark.parametrize("alike", [False, True])
def test_the_order_of_scenes_and_the_seed_do_not_matter(scenes, tmp_path, alike):
    """Also if all scenes look the same."""
    if alike:
        shutil.copytree(scenes, tmp_path, dirs_exist_ok=True)
        for path in (tmp_path / "images").iterdir():
            with rasterio.open(path, "r+") as image:
                image.write(np.full((3, SIDE, SIDE), 9, np.uint16))
    samples, task = samples_of(tmp_path if alike else scenes)
    random = np.random.default_rng(0)
    for rule in ({"fold": "1/3"}, {"fraction": 0.2}, {"fraction": 0.6}):
        found = {validation_names(samples, task, **rule, seed=7)}
        for _ in range(3):
            found.add(validation_names([samples[at] for at in random.permutation(len(samples))], task, **rule))
        assert len(found) == 1


def test_folds_differ_more_in_appearance_than_any_random_ones(scenes):
    """Oracle: the spread of the folds' mean features, over thousands of assignments to folds of the same sizes."""
    samples, task = samples_of(scenes)
    features = np.array([[*tile.mean((1, 2)), *tile.std((1, 2))] for tile in (s.scene.read().pixels for s in samples)])
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    names = [sample.scene.name for sample in samples]
    folds = [validation_names(samples, task, fold=f"{fold}/3") for fold in range(3)]
    fold_of = np.array([next(k for k, fold in enumerate(folds) if name in fold) for name in names])

    def spread(fold_of):
        return sum(np.sum(fold_of == k) * np.sum(features[fold_of == k].mean(axis=0) ** 2) for k in range(3))

    random = np.random.default_rng(0)
    drawn = (random.permutation(fold_of) for _ in range(10_000))
    spreads = [spread(each) for each in drawn if each[names.index("j")] == each[names.index("k")]]
    assert spread(fold_of) >= max(spreads) - 1e-9
    assert spread(fold_of) > 3 * np.median(spreads)


def test_a_fraction_is_one_end_of_the_order(scenes):
    samples, task = samples_of(scenes)
    light = {sample.scene.name: sample.scene.read().pixels.mean() for sample in samples}
    for fraction in (0.1, 0.3):
        held = validation_names(samples, task, fraction=fraction) - {"j", "k"}
        assert held == set(sorted(light.keys() - {"j", "k"}, key=light.get)[: len(held)])
        assert abs(len(held) - 12 * fraction) <= 2


def test_too_few_scenes_are_refused(scenes):
    samples, task = samples_of(scenes)
    with pytest.raises(DataError, match=r"4 scenes .or groups of overlapping scenes. hold .* set data.val.by: block"):
        spatial_split(samples[:4], task, SpatialSplit(by="appearance", gap=0, fold="0/5"))


@given(areas=AREAS, data=st.data())
@settings(max_examples=60)
def test_folds_are_contiguous_and_each_cut_is_the_nearest_that_leaves_a_unit_for_every_fold(areas, data):
    folds = data.draw(st.integers(2, len(areas)))
    areas = np.array(areas, dtype=float)
    found = cut_folds(areas, folds)
    assert found[0] == 0
    assert found[-1] == folds - 1
    assert set(np.diff(found)) <= {0, 1}
    first = 0
    for fold in range(folds - 1):
        missed = {
            cut: abs(areas[:cut].sum() / areas.sum() - (fold + 1) / folds)
            for cut in range(first + 1, len(areas) - (folds - fold - 1) + 1)
        }
        first = int(np.flatnonzero(found == fold)[-1]) + 1
        assert missed[first] <= min(missed.values()) + 1e-12


@given(counts=st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=2, max_size=9), fraction=st.floats(0.05, 0.95))
@settings(max_examples=80)
def test_an_end_keeps_categories_on_both_sides_and_is_the_nearest_to_the_fraction(counts, fraction):
    counts = np.array(counts, dtype=float)
    counts[:, 0] += 1  # no unit is empty

    def cost(selected):
        sides = counts[selected].sum(axis=0), counts[~selected].sum(axis=0)
        missing = sum((one == 0) != (other == 0) for one, other in zip(*sides, strict=True))
        return missing, abs(sides[0].sum() / counts.sum() - fraction)

    found = cut_end(counts, fraction)
    firsts = [np.arange(len(counts)) < cut for cut in range(1, len(counts))]
    best = min(cost(end) for first in firsts for end in (first, ~first))
    assert cost(found) == pytest.approx(best, abs=1e-8)
    assert any((found == end).all() for first in firsts for end in (first, ~first))


def test_features_do_not_depend_on_the_units_of_a_band():
    made = moments((100, 5), (300, 9), (200, 30), (120, 8))
    scaled = [
        SimpleNamespace(number=one.number, mean=one.mean * [1, 1000] + [0, 7], std=one.std * [1, 1000]) for one in made
    ]
    np.testing.assert_allclose(describe_appearance(scaled), describe_appearance(made), atol=1e-9)


def test_a_band_without_data_or_contrast_does_not_count():
    made = moments((100, 5), (300, 9), (200, 30))
    made.append(BandMoments(2))
    features = describe_appearance(made)
    np.testing.assert_array_equal(features[3], 0)
    np.testing.assert_allclose(features[:3].std(axis=0), 1)
    flat = [SimpleNamespace(number=one.number, mean=one.mean * [1, 0] + [0, 1e4], std=one.std * [1, 0]) for one in made]
    np.testing.assert_array_equal(describe_appearance(flat)[:, [1, 3]], 0)


def test_the_distance_is_relative_to_that_of_neighbours_in_training():
    train, val = moments((100, 5), (130, 9), (200, 30), (220, 10), (90, 7)), moments((110, 6), (900, 50))
    features = describe_appearance([*train, *val])
    between = np.linalg.norm(features[:, None] - features[None], axis=2)
    usual = np.median([min(between[a, b] for b in range(5) if b != a) for a in range(5)])
    expected = [min(between[a, b] for b in range(5)) / usual for a in (5, 6)]
    np.testing.assert_allclose(distance_to_training(train, val), expected)
    assert expected[1] > 5 * expected[0]
    assert distance_to_training(train[:1], val) is None
    assert distance_to_training([train[0], train[0]], val) is None


def test_check_tells_how_far_each_validation_scene_is(scenes, monkeypatch):
    monkeypatch.setattr(import_module("segkit.data.check"), "_check_network", lambda *_: ([], []))
    distances = {}
    for rule in ({"fraction": 0.2}, {"by": "scene"}, {"by": "block"}):
        report = check(recipe(scenes, **rule))
        distances[rule.get("by")] = {
            one.name: one.appearance_distance for one in report.scenes if one.appearance_distance is not None
        }
        assert ("difference in appearance" in report.render()) == (rule.get("by") != "block")
    assert distances["block"] == {}
    assert 2 <= len(distances[None]) <= 4
    farthest = {by: max(found.values()) for by, found in distances.items() if found}
    assert farthest[None] > farthest["scene"] > 0


def test_folds_of_pairs_are_the_best_of_all_partitions():
    """On one axis: no other way to make pairs has a smaller spread within the pairs."""
    values = np.array([5.0, 1.0, 9.0, 2.0, 6.5, 8.0])
    features = np.stack([values, np.zeros(6)], axis=1)
    order = order_by_appearance(features)
    found = np.empty(6, dtype=int)
    found[order] = cut_folds(np.ones(6), 3)

    def within(fold_of):
        return sum(np.var(values[np.array(fold_of) == k]) for k in range(3))

    assert within(found) == min(within(each) for each in set(itertools.permutations([0, 0, 1, 1, 2, 2])))
