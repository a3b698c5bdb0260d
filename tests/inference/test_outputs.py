import json

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from killing import names
from predicting import FAST, TASKS, Neighbours, Network, expected, read, with_training_pixels, write_scene
from torch import nn

import segkit
from segkit.assess.design import design
from segkit.cli.printing import describe_share_outside
from segkit.errors import DataError, OutputExistsError, RasterError, SegkitError, UsageError
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


OPENERS = {
    "vectorize": lambda path: segkit.vectorize(path, path.with_suffix(".gpkg")),
    "evaluate": lambda path: segkit.evaluate(path, None, path),
    "assess": lambda path: design(path, path.with_suffix(".gpkg"), samples=10),
    "change": lambda path: segkit.change(path, path, path.with_suffix(".change.tif")),
    "report": lambda path: segkit.report(path, path.with_suffix(".html")),
}


@pytest.mark.parametrize("task", [TASKS[0], TASKS[5]], ids=["exclusive", "overlapping"])
def test_no_other_output_is_taken_for_a_map(tmp_path, task, monkeypatch):
    """Also not one of an earlier version, which has no tag with its name."""
    model, scene = with_training_pixels(Network(task), 250), write_scene(tmp_path / "scene.tif")
    files = {kind: tmp_path / f"{kind}.tif" for kind in ("probabilities", "confidence", "applicability")}

    def predict_all():
        predict(model, scene, tmp_path / "map.tif", **files, uncertainty=["entropy"], overwrite=True, **FAST)
        return files | {"uncertainty": tmp_path / "map_uncertainty.tif"}

    for kind, path in predict_all().items():
        for run in OPENERS.values():
            with pytest.raises(DataError, match=rf"{path.name}: holds the {kind} of a map, not its classes") as refused:
                run(path)
            assert "\n" not in str(refused.value)
    for module in ("inference.outputs", "io.side_files"):
        monkeypatch.setattr(f"segkit.{module}.OUTPUT_TAG", "segkit_unknown")
    for kind, path in predict_all().items():
        with pytest.raises(DataError, match="float32" if kind == "applicability" else "scale 0.003937"):
            segkit.vectorize(path, tmp_path / "old.gpkg")
    segkit.vectorize(tmp_path / "map.tif", tmp_path / "map.gpkg")


def written(folder, model, scene, **options):
    """Map a scene with the rasters of applicability and uncertainty; returns the summary."""
    folder.mkdir(exist_ok=True)
    more = {"applicability": folder / "index.tif", "uncertainty": ("entropy", "margin")}
    [summary] = predict(model, scene, folder / "map.tif", batch_size=1, **FAST | more | options)
    return summary


class Filling(Network):
    """Sets bands without data to their mean, as a Segmenter does."""

    def forward(self, pixels, valid):
        return super().forward(pixels.nan_to_num(nan=self.mean.flatten()[0].item()), valid)


def nearest(training, pixels):
    """Oracle: distances to all training pixels, for pixels (n, C)."""
    std = np.array(training.std)
    known = np.array(training.pixels) / std
    return np.array([np.linalg.norm(one / std - known, axis=1).min() for one in pixels]) / training.mean_distance


@pytest.mark.parametrize("task", [TASKS[0], TASKS[5]], ids=["exclusive", "overlapping"])
def test_applicability_and_uncertainty_are_those_of_each_pixel(tmp_path, task):
    model, path = with_training_pixels(Filling(task), 250), tmp_path / "scene.tif"
    write_scene(path)
    with rasterio.open(path, "r+") as dataset:  # a band without data at pixels of which the other has some
        pixels = dataset.read()
        pixels[1, 5:8] = 0
        dataset.write(pixels)
    summary = written(tmp_path, model, path)
    assert summary.bands > 1
    tile = Scene.from_files(path).read()
    assert np.isnan(tile.pixels[1][tile.valid]).any()
    seen = np.where(np.isnan(tile.pixels), 625, tile.pixels)
    index = read(tmp_path / "index.tif")[0]
    assert (np.isnan(index) == ~tile.valid).all()
    right = nearest(model.training_pixels, seen[:, tile.valid].T.astype(float))
    np.testing.assert_allclose(index[tile.valid], right, rtol=1e-5)
    with rasterio.open(tmp_path / "index.tif") as found, rasterio.open(path) as given:
        assert (found.dtypes, found.descriptions) == (("float32",), ("dissimilarity index",))
        assert np.isnan(found.nodata)
        assert (found.transform, found.crs, found.shape) == (given.transform, given.crs, given.shape)
        threshold = float(found.tags()["segkit_applicability_threshold"])
        assert "outside the area of applicability if its value is larger" in found.tags()["segkit_applicability"]
    assert threshold == pytest.approx(model.training_pixels.threshold)
    assert summary.share_outside == (index[tile.valid] > threshold).mean()
    assert 0.02 < summary.share_outside < 0.5
    _, p, _ = expected(model, path)
    with rasterio.open(tmp_path / "map_uncertainty.tif") as found:
        assert found.descriptions == ("entropy", "1 - margin")
        assert found.scales == pytest.approx([1 / 254] * 2)
        assert "of overlapping classes the largest value. entropy: entropy of" in found.tags()["segkit_uncertainty"]
    shares = np.stack([1 - p, p], axis=1) if task.type == "multilabel" else p[None]
    entropy = (-shares * np.log(shares)).sum(axis=1).max(axis=0) / np.log(shares.shape[1])
    highest = np.sort(shares, axis=1)
    margin = (highest[:, -1] - highest[:, -2]).min(axis=0)
    assert_stored(read(tmp_path / "map_uncertainty.tif"), np.stack([entropy, 1 - margin]), tile.valid)


