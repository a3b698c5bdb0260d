"""Predict and train many tiny scenes in one process: memory, file handles and threads must not grow.

    .venv/bin/python tools/check_long_run.py                                 # 2,000 predictions and 200 trainings
    .venv/bin/python tools/check_long_run.py --predictions 200 --trainings 20

Prints what the process holds at ten moments, after a tenth of the work as a warm-up. Exit code 1 if it holds more
handles or threads at the end than after the warm-up, or more memory by over 5 %.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import rasterio
from affine import Affine

import segkit

RECIPE = """
name: tiny
task: {type: binary, classes: [{name: cleared, value: 1}]}
data:
  train: {images: scene.tif, labels: labels.tif}
  val: {by: block, block: 32, fraction: 0.25}
model: {architecture: unet, encoder: tu-resnet10t, options: {encoder_depth: 2, decoder_channels: [8, 8]}}
train: {tile_size: 32, batch_size: 2, epochs: 1, steps_per_epoch: 2, learning_rate: 0.01, precision: fp32}
"""
MAX_GROWTH = 1.05


def main() -> int:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictions", type=int, default=2000)
    parser.add_argument("--trainings", type=int, default=200)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # a hundred pixels are few to train on, each time
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scene(folder)
        run = folder / "run"

        def train() -> None:
            segkit.train(folder / "recipe.yaml", run, overwrite=True)

        def predict() -> None:
            segkit.predict(run / "model.safetensors", folder / "scene.tif", folder / "map.tif", overwrite=True)

        train()
        flat = [repeat("predictions", given.predictions, predict), repeat("trainings", given.trainings, train)]
    return 0 if all(flat) else 1


def write_scene(folder: Path) -> None:
    """Write a scene of 96 x 96 pixels, its labels, and a recipe."""
    random = np.random.default_rng(0)
    labels = np.kron(random.integers(0, 2, (12, 12), dtype=np.uint8), np.ones((8, 8), np.uint8))
    image = (labels * 800.0 + random.normal(1000, 100, (3, 96, 96))).astype(np.uint16)
    for file, bands in (("scene.tif", image), ("labels.tif", labels[None])):
        profile = {"count": len(bands), "height": 96, "width": 96, "dtype": bands.dtype, "crs": "EPSG:32622"}
        transform = Affine(10, 0, 500_000, 0, -10, 9_000_000)
        with rasterio.open(folder / file, "w", driver="GTiff", transform=transform, **profile) as dataset:
            dataset.write(bands)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")


def repeat(what: str, times: int, work: Callable[[], None]) -> bool:
    """Do work, print what the process holds, and return whether that stays the same."""
    process = psutil.Process()
    held = []
    for done in range(1, times + 1):
        work()
        if done % max(1, times // 10) == 0:
            gc.collect()
            held.append((process.memory_info().rss / 2**20, process.num_fds(), threading.active_count()))
            memory, handles, threads = held[-1]
            print(f"{done:,} {what}: {memory:,.0f} MiB, {handles} file handles, {threads} threads", flush=True)
    first, last = held[0], held[-1]
    flat = last[0] <= MAX_GROWTH * first[0] and last[1] <= first[1] and last[2] <= first[2]
    print(f"{what}: memory at the end / after the first tenth: {last[0] / first[0]:.3f}: {'ok' if flat else 'FAILED'}")
    return flat


if __name__ == "__main__":
    sys.exit(main())
