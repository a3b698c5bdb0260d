"""Decoded scenes and labels read as their files do, and the cache keeps to its rules."""

import multiprocessing
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import torch
from fork_server import SERVER
from geopandas import GeoDataFrame
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyogrio import write_dataframe
from quick import skip_measurements, skip_pictures
from rasterio.windows import Window
from safetensors.torch import load_file
from synthetic import TASKS, recipe_for, write_pair
from synthetic import write_raster as write_synthetic

from segkit.data import cache
from segkit.data.cache import Cache, cache_folder, clear_cache, list_entries
from segkit.data.pairing import open_samples
from segkit.errors import LabelError, RasterError
from segkit.io.derived_bands import BandFormula
from segkit.io.layers import Layer
from segkit.io.pixel_rules import PixelRules
from segkit.io.quality_mask import MaskRule, QualityMask
from segkit.io.scene import Scene
from segkit.recipe.schema import Data, DatasetSource
from segkit.task import LandCoverClass, Task
from segkit.training.train import train

GIGABYTES = 1.0
windows = st.builds(Window, st.integers(-20, 60), st.integers(-20, 60), st.integers(1, 70), st.integers(1, 70))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "cache"))


def noise(dtype, *, seed=0, shape=(3, 40, 50)):
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def check_same(one, other, window):
    mine, theirs = one.read(window), other.read(window)
    np.testing.assert_array_equal(mine.valid, theirs.valid)
    assert mine.pixels.dtype == theirs.pixels.dtype == np.float32
    np.testing.assert_array_equal(mine.pixels[:, mine.valid], theirs.pixels[:, mine.valid])
    assert np.isnan(mine.pixels[:, ~mine.valid]).all()


KINDS = {
    "uint8": {"array": noise("uint8"), "nodata": 7},
    "uint16": {"array": noise("uint16"), "nodata": 7, "tiled": True, "blockxsize": 16, "blockysize": 16},
    "int16": {"array": noise("int16") - 50, "nodata": -7},
    "int32": {"array": noise("int32") * 70_000},
    "float32": {"array": np.where(noise("uint8") == 3, np.nan, noise("float32")).astype("float32")},
    "masked": {"array": noise("uint8"), "mask": noise("uint8", seed=1)[0] > 20},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bands", [None, (3, 1)])
def test_a_scene_reads_as_its_files_do(write_raster, monkeypatch, kind, bands):
    monkeypatch.setattr(cache, "_MAX_STRIP_PX", 7 * 50)
    options = KINDS[kind].copy()
    scene = Scene.from_files(write_raster("scene.tif", options.pop("array"), **options), bands=bands)

    @settings(max_examples=30)
    @given(windows)
    def reads_the_same(window):
        check_same(kept, scene, window)

    with Cache.open(GIGABYTES) as own:
        kept = own.scene(scene)
        assert kept is not scene
        reads_the_same()
        check_same(kept, scene, None)
    [entry] = list_entries()
    small = np.load(entry.path / "pixels.npy", mmap_mode="r").dtype
    # A band alone without data is what whole numbers cannot say.
    assert small == {"masked": "uint8"}.get(kind, "float32")


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_small_types_stay_small(write_raster, dtype):
    codes = noise(dtype) + np.array(1, dtype)
    codes[:, :5] = 0
    scene = Scene.from_files(write_raster("scene.tif", codes, nodata=0))
    with Cache.open(GIGABYTES) as own:
        check_same(own.scene(scene), scene, None)
    assert np.load(list_entries()[0].path / "pixels.npy", mmap_mode="r").dtype == dtype


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(window=windows)
def test_labels_read_as_their_files_do(tmp_path, kind, window):
    if not (tmp_path / "images").exists():
        write_pair(tmp_path, kind, "a", height=40, width=50)
    recipe = recipe_for(tmp_path, kind)
    [sample] = open_samples(recipe.data.train, recipe.data, recipe.task).samples
    with Cache.open(GIGABYTES) as own:
        [kept] = open_samples(recipe.data.train, recipe.data, recipe.task, own).samples
        assert type(kept.labels) is not type(sample.labels)
        found = kept.labels.read(window)
        assert found.dtype == np.int16
        np.testing.assert_array_equal(found, sample.labels.read(window))
        assert len(pickle.dumps(kept)) < 10_000  # what goes to a worker is where the arrays are


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_soft_labels_read_as_their_files_do(tmp_path, kind):
    task = Task(**recipe_for(tmp_path, kind).to_dict()["task"] | {"classes": CLASSES[kind]})
    shares = np.random.default_rng(0).dirichlet([1] * 3, (40, 50)).transpose(2, 0, 1)[: len(task.classes)]
    shares[:, 3:5] = np.nan
    write_synthetic(tmp_path / "i" / "a.tif", noise("uint8"))
    write_synthetic(tmp_path / "l" / "a.tif", shares.astype("float32"))
    labels = {"path": str(tmp_path / "l" / "a.tif"), "fractions": True}
    source = DatasetSource(images=str(tmp_path / "i" / "a.tif"), labels=labels)
    [plain] = open_samples(source, Data(train=source), task).samples
    with Cache.open(GIGABYTES) as own:
        [kept] = open_samples(source, Data(train=source), task, own).samples
        assert type(kept.labels) is not type(plain.labels)
        assert kept.labels.soft
        for window in (plain.scene.grid.full_window, Window(-3, 2, 70, 9)):
            found = kept.labels.read(window)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, plain.labels.read(window))
        assert (found > 0).any()
        assert (found % 1 != 0).any()


