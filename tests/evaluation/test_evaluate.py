import json
import shutil
import sys

import numpy as np
import pytest
import rasterio
import torch
from sklearn.metrics import brier_score_loss, confusion_matrix, f1_score, jaccard_score
from synthetic import recipe_for, segmenter, write_pair, write_raster

from segkit.data.pairing import open_samples
from segkit.errors import DataError, MissingFileError, ModelFileError, OutputExistsError, SegkitError, UsageError
from segkit.evaluation.boundaries import Boundaries
from segkit.evaluation.evaluate import evaluate
from segkit.inference.predict import predict
from segkit.recipe.label_source import LabelSource
from segkit.task import IGNORE

SHAPES = {"a": (96, 72), "b": (40, 128)}  # multiples of the stride, so that nothing is padded
FAST = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module", params=["binary", "multiclass", "multilabel"])
def case(request, tmp_path_factory):
    """A folder of two scenes, a model, and what it decides in one pass over each of them: (decided, true) pixels."""
    folder = tmp_path_factory.mktemp(request.param)
    for seed, (name, (height, width)) in enumerate(SHAPES.items()):
        write_pair(folder, request.param, name, height=height, width=width, seed=seed)
    model = segmenter(folder, request.param)
    recipe, decided, true = recipe_for(folder, request.param), [], []
    for sample in open_samples(recipe.data.train, recipe.data, recipe.task).samples:
        tile, targets = sample.scene.read(), sample.labels.read(sample.scene.grid.full_window)
        with torch.inference_mode():
            logits = model(torch.from_numpy(tile.pixels[None]), torch.from_numpy(tile.valid[None]))
        found = model.task.decide(model.task.probabilities(logits))[0].numpy()
        here = tile.valid & (targets != IGNORE).all(axis=0)
        decided.append(found[:, here])
        true.append(targets[:, here])
    return folder, model, np.concatenate(decided, axis=1), np.concatenate(true, axis=1)


def run(case, **options):
    folder, model = case[:2]
    return evaluate(model, str(folder / "images"), str(folder / "labels"), **FAST | options)


def test_equals_brute_force(case):
    _, model, decided, true = case
    result, kinds = run(case), range(len(model.task.categories))
    assert result["pixels"] == true.size
    assert result["overall_accuracy"] == pytest.approx((decided == true).mean())
    matrices = [confusion_matrix(t, d, labels=kinds) for t, d in zip(true, decided, strict=True)]
    np.testing.assert_array_equal(result["confusion"]["matrix"], matrices if len(matrices) > 1 else matrices[0])
    for key, oracle in (("iou", jaccard_score), ("f1", f1_score)):
        for name, target, category in model.task.scored_categories:
            expected = oracle(true[target] == category, decided[target] == category)
            assert result["per_class"][name][key] == pytest.approx(expected)
    assert len(set(decided.ravel())) > 1


def whole_scenes(case):
    """Probabilities, decision and truth of each scene from one pass over it; not known where nothing counts."""
    folder, model = case[:2]
    recipe, found = recipe_for(folder, model.task.type), {}
    for sample in open_samples(recipe.data.train, recipe.data, recipe.task).samples:
        tile, targets = sample.scene.read(), sample.labels.read(sample.scene.grid.full_window)
        with torch.inference_mode():
            probabilities = model.task.probabilities(
                model(torch.from_numpy(tile.pixels[None]), torch.from_numpy(tile.valid[None]))
            )
        targets[:, ~tile.valid] = IGNORE
        found[sample.scene.name] = probabilities[0].numpy(), model.task.decide(probabilities)[0].numpy(), targets
    return found


def test_brier_scores_and_reliability_are_those_of_sklearn(case):
    task, result, scenes = case[1].task, run(case), whole_scenes(case).values()
    said = np.concatenate([probabilities.reshape(len(probabilities), -1) for probabilities, _, _ in scenes], axis=1)
    true = np.concatenate([targets.reshape(len(targets), -1) for _, _, targets in scenes], axis=1)
    squares = {}
    for name, probabilities, (target, category) in zip(task.channel_names, said, task.channel_categories, strict=True):
        known = true[target] != IGNORE
        own = (true[target] == category)[known]
        squares[name] = brier_score_loss(own, probabilities[known])
        found = result["calibration"][name]
        assert found["brier"] == pytest.approx(squares[name], rel=1e-5)
        bins = np.minimum((probabilities[known] * 15).astype(int), 14)
        curve = found["reliability"]
        # On another machine a pixel that lies on an edge may be in the bin beside it.
        np.testing.assert_allclose(curve["pixels"], np.bincount(bins, minlength=15), atol=5)
        for place in set(bins):
            assert curve["probability"][place] == pytest.approx(
                probabilities[known][bins == place].mean(dtype=float), abs=2e-3
            )
            assert curve["share"][place] == pytest.approx(own[bins == place].mean(), abs=0.02)
    together = sum if task.is_softmax else np.mean
    assert result["brier"] == pytest.approx(together(list(squares.values())), rel=1e-5)
    curve = result["reliability"]
    gaps = [n * abs(c - r) for n, c, r in zip(*(curve[k] for k in ("pixels", "confidence", "right")), strict=True) if n]
    assert sum(gaps) / result["pixels"] == pytest.approx(result["ece"])


