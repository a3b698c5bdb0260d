"""Measure what commands need before they work: the first line, and the CPU seconds of the libraries they import.

    .venv/bin/python tools/bench_start.py                    # predict, train and vectorize
    .venv/bin/python tools/bench_start.py predict --repeats 5

A command ends as soon as its work starts: the first forward pass, training step or read of the map. The limit is
`import torch` alone, measured in the same run. CPU seconds depend less on what else the machine does than elapsed ones.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

# The function with which the work of a command starts: module, class or None, name.
WORK = {
    "predict": ("segkit.inference.runner_base", "Runner", "__call__"),
    "train": ("segkit.training.module", "TrainingModule", "training_step"),
    "vectorize": ("segkit.vector.tracing.runs", None, "_read_codes"),
}
LOADERS = (importlib.machinery.SourceFileLoader, importlib.machinery.ExtensionFileLoader)
LISTED = 8  # libraries


def make_inputs(folder: Path) -> dict[str, list[str]]:
    """Write a scene, labels, a recipe and a model; return the arguments of each command."""
    import numpy as np
    import rasterio
    from affine import Affine

    from segkit.models.segmenter import Segmenter

    random = np.random.default_rng(0)
    profile = {"driver": "GTiff", "height": 512, "width": 512, "crs": "EPSG:32632"}
    profile |= {"transform": Affine(10, 0, 300_000, 0, -10, 5_000_000), "dtype": "uint8"}
    for name, pixels in (("scene", random.integers(1, 255, (3, 512, 512))), ("labels", np.ones((1, 512, 512)))):
        pixels[0, :256] = 2 if name == "labels" else pixels[0, :256]
        with rasterio.open(folder / f"{name}.tif", "w", count=len(pixels), **profile) as dataset:
            dataset.write(pixels.astype(np.uint8))
    (folder / "recipe.yaml").write_text(
        "name: start\n"
        "task: {type: multiclass, background: false, classes: [{name: one, value: 1}, {name: two, value: 2}]}\n"
        "data: {train: {images: scene.tif, labels: labels.tif}, cache: 0}\n"
        "model: {architecture: unet, encoder: resnet18, encoder_weights: null}\n"
        "train: {tile_size: 64, batch_size: 2, epochs: 1, steps_per_epoch: 1, precision: fp32}\n"
    )
    model = Segmenter(folder / "recipe.yaml", [128.0] * 3, [70.0] * 3, "123").eval()
    assert model.receptive_field  # is measured here, as at the end of a training, which stores it in the model file
    model.save(folder / "model.safetensors")
    at = {path.stem: str(path) for path in folder.iterdir()}
    return {
        "predict": [at["model"], at["scene"], "-o", str(folder / "map.tif"), "--precision", "fp32", "--device", "cpu"],
        "train": [at["recipe"], "-o", str(folder / "run"), "--force", "--set", "train.device=cpu"],
        "vectorize": [at["labels"], str(folder / "polygons.gpkg")],
    }


def measure(command: str, arguments: list[str]) -> dict[str, Any]:
    """Start a command in a process of its own; returns seconds, CPU seconds, and those of each library."""
    with tempfile.NamedTemporaryFile() as report:
        words = [sys.executable, __file__, "--child", report.name, command, *arguments]
        started = time.perf_counter()
        process = subprocess.Popen(words, stderr=subprocess.PIPE)
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        seconds, used = time.perf_counter() - started, psutil.Process(process.pid).cpu_times()
        rest = process.stderr.read().decode()
        if process.wait():
            raise RuntimeError(f"{command} did not start to work: {line}{rest}")
        found: dict[str, Any] = json.loads(Path(report.name).read_text())
    return found | {"line": seconds, "line_cpu": used.user + used.system, "seconds": time.perf_counter() - started}


def _child(report: str, command: str, arguments: list[str]) -> None:
    """Run a command until its work starts, and write what its libraries took."""
    took: Counter[str] = Counter()
    inner = [0.0]

    def end(*_: Any, **__: Any) -> None:
        Path(report).write_text(json.dumps({"cpu": time.process_time(), "libraries": took}))
        os._exit(0)

    def timed(load: Any) -> Any:
        def wrapped(self: Any, module: Any) -> Any:
            """Import a module; its own seconds are those without the modules that it imports."""
            name = getattr(module, "__name__", None) or module.name
            started = time.process_time()
            inner.append(0.0)
            try:
                return load(self, module)
            finally:
                elapsed = time.process_time() - started
                took[name.partition(".")[0]] += elapsed - inner.pop()
                inner[-1] += elapsed
                home, owner, function = WORK.get(command, (None, None, ""))
                if name == home and hasattr(module, owner or function):
                    setattr(getattr(module, owner) if owner else module, function, end)

        return wrapped

    for loader in LOADERS:
        loader.exec_module = timed(loader.exec_module)  # type: ignore[attr-defined, method-assign]
    importlib.machinery.ExtensionFileLoader.create_module = timed(  # type: ignore[method-assign]
        importlib.machinery.ExtensionFileLoader.create_module
    )
    if command == "torch":
        import torch  # noqa: F401

        print("done", file=sys.stderr)
        end()
    from segkit.cli import main

    sys.argv = ["segkit", command, *arguments]
    main()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", help=f"of {', '.join(WORK)}; default: all")
    parser.add_argument("--repeats", type=int, default=3, help="turns, of which the fastest counts")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        report, command, *arguments = options.child
        _child(report, command, arguments)
        return
    if unknown := set(options.commands) - WORK.keys():
        parser.error(f"unknown command {', '.join(sorted(unknown))}; there are {', '.join(WORK)}")
    with tempfile.TemporaryDirectory() as folder:
        inputs = {"torch": []} | make_inputs(Path(folder))
        wanted = ["torch", *(options.commands or WORK)]
        turns = [{name: measure(name, inputs[name]) for name in wanted} for _ in range(options.repeats)]
    best = {name: min((turn[name] for turn in turns), key=lambda one: one["cpu"]) for name in wanted}
    limit = best["torch"]["cpu"]
    print("command    first line   (CPU)   work starts   (CPU)  / import torch   CPU seconds of libraries")
    for name, one in best.items():
        libraries = sorted(one["libraries"].items(), key=lambda item: -item[1])[:LISTED]
        listed = ", ".join(f"{library} {seconds:.2f}" for library, seconds in libraries)
        line = min(turn[name]["line"] for turn in turns)
        print(
            f"{name:<10} {line:8.2f} s {one['line_cpu']:5.2f} s {one['seconds']:11.2f} s {one['cpu']:5.2f} s "
            f"{one['cpu'] / limit:15.2f}   {listed}"
        )


if __name__ == "__main__":
    main()
