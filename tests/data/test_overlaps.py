import json

import numpy as np
import pytest
from synthetic import recipe_for, write_pair

from segkit.data import overlaps, preview
from segkit.data.areas import open_areas
from segkit.data.check import check
from segkit.evaluation.decisions import PredictedBlock
from segkit.evaluation.evaluate import evaluate_areas
from segkit.io.quantities import Quantity
from segkit.task import CoOccurrence

RULES = {"never": [["water", "forest"]]}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("overlapping")
    write_pair(folder, "multilabel", "a", height=48, width=48)
    return recipe_for(folder, "multilabel", task=RULES, data={"val": None}, train={"checkpoint": "last"})


class Perfect:
    """Decides what is labelled."""

    def __init__(self, task):
        self.task = task

    def __call__(self, area):
        window = area.sample.scene.grid.full_window
        valid = area.sample.scene.read(window).valid
        truth = area.read_truth(window, valid)
        yield PredictedBlock(window, np.maximum(truth, 0), truth, valid)


def test_check_and_evaluation_tell_contradictions_with_their_file(recipe, monkeypatch, tmp_path):
    monkeypatch.setattr("segkit.data.check._check_network", lambda *_: ([], []))
    areas, _ = open_areas(recipe)
    truth = areas[0].read_truth(areas[0].windows[0], areas[0].sample.scene.read().valid)
    wrong = int((truth == 1).all(axis=0).sum())
    assert wrong > 100
    report = check(recipe)
    (warning,) = (text for text in report.warnings if "contradict" in text)
    assert warning.startswith(f"{areas[0].labels.name}: {wrong:,} label pixels contradict the rule that water and fore")
    assert f"water and forest never share a pixel: {wrong:,} label pixels" in report.render()
    table = json.loads(json.dumps(report.summary()))["co_occurrence"]["train"]
    assert table["water"]["forest"] == wrong / int((truth[0] == 1).sum())
    scores = evaluate_areas(Perfect(recipe.task), areas, Quantity(2, pixels=True))
    valid = int(areas[0].sample.scene.read().valid.sum())
    assert scores["contradictions"] == {
        "pixels": wrong, "share": wrong / valid, "rules": {"water and forest never share a pixel": wrong}
    }  # fmt: skip
    drawn = []
    monkeypatch.setattr(preview, "_draw_together", lambda ax, task, shares: drawn.append(shares))
    monkeypatch.setattr(preview, "_collect", lambda *_, **__: ({}, [], ""))
    preview.draw_data(recipe, report, tmp_path / "data.png")
    assert drawn[0][0, 1] == table["water"]["forest"]


def test_a_picture_of_co_occurrence_has_a_number_in_each_cell_off_the_diagonal(recipe):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    preview._draw_together(ax, recipe.task, np.array([[1, 0.25], [np.nan, np.nan]]))
    assert [text.get_text() for text in ax.texts] == ["25.0 %"]


def test_scenes_that_cannot_be_read_do_not_count(recipe):
    one = CoOccurrence(recipe.task)
    one.add(np.array([[1, 1, 0], [1, -1, 1]]))
    total = overlaps.add_up(recipe.task, [one, None, one])
    assert total.both.tolist() == [[4, 2], [2, 4]]
    assert not list(overlaps.describe_contradictions("a.tif", None))
