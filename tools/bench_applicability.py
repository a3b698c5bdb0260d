"""Cost of the dissimilarity index: millions of pixels per second, by number of bands.

    python tools/bench_applicability.py [--pixels 50000] [--threads 1]

Pixels have five independent components and noise, as most imagery has fewer dimensions than bands. Both ways to find
the nearest training pixel are timed; segkit uses the tree up to `segkit.models.nearest_pixels._MAX_TREE_BANDS` bands.
"""

from __future__ import annotations

import argparse
import time
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from segkit.models import nearest_pixels
from segkit.models.nearest_pixels import NearestPixels
from segkit.models.training_pixels import MAX_PIXELS, MAX_VALUES

_COMPONENTS = (6.0, 3.0, 1.5, 0.8, 0.4)  # standard deviations
_NOISE = 0.15


def make_pixels(random: np.random.Generator, number: int, mixing: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return pixels (number, bands)."""
    components = random.normal(size=(number, len(_COMPONENTS))) * _COMPONENTS
    return components @ mixing + random.normal(0, _NOISE, (number, mixing.shape[1]))


def main() -> None:
    """Print a row for each number of bands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    print("bands  training pixels  tree Mpx/s  product Mpx/s")
    for bands in (3, 4, 6, 10, 13, 20, 30, 40, 60, 120, 224):
        mixing = random.normal(size=(len(_COMPONENTS), bands))
        known = make_pixels(random, min(MAX_PIXELS, MAX_VALUES // bands), mixing)
        pixels = make_pixels(random, options.pixels, mixing)
        speeds = []
        for max_tree_bands in (bands, 0):
            with patch.object(nearest_pixels, "_MAX_TREE_BANDS", max_tree_bands):
                nearest = NearestPixels(known)
                started = time.perf_counter()
                nearest.distance(pixels, options.threads)
                speeds.append(options.pixels / (time.perf_counter() - started) / 1e6)
        print(f"{bands:5}  {len(known):15}  {speeds[0]:10.3f}  {speeds[1]:13.3f}")


if __name__ == "__main__":
    main()
