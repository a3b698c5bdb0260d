import json

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from killing import names
from predicting import FAST, TASKS, Network, expected, read, write_scene
from torch import nn

from segkit.errors import RasterError, SegkitError
from segkit.inference import tiling as plan
from segkit.inference.predict import predict
from segkit.io.scene import Scene


@pytest.fixture(autouse=True)
def several_bands_and_groups(monkeypatch):
    monkeypatch.setattr(plan, "_MIN_BAND_PIXELS", 1)
    monkeypatch.setattr(plan, "_MAX_GROUP_COLUMNS", 50)


def certainty(task, p):
    """The probability (targets, H, W) of what is decided, of the channels' probabilities (C, H, W)."""
    if task.type == "multilabel":  # each class for itself: present from 0.5 on, else absent
        return np.where(p >= 0.5, p, 1 - p)
    if task.type == "binary" and task.head == "softmax":  # the threshold of the only binary task here is 0.4
        return np.where(p[1:] >= 0.4, p[1:], p[:1])
    highest = p.max(axis=0, keepdims=True)
    if task.head == "sigmoid":  # none may be there, which is as sure as the likeliest is not
        return np.where(highest >= 0.5, highest, 1 - highest)
    return highest


def assert_stored(found, shares, valid):
    """Bytes of shares, 255 where nothing is valid; rounding of float32 may move one by a step."""
    assert found.dtype == np.uint8
    assert (found[:, ~valid] == 255).all()
    assert found[:, valid].max() <= 254
    np.testing.assert_allclose(found[:, valid] / 254, shares[:, valid], rtol=0, atol=0.5 / 254 + 1e-5)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.type}-{task.head}-{len(task.classes)}")
def test_products_are_the_probabilities_and_that_of_the_decision(tmp_path, task):
    model, scene = Network(task), write_scene(tmp_path / "scene.tif")
    files = {name: tmp_path / f"{name}.tif" for name in ("probabilities", "confidence")}
    [summary] = predict(model, scene, tmp_path / "map.tif", **files, **FAST)
    assert summary.bands > 1
    _, p, valid = expected(model, scene)
    sure = certainty(task, p)
    assert_stored(read(files["probabilities"]), p, valid)
    assert_stored(read(files["confidence"]), sure, valid)
    assert sure[:, valid].max() - sure[:, valid].min() > 0.3, "the network is here sure and there not"
    bands = {"probabilities": task.channel_names, "confidence": task.band_names if sure.shape[0] > 1 else None}
    for name, file in files.items():
        with rasterio.open(file) as found, rasterio.open(scene) as given:
            assert found.descriptions == (bands[name] or ("confidence",))
            assert found.scales == pytest.approx([1 / 254] * found.count)
            assert found.nodata == 255
            assert (found.transform, found.crs, found.shape) == (given.transform, given.crs, given.shape)
            assert json.loads(found.tags()["segkit_counts"])["valid"] == valid.sum()


def test_a_product_can_be_had_without_the_others(tmp_path):
    scene = write_scene(tmp_path / "scene.tif")
    rasters = {name: tmp_path / f"{name}.tif" for name in ("probabilities", "confidence")}
    predict(Network(), scene, tmp_path / "map.tif", **rasters, **FAST)
    for name, file in rasters.items():
        predict(Network(), scene, tmp_path / "other.tif", **{name: tmp_path / "one.tif"}, overwrite=True, **FAST)
        np.testing.assert_array_equal(read(tmp_path / "one.tif"), read(file))
        np.testing.assert_array_equal(read(tmp_path / "other.tif"), read(tmp_path / "map.tif"))


