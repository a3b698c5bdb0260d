import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import scipy.stats
import torch
from predicting import read
from synthetic import TASKS, recipe_for, segmenter, write_pair

from segkit.data.applicability import compare_with_model
from segkit.errors import MissingFileError, ModelFileError, OutputExistsError, SegkitError, UsageError
from segkit.evaluation.evaluate import evaluate
from segkit.inference import tiling
from segkit.inference.predict import predict
from segkit.inference.runner import bytes_per_pixel
from segkit.inference.torch_runner import TorchRunner, operations_per_pixel
from segkit.io.scene import Scene, Tile
from segkit.models.calibration import Calibration
from segkit.models.ensemble import Ensemble, load_model, members, model_files, with_imagery
from segkit.models.segmenter import Segmenter, load
from segkit.models.training_pixels import TrainingPixels

FAST = {"tile": 64, "overlap": 16, "precision": "fp32", "device": "cpu"}
CPU = torch.device("cpu")
RADIUS = 43  # of the network of these tests


def make(folder, kind, seed, **changes):
    """A segmenter with weights, normalisation, calibration and thresholds of its own."""
    model = segmenter(folder, kind, mean=[500.0 + 20 * seed] * 3, std=[40.0 + 10 * seed] * 3, **changes)
    random = torch.Generator().manual_seed(seed)
    for weights in model.network.parameters():
        weights.data += 0.05 * torch.randn(weights.shape, generator=random)
    pixels = 550 + 60 * torch.randn(1, 3, 64, 64, generator=random)
    with torch.inference_mode():
        logits = model(pixels, torch.ones(1, 64, 64, dtype=torch.bool)).transpose(0, 1).flatten(1)
    scale = (1 + seed) / logits.std().item()
    model.set_calibration(Calibration((scale,) * len(logits), tuple((-scale * logits.median(dim=1).values).tolist())))
    if kind == "multilabel":
        model.set_thresholds([0.3 + 0.2 * seed, 0.6])
    model._receptive_field = RADIUS
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{kind: folder with a scene, and three model files}."""
    folders = {}
    for kind in TASKS:
        folders[kind] = folder = tmp_path_factory.mktemp(kind)
        write_pair(folder, kind, "a", height=150, width=80)
        for seed, name in enumerate("xyz"):
            make(folder, kind, seed).save(folder / f"{name}.safetensors")
    return folders


def files(folder, names):
    return [folder / f"{name}.safetensors" for name in names]


def mapped(folder, models, where, **options):
    where.mkdir(exist_ok=True)
    models = files(folder, models) if isinstance(models, str) else models
    rasters = {"probabilities": where / "p.tif", "confidence": where / "c.tif"}
    [summary] = predict(models, folder / "images/a.tif", where / "map.tif", **rasters, **FAST | options)
    return summary


def mean_of_passes(folder, names):
    """Oracle: the mean of the probabilities of one pass of each model over the whole scene, (C, H, W)."""
    tile = Scene.from_files(folder / "images/a.tif").read()
    with torch.inference_mode():
        passes = [
            one.task.probabilities(one(torch.from_numpy(tile.pixels[None]), torch.from_numpy(tile.valid[None])))
            for one in (load(file).optimized_for_inference(CPU, "fp32") for file in files(folder, names))
        ]
    assert (passes[0] - passes[1]).abs().max() > 0.2
    return torch.stack(passes).double().mean(dim=0)[0], tile.valid


@pytest.mark.parametrize("kind", TASKS)
def test_the_map_is_the_decision_of_the_mean_of_the_probabilities(made, tmp_path, kind):
    folder = made[kind]
    mean, valid = mean_of_passes(folder, "xyz")
    mapped(folder, "xyz", tmp_path, exact=True, tile=None, overlap=None)
    task = load_model(files(folder, "xyz")).task
    if kind == "multilabel":
        assert task.thresholds == pytest.approx((0.5, 0.6))  # the means of 0.3, 0.5, 0.7 and of 0.6
    decided = task.decide(mean[None])[0].numpy()
    assert all(len(np.unique(each)) > 1 for each in decided)
    found, expected = read(tmp_path / "map.tif"), task.map_values(decided, valid)
    highest = mean.topk(2, dim=0).values
    margin = (highest[0] - highest[1])[None]
    if task.thresholds:
        margin = mean - torch.tensor(task.thresholds)[:, None, None]
    np.testing.assert_array_equal(found[margin.abs() > 1e-4], expected[margin.abs() > 1e-4])  # others may be rounded
    shown = read(tmp_path / "p.tif")[:, valid] / 254
    np.testing.assert_allclose(shown, mean.numpy()[:, valid], atol=0.5 / 254 + 1e-4)


def test_windows_are_averaged_like_whole_scenes(made, tmp_path):
    """Of rasters of each model alone: blending and averaging may change places."""
    folder = made["multiclass"]
    alone = []
    for name in "xy":
        mapped(folder, name, tmp_path / name)
        alone.append(read(tmp_path / name / "p.tif").astype(float))
    mapped(folder, "xy", tmp_path / "both")
    valid = alone[0][0] != 255
    both = read(tmp_path / "both/p.tif").astype(float)
    assert np.abs(both - np.mean(alone, axis=0))[:, valid].max() <= 1.01


def test_test_time_augmentation_is_averaged_over_models_too(made):
    random = np.random.default_rng(0)
    tile = Tile(random.normal(550, 50, (3, 32, 32)).astype(np.float32), np.ones((32, 32), bool))
    models = [load(file) for file in files(made["binary"], "xy")]
    runners = [TorchRunner(one, CPU, "fp32", tta=True) for one in (*models, Ensemble(models))]
    first, second, both = (runner([tile]) for runner in runners)
    torch.testing.assert_close(both, (first + second) / 2)


def passes_of(folder, name, tile, tta):
    """Oracle: the probabilities of one model, the mean of turned passes if `tta`, (C, H, W)."""
    model = load(folder / f"{name}.safetensors")
    return TorchRunner(model, CPU, "fp32", tta=tta)([tile])[0]


@pytest.mark.parametrize("tta", [False, True])
def test_the_entropies_are_those_of_each_model(made, tta):
    folder = made["multiclass"]
    random = np.random.default_rng(0)
    tile = Tile(random.normal(550, 50, (3, 32, 32)).astype(np.float32), np.ones((32, 32), bool))
    models = Ensemble([load(file) for file in files(folder, "xyz")])
    plain, runner = (TorchRunner(models, CPU, "fp32", tta=tta, model_entropies=more) for more in (False, True))
    found = runner([tile])[0]
    assert runner.channel_names == ("background", "water", "forest", "mean entropy of class")
    assert (runner.channels, plain.channels) == (4, 3)
    assert found[:3].equal(plain([tile])[0]), "the map is the same, whatever else is asked for"
    each = [scipy.stats.entropy(passes_of(folder, name, tile, tta).numpy(), axis=0, base=3) for name in "xyz"]
    np.testing.assert_allclose(found[3].numpy(), np.mean(each, axis=0), atol=1e-5)


@pytest.mark.parametrize("kind", TASKS)
def test_disagreement_is_the_mutual_information_of_class_and_model(made, tmp_path, kind):
    folder, task = made[kind], load(made[kind] / "x.safetensors").task
    mapped(folder, "xyz", tmp_path, exact=True, tile=None, overlap=None, uncertainty=["disagreement", "entropy"])
    tile = Scene.from_files(folder / "images/a.tif").read()
    each = []
    for name in "xyz":
        model = load(folder / f"{name}.safetensors").optimized_for_inference(CPU, "fp32")
        with torch.inference_mode():
            p = task.probabilities(model(torch.from_numpy(tile.pixels[None]), torch.from_numpy(tile.valid[None])))[0]
        p = p.double().numpy()
        each.append(np.stack([1 - p, p], axis=1) if kind == "multilabel" else p[None])

    def entropy(shares):
        return scipy.stats.entropy(shares, axis=1, base=shares.shape[1])

    total = entropy(np.mean(each, axis=0))
    disagreement = total - np.mean([entropy(one) for one in each], axis=0)
    found = read(tmp_path / "map_uncertainty.tif") / 254
    expected = np.stack([disagreement.max(axis=0), total.max(axis=0)])
    np.testing.assert_allclose(found[:, tile.valid], expected[:, tile.valid], atol=0.5 / 254 + 1e-4)
    assert expected[0].max() > 0.1


def test_several_models_apply_where_one_of_them_does(made, tmp_path):
    """The warning, the raster and the summary count the same pixels, but for those that are not sampled."""
    folder = made["binary"]
    random, models = np.random.default_rng(0), []
    tile = Scene.from_files(folder / "images/a.tif").read()
    pixels = tile.pixels[:, tile.valid].T
    halves = pixels[pixels[:, 0] < 550], pixels[pixels[:, 0] >= 550]
    for name, half in zip("xy", halves, strict=True):
        model = load(folder / f"{name}.safetensors")
        groups = [half[random.permutation(len(half))[:60]] for _ in range(3)]
        model.training_pixels = TrainingPixels.from_samples(groups, ["uint16"], [(1.0, 0.0)], None)
        model.save(tmp_path / f"{name}.safetensors")
        models.append(load(tmp_path / f"{name}.safetensors"))
    scene = Scene.from_files(folder / "images/a.tif")
    for model in models:
        assert compare_with_model(model, scene).share_outside > 0.3
    together = compare_with_model(Ensemble(models), scene)
    assert together.share_outside < 0.2
    assert together.findings == ()
    summary = mapped(folder, models, tmp_path / "map", applicability=tmp_path / "index.tif")
    index = read(tmp_path / "index.tif")[0][tile.valid]
    relative = [one.training_pixels.dissimilarity(pixels) / one.training_pixels.threshold for one in models]
    np.testing.assert_allclose(index, np.minimum(*relative), rtol=1e-5)
    assert summary.share_outside == (index > 1).mean() == pytest.approx(together.share_outside, abs=0.03)
    with rasterio.open(tmp_path / "index.tif") as found:
        assert found.tags()["segkit_applicability_threshold"] == "1.0"
    with pytest.raises(UsageError, match=r"/z\.safetensors: holds no training pixels"):
        mapped(folder, [*models, folder / "z.safetensors"], tmp_path / "no", applicability=tmp_path / "no.tif")


def test_the_order_of_models_does_not_matter(made, tmp_path):
    folder = made["multiclass"]
    mapped(folder, "xyz", tmp_path / "0")
    right = {path.name: read(path) for path in (tmp_path / "0").glob("*.tif")}
    for number, order in enumerate(["zxy", "yzx"], 1):
        mapped(folder, order, tmp_path / str(number))
        for name, pixels in right.items():
            np.testing.assert_array_equal(read(tmp_path / str(number) / name), pixels)
    assert mapped(folder, "zxy", tmp_path / "0").seconds == 0  # it is finished


def test_a_stopped_map_goes_on_with_the_same_models_only(made, tmp_path, monkeypatch):
    monkeypatch.setattr(tiling, "_MIN_BAND_PIXELS", 1)
    folder, calls, forward = made["binary"], [], Segmenter.forward

    def stop(model, pixels, valid):
        calls.append(pixels.shape)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return forward(model, pixels, valid)

    mapped(folder, "xy", tmp_path / "whole", batch_size=1)
    monkeypatch.setattr(Segmenter, "forward", stop)
    with pytest.raises(KeyboardInterrupt):
        mapped(folder, "xy", tmp_path / "stopped", batch_size=1)
    with pytest.raises(OutputExistsError, match="model"):
        mapped(folder, "xz", tmp_path / "stopped", batch_size=1)
    with pytest.raises(OutputExistsError, match="model"):
        mapped(folder, "x", tmp_path / "stopped", batch_size=1)
    summary = mapped(folder, "yx", tmp_path / "stopped", batch_size=1)
    assert 0 < summary.resumed < summary.bands
    for path in (tmp_path / "whole").glob("*.tif"):
        np.testing.assert_array_equal(read(tmp_path / "stopped" / path.name), read(path))


def test_the_map_names_all_models(made, tmp_path):
    folder = made["binary"]
    mapped(folder, "yx", tmp_path)
    with rasterio.open(tmp_path / "map.tif") as found:
        named = found.tags()["segkit_model"].split(", ")
    expected = [f"{file.parent.name}/{file.name} {load(file).fingerprint()}" for file in files(folder, "xy")]
    assert sorted(named) == expected


def test_one_window_of_probabilities_is_held_per_model(made):
    """More models take more time; of memory they take one more window of probabilities, whatever their number."""
    models = [load(file) for file in files(made["multiclass"], "xyz")]
    one, two, three = (bytes_per_pixel(load_model(models[:count]), "fp32") for count in (1, 2, 3))
    window = 4 * models[0].task.channels
    assert one <= two <= one + 2 * window
    assert three == two
    operations = [operations_per_pixel(load_model(models[:count])) for count in (1, 3)]
    assert operations[1] == pytest.approx(3 * operations[0])


def test_windows_suit_every_model(made):
    first, second = (load(file) for file in files(made["binary"], "xy"))
    second._receptive_field = 77
    second.stride = 12
    both = Ensemble([first, second])
    assert (both.receptive_field, both.stride, both.fixed_window_size) == (77, 24, None)
    second._receptive_field = "global"
    assert (both.receptive_field, both.fixed_window_size) == (None, 32)
    with pytest.raises(UsageError, match="exact was asked for, but the network unet pools over its whole window"):
        predict(both, made["binary"] / "images/a.tif", "map.tif", exact=True, device="cpu")
    first._receptive_field = "global"
    first.recipe = first.recipe.model_copy(update={"train": first.recipe.train.model_copy(update={"tile_size": 48})})
    with pytest.raises(UsageError, match=r"windows of their train.tile_size, which differ \(.*48.*32|32.*48"):
        Ensemble([first, second])


def changed(folder, kind="binary", *, names=("b1", "b2", "b3"), head=None, **parts):
    raw = recipe_for(folder, kind).to_dict()
    for part, values in parts.items():
        raw[part] |= values
    if head:
        raw["task"]["head"] = head
    return Segmenter(type(recipe_for(folder, kind)).from_dict(raw), [1.0] * len(names), [1.0] * len(names), names)


MISMATCHES = {
    "type": ({"kind": "multilabel"}, "task type multilabel, but .* has binary"),
    "head": ({"head": "sigmoid"}, "head sigmoid, but .* has softmax"),
    "class": ({"task": {"classes": [{"name": "cut", "value": 7}]}}, r"classes cut \(7\), but .* has cleared \(7\)"),
    "value": ({"task": {"classes": [{"name": "cleared", "value": 8}]}}, r"classes cleared \(8\), but"),
    "background": ({"task": {"background_value": 4}}, "background value 4, but .* has 0"),
    "bands": ({"names": ("b1", "b2")}, "number of bands 2, but .* has 3"),
    "selection": ({"data": {"bands": [3, 2, 1]}}, "data.bands 3, 2, 1, but .* has None"),
    "no data": ({"data": {"nodata": [0, -1]}}, r"data.nodata 0\.0, -1\.0, but .* has None"),
    "scale": ({"data": {"apply_scale_offset": True}}, "data.apply_scale_offset True, but .* has False"),
}


@pytest.mark.parametrize(("changes", "said"), MISMATCHES.values(), ids=MISMATCHES)
def test_models_that_do_not_fit_are_refused(made, changes, said):
    first = load(made["binary"] / "x.safetensors")
    with pytest.raises(UsageError, match=f"{said}.*; models that are averaged need the same classes") as refused:
        Ensemble([first, changed(made["binary"], **changes)])
    assert "\n" not in str(refused.value)


def test_names_of_bands_may_differ(made):
    """Many files have descriptions of their own, such as the name of the file."""
    models = [load(file) for file in files(made["binary"], "xy")]
    models[1].band_names = ("tile7-1", "tile7-2", "tile7-3")
    assert Ensemble(models).bands == 3


@pytest.mark.parametrize(
    ("one", "other", "fits"),
    [
        (("B02", "B03", "B08"), ("B02", "B03", "B08"), True),
        (("B02", "B03", "B08"), ("b2", "b3", "b8"), True),
        (("B02", "B03", "B08"), ("tile7_B2", "tile7_B3", "tile7_B8"), True),
        (("B02", "B03", "B08"), ("tile7:B2", "tile7:B3", "tile7:B8"), True),
        (("red", "green", "nir"), ("red_2019", "green_2019", "nir_2019"), True),
        (("red", "green", "nir"), ("tile7-1", "tile7-2", "tile7-3"), True),
        (("red", "green", "nir"), ("3", "2", "1"), True),
        (("red", "green", "nir"), ("a:red", "b:red", "c:red"), True),
        (("2019:red", "2019:nir", "2019:red"), ("red", "nir", "red"), True),
        (("B02", "B03", "B08"), ("B08", "B03", "B02"), False),
        (("B02", "B03", "B08"), ("B02", "B03", "B8A"), False),
        (("B10", "B11", "B12"), ("B11", "B12", "B13"), False),
        (("red", "green", "nir"), ("red", "green", "swir"), False),
    ],
)
def test_models_of_other_bands_are_refused(made, one, other, fits):
    """Names of files and numbers tell nothing; otherwise the second model would get the first one's bands."""
    models = [load(file) for file in files(made["binary"], "xy")]
    models[0].band_names, models[1].band_names = one, other
    for both in (models, models[::-1]):
        if fits:
            assert Ensemble(both).bands == 3
            continue
        with pytest.raises(UsageError, match="need the same bands in the same order") as refused:
            Ensemble(both)
        assert ", ".join(one) in str(refused.value)
        assert ", ".join(other) in str(refused.value)


