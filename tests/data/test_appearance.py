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

from segkit.data.appearance import (
    appearance_features,
    cut_end,
    cut_folds,
    describe_appearance,
    measure_appearance,
    order_by_appearance,
)
from segkit.data.areas import examine_recipe
from segkit.data.check import check
from segkit.data.examination import ClassCount, _missing_classes
from segkit.data.pairing import open_samples
from segkit.data.split import count_scene, spatial_split
from segkit.data.statistics import BandMoments
from segkit.errors import DataError
from segkit.io.scene import Scene
from segkit.models.training_scenes import TrainingScenes
from segkit.recipe.schema import Recipe
from segkit.recipe.splits import SpatialSplit

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


def test_a_scene_is_measured_as_the_split_does(scenes):
    samples, task = samples_of(scenes)
    for sample in samples[:3]:
        found, expected = measure_appearance(sample.scene), count_scene(sample, task, None).moments
        for key in ("number", "mean", "std"):
            np.testing.assert_allclose(getattr(found, key), getattr(expected, key))


def test_a_large_scene_is_measured_in_windows(tmp_path, monkeypatch):
    module, random = import_module("segkit.data.appearance"), np.random.default_rng(0)
    monkeypatch.setattr(module, "_MAX_MEASURED_PIXELS", 100)
    monkeypatch.setattr(module, "_LATTICE_SIDE_PX", 4)
    pixels = random.normal(1000, 50, (2, 90, 100)).astype(np.float32)
    scene = Scene.from_files(write_raster(tmp_path / "large.tif", pixels))
    found = measure_appearance(scene)
    np.testing.assert_array_equal(found.number, 8 * 8 * 4 * 4)
    np.testing.assert_allclose(found.mean, pixels.mean((1, 2)), atol=8)
    np.testing.assert_allclose(found.std, 50, atol=6)
    corner = np.zeros((2, 90, 100), np.float32)
    corner[:, :2, :2] = 7
    found = measure_appearance(Scene.from_files(write_raster(tmp_path / "corner.tif", corner, nodata=0)))
    np.testing.assert_array_equal(found.number, 4)
    empty = measure_appearance(Scene.from_files(write_raster(tmp_path / "empty.tif", 0 * corner, nodata=0)))
    assert not empty.number.any()


def test_features_are_unknown_where_a_band_has_no_data():
    found = appearance_features([*moments((100, 5)), BandMoments(2)])
    np.testing.assert_allclose(found[0], [100, 100, 5, 5], rtol=0.1)
    assert np.isnan(found[1]).all()


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


def test_distances_are_those_to_the_scenes_that_train(scenes):
    """Oracle: means and deviations of whole scenes; a scene that is split trains, too, and has no distance."""
    found = examine_recipe(recipe(scenes, fraction=0.3))
    features = {}
    for sample in samples_of(scenes)[0]:
        pixels = sample.scene.read().pixels
        features[sample.scene.name] = [*pixels.mean((1, 2)), *pixels.std((1, 2))]
    train, val = ([features[area.sample.scene.name] for area in areas] for areas in (found.training, found.validation))
    described = TrainingScenes.from_features(np.array(train, dtype=float))
    np.testing.assert_allclose(found.distances, described.distances(np.array(val, dtype=float)), rtol=1e-4)
    np.testing.assert_allclose(found.training_scenes.features, described.features, rtol=1e-4)
    blocks = examine_recipe(recipe(scenes, by="block", block=10, gap=0))
    assert blocks.training_scenes is not None
    trains = {area.sample.scene.name for area in blocks.training}
    for area, distance in zip(blocks.validation, blocks.distances, strict=True):
        assert (distance is None) == (area.sample.scene.name in trains)


@pytest.mark.parametrize(
    ("rule", "advice"),
    [
        ({"fraction": 0.2}, "make data.val.gap smaller, try another data.val.fraction, split at random"),
        ({"fold": "0/3"}, "of fold 0/3, so this model cannot map it; other folds train it"),
        ({"by": "scene"}, "make data.val.gap smaller, try another data.val.seed, or"),
        ({"by": "block"}, "make data.val.block or data.val.gap smaller, try another data.val.seed, or"),
    ],
)
def test_a_class_on_one_side_only_is_advised_what_changes_the_split(rule, advice):
    """By appearance nothing is drawn, so a seed changes nothing."""
    counts = ClassCount("water", 0, 100), ClassCount("water", 40, 200)
    one, all_ = ([each, ClassCount("forest", 60, 100)] for each in counts)
    split = SpatialSplit(**{"by": "appearance"} | rule)
    problems, warnings = _missing_classes(one, all_, split)
    [problem] = problems + warnings
    assert bool(warnings) == (split.fold is not None)
    assert advice in problem
    assert ("seed" in problem) == (split.by != "appearance" and split.fold is None)
    assert "validate on other scenes (data.val), or add" in _missing_classes(one, all_, None)[0][0]


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
