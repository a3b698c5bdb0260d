import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segkit.models import nearest_pixels
from segkit.models.nearest_pixels import NearestPixels


def brute_force(known, pixels):
    """Oracle: all distances, written out."""
    return np.array([min(np.sqrt(((pixel - known) ** 2).sum(axis=1))) for pixel in pixels])


def some(seed, number, bands, spread=1.0):
    return np.random.default_rng(seed).normal(0, spread, (number, bands))


@given(st.integers(0, 99), st.integers(1, 30), st.integers(1, 80), st.sampled_from([0.01, 1.0, 1e6]), st.booleans())
def test_distances_are_those_of_all_pairs(seed, known, bands, spread, twins):
    """With few bands and with many; with pixels that occur twice, and with some that are asked for and known."""
    points = some(seed, known, bands)
    points = np.concatenate([points, points]) if twins else points
    pixels = np.concatenate([some(seed + 1, 20, bands, spread), points[:3]])
    for limit in (0, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nearest_pixels, "_MAX_TREE_BANDS", limit)
            found = NearestPixels(points).distance(pixels)
        np.testing.assert_allclose(found, brute_force(points, pixels), rtol=1e-12)
        assert (found[20:] == 0).all()


@pytest.mark.parametrize("limit", [0, 1000])
def test_a_distance_does_not_depend_on_other_pixels_or_threads(monkeypatch, limit):
    """To the last bit, also where several known pixels are about equally near."""
    monkeypatch.setattr(nearest_pixels, "_MAX_TREE_BANDS", limit)
    monkeypatch.setattr(nearest_pixels, "_CHUNK_PIXELS", 37)
    points = some(0, 40, 60)
    points = np.concatenate([points, points + 1e-9 * some(1, 40, 60)])
    pixels = some(2, 300, 60, 3)
    nearest = NearestPixels(points)
    whole = nearest.distance(pixels)
    np.testing.assert_array_equal(nearest.distance(pixels[::-1], threads=2)[::-1], whole)
    np.testing.assert_array_equal(np.concatenate([nearest.distance(pixels[at : at + 1]) for at in range(300)]), whole)
    np.testing.assert_allclose(whole, brute_force(points, pixels), rtol=1e-14)


def test_the_nearest_one_is_found_although_ranks_are_rounded(monkeypatch):
    """In float32 the ranks of pixels that differ by 1e-6 of their length are equal."""
    monkeypatch.setattr(nearest_pixels, "_MAX_TREE_BANDS", 0)
    points = np.full((50, 8), 1000.0)
    points[:, 0] += np.random.default_rng(0).permutation(50) * 1e-3
    points[0] = 0
    pixels = points[1:] + 1e-5
    np.testing.assert_allclose(NearestPixels(points).distance(pixels), np.sqrt(8) * 1e-5, rtol=1e-6)


@pytest.mark.parametrize("limit", [0, 1000])
def test_the_largest_values_have_a_distance(monkeypatch, limit):
    monkeypatch.setattr(nearest_pixels, "_MAX_TREE_BANDS", limit)
    pixels = np.full((2, 60), np.finfo(np.float32).max, dtype=np.float64)
    np.testing.assert_allclose(NearestPixels(some(0, 5, 60)).distance(pixels), np.sqrt(60) * pixels[:, 0], rtol=1e-6)
    assert len(NearestPixels(some(0, 5, 60)).distance(pixels[:0])) == 0
