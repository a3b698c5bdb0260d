"""Measure `segkit evaluate` on a large map: exactness, time and memory, at two sizes. One run prints all.

    .venv/bin/python tools/bench_evaluate.py                      # the cloud map of 120 Mpx against a copy with errors
    .venv/bin/python tools/bench_evaluate.py --map ../shared/data/label_maps/nlcd.tif

The copy differs in a hundredth of its pixels and is moved by one column in a tenth of its rows. The limit printed
beside is reading both files and counting pairs of codes with numpy. Each size runs in a process of its own; the small
one has the rows of one block that is read at once, so both work on blocks and strips of one size.
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
from rasterio.windows import Window

MAPS = Path(__file__).resolve().parents[2] / "shared" / "data" / "label_maps"
BLOCK_ROWS = 2048  # of a map that `segkit.evaluation.decisions` reads at once
CLOUDS = "S2A_MSIL2A_20170725T142751_N9999_R053_T19GBQ_20240410T040247_expected_output.tif"


def peak() -> float:
    """Return the most memory that this process has held, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**10
    raise OSError("/proc tells no VmHWM")


def make(source: Path, folder: Path, rows: int | None) -> None:
    """Write a part of a map and its copy with errors."""
    with rasterio.open(source) as file:
        height = min(rows or file.height, file.height)
        codes = file.read(1, window=Window(0, 0, file.width, height))
        profile = {"driver": "GTiff", "count": 1, "height": height, "width": file.width, "dtype": codes.dtype}
        profile |= {"crs": file.crs, "transform": file.transform, "compress": "deflate", "tiled": True}
    random, wrong = np.random.default_rng(0), codes.copy()
    kinds = np.unique(codes)
    moved = random.random(height) < 0.1
    wrong[moved] = np.roll(wrong[moved], 1, axis=1)
    place = random.integers(0, codes.size, codes.size // 100)
    wrong.reshape(-1)[place] = random.choice(kinds, len(place))
    for name, values in (("map.tif", wrong), ("truth.tif", codes)):
        with rasterio.open(folder / name, "w", **profile) as file:
            file.write(values, 1)
    lines = [f"{code},class {code}" for code in kinds]
    (folder / "names.csv").write_text("\n".join(["value,name,background", *(line + ",no" for line in lines)]))


def measured(folder: Path, boundary: str) -> dict[str, Any]:
    """Evaluate in this process."""
    from segkit.evaluation.evaluate import evaluate

    started, before = time.perf_counter(), peak()
    names = folder / "names.csv"
    found = evaluate(folder / "map.tif", None, folder / "truth.tif", class_names=names, boundary_width=boundary)
    return {
        "seconds": time.perf_counter() - started,
        "peak": peak(),
        "imports": before,
        "matrix": found["confusion"]["matrix"],
    }


def limit(folder: Path) -> tuple[float, list[list[int]]]:
    """Read both files and count pairs with numpy."""
    started = time.perf_counter()
    with rasterio.open(folder / "map.tif") as one, rasterio.open(folder / "truth.tif") as other:
        total = np.zeros(2**16, dtype=np.int64)
        for _, window in one.block_windows(1):
            pairs = other.read(1, window=window).astype(np.int64) * 256 + one.read(1, window=window)
            total += np.bincount(pairs.ravel(), minlength=2**16)
    seconds = time.perf_counter() - started
    matrix = total.reshape(256, 256)
    kinds = np.flatnonzero(matrix.any(axis=1) | matrix.any(axis=0))
    return seconds, matrix[np.ix_(kinds, kinds)].tolist()


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--map", type=Path, default=MAPS / CLOUDS)
    parser.add_argument("--boundary", default="2px")
    parser.add_argument("--elsewhere", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.elsewhere:
        print(json.dumps(measured(options.elsewhere, options.boundary)))
        return
    peaks = []
    for rows in (BLOCK_ROWS, None):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make(options.map, folder, rows)
            command = [sys.executable, __file__, "--elsewhere", name, "--boundary", options.boundary]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            seconds, matrix = limit(folder)
            mpx = sum(map(sum, matrix)) / 1e6
            same = "equal to" if matrix == found["matrix"] else "DIFFERENT FROM"
            print(
                f"{mpx:.1f} Mpx: {found['seconds']:.1f} s ({mpx / found['seconds']:.1f} Mpx/s), reading "
                f"and counting alone {seconds:.1f} s; peak RSS {found['peak']:.0f} MiB "
                f"(imports {found['imports']:.0f}); counts {same} numpy's"
            )
            peaks.append(f"{found['peak']:.0f} MiB with {mpx:.1f} Mpx")
    print("peak RSS: " + ", ".join(peaks))


if __name__ == "__main__":
    main()
