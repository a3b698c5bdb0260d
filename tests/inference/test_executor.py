"""Scenes worked by a crew, which here is this process: every task is pickled, and they end in any order."""

import os
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
from predicting import FAST, UTM, Neighbours, Network, expected, placed, read, write_area, write_scene
from synthetic import segmenter, write_pair

import segkit.models.segmenter
from segkit.errors import ClusterError, ModelFileError, OutputError, RasterError, ScenesError, UsageError
from segkit.inference import executor as crew_
from segkit.inference import settings as choice
from segkit.inference import tasks as units
from segkit.inference import tiling as plan
from segkit.inference.predict import predict
from segkit.inference.runner import TileTooLarge
from segkit.inference.tasks import BandUnit, Find, Look, SeamUnit, Source, Tools

RASTERS = ("map", "probabilities", "confidence")


class Crew:
    """Works a task when somebody waits for one, a random one; `before` is called with each unit before."""

    def __init__(self, seed=0, room=3, before=lambda unit: None):
        self.room, self.sharing, self.before = room, 1, before
        self.random, self.waiting, self.most, self.units, self.bytes = random.Random(seed), {}, 0, [], 0

    def start(self, task):
        content = pickle.dumps(task)
        self.bytes = max(self.bytes, len(content))
        ticket = object()
        self.waiting[ticket] = pickle.loads(content)
        self.most = max(self.most, len(self.waiting))
        return ticket

    def next(self):
        ticket = self.random.choice(list(self.waiting))
        task = self.waiting.pop(ticket)
        unit = task.args[0]
        self.units.append(unit)
        try:
            self.before(unit)
            return ticket, pickle.loads(pickle.dumps(task()))
        except Exception as error:  # noqa: BLE001 - what a crew does
            return ticket, pickle.loads(pickle.dumps(type(error)(*error.args)))  # not what it came from


def fails(error, kind=BandUnit, index=1):
    """A deed of a crew: the unit of a band fails."""

    def before(unit):
        if isinstance(unit, kind) and (kind is not BandUnit or unit.band.index == index):
            raise error

    return before


@pytest.fixture(autouse=True)
def several_bands(monkeypatch):
    monkeypatch.setattr(plan, "_BAND_PIXELS", 1)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nobody pulls a plug here
    monkeypatch.setattr(units, "_kept", None)


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


@pytest.mark.parametrize("seed", range(3))
def test_a_crew_makes_the_same_pixels_in_any_order(folder, seed):
    [here] = mapped(folder, "here")
    crew = Crew(seed)
    [there] = mapped(folder, "there", crew=crew)
    assert_same(folder, "there", "here")
    assert here.bands > 3
    for name in ("pixels", "hectares", "valid", "bands", "resumed", "choice"):
        assert getattr(here, name) == getattr(there, name), name
    assert crew.most == crew.room, "no more tasks at once than the crew has room for, and no fewer"
    assert crew.bytes < 5000


def test_what_passes_does_not_grow_with_the_scene(tmp_path):
    """A band's unit holds its own windows, not all of the scene's; a copy of a journal forgets what it found."""
    model, crew = Network(), Crew()
    model.path = tmp_path / "model.safetensors"
    write_scene(tmp_path / "scene.tif", 1500, 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segkit.models.segmenter, "load", lambda path: Network())
        [summary] = predict(model, tmp_path / "scene.tif", tmp_path / "map.tif", crew=crew, **FAST)
    assert summary.bands > 50
    assert max(len(pickle.dumps(unit)) for unit in crew.units if isinstance(unit, BandUnit | SeamUnit)) < 4000


def test_relative_names_are_the_clients(folder, monkeypatch):
    monkeypatch.chdir(folder)

    def elsewhere(unit):
        monkeypatch.chdir("/")

    write_area(folder / "area.gpkg", placed(UTM, (3, 4), (60, 11), (31, 60)))
    files = ("model.safetensors", "images/a.tif", "map.tif")
    predict(*files, aoi="area.gpkg", crew=Crew(before=elsewhere), **FAST)
    monkeypatch.chdir(folder)
    predict(*files[:2], "here.tif", aoi="area.gpkg", **FAST)
    np.testing.assert_array_equal(read("map.tif"), read("here.tif"))


