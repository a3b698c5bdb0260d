"""Measure `segkit predict --cluster`: speed, kills, what passes the scheduler, and how far it scales.

    .venv/bin/python tools/bench_cluster.py                  # everything, a quarter of an hour on two cores
    .venv/bin/python tools/bench_cluster.py speed --size 4096

Scenes, the U-Net (resnet18, random weights) and the tiny network are those of tools/bench_predict.py.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from bench_predict import BANDS, CLASSES, make_scene, unet

from segkit.errors import ClusterError
from segkit.inference import tiling as plan
from segkit.inference.dask_executor import connect
from segkit.inference.predict import predict
from segkit.inference.tasks import PredictBand
from segkit.inference.tiling import plan_tiling
from segkit.models.segmenter import Segmenter
from segkit.recipe.schema import Recipe

_SLEEPING_PROCESSES = 4


def small() -> Segmenter:
    """Return the smallest network there is, with random weights."""
    torch.manual_seed(0)
    classes = [{"name": name, "value": value} for value, name in enumerate(CLASSES, 1)]
    options = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    recipe = {
        "name": "bench",
        "task": {"type": "multiclass", "classes": classes},
        "data": {"train": {"images": "-", "labels": "-"}},
        "model": {"architecture": "unet", "encoder": "tu-resnet10t", "options": options},
    }
    names = [str(band) for band in range(BANDS)]
    return Segmenter(Recipe.from_dict(recipe), [500.0] * BANDS, [250.0] * BANDS, names).eval()


def same(left: Path, right: Path) -> bool:
    """Whether two rasters hold the same pixels."""
    with rasterio.open(left) as a, rasterio.open(right) as b:
        windows = [window for _, window in a.block_windows(1)]
        return all(np.array_equal(a.read(window=window), b.read(window=window)) for window in windows)


def speed(options: argparse.Namespace) -> None:
    """Compare one process with `local:2`, by turns."""
    print(f"# speed: U-Net resnet18, {options.size} x {options.size}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene, model = make_scene(folder / "scene.tif", options.size), folder / "model.safetensors"
        unet().save(model)
        ratios = []
        for turn in range(options.repeats):
            files = {where: (folder / f"{where}{turn}.tif", folder / f"{where}{turn}-p.tif") for where in ("1", "2")}
            [here] = predict(model, scene, files["1"][0], probabilities=files["1"][1])
            started = time.perf_counter()
            with connect("local:2") as executor:
                executor._client.wait_for_workers(2)
                up = time.perf_counter() - started
                began = time.perf_counter()
                for _ in range(2):
                    executor.submit(_ready)
                for _ in range(2):
                    executor.next_result()
                ready = time.perf_counter() - began
                [there] = predict(model, scene, files["2"][0], probabilities=files["2"][1], executor=executor)
            whole = time.perf_counter() - started
            identical = all(same(left, right) for left, right in zip(files["1"], files["2"], strict=True))
            ratios.append(here.seconds / there.seconds)
            print(
                f"one process {here.seconds:.1f} s ({here.mpx_per_second:.2f} Mpx/s), local:2 {there.seconds:.1f} s "
                f"({there.mpx_per_second:.2f} Mpx/s): ratio {ratios[-1]:.3f}; all in all {whole:.1f} s; "
                f"two workers are up after {up:.1f} s and have imported all after {up + ready:.1f} s; map and "
                f"probabilities {'identical' if identical else 'DIFFER'}; {here.bands} bands",
                flush=True,
            )
    print(f"median ratio {sorted(ratios)[len(ratios) // 2]:.3f}\n")


def _ready() -> None:
    import segmentation_models_pytorch  # noqa: F401 - what loading a model imports


class Poisoned:
    """An executor in which one band's task kills its worker, as long as `armed`."""

    def __init__(self, executor: Any, index: int) -> None:
        self._executor, self._index, self.armed = executor, index, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def submit(self, task: Any) -> Any:
        """Start a task, or its poisonous twin."""
        unit = task.args[0]
        poisonous = self.armed and isinstance(unit, PredictBand) and unit.band.index == self._index
        return self._executor.submit(partial(os._exit, 1) if poisonous else task)


