"""Accuracy assessment: a stratified random sample of a map, and areas and accuracies estimated from it.

`sampling` allocates and draws points, `design` and `points` write them for an interpreter, `estimation` holds the
estimator, `intervals` its confidence intervals, `sample` applies it to files, `export` writes results. Estimators and
sampling designs go here.
"""

from segkit.assess.design import Design, design
from segkit.assess.estimation import Estimate, Stratum, estimate, estimate_points, sample_size
from segkit.assess.export import write_estimate
from segkit.assess.sample import estimate_sample
from segkit.assess.sampling import allocate

__all__ = [
    "Design",
    "Estimate",
    "Stratum",
    "allocate",
    "design",
    "estimate",
    "estimate_points",
    "estimate_sample",
    "sample_size",
    "write_estimate",
]
