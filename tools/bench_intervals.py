"""Measure how often 95 % intervals of areas and accuracies cover the truth, for segkit's and others; print tables.

    .venv/bin/python tools/bench_intervals.py                  # a minute on one core
    .venv/bin/python tools/bench_intervals.py --draws 500 --only rare

Samples are drawn from maps whose truth is known, stratified as `segkit assess design` does it. The default was chosen
on the first table, of one stratum, and the first group of designs; the second group had no part in the choice. A cell
of a design has the coverage, in brackets how often the interval lies below the truth and above it, the mean width, and
"0" with the share of intervals that have no width.

| interval | method |
|---|---|
| wald | estimate +- 1.96 standard errors (Olofsson et al. 2014) |
| logit | the same on the logit scale |
| wilson | Wilson's, for the effective sample size n / design effect (Franco et al. 2019, J. Surv. Stat. Methodol. 7) |
| korn-graubard | Clopper and Pearson's for the effective sample size and degrees of freedom (Korn and Graubard 1998) |
| bootstrap | percentiles of the rescaled bootstrap (Rao and Wu 1988, JASA 83) |
| posterior | Jeffreys prior in each stratum, percentiles of the posterior |
| mover-... | limits in each stratum (Wilson, Jeffreys, Clopper-Pearson, mid-P) as in `segkit.assess.intervals` |
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from segkit.assess.intervals import Shares, binomial_interval, ratio_interval
from segkit.assess.sampling import allocate

Array = NDArray[Any]
Limits = tuple[Array, Array]
_Z, _REPLICATES, _CHUNK = 1.959964, 200, 250
_MAP_PIXELS = 10**8


@dataclass(frozen=True)
class Plan:
    """Strata, and what a point in them shows; the class in question has the index 0.

    Parameters
    ----------
    weights, points
        (H,): share of the area, and number of points.
    cells
        (H, K, K): probability of each map class and reference class.
    """

    weights: Array
    points: Array
    cells: Array

    def draw(self, draws: int, seed: int) -> Array:
        """Return counts, int64 (draws, H, K, K)."""
        random, (_, size, _) = np.random.default_rng(seed), self.cells.shape
        strata = zip(self.points, self.cells, strict=True)
        found = [random.multinomial(n, cell.ravel(), draws).reshape(draws, size, size) for n, cell in strata]
        return np.stack(found, axis=1)


def make_plan(
    share: float,
    users: float,
    producers: float,
    others: list[float],
    points: int,
    allocation: str = "proportional",
    buffer: float | None = None,
) -> Plan:
    """Return a map on which a class has a true share and accuracies, and the points of its strata.

    Parameters
    ----------
    others
        Relative areas of the other classes on the map, which have a user's accuracy of about 0.9.
    points, allocation
        In all, at least 50 per stratum; or of each stratum, with "each".
    buffer
        Share of the map around the class that is a stratum of its own, with 80 % of the omitted area.
    """
    mapped = share * producers / users
    areas = np.array([mapped, *(np.array(others) / sum(others) * (1 - mapped))])
    size = len(areas)
    cells = np.zeros((size, size, size))
    for index in range(size):
        omitted = share * (1 - producers) / (1 - mapped)
        others_ = [other for other in range(1, size) if other != index]
        row = cells[index, index]
        row[0], row[index] = omitted, 0.9 * (1 - omitted)
        if index == 0:
            row[:] = users, *((1 - users) * areas[1:] / areas[1:].sum())
        elif others_:
            row[others_] = 0.1 * (1 - omitted) / len(others_)
        else:
            row[index] = 1 - omitted
    if buffer is not None:
        cells, areas = _add_buffer(cells, areas, share * (1 - producers), buffer)
    if allocation == "each":
        numbers = np.full(len(areas), points)
    else:
        pixels = np.rint(areas * _MAP_PIXELS).astype(int)
        numbers = allocate(pixels, points, how=allocation, min_per_stratum=50)
    return Plan(areas, numbers, cells)


def _add_buffer(cells: Array, areas: Array, omitted: float, buffer: float) -> tuple[Array, Array]:
    """Cut the buffer out of the strata of the other classes; 80 % of the omitted area lies in it."""
    parts = areas[1:] / areas[1:].sum()
    near = np.zeros_like(cells[0])
    far = cells.copy()
    for index, part in enumerate(parts, start=1):
        row = cells[index, index] * (np.arange(len(areas)) > 0)
        for to, rate, scale in ((near, 0.8 * omitted / buffer, part), (far[index], 0.2 * omitted, 1.0)):
            rate = rate if to is near else rate / (areas[1:].sum() - buffer)
            to[index] = scale * row / row.sum() * (1 - rate)
            to[index, 0] = scale * rate
    shrunk = np.array([areas[0], *(areas[1:] - buffer * parts)])
    return np.concatenate([far, near[None]]), np.append(shrunk, buffer)


CHOSEN_ON: dict[str, Plan] = {
    "common (30 %)": make_plan(0.3, 0.8, 0.8, [5, 3], 500),
    "rare (2 %)": make_plan(0.02, 0.8, 0.8, [6, 4], 500),
    "very rare (0.2 %)": make_plan(0.002, 0.8, 0.8, [6, 4], 500),
    "few points (10 each)": make_plan(0.1, 0.8, 0.8, [6, 4], 10, "each"),
}
REPORTED_ON: dict[str, Plan] = {
    "common (25 %), 5 classes": make_plan(0.25, 0.85, 0.7, [4, 3, 2, 1], 400),
    "rare (3 %), 300 points": make_plan(0.03, 0.7, 0.9, [7, 3], 300),
    "rare (1 %), 7 classes": make_plan(0.01, 0.75, 0.6, [6, 5, 4, 3, 2, 1], 1000),
    "rare (1 %), buffer": make_plan(0.01, 0.85, 0.7, [7, 3], 500, buffer=0.05),
    "rare (5 %), equal": make_plan(0.05, 0.9, 0.75, [6, 4], 600, "equal"),
    "very rare (0.3 %)": make_plan(0.003, 0.7, 0.6, [8, 2], 1000),
    "very rare (0.2 %), buffer": make_plan(0.002, 0.85, 0.7, [7, 3], 500, buffer=0.01),
    "few points (8 each)": make_plan(0.15, 0.7, 0.85, [6, 4, 2], 8, "each"),
    "few points (15 each)": make_plan(0.05, 0.9, 0.6, [9], 15, "each"),
}


@dataclass(frozen=True)
class Quantity:
    """A ratio of totals, part / (part + rest), in some draws of a plan.

    Parameters
    ----------
    truth
        Its true value.
    weights, points
        (H,).
    part, rest
        int64 (draws, H): points of both indicators.
    part_possible, rest_possible
        bool (draws, H): whether the map allows them.
    """

    truth: float
    weights: Array
    points: Array
    part: Array
    rest: Array
    part_possible: Array
    rest_possible: Array

    @property
    def estimate(self) -> Array:
        """The ratio, NaN where it is undefined."""
        part, rest = ((self.weights * x / self.points).sum(axis=1) for x in (self.part, self.rest))
        with np.errstate(invalid="ignore"):
            return part / (part + rest)

    @property
    def error(self) -> Array:
        """The textbook's standard error (Stehman 2014)."""
        a, b = self.part / self.points, self.rest / self.points
        ratio = self.estimate[:, None]
        mean = a * (1 - ratio) - b * ratio
        squares = a * (1 - ratio) ** 2 + b * ratio**2 - mean**2
        variance = (self.weights**2 * squares / (self.points - 1)).sum(axis=1)
        return np.sqrt(np.maximum(variance, 0)) / (self.weights * (a + b)).sum(axis=1)

    @property
    def effective(self) -> tuple[Array, Array]:
        """Effective sample size, that of the points without variance; and the number of these points."""
        ratio, error, n = self.estimate, self.error, self.part.sum(axis=1) + self.rest.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(error > 1e-12, ratio * (1 - ratio) / error**2, n), n


