import numpy as np
import pytest
import torch

from segkit.errors import RecipeError
from segkit.models.classical.pixel_features import PixelFeatures
from segkit.recipe.features import Features

MEAN, STD = torch.tensor([100.0, 300.0, 0.0]), torch.tensor([20.0, 50.0, 4.0])


def make(bands=None, names=("red", "nir", "other"), **declared):
    return PixelFeatures(Features.model_validate(declared), MEAN, STD, names, bands)


def scene(height=9, width=12, seed=0):
    """Normalised pixels, 0 without data, and where there is data."""
    random = np.random.default_rng(seed)
    valid = random.random((1, height, width)) > 0.3
    pixels = random.normal(0, 1, (1, 3, height, width)) * valid[:, None] + 5 * valid[:, None]
    return torch.tensor(pixels, dtype=torch.float32), torch.from_numpy(valid)


def test_without_declared_features_there_are_the_bands():
    features, (pixels, valid) = PixelFeatures(None, MEAN, STD, ("a", "b", "c")), scene()
    assert (features.count, features.radius) == (3, 0)
    assert torch.equal(features(pixels, valid), pixels)


@pytest.mark.parametrize("side", [3, 7])
def test_texture_is_that_of_the_pixels_with_data_around(side):
    features, (pixels, valid) = make(texture=[side]), scene()
    assert (features.count, features.radius) == (9, side // 2)
    valid[..., :7] = False  # so that a window has no data at all
    pixels[..., :7] = 0
    found = features(pixels, valid)[0].numpy()
    seen = set()
    for row in range(9):
        for column in range(12):
            part = (
                slice(max(0, row - side // 2), row + side // 2 + 1),
                slice(max(0, column - side // 2), column + side // 2 + 1),
            )
            around = pixels[0, :, *part].numpy()[:, valid[0, *part].numpy()].astype(np.float64)
            seen.add(around.size > 0)
            if around.size:
                np.testing.assert_allclose(found[3:6, row, column], around.mean(axis=1), atol=1e-6)
                np.testing.assert_allclose(found[6:, row, column], around.std(axis=1), atol=1e-6)
            else:
                assert (found[3:, row, column] == 0).all()
    assert seen == {False, True}


def test_texture_does_not_depend_on_what_lies_farther_away():
    features, (pixels, valid) = make(texture=[3, 5]), scene(40, 50)
    whole = features(pixels, valid)
    part = features(pixels[..., 10:30, 5:45], valid[:, 10:30, 5:45])
    assert torch.equal(whole[..., 12:28, 7:43], part[..., 2:-2, 2:-2])


@pytest.mark.parametrize("bands", [None, (4, 8, 9)])
def test_indices_are_in_the_units_of_the_files(bands):
    numbers = bands or (1, 2, 3)
    pixels, valid = scene()
    raw = pixels * STD.view(1, -1, 1, 1) + MEAN.view(1, -1, 1, 1)
    for pair in (["nir", "red"], [numbers[1], numbers[0]], ["nir", numbers[0]]):
        features = make(bands, indices=[pair])
        assert (features.count, features.radius) == (4, 0)
        expected = (raw[:, 1] - raw[:, 0]) / (raw[:, 1] + raw[:, 0])
        torch.testing.assert_close(features(pixels, valid)[:, 3], expected)
    assert (make(bands, indices=[["other", "red"]])(pixels * 1e4, valid).abs()[:, 3] <= 1).all()


def test_an_index_of_nothing_is_0():
    dark = torch.stack([-MEAN / STD]).view(1, 3, 1, 1)
    assert make(indices=[["red", "nir"]])(dark, torch.ones(1, 1, 1, dtype=torch.bool))[0, 3] == 0


@pytest.mark.parametrize(
    ("pair", "names", "message"),
    [
        (["red", "swir"], ("red", "nir", "other"), "no band swir; the bands in use are 2 .red., 4 .nir., 5 .other."),
        ([2, 3], ("red", "nir", "other"), "no band 3"),
        (["red", "nir"], ("red", "nir", "nir"), "several bands are called 'nir'; give the number"),
    ],
)
def test_a_band_that_is_not_there_is_refused(pair, names, message):
    with pytest.raises(RecipeError, match=message):
        make((2, 4, 5), names, indices=[pair])
