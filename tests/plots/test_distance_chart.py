import numpy as np
import pytest

from segkit.plots import distance_chart, style


def rows(*distances):
    return [
        {"scene": f"s{n}", "overall_accuracy": 0.9 - 0.05 * n, "mean_iou": 0.8 - 0.05 * n, "distance": distance}
        for n, distance in enumerate(distances)
    ]


def series(figure, label):
    [line] = [one for one in figure.axes[0].lines if one.get_label() == label]
    return line


def test_each_scene_is_a_point_of_both_scores():
    given = rows(0.5, 2.0, 1.25, None)
    given[1]["mean_iou"] = None
    figure = distance_chart.scores_by_distance([*given, {"scene": "old", "overall_accuracy": 0.5, "mean_iou": 0.5}])
    accuracy, iou = (series(figure, label) for label in ("accuracy", "mean IoU"))
    np.testing.assert_allclose(accuracy.get_xydata(), [(0.5, 0.9), (2, 0.85), (1.25, 0.8)])
    np.testing.assert_allclose(iou.get_xydata(), [(0.5, 0.8), (1.25, 0.7)])
    assert accuracy.get_marker() != iou.get_marker()
    ax = figure.axes[0]
    assert ax.get_ylim() == (0, 1)
    assert ax.get_xlim()[1] > 2
    assert any(list(line.get_xdata()) == [1, 1] for line in ax.lines)  # what is usual
    assert "<svg" in style.to_svg(figure)


@pytest.mark.parametrize("given", [[], rows(1.0), rows(None, None), rows(1.0, None)])
def test_less_than_two_points_are_not_drawn(given):
    assert distance_chart.scores_by_distance(given) is None


def test_outliers_do_not_hide_the_others():
    assert distance_chart.scores_by_distance(rows(0.5, 1, 2, 500)).axes[0].get_xscale() == "log"
    assert distance_chart.scores_by_distance(rows(0.5, 1, 2, 4)).axes[0].get_xscale() == "linear"
    assert distance_chart.scores_by_distance(rows(0, 1, 2, 500)).axes[0].get_xscale() == "linear"


def test_many_points_are_an_image():
    many = [{"overall_accuracy": 0.5, "mean_iou": 0.5, "distance": 1 + n / 3000} for n in range(3000)]
    figure = distance_chart.scores_by_distance(many)
    assert len(style.to_svg(figure)) < 300_000
