"""The published numbers, and simulations of a map whose truth is known."""

import json

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segkit.assess import Stratum, estimate, estimate_points, estimation, sample_size
from segkit.errors import DataError
from segkit.evaluation.metrics import disagreement

EXACT = {"rtol": 1e-9, "atol": 0}
# Olofsson et al. 2014, tables 8 and 9: deforestation, forest gain, stable forest, stable non-forest.
COUNTS = [[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]
PIXELS = np.array([200_000, 150_000, 3_200_000, 6_450_000])
HECTARES = 0.09 * PIXELS


def test_olofsson_2014():
    found = estimate(COUNTS, HECTARES)
    same = np.testing.assert_allclose
    same(found.overall, 0.9465118881118881, **EXACT)
    same(found.overall_se, 0.009430417215588913, **EXACT)
    same(found.overall_ci, 0.01848361774255427, **EXACT)
    same(found.users, [0.88, 55 / 75, 153 / 165, 313 / 325], **EXACT)
    same(found.users_ci, [0.0740409821, 0.1007570145, 0.0397453697, 0.0205335007], rtol=1e-8)
    same(found.producers, [0.7486614048, 0.8471563981, 0.9345089086, 0.9616089928], rtol=1e-9)
    same(found.producers_ci, [0.2133098530, 0.2544083607, 0.0343244227, 0.0183615355], rtol=1e-8)
    same(found.area / 0.09, [235086.2470862471, 129846.1538461538, 3175221.4452214455, 6459846.1538461538], **EXACT)
    same(found.area_se / 0.09, [34907.2244108116, 21291.5307562777, 87924.2420532233, 92299.6391850610], **EXACT)
    same(found.area, [21157.7622377622, 11686.1538461538, 285769.9300699301, 581386.1538461539], **EXACT)
    same(found.area_ci, [6157.6343860672, 3755.8260254039, 15509.8362981886, 16281.6563522448], **EXACT)
    # As printed.
    same(np.rint(found.area), [21_158, 11_686, 285_770, 581_386])
    same(np.rint(found.area_ci), [6_158, 3_756, 15_510, 16_282])
    # What unweighted counts would say.
    assert abs(found.overall - 0.9171875) > 0.02
    assert (np.abs(found.area - [18_000, 13_500, 288_000, 580_500]) > 800).all()
    same(found.mapped_area, [18_000, 13_500, 288_000, 580_500])
    quantity, allocation = disagreement(found.proportions)
    same([quantity, allocation], [0.004493240093, 0.048994871795], rtol=1e-9)
    same(quantity + allocation, 1 - found.overall, **EXACT)


def test_olofsson_2013():
    pixels = [22353, 1122543, 610228]
    found = estimate([[97, 0, 3], [3, 279, 18], [2, 1, 97]], pixels)
    same = np.testing.assert_allclose
    same(found.area, [45112.40, 1050067.27, 659944.33], rtol=1e-7)
    same(found.area_se, [10751.4045034606, 17652.0437542790, 18635.8558715839], **EXACT)
    same(found.area_ci, [21072.7528267828, 34598.0057583869, 36526.2775083044], **EXACT)
    same((found.overall, found.overall_se), (0.94441678194817, 0.011164399504990813), **EXACT)
    same(found.users, [0.97, 0.93, 0.97], **EXACT)
    same(found.producers, [0.4806308243, 0.9941886771, 0.8969258968], rtol=1e-9)
    same(disagreement(found.proportions), (0.041293794626, 0.014289423425), rtol=1e-9)
    shares = np.array([0.007, 0.295, 0.698])
    found = estimate([[127, 66, 54], [2, 322, 17], [0, 15, 540]], shares)
    same((found.overall, found.overall_se), (0.9612973752719083, 0.006053311498121688), **EXACT)
    same(found.users, [0.5141700405, 0.9442815249, 0.9729729730], rtol=1e-9)
    same(found.producers, [0.6753468084, 0.9307202679, 0.9766497594], rtol=1e-9)
    same(found.area, [0.0053293956, 0.2992983601, 0.6953722444], rtol=1e-8)
    same(found.area_se, [0.0012418372, 0.0060524231, 0.0059400444], rtol=1e-7)


def stehman():
    """Ten points in each of four strata: the map's class above the reference's."""
    shown = ["AAAAAAABBB", "ABBBBBBBBB", "BBCCCCCCBB", "DDDDDDDDDD"]
    true = ["AAAAACBABC", "ABBBBBAABB", "CCCCCDDBBA", "DDDDDDDCCB"]
    points = [
        (stratum, *pair) for stratum, *rows in zip("ABCD", shown, true, strict=True) for pair in zip(*rows, strict=True)
    ]
    return pandas.DataFrame(points, columns=["stratum", "map_class", "ref_class"])


def test_stehman_2014():
    sizes = {"A": 40_000, "B": 30_000, "C": 20_000, "D": 10_000}
    strata = {name: Stratum(name, size, size) for name, size in sizes.items()}
    found = estimate_points(stehman(), strata)
    same = np.testing.assert_allclose
    same(found.area / 100_000, [0.35, 0.34, 0.20, 0.11], **EXACT)
    same(found.area_se / 100_000, [0.08224779632, 0.07585307435, 0.06427977045, 0.03072223227], rtol=1e-9)
    same((found.overall, found.overall_se), (0.63, 0.084642188062455), **EXACT)
    same((found.users[1], found.users_se[1]), (0.574468085106383, 0.12478224724), rtol=1e-9)
    same((found.producers[1], found.producers_se[1]), (0.7941176470588235, 0.11654791352), rtol=1e-9)


@settings(max_examples=50)
@given(st.data())
def test_points_of_strata_that_are_the_classes_give_the_count_matrix_numbers(data):
    size = data.draw(st.integers(2, 4))
    matrix = np.array(
        data.draw(st.lists(st.lists(st.integers(0, 5), min_size=size, max_size=size), min_size=size, max_size=size))
    )
    matrix += 2 * np.eye(size, dtype=int)
    hectares = np.array(data.draw(st.lists(st.floats(1, 1e6), min_size=size, max_size=size)))
    rows = [(i, i, j) for i in range(size) for j in range(size) for _ in range(matrix[i, j])]
    frame = pandas.DataFrame(rows, columns=["stratum", "map_class", "ref_class"]).assign(ha=0.01)
    strata = {i: Stratum(str(i), area, map_class=i) for i, area in enumerate(hectares)}
    for options in ({}, {"weight": "ha"}):
        points, counts = estimate_points(frame, strata, **options), estimate(matrix, hectares)
        np.testing.assert_array_equal(points.counts, matrix)
        for name in ("area", "area_se", "overall", "overall_se", "users", "users_se", "producers", "producers_se"):
            np.testing.assert_allclose(getattr(points, name), getattr(counts, name), rtol=1e-6, atol=1e-9)
        for name in ("area", "overall", "users", "producers"):
            some, other = getattr(points.intervals, name), getattr(counts.intervals, name)
            np.testing.assert_allclose(some, other, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(points.proportions.sum(axis=0) * hectares.sum(), points.area, rtol=1e-9)
        assert points.proportions.trace() == pytest.approx(points.overall)


def test_a_fully_sampled_stratum_has_no_variance():
    """All of its pixels were looked at: nothing is left to vary."""
    assert estimate([[3, 1], [2, 6]], [1.0, 2.0], population=[4, 8]).overall_se == 0
    partly = estimate([[3, 1], [2, 6]], [1.0, 2.0], population=[8, 16])
    assert partly.overall_se == pytest.approx(estimate([[3, 1], [2, 6]], [1.0, 2.0]).overall_se / np.sqrt(2))


def test_one_sample_has_no_variance():
    found = estimate([[1, 0, 0], [0, 8, 2], [1, 1, 7]], [5.0, 20.0, 30.0])
    np.testing.assert_array_equal(np.isnan(found.users_se), [True, False, False])
    assert np.isnan([found.overall_se, *found.area_se, *found.producers_se]).all()
    assert np.isfinite([found.overall, *found.area, *found.users, *found.producers]).all()
    said = json.loads(json.dumps(found.summary()))
    assert said["overall_accuracy_se"] is None
    assert said["per_class"]["1"]["area_ha_ci95"] is None
    assert said["per_class"]["2"]["users_se"] == pytest.approx(np.sqrt(0.8 * 0.2 / 9))


def test_classes_without_samples_are_undefined():
    found = estimate([[0, 0, 0], [0, 8, 2], [0, 1, 7]], [0.0, 20.0, 30.0])
    assert np.isnan([found.users[0], found.producers[0], found.users_se[0], found.producers_se[0]]).all()
    assert (found.area[0], found.area_se[0]) == (0, 0)
    assert found.summary()["per_class"]["1"]["users"] is None


def test_unlabelled_points_are_counted():
    strata = {name: Stratum(name, 10.0) for name in "ABCD"}
    whole = estimate_points(stehman(), strata)
    more = pandas.concat(
        [stehman(), pandas.DataFrame({"stratum": list("ABC"), "map_class": "A", "ref_class": [None, "", " "]})]
    )
    found = estimate_points(more, strata)
    assert (found.unlabelled, whole.unlabelled) == (3, 0)
    np.testing.assert_array_equal(found.counts, whole.counts)
    np.testing.assert_array_equal(found.area_se, whole.area_se)
    assert found.summary()["unfilled"] == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda frame: frame.drop(columns="ref_class"), "no column ref_class; they have stratum, map_class"),
        (lambda frame: frame.assign(stratum="Z"), "stratum of a point is 'Z'; the strata are 'A', 'B'"),
        (lambda frame: frame[frame["stratum"] != "C"], "C: has no point with a reference class"),
        (lambda frame: frame.assign(ref_class=None), "no point has a reference class yet"),
        (lambda frame: frame.assign(map_class=None), "a point has no stratum or no map class"),
        (lambda frame: frame.assign(ref_class="forrest"), "ref_class of a point is 'forrest'; the classes are"),
    ],
)
def test_invalid_points_are_errors(change, said):
    strata = {name: Stratum(name, 10.0) for name in "ABCD"}
    with pytest.raises(DataError, match=said):
        estimate_points(change(stehman()), strata, classes={one: one for one in "ABCD"})


