"""Predictions by real workers: processes of Dask on this machine."""

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import dask
import fork_server
import numpy as np
import pytest
import rasterio
import torch
import yaml
from dask.cli import run_cli
from dask_workers import forked_workers
from killing import names
from places import ROOT
from predicting import UTM, placed, read, write_area
from synthetic import cut_raster, segmenter, write_pair
from typer.testing import CliRunner

from segkit.cli import app as cli
from segkit.errors import ClusterError, MissingFileError, ModelFileError, ScenesError, UsageError
from segkit.inference import dask_executor as cluster
from segkit.inference import tiling as plan
from segkit.inference.dask_executor import connect
from segkit.inference.predict import predict
from segkit.inference.tasks import PredictBand
from segkit.io.mosaic import Mosaic
from segkit.models.segmenter import load

RASTERS = ("map", "probabilities", "confidence")
TILINGS = [{"tile": 64, "overlap": 16}, {"tile": 48, "overlap": 8, "batch_size": 3}, {"exact": True}]
FAST = {"tile": 64, "overlap": 16, "precision": "fp32", "device": "cpu"}


@pytest.fixture(autouse=True)
def several_bands(monkeypatch):
    monkeypatch.setattr(plan, "_MIN_BAND_PIXELS", 1)


@pytest.fixture(scope="module")
def executor():
    """Two workers; what kills two is given up, where Dask's own limit is four."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        forked_workers(),
        connect("local:2") as executor,
    ):
        yield executor


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Scenes and a model file of each kind of task."""
    folders = {}
    for kind in ("binary", "multilabel"):
        folders[kind] = folder = tmp_path_factory.mktemp(kind)
        for seed, name in enumerate("abc"):
            write_pair(folder, kind, name, height=230 - 60 * seed, width=150, seed=seed)
        segmenter(folder, kind).save(folder / "model.safetensors")
    return folders


def mapped(folder, where, scenes="a", **options):
    """Predict scenes of a folder into the folder `where`; returns the summaries."""
    where.mkdir(exist_ok=True)
    outputs = [where / (f"{name}.tif" if len(scenes) == 1 else name) for name in RASTERS]
    files = [folder / "images" / f"{scene}.tif" for scene in scenes]
    return predict(
        folder / "model.safetensors", files, outputs[0], probabilities=outputs[1], confidence=outputs[2], **options
    )


def assert_same(left, right):
    found = {path.relative_to(left) for path in left.rglob("*.tif")}
    assert found == {path.relative_to(right) for path in right.rglob("*.tif")} != set()
    assert not [*left.rglob("*.part"), *left.rglob("*.bands")]
    for name in found:
        np.testing.assert_array_equal(read(left / name), read(right / name))


def test_workers_map_a_mosaic_as_this_process_does(made, tmp_path, executor):
    """The scene is cut into four files; so is its map."""
    folder = made["binary"]
    tiles = Mosaic(cut_raster(folder / "images/a.tif", tmp_path / "tiles", [100], [70]))
    predict(folder / "model.safetensors", folder / "images/a.tif", tmp_path / "whole.tif", **FAST)
    for name, options in (("local", {}), ("workers", {"executor": executor})):
        (tmp_path / name).mkdir()
        predict(folder / "model.safetensors", tiles, tmp_path / name, like_input=True, **FAST, **options)
    assert_same(tmp_path / "local", tmp_path / "workers")
    predict(folder / "model.safetensors", tiles, tmp_path / "map.tif", executor=executor, **FAST)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "whole.tif"))


class Meddling:
    """An executor that does something to the task of one band; how often it does, it counts."""

    def __init__(self, executor, change, index=1):
        self.executor, self.change, self.index, self.done = executor, change, index, 0

    def __getattr__(self, name):
        return getattr(self.executor, name)

    def submit(self, task):
        unit = task.args[0]
        if isinstance(unit, PredictBand) and unit.band.index == self.index:
            self.done += 1
            task = self.change(task)
        return self.executor.submit(task)


def die(task):
    os._exit(1)


def wait_and(seconds, task):
    time.sleep(seconds)
    return task()


