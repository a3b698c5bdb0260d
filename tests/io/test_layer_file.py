from tempfile import TemporaryFile

import numpy as np
from rasterio.windows import Window

from segkit.io.layer_file import LayerFile


def test_windows_are_read_back_as_rows_and_the_rest_is_0():
    random = np.random.default_rng(0)
    expected = np.zeros((3, 11, 7), dtype=np.int16)
    with TemporaryFile() as file:
        layers = LayerFile(file, 3, (11, 7), np.int16)
        for top, left, height, width in ((2, 1, 5, 4), (6, 3, 5, 4), (0, 0, 1, 7)):
            values = random.integers(-9, 9, (3, height, width))
            mask = random.random((height, width)) < 0.5
            part = expected[:, top : top + height, left : left + width]
            part[:, mask] = values[:, mask]
            layers.write(Window(left, top, width, height), values, mask)
        for top, bottom in ((0, 11), (3, 8), (10, 11)):
            np.testing.assert_array_equal(layers.read(top, bottom), expected[:, top:bottom])
