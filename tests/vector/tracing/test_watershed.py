"""Parts of an object: colours of neighbours, and distances to the outline against SciPy's."""

import numpy as np
import pytest
from scipy import ndimage

from segkit.vector.tracing.watershed import (
    COLOURS,
    colour_parts,
    find_contacts,
    measure_distance,
    number_parts,
    smooth,
)


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


@pytest.mark.parametrize("shape", [(40, 50), (3, 40), (4, 3)])
def test_smooth_values_are_gaussian_means_of_the_known_ones_inside(shape):
    random = np.random.default_rng(2)
    inside, values = random.random(shape) < 0.6, random.random(shape)
    inside[[0, -1]] = inside[:, [0, -1]] = False
    values[random.random(shape) < 0.3] = np.nan
    if shape[0] == 40:
        values[:20, :20] = np.nan
    known = inside & ~np.isnan(values)
    filtered = [
        ndimage.gaussian_filter(image, 1, mode="constant", radius=3)
        for image in (np.where(known, values, 0), known * 1.0)
    ]
    mean = np.divide(*filtered, out=np.ones(shape), where=filtered[1] > 1e-9)
    np.testing.assert_allclose(smooth(values, inside), np.where(inside, 1 + mean, 0), atol=1e-6)