@pytest.mark.parametrize(
    ("kind", "tiling"), [*(("binary", tiling) for tiling in TILINGS), ("multilabel", TILINGS[0])], ids=str
)
def test_pixels_are_those_of_one_process(made, tmp_path, executor, kind, tiling):
    area = write_area(tmp_path / "area.gpkg", placed(UTM, (20, 10), (190, 30), (90, 140)))
    options = {"aoi": area if "batch_size" in tiling else None, "precision": "fp32", **tiling}
    [here] = mapped(made[kind], tmp_path / "here", **options)
    [there] = mapped(made[kind], tmp_path / "there", executor=executor, **options)
    assert_same(tmp_path / "there", tmp_path / "here")
    assert there.choice == here.choice
    assert there.pixels == here.pixels
    assert here.bands > 1 or "exact" in tiling


def test_workers_average_several_models(made, tmp_path, executor):
    models, scene = [tmp_path / "one.safetensors", tmp_path / "other.safetensors"], made["binary"] / "images/b.tif"
    for path, offset in zip(models, (0, 30), strict=True):
        model = load(made["binary"] / "model.safetensors")
        model.mean += offset
        model._receptive_field = 43  # is not measured
        model.save(path)
    for name, where in (("here", None), ("there", executor)):
        (tmp_path / name).mkdir()
        predict(
            models, scene, tmp_path / name / "m.tif", probabilities=tmp_path / name / "p.tif", executor=where, **FAST
        )
    assert_same(tmp_path / "there", tmp_path / "here")
    predict(models[0], scene, tmp_path / "m.tif", probabilities=tmp_path / "p.tif", **FAST)
    assert (read(tmp_path / "p.tif") != read(tmp_path / "here/p.tif")).any()


def test_many_scenes_are_spread(made, tmp_path, executor):
    """Scenes are under way at once; one that is damaged, and one that is finished, are in nobody's way."""
    folder = made["binary"]
    mapped(folder, tmp_path / "here", "abc", **FAST)
    (folder / "images/x.tif").write_bytes(b"no raster")
    (tmp_path / "there").mkdir()
    with pytest.raises(ScenesError, match=r"1 of 4 scenes failed(.|\n)*x\.tif: .*on worker") as failed:
        mapped(folder, tmp_path / "there", "xabc", executor=executor, **FAST)
    assert "unexpected" not in str(failed.value)  # it came as what it was raised as
    assert [one.path.stem for one in failed.value.summaries] == ["a", "b", "c"]
    assert_same(tmp_path / "there", tmp_path / "here")


def test_a_worker_that_is_killed_costs_nothing(made, tmp_path, executor):
    mapped(made["binary"], tmp_path / "here", **FAST)
    slow = Meddling(executor, lambda task: partial(wait_and, 2, task))
    busy, killed = [], []

    def find_busy():
        busy[:] = [worker for worker, tasks in executor._client.processing().items() if tasks]
        return busy

    def kill():
        wait_until(find_busy)
        # One of them: what is given from one to another, which is killed, too, would have died twice.
        killed.append(executor._client.run(os.getpid)[busy[0]])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    [summary] = mapped(made["binary"], tmp_path / "there", executor=slow, **FAST)
    killer.join()
    assert killed
    assert summary.resumed == 0
    assert_same(tmp_path / "there", tmp_path / "here")


def test_a_band_that_kills_its_workers_is_set_aside(made, tmp_path, executor):
    [here] = mapped(made["binary"], tmp_path / "here", **FAST)
    with pytest.raises(ClusterError, match=r"a: 1 of \d work items(.|\n)*band 1, rows \d+ to \d+: 2 workers died"):
        mapped(made["binary"], tmp_path / "there", executor=Meddling(executor, lambda task: partial(die, task)), **FAST)
    assert len(list((tmp_path / "there/map.tif.bands").glob("band-*"))) == here.bands - 1
    [summary] = mapped(made["binary"], tmp_path / "there", executor=executor, **FAST)
    assert summary.resumed == here.bands - 1
    assert_same(tmp_path / "there", tmp_path / "here")