CLASSES = {kind: [LandCoverClass(**one) for one in raw["classes"]] for kind, raw in TASKS.items()}


def test_every_option_of_labels_changes_the_name_of_an_entry(tmp_path):
    task = Task("multilabel", tuple(CLASSES["multilabel"]))
    write_synthetic(tmp_path / "i" / "a.tif", noise("uint8"))
    first, second = (str(write_synthetic(tmp_path / n / "a.tif", np.zeros((2, 40, 50), "uint8"))) for n in "lm")
    polygon = shapely.box(500_000, 8_999_700, 500_200, 9_000_000)
    for name in "pq":  # alike but for their names, as the two rasters are
        write_dataframe(GeoDataFrame({"f": ["water"]}, geometry=[polygon], crs=32622), tmp_path / f"{name}.fgb")
    p, q = (str(tmp_path / f"{name}.fgb") for name in "pq")
    ways = [
        {"path": first},
        {"path": first, "fractions": True},
        {"path": first, "fractions": True, "full_value": 2},
        {"path": first, "classes": ["forest", "water"]},
        {"path": p, "field": "f"},
        {"path": p, "classes": ["water"]},
        {"path": p, "classes": ["forest"]},
        {"path": p, "field": "f", "values": {"water": "forest"}},
        {"path": p, "field": "f", "values": {"water": None}},
        {"path": p, "classes": ["water"], "outside_polygons": "ignore"},
        [{"path": first}, {"path": second}],
        {"path": [p, q], "classes": ["water"]},
        [{"path": p, "classes": ["water"]}, {"path": q, "classes": ["water"]}],
        [{"path": p, "classes": ["water"]}, {"path": q, "classes": ["forest"]}],
        [{"path": [p, q], "classes": ["water"]}, {"path": p, "classes": ["water"]}],
        [{"path": p, "classes": ["water"]}, {"path": [q, p], "classes": ["water"]}],
    ]
    with Cache.open(GIGABYTES) as own:
        for number, labels in enumerate(ways, 1):
            source = DatasetSource(images=str(tmp_path / "i" / "a.tif"), labels=labels)
            read = []
            for where in (None, own):
                [sample] = open_samples(source, Data(train=source), task, where).samples
                read.append(sample.labels.read(sample.scene.grid.full_window))
            np.testing.assert_array_equal(*read)
            assert len(list_entries()) == number + 1  # and the scene's