def quantities(plan: Plan, counts: Array) -> Iterator[tuple[str, Quantity]]:
    """Yield the area and the accuracies of the class 0, and the overall accuracy."""
    n, true = plan.points, plan.weights @ plan.cells.reshape(len(plan.weights), -1)
    true = true.reshape(plan.cells.shape[1:])
    everywhere = np.ones(counts.shape[:2], dtype=bool)
    shown, not_shown = counts[:, :, 0].sum(axis=-1) > 0, counts[:, :, 1:].sum(axis=(-2, -1)) > 0
    area, right = counts[..., 0].sum(axis=-1), np.trace(counts, axis1=-2, axis2=-1)
    hits, wrong, omitted = counts[:, :, 0, 0], counts[:, :, 0, 1:].sum(axis=-1), counts[:, :, 1:, 0].sum(axis=-1)
    for name, truth, *arrays in (
        ("area", true[:, 0].sum(), area, n - area, everywhere, everywhere),
        ("user's", true[0, 0] / true[0].sum(), hits, wrong, shown, shown),
        ("producer's", true[0, 0] / true[:, 0].sum(), hits, omitted, shown, not_shown),
        ("overall", np.trace(true), right, n - right, everywhere, everywhere),
    ):
        yield name, Quantity(float(truth), plan.weights, n, *arrays)


def wald(one: Quantity) -> Limits:
    return one.estimate - _Z * one.error, one.estimate + _Z * one.error


