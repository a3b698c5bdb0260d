import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from segkit.task import unique as codes
from segkit.task.unique import unique_codes

DTYPES = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "int64"]


@given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=1, max_dims=3, min_side=0))
    )
)
def test_as_numpy_unique(values):
    expected, inverse = np.unique(values, return_inverse=True)
    for few in (0, 300, codes.MAX_TABLE_SIZE):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(codes, "MAX_TABLE_SIZE", few)
            found, place = unique_codes(values)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(place, inverse.reshape(values.shape))
        assert place.shape == values.shape


def test_an_empty_array_has_no_codes():
    found, place = unique_codes(np.zeros((0, 3), dtype=np.uint8))
    assert (found.size, place.shape) == (0, (0, 3))