def test_a_damaged_block_is_set_aside_until_it_is_whole(made, tmp_path, executor):
    scene = tmp_path / "images/a.tif"
    scene.parent.mkdir()
    with rasterio.open(made["binary"] / "images/a.tif") as dataset:
        profile, pixels = dataset.profile | {"compress": "deflate", "blockysize": 16}, dataset.read()
    with rasterio.open(scene, "w", **profile) as dataset:
        dataset.write(pixels)
    (tmp_path / "model.safetensors").write_bytes((made["binary"] / "model.safetensors").read_bytes())
    [here] = mapped(tmp_path, tmp_path / "here", **FAST)
    whole, facts = scene.read_bytes(), scene.stat()
    half, gone = len(whole) * 3 // 4, bytes(3000)
    scene.write_bytes(whole[:half] + gone + whole[half + len(gone) :])
    os.utime(scene, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(ClusterError, match=r"work items failed(.|\n)*band \d, rows .*a\.tif"):
        mapped(tmp_path, tmp_path / "there", executor=executor, **FAST)
    for name, options in (("rest here", {}), ("rest there", {"executor": executor})):
        with pytest.warns(UserWarning, match=r"\d unreadable blocks? .* no data"):
            mapped(tmp_path, tmp_path / name, on_read_error="nodata", **FAST, **options)
    assert_same(tmp_path / "rest here", tmp_path / "rest there")
    scene.write_bytes(whole)
    os.utime(scene, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    [summary] = mapped(tmp_path, tmp_path / "there", executor=executor, **FAST)
    assert 0 < summary.resumed < here.bands
    assert_same(tmp_path / "there", tmp_path / "here")


def test_a_client_that_is_killed_is_followed_by_another(made, tmp_path, executor):
    """The same command with the same workers, of which one may still be at a band of the first client."""
    mapped(made["binary"], tmp_path / "here", **FAST)
    (tmp_path / "there").mkdir()
    address = executor._client.scheduler.address
    client = fork_server.start(predict_slowly, address, made["binary"], tmp_path / "there", folder=tmp_path)
    journal = tmp_path / "there/map.tif.bands"
    wait_until(lambda: len(list(journal.glob("band-*"))) > 1)
    client.kill()
    client.join()
    [summary] = mapped(made["binary"], tmp_path / "there", executor=executor, **FAST)
    assert summary.resumed >= 2
    assert_same(tmp_path / "there", tmp_path / "here")
    time.sleep(3)  # the straggler comes to its end
    assert names(tmp_path / "there") == {f"{name}.tif" for name in RASTERS}


def predict_slowly(address, folder, where):
    plan._MIN_BAND_PIXELS = 1
    with connect(address) as executor:
        mapped(folder, where, executor=Meddling(executor, lambda task: partial(wait_and, 3, task)), **FAST)


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def encrypted(folder):
    """What docs/cluster.md says of certificates, done in a folder: Dask's configuration."""
    document = (ROOT / "docs/cluster.md").read_text()
    command = re.search("^openssl .*", document, re.MULTILINE)[0]
    subprocess.run(shlex.split(command), cwd=folder, check=True, capture_output=True)
    content = re.search("^```yaml\n(distributed:.*?)^```", document, re.MULTILINE | re.DOTALL)[1]
    return yaml.safe_load(content.replace("/home/me/.dask", str(folder)))


def dotted(configuration):
    """{"a.b": value} of {"a": {"b": value}}: Dask would forget what else is in a."""
    if not isinstance(configuration, dict):
        return {"": configuration}
    parts = {key: dotted(value) for key, value in configuration.items()}
    return {f"{key}.{rest}".rstrip("."): value for key, part in parts.items() for rest, value in part.items()}


@contextmanager
def one_worker(folder, configuration):
    """A scheduler, in a new process, and a worker as a user starts them: (address, their processes)."""
    (folder / "dask.yaml").write_text(yaml.safe_dump(configuration))
    environment, file = os.environ | {"DASK_CONFIG": str(folder / "dask.yaml")}, folder / "scheduler.json"
    protocol = "tls" if configuration else "tcp"
    words = ["scheduler", "--protocol", protocol, "--host", "127.0.0.1", "--port", "0"]
    command = [sys.executable, "-m", "dask", *words, "--scheduler-file", str(file), "--no-dashboard"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as scheduler:
        worker = None
        try:
            wait_until(lambda: file.exists() and file.read_text().endswith("}"))
            words = ["worker", "--nthreads", "1", "--no-nanny", "--local-directory", str(folder)]
            worker = fork_server.start(
                run_dask, configuration, *words, "--scheduler-file", str(file), "--no-dashboard", folder=folder
            )
            yield json.loads(file.read_text())["address"], scheduler, worker
        finally:
            if worker is not None:
                worker.kill()
                worker.join()
            scheduler.kill()


def run_dask(configuration, *words):
    """Run the command `dask`, whose configuration has been read before."""
    dask.config.set(dotted(configuration))
    sys.argv = ["dask", *words]
    run_cli()


@pytest.mark.parametrize("dies", ["scheduler", "worker"])
def test_what_is_lost_is_reported_in_one_line_and_the_work_goes_on_without_it(made, tmp_path, dies):
    """The cluster that loses its worker is encrypted; its scheduler has done its work without segkit."""
    mapped(made["binary"], tmp_path / "here", **FAST)
    messages = {"scheduler": "scheduler of the cluster is lost", "worker": "the cluster has had no worker for 2 s"}[
        dies
    ]
    configuration = encrypted(tmp_path) if dies == "worker" else {}
    with (
        one_worker(tmp_path, configuration) as (address, scheduler, worker),
        dask.config.set(dotted(configuration)),
        connect(address, patience=30) as executor,
    ):
        assert address.startswith("tls://" if configuration else "tcp://")
        executor._patience = 2
        slow = Meddling(executor, lambda task: partial(wait_and, 60, task), index=2)
        journal = tmp_path / "there/map.tif.bands"

        def kill():
            wait_until(lambda: len(list(journal.glob("band-*"))) > 1)
            {"scheduler": scheduler, "worker": worker}[dies].kill()

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(ClusterError, match=f"{messages}.* the same command resumes") as lost:
            mapped(made["binary"], tmp_path / "there", executor=slow, **FAST)
        killer.join()
        assert "\n" not in str(lost.value)
        if dies == "worker":
            assert executor._client.run_on_scheduler(lambda: sys.modules.keys() & {"segkit", "torch"}) == set()
    [summary] = mapped(made["binary"], tmp_path / "there", **FAST)
    assert summary.resumed == 2
    assert_same(tmp_path / "there", tmp_path / "here")


def test_a_model_that_was_replaced_is_refused_and_the_new_one_loaded(made, tmp_path, executor):
    folder = made["binary"]
    (tmp_path / "images").symlink_to(folder / "images")
    file = tmp_path / "model.safetensors"
    old, new = load(folder / "model.safetensors"), load(folder / "model.safetensors")
    old.save(file)
    old.path = file
    mapped(tmp_path, tmp_path / "old", executor=executor, **FAST)
    new.mean += 30
    new.save(file)
    executor._client.run(forget)
    with pytest.raises(ModelFileError, match="is not the model with which"):
        predict(old, tmp_path / "images/a.tif", tmp_path / "none.tif", executor=executor, **FAST)
    mapped(tmp_path, tmp_path / "here", **FAST)
    mapped(tmp_path, tmp_path / "there", executor=executor, **FAST)
    assert_same(tmp_path / "there", tmp_path / "here")
    assert (read(tmp_path / "old/probabilities.tif") != read(tmp_path / "there/probabilities.tif")).any()


def forget():
    from segkit.inference import tasks

    tasks._cached_context = None


def test_workers_send_few_heartbeats(executor):
    """What they say while they work must not be more than the work."""
    wait_until(lambda: set(executor._client.run(time_between_beats).values()) == {5000})


def time_between_beats(dask_worker):
    return dask_worker.periodic_callbacks["heartbeat"].callback_time


@pytest.mark.parametrize(("wanted", "taken"), [(500, 5000), (8000, 8000)])
def test_but_they_are_heard_again_and_again(wanted, taken):
    beats = SimpleNamespace(callback=None, callback_time=0)

    async def heartbeat():
        heard.append("beat")
        beats.callback_time = wanted  # as the scheduler says

    heard, worker = [], SimpleNamespace(periodic_callbacks={"heartbeat": beats}, heartbeat=heartbeat)
    cluster._slow_heartbeat().setup(worker)
    for _ in range(3):
        asyncio.run(beats.callback())
        assert beats.callback_time == taken
    assert len(heard) == 3


def test_a_task_that_the_scheduler_forgets_is_not_taken_for_done(executor):
    task_id = executor.submit(partial(time.sleep, 1))
    executor._send()
    executor._client.cancel([executor._under_way.pop(task_id)], force=True)
    with pytest.raises(ClusterError, match="the connection to the scheduler of the cluster is lost"):
        executor.next_result()


def test_many_tasks_are_sent_and_fetched_together(executor):
    """One by one, a hundred of them would take twice as many messages as there are tasks."""
    task_ids = {executor.submit(partial(abs, -number)): number for number in range(100)}
    sent, map_ = [], executor._client.map
    executor._client.map = lambda *words, **more: sent.append(words) or map_(*words, **more)
    try:
        found = dict(executor.next_result() for _ in task_ids)
    finally:
        executor._client.map = map_
    assert found == task_ids
    assert len(sent) == 1


def test_an_error_of_a_task_comes_back_as_it_is(executor):
    executor.submit(partial(load, "nowhere.safetensors"))
    _, error = executor.next_result()
    assert type(error) is MissingFileError
    assert re.fullmatch(r"nowhere\.safetensors.* \(on worker .+\)", str(error))


def test_a_worker_that_dask_gives_up_is_followed_by_another(monkeypatch):
    monkeypatch.setattr(cluster, "_POLL_INTERVAL_S", 0.1)
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "0.1s"}), connect("local:1") as executor:
        [first] = executor._client.run(os.getpid).values()
        local = executor._client.cluster
        local.sync(local.workers[0].close)
        executor.submit(os.getpid)
        assert executor.next_result()[1] != first


def test_local_workers_end_with_the_block(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    before = dict(os.environ)
    # Forked ones, which other tests in this process may have asked for, have the variables of the server.
    spawned = dask.config.set({"distributed.worker.multiprocessing-method": "spawn"})
    with spawned, connect("local:1") as executor:
        [pid] = executor._client.run(os.getpid).values()
        [environment] = executor._client.run(first_environment).values()
        assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
        assert environment["MALLOC_ARENA_MAX"] == "1"
        assert environment["OMP_NUM_THREADS"] == str(torch.get_num_threads())
        assert "MALLOC_TRIM_THRESHOLD_" not in environment
        assert "127.0.0.1" in executor._client.scheduler.address
        assert (executor.max_tasks, executor.workers_per_host) == (1, 1)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10)
    assert dict(os.environ) == before


def first_environment():
    """What was set before the process began."""
    return dict(line.split("=", 1) for line in Path("/proc/self/environ").read_text().split("\0") if line)


@pytest.mark.parametrize(
    ("address", "messages"),
    [
        ("tcp://10.0.0.1:8786", "anyone who reaches it can run any code"),
        ("tcp://example.org:8786", "--insecure"),
        ("tcp://localhost.example.org:8786", "--insecure"),
        ("10.0.0.1:8786", "not known"),
        ("tls://host", "not known"),
        ("tls://host:port", "not known"),
        ("http://host:8786", "not known"),
        ("local", "local:4 starts"),
        ("local:0", "local:4 starts"),
        ("local:two", "local:4 starts"),
    ],
)
def test_an_address_that_is_none_or_open_to_others_is_refused(address, messages, made, tmp_path):
    with pytest.raises(UsageError, match=messages), connect(address):
        raise AssertionError
    words = ["predict", str(made["binary"] / "model.safetensors"), "a.tif", "-o", "m.tif", "--cluster", address]
    assert isinstance(CliRunner().invoke(cli.app, words).exception, UsageError)


@pytest.mark.parametrize(
    "options", [{"address": "tcp://127.0.0.1:1"}, {"address": "tcp://127.0.0.1:1", "insecure": True}]
)
def test_nobody_there_is_reported_in_one_line(options):
    refused = pytest.raises(ClusterError, match=r"^tcp://127.0.0.1:1: no scheduler answers there")
    with refused as messages, connect(**options, patience=0.5):
        raise AssertionError
    assert "\n" not in str(messages.value)


def test_without_dask_a_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r'pip install "landcover-segkit\[cluster\]"'), connect("local:2"):
        raise AssertionError


def test_only_cluster_knows_dask():
    house = Path(cli.__file__).parents[1]
    knowing = re.compile(r"^\s*(import|from) (dask|distributed)\b", re.MULTILINE)
    assert [file.name for file in house.rglob("*.py") if knowing.search(file.read_text())] == ["dask_executor.py"]
