"""Measure how fast tiles are supplied for training, beside what the disk and the libraries give. One run prints all.

    .venv/bin/python tools/bench_train.py --images ../shared/data/amazon/images --labels ../shared/data/amazon/labels

With `devices` it compares a training in one process with that in two, of the same global batch, instead.

    .venv/bin/python tools/bench_train.py devices

All figures are tiles of 256 x 256 pixels, made from the same scenes in the same run. The cache is a new one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import yaml
from affine import Affine
from rasterio.windows import Window
from torch.utils.data import DataLoader

from segkit.data.area import full_areas
from segkit.data.augmentation import Augmentation
from segkit.data.cache import Cache
from segkit.data.datasets import EpochSampler, TrainDataset
from segkit.data.pairing import Sample, open_samples
from segkit.data.statistics import Statistics
from segkit.models.run_folder import METRICS, read_log
from segkit.models.segmenter import Segmenter
from segkit.recipe.schema import Recipe
from segkit.training.losses import combine_losses

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "amazon"
SIZE = 256


def rate(tiles: Iterable[Any], seconds: float) -> float:
    """Take tiles for some seconds and return how many came in one."""
    started, count = time.perf_counter(), 0
    for _ in tiles:
        count += 1
        if (took := time.perf_counter() - started) >= seconds:
            break
    return count / took


def endless(make: Callable[[], Any]) -> Iterable[Any]:
    """Call a function without end."""
    while True:
        yield make()


def limits(sample: Sample, folder: Path, seconds: float) -> None:
    """Print what bare arrays and an open rasterio handle on a deflated GeoTIFF give."""
    pixels = sample.scene.read().pixels.astype(np.uint16)
    height, width = pixels.shape[1:]
    random = np.random.default_rng(0)
    np.save(folder / "bare.npy", pixels)
    bare = np.load(folder / "bare.npy", mmap_mode="r")
    profile = {"driver": "GTiff", "count": len(pixels), "height": height, "width": width, "dtype": "uint16"}
    profile |= {"crs": "EPSG:32622", "transform": Affine(10, 0, 300_000, 0, -10, 9_000_000)}
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    with rasterio.open(folder / "deflate.tif", "w", **profile, **layout) as dataset:
        dataset.write(pixels)

    def corner() -> tuple[int, int]:
        return int(random.integers(height - SIZE + 1)), int(random.integers(width - SIZE + 1))

    def mapped() -> Any:
        row, column = corner()
        return np.array(bare[:, row : row + SIZE, column : column + SIZE])

    print(f"bare memory-mapped array, uint16: {rate(endless(mapped), seconds):,.0f} tiles/s")
    # Without GDAL's cache of blocks, which would hold a scene this small decoded.
    with rasterio.Env(GDAL_CACHEMAX=0), rasterio.open(folder / "deflate.tif") as dataset:

        def read() -> Any:
            row, column = corner()
            return dataset.read(window=Window(column, row, SIZE, SIZE))

        print(f"open rasterio handle, deflate: {rate(endless(read), seconds):,.0f} tiles/s")


def supply(recipe: Recipe, folder: Path, seconds: float) -> None:
    """Print what the supply gives: from files and from the cache, with and without augmentation and workers."""
    os.environ["SEGKIT_CACHE"] = str(folder / "cache")
    with Cache.open(recipe.data.cache) as cache:
        for source, kept in (("files", None), ("cache", cache)):
            started = time.perf_counter()
            areas = full_areas(open_samples(recipe.data.train, recipe.data, recipe.task, kept).samples)
            statistics = Statistics.from_areas(areas, recipe.task)
            print(f"from the {source}: opened and counted in {time.perf_counter() - started:.1f} s", flush=True)
            augmentation = Augmentation("default", statistics.mean, statistics.std)
            for name, change in (("no augmentation", None), ("default augmentation", augmentation)):
                tiles = TrainDataset(areas, SIZE, change, seed=0)
                numbers = iter(range(10**9))
                alone = rate(endless(lambda tiles=tiles, numbers=numbers: tiles[next(numbers)]), seconds)
                found = [f"alone {alone:,.0f}"]
                for workers in (0, 2):
                    loader = DataLoader(tiles, 8, sampler=EpochSampler(10**6), num_workers=workers)
                    batches = iter(loader)
                    next(batches)
                    found.append(f"in batches, {workers} workers {8 * rate(batches, seconds):,.0f}")
                    del batches
                print(f"from the {source}, {name}: {', '.join(found)} tiles/s", flush=True)


def steps(recipe: Recipe, folder: Path, count: int) -> None:
    """Print the time of a training step beside that of the network alone on a fixed batch."""
    os.environ["SEGKIT_CACHE"] = str(folder / "cache")
    with Cache.open(recipe.data.cache) as cache:
        areas = full_areas(open_samples(recipe.data.train, recipe.data, recipe.task, cache).samples)
        statistics = Statistics.from_areas(areas, recipe.task)
        model = Segmenter(recipe, statistics.mean, statistics.std, areas[0].sample.scene.band_names)
        tiles = TrainDataset(areas, SIZE, Augmentation("default", statistics.mean, statistics.std), seed=0)
        batches = iter(DataLoader(tiles, recipe.train.batch_size, sampler=EpochSampler(10**6)))
        loss = combine_losses(recipe.train.loss, recipe.task)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        fixed = next(batches)

        def step(batch: Any) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch[0], batch[1])
            loss(logits, batch[2]).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        def timed(take: Callable[[], Any]) -> float:
            started = time.perf_counter()
            for _ in range(count):
                step(take())
            return (time.perf_counter() - started) / count

        model.train()
        timed(lambda: fixed)
        found = [(timed(lambda: fixed), timed(lambda: next(batches))) for _ in range(3)]
    alone, fed = (min(turn[k] for turn in found) for k in range(2))
    print(
        f"a step of {recipe.train.batch_size} tiles: {alone * 1000:.0f} ms on a fixed batch, {fed * 1000:.0f} ms with "
        f"the supply in the same process; ratio {fed / alone:.3f}"
    )


# segkit's command line, which records the crops that a process draws, and where it is told trains in float64.
RECORDED = """
import importlib
import os
import torch
from segkit.cli import main
from segkit.data.datasets import TrainDataset

