import numpy as np
import pytest
from scipy import ndimage

from segkit.auditing.segments import SegmentCollector, find_interior


@pytest.mark.parametrize("rows", [1, 4, 30])
def test_segments_are_those_of_scipy_however_many_rows_are_added_at_once(rows):
    random = np.random.default_rng(rows)
    codes, values = random.integers(-1, 3, (23, 17)), random.random((2, 23, 17))
    marks = np.where(codes >= 0, 10 * codes + 7, 0)
    collector = SegmentCollector(2)
    parts = [
        collector.add(codes[top : top + rows], values[:, top : top + rows], marks[top : top + rows])
        for top in range(0, 23, rows)
    ]
    found, provisional = collector.finish(), np.concatenate(parts)
    assert ((provisional >= 0) == (codes >= 0)).all()
    segment = np.where(provisional >= 0, found.number[provisional], -1)
    count = 0
    for code in range(3):
        labelled, number = ndimage.label(codes == code)
        count += number
        for each in range(1, number + 1):
            here = labelled == each
            (index,) = np.unique(segment[here])
            assert (segment == index).sum() == here.sum() == found.pixels[index]
            assert (found.code[index], found.mark[index]) == (code, 10 * code + 7)
            np.testing.assert_allclose(found.sums[:, index], values[:, here].sum(axis=1))
    assert count == len(found.code)


def test_nothing_has_no_segments():
    collector = SegmentCollector(0)
    assert (collector.add(np.full((2, 3), -1)) == -1).all()
    assert not len(collector.finish().code)


def test_the_interior_has_no_pixel_beside_another_code():
    codes = np.random.default_rng(0).integers(0, 2, (9, 12)).repeat(4, axis=1)
    expected = np.zeros(codes.shape, dtype=bool)
    for row, column in np.ndindex(codes.shape):
        near = codes[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        expected[row, column] = (near == codes[row, column]).all()
    np.testing.assert_array_equal(find_interior(codes), expected)