@pytest.mark.parametrize("nodata", [7, None])
def test_scaled_scenes_are_entries_of_their_own(write_raster, nodata):
    path = write_raster("scene.tif", noise("int16"), nodata=nodata)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.1, 1, 1), (0, 0, -3)
    with Cache.open(GIGABYTES) as own:
        for scaled in (False, True):
            scene = Scene.from_files(path, scaled=scaled)
            check_same(own.scene(scene), scene, None)
    assert len(list_entries()) == 2


def test_scenes_of_other_units_no_data_or_masks_are_entries_of_their_own(write_raster):
    path = write_raster("s.tif", noise("uint16"))
    write_raster("s_mask.tif", noise("uint8", shape=(1, 40, 50)))
    rules = [
        PixelRules(), PixelRules(nodata=(7,)), PixelRules(nodata=(8,)), PixelRules(offset=(-5,)),
        PixelRules(scale=(0.5, 1, 2)), PixelRules(decibels=("power",)),
    ]  # fmt: skip
    scenes = [Scene.from_files(path, rules=each) for each in rules]
    masks = [QualityMask(MaskRule(values), file="{name}_mask.tif") for values in ((1,), (2,))]
    scenes += [Scene.from_files(path, mask=mask) for mask in masks]
    with Cache.open(GIGABYTES) as cache:
        for scene in scenes:
            check_same(cache.scene(scene), scene, scene.grid.full_window)
        assert len(list_entries()) == len(scenes)
        write_raster("s_mask.tif", noise("uint8", seed=5, shape=(1, 40, 50)))
        check_same(cache.scene(scenes[-1]), scenes[-1], scene.grid.full_window)
    assert len(list_entries()) == len(scenes) + 1


def test_scenes_with_computed_bands_or_layers_are_entries_of_their_own(write_raster):
    path, dem = write_raster("s.tif", noise("uint16")), write_raster("dem.tif", noise("int16", shape=(1, 40, 50)))
    ratio = BandFormula("ratio", "a / b", (("a", 3), ("b", 1)))
    scenes = [Scene.from_files(path, bands=(1, 2), indices=each) for each in ((), (ratio,))]
    scenes.append(Scene.from_files(path, bands=(1, 2), indices=[replace(ratio, formula="a * b")]))
    scenes.append(Scene.from_files(path, bands=(1, 2), indices=[replace(ratio, bands=(("a", 2), ("b", 1)))]))
    scenes += [Scene.from_files(path, bands=(1, 2), layers=[Layer("dem", dem, nodata=each)]) for each in ((), (7,))]
    with Cache.open(GIGABYTES) as cache:
        for scene in scenes:
            check_same(cache.scene(scene), scene, scene.grid.full_window)
        assert len(list_entries()) == len(scenes)
        write_raster("dem.tif", noise("int16", seed=5, shape=(1, 40, 50)))
        check_same(cache.scene(scenes[-1]), scenes[-1], scene.grid.full_window)
    assert len(list_entries()) == len(scenes) + 1


def refuse(*arguments, **options):
    raise AssertionError("decoded again")


def test_a_moved_file_is_not_decoded_again(tmp_path, write_raster, monkeypatch):
    path = write_raster("scene.tif", noise("uint8"))
    with Cache.open(GIGABYTES) as own:
        own.scene(Scene.from_files(path))
    moved = Path(shutil.copy(path, tmp_path / "moved.tif"))
    os.utime(moved, (1, 1))
    with monkeypatch.context() as patch, Cache.open(GIGABYTES) as own:
        patch.setattr(cache, "_write_scene", refuse)
        check_same(own.scene(Scene.from_files(moved)), Scene.from_files(path), None)
    assert len(list_entries()) == 1


