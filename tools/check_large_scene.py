"""Predict a scene of 24 gigapixels, most of it no data: plan, interrupt, resume, and compare parts.

    .venv/bin/python tools/check_large_scene.py                              # 160,000 x 150,000 pixels, half an hour
    .venv/bin/python tools/check_large_scene.py --width 16000 --height 15000

The scene is a sparse BigTIFF, of which only some squares are stored. The tool predicts it with a tiny U-Net, presses
Ctrl-C after some row bands, and runs the same command again; with the --folder of an earlier run it goes on from where
that ended. It prints seconds, memory and windows of each call. Exit code 1 if the network computed more windows than
can show data, a call ended with another exit code than it should, or a patch differs from its prediction as a scene of
its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

TRANSFORM = Affine(10, 0, 300_000, 0, -10, 9_000_000)
PROFILE = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 0, "crs": "EPSG:32622", "compress": "DEFLATE"}
TILED = {"tiled": True, "blockxsize": 512, "blockysize": 512, "BIGTIFF": "YES", "SPARSE_OK": True}
RECIPE = """
name: tiny
task: {type: binary, classes: [{name: bright, value: 1}]}
data:
  train: {images: sample.tif, labels: labels.tif}
  val: {by: block, block: 32, fraction: 0.25}
model: {architecture: unet, encoder: tu-resnet10t, options: {encoder_depth: 2, decoder_channels: [8, 8]}}
train: {tile_size: 32, batch_size: 2, epochs: 1, steps_per_epoch: 20, precision: fp32, baselines: []}
"""
MARGIN = 200  # pixels of no data that are predicted around a patch
MAX_DIFFERENT = 0.00015  # share of the pixels of a patch, as for any two tilings
START = multiprocessing.get_context("forkserver")


@dataclass
class Call:
    """What one call of `segkit predict` did."""

    code: int
    seconds: float
    planned: float
    windows: int
    peak_mib: float
    bands: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all steps; those of an earlier run with the same folder are not repeated."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=160_000)
    parser.add_argument("--height", type=int, default=150_000)
    parser.add_argument("--patches", type=int, default=12, help="squares of the scene that have data")
    parser.add_argument("--side", type=int, default=1500, help="side of a patch in pixels")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--stop-after", type=int, default=100, metavar="BANDS")
    parser.add_argument("--band-pixels", type=int, help="least pixels of a row band, to try this with a small scene")
    parser.add_argument("--compare", type=int, default=3, metavar="N", help="patches predicted as scenes of their own")
    parser.add_argument("--folder", type=Path, help="where to work, and to go on; default: a temporary folder")
    given = parser.parse_args(arguments)
    if given.folder is None:
        with tempfile.TemporaryDirectory() as name:
            return check(given, Path(name))
    given.folder.mkdir(parents=True, exist_ok=True)
    return check(given, given.folder.resolve())  # the processes that predict work in it


def check(given: argparse.Namespace, folder: Path) -> int:
    """Run all steps in a folder; return the exit code."""
    scene, done = folder / "scene.tif", folder / "map.tif"
    patches = place_patches(given.width, given.height, given.patches, given.side)
    if not (folder / "run" / "model.safetensors").exists():
        train(folder)
    if not scene.exists():
        write_scene(scene, given.width, given.height, patches)
    megapixels = given.width * given.height / 1e6
    print(f"scene: {megapixels:,.0f} Mpx, {scene.stat().st_size / 2**20:,.1f} MiB, {len(patches)} patches", flush=True)
    with_data = count_windows(given, patches)
    failed = []
    if not done.exists() and not list(folder.glob("map.tif.bands/band-*")):
        call = predict(folder, "scene.tif", "map.tif", given, stop_after=given.stop_after)
        report("interrupted", call, megapixels)
        failed += [f"exit code {call.code} after Ctrl-C"] * (call.code != 130)
        failed += [f"{call.windows} windows of {with_data} with data"] * (call.windows > with_data)
    if not done.exists():
        before = len(list(folder.glob("map.tif.bands/band-*")))
        call = predict(folder, "scene.tif", "map.tif", given)
        report(f"resumed, {before} bands were finished", call, megapixels)
        failed += [f"exit code {call.code} when resumed"] * (call.code != 0)
        failed += [f"{call.windows} windows of {with_data} with data"] * (call.windows > with_data)
    for number, patch in enumerate(patches[: given.compare] if done.exists() else []):
        share = compare(folder, number, patch, given)
        print(f"patch {number}: {share:.6%} of the pixels differ from those of a scene of its own", flush=True)
        failed += [f"patch {number} differs"] * (share > MAX_DIFFERENT)
    print("\n".join(f"FAILED: {one}" for one in failed) or "ok")
    return 1 if failed else 0


def place_patches(width: int, height: int, number: int, side: int) -> list[Window]:
    """Return squares with no data between them: two in corners of the scene, the others in cells of a lattice."""
    cell = side + 2 * MARGIN
    across, down = (width - side) // cell, (height - side) // cell
    inner = np.random.default_rng(0).permutation(np.arange(1, across * down))[: max(0, number - 2)]
    places = [(0, 0), (width - side, height - side), *((one % across * cell, one // across * cell) for one in inner)]
    return [Window(int(left), int(top), side, side) for left, top in places[:number]]


def textured(random: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, 0 and 1 in blocks of 8 pixels, and an image of them, uint8 (side, side)."""
    labels = np.kron(random.integers(0, 2, (-(-side // 8), -(-side // 8)), dtype=np.uint8), np.ones((8, 8), np.uint8))
    labels = labels[:side, :side]
    return labels, (60 + 100 * labels + random.integers(0, 50, labels.shape)).astype(np.uint8)


def write_scene(path: Path, width: int, height: int, patches: Sequence[Window]) -> None:
    """Write the scene; blocks without a patch take no space."""
    random = np.random.default_rng(1)
    part = path.with_suffix(".part")
    with rasterio.open(part, "w", **PROFILE, **TILED, width=width, height=height, transform=TRANSFORM) as dataset:
        for patch in patches:
            dataset.write(textured(random, patch.width)[1], 1, window=patch)
    part.replace(path)


def train(folder: Path) -> None:
    """Train a network on a sample of 96 x 96 pixels."""
    import segkit

    labels, image = textured(np.random.default_rng(2), 96)
    for file, band in (("sample.tif", image), ("labels.tif", labels)):
        nodata = 0 if band is image else None
        size = {"width": 96, "height": 96, "transform": TRANSFORM}
        with rasterio.open(folder / file, "w", **PROFILE | size | {"nodata": nodata}) as dataset:
            dataset.write(band, 1)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few pixels
        segkit.train(folder / "recipe.yaml", folder / "run", overwrite=True, force=True)


def predict(folder: Path, scene: str, output: str, given: argparse.Namespace, *, stop_after: int | None = None) -> Call:
    """Run `segkit predict` in a process of its own; press Ctrl-C after some row bands."""
    options = ["--tile", str(given.tile), "--precision", "fp32", "--device", "cpu"]
    arguments = ["predict", "run/model.safetensors", scene, "-o", output, *options]
    bands, facts = folder / f"{output}.bands", folder / "facts.json"
    facts.unlink(missing_ok=True)
    started, planned, finished = time.monotonic(), 0.0, 0
    process = START.Process(target=run_command, args=(folder, arguments, given.band_pixels, facts))
    process.start()
    while process.is_alive():
        process.join(0.02)
        if not planned and is_planned(bands):
            planned = time.monotonic() - started
        found = len(list(bands.glob("band-*")))
        finished = max(found, finished)
        if stop_after is not None and found >= stop_after and process.pid is not None:
            os.kill(process.pid, signal.SIGINT)
            stop_after = None
    seconds = time.monotonic() - started
    own = json.loads(facts.read_text(encoding="utf-8")) if facts.exists() else {"windows": 0, "peak_mib": 0.0}
    code = own.pop("code", process.exitcode)
    return Call(code, seconds, planned, **own, bands=finished)


def is_planned(bands: Path) -> bool:
    """Return whether the plan is stored, after which the first window is read."""
    try:
        return json.loads((bands / "request.json").read_text(encoding="utf-8"))["plan"] is not None
    except (OSError, ValueError):
        return False


def run_command(folder: Path, arguments: list[str], band_pixels: int | None, facts: Path) -> None:
    """Run the command line in this process, and write what it did to a file."""
    import segkit.inference.tiling
    from segkit.cli.app import main as segkit_main
    from segkit.inference.summary import peak_memory
    from segkit.inference.torch_runner import TorchRunner

    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background lets it be ignored
    if band_pixels is not None:
        segkit.inference.tiling._MIN_BAND_PIXELS = band_pixels
    windows, compute = 0, TorchRunner.__call__

    def count(runner, tiles):  # type: ignore[no-untyped-def]
        nonlocal windows
        windows += len(tiles)
        return compute(runner, tiles)

    TorchRunner.__call__ = count  # type: ignore[method-assign]
    sys.argv = ["segkit", *arguments]
    try:
        segkit_main()
    except SystemExit as end:
        own = {"code": end.code, "windows": windows, "peak_mib": peak_memory() / 2**20}
        facts.write_text(json.dumps(own), encoding="utf-8")


def report(what: str, call: Call, megapixels: float) -> None:
    """Print what a call did."""
    print(
        f"{what}: exit code {call.code} after {call.seconds:,.1f} s ({megapixels / call.seconds:,.0f} Mpx/s); "
        f"planned after {call.planned:.1f} s; {call.windows} windows computed; peak memory {call.peak_mib:,.0f} MiB; "
        f"{call.bands} bands and seams in the journal",
        flush=True,
    )


def count_windows(given: argparse.Namespace, patches: Sequence[Window]) -> int:
    """Return how many windows show a part of a patch, if each patch met the most that it can."""
    across = -(-given.side // (given.tile // 2)) + 2
    return len(patches) * across**2


def compare(folder: Path, number: int, patch: Window, given: argparse.Namespace) -> float:
    """Predict a patch, with the no data around it, as a scene of its own; return the share of pixels that differ."""
    name = f"patch_{number}"
    with rasterio.open(folder / "scene.tif") as dataset, rasterio.open(folder / "map.tif") as whole:
        left, top = max(0, patch.col_off - MARGIN), max(0, patch.row_off - MARGIN)
        right = min(dataset.width, patch.col_off + patch.width + MARGIN)
        bottom = min(dataset.height, patch.row_off + patch.height + MARGIN)
        around = Window(left, top, right - left, bottom - top)
        size = {"width": around.width, "height": around.height, "transform": dataset.window_transform(around)}
        with rasterio.open(folder / f"{name}.tif", "w", **PROFILE, **size) as part:
            part.write(dataset.read(window=around))
        expected = whole.read(1, window=around)
    if predict(folder, f"{name}.tif", f"{name}_map.tif", given).code != 0:
        return 1.0  # there is no map
    with rasterio.open(folder / f"{name}_map.tif") as found:
        return float((found.read(1) != expected).sum() / (patch.width * patch.height))


if __name__ == "__main__":
    sys.exit(main())
