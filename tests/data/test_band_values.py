"""Ranges of bands, and values at the rim of scenes that look like undeclared no data."""

import numpy as np
import pytest
from synthetic import write_raster

from segkit.data.band_values import BandRanges, describe_rim_values, find_rim_value
from segkit.io.pixel_rules import PixelRules
from segkit.io.scene import Scene

RANDOM = np.random.default_rng(0)


def test_ranges_of_parts_are_those_of_the_whole():
    pixels = RANDOM.normal(0, 50, (3, 20, 30)).astype(np.float32)
    pixels[0, :5], pixels[2] = np.nan, np.nan
    valid = RANDOM.random((20, 30)) < 0.7
    total = BandRanges(3)
    for part in (slice(0, 8), slice(8, 20)):
        ranges = BandRanges(3)
        ranges.add(pixels[:, part], valid[part])
        total.merge(ranges)
    used = [layer[valid & np.isfinite(layer)].astype(np.float64) for layer in pixels]
    assert total.number.tolist() == [len(values) for values in used]
    for values, low, mean, high in zip(used[:2], total.min, total.mean, total.max, strict=False):
        assert (low, high) == (values.min(), values.max())
        assert mean == pytest.approx(values.mean())
    assert np.isnan(total.mean[2])


def scene(tmp_path, pixels, name="s.tif", rules=None, **profile):
    path = write_raster(tmp_path / name, pixels, **profile)
    return Scene.from_files(path, rules=rules or PixelRules())


def noise(bands=3, height=60, width=70, dtype=np.float32):
    return (RANDOM.normal(1000, 20, (bands, height, width))).astype(dtype)


@pytest.mark.parametrize("value", [-9999, 0, 1000, 65000])
@pytest.mark.parametrize("bands", [1, 3])
def test_a_filled_side_is_found(tmp_path, value, bands):
    pixels = noise(bands)
    pixels[:, :, :15] = value
    found = find_rim_value(scene(tmp_path, pixels))
    assert found is not None
    assert found.value == value
    # A side of 60 rows, twice 15 columns above and below; corners are counted twice.
    assert found.share == pytest.approx((60 + 30) / 260)
    assert find_rim_value(scene(tmp_path, pixels, nodata=value)) is None
    assert find_rim_value(scene(tmp_path, pixels, rules=PixelRules(nodata=(value,)))) is None


def test_the_value_is_the_stored_one(tmp_path):
    pixels = noise()
    pixels[:, :10] = -9999
    rules = PixelRules(scale=(1.0, 2.0, 3.0), offset=(5.0,))
    found = find_rim_value(scene(tmp_path, pixels, rules=rules))
    assert found is not None
    assert found.value == -9999


def test_what_is_data_is_not_taken_for_no_data(tmp_path):
    dark_in_one_band, in_the_middle, few = noise(), noise(), noise()
    dark_in_one_band[0, :, :30] = 0
    in_the_middle[:, 20:40, 20:40] = 0
    few[:, :5, :5] = 0
    one_band = RANDOM.integers(3, 8, (1, 40, 40), dtype=np.uint8)  # each value is at a fifth of the rim
    one_band[one_band == 3], one_band[one_band == 7] = 5, 5
    one_band[:, 0, 0], one_band[:, 0, 1] = 0, 255
    for number, pixels in enumerate((noise(), dark_in_one_band, in_the_middle, few, one_band)):
        assert find_rim_value(scene(tmp_path, pixels, f"{number}.tif")) is None, number


def test_a_filled_rim_is_told_from_a_scene_of_one_value(tmp_path):
    pixels = np.zeros((2, 40, 40), dtype=np.uint8)
    assert find_rim_value(scene(tmp_path, pixels, "same.tif")) is None
    pixels[:, 10:30, 10:30] = 50
    found = find_rim_value(scene(tmp_path, pixels))
    assert found is not None
    assert (found.value, found.share) == (0, 1)


def test_large_scenes_are_sampled(tmp_path):
    pixels = noise(1, 3, 9000)
    pixels[:, :, :4000] = 0
    found = find_rim_value(scene(tmp_path, pixels))
    assert found is not None
    assert (found.value, round(found.share, 1)) == (0, 0.4)


def test_scenes_with_the_same_value_are_one_warning_with_the_line_to_write(tmp_path):
    values = []
    for number, width in enumerate((10, 30, 20)):
        pixels = noise()
        pixels[:, :, :width] = 0
        values.append(find_rim_value(scene(tmp_path, pixels, f"{number}.tif")))
    (text,) = describe_rim_values(values, ())
    assert text.startswith("0 fills all bands at the rim of 3 scenes (for example 46% of the rim of ")
    assert "1.tif" in text
    assert text.endswith("if it means no data, set data.nodata: 0")
    (text,) = describe_rim_values(values[:1], (-9999,))
    assert "the rim of 1 scene (" in text
    assert text.endswith("set data.nodata: [-9999, 0]")