def test_scenes_are_worked_side_by_side_and_one_that_fails_stops_no_other(folder):
    scenes = [f"images/{name}.tif" for name in "abc"]
    mapped(folder, "here", scenes)
    (folder / "images/x.tif").write_bytes((folder / "images/a.tif").read_bytes()[:300])
    crew = Crew(room=7)
    with pytest.raises(ScenesError, match="1 of 4 scenes failed") as failed:
        mapped(folder, "there", ["images/x.tif", *scenes], crew=crew)
    assert "images/x.tif: " in str(failed.value)
    assert [one.path.stem for one in failed.value.summaries] == ["a", "b", "c"]
    assert_same(folder, "there", "here")
    order = [unit.name for unit in crew.units if isinstance(unit, BandUnit)]
    assert order != sorted(order)
    assert crew.most == 7
    again = Crew()
    assert all(one.seconds == 0 for one in mapped(folder, "there", scenes, crew=again))
    assert [type(unit).__name__ for unit in again.units] == ["Check"]


def test_scenes_under_way_are_bounded(folder, monkeypatch):
    monkeypatch.setattr(crew_, "_SCENES_AT_ONCE", 1)
    crew = Crew(room=20)
    mapped(folder, "there", [f"images/{name}.tif" for name in "abc"], crew=crew)
    order = [unit.name for unit in crew.units if isinstance(unit, Look | BandUnit)]
    assert order == sorted(order)


def test_a_model_is_loaded_once(folder, monkeypatch):
    loaded = []
    monkeypatch.setattr(segkit.models.segmenter, "load", lambda path: loaded.append(path) or load(path))
    mapped(folder, "there", [f"images/{name}.tif" for name in "abc"], crew=Crew())
    assert len(loaded) == 2, "by the client and by the worker"


@pytest.mark.parametrize(
    "error", [RasterError("block 7 is damaged"), ClusterError("4 workers died"), ValueError("bug")]
)
def test_a_band_that_fails_is_set_aside_and_the_rest_finishes(folder, error):
    [here] = mapped(folder, "here")
    with pytest.raises(ClusterError) as failed:
        mapped(folder, "there", crew=Crew(before=fails(error)))
    told = str(failed.value)
    assert re.match(r"a: 1 of \d units of work were set aside, .* the same command goes on with these:\n", told)
    assert re.search(rf"\n  band 1, rows \d+ to \d+: .*{error}$", told)
    done = {f"band-{index:05d}" for index in range(here.bands) if index != 1}
    assert names(folder / "there") == {"map.tif.bands"}
    assert names(folder / "there/map.tif.bands") == {*done, "request.json", ".lock"}
    crew = Crew()
    [summary] = mapped(folder, "there", crew=crew)
    assert summary.resumed == here.bands - 1
    assert [unit.band.index for unit in crew.units if isinstance(unit, BandUnit)] == [1]
    assert_same(folder, "there", "here")


