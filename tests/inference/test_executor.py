"""Scenes run by an executor, which here is this process: tasks are pickled, and end in random order."""

import pickle
import random
import re
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import names
from predicting import (
    FAST,
    UTM,
    Neighbours,
    Network,
    expected,
    placed,
    read,
    with_training_pixels,
    write_area,
    write_scene,
)
from synthetic import segmenter, write_pair

import segkit.models.segmenter
from segkit.errors import ClusterError, ModelFileError, OutputError, RasterError, ScenesError, UsageError
from segkit.inference import executor as executor_module
from segkit.inference import settings as choice
from segkit.inference import tasks
from segkit.inference import tiling as plan
from segkit.inference.predict import predict
from segkit.inference.runner_base import OutOfMemoryError
from segkit.inference.tasks import FindFinished, InspectScene, MergeSeam, PredictBand, WorkerContext, WorkerInputs

RASTERS = ("map", "probabilities", "confidence")


class Executor:
    """Runs a random task whenever a result is asked for; `before` is called with each work item first."""

    def __init__(self, seed=0, max_tasks=3, before=lambda item: None):
        self.max_tasks, self.workers_per_host, self.before = max_tasks, 1, before
        self.random, self.waiting, self.most, self.items, self.bytes = random.Random(seed), {}, 0, [], 0

    def submit(self, task):
        content = pickle.dumps(task)
        self.bytes = max(self.bytes, len(content))
        task_id = object()
        self.waiting[task_id] = pickle.loads(content)
        self.most = max(self.most, len(self.waiting))
        return task_id

    def next_result(self):
        task_id = self.random.choice(list(self.waiting))
        task = self.waiting.pop(task_id)
        item = task.args[0]
        self.items.append(item)
        try:
            self.before(item)
            return task_id, pickle.loads(pickle.dumps(task()))
        except Exception as error:  # noqa: BLE001 - what an executor does
            return task_id, pickle.loads(pickle.dumps(type(error)(*error.args)))  # not what it came from


def fails(error, kind=PredictBand, index=1):
    """Makes the work item of a band fail."""

    def before(item):
        if isinstance(item, kind) and (kind is not PredictBand or item.band.index == index):
            raise error

    return before


@pytest.fixture(autouse=True)
def several_bands(monkeypatch):
    monkeypatch.setattr(plan, "_MIN_BAND_PIXELS", 1)
    monkeypatch.setattr(tasks, "_cached_context", None)


