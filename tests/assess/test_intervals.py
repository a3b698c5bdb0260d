"""Intervals that cover: against the binomial distribution, and over every sample that a design can give."""

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binom

from segkit.assess import Stratum, estimate, estimate_points
from segkit.assess.intervals import Shares, binomial_interval, cluster_interval, ratio_interval, stratum_shares


@pytest.mark.parametrize("n", [1, 7, 50])
def test_limits_are_where_the_mid_p_tails_are_2_5_percent(n):
    x = np.arange(n + 1)
    low, high = binomial_interval(x, n)
    assert (low[0], high[-1]) == (0, 1)
    np.testing.assert_allclose((binom.sf(x, n, low) + binom.pmf(x, n, low) / 2)[1:], 0.025, rtol=1e-8)
    np.testing.assert_allclose((binom.cdf(x - 1, n, high) + binom.pmf(x, n, high) / 2)[:-1], 0.025, rtol=1e-8)
    np.testing.assert_allclose(high[0], 1 - 0.05 ** (1 / n))  # the rule of three
    between = binomial_interval(np.linspace(0, n, 40), np.full(40, float(n)))
    assert all((np.diff(each) >= 0).all() for each in between)  # effective sample sizes are not whole numbers


def of_one_stratum(x, n):
    return stratum_shares(np.array([[x / n]]), np.array([[float(n)]]))


def test_one_stratum_has_the_limits_of_its_share():
    found = estimate([[66, 5, 4], [0, 55, 8], [0, 0, 30]], [20.0, 10.0, 1.0])
    limits = binomial_interval([66, 55, 30], [75, 63, 30])
    np.testing.assert_allclose(found.intervals.users.T, limits, rtol=1e-9)
    whole = ratio_interval(np.array([[7.0]]), of_one_stratum(3, 11), of_one_stratum(8, 11))
    np.testing.assert_allclose(np.ravel(whole), np.ravel(binomial_interval(3, 11)), rtol=1e-9)


def test_the_sum_of_strata_adds_squared_distances():
    counts, hectares = np.array([[40, 10], [3, 200]]), np.array([5.0, 80.0])
    found, n = estimate(counts, hectares), counts.sum(axis=1)
    for column in (0, 1):
        share = counts[:, column] / n
        low, high = binomial_interval(counts[:, column], n)
        below, above = (np.sqrt(((hectares * (share - end)) ** 2).sum()) for end in (low, high))
        area = found.area[column]
        np.testing.assert_allclose(found.intervals.area[column], [area - below, area + above], rtol=1e-9)


def test_a_ratio_has_the_limits_at_which_the_difference_may_be_0():
    """Producer's accuracy: what is right lies in one stratum, what is omitted in the others."""
    counts, hectares = np.array([[40, 10, 0], [3, 190, 7], [1, 5, 60]]), np.array([5.0, 80.0, 30.0])
    found, n = estimate(counts, hectares), counts.sum(axis=1)
    right, (low, _) = hectares[0] * 40 / 50, binomial_interval(counts[:, 0], n)
    omitted = (hectares * counts[:, 0] / n)[1:]
    above = (hectares * (binomial_interval(counts[:, 0], n)[1] - counts[:, 0] / n))[1:]

    def excess(odds):
        below = right - hectares[0] * low[0]
        return right - odds * omitted.sum() - np.sqrt(below**2 + odds**2 * (above**2).sum())

    odds = brentq(excess, 0, right / omitted.sum())
    assert found.intervals.producers[0, 0] == pytest.approx(odds / (1 + odds), rel=1e-9)


def flat(intervals):
    return np.concatenate([intervals.area, intervals.users, intervals.producers, intervals.overall[None]])


