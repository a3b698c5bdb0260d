"""Estimate accuracy and area from a stratified random sample, with standard errors and confidence intervals.

Every estimate is a total over the map, or a ratio of two totals, of an indicator that is observed at the sample points:
"the reference class is forest", "map and reference agree". So one estimator covers all. If the strata are the map's
classes and no finite-population correction is made, it equals the formulas of Olofsson et al. 2014 ("Good practices for
estimating area and assessing accuracy of land change", Remote Sensing of Environment 148), otherwise those of Stehman
2014 ("Estimating area and map accuracy for stratified random sampling when the strata are different from the map
classes", International Journal of Remote Sensing 35).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas
from numpy.typing import ArrayLike, NDArray

from segkit.assess.intervals import Intervals, Shares, ratio_interval, stratum_shares
from segkit.errors import DataError
from segkit.evaluation.metrics import disagreement
from segkit.runtime.deprecation import renamed_attribute, renamed_keywords

Z95 = 1.96  # standard errors in half of a 95 % confidence interval, as in both papers

_FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """Accuracy and area with standard errors; arrays are in the order of `classes`, areas in hectares.

    Estimates that are undefined are NaN: the user's accuracy of a class without samples on the map, the producer's
    accuracy of a class without samples in the reference, and every standard error that depends on a stratum with one
    sample. `intervals` are the confidence intervals to report. The half-widths of the textbook (`area_ci`, `users_ci`,
    ...: 1.96 standard errors) are beside them; they cover too little if few points decide.

    Parameters
    ----------
    classes
        K names.
    counts
        int64 (K, K): samples by map class (rows) and reference class (columns).
    proportions
        (K, K): estimated shares of the total area, rows and columns as in `counts`.
    area, area_se
        Estimated area of each reference class, and its standard error.
    mapped_area
        Area of each class on the map, a biased estimate. NaN if unknown.
    overall, overall_se
        Overall accuracy.
    users, users_se
        User's accuracy: share of the mapped area of a class that is correct. 1 - commission error.
    producers, producers_se
        Producer's accuracy: share of the reference area of a class that is mapped as this class. 1 - omission error.
    intervals
        95 % confidence intervals of area, overall, users and producers, see `segkit.assess.intervals`.
    unlabelled
        Number of points without a reference class; they are not used.
    """

    classes: tuple[str, ...]
    counts: NDArray[np.int64]
    proportions: _FloatArray
    area: _FloatArray
    area_se: _FloatArray
    mapped_area: _FloatArray
    overall: float
    overall_se: float
    users: _FloatArray
    users_se: _FloatArray
    producers: _FloatArray
    producers_se: _FloatArray
    intervals: Intervals
    unlabelled: int = 0

    unfilled = renamed_attribute("unfilled", "unlabelled")

    @property
    def area_ci(self) -> _FloatArray:
        """Half-width of the textbook 95 % interval of each area: area - area_ci to area + area_ci."""
        return Z95 * self.area_se

    @property
    def overall_ci(self) -> float:
        """Half-width of the textbook 95 % interval."""
        return Z95 * self.overall_se

    @property
    def users_ci(self) -> _FloatArray:
        """Half-widths of the textbook 95 % intervals."""
        return Z95 * self.users_se

    @property
    def producers_ci(self) -> _FloatArray:
        """Half-widths of the textbook 95 % intervals."""
        return Z95 * self.producers_se

    def table(self) -> pandas.DataFrame:
        """Return one row per class: areas and accuracies, each with standard error and 95 % intervals.

        ``_low95`` and ``_high95`` are the limits of `intervals`, ``_ci95`` is the half-width of the textbook interval.
        """
        columns: dict[str, Any] = {"class": self.classes, "mapped_ha": self.mapped_area}
        for name, value, error, interval in (
            ("area_ha", self.area, self.area_se, self.intervals.area),
            ("users", self.users, self.users_se, self.intervals.users),
            ("producers", self.producers, self.producers_se, self.intervals.producers),
        ):
            columns |= {name: value, f"{name}_se": error, f"{name}_ci95": Z95 * error}
            columns |= {f"{name}_low95": interval[:, 0], f"{name}_high95": interval[:, 1]}
        return pandas.DataFrame(columns | {"map_samples": self.counts.sum(1), "ref_samples": self.counts.sum(0)})

    def summary(self) -> dict[str, Any]:
        """Return all estimates as JSON values; undefined ones are None."""
        quantity, allocation = disagreement(self.proportions)
        rows = self.table().astype(object)
        return {
            "overall_accuracy": _none_if_undefined(self.overall),
            "overall_accuracy_se": _none_if_undefined(self.overall_se),
            "overall_accuracy_ci95": _none_if_undefined(self.overall_ci),
            "overall_accuracy_low95": _none_if_undefined(float(self.intervals.overall[0])),
            "overall_accuracy_high95": _none_if_undefined(float(self.intervals.overall[1])),
            "quantity_disagreement": _none_if_undefined(quantity),
            "allocation_disagreement": _none_if_undefined(allocation),
            "samples": int(self.counts.sum()),
            "unfilled": self.unlabelled,
            "per_class": {
                row.pop("class"): {key: _none_if_undefined(value) for key, value in row.items()}
                for row in rows.to_dict("records")
            },
            "counts": {"labels": list(self.classes), "matrix": self.counts.tolist()},
            "proportions": [[_none_if_undefined(share) for share in row] for row in self.proportions.tolist()],
        }


def estimate(
    counts: ArrayLike,
    mapped_area: ArrayLike,
    *,
    classes: Sequence[str] | None = None,
    population: ArrayLike | None = None,
) -> Estimate:
    """Estimate from a count matrix of a sample that was stratified by the map's classes (Olofsson et al. 2014).

    Parameters
    ----------
    counts
        (K, K): numbers of samples; rows are map classes, columns reference classes.
    mapped_area
        (K,): hectares of each class on the map.
    classes
        K names; by default "1" to "K".
    population
        (K,): pixels of each class on the map, to apply the finite-population correction to the variances. It matters
        if a large part of a stratum was sampled. The papers' published numbers are without it.

    Raises
    ------
    DataError
        The matrix is not square or holds values that are not counts, an area is not a positive number, or a class on
        the map has no sample.
    """
    matrix, mapped = np.asarray(counts, dtype=np.float64), np.asarray(mapped_area, dtype=np.float64)
    size = len(matrix)
    if matrix.shape != (size, size) or not size:
        raise DataError(f"counts has the shape {matrix.shape}; give a square matrix, a row and a column per class")
    names = tuple(map(str, range(1, size + 1))) if classes is None else tuple(classes)
    if mapped.shape != (size,) or len(names) != size:
        raise DataError(f"counts has {size} classes, mapped_area {mapped.size} and classes {len(names)}; give one each")
    if not (np.isfinite(matrix) & (matrix >= 0) & (matrix == np.rint(matrix))).all():
        raise DataError("counts holds values that are not counts; give the number of samples of each pair of classes")
    rows, columns = np.nonzero(matrix)
    number = matrix[rows, columns].astype(np.int64)
    sample = pandas.DataFrame({"stratum": rows, "map": rows, "reference": columns, "number": number, "weight": 1.0})
    pixels = [None] * size if population is None else np.asarray(population, dtype=np.float64).tolist()
    if len(pixels) != size:
        raise DataError(f"population holds {len(pixels)} numbers; give the pixels of each of the {size} classes")
    strata = [Stratum(*row) for row in zip(names, mapped.tolist(), pixels, range(size), strict=True)]
    return _estimate(sample, strata, names, mapped)


@dataclass(frozen=True)
class Stratum:
    """A part of the map from which a simple random sample was drawn.

    Parameters
    ----------
    name
        Used in messages.
    hectares
        Area.
    pixels
        Number of pixels, to apply the finite-population correction to variances; None for no correction.
    map_class
        The map class of all pixels of the stratum; None if there are several.
    """

    name: str
    hectares: float
    pixels: float | None = None
    map_class: Hashable = None


def estimate_points(
    frame: pandas.DataFrame,
    strata: Mapping[Any, Stratum],
    *,
    classes: Mapping[Any, str] | None = None,
    mapped_area: Mapping[Any, float] | None = None,
    stratum: str = "stratum",
    mapped: str = "map_class",
    reference: str = "ref_class",
    weight: str | None = None,
) -> Estimate:
    """Estimate from sample points; strata need not be the map's classes (Stehman 2014).

    Parameters
    ----------
    frame
        One row per point. Points without a reference class are not used; the result holds their number.
    strata
        {value of the column `stratum`: the stratum}.
    classes
        {value of the class columns: name}, in the order of the result; by default the sorted values.
    mapped_area
        {class: hectares on the map}, to show beside the estimates.
    stratum, mapped, reference
        Columns of the frame.
    weight
        Column with the area of the point's pixel, in any unit; by default all pixels have the same area. This is not
        true in a geographic CRS.

    Raises
    ------
    DataError
        A column is missing, a class or a stratum is unknown, or a stratum has no point with a reference class.
    """
    needed = [stratum, mapped, reference, *([] if weight is None else [weight])]
    if missing := [column for column in needed if column not in frame]:
        raise DataError(f"the points have no column {missing[0]}; they have {', '.join(map(str, frame.columns))}")
    unlabelled = frame[reference].isna() | (frame[reference].astype(str).str.strip() == "")
    points = frame[~unlabelled]
    if points[[stratum, mapped]].isna().any(axis=None):
        raise DataError("a point has no stratum or no map class; give every point both")
    if classes is None:
        values = {*points[mapped], *points[reference]}
        classes = {value: str(value) for value in sorted(values, key=lambda value: (str(type(value)), value))}
    index_of = {value: index for index, value in enumerate(classes)}
    for column in (mapped, reference):
        if unknown := {*points[column]} - index_of.keys():
            raise DataError(f"{column} of a point is {unknown.pop()!r}; the classes are {_join_names(classes)}")
    if unknown := {*points[stratum]} - strata.keys():
        raise DataError(f"{stratum} of a point is {unknown.pop()!r}; the strata are {_join_names(strata)}")
    sample = pandas.DataFrame(
        {
            "stratum": points[stratum].map({key: index for index, key in enumerate(strata)}).to_numpy(),
            "map": points[mapped].map(index_of).to_numpy(),
            "reference": points[reference].map(index_of).to_numpy(),
            "number": 1,
            "weight": 1.0 if weight is None else points[weight].to_numpy(dtype=np.float64),
        }
    )
    mapped_hectares = np.array([(mapped_area or {}).get(value, np.nan) for value in classes], dtype=np.float64)
    indexed = [replace(one, map_class=index_of.get(one.map_class)) for one in strata.values()]
    return _estimate(sample, indexed, tuple(classes.values()), mapped_hectares, unlabelled=int(unlabelled.sum()))


@renamed_keywords(error="target_se")
def sample_size(shares: ArrayLike, accuracies: ArrayLike, target_se: float) -> int:
    """Return the sample size for a target standard error of the overall accuracy (Olofsson et al. 2014, equation 13).

    Parameters
    ----------
    shares
        (H,): share of the area of each stratum.
    accuracies
        (H,): expected user's accuracy of each stratum.
    target_se
        Target standard error of the overall accuracy.

    Raises
    ------
    DataError
        Shares do not sum to 1, or an accuracy or the standard error is not between 0 and 1.
    """
    share, accuracy = np.asarray(shares, dtype=np.float64), np.asarray(accuracies, dtype=np.float64)
    if share.shape != accuracy.shape or not np.isclose(share.sum(), 1) or not (share >= 0).all():
        raise DataError("give each stratum's share of the area and its expected accuracy; the shares must sum to 1")
    if not ((accuracy >= 0) & (accuracy <= 1)).all() or not 0 < target_se < 1:
        raise DataError("expected accuracies and the target standard error must be between 0 and 1")
    exact = float((share * np.sqrt(accuracy * (1 - accuracy))).sum() / target_se) ** 2
    return int(np.ceil(exact - 1e-9))


def _estimate(
    sample: pandas.DataFrame,
    strata: Sequence[Stratum],
    names: tuple[str, ...],
    mapped_area: _FloatArray,
    unlabelled: int = 0,
) -> Estimate:
    """Estimate from samples; a row stands for `number` equal ones, whose pixels have an area proportional to `weight`.

    Strata and classes are indices from 0, also the `map_class` of the strata.
    """
    totals = _Totals(sample, strata)
    size = len(names)
    mapped, true = (sample[column].to_numpy()[:, None] == np.arange(size) for column in ("map", "reference"))
    agreed, everywhere = mapped & true, np.ones_like(mapped)
    correct = agreed.any(axis=1, keepdims=True)
    area, area_se = totals(true)
    overall, overall_se = totals.ratio(correct, everywhere[:, :1])
    # A stratum with one map class has no variance in the user's accuracy of the other classes.
    on_map = [[stratum.map_class in (None, index) for index in range(size)] for stratum in strata]
    users, users_se = totals.ratio(agreed, mapped, varies=np.array(on_map))
    producers, producers_se = totals.ratio(agreed, true)
    intervals = Intervals(
        totals.hectares * totals.interval(true, ~true, everywhere, everywhere),
        totals.interval(correct, ~correct, everywhere[:, :1], everywhere[:, :1])[0],
        totals.interval(agreed, mapped & ~true, mapped, mapped),
        totals.interval(agreed, true & ~mapped, mapped, ~mapped),
    )
    pairs = (mapped[:, :, None] & true[:, None, :]).reshape(len(sample), -1)
    counts = sample["number"].to_numpy() @ pairs
    return Estimate(
        names,
        counts.reshape(size, size).astype(np.int64),
        totals(pairs)[0].reshape(size, size) / totals.hectares,
        area, area_se, mapped_area,
        float(overall[0]), float(overall_se[0]),
        users, users_se, producers, producers_se,
        intervals, unlabelled,
    )  # fmt: skip


@dataclass(frozen=True)
class _StratumSample:
    """The samples of one stratum.

    Parameters
    ----------
    index
        Of the stratum.
    hectares
        Area of the stratum.
    not_sampled
        Share of the pixels that was not sampled, the finite-population correction; 1 without correction.
    rows
        int64 (N,): rows of the sample that lie in the stratum.
    weights
        (N,): area of the rows' pixels, relative to the mean.
    """

    index: int
    hectares: float
    not_sampled: float
    rows: NDArray[np.int64]
    weights: _FloatArray


class _Totals:
    """Totals over the map of values that are observed at the sample points, and their standard errors.

    The total of a stratum is its area times the mean, weighted by the areas of the pixels. If these differ, it is a
    ratio estimate, with the variance of the residuals (Cochran 1977, "Sampling Techniques", section 6.4).
    """

    def __init__(self, sample: pandas.DataFrame, strata: Sequence[Stratum]) -> None:
        self._number = sample["number"].to_numpy(dtype=np.float64)
        stratum, weight = sample["stratum"].to_numpy(), sample["weight"].to_numpy()
        if not (np.isfinite(weight) & (weight > 0)).all():
            raise DataError("the pixel area of a point is not a positive number")
        if not self._number.sum():
            raise DataError("no point has a reference class yet; interpret the points, and fill in their class")
        self._strata: list[_StratumSample] = []
        for index, one in enumerate(strata):
            rows = np.flatnonzero(stratum == index)
            number = self._number[rows].sum()
            if not (np.isfinite(one.hectares) and one.hectares >= 0):
                raise DataError(f"{one.name}: its area is {one.hectares}, not a number of hectares")
            if not number:
                if one.hectares == 0:
                    continue
                raise DataError(
                    f"{one.name}: has no point with a reference class; every stratum needs two; interpret more points, "
                    "or merge it with another stratum"
                )
            if one.pixels is not None and number > one.pixels:
                raise DataError(f"{one.name}: has {number:.0f} points, but only {one.pixels:.0f} pixels")
            not_sampled = 1.0 if one.pixels is None else 1 - number / one.pixels
            relative = weight[rows] / np.average(weight[rows], weights=self._number[rows])
            self._strata.append(_StratumSample(index, one.hectares, not_sampled, rows, relative))
        self.hectares = sum(one.hectares for one in strata)
        if not self.hectares:
            raise DataError("the strata have no area")

    def __call__(
        self, values: NDArray[Any], varies: NDArray[np.bool_] | None = None
    ) -> tuple[_FloatArray, _FloatArray]:
        """Return total and standard error of each column of values (rows, C).

        `varies` (strata, C) is False for strata in which the values are 0 by definition; these add no variance, even if
        they have a single sample.
        """
        total, variance = np.zeros(values.shape[1]), np.zeros(values.shape[1])
        for stratum in self._strata:
            number, observed = self._number[stratum.rows], values[stratum.rows].astype(np.float64)
            n = number.sum()
            mean = (number * stratum.weights) @ observed / n
            total += stratum.hectares * mean
            if n < 2:
                stratum_variance = np.full(values.shape[1], np.nan)
            else:
                squares = number @ (stratum.weights[:, None] * (observed - mean)) ** 2
                stratum_variance = stratum.hectares**2 * stratum.not_sampled * squares / (n - 1) / n
            variance += stratum_variance if varies is None else np.where(varies[stratum.index], stratum_variance, 0.0)
        return total, np.sqrt(variance)

    def ratio(
        self, numerator: NDArray[Any], denominator: NDArray[Any], varies: NDArray[np.bool_] | None = None
    ) -> tuple[_FloatArray, _FloatArray]:
        """Return the ratio of two totals and its standard error, column by column; NaN if the denominator is 0."""
        total, _ = self(denominator)
        total = np.where(total > 0, total, np.nan)
        ratio = self(numerator)[0] / total
        residual = numerator - denominator * np.nan_to_num(ratio)
        return ratio, self(residual, varies)[1] / total

    def interval(
        self,
        part: NDArray[np.bool_],
        rest: NDArray[np.bool_],
        part_on_map: NDArray[np.bool_],
        rest_on_map: NDArray[np.bool_],
    ) -> _FloatArray:
        """Return the 95 % intervals (C, 2) of part / (part + rest), two totals that exclude each other.

        The columns of the arrays (rows, C) are indicators. Where the map excludes an indicator, it is 0 by definition:
        in a stratum without a point at which `part_on_map` or `rest_on_map` is true.
        """
        weights = np.array([[stratum.hectares] for stratum in self._strata])
        shares = self._shares(np.hstack([part, rest]), np.hstack([part_on_map, rest_on_map]))
        return np.stack(ratio_interval(weights, *shares.split(part.shape[1])), axis=-1)

    def _shares(self, indicators: NDArray[np.bool_], on_map: NDArray[np.bool_]) -> Shares:
        """Return the share of each stratum in which indicators (rows, C) are true, with limits."""
        value, trials = np.transpose([self._sample_size(stratum, indicators) for stratum in self._strata], (1, 0, 2))
        possible = np.stack([on_map[stratum.rows].any(axis=0) for stratum in self._strata])
        not_sampled = np.array([[stratum.not_sampled] for stratum in self._strata])
        return stratum_shares(value, trials, not_sampled).where(possible)

    def _sample_size(self, stratum: _StratumSample, indicators: NDArray[np.bool_]) -> tuple[_FloatArray, _FloatArray]:
        """Return the shares of a stratum (C) in which indicators are true, and their effective sample sizes."""
        number, true = self._number[stratum.rows], indicators[stratum.rows]
        n = number.sum()
        share = (number * stratum.weights) @ true / n
        # Points that are all alike have no variance: their number, less what unequal weights cost (Kish 1965).
        alike = np.isin(number @ true, (0, n))
        share = np.where(alike, np.rint(share), share)
        by_weights = n**2 / (number @ stratum.weights**2)
        # Otherwise that of a binomial share with the same variance.
        variance = number @ (stratum.weights[:, None] * (true - share)) ** 2 / max(n - 1, 1) / n
        return share, np.where(alike, by_weights, 1 + share * (1 - share) / np.where(alike, 1, variance))


def _join_names(names: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, names))


def _none_if_undefined(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