def _dask(*words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dask", *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def outside(folder: Path, workers: int = 2) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start a scheduler and workers as a user does; gives the address and the scheduler."""
    port = _free_port()
    address, started = f"tcp://127.0.0.1:{port}", []
    try:
        started.append(_dask("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"))
        where = ("--local-directory", str(folder))
        number = ("--nworkers", str(workers), "--nthreads", "1")
        started.append(_dask("worker", address, *number, "--host", "127.0.0.1", "--no-dashboard", *where))
        yield address, started[0]
    finally:
        for process in reversed(started):
            _end(process)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def kills(options: argparse.Namespace) -> None:
    """Kill workers, a scheduler and a client; the same command goes on each time."""
    print(f"# kills: {options.kills} workers at random, one poisonous band, the scheduler, the client; small network")
    plan._MIN_BAND_PIXELS = 2**18  # several bands in a small scene
    dice = random.Random(0)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        scene, model = make_scene(folder / "scene.tif", 2048), folder / "model.safetensors"
        small().save(model)
        how = {"tile": 256, "overlap": 32, "precision": "fp32"}

        def run(executor: Any, target: str) -> Any:
            [summary] = predict(
                model,
                scene,
                folder / f"{target}.tif",
                probabilities=folder / f"{target}-p.tif",
                executor=executor,
                **how,
            )
            return summary

        def verdict(what: str, target: str, calls: int) -> None:
            right = all(same(folder / f"{target}{end}", folder / f"clean{end}") for end in (".tif", "-p.tif"))
            left = [file.name for file in folder.iterdir() if ".bands" in file.name or ".part" in file.name]
            print(
                f"{what}: {calls} calls, {'identical' if right else 'DIFFERENT'} pixels, leftovers {left}", flush=True
            )

        clean = run(None, "clean")
        print(f"undisturbed, one process: {clean.seconds:.1f} s, {clean.bands} bands")
        killed, calls, maps, ended = 0, 0, 0, threading.Event()
        at_work: list[Any] = []

        def killer() -> None:
            nonlocal killed
            while killed < options.kills and not ended.wait(dice.uniform(1, 8)):
                with suppress(Exception):  # no cluster is there just now
                    os.kill(
                        dice.choice(list(at_work[-1]._client.run(os.getpid, on_error="ignore").values())),
                        signal.SIGKILL,
                    )
                    killed += 1

        thread = threading.Thread(target=killer)
        thread.start()
        while thread.is_alive():
            target = f"killed{maps}"
            while True:
                calls += 1
                try:
                    with connect("local:2", patience=20) as executor:
                        at_work.append(executor)
                        run(executor, target)
                    break
                except ClusterError as error:
                    print(str(error).replace("\n", " | ")[:300], flush=True)
            verdict(f"map {maps}, {killed} workers killed so far", target, calls)
            maps, calls = maps + 1, 0
        ended.set()
        thread.join()
        executor = stack.enter_context(connect("local:2"))

        poisoned = Poisoned(executor, 3)
        try:
            run(poisoned, "poisoned")
        except ClusterError as error:
            print(str(error))
        poisoned.armed = False
        print(f"the same call without the poison: {run(poisoned, 'poisoned').resumed} bands taken over")
        verdict("a poisonous band", "poisoned", 2)

        def after_two_bands(target: str, deed: Callable[[], None]) -> threading.Thread:
            def wait() -> None:
                while len(list((folder / f"{target}.tif.bands").glob("band-*"))) < 2:
                    time.sleep(0.02)
                deed()

            made = threading.Thread(target=wait)
            made.start()
            return made

        with outside(folder) as (address, scheduler), connect(address) as lost:
            waiting = after_two_bands("lost", scheduler.kill)
            try:
                run(lost, "lost")
            except ClusterError as error:
                print(str(error))
            waiting.join()
        print(f"the same call, with other workers: {run(executor, 'lost').resumed} bands taken over")
        verdict("the scheduler killed", "lost", 2)

        child = subprocess.Popen(
            [
                sys.executable,
                __file__,
                "client",
                executor._client.scheduler.address,
                str(model),
                str(scene),
                str(folder),
            ]
        )
        after_two_bands("client", child.kill).join()
        child.wait()
        print(f"the same call, with the same workers: {run(executor, 'client').resumed} bands taken over")
        verdict("the client killed", "client", 2)
    print()


def client(address: str, model: str, scene: str, folder: str) -> None:
    """Be a client that is to be killed."""
    plan._MIN_BAND_PIXELS = 2**18
    with connect(address) as executor:
        outputs = Path(folder) / "client.tif", Path(folder) / "client-p.tif"
        how = {"tile": 256, "overlap": 32, "precision": "fp32"}
        predict(model, scene, outputs[0], probabilities=outputs[1], executor=executor, **how)


class Proxy:
    """Counts what passes to and from a scheduler; all connections to it go through here."""

    def __init__(self, port: int) -> None:
        self._target, self.bytes = port, 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._server.accept()
            far = socket.create_connection(("127.0.0.1", self._target))
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(2**16):
                self.bytes += len(data)
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            end.close()


def traffic(options: argparse.Namespace) -> None:
    """Count the bytes between scheduler, workers and client, with a proxy before the scheduler."""
    size = options.traffic_size
    print(f"# traffic: {size} x {size}, small network")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene, model = make_scene(folder / "scene.tif", size), folder / "model.safetensors"
        small().save(model)
        port = _free_port()
        processes = [_dask("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")]
        time.sleep(4)
        proxy = Proxy(port)
        number = ("--nworkers", "2", "--nthreads", "1", "--host", "127.0.0.1", "--local-directory", name)
        address = f"tcp://127.0.0.1:{proxy.port}"
        processes.append(_dask("worker", address, *number, "--no-dashboard"))
        try:
            with connect(address) as executor:
                executor._client.wait_for_workers(2)
                time.sleep(5)
                before = proxy.bytes
                time.sleep(20)
                idle = (proxy.bytes - before) / 20
                before = proxy.bytes
                [summary] = predict(model, scene, folder / "map.tif", probabilities=folder / "p.tif", executor=executor)
                passed = proxy.bytes - before
        finally:
            for process in reversed(processes):
                _end(process)
        written = sum(file.stat().st_size for file in (folder / "map.tif", folder / "p.tif"))
        beats = idle * summary.seconds
        print(
            f"{passed / 1e3:.0f} kB passed the scheduler in {summary.seconds:.0f} s, both ways, of it some "
            f"{min(beats, passed) / 1e3:.0f} kB heartbeats of two workers ({idle / 1e3:.2f} kB/s when idle); "
            f"{summary.bands} bands; the scene has {scene.stat().st_size / 1e6:.0f} MB, map and probabilities "
            f"{written / 1e6:.0f} MB\n"
        )


def scaling(options: argparse.Namespace) -> None:
    """Print what a job of 1,000 scenes takes, and run its tasks as sleeps at the rate of 1,000 workers."""
    scenes, side = 1000, 10_980
    grid_tiling = _tiling(side)
    bands = len(grid_tiling.bands)
    tasks = scenes * (3 + bands + bands - 1)  # look, find, assemble; bands; seams
    mpx = side**2 / 1e6
    print(f"# scaling: {scenes} scenes of {side} x {side}: {bands} bands a scene, {tasks:,} tasks")
    rate = _rate(options)
    # 4 bands of uint16 at 0.6 of their size, read once and with what windows share; a map byte written in a band and
    # read and written again in the map.
    read = mpx * 4 * 2 * 0.6 * grid_tiling.pixel_cost * scenes / 1e3
    write = mpx * 0.5 * 2 * scenes / 1e3
    model = 57 / 1e3  # GB of a U-Net resnet18
    print(f"storage: {read:,.0f} GB read, {write:,.0f} GB written; model file {model * 1e3:.0f} MB, once a worker")
    for kind, worker_speed in (("2 cores", options.cpu_speed), ("a GPU", options.gpu_speed)):
        print(f"workers of {kind}, {worker_speed:g} Mpx/s each:")
        for workers in (10, 100, 1000):
            network = mpx * scenes / worker_speed / workers
            queue = tasks / rate
            storage = (read + write + model * workers) / options.storage
            longest, why = max((network, "the network"), (queue, "the scheduler"), (storage, "the storage"))
            print(
                f"  {workers:>5} workers: {network / 3600:7.2f} h of network, {model * workers:6.1f} GB of models, "
                f"{(read + write) / network:6.2f} GB/s of storage, {tasks / network:7.1f} tasks/s; bound by {why} "
                f"({longest / 3600:.2f} h)"
            )
    print(f"storage is taken to give {options.storage:g} GB/s, the scheduler {rate:.0f} tasks/s as measured\n")


def _tiling(side: int) -> Any:
    from segkit.inference.settings import BLEND_WIDTH, OVERLAP, TILE
    from segkit.io.grid import Grid

    return plan_tiling(Grid(side, side, rasterio.Affine.identity(), None), TILE, OVERLAP, 32, blend_width=BLEND_WIDTH)


def _rate(options: argparse.Namespace) -> float:
    """Return the tasks a second that scheduler and client settle, with workers that sleep."""
    workers, pause = options.sleepers, options.sleep
    payload = bytes(3000)  # as large as a band's unit
    with ExitStack() as stack:
        port = _free_port()
        address = f"tcp://127.0.0.1:{port}"
        scheduler = _dask("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
        stack.callback(_end, scheduler)
        for _ in range(_SLEEPING_PROCESSES):
            number = str(math.ceil(workers / _SLEEPING_PROCESSES))
            process = subprocess.Popen([sys.executable, __file__, "sleepers", address, number], start_new_session=True)
            stack.callback(_end, process)
        executor = stack.enter_context(connect(address))
        executor._client.wait_for_workers(workers)
        for what, each, tasks in (("at once", 0.0, 5000), (f"sleeping {pause:g} s", pause, 4 * workers)):
            started, begun, done = time.perf_counter(), 0, 0
            before = _cpu(os.getpid()), _cpu(scheduler.pid)
            while done < tasks:
                while begun < tasks and begun - done < executor.max_tasks:
                    executor.submit(partial(_sleep, each, payload))
                    begun += 1
                executor.next_result()
                done += 1
            took = time.perf_counter() - started
            mine, its = _cpu(os.getpid()) - before[0], _cpu(scheduler.pid) - before[1]
            best = f", of {workers / each:.0f} that {workers} workers can do" if each else ""
            print(
                f"{tasks:,} tasks {what}, {workers} under way: {took:.1f} s, {tasks / took:.0f} tasks/s{best}; CPU "
                f"of the client {1e3 * mine / tasks:.2f} ms a task, of the scheduler {1e3 * its / tasks:.2f} ms",
                flush=True,
            )
            if not each:
                rate = tasks / took
    return rate


def _cpu(pid: int) -> float:
    """Return the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sleepers(address: str, number: str) -> None:
    """Be many workers, each as the scheduler sees one, in one process: a thousand processes do not fit here."""
    import asyncio

    import dask
    from distributed import Worker

    async def serve() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(int(number)):
                await Worker(address, nthreads=1, memory_limit=0, dashboard=False, local_directory=folder)
            await asyncio.Event().wait()

    # What a worker does for itself alone would fill the process.
    calm = {
        "distributed.admin.tick.interval": "10s",
        "distributed.admin.tick.cycle": "10s",
        "distributed.admin.system-monitor.interval": "60s",
        "distributed.worker.profile.enabled": False,
    }
    logging.disable()
    with dask.config.set(calm):
        asyncio.run(serve())


def _sleep(seconds: float, payload: bytes) -> dict[str, int]:
    time.sleep(seconds)
    return dict.fromkeys(CLASSES, len(payload))


SECTIONS = {"speed": speed, "kills": kills, "traffic": traffic, "scaling": scaling}


def main() -> None:
    """Run the sections that are named."""
    role = {"client": client, "sleepers": sleepers}.get(" ".join(sys.argv[1:2]))
    if role:
        return role(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="all by default")
    parser.add_argument("--size", type=int, default=8192, help="speed: pixels along a side")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--traffic-size", type=int, default=16384)
    parser.add_argument("--sleepers", type=int, default=1000, help="scaling: workers that sleep")
    parser.add_argument("--sleep", type=float, default=15.0, help="scaling: seconds of a task of theirs")
    parser.add_argument("--cpu-speed", type=float, default=2.3, help="scaling: Mpx/s of a worker of two cores")
    parser.add_argument("--gpu-speed", type=float, default=60.0, help="scaling: Mpx/s of a worker with a GPU")
    parser.add_argument("--storage", type=float, default=5.0, help="scaling: GB/s of the storage")
    options = parser.parse_args()
    for section in options.sections or SECTIONS:
        SECTIONS[section](options)
    return None


if __name__ == "__main__":
    main()