class Directed(Network):
    """Says one thing of what lies above and another of what lies to the right."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.mix = nn.Conv2d(2, self.task.channels, 3, padding=1)
        self.mix.weight.data *= 8
        self.receptive_field = 1


def looks(model, scene):
    """Probabilities of one pass over each of the eight turned and mirrored scenes, laid back."""
    tile = scene.read()
    for mirror in (False, True):
        for quarters in range(4):
            pixels, valid = (np.flip(a, -1) if mirror else a for a in (tile.pixels, tile.valid))
            pixels, valid = (np.rot90(a, quarters, (-2, -1)).copy() for a in (pixels, valid))
            with torch.inference_mode():
                p = model.task.probabilities(model(torch.from_numpy(pixels)[None], torch.from_numpy(valid)[None]))
            p = np.rot90(p[0].numpy(), -quarters, (-2, -1))
            yield np.flip(p, -1) if mirror else p


def test_augmentation_is_the_mean_over_the_turned_scenes(tmp_path):
    path = write_scene(tmp_path / "scene.tif", 48, 64)  # multiples of the stride: nothing lies beyond the rim
    model, scene = Directed(), Scene.from_files(path)
    options = {"device": "cpu", "tile": 64, "exact": True, "batch_size": 1}
    each = list(looks(model, scene))
    assert all(np.abs(one - each[0]).max() > 0.1 for one in each[1:])
    valid = scene.read().valid
    for tta, right in ((None, each[0]), ("d4", np.mean(each, axis=0))):
        model.calls = 0
        [summary] = predict(
            model, path, tmp_path / f"{tta}.tif", probabilities=tmp_path / f"p-{tta}.tif", tta=tta, **options
        )
        assert model.calls == (8 if tta else 1)
        assert summary.choice.tta == tta
        assert_stored(read(tmp_path / f"p-{tta}.tif"), right, valid)
    assert (read(tmp_path / "d4.tif") != read(tmp_path / "None.tif")).any()


def test_augmentation_works_in_tiles_that_are_cut_anywhere(tmp_path):
    path = write_scene(tmp_path / "scene.tif", 88, 72)
    model, scene = Directed(), Scene.from_files(path)
    predict(
        model, path, tmp_path / "map.tif", probabilities=tmp_path / "p.tif", tta="d4", exact=True, tile=24, device="cpu"
    )
    assert model.calls > 8
    assert_stored(read(tmp_path / "p.tif"), np.mean(list(looks(model, scene)), axis=0), scene.read().valid)


def test_folders_and_globs_are_a_scene_a_raster(tmp_path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    for seed, name in enumerate(("b.tif", "a.TIF", ".hidden.tif")):
        write_scene(folder / name, 40, 40, seed=seed)
    (folder / "notes.txt").write_text("nothing to map")
    rasterio.shutil.copy(folder / "b.tif", folder / "virtual.vrt", driver="VRT")
    found = predict(Network(), folder, tmp_path / "maps", **FAST)
    assert [one.path for one in found] == [tmp_path / "maps/a.tif", tmp_path / "maps/b.tif"]
    assert names(tmp_path / "maps") == {"a.tif", "b.tif"}
    for name in ("b.tif", "a.TIF"):
        right = expected(Network(), folder / name)[0]
        np.testing.assert_array_equal(read(tmp_path / "maps" / f"{name[0]}.tif"), right)
    [one] = predict(Network(), folder / "[b]*.tif", tmp_path / "one.tif", **FAST)
    assert one.path == tmp_path / "one.tif"
    np.testing.assert_array_equal(read(tmp_path / "one.tif"), read(tmp_path / "maps/b.tif"))
    found = predict(Network(), [folder / "b.tif", str(folder / "a*")], tmp_path / "listed", **FAST)
    assert [one.path.name for one in found] == ["b.tif", "a.tif"]
    found = predict(Network(), folder, tmp_path / "all", vrt=True, **FAST)
    assert [one.path.name for one in found] == ["a.tif", "b.tif", "virtual.tif"]
    with pytest.raises(SegkitError, match="contains no scenes"):
        predict(Network(), tmp_path / "maps/*.png", tmp_path / "none.tif", **FAST)


def test_a_virtual_raster_is_opened_on_request_only(tmp_path):
    scene, virtual = write_scene(tmp_path / "scene.tif"), tmp_path / "virtual.vrt"
    rasterio.shutil.copy(scene, virtual, driver="VRT")
    model = Network()
    with pytest.raises(RasterError, match=r"virtual\.vrt"):
        predict(model, virtual, tmp_path / "map.tif", **FAST)
    assert model.calls == 0
    assert names(tmp_path) == {"scene.tif", "virtual.vrt"}
    predict(model, virtual, tmp_path / "map.tif", vrt=True, **FAST)
    predict(model, scene, tmp_path / "right.tif", **FAST)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "right.tif"))