def test_bands_of_a_scene_are_found_by_the_names_of_the_model_that_has_some(made, tmp_path):
    with rasterio.open(made["binary"] / "images/a.tif") as dataset:
        pixels, profile = dataset.read(), dataset.profile
    with rasterio.open(tmp_path / "a.tif", "w", **profile) as dataset:
        dataset.write(pixels[::-1])
        dataset.descriptions = ("nir", "green", "red")
    models = [load(file) for file in files(made["binary"], "xy")]
    for named in (0, 1):
        models[named].band_names, models[1 - named].band_names = ("red", "green", "nir"), ("t-1", "t-2", "t-3")
        both = Ensemble(models)
        assert both.open_scene(tmp_path / "a.tif").bands == (3, 2, 1)
        assert both.band_names == ("red", "green", "nir")
        assert both.optimized_for_inference(CPU, "fp32").open_scene(tmp_path / "a.tif").bands == (3, 2, 1)


def test_how_scenes_are_read_is_changed_in_copies(made):
    models = [load(file) for file in files(made["binary"], "xy")]
    for model in (models[0], Ensemble(models)):
        scene = made["binary"] / "images/a.tif"
        stored, fingerprint = model.open_scene(scene).read(), model.fingerprint()
        changed = with_imagery(model, {"offset": -100, "nodata": 550})
        assert changed.fingerprint() == fingerprint
        for one in (changed, changed.optimized_for_inference(CPU, "fp32"), *members(changed)):
            tile = one.open_scene(scene).read()
            used = tile.valid & np.isfinite(tile.pixels).all(axis=0)
            np.testing.assert_array_equal(tile.pixels[:, used], stored.pixels[:, used] - 100)
            np.testing.assert_array_equal(np.isnan(tile.pixels), np.isin(stored.pixels, 550) | np.isnan(stored.pixels))
        np.testing.assert_array_equal(model.open_scene(scene).read().pixels, stored.pixels)
        assert with_imagery(model, {}) is model


