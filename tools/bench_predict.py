"""Measure `segkit predict`: speed beside the network's bare forward passes, and whether memory follows the scene.

    .venv/bin/python tools/bench_predict.py                            # U-Net with resnet18, 4096 x 4096
    .venv/bin/python tools/bench_predict.py --encoder none --sizes 4096 16384

Each size runs in a process of its own, since a process's peak memory never falls. The scene is 4 bands of uint16.
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

from segkit.model import Segmenter
from segkit.predict import predict
from segkit.predict.device import pick_device, pick_precision
from segkit.predict.plan import plan_axis
from segkit.raster import Scene
from segkit.recipe import Recipe
from segkit.task import LandClass, Task

BANDS = 4
CLASSES = ("water", "forest", "field", "town")
BARE_WINDOWS = 12  # at most as many are timed, and counted for all


class Tiny(nn.Module):
    """One 3 x 3 convolution in a Segmenter's place: the machinery without a network."""

    def __init__(self) -> None:
        super().__init__()
        self.task = Task("multiclass", tuple(LandClass(name, value) for value, name in enumerate(CLASSES, 1)))
        self.bands, self.stride, self.path = BANDS, 32, None
        self.mix = nn.Conv2d(BANDS, self.task.channels, 3, padding=1)

    def scene(self, paths: Any) -> Scene:
        """Describe a scene."""
        return Scene.of(paths)

    def check_scene(self, scene: Scene) -> None:
        """Refuse other scenes than this bench's."""
        assert len(scene.bands) == self.bands

    def forward(self, pixels: Tensor, valid: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.mix(pixels.where(valid[:, None], 0.0) / 1000)
        return logits.float()


def make_model(encoder: str) -> Any:
    torch.manual_seed(0)
    if encoder == "none":
        return Tiny().eval()
    classes = [{"name": name, "value": value} for value, name in enumerate(CLASSES, 1)]
    recipe = {
        "name": "bench",
        "task": {"type": "multiclass", "classes": classes},
        "data": {"train": {"images": "-", "labels": "-"}},
        "model": {"architecture": "unet", "encoder": encoder},
    }
    names = [str(band) for band in range(BANDS)]
    return Segmenter(Recipe.from_dict(recipe), [500.0] * BANDS, [250.0] * BANDS, names).eval()


def make_scene(path: Path, size: int) -> None:
    """Write a scene of one noisy block, moved about, so that it is quickly made and not trivially compressed."""
    noise = np.random.default_rng(0).integers(1, 1000, (BANDS, 512, 512), dtype=np.uint16)
    profile = {"driver": "GTiff", "height": size, "width": size, "count": BANDS, "dtype": "uint16", "nodata": 0}
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "DEFLATE", "zlevel": 1}
    place = {"crs": "EPSG:32622", "transform": Affine(10, 0, 400_000, 0, -10, 9_000_000)}
    with rasterio.open(path, "w", **profile, **layout, **place, bigtiff="IF_SAFER") as dataset:
        for turn, (_, window) in enumerate(dataset.block_windows(1)):
            block = np.roll(noise, turn * 37, axis=2)
            dataset.write(block[:, : window.height, : window.width], window=window)


def measure(scene: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Predict once, then time the forward passes alone over windows of the same size."""
    model = make_model(options.encoder)
    with tempfile.TemporaryDirectory(dir=scene.parent) as folder:
        [summary] = predict(
            model,
            scene,
            Path(folder) / "map.tif",
            tile=options.tile,
            overlap=options.overlap,
            precision=options.precision,
        )
    device = pick_device("auto")
    precision = pick_precision(options.precision, device)
    size = Scene.of(scene).grid.height
    axis = plan_axis(size, options.tile, options.overlap, model.stride)
    windows = len(axis.spans) ** 2
    pixels = torch.rand(1, BANDS, axis.length, axis.length, device=device).mul(1000)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    valid = torch.ones(1, axis.length, axis.length, dtype=torch.bool, device=device)
    timed = min(windows, BARE_WINDOWS)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        model(pixels, valid)
        started = time.perf_counter()
        for _ in range(timed):
            model(pixels, valid)
        if device.type == "cuda":
            torch.cuda.synchronize()
    bare = (time.perf_counter() - started) / timed * windows
    return {
        "size": size,
        "precision": f"{precision} on {device.type}",
        "seconds": summary.seconds,
        "mpx_per_second": summary.mpx_per_second,
        "bare_seconds": bare,
        "efficiency": bare / summary.seconds,
        "pixel_cost": windows * axis.length**2 / size**2,
        "peak_mib": (summary.peak_memory or 0) / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet18", help="of a U-Net with random weights; none: one convolution")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096])
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure, options)))
        return
    results = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            scene = Path(folder) / "scene.tif"
            make_scene(scene, size)
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", str(scene)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        results.append(found)
        print(
            f"{size} x {size}, {options.encoder}, {found['precision']}: predict {found['seconds']:.1f} s "
            f"({found['mpx_per_second']:.2f} Mpx/s), bare passes {found['bare_seconds']:.1f} s, "
            f"ratio {found['efficiency']:.2f}, pixel cost {found['pixel_cost']:.3f}, "
            f"peak RSS {found['peak_mib']:.0f} MiB",
            flush=True,
        )
    if len(results) > 1:
        first, last = results[0], results[-1]
        ratio = last["peak_mib"] / first["peak_mib"]
        print(f"peak RSS at {last['size']} / at {first['size']}: {ratio:.3f}")


if __name__ == "__main__":
    main()
