"""Assessment: from a map to areas with error bars: a sample to be looked at, and what it says."""

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
