"""What is no map of classes is refused, also if it could be read as one."""

import numpy as np
import pytest
from maps import write_map

from segkit import reclassify
from segkit.errors import DataError
from segkit.maps.class_map import open_class_map


def test_identifiers_are_no_classes(tmp_path):
    codes = np.arange(40_000, dtype=np.uint16).reshape(200, 200)
    with (
        pytest.raises(DataError, match="more than 32,767 values"),
        open_class_map(write_map(tmp_path / "map.tif", codes, nodata=65_535)),
    ):
        pass
    with open_class_map(write_map(tmp_path / "fewer.tif", codes % 32_767, nodata=65_535)) as found:
        classes = next(found.strips()).classes
        assert (classes.min(), classes.max()) == (0, 32_766)


def test_two_values_of_one_name_are_refused_until_they_are_merged(tmp_path):
    path = write_map(tmp_path / "map.tif", np.array([[1, 2], [3, 3]], dtype=np.uint8))
    names = tmp_path / "names.csv"
    names.write_text("value,name\n1,forest\n2,forest\n3,lake\n")
    with (
        pytest.raises(DataError, match="the values 1 and 2 are both called 'forest'"),
        open_class_map(path, class_names=names),
    ):
        pass
    reclassify(path, tmp_path / "merged.tif", merge={"forest": ["1", "2"]}, class_names=names)
    with open_class_map(tmp_path / "merged.tif") as found:
        assert [(one.name, one.pixels) for one in found.class_totals()] == [("forest", 2), ("lake", 2)]
