"""Measure `segkit predict`: speed beside its limits, seams, memory, and what kills leave behind. One run prints all.

    .venv/bin/python tools/bench_predict.py                              # everything, about half an hour on two cores
    .venv/bin/python tools/bench_predict.py efficiency --size 4096
    .venv/bin/python tools/bench_predict.py seams --model run/model.safetensors --imagery folder/of/tiles

Speeds and memory are those of a U-Net (resnet18, random weights) on a scene of 4 bands of uint16; the tiny network is
one convolution. Whatever counts memory runs in a process of its own, since a process's peak never falls.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
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

from segkit.inference import tiling as plan
from segkit.inference.blending import predict_blocks
from segkit.inference.device import pick_device, pick_precision
from segkit.inference.predict import predict
from segkit.inference.runner import open_runner
from segkit.inference.settings import BLEND_WIDTH, OVERLAP, TILE, PredictOptions, resolve_settings
from segkit.inference.summary import peak_memory
from segkit.inference.tiling import Tiling, plan_tiling
from segkit.io.grid import Grid
from segkit.io.scene import Scene
from segkit.models.segmenter import Segmenter, load
from segkit.recipe.imagery import Imagery
from segkit.recipe.schema import Recipe
from segkit.task import LandCoverClass, Task

BANDS = 4
CLASSES = ("water", "forest", "field", "town")
PLACE = {"crs": "EPSG:32622", "transform": Affine(10, 0, 400_000, 0, -10, 9_000_000)}


class Tiny(nn.Module):
    """One 3 x 3 convolution in a Segmenter's place: the machinery without a network."""

    fixed_window_size, receptive_field, path, is_classical, training_pixels = None, 1, None, False, None
    backend = "torch"

    def __init__(self, stride: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.task = Task("multiclass", tuple(LandCoverClass(name, value) for value, name in enumerate(CLASSES, 1)))
        self.bands, self.stride, self.imagery = BANDS, stride, Imagery()
        self.band_names = tuple(str(band) for band in range(1, BANDS + 1))
        self.network = nn.Conv2d(BANDS, self.task.channels, 3, padding=1)

    def open_scene(self, paths: Any, *, vrt: bool = False) -> Scene:
        """Describe a scene."""
        return Scene.from_files(paths, vrt=vrt)

    def check_scene(self, scene: Scene) -> None:
        """Refuse other scenes than this bench's."""
        assert len(scene.bands) == self.bands

    def optimized_for_inference(self, device: torch.device, precision: str) -> Tiny:
        """Return itself: there is nothing to fold."""
        return self.to(device)

    def fingerprint(self) -> str:
        """Return what tells it apart."""
        return "tiny"

    def forward(self, pixels: Tensor, valid: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.network(pixels.where(valid[:, None], 0.0) / 1000)
        return logits.float()


def unet(encoder: str = "resnet18") -> Segmenter:
    """Return a U-Net with random weights."""
    torch.manual_seed(0)
    classes = [{"name": name, "value": value} for value, name in enumerate(CLASSES, 1)]
    recipe = {
        "name": "bench",
        "task": {"type": "multiclass", "classes": classes},
        "data": {"train": {"images": "-", "labels": "-"}},
        "model": {"architecture": "unet", "encoder": encoder},
    }
    names = [str(band) for band in range(BANDS)]
    return Segmenter(Recipe.from_dict(recipe), [500.0] * BANDS, [250.0] * BANDS, names).eval()


def make_scene(path: Path, size: int, height: int | None = None) -> Path:
    """Write a scene of one noisy block, moved about, so that it is quickly made and not trivially compressed."""
    noise = np.random.default_rng(0).integers(1, 1000, (BANDS, 512, 512), dtype=np.uint16)
    height = height or size
    profile = {"driver": "GTiff", "height": height, "width": size, "count": BANDS, "dtype": "uint16", "nodata": 0}
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "DEFLATE", "zlevel": 1}
    with rasterio.open(path, "w", **profile, **layout, **PLACE, bigtiff="IF_SAFER") as dataset:
        for turn, (_, window) in enumerate(dataset.block_windows(1)):
            block = np.roll(noise, turn * 37, axis=2)
            dataset.write(block[:, : window.height, : window.width], window=window)
    return path


def efficiency(options: argparse.Namespace) -> None:
    """Time `predict` beside the network's bare forward passes over as many windows, before and after it."""
    device = pick_device("auto")
    precision = pick_precision("auto", device)
    print(f"# efficiency: U-Net resnet18, {options.size} x {options.size}, {precision} on {device.type}")
    model = unet()
    grid = Grid(options.size, options.size, PLACE["transform"], None)
    tiling = plan_tiling(grid, TILE, OVERLAP, model.stride, blend_width=BLEND_WIDTH)
    windows = len(tiling.rows.spans) * len(tiling.columns.spans)
    shape = (1, BANDS, tiling.rows.length, tiling.columns.length)
    prepared = model.optimized_for_inference(device, precision)
    pixels = torch.rand(shape, device=device).mul(1000)
    valid = torch.ones(1, *shape[2:], dtype=torch.bool, device=device)

    def bare(network: nn.Module, times: int) -> float:
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=network is model and precision == "bf16")
        with torch.inference_mode(), autocast:
            network(pixels, valid)
            started = time.perf_counter()
            for _ in range(times):
                network(pixels, valid)
            if device.type == "cuda":
                torch.cuda.synchronize()
        return (time.perf_counter() - started) / times

    with tempfile.TemporaryDirectory() as folder:
        scene = make_scene(Path(folder) / "scene.tif", options.size)
        ratios, plain_ratios = [], []
        mpx = options.size**2 / 1e6
        for turn in range(options.repeats):
            before = bare(prepared, max(4, windows // 2))
            [summary] = predict(model, scene, Path(folder) / f"map{turn}.tif", precision=precision)
            passes = (before + bare(prepared, max(4, windows // 2))) / 2 * windows
            plain = bare(model.to(device, memory_format=torch.channels_last), 6) * windows
            ratios.append(passes / summary.seconds)
            plain_ratios.append(plain / summary.seconds)
            print(
                f"predict {summary.seconds:.1f} s, {summary.mpx_per_second:.2f} Mpx/s of the scene; bare passes "
                f"{passes:.1f} s ({mpx * tiling.pixel_cost / passes:.2f} Mpx/s of windows), ratio {ratios[-1]:.3f}; of "
                f"the network as it was trained, in autocast, {plain:.1f} s "
                f"({mpx * tiling.pixel_cost / plain:.2f} Mpx/s), ratio {plain_ratios[-1]:.3f}",
                flush=True,
            )
        read = _decoding(scene)
    print(
        f"medians: ratio {sorted(ratios)[len(ratios) // 2]:.3f}, to the network as it was trained "
        f"{sorted(plain_ratios)[len(ratios) // 2]:.3f}; pixel cost {tiling.pixel_cost:.3f} ({windows} windows of "
        f"{shape[2]}); decoding alone {mpx / read:.0f} Mpx/s of one core\n"
    )


def _decoding(scene: Path) -> float:
    started = time.perf_counter()
    described = Scene.from_files(scene)
    with described.open() as reader:
        for window in described.grid.tiles(2048):
            reader.read(window)
    return time.perf_counter() - started


def mosaic(folder: Path, rows: int, columns: int) -> tuple[np.ndarray, list[Path]]:
    """Return tiles of one size side by side as (C, H, W), the last ones of the folder."""
    files = sorted(folder.glob("*.tif"))[-rows * columns :]
    tiles = []
    for file in files:
        with rasterio.open(file) as dataset:
            tiles.append(dataset.read())
    lines = [np.concatenate(tiles[row * columns : (row + 1) * columns], axis=2) for row in range(rows)]
    return np.concatenate(lines, axis=1), files


def seams(options: argparse.Namespace) -> None:
    """Compare tiled maps of a trained model with that of one pass over the whole scene."""
    if options.model is None or options.imagery is None:
        print("# seams: left out; name a trained model with --model and a folder of imagery with --imagery\n")
        return
    model = load(options.model)
    device = pick_device("auto")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(options.imagery)
        if path.is_dir():
            pixels, files = mosaic(path, *options.mosaic)
            path = Path(folder) / "mosaic.tif"
            profile = {"driver": "GTiff", "count": len(pixels), "dtype": pixels.dtype}
            with rasterio.open(path, "w", height=pixels.shape[1], width=pixels.shape[2], **profile, **PLACE) as out:
                out.write(pixels)
            print(f"# seams: {options.model} on a mosaic of {len(files)} tiles, {pixels.shape[1:]}")
        scene = model.open_scene(path)
        whole = Tiling(*(plan.plan_axis(size, size, 0, model.stride) for size in scene.grid.shape))
        exact, valid = _probabilities(model, scene, whole, device, "fp32")
        decided = model.task.decide(exact[None])

        def row(name: str, tiling: Tiling, precision: str = "fp32") -> None:
            found, _ = _probabilities(model, scene, tiling, device, precision)
            other = (model.task.decide(found[None]) != decided).any(dim=1)[0][valid].float().mean().item()
            far = (found - exact).abs().amax(dim=0)[valid].max().item()
            print(
                f"{name:<34} window {tiling.rows.length:>4} cost {tiling.pixel_cost:.3f}  decided otherwise "
                f"{100 * other:.4f} %  probability off by at most {far:.6f}",
                flush=True,
            )

        for tile, overlap, ramp in options.tilings:
            tiling = plan_tiling(scene.grid, tile, overlap, model.stride, blend_width=ramp)
            row(f"tile {tile} overlap {overlap} ramp {ramp}", tiling)
        default = resolve_settings(model, scene, PredictOptions(precision="fp32"))
        row("the defaults", default.tiling(scene.grid, model.stride))
        row("the defaults, bf16", default.tiling(scene.grid, model.stride), "bf16")
        row("one window, bf16", whole, "bf16")
        if model.receptive_field is not None:
            choice = resolve_settings(model, scene, PredictOptions(exact=True))
            row(f"exact (receptive field {model.receptive_field})", choice.tiling(scene.grid, model.stride))
        print()


def _probabilities(
    model: Segmenter, scene: Scene, tiling: Tiling, device: torch.device, precision: str
) -> tuple[Tensor, Tensor]:
    runner = open_runner(model, device, precision)
    found = torch.zeros(model.task.channels, *scene.grid.shape)
    valid = torch.zeros(scene.grid.shape, dtype=torch.bool)
    for block in predict_blocks(runner, scene, tiling, batch=1):
        rows, columns = block.window.toslices()
        found[:, rows, columns] = block.probabilities.cpu()
        valid[rows, columns] = torch.from_numpy(block.valid)
    return found, valid


def memory(options: argparse.Namespace) -> None:
    """Measure the peak memory of whole predictions at two sizes."""
    print("# memory")
    for network, sizes in (("resnet18", options.memory_resnet), ("tiny", options.memory_tiny)):
        peaks = []
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                scene = make_scene(Path(folder) / "scene.tif", size)
                found = _elsewhere("peak", str(scene), network, str(Path(folder) / "map.tif"))
            peaks.append(found["peak"] / 2**20)
            print(
                f"{network} at {size} x {size}: peak RSS {peaks[-1]:.0f} MiB, of it imports "
                f"{found['imports'] / 2**20:.0f} MiB; {found['seconds']:.0f} s, {found['mpx_per_second']:.1f} Mpx/s, "
                f"{found['bands']} bands",
                flush=True,
            )
        if len(peaks) > 1:
            print(f"{network}: peak at {sizes[-1]} / at {sizes[0]}: {peaks[-1] / peaks[0]:.3f}")
    print()


def _elsewhere(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _peak(scene: str, network: str, output: str) -> None:
    model: Any = Tiny() if network == "tiny" else unet(network)
    if network == "tiny":
        import segmentation_models_pytorch  # noqa: F401 - what a real model brings with it
    imports = peak_memory()
    precision = pick_precision("auto", pick_device("auto"))
    [summary] = predict(model, scene, output, precision="fp32" if network == "tiny" else precision)
    print(
        json.dumps(
            {
                "peak": summary.peak_memory,
                "imports": imports,
                "seconds": summary.seconds,
                "mpx_per_second": summary.mpx_per_second,
                "bands": summary.bands,
            }
        )
    )


def kills(options: argparse.Namespace) -> None:
    """Kill predictions at random moments, let the same call go on, and compare with an undisturbed map."""
    print(f"# kills: {options.kills} random kill -9, tiny network")
    plan._MIN_BAND_PIXELS = 2**16  # several bands in a small scene
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked child has none of its parent's threads
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        make_scene(folder / "scene.tif", 1024)
        clean = time.perf_counter()
        _wait(_fork(folder / "clean.tif"))
        clean = time.perf_counter() - clean
        expected = _read(folder / "clean.tif"), _read(folder / "clean-p.tif")
        print(f"undisturbed: {clean:.2f} s, {_bands(folder / 'clean.tif')} bands")
        random.seed(0)
        left, maps, identical, started = options.kills, 0, 0, time.perf_counter()
        extra: list[float] = []
        while left:
            target, spent, hit = folder / f"map{maps}.tif", 0.0, 0
            while True:
                child, begun = _fork(target), time.perf_counter()
                if left and not _ended(child, random.uniform(0, 1.2 * clean)):
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    left, hit = left - 1, hit + 1
                    spent += time.perf_counter() - begun
                    continue
                if left == 0 or not _alive(child):
                    _wait(child)
                    spent += time.perf_counter() - begun
                    break
            same = all(
                np.array_equal(_read(path), values)
                for path, values in zip((target, target.with_name(f"{target.stem}-p.tif")), expected, strict=True)
            )
            identical, maps = identical + same, maps + 1
            if hit:
                extra.append((spent - clean) / hit)
            over = [path.name for path in folder.iterdir() if path.name.startswith((target.name, f".{target.name}"))]
            assert over == [target.name], over
            target.unlink()
            target.with_name(f"{target.stem}-p.tif").unlink()
        print(
            f"{options.kills} kills over {maps} maps in {time.perf_counter() - started:.0f} s: {identical} of {maps} "
            f"identical to the undisturbed one; time lost per kill {np.mean(extra):.2f} s in the mean "
            f"(a band takes {clean / _bands(folder / 'clean.tif'):.2f} s, start and end of a run included)\n"
        )
    torch.set_num_threads(threads)


def _fork(target: Path) -> int:
    child = os.fork()
    if not child:
        try:
            probabilities = target.with_name(f"{target.stem}-p.tif")
            predict(Tiny(), "scene.tif", target, probabilities=probabilities, tile=128, overlap=32, precision="fp32")
            os._exit(0)
        except Exception as error:  # noqa: BLE001 - a child says why it ends
            print(f"{target.name}: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
    return child


def _ended(child: int, seconds: float) -> bool:
    """Wait so long at most; whether the child has ended by then. It is not reaped."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        if not _alive(child):
            return True
        time.sleep(0.002)
    return not _alive(child)


def _alive(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _wait(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "a run that nobody disturbed failed"


def _read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        values: np.ndarray = dataset.read()
    return values


def _bands(path: Path) -> int:
    with rasterio.open(path) as dataset:
        return int(dataset.tags()["segkit_bands"])


def damage(options: argparse.Namespace) -> None:
    """Fill the disk (a limit on the size of files) and flip a byte of a finished band; then let the same call go on."""
    import resource

    print("# a full disk, and a damaged band")
    plan._MIN_BAND_PIXELS = 2**16
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder, target = Path(name), Path(name) / "map.tif"
        make_scene(folder / "scene.tif", 512, 4096)
        _wait(_fork(folder / "clean.tif"))
        expected = _read(folder / "clean.tif")
        child = os.fork()
        if not child:
            # What is stored of a band fits, the whole map does not.
            size = (folder / "clean.tif").stat().st_size * 3 // 4
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            try:
                predict(Tiny(), "scene.tif", target, tile=128, overlap=32, precision="fp32")
            except OSError as error:
                print(f"disk full: {type(error).__name__}: {error}", flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        journal = target.with_name("map.tif.bands")
        bands = sorted(path for path in journal.glob("band-*"))
        print(f"left: {sorted(path.name for path in folder.glob('map*'))}, {len(bands)} finished bands and seams")
        damaged = bands[1] / "map.tif"
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(bytes(content))
        child = os.fork()
        if not child:
            [summary] = predict(Tiny(), "scene.tif", target, tile=128, overlap=32, precision="fp32")
            print(f"the same call: {summary.resumed} of {summary.bands} bands taken over", flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print(f"identical to an undisturbed map: {np.array_equal(_read(target), expected)}\n")


TILINGS = ["512/64/64", "1024/64/64", "1024/128/128", "1024/128/64", "1536/128/64", "1536/160/64", "1536/192/64"]
SECTIONS = {"efficiency": efficiency, "seams": seams, "memory": memory, "kills": kills, "damage": damage}


def _tiling(text: str) -> tuple[int, int, int]:
    tile, overlap, ramp = map(int, text.split("/"))
    return tile, overlap, ramp


def main() -> None:
    if sys.argv[1:2] == ["peak"]:
        _peak(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--size", type=int, default=8192, help="efficiency: side of the scene")
    parser.add_argument("--repeats", type=int, default=3, help="efficiency: turns of predict and bare passes")
    parser.add_argument("--model", help="seams: a trained model")
    parser.add_argument("--imagery", help="seams: a scene, or a folder of tiles of one size")
    parser.add_argument("--mosaic", type=int, nargs=2, default=(4, 4), help="seams: rows and columns of tiles")
    parser.add_argument(
        "--tilings",
        type=_tiling,
        nargs="*",
        default=[
            (512, 64, 64),
            (1024, 64, 64),
            (1024, 128, 128),
            (1024, 128, 64),
            (1536, 128, 64),
            (1536, 160, 64),
            (1536, 192, 64),
        ],
        metavar="TILE/OVERLAP/RAMP",
    )
    parser.add_argument("--memory-resnet", type=int, nargs="*", default=[4096])
    parser.add_argument("--memory-tiny", type=int, nargs="*", default=[4096, 32768])
    parser.add_argument("--kills", type=int, default=200)
    options = parser.parse_args()
    for section in options.sections or SECTIONS:
        # Each in a process of its own: what one leaves behind (threads, memory) is not the other's.
        child = os.fork()
        if not child:
            SECTIONS[section](options)
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)
    print(f"GPU: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none on this machine'}")


if __name__ == "__main__":
    main()
