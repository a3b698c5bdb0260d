import itertools
import json
import os
import random
import signal
import threading
import time
import warnings
from pathlib import Path

import fork_server
import geopandas
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import forked, names, unix
from predicting import FAST, UTM, Neighbours, Network, expected, placed, read, write_area, write_scene

from segkit.errors import OutputExistsError, RasterError, ScenesError
from segkit.inference import tasks
from segkit.inference import tiling as plan
from segkit.inference.journal import Journal
from segkit.inference.predict import predict

# 100 x 90 pixels with FAST: four bands of four windows each, in three groups of columns.
HEIGHT, WIDTH, BANDS, WINDOWS = 100, 90, 4, 4
RASTERS = {"map": "map.tif", "probabilities": "p.tif", "confidence": "c.tif"}


def cut_small(patch):
    patch.setattr(plan, "_MIN_BAND_PIXELS", 1)
    patch.setattr(plan, "_MAX_GROUP_COLUMNS", 50)


@pytest.fixture(autouse=True)
def several_bands_and_groups(monkeypatch):
    cut_small(monkeypatch)


@pytest.fixture
def scene(tmp_path):
    (tmp_path / "scenes").mkdir()
    return write_scene(tmp_path / "scenes/scene.tif", HEIGHT, WIDTH)


def mapped(model, scene, folder, **options):
    """Make all rasters of a scene in a folder; returns the summary."""
    folder.mkdir(exist_ok=True)
    rasters = {"output" if key == "map" else key: folder / name for key, name in RASTERS.items()}
    [summary] = predict(model, scene, **rasters, batch_size=1, **FAST | options)
    return summary


def written(folder):
    """Everything in a folder, which is rasters and nothing else."""
    assert names(folder) == set(RASTERS.values())
    return {name: read(folder / name) for name in RASTERS.values()}


def assert_same(found, right):
    for name in RASTERS.values():
        np.testing.assert_array_equal(found[name], right[name])


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """What a map that nothing disturbs holds."""
    folder = tmp_path_factory.mktemp("right")
    scene = write_scene(folder / "scene.tif", HEIGHT, WIDTH)
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch)
        assert mapped(Neighbours(), scene, folder / "rasters").bands == BANDS
    return written(folder / "rasters")


def broken(scene, folder, *, bands, error=KeyboardInterrupt, **options):
    """Start a map and break in the band after the first `bands`."""
    with pytest.raises(error):
        mapped(Neighbours(error=error, after=bands * WINDOWS + 1), scene, folder, **options)
    assert len(list((folder / "map.tif.bands").glob("band-*"))) == bands


def kill_at_any_time(folder):
    """Children are killed at random times; only they compute, so that the parent may fork."""
    cut_small(pytest.MonkeyPatch())
    os.fsync = lambda descriptor: None  # nobody pulls a plug here
    warnings.simplefilter("error", UserWarning)
    import segkit.models.segmenter  # noqa: F401 - once, not in each child

    folder = Path(folder)
    scene, right, log = write_scene(folder / "scene.tif", HEIGHT, WIDTH), folder / "right", folder / "log"
    started = time.perf_counter()
    assert os.waitpid(forked(lambda: mapped(Neighbours(pause=0.002), scene, right)), 0)[1] == 0
    usual = time.perf_counter() - started
    dice, kills, resumed = random.Random(0), 0, 0
    for number in itertools.count():
        found, mine = folder / f"found{number}", 0
        log.write_text("")
        while True:
            resumed += bool(list(found.glob("map.tif.bands/band-*")))
            child = forked(lambda: mapped(Neighbours(pause=0.002, log=log), scene, found))  # noqa: B023 - used at once
            if kills < 10:
                time.sleep(dice.uniform(0, usual))
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            assert status in (0, signal.SIGKILL)
            if status == 0:
                break
            mine += 1
            kills += 1
        assert_same(written(found), written(right))
        # A kill costs one band at most.
        assert BANDS * WINDOWS <= len(log.read_text()) <= (BANDS + mine) * WINDOWS
        if kills >= 10:
            break
    assert resumed > 2


