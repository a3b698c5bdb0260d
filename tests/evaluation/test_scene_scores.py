from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quick import skip_pictures
from scipy.stats import rankdata
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score
from synthetic import TASKS, recipe_for, segmenter, write_pair, write_raster

from segkit.data.check import check
from segkit.evaluation.evaluate import evaluate, score_areas
from segkit.evaluation.scene_scores import (
    correlate_with_distance,
    describe_scene,
    find_worst_scenes,
    measure_distances,
)
from segkit.io.scene import Scene
from segkit.models.ensemble import Ensemble
from segkit.models.training_scenes import TrainingScenes
from segkit.recipe.schema import Recipe
from segkit.task import IGNORE
from segkit.training.train import train

FAST = {"device": "cpu", "precision": "fp32"}


def row(scene, accuracy, distance=None, *, iou=0.5, pixels=100):
    return {"scene": scene, "overall_accuracy": accuracy, "mean_iou": iou, "pixels": pixels, "distance": distance}


class Decisions:
    """Stands for a predictor: random decisions and truth of scenes, in blocks."""

    def __init__(self, task, seed, sizes):
        self.task, random = task, np.random.default_rng(seed)
        self.areas = [SimpleNamespace(sample=SimpleNamespace(scene=SimpleNamespace(name=f"s{n}"))) for n in range(9)]
        self.areas, self.blocks = self.areas[: len(sizes)], {}
        for area, size in zip(self.areas, sizes, strict=True):
            shape = 2, task.n_targets, 3, size
            decided, truth = random.integers(0, len(task.categories), shape).astype(np.int16)
            truth[random.random(shape[1:]) < 0.3] = IGNORE
            self.blocks[id(area)] = decided, truth

    def __call__(self, area):
        decided, truth = self.blocks[id(area)]
        for part in range(0, decided.shape[-1], 4):
            here = (..., slice(part, part + 4))
            yield SimpleNamespace(
                decided=decided[here], truth=truth[here], confidence=np.full(truth[here].shape, 0.7, np.float32)
            )


@given(st.sampled_from(sorted(TASKS)), st.integers(0, 1000), st.lists(st.integers(0, 11), min_size=1, max_size=5))
@settings(max_examples=60)
def test_scenes_add_up_to_the_whole_and_are_those_of_sklearn(kind, seed, sizes):
    task = Recipe.from_dict({"name": "t", "task": TASKS[kind], "data": {"train": {"images": "i", "labels": "l"}}}).task
    made = Decisions(task, seed, sizes)
    distances = [float(number) for number in range(len(sizes))]
    result = score_areas(made, made.areas, distances)
    assert [(one["scene"], one["distance"]) for one in result["scenes"]] == [
        (f"s{number}", number) for number in range(len(sizes))
    ]
    correct, matrices = 0, np.zeros((task.n_targets, *[len(task.categories)] * 2), dtype=int)
    for area, one in zip(made.areas, result["scenes"], strict=True):
        decided, truth = made.blocks[id(area)]
        known = truth != IGNORE
        assert one["pixels"] == known.sum()
        if not known.any():
            assert one["overall_accuracy"] is one["mean_iou"] is one["macro_f1"] is None
            continue
        assert one["overall_accuracy"] == pytest.approx(accuracy_score(truth[known], decided[known]))
        scores = {"mean_iou": [], "macro_f1": []}
        for _, target, category in task.scored_categories:
            true, found = truth[target][known[target]] == category, decided[target][known[target]] == category
            if true.any():
                scores["mean_iou"].append(jaccard_score(true, found))
                scores["macro_f1"].append(f1_score(true, found))
        for key, values in scores.items():
            assert one[key] == (pytest.approx(np.mean(values)) if values else None)
        correct += round(one["overall_accuracy"] * one["pixels"])
        for target, counts in enumerate(matrices):
            pair = truth[target][known[target]], decided[target][known[target]]
            counts += confusion_matrix(*pair, labels=range(len(task.categories))) if len(pair[0]) else 0
    assert sum(one["pixels"] for one in result["scenes"]) == result["pixels"] == matrices.sum()
    assert result["confusion"]["matrix"] == (matrices if kind == "multilabel" else matrices[0]).tolist()
    assert correct == np.trace(matrices, axis1=1, axis2=2).sum()


