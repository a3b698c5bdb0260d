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

import numpy as np
from numpy.typing import ArrayLike, NDArray

_TAIL = 0.025  # probability on each side of a 95 % interval
_BISECTIONS = 60  # halvings of [0, 1]: to the precision of float64

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
        return Shares(
            self.value, np.where(possible, self.low, self.value), np.where(possible, self.high, self.value)
        )


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
    return _lower_limit(x, n), 1 - _lower_limit(n - x, n)


def _lower_limit(x: _FloatArray, n: _FloatArray) -> _FloatArray:
    """Return the lower mid-P limit by bisection, 0 without successes."""
    from scipy.special import betainc

    some, failures = np.maximum(x, np.finfo(np.float64).tiny), n - x
    has_failures = failures > 0
    low, high = np.zeros(x.shape), np.where(x > 0, np.where(n > 0, x / n, 0), 0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        more = np.where(has_failures, betainc(x + 1, np.where(has_failures, failures, 1), middle), 0)
        too_low = (betainc(some, failures + 1, middle) + more) / 2 < _TAIL
        low, high = np.where(too_low, middle, low), np.where(too_low, high, middle)
    return low


def stratum_shares(value: _FloatArray, trials: _FloatArray, not_sampled: float = 1.0) -> Shares:
    """Return shares with their limits.

    Parameters
    ----------
    value, trials
        Observed shares, and numbers of points or effective sample sizes.
    not_sampled
        Share of the stratum's pixels that was not sampled: the finite-population correction, which multiplies variances
        by it, multiplies the distances of the limits by its square root.
    """
    low, high = binomial_interval(value * trials, trials)
    factor = np.sqrt(not_sampled)
    return Shares(
        value, value - factor * np.maximum(value - low, 0), value + factor * np.maximum(high - value, 0)
    )


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
    a = o**2 - (square * do**2).sum(axis=-2)
    b = n * o - (square * correlation * dn * do).sum(axis=-2)
    c = np.maximum(n**2 - (square * dn**2).sum(axis=-2), 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        odds = c / (b + np.sqrt(np.maximum(b**2 - a * c, 0)))
    return np.where(c > 0, odds, 0.0)