@unix
def test_the_same_call_goes_on_after_kills_at_any_time(tmp_path):
    fork_server.run(kill_at_any_time, tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RasterError("block 7 is damaged"), ValueError("a fault")])
def test_an_interruption_keeps_what_is_finished(tmp_path, scene, right, error):
    found, before = tmp_path / "found", threading.active_count()
    for bands in (1, 3):
        done = len(list((found / "map.tif.bands").glob("band-*")))
        with pytest.raises(error if isinstance(error, type) else type(error)):
            mapped(Neighbours(error=error, after=(bands - done) * WINDOWS + 2), scene, found)
        assert names(found) == {"map.tif.bands"}
        assert len(list((found / "map.tif.bands").glob("band-*"))) == bands
    model = Neighbours()
    summary = mapped(model, scene, found)
    assert model.calls == (BANDS - 3) * WINDOWS
    assert (summary.bands, summary.resumed) == (BANDS, 3)
    assert sum(summary.pixels.values()) == summary.valid == (right["map.tif"] != 255).sum()
    assert_same(written(found), right)
    assert threading.active_count() == before


def test_the_strips_of_a_map_in_one_file_are_checked_as_those_of_the_whole(tmp_path, scene, monkeypatch):
    """Strips of a part may reach beyond it, those of a whole map may not."""
    windows, build_cog = [], tasks.build_cog

    def recorded(*arguments, window, **options):
        windows.append(window)
        return build_cog(*arguments, window=window, **options)

    monkeypatch.setattr(tasks, "build_cog", recorded)
    mapped(Neighbours(), scene, tmp_path / "found")
    assert windows == [None] * len(RASTERS)


@pytest.mark.parametrize("product", range(len(RASTERS)))
def test_an_interruption_of_the_last_step_costs_no_computing(tmp_path, scene, right, monkeypatch, product):
    found, assembled = tmp_path / "found", []

    def interrupted(path, *arguments, **options):
        if len(assembled) == product:
            raise KeyboardInterrupt
        assembled.append(path)
        return build_cog(path, *arguments, **options)

    build_cog = tasks.build_cog
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "build_cog", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mapped(Neighbours(), scene, found)
    assert names(found) == {"map.tif.bands", *list(RASTERS.values())[:product]}
    model = Neighbours()
    assert mapped(model, scene, found).resumed == BANDS
    assert model.calls == 0
    assert_same(written(found), right)


@pytest.mark.parametrize(
    ("band", "name", "redone"),
    [(0, "map.tif", 1), (1, "bottom.tif", 1), (2, "top.tif", 1), (3, "p.tif", 1), (BANDS + 1, "map.tif", 0)],
)
def test_a_damaged_band_is_computed_again_with_a_warning(tmp_path, scene, right, monkeypatch, band, name, redone):
    found = tmp_path / "found"
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "build_cog", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mapped(Neighbours(), scene, found)
    name = "probabilities.tif" if name == "p.tif" else name
    file = found / "map.tif.bands" / f"band-{band:05d}" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    model = Neighbours()
    with pytest.warns(UserWarning, match=f"band {band} is damaged and is computed again: {name} has changed"):
        summary = mapped(model, scene, found)
    assert model.calls == redone * WINDOWS
    assert summary.resumed == BANDS - redone
    assert_same(written(found), right)


def test_the_same_call_on_a_finished_map_does_nothing(tmp_path, scene):
    found = tmp_path / "found"
    first = mapped(Neighbours(), scene, found)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in found.iterdir()}
    for name in found.glob("*.tif"):  # as a call leaves that was killed right after renaming
        name.with_name(f".{name.name}.0123abcd.part").mkdir()
    model = Neighbours()
    again = mapped(model, scene, found)
    assert model.calls == 0
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in found.iterdir()}
    for name in ("path", "pixels", "hectares", "valid", "bands", "choice"):
        assert getattr(again, name) == getattr(first, name), name
    assert (again.seconds, again.mpx_per_second, again.resumed) == (0, 0, BANDS)


