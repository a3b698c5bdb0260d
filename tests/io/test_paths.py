from pathlib import Path

import pytest
from affine import Affine

from segkit.io.grid import Grid
from segkit.io.memory_raster import MemoryRaster
from segkit.io.mosaic import Mosaic
from segkit.io.paths import FileSet
from segkit.io.product import Product
from segkit.io.product_band import ProductFile

GRID = Grid(1, 1, Affine.identity(), None)
SETS = [
    Mosaic(["a/b/x.tif", "a/b/y.tif"]),
    Product("a/b/x.SAFE"),
    Product("a/b/x.json", "item"),
    ProductFile("a/b/x.jp2", Path("a/x.SAFE"), {}, GRID, "bilinear"),
    MemoryRaster("a/b/array", None),
]


@pytest.mark.parametrize("one", SETS, ids=repr)
def test_what_lies_beside_several_files_is_a_plain_path(one):
    for found, expected in ((one.parent, "a/b"), (one.with_name("c.tif"), "a/b/c.tif"), (one.parent / "c", "a/b/c")):
        assert type(found) is type(Path())
        assert found == Path(expected)


def test_all_kinds_are_tested():
    assert {type(one) for one in SETS} == set(FileSet.__subclasses__())