@pytest.mark.parametrize(
    ("counts", "areas", "said"),
    [
        ([[1, 2]], [1.0], r"counts has the shape \(1, 2\)"),
        ([[3, 1], [0, 2]], [1.0], "counts has 2 classes, mapped_area 1"),
        ([[3, -1], [0, 2]], [1.0, 1.0], "values that are not counts"),
        ([[3, 0.5], [0, 2]], [1.0, 1.0], "values that are not counts"),
        ([[3, 1], [0, 0]], [1.0, 1.0], "2: has no point with a reference class"),
        ([[3, 1], [0, 2]], [1.0, np.nan], "2: its area is nan"),
        ([[3, 1], [0, 2]], [0.0, 0.0], "the strata have no area"),
    ],
)
def test_invalid_counts_are_errors(counts, areas, said):
    with pytest.raises(DataError, match=said):
        estimate(counts, areas)
    with pytest.raises(DataError, match="A: has 4 points, but only 3 pixels"):
        estimate([[3, 1], [0, 2]], [1.0, 1.0], classes=["A", "B"], population=[3, 9])


def test_published_sample_sizes():
    shares, accuracies = PIXELS / PIXELS.sum(), [0.70, 0.60, 0.90, 0.95]
    assert sample_size(shares, accuracies, 0.01) == 641
    assert sample_size(shares, accuracies, 0.005) == 2563
    with pytest.raises(DataError, match="sum to 1"):
        sample_size([0.5, 0.4], [0.9, 0.9], 0.01)
    with pytest.raises(DataError, match="between 0 and 1"):
        sample_size([0.5, 0.5], [0.9, 90], 0.01)


