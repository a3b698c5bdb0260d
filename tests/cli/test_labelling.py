"""What `segkit suggest` and `segkit labels` print."""

import math
from pathlib import Path

import pytest
import typer

from segkit.cli.labelling import labels, suggest
from segkit.labelling.collection import LabelCollection
from segkit.labelling.kappa import Agreement
from segkit.labelling.suggestion import SuggestedWindow, Suggestion


def printed(monkeypatch, capsys, function, name, result, *arguments, **options):
    monkeypatch.setattr(name, lambda *_, **__: result)
    function(*arguments, **options)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("measure", "columns"), [("entropy", ["0.250"]), (None, [])])
def test_the_first_windows_are_a_table_and_what_is_missing_is_said(monkeypatch, capsys, measure, columns):
    uncertain = None if measure is None else 0.25
    windows = tuple(SuggestedWindow(at, "north", 8 * at, 16 * at, 32, 32, uncertain) for at in range(1, 13))
    made = Suggestion(Path("todo.gpkg"), windows, 1_300, 7, 5, measure, "colour", 40, (Path("labels.gpkg"),))
    said = printed(
        monkeypatch, capsys, suggest, "segkit.labelling.suggestion.suggest", made,
        Path("m.safetensors"), Path("todo.gpkg"), [Path("north.tif")], number=15,
    )  # fmt: skip
    assert said[0].split() == ["window", "scene", "row", "column", *([] if measure is None else [measure])]
    assert [line.split() for line in said[1:11]] == [
        [str(at), "north", str(8 * at), str(16 * at), *columns] for at in range(1, 11)
    ]
    assert said[11:] == [
        "and 2 more",
        "",
        "chosen from 1,300 windows, by colour; 7 have labelled ground, 5 too few valid pixels",
        "only 12 of 15 windows could be chosen without overlaps",
        "labels.gpkg does not exist yet, so nothing in it counts as labelled",
        "todo.gpkg: edit it in QGIS and set status to done, then: segkit labels todo.gpkg -o labels.gpkg",
    ]


@pytest.mark.parametrize("option", ["stack", "mosaic"])
def test_how_scenes_are_read_is_for_scenes_that_are_named(option):
    with pytest.raises(typer.BadParameter, match="is for scenes that are named") as refused:
        suggest(Path("recipe.yaml"), Path("todo.gpkg"), **{option: True})
    assert refused.value.param_hint == f"--{option}"


def test_labels_say_their_areas_what_is_unlabelled_and_how_two_people_agree(monkeypatch, capsys):
    both = Agreement("a.gpkg", "b.gpkg", 12.5, 1.0, {"forest": 0.8512, "ice": math.nan})
    made = LabelCollection(
        Path("labels.gpkg"), {"done": 3, "todo": 1}, {"forest": 1234.5}, "ha", 2.25, (both,), ("a gap",),
        {"path": "labels.gpkg"},
    )  # fmt: skip
    said = printed(
        monkeypatch, capsys, labels, "segkit.labelling.collection.labels", made, [Path("a.gpkg")], Path("labels.gpkg")
    )
    assert [line.split() for line in said] == [
        ["class", "ha"],
        ["forest", "1,234.50"],
        [],
        ["windows:", "3", "done,", "1", "todo"],
        ["unlabelled", "in", "windows", "that", "are", "done:", "2.25", "ha"],
        [],
        ["a.gpkg", "and", "b.gpkg", "both", "label", "12.50", "ha"],
        ["class", "kappa"],
        ["forest", "0.851"],
        ["ice", "-"],
        ["note:", "a", "gap"],
        ["in", "the", "recipe,", "with", "a", "path", "relative", "to", "it:", "labels:", "{path:", "labels.gpkg}"],
    ]
