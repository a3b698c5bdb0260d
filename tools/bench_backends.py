"""Compare what computes a network: speed, agreement and memory of torch, onnxruntime and OpenVINO. One run prints all.

    .venv/bin/python tools/bench_backends.py --model run/model.safetensors --scenes folder/of/scenes
    .venv/bin/python tools/bench_backends.py --model run/model.safetensors --scenes folder --side 768 --threads 1

`bare` is a forward pass of a window with all that is around the network (no data, normalisation, probabilities), in Mpx
per second of the processor's time; `whole` is `segkit predict` of a scene of 2 x 2 such windows, in the same unit.
`times` is `bare` as a ratio to torch in fp32. Agreement and the largest difference of a probability are those from
torch in fp32, on the first scenes. Each row is a process of its own, since the peak of memory never falls: `MB more` is
what preparing the network (for graphs also converting it) and its windows add to it. Int8 is calibrated on the other
scenes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.exporting.write import export
from segkit.inference.in_memory import predict_in_memory
from segkit.inference.runner import open_runner
from segkit.inference.scene_files import find_scenes
from segkit.inference.summary import peak_memory
from segkit.io.scene import Tile
from segkit.models.ensemble import load_model
from segkit.models.segmenter import Segmenter
from segkit.task.array_library import to_numpy

# Name, backend, precision, and whether the file is quantised.
ROWS = (
    ("torch fp32", "torch", "fp32", False),
    ("torch bf16", "torch", "bf16", False),
    ("onnxruntime fp32", "onnxruntime", "fp32", False),
    ("onnxruntime int8", "onnxruntime", "int8", True),
    ("OpenVINO fp32", "openvino", "fp32", False),
    ("OpenVINO bf16", "openvino", "bf16", False),
    ("OpenVINO int8", "openvino", "int8", True),
)
JUDGED = 4  # scenes


def read_scenes(model: Segmenter, files: list[tuple[Path, ...]]) -> list[Tile]:
    """Read whole scenes."""
    tiles = []
    for one in files:
        scene = model.open_scene(one)
        with scene.open() as reader:
            tiles.append(reader.read(Window(0, 0, scene.grid.width, scene.grid.height)))
    return tiles


def enlarge(tile: Tile, side: int) -> Tile:
    """Repeat a tile to `side` x `side` pixels."""
    rows, columns = (-(-side // size) for size in tile.valid.shape)
    pixels = np.tile(tile.pixels, (1, rows, columns))[:, :side, :side]
    return Tile(np.ascontiguousarray(pixels), np.tile(tile.valid, (rows, columns))[:side, :side].copy())


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one row in this process."""
    torch.set_num_threads(arguments.threads)
    _, backend, precision, quantized = ROWS[arguments.row]
    model: Any = load_model(arguments.int8 if quantized else arguments.model)
    tiles = read_scenes(model, find_scenes(arguments.scenes, vrt=False)[:JUDGED])
    before = peak_memory() or 0
    runner = open_runner(model, torch.device("cpu"), precision, backend=backend)
    probabilities = [to_numpy(runner([tile]))[0] for tile in tiles]
    np.savez(
        arguments.result, *(np.where(tile.valid, one, np.nan) for one, tile in zip(probabilities, tiles, strict=True))
    )
    window = enlarge(tiles[0], arguments.side)
    runner([window])
    seconds = []
    while len(seconds) < 2 or (sum(seconds) < arguments.seconds and len(seconds) < 5):
        started = time.process_time()
        runner([window])
        seconds.append(time.process_time() - started)
    array = enlarge(tiles[0], 2 * arguments.side).pixels
    options = {"precision": "auto" if quantized else precision, "backend": backend, "device": "cpu"}
    started = time.process_time()
    predict_in_memory(
        model, array, band_names=list(model.band_names), tile=arguments.side // model.stride * model.stride, **options
    )
    whole = time.process_time() - started
    return {
        "bare": window.valid.size / 1e6 / min(seconds),
        "whole": array[0].size / 1e6 / whole,
        "memory": ((peak_memory() or 0) - before) / 2**20,
    }


def compare(reference: list[NDArray[Any]], found: list[NDArray[Any]], model: Segmenter) -> tuple[float, float]:
    """Return the share of valid pixels with the same class, and the largest difference of a probability."""
    same = valid = 0
    largest = 0.0
    for one, other in zip(reference, found, strict=True):
        mask = np.isfinite(one[0])
        decided = [model.task.decide(torch.from_numpy(np.nan_to_num(each))[None])[0].numpy() for each in (one, other)]
        same += int(((decided[0] == decided[1]).all(axis=0) & mask).sum())
        valid += int(mask.sum())
        largest = max(largest, float(np.abs(one - other)[:, mask].max()))
    return same / valid, largest


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model file (.safetensors)")
    parser.add_argument("--scenes", nargs="+", required=True, help="scenes, folders or globs")
    parser.add_argument("--side", type=int, default=1024, help="side of the window that is timed, in pixels")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=6, help="at most so long for the forward passes of a row")
    parser.add_argument("--min-agreement", type=float, default=0.0, help="that int8 must have")
    for hidden in ("--row", "--int8", "--result"):
        parser.add_argument(hidden, type=int if hidden == "--row" else Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row is not None:
        print(json.dumps(measure(arguments)))
        return
    model: Any = load_model(arguments.model)
    reference: list[NDArray[Any]] | None = None
    with tempfile.TemporaryDirectory() as folder:
        int8 = Path(folder) / "int8.onnx"
        files = find_scenes(arguments.scenes, vrt=False)
        calibrating = [path for one in (files[JUDGED:] or files) for path in one]
        export(arguments.model, int8, quantize="int8", calibrate=calibrating, min_agreement=arguments.min_agreement)
        line = "{:18} {:>6} {:>6} {:>6} {:>10} {:>10} {:>8}".format
        print(line("", "bare", "times", "whole", "agreement", "difference", "MB more"))
        base = 0.0
        for at, (name, *_) in enumerate(ROWS):
            result = Path(folder) / f"{at}.npz"
            command = [sys.executable, __file__, *sys.argv[1:], f"--row={at}", f"--int8={int8}", f"--result={result}"]
            limits = {"OMP_NUM_THREADS": str(arguments.threads)}
            done = subprocess.run(command, env=os.environ | limits, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name:18} not possible here: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            with np.load(result) as stored:
                found = [stored[key] for key in stored.files]
            reference = reference or found
            base = base or row["bare"]
            agreement, difference = compare(reference, found, model)
            numbers = (f"{row['bare']:.2f}", f"{row['bare'] / base:.2f}", f"{row['whole']:.2f}")
            print(line(name, *numbers, f"{agreement:.4%}", f"{difference:.4f}", f"{row['memory']:.0f}"), flush=True)


if __name__ == "__main__":
    main()
