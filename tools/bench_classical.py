"""Measure how fast classical learners map, in Mpx/s on one core, beside scikit-learn on the same pixels.

    .venv/bin/python tools/bench_classical.py                     # some minutes
    .venv/bin/python tools/bench_classical.py forest --pixels 20000

Pixels are synthetic: 10 bands, 5 classes that overlap, so that trees are as deep as those of noisy labels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from segkit.models.classical.classifier import LEARNERS
from segkit.models.classical.estimators import ESTIMATORS, make_estimator
from segkit.recipe.schema import Model
from segkit.training.classical import fit_arrays
from segkit.training.pixels import PixelSample

BANDS, CLASSES = 10, 5


def make_pixels(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features (n, 10) and categories (n) of classes that overlap."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(0).normal(0, 1, (CLASSES, BANDS))
    categories = random.integers(0, CLASSES, count).astype(np.int16)
    pixels = centers[categories] + random.normal(0, 1.2, (count, BANDS))
    return pixels.astype(np.float32), categories


def measure(predict: Callable[[], Any], pixels: int, repeats: int) -> float:
    """Return the best Mpx/s of some calls; the first one, which compiles, does not count."""
    predict()
    best = 0.0
    for _ in range(repeats):
        started = time.process_time()
        predict()
        best = max(best, pixels / 1e6 / (time.process_time() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("learners", nargs="*", default=list(ESTIMATORS), help=f"of {', '.join(ESTIMATORS)}")
    parser.add_argument("--pixels", type=int, default=50_000, help="to predict")
    parser.add_argument("--fitted", type=int, nargs="*", default=[5_000, 100_000], help="pixels to fit to")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tested, _ = make_pixels(options.pixels, 1)
    for name in options.learners:
        for number in options.fitted:
            sample = PixelSample(*make_pixels(min(number, ESTIMATORS[name].max_pixels), 2), None, number)
            estimator = make_estimator(Model(architecture=name), 0)
            learner = LEARNERS[name](BANDS, CLASSES)
            started = time.process_time()
            learner.set_arrays(**fit_arrays(estimator, sample, CLASSES))
            fitting = time.process_time() - started
            estimator = estimator.set_params(n_jobs=1) if "n_jobs" in estimator.get_params() else estimator
            theirs_of = estimator.predict_proba if hasattr(estimator, "predict_proba") else estimator.decision_function
            pixels = torch.from_numpy(tested)
            with torch.inference_mode():
                ours = measure(lambda: learner(pixels), options.pixels, options.repeats)  # noqa: B023 - called here
            theirs = measure(lambda: theirs_of(tested), options.pixels, options.repeats)  # noqa: B023
            size = sum(array.numel() * array.element_size() for array in learner.buffers()) / 1e6
            print(
                f"{name} fitted to {len(sample.features):,} pixels in {fitting:.1f} s, {size:.1f} MB: "
                f"{ours:.3f} Mpx/s, scikit-learn {theirs:.3f} Mpx/s, ratio {ours / theirs:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