def test_other_content_or_other_options_are_another_entry(write_raster):
    path = write_raster("scene.tif", noise("uint8"))
    with Cache.open(GIGABYTES) as own:
        own.scene(Scene.from_files(path))
        own.scene(Scene.from_files(path, bands=(2,)))
        path = write_raster("scene.tif", noise("uint8", seed=1))
        check_same(own.scene(Scene.from_files(path)), Scene.from_files(path), None)
    assert len(list_entries()) == 3


def test_the_least_recently_used_entry_is_removed_unless_in_use(write_raster):
    scenes = [Scene.from_files(write_raster(f"{n}.tif", noise("uint8", seed=n))) for n in range(4)]
    with Cache.open(GIGABYTES) as own:
        first, second = (own.scene(scene).entry for scene in scenes[:2])
    os.utime(first, (2, 2))
    os.utime(second, (1, 1))
    size = list_entries()[0].size
    with Cache.open(2.5 * size / 1e9) as own:
        third = own.scene(scenes[2]).entry
        assert {entry.path for entry in list_entries()} == {first, third}
        held = own.scene(scenes[0]).entry
        assert held == first
        with pytest.warns(UserWarning, match="3: needs .* has free; it is read from its files"):
            assert own.scene(scenes[3]) is scenes[3]
        assert {entry.path for entry in list_entries()} == {first, third}
        assert clear_cache() == []
    assert {entry.path for entry in clear_cache()} == {first, third}
    assert list(cache_folder().iterdir()) == []


def test_without_space_or_permission_scenes_are_read_from_their_files(write_raster, monkeypatch):
    scene = Scene.from_files(write_raster("scene.tif", noise("uint8")))

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_write_scene", full)
    with Cache.open(GIGABYTES) as own, pytest.warns(UserWarning, match="No space left.*read from its files"):
        assert own.scene(scene) is scene
    assert list_entries() == []
    assert list(cache_folder().iterdir()) == []
    with Cache.open(0) as own:
        assert own is None


def test_unreadable_files_raise_and_leave_no_entry(tmp_path, write_raster):
    path = write_raster("scene.tif", noise("uint8", shape=(1, 400, 400)), compress="deflate")
    scene = Scene.from_files(path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(5000))
    write_pair(tmp_path, "binary", "a")
    recipe = recipe_for(tmp_path, "binary", data={"ignore": []})
    with Cache.open(GIGABYTES) as own:
        with pytest.raises(RasterError, match="damaged"):
            own.scene(scene)
        with pytest.raises(LabelError, match="255"):
            open_samples(recipe.data.train, recipe.data, recipe.task, own)
    assert [len(list(entry.path.glob("*.npy"))) for entry in list_entries()] == [2]  # the scene whose labels are wrong


def cut(file, random, _):
    os.truncate(file, random.integers(file.stat().st_size))


def flip(file, random, _):
    content = bytearray(file.read_bytes())
    content[random.integers(len(content))] ^= 1 << random.integers(8)
    file.write_bytes(content)


def lengthen(file, *_):
    file.write_bytes(file.read_bytes() + b"x")


def remove(file, *_):
    file.unlink()


def exchange(file, _, other):
    file.write_bytes((other / file.name).read_bytes())


def exchange_all(file, _, other):
    for one in file.parent.iterdir():
        one.write_bytes((other / one.name).read_bytes())


FILES = {"scene": ("pixels.npy", "valid.npy", "checksums.json"), "labels": ("planes.npy", "checksums.json")}