def test_the_worst_scenes_come_first():
    scenes = [row("a", 0.9), row("b", 0.4), row("c", None, pixels=0), row("d", 0.4, iou=None), row("e", 0.7)]
    assert [one["scene"] for one in find_worst_scenes(scenes, 3)] == ["d", "b", "e"]
    few = [*scenes, row("few", 0.0, pixels=9), row("enough", 0.1, pixels=10)]
    assert [one["scene"] for one in find_worst_scenes(few, 2)] == ["enough", "d"]
    assert find_worst_scenes(scenes[:1], 3) == find_worst_scenes([scenes[0], scenes[2]], 3) == []
    assert find_worst_scenes([], 3) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=5, max_size=12), st.booleans())
def test_the_correlation_is_that_of_the_ranks(pairs, undefined):
    """Oracle: Pearson's correlation of ranks, with the mean rank for ties."""
    scenes = [row("s", score / 10, float(distance)) for score, distance in pairs]
    others = [row("u", None, 3.0), row("v", 0.5, None), {"scene": "old", "overall_accuracy": 0.1}] if undefined else []
    found = correlate_with_distance([*others, *scenes], "overall_accuracy")
    scores, distances = np.array(pairs).T
    if np.ptp(scores) == 0 or np.ptp(distances) == 0:
        assert found is None
        return
    assert found.value == pytest.approx(np.corrcoef(rankdata(scores), rankdata(distances))[0, 1])
    assert found.scenes == len(pairs)
    assert correlate_with_distance([*others, *scenes[:4]], "overall_accuracy") is None


def test_a_scene_in_one_line():
    assert describe_scene(row("north", 0.77, 3.14, iou=0.6, pixels=262144)) == (
        "north (accuracy 0.7700, mean IoU 0.6000, 262,144 pixels, distance 3.1)"
    )
    assert describe_scene(row("b", 1.0, iou=None)) == "b (accuracy 1.0000, 100 pixels)"


def test_distances_of_a_model_of_several_and_of_none(tmp_path):
    random = np.random.default_rng(0)
    paths = [write_raster(tmp_path / f"{n}.tif", random.normal(100 * n, 5, (3, 20, 20))) for n in range(5)]
    scenes = [Scene.from_files(path) for path in paths]
    features = np.array([[*one.read().pixels.mean((1, 2)), *one.read().pixels.std((1, 2))] for one in scenes])
    models = [segmenter(tmp_path, pretrained=False) for _ in range(2)]
    assert measure_distances(models[0], scenes) == [None] * 5
    models[1].set_thresholds([0.3])  # another model
    models[0].training_scenes = TrainingScenes.from_features(features[:3])
    alone = measure_distances(models[0], scenes)
    np.testing.assert_allclose(alone, models[0].training_scenes.distances(features), atol=1e-4)
    models[1].training_scenes = TrainingScenes.from_features(features[2:])
    other = measure_distances(models[1], scenes)
    assert measure_distances(Ensemble(models), scenes) == np.minimum(alone, other).tolist()
    models[1].training_scenes = None
    assert measure_distances(Ensemble(models), scenes) == alone
    two_bands = Scene.from_files(write_raster(tmp_path / "two.tif", np.ones((2, 20, 20))))
    empty = Scene.from_files(write_raster(tmp_path / "empty.tif", np.zeros((3, 20, 20)), nodata=0))
    assert measure_distances(models[0], [two_bands, empty]) == [None, None]


def test_check_train_and_evaluate_tell_the_same_distances(tmp_path, monkeypatch):
    skip_pictures(monkeypatch.setattr)
    for seed, name in enumerate("abcde"):
        write_pair(tmp_path, "binary", name, height=64, width=64 + 8 * seed, seed=seed)
    split = {"val": {"by": "scene", "fraction": 0.4}}
    recipe = recipe_for(tmp_path, "binary", data=split, train={"epochs": 1, "steps_per_epoch": 1})
    checked = {one.name: one.appearance_distance for one in check(recipe).scenes}
    run = train(recipe, tmp_path / "run")
    trained = {one["scene"]: one["distance"] for one in run.metrics["scenes"]}
    assert len(trained) == 2
    assert trained == {name: one for name, one in checked.items() if one is not None}
    scenes = evaluate(run.model, tmp_path / "images", tmp_path / "labels", **FAST)["scenes"]
    for one in scenes:
        assert one["distance"] == pytest.approx(trained.get(one["scene"], 0), abs=1e-5)  # 0: it trained
    assert sum(one["pixels"] for one in run.metrics["scenes"]) == run.metrics["pixels"]
    by_name = {one["scene"]: one["overall_accuracy"] for one in scenes}
    for one in run.metrics["scenes"]:
        assert one["overall_accuracy"] == pytest.approx(by_name[one["scene"]], abs=2e-3)