@pytest.mark.parametrize("boundary", ["1px", "25m", "0.035km"])
def test_boundaries_are_those_of_whole_scenes(case, boundary, monkeypatch):
    monkeypatch.setattr(sys.modules["segkit.evaluation.evaluate"], "_STRIP_PIXELS", 1000)
    task, metres = case[1].task, {"1px": 10, "25m": 25, "0.035km": 35}[boundary]
    expected = Boundaries(task, metres)
    for _, decided, truth in whole_scenes(case).values():
        expected.add(decided, truth, (10, 10))
    result = run(case, boundary_width=boundary, tile=32, overlap=8)
    whole = run(case, boundary_width=boundary)
    for name, scores in expected.per_class().items():
        for key, value in scores.items():
            assert whole["per_class"][name][key] == pytest.approx(value, abs=1e-3)
            assert result["per_class"][name][key] is not None
    assert whole["boundary_width"] == {"1px": "1px", "25m": "25m", "0.035km": "35m"}[boundary]


def test_scenes_are_distinguished(case):
    result = run(case)
    scenes = whole_scenes(case)
    assert [one["scene"] for one in result["scenes"]] == sorted(scenes)
    for one in result["scenes"]:
        _, decided, truth = scenes[one["scene"]]
        known = truth != IGNORE
        assert one["pixels"] == known.sum()
        assert one["overall_accuracy"] == pytest.approx((decided == truth)[known].mean())
    assert sum(one["pixels"] for one in result["scenes"]) == result["pixels"]


def test_a_map_scores_as_the_model_that_made_it(case, tmp_path):
    folder, model = case[:2]
    (tmp_path / "maps").mkdir()
    for name in SHAPES:
        predict(model, folder / "images" / f"{name}.tif", tmp_path / "maps" / f"{name}.tif", **FAST)
    ours = run(case)
    found = evaluate(tmp_path / "maps", None, str(folder / "labels"), ignore=[255])
    assert found["pixels"] == ours["pixels"]
    few = 2e-3  # a pixel on the edge may be decided otherwise in another batch
    for key in ("overall_accuracy", "mean_iou", "macro_f1"):
        assert found[key] == pytest.approx(ours[key], abs=few)
    for name, scores in ours["per_class"].items():
        assert found["per_class"][name] == pytest.approx(scores, abs=10 * few)
    assert found.keys() == ours.keys() - {"brier", "reliability", "calibration"}
    assert found["ece"] is None
    assert [one["pixels"] for one in found["scenes"]] == [one["pixels"] for one in ours["scenes"]]
    alone = evaluate(tmp_path / "maps/a.tif", None, str(folder / "labels/a.tif"), ignore=[255])
    assert alone["pixels"] == found["scenes"][0]["pixels"]


def test_maps_that_cannot_be_scored_are_reported(tmp_path):
    codes = np.full((1, 20, 20), 3, dtype=np.uint8)
    write_raster(tmp_path / "map.tif", codes)
    write_raster(tmp_path / "labels.tif", codes)
    with pytest.raises(DataError, match=r"map\.tif: lists no classes; give their names"):
        evaluate(tmp_path / "map.tif", None, tmp_path / "labels.tif")
    (tmp_path / "names.csv").write_text("value,name\n1,a\n2,b\n")
    with pytest.raises(DataError, match="3"):
        evaluate(tmp_path / "map.tif", None, tmp_path / "labels.tif", class_names=tmp_path / "names.csv")
    (tmp_path / "names.csv").write_text("value,name\n1,a\n3,b\n")
    scores = evaluate(tmp_path / "map.tif", None, tmp_path / "labels.tif", class_names=tmp_path / "names.csv")
    assert (scores["overall_accuracy"], scores["per_class"]["a"]["iou"], scores["intervals"]) == (1, None, None)
    with pytest.raises(UsageError, match="has no unit"):
        evaluate(
            tmp_path / "map.tif", None, tmp_path / "labels.tif", boundary_width="3", class_names=tmp_path / "names.csv"
        )