@pytest.mark.parametrize("first", ["here", "crew"])
def test_work_goes_on_with_and_without_a_crew(folder, first):
    mapped(folder, "right")
    if first == "crew":
        with pytest.raises(ClusterError):
            mapped(folder, "found", crew=Crew(before=fails(ValueError(), index=2)))
        [summary] = mapped(folder, "found")
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(units, "finish_seam", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                mapped(folder, "found")
        [summary] = mapped(folder, "found", crew=Crew())
    assert summary.resumed >= summary.bands - 1
    assert_same(folder, "found", "right")


def test_a_window_that_memory_is_too_small_for_makes_all_smaller(folder, monkeypatch):
    monkeypatch.setattr(choice, "_SMALLEST", 16)

    def before(unit):
        if isinstance(unit, BandUnit) and unit.choice.tile == 32:
            raise TileTooLarge("too large")

    with pytest.warns(UserWarning, match="too large; going on with 16"):
        [there] = mapped(folder, "there", crew=Crew(before=before))
    mapped(folder, "here", tile=16)
    assert there.choice.tile == 16
    np.testing.assert_array_equal(read(folder / "there/map.tif"), read(folder / "here/map.tif"))


class Lost(Crew):
    """A crew that is gone after some tasks."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def next(self):
        if len(self.units) == self.after:
            raise ClusterError("lost")
        return super().next()


@pytest.mark.parametrize("after", [1, 2, 3, 4, 6])
def test_a_lost_crew_loses_nothing_and_leaves_no_lock(folder, after):
    mapped(folder, "right")
    with pytest.raises(ClusterError, match="lost"):
        mapped(folder, "found", crew=Lost(after))
    [summary] = mapped(folder, "found", crew=Crew())
    assert summary.resumed == max(0, after - 3)
    assert_same(folder, "found", "right")


def test_a_second_client_is_told(folder):
    def before(unit):
        if isinstance(unit, BandUnit):
            mapped(folder, "there")

    with pytest.raises(ClusterError, match="another segkit predict is at work on it"):
        mapped(folder, "there", crew=Crew(before=before))


def test_stragglers_do_no_harm(folder):
    """Of a client that died: their band counts where it is of the same request and plan, and nowhere else."""
    mapped(folder, "right", tile=40)
    late = []
    with pytest.raises(ClusterError):
        mapped(folder, "found", crew=Crew(before=lambda unit: late.append(unit) or fails(ValueError())(unit)))
    late = [pickle.dumps(unit) for unit in late if isinstance(unit, BandUnit) and unit.band.index == 1]
    tools = Tools(segkit.load(folder / "model.safetensors"))

    def straggle(unit):
        if isinstance(unit, Find):  # nothing is there but what the other request has settled
            pickle.loads(late[0])(tools, lambda step: None)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mapped(folder, "found", tile=40, overwrite=True, crew=Crew(before=straggle))
    assert "is of another request or plan" in str(caught[0].message)
    assert_same(folder, "found", "right")
    with pytest.raises(OutputError):
        pickle.loads(late[0])(tools, lambda step: None)
    assert_same(folder, "found", "right")


def test_another_model_at_the_path_is_refused(real):
    model = segkit.load(real / "model.safetensors")
    other = segkit.load(real / "model.safetensors")
    other.mean += 1
    other.save(real / "model.safetensors")
    with pytest.raises(ModelFileError, match="another model than the one that was asked for"):
        predict(model, real / "images/a.tif", real / "map.tif", crew=Crew(), **FAST)
    mapped(real, "here")
    mapped(real, "there", crew=Crew())
    assert_same(real, "there", "here")


def test_another_area_at_the_path_is_refused(folder):
    write_area(folder / "area.gpkg", placed(UTM, (3, 4), (60, 11), (31, 60)))

    def before(unit):
        units._kept = None
        (folder / "area.gpkg").unlink(missing_ok=True)
        write_area(folder / "area.gpkg", placed(UTM, (3, 4), (50, 11), (31, 50)))

    with pytest.raises(ValueError, match="holds other polygons"):
        mapped(folder, "there", aoi=folder / "area.gpkg", crew=Crew(before=before))


def test_a_model_in_memory_is_refused(tmp_path):
    crew = Crew()
    with pytest.raises(UsageError, match="only in memory"):
        predict(Network(), write_scene(tmp_path / "scene.tif"), tmp_path / "map.tif", crew=crew, **FAST)
    assert names(tmp_path) == {"scene.tif"}


def test_options_are_checked_by_the_crew(folder):
    with pytest.raises(UsageError, match="half of it"):
        mapped(folder, "there", overlap=17, crew=Crew())
    assert not names(folder / "there")


def test_polygons_are_made_by_the_crew(folder):
    crew = Crew()
    mapped(folder, "there", vector=folder / "layer.gpkg", crew=crew)
    assert (folder / "layer.gpkg").exists()
    assert type(crew.units[-1]).__name__ == "Vectorize"


def test_threads_are_those_that_were_settled(folder, monkeypatch):
    """A network may add up in another order with other threads; wherever a band is done, there are as many."""
    seen, predict_band = [], units.predict_band

    def watched(*arguments, **options):
        seen.append((torch.get_num_threads(), options["batch"]))
        return predict_band(*arguments, **options)

    monkeypatch.setattr(units, "predict_band", watched)
    before = torch.get_num_threads()

    def other_machine(unit):
        torch.set_num_threads(1 if isinstance(unit, BandUnit) else 3)

    try:
        with pytest.raises(ClusterError):
            mapped(folder, "found", crew=Crew(before=lambda unit: other_machine(unit) or fails(ValueError())(unit)))
        torch.set_num_threads(2)
        [summary] = mapped(folder, "found")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert {threads for threads, _ in seen} == {3}
    assert {batch for _, batch in seen} == {summary.choice.batch}
    assert len(seen) == summary.bands


def test_tools_keep_one_network_and_one_region(folder):
    tools = Source(folder / "model.safetensors", "test model").tools()
    scene, choice = Look("a", (folder / "images/a.tif",), False, units.Options(), None)(tools, print)
    runner = partial(tools.runner, torch.device("cpu"))
    first = runner(choice, scene)
    assert runner(choice, None) is first
    other = units.replace(choice, tta="d4")
    assert runner(other, scene) is not first
    assert runner(other, scene) is runner(other, scene)
    assert tools.region(scene.grid) is None


def test_a_crews_map_is_what_the_network_decides(tmp_path):
    """Not only the same as without a crew, which may be wrong alike."""
    model = Network()
    model.path = tmp_path / "model.safetensors"
    scene = write_scene(tmp_path / "scene.tif")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segkit.models.segmenter, "load", lambda path: Network())
        predict(model, scene, tmp_path / "map.tif", crew=Crew(), **FAST)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), expected(model, scene)[0])