def logit(one: Quantity) -> Limits:
    ratio, error = one.estimate, one.error
    with np.errstate(divide="ignore", invalid="ignore"):
        middle, half = special.logit(ratio), _Z * error / (ratio * (1 - ratio))
        inside = error > 1e-12
        low, high = (np.where(inside, special.expit(middle + sign * half), ratio) for sign in (-1, 1))
    return low, high


def wilson(one: Quantity) -> Limits:
    return _wilson(one.estimate, one.effective[0])


def _wilson(ratio: Array, n: Array) -> Limits:
    middle, factor = ratio + _Z**2 / 2 / n, 1 + _Z**2 / n
    half = _Z * np.sqrt(ratio * (1 - ratio) / n + _Z**2 / 4 / n**2)
    return np.maximum(middle - half, 0) / factor, np.minimum((middle + half) / factor, 1)


def korn_graubard(one: Quantity) -> Limits:
    effective, n = one.effective
    freedom = np.maximum(one.points.sum() - len(one.points), 1)
    effective = effective * (stats.t.ppf(0.975, np.maximum(n - 1, 1)) / stats.t.ppf(0.975, freedom)) ** 2
    return _clopper_pearson(one.estimate * effective, effective)


def _clopper_pearson(x: Array, n: Array) -> Limits:
    low = np.where(x > 0, stats.beta.ppf(0.025, np.maximum(x, 1e-9), n - x + 1), 0)
    return low, np.where(x < n, stats.beta.ppf(0.975, x + 1, np.maximum(n - x, 1e-9)), 1)


def _jeffreys(x: Array, n: Array) -> Limits:
    low, high = (stats.beta.ppf(tail, x + 0.5, n - x + 0.5) for tail in (0.025, 0.975))
    return np.where(x > 0, low, 0), np.where(x < n, high, 1)


def _percentiles(one: Quantity, draw: Callable[[slice], tuple[Array, Array]]) -> Limits:
    """Return percentiles of part / (part + rest), of replicates (draws, H, replicates)."""
    found = []
    for start in range(0, len(one.part), _CHUNK):
        part, rest = ((one.weights[:, None] * each).sum(axis=1) for each in draw(slice(start, start + _CHUNK)))
        with np.errstate(invalid="ignore"):
            found.append(np.nanquantile(np.nan_to_num(part / (part + rest)), [0.025, 0.975], axis=-1))
    low, high = np.concatenate(found, axis=-1)
    return low, high


def bootstrap(one: Quantity) -> Limits:
    random = np.random.default_rng(1)

    def draw(rows: slice) -> tuple[Array, Array]:
        part, rest = one.part[rows], one.rest[rows]
        shares = np.stack([part, rest, one.points - part - rest], axis=-1) / one.points[:, None]
        size = (_REPLICATES, *part.shape)
        again = random.multinomial(one.points - 1, shares, size) / (one.points - 1)[:, None]
        return np.moveaxis(again[..., 0], 0, -1), np.moveaxis(again[..., 1], 0, -1)

    return _percentiles(one, draw)


def posterior(one: Quantity) -> Limits:
    random = np.random.default_rng(1)
    has_more = (one.part + one.rest < one.points).any(axis=0)

    def draw(rows: slice) -> tuple[Array, Array]:
        part, rest = one.part[rows], one.rest[rows]
        size = (*part.shape, _REPLICATES)
        more = one.points - part - rest
        drawn = [
            random.standard_gamma(number[..., None] + 0.5, size) * possible[..., None]
            for number, possible in (
                (part, one.part_possible[rows]),
                (rest, one.rest_possible[rows]),
                (more, has_more[None]),
            )
        ]
        total = np.maximum(sum(drawn), 1e-300)
        return drawn[0] / total, drawn[1] / total

    return _percentiles(one, draw)


STRATUM_LIMITS: dict[str, Callable[[Array, Array], Limits]] = {
    "wilson": lambda x, n: _wilson(x / n, n),
    "jeffreys": _jeffreys,
    "clopper": _clopper_pearson,
    "midp": binomial_interval,
}


def mover(limits: Callable[[Array, Array], Limits]) -> Callable[[Quantity], Limits]:
    """Return the interval from limits in each stratum; these are looked up, since there are few different counts."""

    def interval(one: Quantity) -> Limits:
        tables = [limits(np.arange(n + 1.0), np.full(n + 1, float(n))) for n in one.points]
        shares = []
        for numbers, possible in ((one.part, one.part_possible), (one.rest, one.rest_possible)):
            low, high = (
                np.stack([table[side][column] for table, column in zip(tables, numbers.T, strict=True)], axis=1)
                for side in (0, 1)
            )
            values = (numbers / one.points, low, high)
            shares.append(Shares(*(each[..., None] for each in values)).where(possible[..., None]))
        low, high = ratio_interval(one.weights[:, None], *shares)
        return low[:, 0], high[:, 0]

    return interval


