"""How many requests and bytes a scene behind a URL costs, and what comes of a server that fails.

    .venv/bin/python tools/bench_cloud.py [--side 8192] [--folder DIR]

A COG is made (4 bands, uint16, tiles of 512, deflate) and served by this process; each measure is a process of its own,
which knows nothing of the server yet. `segkit` reads as segkit.predict does, `GDAL` reads the same windows as rasterio
does by itself. Ratios are bytes that were fetched by bytes of the tiles that were touched.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.windows import Window

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from server import Served, serving

from segkit.errors import SegkitError
from segkit.inference.tiling import plan_tiling
from segkit.io.grid import Grid
from segkit.io.scene import Scene

BLOCK = 512
WINDOWS = {
    "opening": None,
    "aligned, 1 tile": Window(2 * BLOCK, 3 * BLOCK, BLOCK, BLOCK),
    "aligned, 4 tiles": Window(2 * BLOCK, 3 * BLOCK, 2 * BLOCK, 2 * BLOCK),
    "not aligned, 9 tiles": Window(2 * BLOCK + 100, 3 * BLOCK + 200, 1024, 1024),
}


def make(path: Path, side: int) -> None:
    """Write a smooth scene with noise, which deflate packs to about a half."""
    random = np.random.default_rng(0)
    plain = path.with_name("plain.tif")
    profile = {"width": side, "height": side, "count": 4, "dtype": "uint16", "crs": "EPSG:32622"}
    place = Affine(10, 0, 600_000, 0, -10, 9_000_000)
    with rasterio.open(plain, "w", driver="GTiff", **profile, transform=place, tiled=True) as dataset:
        for top in range(0, side, BLOCK):
            rows = random.integers(0, 300, (4, min(BLOCK, side - top), side)) + np.arange(side) // 3
            dataset.write(rows.astype(np.uint16), window=Window(0, top, side, rows.shape[1]))
    rasterio.shutil.copy(plain, path, driver="COG", COMPRESS="DEFLATE", LEVEL=1, BLOCKSIZE=BLOCK, NUM_THREADS="2")
    plain.unlink()


def bands(side: int) -> Iterator[list[Window]]:
    """Give the windows that segkit.predict reads, for each time that it opens the scene."""
    tiling = plan_tiling(Grid(side, side, Affine.identity(), None), 1024, 128, 32)
    for band in tiling.bands:
        yield [
            Window(column.origin, row.origin, min(1024, side - column.origin), min(1024, side - row.origin))
            for group in tiling.groups
            for row in band.spans
            for column in group
        ]


def client(how: str, what: str, source: str) -> dict[str, Any]:
    """Read in this process, and tell a checksum and the seconds."""
    started, total = time.perf_counter(), 0
    scene = Scene.from_files(source) if how == "segkit" else None
    side = scene.grid.width if scene is not None else None
    name = source if how == "file" else f"/vsicurl/{source}"

    def reader() -> Any:
        return scene.open() if scene is not None else rasterio.open(name)

    if what == "scene":
        if side is None:
            with rasterio.open(name) as dataset:
                side = dataset.width
        sessions = list(bands(side))
    else:
        window = WINDOWS[what]
        sessions = [[] if window is None else [window]]
    try:
        for windows in sessions:
            with reader() as opened:
                for window in windows:
                    pixels = opened.read(window).pixels if scene is not None else opened.read(window=window)
                    total = zlib.crc32(np.ascontiguousarray(pixels, dtype=np.float32).data, total)
    except SegkitError as error:
        return {"seconds": time.perf_counter() - started, "error": str(error)}
    return {"seconds": time.perf_counter() - started, "sum": total}


def ask(how: str, what: str, source: str, **environment: str) -> dict[str, Any]:
    """Run `client` in a process of its own."""
    command = [sys.executable, __file__, "--client", how, what, source]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1]) | {"stderr": done.stderr}


def tile_bytes(path: Path, windows: list[Window]) -> int:
    with rasterio.open(path) as dataset:
        touched = {
            (column, row)
            for window in windows
            for row in range(int(window.row_off) // BLOCK, -(-int(window.row_off + window.height) // BLOCK))
            for column in range(int(window.col_off) // BLOCK, -(-int(window.col_off + window.width) // BLOCK))
        }
        sizes = (dataset.get_tag_item(f"BLOCK_SIZE_{column}_{row}", "TIFF", 1) for column, row in touched)
        return sum(int(size) for size in sizes)


def costs(path: Path, side: int, served: Served) -> None:
    url = served.url(path.name)
    print(f"{'what':22}{'':8}{'requests':>9}{'of them HEAD':>13}{'beside it':>10}{'MB':>9}{'ratio':>8}{'seconds':>9}")
    for what in [*WINDOWS, "scene"]:
        window = WINDOWS.get(what)
        windows = [one for band in bands(side) for one in band] if what == "scene" else [window] if window else []
        needed = tile_bytes(path, windows)
        local = ask("file", what, str(path))
        for how in ("segkit", "GDAL"):
            served.forget()
            found = ask(how, what, url)
            assert found.get("sum") == local["sum"], found
            sent = sum(served.sent.values())
            heads = sum(method == "HEAD" for method, _, _ in served.asked)
            beside = len(served.asked) - served.requests(path.name)
            ratio = f"{sent / needed:8.3f}" if needed else " " * 8
            print(
                f"{what:22}{how:8}{len(served.asked):9}{heads:13}{beside:10}{sent / 1e6:9.2f}{ratio}"
                f"{found['seconds']:9.2f}"
            )
        print(f"{'':22}{'a file':8}{'':9}{'':13}{'':10}{needed / 1e6:9.2f}{'':8}{local['seconds']:9.2f}")


def failures(path: Path, served: Served) -> None:
    what = "not aligned, 9 tiles"
    expected = ask("segkit", what, str(path))["sum"]
    print(f"\n{'server':22}{'times':>9}{'requests':>9}{'seconds':>9}  what came out (as set by default)")
    for how in (500, 503, 404, "reset", "short", "stall"):
        for times in (1, 3, 10**6):
            served.forget()
            left = [times]

            def fail(
                _: str, range_: tuple[int, int] | None, left: list[int] = left, how: Any = how, times: int = times
            ) -> Any:
                if left[0] == times and (not range_ or range_[0] == 0):  # what is asked first, to know the file
                    return None
                left[0] -= 1
                return how if left[0] >= 0 else None

            served.fail = fail
            found = ask("segkit", what, served.url(path.name))
            came = "the right pixels" if found.get("sum") == expected else found.get("error", "WRONG PIXELS")
            assert not found["stderr"], found["stderr"]
            count = "for good" if times == 10**6 else str(times)
            print(f"{how!s:22}{count:>9}{len(served.asked):9}{found['seconds']:9.1f}  {came[:150]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--client", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.client:
        print(json.dumps(client(*asked.client)))
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        path = Path(folder) / "scene.tif"
        make(path, asked.side)
        print(f"{asked.side} x {asked.side}, 4 bands of uint16: {path.stat().st_size / 1e6:.0f} MB")
        with serving(Path(folder)) as served:
            served.stalled = 600
            costs(path, asked.side, served)
            failures(path, served)


if __name__ == "__main__":
    main()
