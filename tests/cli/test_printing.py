import pytest

from segkit.cli.printing import print_worst_scenes


def row(scene, accuracy, distance):
    return {"scene": scene, "overall_accuracy": accuracy, "mean_iou": 0.5, "pixels": 1234, "distance": distance}


SCENES = [row("a", 0.9, 1.0), row("b", 0.7, None), row("c", 0.8, 2.34), row("d", 0.75, 0.5)]


def test_the_worst_scenes_are_a_table(capsys):
    print_worst_scenes({"scenes": SCENES}, 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("  ")[0] == "worst of 4 scenes"
    assert [line.split() for line in lines[2:5]] == [
        ["b", "1,234", "0.7000", "0.5000", "-"],
        ["d", "1,234", "0.7500", "0.5000", "0.5"],
        ["c", "1,234", "0.8000", "0.5000", "2.3"],
    ]
    assert lines[5].startswith("distance: difference in appearance from the nearest training scene")
    print_worst_scenes({"scenes": [one | {"distance": None} for one in SCENES]}, 3)
    assert "distance" not in capsys.readouterr().out


def test_one_of_several_scenes_is_a_line(capsys):
    print_worst_scenes({"scenes": SCENES}, 1)
    expected = "worst of 4 scenes: b (accuracy 0.7000, mean IoU 0.5000, 1,234 pixels)\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("metrics", [{}, {"scenes": []}, {"scenes": SCENES[:1]}])
def test_a_single_scene_is_not_the_worst(metrics, capsys):
    print_worst_scenes(metrics, 3)
    assert not capsys.readouterr().out
