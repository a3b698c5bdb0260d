"""The result of a comparison: trials, and means and standard deviations by variant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TIMES_FILE = "spent.json"
# Columns of the table: key of a trial's measure, and heading.
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
        Name of the variant.
    seed, fold
        Seed, and the fold for validation ("0/5"; None if the recipe's `data.val` is used).
    folder
        Run folder.
    metrics
        Scores on its validation areas, as in `metrics.json`.
    seconds, cpu_seconds
        Wall-clock and CPU time (all cores) of the training; None if unknown, because a process was killed.
    """

    variant: str
    seed: int
    fold: str | None
    folder: Path
    metrics: dict[str, Any]
    seconds: float | None
    cpu_seconds: float | None

    def measure(self, key: str) -> float | None:
        """Return one of `MEASURES`; None if undefined."""
        value = getattr(self, key) if key in ("seconds", "cpu_seconds") else self.metrics[key]
        return None if value is None else float(value)


@dataclass(frozen=True)
class Measure:
    """A measure over the trials in which it is defined.

    Parameters
    ----------
    mean
        None if there are no values.
    std
        Sample standard deviation (n - 1 degrees of freedom); None if there are fewer than two values.
    values
        The value of each trial in which the measure is defined.
    """

    mean: float | None
    std: float | None
    values: tuple[float, ...]

    @classmethod
    def from_values(cls, values: Iterable[float | None]) -> Measure:
        """Summarise values, without those that are None."""
        defined = tuple(value for value in values if value is not None)
        mean = float(np.mean(defined)) if defined else None
        return cls(mean, float(np.std(defined, ddof=1)) if len(defined) > 1 else None, defined)

    def to_dict(self) -> dict[str, Any]:
        """Return the measure as in compare.json."""
        return {"mean": self.mean, "spread": self.std, "values": self.values}


@dataclass(frozen=True)
class Row:
    """A variant, its number of trials, and each of `MEASURES` over them."""

    variant: str
    trials: int
    measures: Mapping[str, Measure]


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    Parameters
    ----------
    folder
        Folder with compare.json, compare.csv, compare.png and the runs.
    rows
        One row per variant.
    trials
        All trainings.
    agreement
        (variants, variants), in the order of `rows`: share of labelled validation pixels for which two variants make
        the same decision, as the mean over seeds and folds. The diagonal compares trainings of one variant with
        different seeds; None with one seed.
    """

    folder: Path
    rows: tuple[Row, ...]
    trials: tuple[Trial, ...]
    agreement: tuple[tuple[float | None, ...], ...]

    @property
    def picture(self) -> Path:
        """Path of the picture."""
        return self.folder / "compare.png"
