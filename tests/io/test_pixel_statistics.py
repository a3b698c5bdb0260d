"""Statistics of windows are those of the whole raster."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segkit.io.pixel_statistics import PixelStatistics


@given(data=st.data())
def test_they_are_those_of_numpy_in_any_cut(data):
    dtype, nodata = data.draw(st.sampled_from([("uint8", 255), ("uint16", 65535), ("float32", np.nan)]))
    random = np.random.default_rng(data.draw(st.integers(0, 9)))
    values = (random.random((2, 12, 7)) * 250 + data.draw(st.sampled_from([0, 3]))).astype(dtype)
    values[random.random(values.shape) < data.draw(st.sampled_from([0, 0.5, 1]))] = nodata
    found = PixelStatistics(2, np.dtype(dtype), nodata)
    cuts = sorted({0, 12, *data.draw(st.lists(st.integers(0, 12), max_size=3))})
    for top, bottom in itertools.pairwise(cuts):
        found.add(values[:, top:bottom])
    for band in range(2):
        numbers = values[band].astype(float)
        numbers = numbers[~np.isnan(numbers) & (numbers != nodata)]
        one = found.of_band(band)
        if not numbers.size:
            assert one is None
            continue
        assert (one.minimum, one.maximum, one.pixels) == (numbers.min(), numbers.max(), numbers.size)
        assert (one.mean, one.deviation) == pytest.approx((numbers.mean(), numbers.std()), rel=1e-9, abs=1e-9)
        assert one.share == pytest.approx(numbers.size / values[band].size)