def test_the_same_model_twice_and_no_model_are_refused(made):
    file = made["binary"] / "x.safetensors"
    with pytest.raises(UsageError, match="two of these are the same model"):
        load_model([file, file])
    with pytest.raises(UsageError, match="no model is given"):
        load_model([])
    assert isinstance(load_model([file]), Segmenter)
    assert len(members(load_model([load_model(files(made["binary"], "xy")), made["binary"] / "z.safetensors"]))) == 3


def test_a_model_with_a_threshold_and_one_without(made):
    plain, strict = (load(file) for file in files(made["binary"], "xy"))
    assert Ensemble([plain, strict]).task.thresholds is None
    strict.set_thresholds([0.9])
    assert Ensemble([plain, strict]).task.thresholds == (pytest.approx(0.7),)


def test_a_folder_of_folds_is_the_models_of_all_folds(made, tmp_path):
    for number, name in enumerate("xyz"):
        (tmp_path / f"fold{number}of3").mkdir()
        shutil.copy(made["binary"] / f"{name}.safetensors", tmp_path / f"fold{number}of3/model.safetensors")
    expected = [tmp_path / f"fold{number}of3/model.safetensors" for number in range(3)]
    assert model_files([tmp_path]) == expected
    assert {one.path for one in members(load_model(tmp_path))} == {*expected}
    expected[1].rename(tmp_path / "kept")
    with pytest.raises(UsageError, match=re.escape("fold 1/3 has no model, so the training is not finished")):
        load_model(str(tmp_path))
    (tmp_path / "kept").rename(expected[1])
    (tmp_path / "fold0of2").mkdir()
    with pytest.raises(UsageError, match=r"folds of several cross-validations .2 and 3 folds."):
        load_model(tmp_path)


def test_several_models_are_scored_as_their_map_is(made, tmp_path):
    folder = made["multiclass"]
    labels, options = folder / "labels/a.tif", {"tile": 64, "overlap": 16, "precision": "fp32", "device": "cpu"}
    scores = evaluate(files(folder, "xy"), folder / "images/a.tif", labels, **options)
    mapped(folder, "xy", tmp_path / "map")
    (tmp_path / "map/map.tif").rename(tmp_path / "a.tif")
    of_map = evaluate(tmp_path / "a.tif", None, labels, ignore=[255])
    assert scores["confusion"] == of_map["confusion"]
    assert scores["brier"] is not None


@pytest.mark.parametrize(("path", "error"), [("none.safetensors", MissingFileError), (".", ModelFileError)])
def test_other_paths_are_model_files(tmp_path, path, error):
    with pytest.raises(error):
        load_model(tmp_path / path)
    with pytest.raises(SegkitError):
        load_model([Path(tmp_path / path)])
