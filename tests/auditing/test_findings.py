import numpy as np

from segkit.auditing.findings import find_swaps, mean_probabilities
from segkit.auditing.segments import Segments


def test_two_classes_are_swapped_if_each_is_mostly_predicted_as_the_other():
    swapped = np.array([[90, 5, 5], [0, 20, 80], [10, 70, 20]])
    (found,) = find_swaps(0, swapped, 9)
    assert (found.one, found.other, found.pixels) == (1, 2, 200)
    one_sided = np.array([[90, 5, 5], [0, 20, 80], [10, 20, 70]])
    assert not find_swaps(0, one_sided, 9)
    assert not find_swaps(0, swapped, 101)


def test_pixels_at_a_border_count_only_if_a_segment_has_no_others():
    sums = np.array([[4.0, 1.5], [6.0, 1.5], [1.0, 0], [3.0, 0], [4, 0]])  # of two categories; inner; number
    segments = Segments(np.arange(2), np.array([0, 1]), np.array([10, 3]), sums, np.zeros(2, dtype=int))
    found, pixels = mean_probabilities(segments, 2)
    np.testing.assert_allclose(found, [[0.25, 0.75], [0.5, 0.5]])
    assert pixels.tolist() == [4, 3]