@settings(max_examples=30)
@given(st.data())
def test_properties(data):
    size = data.draw(st.integers(2, 4))
    numbers = st.lists(st.sampled_from([0, 0, 0, 1, 2, 9, 40]), min_size=size, max_size=size)
    counts = np.array(data.draw(st.lists(numbers, min_size=size, max_size=size)))
    counts[np.arange(size), data.draw(st.permutations(range(size)))] += 1  # no stratum is empty, no class unseen
    hectares = np.array(data.draw(st.lists(st.sampled_from([1e-3, 1.0, 30.0, 4e5]), min_size=size, max_size=size)))
    found, total = estimate(counts, hectares), hectares.sum()
    for values, limits, most in (
        (found.area, found.intervals.area, total),
        (found.users, found.intervals.users, 1),
        (found.producers, found.intervals.producers, 1),
        ([found.overall], found.intervals.overall[None], 1),
    ):
        low, high = limits.T
        assert ((low <= values) & (values <= high)).all()
        assert ((low >= -1e-9 * most) & (high <= most * (1 + 1e-9))).all()
        assert (high - low > 0).all()  # though no error was seen
    order = np.array(data.draw(st.permutations(range(size))))
    other = estimate(counts[np.ix_(order, order)], 3 * hectares[order]).intervals
    np.testing.assert_allclose(other.area, 3 * found.intervals.area[order], rtol=1e-6, atol=1e-9 * total)
    np.testing.assert_allclose(other.users, found.intervals.users[order], atol=1e-7)
    np.testing.assert_allclose(other.producers, found.intervals.producers[order], atol=1e-7)
    np.testing.assert_allclose(other.overall, found.intervals.overall, atol=1e-7)
    if size == 2:  # what is one class is not the other
        np.testing.assert_allclose(found.intervals.area[0], total - found.intervals.area[1, ::-1], atol=1e-7 * total)
    census = estimate(counts, hectares, population=counts.sum(axis=1))
    np.testing.assert_allclose(np.ptp(flat(census.intervals), axis=1), 0, atol=1e-12 * max(total, 1))


def test_part_of_a_population_narrows_as_the_standard_error():
    counts, hectares = [[40, 10], [3, 200]], [5.0, 80.0]
    whole, part = estimate(counts, hectares), estimate(counts, hectares, population=[100, 406])
    np.testing.assert_allclose(np.ptp(part.intervals.area, axis=1), np.ptp(whole.intervals.area, axis=1) * np.sqrt(0.5))


def test_undefined_accuracies_have_no_interval_but_an_area_has():
    found = estimate([[0, 0, 0], [0, 8, 2], [0, 1, 7]], [0.0, 20.0, 30.0])
    assert np.isnan([*found.intervals.users[0], *found.intervals.producers[0]]).all()
    assert found.intervals.area[0, 0] == 0
    assert found.intervals.area[0, 1] > 0  # a few points do not exclude it
    assert found.summary()["per_class"]["1"]["users_low95"] is None
    one = estimate([[1, 0], [1, 9]], [5.0, 20.0]).intervals  # where a standard error is undefined
    np.testing.assert_allclose(one.users[0], [0.05, 1])


def test_a_stratum_without_the_class_on_the_map_does_not_widen_its_users_accuracy():
    """A buffer of several map classes."""
    rows = [("a", "A", "A")] * 8 + [("a", "A", "B")] * 2 + [("near", "B", "B")] * 5 + [("near", "C", "C")] * 5
    frame = pandas.DataFrame(rows, columns=["stratum", "map_class", "ref_class"])
    found = estimate_points(frame, {"a": Stratum("a", 1.0), "near": Stratum("near", 50.0)})
    np.testing.assert_allclose(found.intervals.users[0], np.ravel(binomial_interval(8, 10)))
    assert found.intervals.producers[0, 0] < 0.1  # but omissions may lie there