def load(path):
    """What a model file is loaded as."""
    model = Neighbours()
    model.path = Path(path)
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Scenes of several bands, and a model that only seems to be a file."""
    monkeypatch.setattr(segkit.models.segmenter, "load", load)
    (tmp_path / "images").mkdir()
    for seed, name in enumerate("abc"):
        write_scene(tmp_path / "images" / f"{name}.tif", 100, 70, seed=seed)
    return tmp_path


@pytest.fixture
def real(tmp_path):
    """A scene, and a model file."""
    write_pair(tmp_path, "binary", "a", height=70, width=60)
    segmenter(tmp_path).save(tmp_path / "model.safetensors")
    return tmp_path


def mapped(folder, where, scenes="images/a.tif", **options):
    """Predict into the folder `where`; returns the summaries."""
    (folder / where).mkdir(exist_ok=True)
    several = not isinstance(scenes, str)
    outputs = [folder / where / (name if several else f"{name}.tif") for name in RASTERS]
    return predict(
        folder / "model.safetensors",
        [folder / scene for scene in scenes] if several else folder / scenes,
        outputs[0], probabilities=outputs[1], confidence=outputs[2], **FAST | options,
    )  # fmt: skip


def assert_same(folder, left, right):
    found = {path.relative_to(folder / left) for path in (folder / left).rglob("*.tif")}
    assert found == {path.relative_to(folder / right) for path in (folder / right).rglob("*.tif")} != set()
    assert not [*(folder / left).rglob("*.part"), *(folder / left).rglob("*.bands")]
    for name in found:
        np.testing.assert_array_equal(read(folder / left / name), read(folder / right / name))


def test_a_executor_makes_the_same_pixels_in_any_order(folder, monkeypatch):
    monkeypatch.setattr(segkit.models.segmenter, "load", lambda path: with_training_pixels(load(path), 100))
    more = {"uncertainty": ("margin", "entropy")}
    [here] = mapped(folder, "here", applicability=folder / "here/index.tif", **more)
    assert here.bands > 3
    assert here.share_outside > 0
    for seed in range(3):
        executor, where = Executor(seed), f"there{seed}"
        [there] = mapped(folder, where, applicability=folder / where / "index.tif", **more, executor=executor)
        assert_same(folder, where, "here")
        for name in ("pixels", "hectares", "valid", "bands", "resumed", "choice", "share_outside"):
            assert getattr(here, name) == getattr(there, name), name
        assert executor.most == executor.max_tasks, "no more tasks at once than the executor has room for, and no fewer"
        assert executor.bytes < 5000


def test_what_passes_does_not_grow_with_the_scene(tmp_path, monkeypatch):
    """A band's unit holds its own windows, not all of the scene's; a copy of a journal forgets what it found."""
    monkeypatch.setattr(segkit.models.segmenter, "load", lambda path: Network())
    largest = []
    for bands, height in ((5, 110), (20, 470)):
        model, executor = Network(), Executor()
        model.path = tmp_path / "model.safetensors"
        scene = write_scene(tmp_path / f"{bands:02}.tif", height, 20)
        [summary] = predict(model, scene, tmp_path / f"map{bands:02}.tif", executor=executor, **FAST)
        assert summary.bands >= bands
        items = [item for item in executor.items if isinstance(item, PredictBand | MergeSeam)]
        largest.append(max(len(pickle.dumps(item)) for item in items))
    assert largest[1] < largest[0] + 100  # numbers of a row or two digits more


def test_relative_names_are_the_clients(folder, monkeypatch):
    monkeypatch.chdir(folder)

    def elsewhere(item):
        monkeypatch.chdir("/")

    write_area(folder / "area.gpkg", placed(UTM, (3, 4), (60, 11), (31, 60)))
    files = ("model.safetensors", "images/a.tif", "map.tif")
    predict(*files, aoi="area.gpkg", executor=Executor(before=elsewhere), **FAST)
    monkeypatch.chdir(folder)
    predict(*files[:2], "here.tif", aoi="area.gpkg", **FAST)
    np.testing.assert_array_equal(read("map.tif"), read("here.tif"))


def test_scenes_are_worked_side_by_side_and_one_that_fails_stops_no_other(folder):
    scenes = [f"images/{name}.tif" for name in "abc"]
    mapped(folder, "here", scenes)
    (folder / "images/x.tif").write_bytes((folder / "images/a.tif").read_bytes()[:300])
    executor = Executor(max_tasks=7)
    with pytest.raises(ScenesError, match="1 of 4 scenes failed") as failed:
        mapped(folder, "there", ["images/x.tif", *scenes], executor=executor)
    assert "images/x.tif: " in str(failed.value)
    assert [one.path.stem for one in failed.value.summaries] == ["a", "b", "c"]
    assert_same(folder, "there", "here")
    order = [item.name for item in executor.items if isinstance(item, PredictBand)]
    assert order != sorted(order)
    assert executor.most == 7
    again = Executor()
    assert all(one.seconds == 0 for one in mapped(folder, "there", scenes, executor=again))
    assert [type(item).__name__ for item in again.items] == ["CheckOptions"]


def test_scenes_under_way_are_bounded(folder, monkeypatch):
    monkeypatch.setattr(executor_module, "_MAX_RUNNING_SCENES", 1)
    executor = Executor(max_tasks=20)
    mapped(folder, "there", [f"images/{name}.tif" for name in "abc"], executor=executor)
    order = [item.name for item in executor.items if isinstance(item, InspectScene | PredictBand)]
    assert order == sorted(order)


def test_a_model_is_loaded_once(folder, monkeypatch):
    loaded = []
    monkeypatch.setattr(segkit.models.segmenter, "load", lambda path: loaded.append(path) or load(path))
    mapped(folder, "there", [f"images/{name}.tif" for name in "abc"], executor=Executor())
    assert len(loaded) == 2, "by the client and by the worker"


@pytest.mark.parametrize(
    "error", [RasterError("block 7 is damaged"), ClusterError("4 workers died"), ValueError("bug")]
)
def test_a_band_that_fails_is_set_aside_and_the_rest_finishes(folder, error):
    [here] = mapped(folder, "here")
    with pytest.raises(ClusterError) as failed:
        mapped(folder, "there", executor=Executor(before=fails(error)))
    messages = str(failed.value)
    assert re.match(r"a: 1 of \d work items failed, .* the same command runs only these again:\n", messages)
    assert re.search(rf"\n  band 1, rows \d+ to \d+: .*{error}$", messages)
    done = {f"band-{index:05d}" for index in range(here.bands) if index != 1}
    assert names(folder / "there") == {"map.tif.bands"}
    assert names(folder / "there/map.tif.bands") == {*done, "request.json", ".lock"}
    executor = Executor()
    [summary] = mapped(folder, "there", executor=executor)
    assert summary.resumed == here.bands - 1
    assert [item.band.index for item in executor.items if isinstance(item, PredictBand)] == [1]
    assert_same(folder, "there", "here")


@pytest.mark.parametrize("first", ["here", "executor"])
def test_work_goes_on_with_and_without_an_executor(folder, first):
    mapped(folder, "right")
    if first == "executor":
        with pytest.raises(ClusterError):
            mapped(folder, "found", executor=Executor(before=fails(ValueError(), index=2)))
        [summary] = mapped(folder, "found")
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tasks, "merge_seam", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                mapped(folder, "found")
        [summary] = mapped(folder, "found", executor=Executor())
    assert summary.resumed >= summary.bands - 1
    assert_same(folder, "found", "right")


def test_a_window_that_memory_is_too_small_for_makes_all_smaller(folder, monkeypatch):
    monkeypatch.setattr(choice, "_MIN_TILE_PX", 16)

    def before(item):
        if isinstance(item, PredictBand) and item.settings.tile == 32:
            raise OutOfMemoryError("too large")

    with pytest.warns(UserWarning, match="too large; continuing with tile 16"):
        [there] = mapped(folder, "there", executor=Executor(before=before))
    mapped(folder, "here", tile=16)
    assert there.choice.tile == 16
    np.testing.assert_array_equal(read(folder / "there/map.tif"), read(folder / "here/map.tif"))


class Lost(Executor):
    """An executor that is gone after some tasks."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def next_result(self):
        if len(self.items) == self.after:
            raise ClusterError("lost")
        return super().next_result()


