"""Estimation: accuracy and area from a stratified random sample, with standard errors.

Every number is a total over the map, or a ratio of two, of something that is known at the sample's pixels: "the
reference says forest", "map and reference agree". So there is one estimator. Where the strata are the map's classes and
no finite-population correction is made it gives the formulas of Olofsson et al. 2014 ("Good practices for estimating
area and assessing accuracy of land change", Remote Sensing of Environment 148), else those of Stehman 2014
("Estimating area and map accuracy for stratified random sampling when the strata are different from the map classes",
International Journal of Remote Sensing 35).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas
from numpy.typing import ArrayLike, NDArray

from segkit.errors import DataError
from segkit.evaluation.metrics import disagreement

Z95 = 1.96  # of a 95 % interval, as in both papers

_Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """Accuracy and area with standard errors; arrays are in the order of `classes`, areas in hectares.

    What cannot be estimated is NaN: the user's accuracy of a class that the map does not show in the sample, the
    producer's of one that the reference does not, and every standard error that rests on a stratum with one sample.

    Parameters
    ----------
    classes
        K names.
    counts
        int64 (K, K): samples by class of the map (rows) and of the reference (columns).
    proportions
        (K, K): estimated shares of the whole area, rows and columns as in `counts`.
    area, area_se
        Estimated area of each class by the reference, and its standard error.
    mapped_area
        What the map shows: a biased estimate of the area. NaN where it is not known.
    overall, overall_se
        Overall accuracy.
    users, users_se
        User's accuracy: of what the map calls a class, the share that is. One less the commission error.
    producers, producers_se
        Producer's accuracy: of what is a class, the share that the map calls so. One less the omission error.
    unfilled
        Points without a reference class; they are not in any number.
    """

    classes: tuple[str, ...]
    counts: NDArray[np.int64]
    proportions: _Numbers
    area: _Numbers
    area_se: _Numbers
    mapped_area: _Numbers
    overall: float
    overall_se: float
    users: _Numbers
    users_se: _Numbers
    producers: _Numbers
    producers_se: _Numbers
    unfilled: int = 0

    @property
    def area_ci(self) -> _Numbers:
        """Half the width of the 95 % interval of each area: area - area_ci to area + area_ci."""
        return Z95 * self.area_se

    @property
    def overall_ci(self) -> float:
        """Half the width of the 95 % interval."""
        return Z95 * self.overall_se

    @property
    def users_ci(self) -> _Numbers:
        """Half the width of the 95 % intervals."""
        return Z95 * self.users_se

    @property
    def producers_ci(self) -> _Numbers:
        """Half the width of the 95 % intervals."""
        return Z95 * self.producers_se

    def table(self) -> pandas.DataFrame:
        """Return one row a class: areas and accuracies, each with standard error and half a 95 % interval."""
        columns: dict[str, Any] = {"class": self.classes, "mapped_ha": self.mapped_area}
        for name, value, error in (
            ("area_ha", self.area, self.area_se),
            ("users", self.users, self.users_se),
            ("producers", self.producers, self.producers_se),
        ):
            columns |= {name: value, f"{name}_se": error, f"{name}_ci95": Z95 * error}
        return pandas.DataFrame(columns | {"map_samples": self.counts.sum(1), "ref_samples": self.counts.sum(0)})

    def summary(self) -> dict[str, Any]:
        """Return everything, ready for JSON; what is undefined is None."""
        quantity, allocation = disagreement(self.proportions)
        rows = self.table().astype(object)
        return {
            "overall_accuracy": _defined(self.overall),
            "overall_accuracy_se": _defined(self.overall_se),
            "overall_accuracy_ci95": _defined(self.overall_ci),
            "quantity_disagreement": _defined(quantity),
            "allocation_disagreement": _defined(allocation),
            "samples": int(self.counts.sum()),
            "unfilled": self.unfilled,
            "per_class": {
                row.pop("class"): {key: _defined(value) for key, value in row.items()}
                for row in rows.to_dict("records")
            },
            "counts": {"labels": list(self.classes), "matrix": self.counts.tolist()},
            "proportions": [[_defined(share) for share in row] for row in self.proportions.tolist()],
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
        (K, K): samples; rows are map classes, columns reference classes.
    mapped_area
        (K,): hectares of each class on the map.
    classes
        K names; by default "1" to "K".
    population
        (K,): pixels of each class on the map. With it variances get the finite-population correction, which matters
        where a good part of a stratum was sampled; both papers' other numbers are without it.

    Raises
    ------
    DataError
        The matrix is not square or holds what is no count, an area is not a positive number, or a class that the map
        shows has no sample.
    """
    matrix, mapped = np.asarray(counts, dtype=np.float64), np.asarray(mapped_area, dtype=np.float64)
    size = len(matrix)
    if matrix.shape != (size, size) or not size:
        raise DataError(f"counts has the shape {matrix.shape}; it has a row and a column for each class")
    names = tuple(map(str, range(1, size + 1))) if classes is None else tuple(classes)
    if mapped.shape != (size,) or len(names) != size:
        raise DataError(f"counts has {size} classes, mapped_area {mapped.size} and classes {len(names)}; give one each")
    if not (np.isfinite(matrix) & (matrix >= 0) & (matrix == np.rint(matrix))).all():
        raise DataError("counts holds something else than counts; give the samples of each pair as whole numbers")
    rows, columns = np.nonzero(matrix)
    number = matrix[rows, columns].astype(np.int64)
    sample = pandas.DataFrame({"stratum": rows, "map": rows, "reference": columns, "number": number, "weight": 1.0})
    pixels = [None] * size if population is None else np.asarray(population, dtype=np.float64).tolist()
    if len(pixels) != size:
        raise DataError(f"population holds {len(pixels)} numbers; give the pixels of each of the {size} classes")
    strata = [Stratum(*one) for one in zip(names, mapped.tolist(), pixels, range(size), strict=True)]
    return _estimate(sample, strata, names, mapped)


