import json

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score
from synthetic import recipe_for, segmenter, write_pair, write_raster

from segkit.data.sources import resolve
from segkit.errors import DataError, MissingFileError, ModelFileError, OutputExistsError, SegkitError, UsageError
from segkit.evaluate import evaluate
from segkit.recipe import LabelSource
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
    for sample in resolve(recipe.data.train, recipe.data, recipe.task).samples:
        tile, planes = sample.scene.read(), sample.labels.read(sample.scene.grid.whole)
        with torch.inference_mode():
            logits = model(torch.from_numpy(tile.pixels[None]), torch.from_numpy(tile.valid[None]))
        found = model.task.decide(model.task.probabilities(logits))[0].numpy()
        here = tile.valid & (planes != IGNORE).all(axis=0)
        decided.append(found[:, here])
        true.append(planes[:, here])
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
        for name, plane, category in model.task.scored:
            expected = oracle(true[plane] == category, decided[plane] == category)
            assert result["per_class"][name][key] == pytest.approx(expected)
    assert len(set(decided.ravel())) > 1


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


def test_labels_that_are_not_there(tmp_path):
    write_pair(tmp_path, "binary", "a", height=32, width=32)
    model = segmenter(tmp_path)
    with pytest.raises(MissingFileError):
        evaluate(model, tmp_path / "images", tmp_path / "none", **FAST)
    write_raster(tmp_path / "others" / "z.tif", np.zeros((32, 32), np.uint8))
    with pytest.raises(DataError, match="no image has a label of its name"):
        evaluate(model, tmp_path / "images", tmp_path / "others", **FAST)
    write_raster(tmp_path / "codes" / "a.tif", np.full((32, 32), 4, np.uint8))
    with pytest.raises(SegkitError, match=r"a.tif: code 4 \(1024 pixels\) is not in the task, which knows 0, 7; list"):
        evaluate(model, tmp_path / "images", tmp_path / "codes", **FAST)