@pytest.mark.parametrize("after", [1, 2, 3, 4, 6])
def test_a_lost_executor_loses_nothing_and_leaves_no_lock(folder, after):
    mapped(folder, "right")
    with pytest.raises(ClusterError, match="lost"):
        mapped(folder, "found", executor=Lost(after))
    [summary] = mapped(folder, "found", executor=Executor())
    assert summary.resumed == max(0, after - 3)
    assert_same(folder, "found", "right")


def test_a_second_client_is_reported(folder):
    def before(item):
        if isinstance(item, PredictBand):
            mapped(folder, "there")

    with pytest.raises(ClusterError, match="another segkit predict is writing it"):
        mapped(folder, "there", executor=Executor(before=before))


def test_stragglers_do_no_harm(folder):
    """Of a client that died: their band counts where it is of the same request and plan, and nowhere else."""
    mapped(folder, "right", tile=40)
    late = []
    with pytest.raises(ClusterError):
        mapped(folder, "found", executor=Executor(before=lambda item: late.append(item) or fails(ValueError())(item)))
    late = [pickle.dumps(item) for item in late if isinstance(item, PredictBand) and item.band.index == 1]
    tools = WorkerContext(segkit.load(folder / "model.safetensors"))

    def straggle(item):
        if isinstance(item, FindFinished):  # nothing is there but what the other request has settled
            pickle.loads(late[0])(tools, lambda step: None)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mapped(folder, "found", tile=40, overwrite=True, executor=Executor(before=straggle))
    assert "belongs to another request or plan" in str(caught[0].message)
    assert_same(folder, "found", "right")
    with pytest.raises(OutputError):
        pickle.loads(late[0])(tools, lambda step: None)
    assert_same(folder, "found", "right")


def test_another_model_at_the_path_is_refused(real):
    model = segkit.load(real / "model.safetensors")
    other = segkit.load(real / "model.safetensors")
    other.mean += 1
    other.save(real / "model.safetensors")
    with pytest.raises(ModelFileError, match="is not the model with which"):
        predict(model, real / "images/a.tif", real / "map.tif", executor=Executor(), **FAST)
    mapped(real, "here")
    mapped(real, "there", executor=Executor())
    assert_same(real, "there", "here")