def test_batch_and_the_name_of_a_device_do_not_make_another_request(tmp_path, scene):
    """What does not decide pixels may change while a map is made."""
    broken(scene, tmp_path, bands=1)
    model = Neighbours()
    [summary] = predict(
        model,
        scene,
        tmp_path / "map.tif",
        probabilities=tmp_path / "p.tif",
        confidence=tmp_path / "c.tif",
        batch_size=3,
        **FAST,
    )
    assert summary.resumed == 1


def test_a_journal_that_a_kill_left_beside_the_map_goes_with_the_next_call(tmp_path, scene, monkeypatch):
    found = tmp_path / "found"
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", lambda self: None)
        mapped(Neighbours(), scene, found)
    assert names(found) == {"map.tif.bands", *RASTERS.values()}
    model = Neighbours()
    mapped(model, scene, found)
    assert model.calls == 0
    written(found)


def another_model(scene, folder):
    model = Neighbours()
    model.fingerprint = lambda: "other model"
    return model, {}


def another_scene(scene, folder):
    os.utime(scene, (1_000_000_000, 1_000_000_000))
    return Neighbours(), {}


def an_area(scene, folder):
    return Neighbours(), {"aoi": write_area(folder / "area.gpkg", placed(UTM, (3, 4), (80, 11), (31, 90)))}


def option(**changed):
    return lambda scene, folder: (Neighbours(), changed)


OTHERS = {
    "model": another_model,
    "scene": another_scene,
    "area of interest": an_area,
    "tile": option(tile=40),
    "overlap": option(overlap=12),
    "exact": option(exact=True),
    "precision": option(precision="auto"),
    "tta": option(tta="d4"),
}


@pytest.mark.parametrize("unfinished", [False, True], ids=["finished", "unfinished"])
@pytest.mark.parametrize("what", OTHERS)
def test_work_of_another_request_is_refused_by_name(tmp_path, scene, what, unfinished):
    found = tmp_path / "found"
    if unfinished:
        broken(scene, found, bands=2)
    else:
        mapped(Neighbours(), scene, found)
    before = {path: path.read_bytes() for path in found.rglob("*") if path.is_file()}
    model, options = OTHERS[what](scene, tmp_path)
    messages = rf"another request .*\({what} was " if unfinished else rf"other settings \({what}\)"
    with pytest.raises(OutputExistsError, match=f"{messages}.*--overwrite"):
        mapped(model, scene, found, **options)
    assert model.calls == 0
    assert before == {path: path.read_bytes() for path in found.rglob("*") if path.is_file()}
    if what in AFRESH:
        check_started_afresh(scene, found, what, model, options)


# One of the files, one of the windows, and one of what is asked of the network.
AFRESH = {"scene", "tile", "tta"}


def check_started_afresh(scene, found, what, model, options):
    """With --overwrite nothing of the other request is kept."""
    summary = mapped(model, scene, found, overwrite=True, **options)
    assert summary.resumed == 0
    fresh = OTHERS[what](scene, found.parent)[0]
    mapped(fresh, scene, found.parent / "fresh", **options)
    assert model.calls == fresh.calls
    assert_same(written(found), written(found.parent / "fresh"))


def test_a_product_that_the_map_was_not_made_with_is_another_request(tmp_path, scene):
    predict(Neighbours(), scene, tmp_path / "map.tif", **FAST)
    with pytest.raises(OutputExistsError, match=r"other settings \(outputs\)"):
        predict(Neighbours(), scene, tmp_path / "map.tif", confidence=tmp_path / "c.tif", **FAST)


def test_overwrite_makes_the_same_map_anew(tmp_path, scene):
    mapped(Neighbours(), scene, tmp_path / "found")
    model = Neighbours()
    assert mapped(model, scene, tmp_path / "found", overwrite=True).resumed == 0
    assert model.calls == BANDS * WINDOWS


def test_polygons_that_are_asked_for_later_are_all_that_is_made(tmp_path, scene):
    found, layer = tmp_path / "found", tmp_path / "layer.gpkg"
    mapped(Neighbours(), scene, found)
    before = (found / "map.tif").stat().st_mtime_ns
    model = Neighbours()
    for _ in range(2):  # the second time all is there
        mapped(model, scene, found, vector=layer)
        assert model.calls == 0
        assert (found / "map.tif").stat().st_mtime_ns == before
    classes = np.isin(read(found / "map.tif"), [4, 9]).sum()
    assert geopandas.read_file(layer, layer="layer")["pixels"].sum() == classes > 0


