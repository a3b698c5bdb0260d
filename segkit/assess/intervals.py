"""95 % confidence intervals of areas and accuracies that also cover where a class is rare or a stratum has few points.

The textbook interval, estimate ± 1.96 standard errors, is too narrow there, and has no width if no error was seen.
These intervals have three steps:

1. The mid-P interval of the share of an indicator in each stratum (Lancaster 1961, "Significance tests in discrete
   distributions", JASA 56; Berry and Armitage 1995, "Mid-P confidence intervals: a brief review", The Statistician 44).
2. The interval of their weighted sum, from the distances of the limits to the estimates: the method of variance
   estimates recovery, MOVER (Zou, Huang and Zhang 2009, "A note on confidence interval estimation for a linear function
   of binomial proportions", Computational Statistics & Data Analysis 53).
3. The interval of the ratio of two such sums, MOVER-R (Donner and Zou 2012, "Closed-form confidence intervals for
   functions of the normal mean and standard deviation", Statistical Methods in Medical Research 21).

``tools/bench_intervals.py`` compares their coverage with that of other intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

_TAIL = 0.025  # probability on each side of a 95 % interval
_NORMAL_QUANTILE = 1.959964  # of 1 - _TAIL

_FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Intervals:
    """95 % confidence intervals: [low, high] in the last axis, in the order of the K classes.

    Parameters
    ----------
    area
        (K, 2): hectares of each class.
    overall
        (2,): overall accuracy.
    users, producers
        (K, 2): user's and producer's accuracy of each class. NaN where the accuracy is undefined.
    """

    area: _FloatArray
    overall: _FloatArray
    users: _FloatArray
    producers: _FloatArray


@dataclass(frozen=True)
class Shares:
    """Shares of the area of each stratum, with 95 % limits: three arrays (..., strata, C)."""

    value: _FloatArray
    low: _FloatArray
    high: _FloatArray

    def where(self, possible: NDArray[np.bool_]) -> Shares:
        """Return the shares with the limits equal to the value where nothing but the value is possible."""
        return Shares(self.value, np.where(possible, self.low, self.value), np.where(possible, self.high, self.value))

    def split(self, column: int) -> tuple[Shares, Shares]:
        """Return the columns before `column`, and the others."""
        parts = [np.split(each, [column], axis=-1) for each in (self.value, self.low, self.high)]
        return Shares(*(one for one, _ in parts)), Shares(*(other for _, other in parts))


def binomial_interval(successes: ArrayLike, trials: ArrayLike) -> tuple[_FloatArray, _FloatArray]:
    """Return the 95 % mid-P interval of binomial probabilities.

    The lower limit is the p for which P(X > x) + P(X = x) / 2 = 0.025, the upper one that for which
    P(X < x) + P(X = x) / 2 = 0.025. Without successes the upper limit is 1 - 0.05^(1/n), about 3/n. With
    P(X >= x) = I_p(x, n - x + 1), a regularised incomplete beta function, effective sample sizes need not be whole
    numbers.

    Parameters
    ----------
    successes, trials
        x and n, arrays that broadcast; 0 <= x <= n, n > 0.
    """
    x, n = np.broadcast_arrays(np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64))
    pairs = list(zip(x.ravel().tolist(), n.ravel().tolist(), strict=True))
    low, from_one = (
        np.array([_lower_limit(one, n) for one, n in each]).reshape(x.shape)
        for each in (pairs, [(n - one, n) for one, n in pairs])
    )
    return low, 1 - from_one


@lru_cache(maxsize=10_000)
def _lower_limit(x: float, n: float) -> float:
    """Return the lower mid-P limit; most strata of many classes have the same counts, so these are remembered."""
    from scipy.optimize import brentq
    from scipy.special import betainc

    if x <= 0:
        return 0.0

    def excess(p: float) -> float:
        more = betainc(x + 1, n - x, p) if x < n else 0.0
        return float((betainc(x, n - x + 1, p) + more) / 2 - _TAIL)

    return float(brentq(excess, 0, x / n, xtol=1e-15))


def cluster_interval(part: ArrayLike, whole: ArrayLike) -> tuple[float, float] | None:
    """Return the 95 % interval of the share sum(part) / sum(whole) over clusters that vary as wholes.

    It is the mid-P interval of as many independent trials as would give the variance between clusters, reduced for its
    degrees of freedom (Korn and Graubard 1998, "Confidence intervals for proportions with small expected number of
    positive counts estimated from survey data", Survey Methodology 24). If all clusters have the same share, each is
    one trial. Clusters whose shares are very skewed are covered in less than 95 %, as by a bootstrap, but more often.

    Parameters
    ----------
    part, whole
        A number for each cluster, 0 <= part <= whole. Clusters of nothing do not count.

    Returns
    -------
    tuple
        None with fewer than two clusters.
    """
    from scipy.special import stdtrit

    wholes = np.asarray(whole, dtype=np.float64)
    parts = np.asarray(part, dtype=np.float64)
    number = int(np.count_nonzero(wholes))
    if number < 2:
        return None
    share = float(parts.sum() / wholes.sum())
    variance = number / (number - 1) * float(((parts - share * wholes) ** 2).sum()) / float(wholes.sum()) ** 2
    trials = share * (1 - share) / variance if variance > 0 else number
    trials *= float(_NORMAL_QUANTILE / stdtrit(number - 1, 1 - _TAIL)) ** 2
    low, high = binomial_interval(share * trials, trials)
    return float(low), float(high)


def stratum_shares(value: _FloatArray, trials: _FloatArray, not_sampled: ArrayLike = 1.0) -> Shares:
    """Return shares with their limits.

    Parameters
    ----------
    value, trials
        Observed shares, and numbers of points or effective sample sizes.
    not_sampled
        Share of each stratum's pixels that was not sampled: the finite-population correction. It multiplies variances
        by this share, and the distances of the limits by its square root.
    """
    low, high = binomial_interval(value * trials, trials)
    factor = np.sqrt(not_sampled)
    return Shares(value, value - factor * np.maximum(value - low, 0), value + factor * np.maximum(high - value, 0))


def ratio_interval(weights: _FloatArray, part: Shares, rest: Shares) -> tuple[_FloatArray, _FloatArray]:
    """Return the 95 % interval of N / (N + O), with N the weighted sum of `part` over the strata and O that of `rest`.

    For an area or the overall accuracy, N + O is all of the map; for a user's accuracy, what is mapped as the class;
    for a producer's accuracy, what is the class in the reference. With the odds t = N / O, the lower limit is the
    smaller root of (N - t O)^2 = sum w^2 (dn^2 + t^2 do^2 - 2 r t dn do), where w are the strata's weights, dn the
    distance of the lower limit of `part`, do that of the upper limit of `rest`, and r the correlation of both in the
    stratum. The upper limit is the mirror image. If a single stratum counts and `rest` is what `part` is not, these
    are the limits of `part`.

    Parameters
    ----------
    weights
        (..., strata, 1): areas of the strata.
    part, rest
        Of (..., strata, C).

    Returns
    -------
    low, high
        (..., C); NaN where N + O is 0.
    """
    n, o = (weights * part.value).sum(axis=-2), (weights * rest.value).sum(axis=-2)
    correlation = _correlation(part.value, rest.value)
    down = _smaller_odds(weights, n, o, part.value - part.low, rest.high - rest.value, correlation)
    up = _smaller_odds(weights, o, n, rest.value - rest.low, part.high - part.value, correlation)
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = n / (n + o)
        low, high = np.where(np.isinf(down), 1.0, down / (1 + down)), np.where(np.isinf(up), 0.0, 1 / (1 + up))
    # Rounding must not exclude the estimate.
    return np.fmin(low, estimate) + 0 * estimate, np.fmax(high, estimate) + 0 * estimate


def _correlation(part: _FloatArray, rest: _FloatArray) -> _FloatArray:
    """Return the correlation of two shares of a multinomial sample; -1 if there is nothing else."""
    room = (1 - part) * (1 - rest)
    product = np.sqrt(part * rest / np.where(room > 0, room, 1))
    return np.where(part + rest > 1 - 1e-12, -1.0, -np.minimum(product, 1))


def _smaller_odds(
    weights: _FloatArray, n: _FloatArray, o: _FloatArray, dn: _FloatArray, do: _FloatArray, correlation: _FloatArray
) -> _FloatArray:
    """Return the lower limit of the odds n / o: the root at which n - t o is not negative; infinite if o must be 0."""
    square = weights**2
    n_square, o_square, both = ((square * each).sum(axis=-2) for each in (dn**2, do**2, correlation * dn * do))
    c = np.maximum(n**2 - n_square, 0)
    # (n o - both)^2 - (o^2 - o_square) c, without the terms that cancel.
    root = np.sqrt(np.maximum(n**2 * o_square + o**2 * n_square - 2 * n * o * both + both**2 - n_square * o_square, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        odds = c / (n * o - both + root)
    return np.where(c > 0, odds, 0.0)