def test_they_are_the_same_however_the_work_is_cut(tmp_path, monkeypatch):
    scene, training = write_scene(tmp_path / "scene.tif"), 200
    summary = written(tmp_path / "cut", with_training_pixels(Neighbours(), training), scene)
    stopped = with_training_pixels(Neighbours(error=KeyboardInterrupt(), after=9), training)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "stopped", stopped, scene)
    with pytest.raises(OutputExistsError, match="outputs"):
        predict(with_training_pixels(Neighbours(), training), scene, tmp_path / "stopped/map.tif", **FAST)
    resumed = written(tmp_path / "stopped", with_training_pixels(Neighbours(), training), scene)
    assert 0 < resumed.resumed < resumed.bands
    monkeypatch.setattr(plan, "_MIN_BAND_PIXELS", 2**30)
    whole = written(tmp_path / "whole", with_training_pixels(Neighbours(), training), scene)
    assert (summary.bands > 2, whole.bands) == (True, 1)
    for folder in ("cut", "stopped"):
        assert names(tmp_path / folder) == {"map.tif", "map_uncertainty.tif", "index.tif"}
        for name in names(tmp_path / folder):
            np.testing.assert_array_equal(read(tmp_path / folder / name), read(tmp_path / "whole" / name))
    again = written(tmp_path / "whole", with_training_pixels(Neighbours(), training), scene)
    assert again.seconds == 0
    with pytest.raises(OutputExistsError, match=r"made with other settings .outputs."):
        written(tmp_path / "whole", with_training_pixels(Neighbours(), training), scene, uncertainty="entropy")
    shares = {one.share_outside for one in (summary, resumed, whole, again)}
    assert len(shares) == 1
    assert 0 < shares.pop() < 1 / 3


def test_the_share_outside_is_sampled_if_the_raster_is_not_written(tmp_path):
    scene = write_scene(tmp_path / "scene.tif", 100, 120)
    model = with_training_pixels(Network(), 200)
    [sampled] = predict(model, scene, tmp_path / "map.tif", **FAST)
    exact = written(tmp_path / "exact", model, scene)
    assert (sampled.share_is_sampled, exact.share_is_sampled) == (True, False)
    assert sampled.share_outside == pytest.approx(exact.share_outside, abs=0.01)
    assert sampled.share_outside != exact.share_outside
    assert describe_share_outside(sampled).endswith(" % of a sample of the map's pixels (--applicability counts all)")
    assert describe_share_outside(exact).endswith(" % of the map's pixels")
    [again] = predict(model, scene, tmp_path / "map.tif", **FAST)
    assert (again.seconds, again.share_outside, again.share_is_sampled) == (0, sampled.share_outside, True)
    [without] = predict(Network(), scene, tmp_path / "other.tif", **FAST)
    assert (without.share_outside, without.share_is_sampled) == (None, False)


def test_a_scene_without_data_has_no_share_outside(tmp_path):
    scene = write_scene(tmp_path / "scene.tif", 40, 40)
    with rasterio.open(scene, "r+") as dataset:
        dataset.write(np.zeros((2, 40, 40), np.uint16))
    with pytest.warns(UserWarning, match="without valid pixels"):
        summary = written(tmp_path, with_training_pixels(Network()), scene)
    assert summary.share_outside is None
    assert np.isnan(read(tmp_path / "index.tif")).all()
    assert (read(tmp_path / "map_uncertainty.tif") == 255).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"applicability": "index.tif"}, "a model in memory: holds no training pixels"),
        (
            {"uncertainty": "disagreement"},
            "disagreement is that of several models, but one is given; add --average-with MODEL, or name",
        ),
        ({"uncertainty": ["entropy", "surprise"]}, "uncertainty 'surprise' is not known; use entropy, margin"),
        ({"uncertainty": "margin", "confidence": "map_uncertainty.tif"}, "map_uncertainty.tif"),
    ],
)
def test_what_a_model_cannot_give_is_refused_before_any_work(tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    model = Network()
    with pytest.raises(UsageError, match=said) as refused:
        predict(model, write_scene(tmp_path / "scene.tif"), "map.tif", **options, **FAST)
    assert "\n" not in str(refused.value)
    assert model.calls == 0
    assert names(tmp_path) == {"scene.tif"}


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