@pytest.mark.parametrize(
    ("kind", "name", "attack"),
    [
        (kind, name, attack)
        for kind, names in FILES.items()
        for name in names
        for attack in (cut, flip, lengthen, remove, exchange, exchange_all)
        if (name, attack) != ("valid.npy", exchange)  # the two scenes have the same
    ],
)
def test_a_damaged_entry_is_decoded_again_with_a_warning(tmp_path, kind, name, attack):
    """Another entry of the same kind has files of the same sizes."""
    for place, seed in (("mine", 0), ("other", 1)):
        write_pair(tmp_path / place, "binary", "a", height=40, width=50, seed=seed)

    def read(place, own):
        recipe = recipe_for(tmp_path / place, "binary")
        [sample] = open_samples(recipe.data.train, recipe.data, recipe.task, own).samples
        tile = sample.scene.read()
        return tile.pixels, tile.valid, sample.labels.read(sample.scene.grid.full_window)

    truth, found = read("mine", None), []
    for place in ("mine", "other"):
        with Cache.open(GIGABYTES) as own:
            read(place, own)
        new = [entry.path for entry in list_entries() if entry.path not in found]
        found += sorted(new, key=lambda entry: (entry / "planes.npy").exists())
    mine, other = (found[number + (kind == "labels")] for number in (0, 2))
    random = np.random.default_rng(0)
    for _ in range(5 if attack in (cut, flip) else 1):
        attack(mine / name, random, other)
        message = rf"a(\.tif)?: its cache entry is damaged \({mine}.*\); it is decoded again$"
        with Cache.open(GIGABYTES) as own, pytest.warns(UserWarning, match=message) as messages:
            anew = read("mine", own)
        assert len(messages) == 1
        for one, same in zip(truth, anew, strict=True):
            np.testing.assert_array_equal(one, same)
        with Cache.open(GIGABYTES) as own:
            read("mine", own)  # without a warning


def test_a_damaged_entry_that_another_process_uses_is_not_read(write_raster):
    scene = Scene.from_files(write_raster("scene.tif", noise("uint8")))
    with Cache.open(GIGABYTES) as first, Cache.open(GIGABYTES) as second:
        entry = first.scene(scene).entry
        flip(entry / "pixels.npy", np.random.default_rng(0), None)
        with pytest.warns(UserWarning, match="damaged|another process uses the damaged entry.*read from its files"):
            assert second.scene(scene) is scene


def _set_environment(variables):
    os.environ.update(variables)


def _take(path):
    with Cache.open(GIGABYTES) as own:
        return float(own.scene(Scene.from_files(path)).read().pixels.sum())


def test_several_at_once_share_an_entry(write_raster):
    path = write_raster("scene.tif", noise("uint8", shape=(3, 300, 300)))
    # Forked from a process that has imported everything; its environment is older than this test's.
    environment = {"SEGKIT_CACHE": os.environ["SEGKIT_CACHE"]}
    with SERVER.Pool(3, _set_environment, [environment]) as pool:
        sums = pool.map(_take, [path] * 6)
    assert set(sums) == {float(Scene.from_files(path).read().pixels.sum())}
    assert [entry.path.parent for entry in list_entries()] == [cache_folder()]
    assert len(list(cache_folder().iterdir())) == 1


@pytest.fixture
def _started_by_a_server():
    """Processes start as they do by default from Python 3.14 on: with what is pickled, not as forks."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("_started_by_a_server")
@pytest.mark.parametrize(("workers", "caches"), [(0, (0, GIGABYTES, GIGABYTES)), (2, (0, GIGABYTES))])
def test_training_is_the_same_from_the_cache_and_from_files(tmp_path, monkeypatch, workers, caches):
    skip_measurements(monkeypatch.setattr)
    skip_pictures(monkeypatch.setattr)
    write_pair(tmp_path, "multiclass", "a")
    weights = []
    for place, gigabytes in enumerate(caches):
        recipe = recipe_for(tmp_path, "multiclass")
        recipe = recipe.model_copy(
            update={
                "data": recipe.data.model_copy(update={"cache": gigabytes}),
                "train": recipe.train.model_copy(update={"workers": workers}),
            }
        )
        weights.append(load_file(train(recipe, tmp_path / f"run{place}").model))
        assert bool(list_entries()) == bool(gigabytes)
    for other in weights[1:]:
        assert other.keys() == weights[0].keys()
        assert all(torch.equal(weights[0][name], other[name]) for name in other)