@dataclass(frozen=True)
class Stratum:
    """A part of the map from which a sample was drawn at random, each pixel with the same chance.

    Parameters
    ----------
    name
        For messages.
    hectares
        Its area.
    pixels
        How many; with it variances get the finite-population correction. None makes none.
    map_class
        The class that the map shows all over it; None where it shows several.
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
    """Estimate from sample points, whatever the strata are (Stehman 2014).

    Parameters
    ----------
    frame
        One row a point. Points without a reference class are left out and counted.
    strata
        {what the column `stratum` holds: the stratum}.
    classes
        {what the columns of classes hold: name}, in the order of the result; by default what they hold, sorted.
    mapped_area
        {class: hectares on the map}, to show beside the estimates.
    stratum, mapped, reference
        Columns of the frame.
    weight
        Column with the area of the point's pixel, in any unit; by default all are of one size. Pixels of a geographic
        CRS are not.

    Raises
    ------
    DataError
        A column is missing, a class or a stratum is not known, a stratum has no point with a reference class.
    """
    wanted = [stratum, mapped, reference, *([] if weight is None else [weight])]
    if missing := [column for column in wanted if column not in frame]:
        raise DataError(f"the points have no column {missing[0]}; they have {', '.join(map(str, frame.columns))}")
    empty = frame[reference].isna() | (frame[reference].astype(str).str.strip() == "")
    points = frame[~empty]
    if points[[stratum, mapped]].isna().any(axis=None):
        raise DataError("a point has no stratum or no class of the map; give every point both")
    if classes is None:
        held = {*points[mapped], *points[reference]}
        classes = {one: str(one) for one in sorted(held, key=lambda one: (str(type(one)), one))}
    place = {one: at for at, one in enumerate(classes)}
    for column in (mapped, reference):
        if strange := {*points[column]} - place.keys():
            raise DataError(f"{column} is {strange.pop()!r} at some point; the classes are {_listed(classes)}")
    if strange := {*points[stratum]} - strata.keys():
        raise DataError(f"{stratum} is {strange.pop()!r} at some point; the strata are {_listed(strata)}")
    sample = pandas.DataFrame(
        {
            "stratum": points[stratum].map({key: at for at, key in enumerate(strata)}).to_numpy(),
            "map": points[mapped].map(place).to_numpy(),
            "reference": points[reference].map(place).to_numpy(),
            "number": 1,
            "weight": 1.0 if weight is None else points[weight].to_numpy(dtype=np.float64),
        }
    )
    shown = np.array([(mapped_area or {}).get(one, np.nan) for one in classes], dtype=np.float64)
    placed = [replace(one, map_class=place.get(one.map_class)) for one in strata.values()]
    return _estimate(sample, placed, tuple(classes.values()), shown, unfilled=int(empty.sum()))


def sample_size(shares: ArrayLike, accuracies: ArrayLike, error: float) -> int:
    """Return how many samples give the overall accuracy a standard error (Olofsson et al. 2014, equation 13).

    Parameters
    ----------
    shares
        (H,): share of the area that each stratum has.
    accuracies
        (H,): the user's accuracy that is expected of each.
    error
        The standard error wanted.

    Raises
    ------
    DataError
        Shares do not sum to 1, or an accuracy or the error does not lie between 0 and 1.
    """
    share, right = np.asarray(shares, dtype=np.float64), np.asarray(accuracies, dtype=np.float64)
    if share.shape != right.shape or not np.isclose(share.sum(), 1) or not (share >= 0).all():
        raise DataError("give each stratum's share of the area, which sum to 1, and the accuracy expected of it")
    if not ((right >= 0) & (right <= 1)).all() or not 0 < error < 1:
        raise DataError("expected accuracies and the standard error wanted lie between 0 and 1")
    exact = float((share * np.sqrt(right * (1 - right))).sum() / error) ** 2
    return int(np.ceil(exact - 1e-9))


def _estimate(
    sample: pandas.DataFrame, strata: Sequence[Stratum], names: tuple[str, ...], mapped: _Numbers, unfilled: int = 0
) -> Estimate:
    """Estimate from rows of equal samples: `number` of them, each of an area in proportion to `weight`.

    Strata and classes are numbered from 0, the strata's `map_class` too.
    """
    totals = _Totals(sample, strata)
    size = len(names)
    said, true = (sample[column].to_numpy()[:, None] == np.arange(size) for column in ("map", "reference"))
    agreed = said & true
    area, area_se = totals(true)
    overall, overall_se = totals.ratio(agreed.any(axis=1, keepdims=True), np.ones((len(sample), 1)))
    # A stratum in which the map shows one class says nothing about the user's accuracy of others.
    shown = [[one.map_class in (None, at) for at in range(size)] for one in strata]
    users, users_se = totals.ratio(agreed, said, own=np.array(shown))
    producers, producers_se = totals.ratio(agreed, true)
    pairs = (said[:, :, None] & true[:, None, :]).reshape(len(sample), -1)
    counts = sample["number"].to_numpy() @ pairs
    return Estimate(
        names,
        counts.reshape(size, size).astype(np.int64),
        totals(pairs)[0].reshape(size, size) / totals.hectares,
        area, area_se, mapped,
        float(overall[0]), float(overall_se[0]),
        users, users_se, producers, producers_se,
        unfilled,
    )  # fmt: skip


class _Totals:
    """Totals over the map of what is known at the sample's pixels, and their standard errors.

    In each stratum the total is its area times the mean, weighted by the pixels' areas; where these differ that is a
    ratio estimate, whose variance is that of the residuals (Cochran 1977, "Sampling Techniques", section 6.4).
    """

    def __init__(self, sample: pandas.DataFrame, strata: Sequence[Stratum]) -> None:
        self._number = sample["number"].to_numpy(dtype=np.float64)
        stratum, weight = sample["stratum"].to_numpy(), sample["weight"].to_numpy()
        if not (np.isfinite(weight) & (weight > 0)).all():
            raise DataError("the area of a point's pixel is no positive number")
        # Of each stratum: its number, hectares, share that was not sampled, rows of the sample, and their weights.
        self._strata: list[tuple[int, float, float, NDArray[np.int64], _Numbers]] = []
        for at, one in enumerate(strata):
            rows = np.flatnonzero(stratum == at)
            number = self._number[rows].sum()
            if not (np.isfinite(one.hectares) and one.hectares >= 0):
                raise DataError(f"{one.name}: its area is {one.hectares}, not a number of hectares")
            if not number:
                if one.hectares == 0:
                    continue
                raise DataError(
                    f"{one.name}: has no sample with a reference class; every stratum needs two: fill more points, or "
                    "join it with another stratum"
                )
            if one.pixels is not None and number > one.pixels:
                raise DataError(f"{one.name}: has {number:.0f} samples, but {one.pixels:.0f} pixels")
            left = 1.0 if one.pixels is None else 1 - number / one.pixels
            relative = weight[rows] / np.average(weight[rows], weights=self._number[rows])
            self._strata.append((at, one.hectares, left, rows, relative))
        self.hectares = sum(one.hectares for one in strata)
        if not self.hectares:
            raise DataError("the strata have no area")

    def __call__(self, values: NDArray[Any], own: NDArray[np.bool_] | None = None) -> tuple[_Numbers, _Numbers]:
        """Return total and standard error of each column of values (rows, C).

        `own` (strata, C) says which strata can hold anything but 0; the others add no error, however few their samples.
        """
        total, variance = np.zeros(values.shape[1]), np.zeros(values.shape[1])
        for at, area, left, rows, weight in self._strata:
            number, here = self._number[rows], values[rows].astype(np.float64)
            mean = (number * weight) @ here / number.sum()
            total += area * mean
            if number.sum() < 2:
                spread = np.full(values.shape[1], np.nan)
            else:
                squares = number @ (weight[:, None] * (here - mean)) ** 2
                spread = area**2 * left * squares / (number.sum() - 1) / number.sum()
            variance += spread if own is None else np.where(own[at], spread, 0.0)
        return total, np.sqrt(variance)

    def ratio(
        self, part: NDArray[Any], whole: NDArray[Any], own: NDArray[np.bool_] | None = None
    ) -> tuple[_Numbers, _Numbers]:
        """Return the ratio of two totals and its standard error, column by column; NaN where the second is 0."""
        of, _ = self(whole)
        of = np.where(of > 0, of, np.nan)
        found = self(part)[0] / of
        residual = part - whole * np.nan_to_num(found)
        return found, self(residual, own)[1] / of


def _listed(items: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, items))


def _defined(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