@pytest.mark.parametrize(("tile", "overlap"), [(32, 8), (64, 16), (1024, 128)])
def test_every_known_pixel_counts_once_whatever_the_windows(case, tile, overlap):
    assert run(case, tile=tile, overlap=overlap)["pixels"] == case[3].size


def test_paths_may_be_paths_and_the_model_a_file(case, tmp_path):
    folder, model = case[:2]
    model.save(tmp_path / "m.safetensors")
    named = [folder / "images/a.tif", folder / "images/b.tif"], [folder / "labels/a.tif", folder / "labels/b.tif"]
    assert evaluate(tmp_path / "m.safetensors", *named, **FAST) == run(case)
    source = LabelSource(path=str(folder / "labels"))
    assert evaluate(model, [[path] for path in named[0]], source, **FAST) == run(case)


def test_names_that_differ_and_labels_of_points(case, tmp_path):
    folder, model = case[:2]
    for name in "ab":
        for kind, end in (("images", "sat"), ("labels", "mask")):
            shutil.copy(folder / kind / f"{name}.tif", tmp_path / f"{name}_{end}.tif")
    labels = LabelSource(path=str(tmp_path), pair="{}_mask")
    assert evaluate(model, tmp_path, labels, pair="{}_sat", **FAST)["pixels"] == run(case)["pixels"]
    with pytest.raises(UsageError, match=r"it needs \{\} once"):
        evaluate(model, tmp_path, labels, pair="sat", **FAST)
    with pytest.raises(UsageError, match="has no date"):
        evaluate(model, tmp_path, labels, dates="{}", **FAST)


def test_the_result_is_written(case, tmp_path):
    result = run(case, output=tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    with pytest.raises(OutputExistsError):
        run(case, output=tmp_path / "metrics.json")
    with pytest.raises(UsageError, match="does not exist; make it first"):
        run(case, output=tmp_path / "missing" / "metrics.json")


def test_a_model_of_other_bands(case):
    folder, model = case[:2]
    with pytest.raises(ModelFileError, match=r"has 3 bands, the model .* was trained on 2"):
        run((folder, segmenter(folder, model.task.type, bands=2)))


def test_undeclared_no_data_and_units_of_the_images_are_given(tmp_path):
    """Oracle: images that declare the no-data value, in the units of the training."""
    write_pair(tmp_path, "binary", "a", height=40, width=40)
    model, labels = segmenter(tmp_path), tmp_path / "labels"
    expected = evaluate(model, tmp_path / "images", labels, device="cpu", precision="fp32")
    with rasterio.open(tmp_path / "images/a.tif") as dataset:
        profile, pixels = dataset.profile | {"nodata": None}, dataset.read()
    with rasterio.open(tmp_path / "images/a.tif", "w", **profile) as dataset:
        dataset.write(pixels * np.uint16(2))
    found = evaluate(
        model, tmp_path / "images", labels, nodata=[0], scale=0.5, offset=0, device="cpu", precision="fp32"
    )
    assert found == expected


def test_labels_that_are_not_there(tmp_path):
    write_pair(tmp_path, "binary", "a", height=32, width=32)
    model = segmenter(tmp_path)
    with pytest.raises(MissingFileError):
        evaluate(model, tmp_path / "images", tmp_path / "none", **FAST)
    write_raster(tmp_path / "others" / "z.tif", np.zeros((32, 32), np.uint8))
    with pytest.raises(DataError, match="no image and label have the same file name"):
        evaluate(model, tmp_path / "images", tmp_path / "others", **FAST)
    write_raster(tmp_path / "codes" / "a.tif", np.full((32, 32), 4, np.uint8))
    with pytest.raises(SegkitError, match=r"a.tif: code 4 \(1024 pixels\) is not defined, the task defines 0, 7; add"):
        evaluate(model, tmp_path / "images", tmp_path / "codes", **FAST)


def test_logits_that_are_not_finite_are_refused(case, monkeypatch):
    model = case[1]
    monkeypatch.setattr(model, "forward", lambda pixels, valid: pixels.new_full((1, 3, *pixels.shape[-2:]), torch.inf))
    monkeypatch.setattr(model, "optimized_for_inference", lambda device, precision: model)
    with pytest.raises(
        SegkitError, match=r"a.tif: in fp32 the network gives NaN or infinite .* rows 0 to 95 and columns"
    ):
        run(case)
