from types import SimpleNamespace

import numpy as np
import pytest
import torch

from segkit.errors import UsageError
from segkit.models import applicability_index
from segkit.models.applicability_index import ApplicabilityIndex
from segkit.models.training_pixels import TrainingPixels

MEAN = np.array([500, 520, 540], np.float32)


def training(seed, middle=500.0):
    random = np.random.default_rng(seed)
    groups = [random.normal(middle + 30 * at, 40, (50, 3)).astype(np.float32) for at in range(4)]
    return TrainingPixels.from_samples(groups, ["uint16"], [(1.0, 0.0)], None)


def brute_force(one, pixels):
    """Oracle: the definition of the index, for pixels (n, C)."""
    std = np.array(one.std)
    known = np.array(one.pixels) / std
    return np.array([min(np.linalg.norm(pixel / std - known, axis=1)) for pixel in pixels]) / one.mean_distance


@pytest.fixture
def tile():
    """Pixels (3, H, W) of which a band may be no data, and which are valid."""
    random = np.random.default_rng(3)
    pixels = random.normal(560, 150, (3, 23, 31)).astype(np.float32)
    pixels[1, 4:6] = np.nan
    return pixels, random.random((23, 31)) < 0.8


def test_the_index_of_a_tile_is_that_of_its_pixels(tile, monkeypatch):
    pixels, valid = tile
    one = training(0)
    index = ApplicabilityIndex([one], [MEAN])
    found = index.of_pixels(pixels, valid)
    assert found.dtype == np.float32
    assert (np.isnan(found) == ~valid).all()
    filled = np.where(np.isnan(pixels), MEAN[:, None, None], pixels)[:, valid].T
    np.testing.assert_allclose(found[valid], brute_force(one, filled), rtol=1e-5)
    assert index.threshold == pytest.approx(one.threshold)
    outside = found[valid] > index.threshold
    assert 0.1 < outside.mean() < 0.9
    assert (outside == (found[valid].astype(np.float64) > index.threshold)).all()
    monkeypatch.setattr(applicability_index, "_CHUNK_PIXELS", 40)
    np.testing.assert_array_equal(index.of_pixels(pixels, valid, threads=2), found)
    assert np.isnan(index.of_pixels(pixels, np.zeros_like(valid))).all()


def test_several_models_are_as_near_as_the_one_that_knows_the_pixel_best(tile):
    pixels, valid = tile
    several = [training(0), training(1, 700.0)]
    means = [MEAN, MEAN + 200]
    index = ApplicabilityIndex(several, means)
    found = index.of_pixels(pixels, valid)[valid]
    assert index.threshold == 1
    outside = []
    for one, mean in zip(several, means, strict=True):
        filled = np.where(np.isnan(pixels), mean[:, None, None], pixels)[:, valid].T
        outside.append(brute_force(one, filled) / one.threshold)
    np.testing.assert_allclose(found, np.minimum(*outside), rtol=1e-5)
    assert not (outside[0] < outside[1]).all()
    assert not (outside[0] > outside[1]).all()
    assert "smallest of all models" in index.tags["segkit_applicability"]
    assert index.tags["segkit_applicability_threshold"] == "1.0"


def test_models_of_one_kind_of_pixel_have_a_finite_index():
    """Of training pixels that are all the same, every other pixel is infinitely far in units of the threshold."""
    same = TrainingPixels.from_samples([np.full((5, 3), 500, np.float32)] * 3, ["uint16"], [(1.0, 0.0)], None)
    index = ApplicabilityIndex([same, same], [MEAN, MEAN])
    pixels = np.full((3, 1, 3), 500, np.float32)
    pixels[:, 0, 1], pixels[:, 0, 2] = 501, 3e38
    found = index.of_pixels(pixels, np.ones((1, 3), bool))[0]
    assert np.isfinite(found).all()
    assert (found > index.threshold).tolist() == [False, True, True]


def test_a_model_without_training_pixels_is_named():
    stored = SimpleNamespace(training_pixels=None, path=None, mean=torch.zeros(1, 3, 1, 1))
    with pytest.raises(UsageError, match=r"^a model in memory: holds no training pixels, .* leave applicability out$"):
        ApplicabilityIndex.from_model(stored)
