"""The result of a comparison: trials, and rows of means and spreads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SPENT = "spent.json"
# Columns of the table: what each is called, and where it is found in a trial.
MEASURES = {
    "mean_iou": "mean IoU",
    "macro_f1": "F1",
    "overall_accuracy": "accuracy",
    "seconds": "seconds",
    "cpu_seconds": "CPU seconds",
}


@dataclass(frozen=True)
class Trial:
    """One training.

    Parameters
    ----------
    variant
        What is particular about its recipe.
    seed, fold
        Of the training, and which fold validates ("0/5"); None where the recipe says.
    folder
        Its run.
    metrics
        On its validation areas, as in `metrics.json`.
    seconds, cpu_seconds
        That training took, on the clock and of all cores together; None where a killed process took its count along.
    """

    variant: str
    seed: int
    fold: str | None
    folder: Path
    metrics: dict[str, Any]
    seconds: float | None
    cpu_seconds: float | None

    def measure(self, key: str) -> float | None:
        """Return one of `MEASURES`; None where it is not defined."""
        found = getattr(self, key) if key in ("seconds", "cpu_seconds") else self.metrics[key]
        return None if found is None else float(found)


@dataclass(frozen=True)
class Measure:
    """A number over the trials in which it is defined.

    Parameters
    ----------
    mean
        None where it is defined in none.
    spread
        Standard deviation of the sample (of n - 1 degrees of freedom); None of less than two.
    values
        Of each trial that has one.
    """

    mean: float | None
    spread: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, found: Iterable[float | None]) -> Measure:
        """Summarise; what is None does not count."""
        values = tuple(value for value in found if value is not None)
        mean = float(np.mean(values)) if values else None
        return cls(mean, float(np.std(values, ddof=1)) if len(values) > 1 else None, values)


@dataclass(frozen=True)
class Row:
    """A variant: how many trials it has, and each of `MEASURES` over them."""

    variant: str
    trials: int
    measures: Mapping[str, Measure]


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Parameters
    ----------
    folder
        Holds compare.json, compare.csv, compare.png and the runs.
    rows
        One a variant.
    trials
        All trainings.
    agreement
        Share of the decisions in which two variants (rows and columns, as in `rows`) are alike, over the validation
        pixels whose label is known: the mean over seeds and folds. On the diagonal a variant is compared with itself
        trained with another seed; None with one seed.
    """

    folder: Path
    rows: tuple[Row, ...]
    trials: tuple[Trial, ...]
    agreement: tuple[tuple[float | None, ...], ...]

    @property
    def picture(self) -> Path:
        """The same as a picture."""
        return self.folder / "compare.png"
