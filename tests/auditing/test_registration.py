import numpy as np
import pytest
from scipy import ndimage

from segkit.auditing.registration import LabelShift, ShiftEstimator

FINE = 4  # cells of a finer grid in a pixel


@pytest.fixture(scope="module")
def ground():
    """A pattern on a finer grid than the pixels, and the noisy share that a pixel has of it."""
    random = np.random.default_rng(0)
    fine = ndimage.gaussian_filter(random.normal(size=(160 * FINE, 160 * FINE)), 30) > 0
    cover = fine.reshape(160, FINE, 160, FINE).mean(axis=(1, 3))
    share = np.clip(ndimage.gaussian_filter(cover, 0.7) + random.normal(0, 0.1, cover.shape), 0, 1)
    return fine, np.stack([1 - share, share]).astype(np.float32)


def estimate(labels, probabilities, reach=4):
    estimator = ShiftEstimator(labels.shape, reach)
    for top in range(0, len(labels), 50):
        first, last = max(0, top - reach), min(len(labels), top + 50 + reach)
        rows = slice(top - first, min(top + 50, len(labels)) - first)
        estimator.add(labels[first:last], probabilities[:, first:last], first, rows)
    return estimator.estimate()


@pytest.mark.parametrize(("right", "down"), [(0, 0), (8, 0), (2, -3), (-5, 9)])
def test_a_shift_of_parts_of_a_pixel_is_found(ground, right, down):
    fine, probabilities = ground
    labels = np.roll(fine, (down, right), (0, 1))[FINE // 2 :: FINE, FINE // 2 :: FINE].astype(np.int16)
    found = estimate(labels, probabilities)
    # The sample of a pixel is half a cell right of and below its centre.
    assert found.x == pytest.approx(right / FINE - 0.5 / FINE, abs=0.1)
    assert found.y == pytest.approx(down / FINE - 0.5 / FINE, abs=0.1)
    assert 0.003 < found.error_x < 0.1
    assert found.significant == (right != 0)


def test_no_border_and_no_maximum_within_reach_give_no_shift(ground):
    fine, probabilities = ground
    assert estimate(np.zeros((160, 160), dtype=np.int16), probabilities) is None
    labels = np.roll(fine, 6 * FINE, 1)[::FINE, ::FINE].astype(np.int16)
    assert estimate(labels, probabilities, reach=3) is None


def test_unlabelled_pixels_are_never_compared(ground):
    fine, probabilities = ground
    labels = fine[::FINE, ::FINE].astype(np.int16)
    labels[:, 80:] = -1
    poisoned = probabilities.copy()
    poisoned[:, :, 80:] = np.nan
    assert estimate(labels, poisoned) == estimate(labels, probabilities)


def test_a_shift_without_an_error_is_not_significant():
    assert not LabelShift(2.0, 0.0, None, None).significant
    assert not LabelShift(2.0, 0.0, 0.7, 0.1).significant
