"""Check training and prediction on the CUDA devices of this machine, and compare them with its CPU. One run does all.

    .venv/bin/python tools/check_gpu.py                      # a minute or two on one GPU
    .venv/bin/python tools/check_gpu.py --size 8192          # of the scene of the benchmark

Each check is a line: ok, or FAILED with what was found. Exit code 0: all passed, or there is no CUDA device, which is
said in one line; 1: a check failed. Nothing is written outside of a temporary folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bench_predict import BANDS, _decoding, make_scene

from segkit.inference.device import pick_precision
from segkit.inference.predict import predict
from segkit.inference.settings import BLEND_WIDTH, OVERLAP, TILE
from segkit.inference.tiling import plan_tiling
from segkit.io.grid import Grid
from segkit.models.segmenter import Segmenter, load

GOAL = 0.9  # of the speed of the slower one of decoding and bare forward passes
MIN_AGREEMENT = 0.999  # share of pixels decided as on the CPU
MAX_DIFFERENCE = 1 / 255 + 1e-6  # of stored probabilities: one step


class CheckError(Exception):
    """What a check found wrong."""


def write_recipe(folder: Path) -> Path:
    """Write a scene of two classes, its labels and a recipe."""
    random = np.random.default_rng(0)
    codes = np.kron(random.integers(1, 3, (16, 16)), np.ones((32, 32), int)).astype(np.uint8)
    scene = make_scene(folder / "train.tif", 512)
    with rasterio.open(scene, "r+") as dataset:
        dataset.write(np.clip(dataset.read() // 2 + (codes * 250)[None], 1, 1000).astype(np.uint16))
        profile = dataset.profile | {"count": 1, "dtype": "uint8", "nodata": None}
    with rasterio.open(folder / "labels.tif", "w", **profile) as dataset:
        dataset.write(codes, 1)
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "name: gpu\n"
        "task: {type: multiclass, background: false, classes: [{name: one, value: 1}, {name: two, value: 2}]}\n"
        "data: {train: {images: train.tif, labels: labels.tif}, cache: 0}\n"
        "model: {architecture: unet, encoder: resnet18, encoder_weights: null}\n"
        "train: {tile_size: 128, batch_size: 4, epochs: 2, steps_per_epoch: 20, device: cuda}\n"
    )
    return recipe


def train(recipe: Path, precision: str, devices: int = 1) -> str:
    """Train in a process of its own, since several devices need several, and check that the model has learned."""
    run = recipe.parent / f"{precision}-{devices}"
    settings = (f"train.precision={precision}", f"train.devices={devices}")
    command = [sys.executable, "-m", "segkit", "train", str(recipe), "-o", str(run), "--force"]
    command += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckError(done.stderr.strip().splitlines()[-1])
    accuracy = load(run / "model.safetensors").metrics["overall_accuracy"]
    if accuracy is None or accuracy < 0.8:
        raise CheckError(f"the model is right in {accuracy} of the pixels, and 0.8 is easy")
    return f"accuracy {accuracy:.3f}"


def read(path: Path) -> np.ndarray:
    """Return the stored values of a raster."""
    with rasterio.open(path) as dataset:
        return dataset.read().astype(int)


def compare(model: Segmenter, scene: Path, device: str, precision: str) -> str:
    """Compare a map of a GPU with that of the CPU in fp32."""
    found = {}
    for name, which in (("cpu", "fp32"), (device, precision)):
        out = scene.parent / f"{name.replace(':', '')}-{which}"
        options = {"device": name, "precision": which, "tile": 512, "overlap": 160, "overwrite": True}
        predict(model, scene, f"{out}.tif", probabilities=f"{out}-p.tif", **options)
        found[name] = read(Path(f"{out}.tif")), read(Path(f"{out}-p.tif"))
    (codes, chances), (own_codes, own_chances) = found["cpu"], found[device]
    agreement, difference = float((codes == own_codes).mean()), abs(chances - own_chances).max() / 254
    if agreement < MIN_AGREEMENT or (precision == "fp32" and difference > MAX_DIFFERENCE):
        raise CheckError(f"{agreement:.5f} of the pixels as on the CPU, probabilities differ by up to {difference:.4f}")
    return f"{agreement:.5f} of the pixels as on the CPU, probabilities differ by up to {difference:.4f}"


def time_forward(model: Segmenter, precision: str, shape: tuple[int, int, int, int]) -> float:
    """Return the seconds of a bare forward pass per window, of batches of a shape."""
    device, turns = torch.device("cuda"), 8
    prepared = model.optimized_for_inference(device, precision)
    pixels = torch.rand(shape, device=device).mul(1000)
    valid = torch.ones(shape[0], *shape[2:], dtype=torch.bool, device=device)
    with torch.inference_mode():
        for turn in range(3 + turns):
            if turn == 3:  # cuDNN has chosen its algorithms
                torch.cuda.synchronize(device)
                started = time.perf_counter()
            prepared(pixels, valid)
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / turns / shape[0]


def benchmark(model: Segmenter, folder: Path, size: int) -> str:
    """Compare the speed of a prediction with the slower one of decoding and bare forward passes."""
    precision = pick_precision("auto", torch.device("cuda"))
    scene = make_scene(folder / "large.tif", size)
    with rasterio.open(scene) as dataset:
        grid = Grid(size, size, dataset.transform, None)
    tiling = plan_tiling(grid, TILE, OVERLAP, model.stride, blend_width=BLEND_WIDTH)
    windows = len(tiling.rows.spans) * len(tiling.columns.spans)
    forward = time_forward(model, precision, (4, BANDS, tiling.rows.length, tiling.columns.length)) * windows
    decoding = _decoding(scene)
    options = {"precision": precision, "device": "cuda", "overwrite": True}
    predict(model, scene, folder / "large-map.tif", **options)  # cuDNN chooses its algorithms
    [summary] = predict(model, scene, folder / "large-map.tif", **options)
    ratio = max(forward, decoding) / summary.seconds
    text = (
        f"predict {summary.seconds:.2f} s, bare forward passes {forward:.2f} s, decoding {decoding:.2f} s: {ratio:.3f} "
        f"of the limit, goal {GOAL}"
    )
    if ratio < GOAL:
        raise CheckError(text)
    return text


def run_checks(checks: dict[str, Callable[[], str]]) -> bool:
    """Run checks and print a line for each; returns whether all passed."""
    passed = True
    for name, check in checks.items():
        try:
            print(f"ok      {name}: {check()}", flush=True)
        except CheckError as error:
            passed = False
            print(f"FAILED  {name}: {error}", flush=True)
        except Exception as error:  # noqa: BLE001 - the other checks go on
            passed = False
            traceback.print_exc()
            print(f"FAILED  {name}: {type(error).__name__}: {error}", flush=True)
    return passed


def main() -> int:
    """Run all checks that the machine allows; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8192, help="side of the scene of the benchmark, in pixels")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"no CUDA device (torch {torch.__version__}): nothing is checked")
        return 0
    count = torch.cuda.device_count()
    for number in range(count):
        print(f"cuda:{number}: {torch.cuda.get_device_name(number)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe, scene = write_recipe(folder), make_scene(folder / "scene.tif", 1536)
        precisions = ["fp32", "fp16"]
        precisions += ["bf16"] if pick_precision("auto", torch.device("cuda")) == "bf16" else []
        checks: dict[str, Callable[[], str]] = {
            f"training in {precision}": lambda precision=precision: train(recipe, precision)  # type: ignore[misc]
            for precision in precisions
        }
        if count > 1:
            checks["training on two devices"] = lambda: train(recipe, "fp32", 2)

        def model() -> Segmenter:
            return load(folder / "fp32-1" / "model.safetensors")

        for device in [f"cuda:{number}" for number in range(count)]:
            for precision in precisions:
                if precision != "fp16":
                    checks[f"prediction on {device} in {precision}"] = (
                        lambda device=device, precision=precision: compare(model(), scene, device, precision)  # type: ignore[misc]
                    )
        checks["speed of prediction"] = lambda: benchmark(model(), folder, options.size)
        return int(not run_checks(checks))


if __name__ == "__main__":
    sys.exit(main())
