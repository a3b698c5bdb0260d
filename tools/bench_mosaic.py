"""Measure a scene in many files beside the same scene in one: maps, polygons, time, memory. One run prints all.

    .venv/bin/python tools/bench_mosaic.py              # 64 files of 1024 x 1024 pixels, some minutes on two cores
    .venv/bin/python tools/bench_mosaic.py --side 256 --files 16

The network is two convolutions, so that reading counts. What counts memory runs in a process of its own, since a
process's peak never falls.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from affine import Affine
from torch import Tensor, nn

from segkit.inference.predict import predict
from segkit.inference.summary import peak_memory
from segkit.io.mosaic import Mosaic
from segkit.io.scene import Scene
from segkit.recipe.imagery import Imagery
from segkit.task import LandCoverClass, Task
from segkit.vector import polygons, vectorize

BANDS = 4
CLASSES = ("water", "forest", "field", "town")
TRANSFORM = Affine(10, 0, 400_000, 0, -10, 9_000_000)
PROFILE = {"driver": "GTiff", "count": BANDS, "dtype": "uint16", "nodata": 0, "crs": "EPSG:32622"}
PROFILE |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "DEFLATE", "zlevel": 1}


class Tiny(nn.Module):
    """Two convolutions in a Segmenter's place; a pixel depends on those up to 2 pixels away."""

    fixed_window_size, receptive_field, training_pixels, path, is_classical = None, 2, None, None, False
    backend = "torch"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.task = Task("multiclass", tuple(LandCoverClass(name, value) for value, name in enumerate(CLASSES, 1)))
        self.bands, self.stride = BANDS, 8
        self.imagery, self.band_names = Imagery(), tuple(str(band) for band in range(1, BANDS + 1))
        self.network = nn.Sequential(
            nn.Conv2d(BANDS, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, self.task.channels, 3, padding=1)
        )

    def open_scene(self, paths: Any, *, vrt: bool = False) -> Scene:
        """Open a scene."""
        return Scene.from_files(paths, vrt=vrt)

    def check_scene(self, scene: Scene) -> None:
        """Accept only scenes of this bench."""
        assert len(scene.bands) == self.bands

    def optimized_for_inference(self, device: torch.device, precision: str) -> Tiny:
        """Return itself: there is nothing to prepare."""
        return self.eval().to(device)

    def fingerprint(self) -> str:
        """Return a name in the place of a hash."""
        return "tiny"

    def forward(self, pixels: Tensor, valid: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.network(pixels.where(valid[:, None], 500.0) / 500 - 1)
        return logits


def write_files(folder: Path, side: int, across: int) -> None:
    """Write a scene of across x across tiles of one side in one file, and in a file for each tile."""
    (folder / "tiles").mkdir()
    size = across * side
    random = np.random.default_rng(0)
    with rasterio.open(folder / "whole.tif", "w", height=size, width=size, transform=TRANSFORM, **PROFILE) as whole:
        for number in range(across**2):
            row, column = divmod(number, across)
            rough = random.integers(1, 900, (BANDS, -(-side // 64), -(-side // 64)), dtype=np.uint16)
            pixels = np.kron(rough, np.ones((1, 64, 64), dtype=np.uint16))[:, :side, :side]
            pixels += random.integers(0, 20, pixels.shape, dtype=np.uint16)
            window = rasterio.windows.Window(column * side, row * side, side, side)
            whole.write(pixels, window=window)
            place = TRANSFORM @ Affine.translation(column * side, row * side)
            path = folder / "tiles" / f"{row:02}_{column:02}.tif"
            with rasterio.open(path, "w", height=side, width=side, transform=place, **PROFILE) as tile:
                tile.write(pixels)


def measure(name: str, *arguments: str) -> dict[str, Any]:
    """Run a job of this file in a process of its own, and print its time and memory."""
    command = [sys.executable, __file__, "--job", name, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_job(name: str, source: str, target: str) -> None:
    """Do one job, and print time and peak memory as JSON."""
    path: Path = Mosaic(source) if Path(source).is_dir() else Path(source)
    model = Tiny()
    before, started = peak_memory(), time.perf_counter()
    if name == "vectorize":
        vectorize(path, target)
    elif name == "read":
        scene = Scene.from_files(path)
        with scene.open() as reader:
            for window in scene.grid.tiles(1500):  # not aligned with the files
                reader.read(window)
    else:
        predict(model, path, target, precision="fp32", like_input=name == "predict like the input")
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak": peak_memory(), "before": before}))


def main() -> None:
    """Print a line for each job, and whether the results are the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="of a file, in pixels")
    parser.add_argument("--files", type=int, default=64, help="a square number")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        run_job(*options.job)
        return
    across = round(options.files**0.5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, options.side, across)
        size = across * options.side
        print(f"# {across**2} files of {options.side} x {options.side} beside one of {size} x {size}, {BANDS} bands")
        jobs = [
            ("read", "whole.tif", "-"),
            ("read", "tiles", "-"),
            ("predict", "whole.tif", "whole_map.tif"),
            ("predict", "tiles", "map.tif"),
            ("predict like the input", "tiles", "maps/"),
            ("vectorize", "whole_map.tif", "whole.gpkg"),
            ("vectorize", "maps", "maps.gpkg"),
        ]
        for job, source, target in jobs:
            found = measure(job, str(folder / source), f"{folder}/{target}")
            print(
                f"{job:<22} {source:<14} {found['seconds']:6.1f} s  peak RSS {found['peak'] / 2**20:5.0f} MiB "
                f"(before it {found['before'] / 2**20:.0f})",
                flush=True,
            )
        with rasterio.open(folder / "whole_map.tif") as whole, rasterio.open(folder / "map.tif") as map_:
            expected, found_map = whole.read(), map_.read()
        print(f"map: {int((expected != found_map).sum())} of {expected.size:,} pixels differ")
        different = 0
        for number in range(across**2):
            row, column = divmod(number, across)
            with rasterio.open(folder / "maps" / f"{row:02}_{column:02}.tif") as part:
                rows, columns = (slice(at * options.side, (at + 1) * options.side) for at in (row, column))
                different += int((part.read() != expected[:, rows, columns]).sum())
        print(f"maps like the input: {different} pixels differ")
        one, other = polygons(folder / "whole_map.tif"), polygons(Mosaic(folder / "maps"))
        same = one.geometry.geom_equals(other.geometry).all() if len(one) == len(other) else False
        print(f"polygons: {len(one):,} of the one map, {len(other):,} of {across**2} maps, identical: {bool(same)}")


if __name__ == "__main__":
    main()
