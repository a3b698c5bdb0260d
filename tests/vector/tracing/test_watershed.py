"""Parts of an object: colours of neighbours, and distances to the outline against SciPy's."""

import numpy as np
import pytest
from scipy import ndimage

from segkit.vector.tracing.watershed import COLOURS, colour_parts, find_contacts, measure_distance, number_parts


@pytest.mark.parametrize("seed", range(5))
def test_parts_in_contact_have_different_colours(seed):
    """Parts are connected, as those of an object: pixels of random seeds, with many neighbours for some."""
    random = np.random.default_rng(seed)
    seeds = np.zeros((50, 50), dtype=np.int32)
    seeds[random.integers(1, 49, 300), random.integers(1, 49, 300)] = np.arange(1, 301)
    seeds[25, 1:49] = 301
    part = np.zeros_like(seeds)
    while (seeds[1:-1, 1:-1] == 0).any():
        for axis, step in ((0, 1), (1, 1), (0, -1), (1, -1)):
            seeds[1:-1, 1:-1] = np.where(seeds == 0, np.roll(seeds, step, axis), seeds)[1:-1, 1:-1]
    part[1:-1, 1:-1] = seeds[1:-1, 1:-1]
    count = number_parts(part)
    colour = colour_parts(part, count)
    one, other = find_contacts(part).T
    assert count == np.unique(seeds[1:-1, 1:-1]).size > 200
    assert set(colour.tolist()) <= set(range(COLOURS))
    assert (colour[one] != colour[other]).all()


@pytest.mark.parametrize("sides", [(1.0, 1.0), (1.0, 0.3), (0.45, 1.0)])
def test_distances_are_those_of_scipy(sides):
    inside = ndimage.binary_dilation(np.random.default_rng(1).random((40, 50)) < 0.03, iterations=3)
    inside[[0, -1]] = inside[:, [0, -1]] = False
    expected = ndimage.distance_transform_edt(inside, sampling=sides)
    np.testing.assert_allclose(measure_distance(inside, *sides), expected)
