import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from segkit.data.augmentation import AUGMENTATIONS, Augmentation, RadiometricJitter
from segkit.io.scene import Tile
from segkit.task import IGNORE

SIZE = 12
BANDS = [1, 3, 6, 39, 224]


def a_tile(bands, *, gone=True):
    """Every pixel holds its own number, at another offset in each band; some are not valid, one is NaN in one band."""
    number = np.arange(SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
    pixels = number + 1000 * np.arange(bands, dtype=np.float32)[:, None, None]
    valid = np.random.default_rng(0).random((SIZE, SIZE)) > 0.2 * gone
    pixels[:, ~valid] = np.nan
    if gone:
        pixels[-1, 0, 0] = np.nan
    return Tile(pixels, valid)


def planes_of(tile):
    """Two planes that follow from the pixels' numbers."""
    number = np.arange(SIZE * SIZE).reshape(SIZE, SIZE)
    return np.stack([number % 5, np.where(tile.valid, number % 7, -1)]).astype(np.int16)


def statistics(bands):
    return np.arange(bands) * 1000.0 + 70, np.full(bands, 40.0)


def arrays(changed):
    tile, targets = changed
    return tile.pixels, tile.valid, targets


@pytest.mark.parametrize("bands", BANDS)
@pytest.mark.parametrize("name", ["none", "geometric"])
def test_pixels_mask_and_labels_move_together(name, bands):
    tile = a_tile(bands, gone=False)
    augment = Augmentation(name, *statistics(bands))
    seen = set()
    for seed in range(40):
        pixels, valid, targets = arrays(augment(tile, planes_of(tile), seed))
        assert pixels.dtype == np.float32
        assert targets.dtype == np.int16
        number = pixels[0].astype(int)
        np.testing.assert_array_equal(pixels - pixels[:1], 1000 * np.arange(bands)[:, None, None] + 0 * pixels)
        np.testing.assert_array_equal(np.sort(number.ravel()), np.arange(SIZE * SIZE))
        np.testing.assert_array_equal(targets, np.stack([number % 5, number % 7]))
        assert valid.all()
        seen.add(number.tobytes())
    assert len(seen) == (8 if name == "geometric" else 1)  # the symmetries of the square


@pytest.mark.parametrize("bands", BANDS)
@pytest.mark.parametrize("name", ["none", "geometric", "default"])
def test_no_data_stays_no_data(name, bands):
    tile = a_tile(bands)
    augment = Augmentation(name, *statistics(bands))
    for seed in range(10):
        pixels, valid, targets = arrays(augment(tile, planes_of(tile), seed))
        assert valid.dtype == bool
        assert valid.sum() == tile.valid.sum()
        np.testing.assert_array_equal(targets[1] == -1, ~valid)
        np.testing.assert_array_equal(np.isnan(pixels).sum(axis=(1, 2)), np.isnan(tile.pixels).sum(axis=(1, 2)))
        assert np.isnan(pixels[:, ~valid]).all()


@pytest.mark.parametrize("bands", [1, 3, 224])
def test_jitter_is_a_gain_and_an_offset_per_band(bands):
    """Nothing is clipped: the order and the proportions of the values stay, also far from the mean and below zero."""
    tile = a_tile(bands, gone=False)
    tile = Tile(tile.pixels - 1000, tile.valid)
    mean, std = statistics(bands)
    augment = Augmentation("default", mean - 1000, std)
    gains = []
    for seed in range(30):
        pixels, _, _ = arrays(augment(tile, planes_of(tile), seed))
        for before, after in zip(tile.pixels.reshape(bands, -1), np.sort(pixels.reshape(bands, -1)), strict=True):
            gain, shift = np.polyfit(before - before.mean(), after, 1)
            np.testing.assert_allclose(after, gain * (before - before.mean()) + shift, atol=0.05)
            gains.append(gain)
    assert 0.85 < np.mean(gains) < 1.15
    assert 0.01 < np.std(gains) < 0.3


def changes(light, mean, draws=600):
    """Gain and shift (N, bands) that a light gives to pixels at the bands' means, where it changes them."""
    bands = len(mean)
    pixels = np.stack([np.asarray(mean), np.asarray(mean) + 100], axis=1)[:, None, :].astype(np.float32)
    tile = Tile(pixels, np.ones((1, 2), dtype=bool))
    found = []
    for seed in range(draws):
        after = light(tile, np.zeros((1, 1, 2)), np.random.default_rng(seed))[0].pixels.reshape(bands, 2)
        if not np.array_equal(after, pixels.reshape(bands, 2)):
            found.append(((after[:, 1] - after[:, 0]) / 100, after[:, 0] - mean))
    gain, shift = map(np.array, zip(*found, strict=True))
    return gain, shift


def test_jitter_keeps_the_ratios_of_bands():
    """A factor and something added, the same share of each band's mean: what brightness and haze do."""
    mean, std = np.array([40.0, 55.0, 60.0, 3000.0]), np.array([30.0, 14.0, 10.5, 900.0])
    gain, shift = changes(RadiometricJitter(mean, std, shared=0.1, per_band=0.0, probability=0.9), mean)
    assert 0.85 < len(gain) / 600 < 0.95
    np.testing.assert_allclose(gain, np.broadcast_to(gain[:, :1], gain.shape), rtol=1e-4)
    offset = shift / mean - (gain - 1)
    np.testing.assert_allclose(offset, np.broadcast_to(offset[:, :1], offset.shape), atol=1e-5)
    assert np.log(gain[:, 0]).std() == pytest.approx(0.1, rel=0.15)
    assert offset[:, 0].std() == pytest.approx(0.1, rel=0.15)
    assert abs(np.corrcoef(gain[:, 0], offset[:, 0])[0, 1]) < 0.2
    own = changes(RadiometricJitter(mean, std, shared=0.0, per_band=0.02, probability=1.0), mean)[0]
    assert np.abs(np.corrcoef(own.T) - np.eye(4)).max() < 0.2
    assert np.log(own).std() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize("sign", [1, -1])
def test_jitter_keeps_bands_in_their_range(sign):
    """Kelvin, heights, decibels: the mean is far from zero, or below it."""
    mean, std = sign * np.array([300.0, 0.3]), np.array([4.0, 0.2])
    _, shift = changes(RadiometricJitter(mean, std, shared=0.1, per_band=0.0, probability=1.0), mean)
    expected = np.sqrt(2) * 0.1  # gain and offset
    assert shift[:, 0].std() == pytest.approx(expected * 6 * 4, rel=0.15)
    assert shift[:, 1].std() == pytest.approx(expected * 0.3, rel=0.15)
    assert (np.sign(shift[:, 0]) == np.sign(shift[:, 1])).all()
    alone = changes(RadiometricJitter(mean[:1], std[:1], shared=0.1, per_band=0.0, probability=1.0), mean[:1])[1]
    assert alone.std() == pytest.approx(expected * 4, rel=0.15)


@pytest.mark.parametrize("bands", BANDS)
def test_scale_and_rotation_move_pixels_mask_and_labels_together(bands):
    """Linear interpolation of bands that are planes gives them back, but for gain and shift, which keep them planes."""
    size = 40
    rows, columns = np.indices((size, size), dtype=np.float32)
    pixels = np.stack([rows, columns] + [rows] * bands)[:bands]
    gone = np.zeros((size, size), dtype=bool)
    gone[5:12, 8:30] = True
    pixels[:, gone] = np.nan
    pixels[-1, 30:34, 4:9] = np.nan
    targets = np.stack([(rows // 10 * 4 + columns // 10), np.where(gone, IGNORE, 3)]).astype(np.int16)
    targets[0][gone] = IGNORE
    augment = Augmentation("strong", np.full(bands, 20.0), np.full(bands, 10.0))
    alone = Augmentation("strong", np.full(bands, 20.0), np.full(bands, 10.0))
    alone._steps = alone._steps[:2]  # without the light
    warped = 0
    for seed in range(25):
        changed, valid, moved = arrays(augment(Tile(pixels, ~gone), targets, seed))
        assert (changed.dtype, valid.dtype, moved.dtype) == (np.float32, bool, np.int16)
        assert np.isnan(changed[:, ~valid]).all()
        assert (np.isnan(changed) & valid).sum() == (np.isnan(changed[-1]) & valid).sum()
        assert np.isnan(changed[-1])[valid].any()
        assert (moved[:, ~valid] == IGNORE).all()
        assert (moved[1, valid] == 3).all()
        pixel, known, label = arrays(alone(Tile(pixels, ~gone), targets, seed))
        if bands >= 3 and known.sum() != (~gone).sum():
            warped += 1
            # Where no missing pixel was near, the label follows from the place that the pixel came from.
            inner = distance_transform_edt(np.pad(known & ~np.isnan(pixel[-1]), 1))[1:-1, 1:-1] > 3
            place = pixel[:2, inner]
            sure = (np.abs(place % 1 - 0.5) > 0.1).all(axis=0)  # which pixel is the nearest
            row, column = np.rint(place).astype(int)
            expected = row // 10 * 4 + column // 10
            np.testing.assert_array_equal(label[0, inner][sure], expected[sure])
    assert warped > 8 or bands < 3


def test_soft_labels_move_too():
    tile = a_tile(3, gone=False)
    soft = np.random.default_rng(0).random((2, SIZE, SIZE)).astype(np.float32)
    _, moved = Augmentation("strong", *statistics(3))(tile, soft, 7)
    assert moved.dtype == np.float32
    assert set(np.unique(moved)) <= set(np.unique(soft)) | {np.float32(IGNORE)}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_seed_alone_decides(name):
    tile = a_tile(6)
    augment = Augmentation(name, *statistics(6))
    first = arrays(augment(tile, planes_of(tile), 3))
    augment(tile, planes_of(tile), 4)
    for again in (augment, Augmentation(name, *statistics(6))):
        for one, other in zip(first, arrays(again(tile, planes_of(tile), 3)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_none_changes_nothing():
    tile = a_tile(3)
    for one, other in zip(
        arrays(Augmentation("none", *statistics(3))(tile, planes_of(tile), 1)),
        arrays((tile, planes_of(tile))),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