INTERVALS: dict[str, Callable[[Quantity], Limits]] = {
    "wald": wald,
    "logit": logit,
    "wilson": wilson,
    "korn-graubard": korn_graubard,
    "bootstrap": bootstrap,
    "posterior": posterior,
    **{f"mover-{name}": mover(limits) for name, limits in STRATUM_LIMITS.items()},
}


@dataclass(frozen=True)
class Score:
    """Coverage, shares of intervals that lie below and above the truth, mean width, and share without width."""

    coverage: float
    below: float
    above: float
    width: float
    empty: float

    def __str__(self) -> str:
        empty = f" 0: {self.empty:.0%}" if self.empty else ""
        return f"{self.coverage:.1%} ({self.below:.1%}, {self.above:.1%}) {self.width:.4f}{empty}"


def score(one: Quantity, limits: Limits) -> Score:
    """Return the score over the draws in which the quantity is defined."""
    defined = np.isfinite(one.estimate)
    low, high = (each[defined] for each in limits)
    below, above = float((high < one.truth).mean()), float((low > one.truth).mean())
    width = high - low
    return Score(1 - below - above, below, above, float(width.mean()), float((width < 1e-12).mean()))


def measure(plan: Plan, draws: int, seed: int, names: list[str]) -> dict[str, dict[str, Score]]:
    """Return {interval: {quantity: score}}."""
    found: dict[str, dict[str, Score]] = {name: {} for name in names}
    for quantity, one in quantities(plan, plan.draw(draws, seed)):
        for name in names:
            found[name][quantity] = score(one, INTERVALS[name](one))
    return found


def print_one_stratum(sizes: tuple[int, ...] = (10, 50, 200)) -> None:
    """Print the coverage of the limits in one stratum, exactly, over all shares: the lowest and the mean."""
    shares = np.linspace(0.0005, 0.9995, 1999)
    print(f"### One stratum of {', '.join(map(str, sizes))} points: lowest and mean coverage over all shares\n")
    print(f"| limits |{' |' * len(sizes)}\n|---|{'---|' * len(sizes)}")
    for name, limits in STRATUM_LIMITS.items():
        cells = []
        for n in sizes:
            x = np.arange(n + 1.0)
            low, high = (each[:, None] for each in limits(x, np.full(n + 1, float(n))))
            covers = (low <= shares) & (shares <= high)
            coverage = (stats.binom.pmf(x[:, None], n, shares) * covers).sum(axis=0)
            cells.append(f"{coverage.min():.1%}, {coverage.mean():.1%}")
        print(f"| {name} | {' | '.join(cells)} |")


def print_plan(title: str, plan: Plan, found: dict[str, dict[str, Score]]) -> None:
    total = plan.cells[:, 1:, 0].sum(axis=1) @ plan.weights
    seen = (plan.points * plan.cells[:, 1:, 0].sum(axis=1)).sum()
    points = ", ".join(map(str, plan.points))
    print(f"\n### {title}\n\npoints {points}; omitted area {total:.3%} of the map, {seen:.2f} points expected in it\n")
    print("| interval | area | user's | producer's | overall |\n|---|---|---|---|---|")
    for name, scores in found.items():
        print(f"| {name} | {' | '.join(map(str, scores.values()))} |", flush=True)


def print_summary(title: str, results: list[dict[str, dict[str, Score]]]) -> None:
    """Print how far the coverage of each interval is from 95 % in all designs of a group."""
    print(f"\n### {title}: all quantities of all designs\n")
    print("| interval | lowest | mean | highest | within 93-97 % | mean distance from 95 % |")
    print("|---|---|---|---|---|---|")
    for name in results[0]:
        values = np.array([one.coverage for found in results for one in found[name].values()])
        near = ((values >= 0.93) & (values <= 0.97)).sum()
        off = np.abs(values - 0.95).mean()
        print(
            f"| {name} | {values.min():.1%} | {values.mean():.1%} | {values.max():.1%} | {near} of {len(values)} | "
            f"{off:.1%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="designs whose name contains this")
    parser.add_argument("--intervals", nargs="*", default=list(INTERVALS), choices=list(INTERVALS))
    options = parser.parse_args()
    print_one_stratum()
    for group, plans in (("Chosen on", CHOSEN_ON), ("Reported on", REPORTED_ON)):
        results = []
        for name, plan in plans.items():
            if options.only in name:
                results.append(measure(plan, options.draws, options.seed, options.intervals))
                print_plan(f"{group}: {name}", plan, results[-1])
        if results:
            print_summary(group, results)


if __name__ == "__main__":
    main()