def simulated(runs, *, weighted):
    """Draw stratified samples from a made map: its clearings, the forest beside them, and other forest."""
    random = np.random.default_rng(0)
    size, draws = np.array([2_000, 6_000, 40_000]), np.array([80, 120, 300])
    stratum = np.repeat([0, 1, 2], size)
    shown = (stratum == 0).astype(int)
    true = (random.random(len(shown)) < np.array([0.85, 0.12, 0.03])[stratum]).astype(int)
    # Where pixels differ, so do those of clearings.
    hectares = np.where(random.random(len(shown)) < 0.5, 0.8, 1.2 + 0.2 * true) if weighted else np.ones(len(shown))
    strata = {one: Stratum(str(one), hectares[stratum == one].sum(), size[one]) for one in range(3)}
    # Samples of one kind are interchangeable, so thousands of runs are fast with one row per kind.
    pixels = pandas.DataFrame({"stratum": stratum, "map": shown, "reference": true, "weight": hectares})
    kinds = pixels.drop_duplicates(ignore_index=True)
    kind = pixels.merge(kinds.reset_index(), how="left")["index"].to_numpy()
    starts, found = np.cumsum([0, *size[:-1]]), []
    for run in range(runs):
        parts = [start + random.choice(n, k, replace=False) for start, n, k in zip(starts, size, draws, strict=True)]
        chosen = np.concatenate(parts)
        number = np.bincount(kind[chosen], minlength=len(kinds))
        rows = kinds.assign(number=number)[number > 0]
        one = estimation._estimate(rows, list(strata.values()), ("forest", "clearing"), np.full(2, np.nan))
        if run % 100 == 0:
            by_point = estimate_points(
                pixels.iloc[chosen],
                strata,
                classes={0: "forest", 1: "clearing"},
                mapped="map",
                reference="reference",
                weight="weight" if weighted else None,
            )
            np.testing.assert_allclose([one.area, one.area_se], [by_point.area, by_point.area_se], rtol=1e-12)
        found.append((one.area[1], one.area_ci[1], *one.intervals.area[1]))
    return (*np.transpose(found), hectares[true == 1].sum(), hectares[shown == 1].sum())


@pytest.mark.parametrize(("weighted", "runs", "slack"), [(False, 1000, 0.02), (True, 300, 0.03)])
def test_95_percent_intervals_cover_the_truth_in_95_percent_of_runs(weighted, runs, slack):
    areas, half, low, high, truth, mapped = simulated(runs, weighted=weighted)
    assert ((low <= truth) & (truth <= high)).mean() == pytest.approx(0.95, abs=slack)
    assert (np.abs(areas - truth) <= half).mean() == pytest.approx(0.95, abs=slack)
    assert abs(areas.mean() - truth) < 4 * areas.std() / np.sqrt(runs)
    assert half.mean() == pytest.approx(1.96 * areas.std(), rel=0.07)
    assert abs(mapped - truth) > areas.std()  # the count of the map's pixels is biased, and stays so
