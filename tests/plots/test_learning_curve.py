import numpy as np
import pytest

from segkit.plots.learning_curve import learning_curve

SCORES = [{"overall_accuracy": 0.7, "mean_iou": 0.5}, {"overall_accuracy": 0.8, "mean_iou": None}, {"mean_iou": 0.6}]


@pytest.mark.parametrize(
    ("labelled", "places", "label"),
    [((0, 5_000, 20_000), [0, 5_000, 20_000], "labelled pixels"), ((100, None, 300), [1, 2, 3], "round")],
)
def test_rounds_stand_over_their_labels_or_are_counted(labelled, places, label):
    """What is not known of one round is not drawn at 0, and a score that is missing is a gap."""
    [ax] = learning_curve(labelled, SCORES).axes
    assert ax.get_xlabel() == label
    drawn = {line.get_label(): line for line in ax.lines}
    for name, expected in (("accuracy", [0.7, 0.8, np.nan]), ("mean IoU", [0.5, np.nan, 0.6])):
        assert list(drawn[name].get_xdata()) == places
        np.testing.assert_array_equal(np.asarray(drawn[name].get_ydata(), float), expected)
    low, high = ax.get_xlim()
    assert low <= min(places) < max(places) <= high
