"""The choice of windows, in two dimensions that can be seen."""

import numpy as np
import pytest

from segkit.labelling.selection import choose_windows, standardize

CENTRES = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], dtype=np.float32)
NONE_KNOWN = np.empty((0, 2), dtype=np.float32)


def clouds(number=40, seed=0):
    """Four clouds of windows, and the cloud of each."""
    which = np.repeat(np.arange(4), number)
    return (CENTRES[which] + np.random.default_rng(seed).normal(0, 0.5, (4 * number, 2))).astype(np.float32), which


@pytest.mark.parametrize("seed", range(5))
def test_the_variety_is_covered_with_typical_windows(seed):
    features, which = clouds()
    chosen = choose_windows(features, np.ones(len(features)), 4, known=NONE_KNOWN, seed=seed)
    assert sorted(which[chosen]) == [0, 1, 2, 3]
    far = np.linalg.norm(features[chosen] - CENTRES[which[chosen]], axis=1)
    assert (far < 0.5).all()


def test_what_is_labelled_is_not_chosen_again():
    features, which = clouds()
    chosen = choose_windows(features, np.ones(len(features)), 2, known=CENTRES[:2], seed=0)
    assert sorted(which[chosen]) == [2, 3]


def test_uncertain_windows_are_preferred_and_come_first():
    features, which = clouds(8)
    weights = np.where(which == 3, 1.0, np.where(which == 1, 0.5, 1e-6))
    chosen = choose_windows(features, weights, 2, known=NONE_KNOWN, seed=0)
    assert which[chosen].tolist() == [3, 1]


def test_all_are_chosen_if_there_are_no_more_and_none_twice():
    features, _ = clouds(3)
    chosen = choose_windows(features, np.zeros(12), 50, known=NONE_KNOWN, seed=0)
    assert sorted(chosen) == list(range(12))
    same = np.zeros((5, 2), dtype=np.float32)
    assert sorted(choose_windows(same, np.ones(5), 3, known=same, seed=0)) == sorted(
        set(choose_windows(same, np.ones(5), 3, known=same, seed=0))
    )


def test_overlapping_windows_are_not_chosen_together():
    features, _ = clouds(5)
    twin = np.arange(20) ^ 1  # windows 0 and 1, 2 and 3 ... overlap
    chosen = choose_windows(
        features, np.ones(20), 20, known=NONE_KNOWN, seed=0, overlapping=lambda one: [one, twin[one]]
    )
    assert len(chosen) == 10
    assert not {*chosen} & {*twin[chosen]}


def test_the_seed_decides():
    features = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    first, again, other = (
        choose_windows(features, np.ones(300), 9, known=NONE_KNOWN, seed=seed).tolist() for seed in (0, 0, 1)
    )
    assert first == again != other


def test_features_have_a_common_scale_and_no_gaps():
    random = np.random.default_rng(0)
    features = random.normal(size=(500, 3)) * [1, 1000, 1e-4] + [0, 5e4, 1]
    features[::7, 1] = np.nan
    features[0, 0] = 1e9  # an outlier does not push the others together
    features = np.column_stack([features, np.full(500, np.nan), np.full(500, 3.0)]).astype(np.float32)
    scaled = standardize(features)
    assert np.isfinite(scaled).all()
    assert scaled.shape == (500, 3)  # constant and unknown features say nothing
    assert scaled.std(axis=0) == pytest.approx([1, 1, 1], abs=0.15)