drawn, own = open("crops-" + os.environ.get("LOCAL_RANK", "0"), "a"), TrainDataset.__getitem__
TrainDataset.__getitem__ = lambda tiles, number: (print(number, file=drawn), own(tiles, number))[1]
if os.environ["DOUBLE"]:
    torch.Tensor.float = torch.Tensor.double
    importlib.import_module("segkit.training.fitting")._PRECISIONS["fp32"] = "64-true"
main()
"""


def devices(recipe: Recipe, folder: Path, *, double: bool) -> None:
    """Print losses and scores of 1 process x 8 crops beside those of 2 x 4, the crops drawn, and the time."""
    (folder / "run.py").write_text(RECORDED)
    runs: list[Path] = []
    for count in (1, 2):
        runs.append(run := folder / f"{count}")
        run.mkdir()
        raw = recipe.to_dict()
        raw["train"] |= {"devices": count, "batch_size": 8 // count}
        (run / "recipe.yaml").write_text(yaml.safe_dump(raw))
        command = [sys.executable, folder / "run.py", "train", "recipe.yaml", "-o", "run"]
        environment = os.environ | {"DOUBLE": "yes" if double else ""}
        subprocess.run(command, cwd=run, check=True, stdout=subprocess.DEVNULL, env=environment)
    one, two = (read_log(run / "run/log.csv") for run in runs)
    for mine, theirs in zip(one, two, strict=True):
        shown = (f"{key} {mine[key]:.6f} and {theirs[key]:.6f}" for key in ("loss", "val_iou"))
        print(f"epoch {mine['epoch']:.0f}, 1 x 8 and 2 x 4: {', '.join(shown)}")
    apart = max(abs(mine["loss"] - theirs["loss"]) for mine, theirs in zip(one, two, strict=True))
    print(f"largest difference of the loss: {apart:.1e}")
    scores = [json.loads((run / "run" / METRICS).read_text())["mean_iou"] for run in runs]
    print(f"mean IoU of the kept model: {scores[0]:.6f} and {scores[1]:.6f}")
    drawn = [[file.read_text().split() for file in sorted(run.glob("crops-*"))] for run in runs]
    numbers = [[number for part in parts for number in part] for parts in drawn]
    parts = " + ".join(str(len(part)) for part in drawn[1])
    print(
        f"crops in {len(one)} epochs: {len(numbers[0])} in one process, {parts} in two, {len(set(numbers[1]))} of them "
        f"different; the same ones: {set(numbers[0]) == set(numbers[1])}"
    )
    took = [sum(row["seconds"] for row in log[1:]) for log in (one, two)]
    print(f"time of all epochs but the first: {took[0]:.1f} s and {took[1]:.1f} s, ratio {took[1] / took[0]:.2f}")


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["devices"], help="this one only")
    parser.add_argument("--images", default=str(SHARED / "images"))
    parser.add_argument("--labels", default=str(SHARED / "labels"))
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    parser.add_argument("--steps", type=int, default=10)
    # Rounding errors grow with every step, the faster the larger it is, also where one process reorders a batch.
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="of `devices`")
    parser.add_argument("--double", action="store_true", help="`devices` in float64: what is left is no rounding")
    options = parser.parse_args()
    options.images, options.labels = (str(Path(given).resolve()) for given in (options.images, options.labels))
    recipe = Recipe.from_dict(
        {
            "name": "bench",
            "task": {"type": "binary", "classes": [{"name": "deforestation", "value": 1}]},
            "data": {"train": {"images": options.images, "labels": options.labels}, "ignore": [255]},
            "model": {"architecture": "unet", "encoder": "resnet18"},
            "train": {"tile_size": SIZE},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        if options.part:
            setup = {
                "tile_size": 128,
                "epochs": 2,
                "steps_per_epoch": options.steps,
                "device": "cpu",
                "precision": "fp32",
            }
            setup["learning_rate"] = options.learning_rate
            raw = recipe.to_dict()
            raw["data"]["val"] = {"fraction": 0.25, "block": 128, "gap": 16}
            devices(Recipe.from_dict(raw | {"train": setup}), Path(folder), double=options.double)
            return
        limits(open_samples(recipe.data.train, recipe.data, recipe.task).samples[0], Path(folder), options.seconds)
        supply(recipe, Path(folder), options.seconds)
        steps(recipe, Path(folder), options.steps)


if __name__ == "__main__":
    main()