def exact_coverage(share, users, producers, points):
    """Return the coverage of area and producer's accuracy, and of the textbook's area, over all possible samples."""
    mapped = share * producers / users
    weights = np.array([mapped, 1 - mapped])
    rates = users, share * (1 - producers) / weights[1]
    x = np.stack(np.meshgrid(*(np.arange(n + 1) for n in points), indexing="ij"), axis=-1).reshape(-1, 2)
    chance = np.prod([binom.pmf(x[:, i], points[i], rates[i]) for i in (0, 1)], axis=0)
    x, chance = x[chance > 1e-12], chance[chance > 1e-12]
    value, points = x / points, np.array(points)
    low, high = (
        np.stack([table[number] for table, number in zip(tables, x.T, strict=True)], axis=1)
        for tables in zip(*(binomial_interval(np.arange(n + 1), n) for n in points), strict=True)
    )
    is_class = Shares(*(each[..., None] for each in (value, low, high)))
    other = Shares(*(1 - each for each in (is_class.value, is_class.high, is_class.low)))
    own = np.array([[True], [False]])
    zero = Shares(*(np.zeros_like(is_class.value),) * 3)
    hits, omitted = (
        Shares(*(np.where(here, a, b) for a, b in zip(vars(is_class).values(), vars(zero).values(), strict=True)))
        for here in (own, ~own)
    )
    covered = []
    for (below, above), truth in (
        (ratio_interval(weights[:, None], is_class, other), share),
        (ratio_interval(weights[:, None], hits, omitted), producers),
    ):
        covered.append(chance @ ((below[:, 0] <= truth) & (truth <= above[:, 0])))
    error = np.sqrt((weights**2 * value * (1 - value) / (points - 1)).sum(axis=1))
    return *covered, chance @ (np.abs((weights * value).sum(axis=1) - share) <= 1.96 * error)


@pytest.mark.parametrize(
    ("share", "points", "textbook"), [(0.3, (150, 250), 0.93), (0.02, (50, 450), 0.85), (0.1, (10, 10), 0.7)]
)
def test_coverage(share, points, textbook):
    area, producers, wald = exact_coverage(share, 0.8, 0.8, points)
    assert 0.93 < area < 0.985
    assert 0.93 < producers < 0.985
    assert (wald < textbook) == (share < 0.3)


def test_coverage_of_a_very_rare_class_is_not_too_low():
    """One point in five samples falls into the omitted area, so no interval can cover in 95 %."""
    area, producers, wald = exact_coverage(0.002, 0.8, 0.8, (50, 450))
    assert 0.95 < area < 0.99
    assert 0.95 < producers < 0.99
    assert wald < 0.2


def cluster_shares(random, clusters):
    """Draw clusters of 50 to 4,000 pixels, of which 5 % are wrong on average, more or less in each cluster."""
    whole = random.integers(50, 4000, clusters)
    return random.binomial(whole, random.beta(0.05 * 20, 0.95 * 20, clusters)), whole


def test_the_interval_of_clusters_covers_more_often_than_a_bootstrap():
    random = np.random.default_rng(0)
    covered = np.zeros(2)
    for _ in range(300):
        part, whole = cluster_shares(random, 10)
        draws = random.multinomial(10, np.full(10, 0.1), size=200)
        bootstrap = np.percentile(draws @ part / (draws @ whole), [2.5, 97.5])
        covered += [low <= 0.05 <= high for low, high in (cluster_interval(part, whole), bootstrap)]
    assert 0.85 < covered[0] / 300 < 0.98
    assert covered[0] > covered[1] + 10


def test_the_interval_of_clusters_without_an_error_has_a_width():
    low, high = cluster_interval(np.zeros(30), np.full(30, 500))
    assert low == 0
    assert 0.1 < high < 0.11  # 1 - 0.05^(1/n) with a few trials less than clusters
    assert cluster_interval([0, 0, 3], [0, 0, 9]) is None
    _, wide = cluster_interval(np.zeros(3), np.full(3, 500))
    assert wide > 0.8


def test_clusters_of_single_trials_have_the_binomial_interval():
    part = np.repeat([1, 0], [30, 970])
    np.testing.assert_allclose(cluster_interval(part, np.ones(1000)), binomial_interval(30, 1000), rtol=2e-3)
    part, whole = cluster_shares(np.random.default_rng(1), 20)
    padded = np.pad(part, (0, 5)), np.pad(whole, (0, 5))
    for other in (padded, (3 * part, 3 * whole)):
        np.testing.assert_allclose(cluster_interval(*other), cluster_interval(part, whole), rtol=1e-9)