def test_finished_scenes_are_skipped_and_failed_ones_tell_nothing_of_the_others(tmp_path):
    class Fragile(Neighbours):
        """Fails by a fault of its own at one scene."""

        def open_scene(self, paths, *, vrt=False):
            scene = super().open_scene(paths, vrt=vrt)
            if scene.name == "b":
                raise ZeroDivisionError("a fault")
            return scene

    scenes = [write_scene(tmp_path / f"{name}.tif", seed=seed) for seed, name in enumerate("abcd")]
    scenes[2].write_bytes(b"no raster")
    predict(Neighbours(), [scenes[0], scenes[0].with_name("d.tif")], tmp_path / "maps", **FAST)
    (tmp_path / "maps/d.tif").unlink()
    model = Fragile()
    with pytest.raises(ScenesError, match="2 of 4 scenes failed") as failed:
        predict(model, scenes, tmp_path / "maps", batch_size=1, **FAST)
    assert f"{scenes[1]}: unexpected ZeroDivisionError: a fault" in str(failed.value)
    assert str(scenes[2]) in str(failed.value)
    assert names(tmp_path / "maps") == {"a.tif", "d.tif"}
    first, last = failed.value.summaries
    assert (first.path.name, first.seconds) == ("a.tif", 0)
    assert last.path.name == "d.tif"
    assert last.seconds > 0
    alone = Neighbours()
    predict(alone, scenes[3], tmp_path / "alone.tif", batch_size=1, **FAST)
    assert model.calls == alone.calls, "the finished scene was not computed again"
    np.testing.assert_array_equal(read(tmp_path / "maps/d.tif"), read(tmp_path / "alone.tif"))


def random_scene(path, data):
    """A scene of any size with islands without data."""
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    pixels = random.integers(1, 1000, (2, height, width), dtype=np.uint16)
    for _ in range(data.draw(st.integers(0, 4))):
        top, left = random.integers(height), random.integers(width)
        pixels[:, top : top + random.integers(1, 60), left : left + random.integers(1, 60)] = 0
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 2, "dtype": "uint16", "nodata": 0}
    with rasterio.open(path, "w", **profile, transform=UTM, crs="EPSG:32622") as dataset:
        dataset.write(pixels)
    return path


@settings(max_examples=15)
@given(data=st.data())
def test_every_valid_pixel_is_decided_as_in_one_pass_and_no_other_one(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    scene = random_scene(folder / "scene.tif", data)
    overlap = data.draw(st.integers(0, 12))
    tile = data.draw(st.integers(max(9, 2 * overlap), 41))
    model = Network()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_MIN_BAND_PIXELS", data.draw(st.integers(1, 4000)))
        patch.setattr(plan, "_MAX_GROUP_COLUMNS", data.draw(st.integers(1, 90)))
        options = {"tile": tile, "overlap": overlap, "batch_size": data.draw(st.integers(1, 3))}
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            [summary] = predict(model, scene, folder / "map.tif", probabilities=folder / "p.tif", **FAST | options)
    values, probabilities, valid = expected(model, scene)
    assert ["scene without valid pixels" in str(one.message) for one in warned] == [True] * (not valid.any())
    found = read(folder / "map.tif")
    first, second = np.sort(probabilities, axis=0)[[-1, -2]]
    clear = (first - second > 1e-5) | ~valid  # rounding decides the others
    np.testing.assert_array_equal(found[0][clear], values[0][clear])
    np.testing.assert_array_equal(found[0] != 255, valid)
    shown = read(folder / "p.tif")
    assert (shown[:, ~valid] == 255).all()
    np.testing.assert_allclose(shown[:, valid] / 254, probabilities[:, valid], rtol=0, atol=0.5 / 254 + 1e-5)
    assert summary.valid == valid.sum()
    counted = {row["name"]: int((found == row["value"]).sum()) for row in model.task.legend}
    assert summary.pixels == counted
    with rasterio.open(folder / "map.tif") as dataset:
        assert json.loads(dataset.tags()["segkit_counts"])["pixels"] == counted