def test_another_area_at_the_path_is_refused(folder):
    write_area(folder / "area.gpkg", placed(UTM, (3, 4), (60, 11), (31, 60)))

    def before(item):
        tasks._cached_context = None
        (folder / "area.gpkg").unlink(missing_ok=True)
        write_area(folder / "area.gpkg", placed(UTM, (3, 4), (50, 11), (31, 50)))

    with pytest.raises(ValueError, match="does not hold the polygons"):
        mapped(folder, "there", aoi=folder / "area.gpkg", executor=Executor(before=before))


def test_a_model_in_memory_is_refused(tmp_path):
    executor = Executor()
    with pytest.raises(UsageError, match="only in memory"):
        predict(Network(), write_scene(tmp_path / "scene.tif"), tmp_path / "map.tif", executor=executor, **FAST)
    assert names(tmp_path) == {"scene.tif"}


def test_options_are_checked_by_the_executor(folder):
    with pytest.raises(UsageError, match="half of it"):
        mapped(folder, "there", overlap=17, executor=Executor())
    assert not names(folder / "there")


def test_polygons_are_made_by_the_executor(folder):
    executor = Executor()
    mapped(folder, "there", vector=folder / "layer.gpkg", executor=executor)
    assert (folder / "layer.gpkg").exists()
    assert type(executor.items[-1]).__name__ == "Vectorize"


def test_threads_are_those_that_were_chosen(folder, monkeypatch):
    """A network may add up in another order with other threads; wherever a band is done, there are as many."""
    seen, predict_band = [], tasks.predict_band

    def watched(*arguments, **options):
        seen.append((torch.get_num_threads(), options["batch"]))
        return predict_band(*arguments, **options)

    monkeypatch.setattr(tasks, "predict_band", watched)
    before = torch.get_num_threads()

    def other_machine(item):
        torch.set_num_threads(1 if isinstance(item, PredictBand) else 3)

    try:
        with pytest.raises(ClusterError):
            mapped(
                folder, "found", executor=Executor(before=lambda item: other_machine(item) or fails(ValueError())(item))
            )
        torch.set_num_threads(2)
        [summary] = mapped(folder, "found")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert {threads for threads, _ in seen} == {3}
    assert {batch for _, batch in seen} == {summary.choice.batch}
    assert len(seen) == summary.bands


def test_tools_keep_one_network_and_one_region(folder):
    tools = WorkerInputs((folder / "model.safetensors",), "test model").load_context()
    scene, choice = InspectScene("a", (folder / "images/a.tif",), False, tasks.PredictOptions(), None)(tools, print)
    runner = partial(tools.runner, torch.device("cpu"))
    first = runner(choice, scene)
    assert runner(choice, None) is first
    other = tasks.replace(choice, tta="d4")
    assert runner(other, scene) is not first
    assert runner(other, scene) is runner(other, scene)
    assert tools.region(scene.grid) is None


def test_workers_read_scenes_as_the_call_says(folder):
    """Of which the fingerprint of the model does not depend."""
    inputs = WorkerInputs((folder / "model.safetensors",), "test model", imagery=(("nodata", 5), ("offset", [1, 2])))
    imagery = inputs.load_context().model.imagery
    assert (imagery.nodata, imagery.offset) == (5, (1, 2))


def test_the_map_of_an_executor_is_what_the_network_decides(tmp_path):
    """Not only the same as without an executor, which may be wrong alike."""
    model = Network()
    model.path = tmp_path / "model.safetensors"
    scene = write_scene(tmp_path / "scene.tif")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segkit.models.segmenter, "load", lambda path: Network())
        predict(model, scene, tmp_path / "map.tif", executor=Executor(), **FAST)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), expected(model, scene)[0])


def test_the_old_name_of_the_executor_still_works(tmp_path):
    with pytest.warns(DeprecationWarning, match=r"^argument crew= is now called executor=$"), pytest.raises(UsageError):
        predict(Network(), write_scene(tmp_path / "scene.tif"), tmp_path / "map.tif", crew=Executor(), **FAST)
    with pytest.raises(TypeError, match="both crew= and executor="):
        predict(Network(), "scene.tif", tmp_path / "map.tif", crew=Executor(), executor=Executor())
