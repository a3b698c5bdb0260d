"""Dates of scenes: of items, of metadata, of names, and of several files together."""

import os
from datetime import UTC, datetime

import numpy as np
import pytest
import rasterio
from products import item, write_item, write_safe
from synthetic import write_raster

from segkit.io.acquisition import find_acquisition
from segkit.io.mosaic import Mosaic
from segkit.io.product import as_image

PIXELS = np.ones((1, 8, 8), np.uint16)


def at(*parts):
    return datetime(*parts, tzinfo=UTC)


def moment(*parts):
    return at(*parts), at(*parts)


def day(*parts):
    return at(*parts), at(*parts, 23, 59, 59)


@pytest.mark.parametrize(
    ("name", "period"),
    [
        ("S2A_MSIL2A_20240701T101559_N0510_R065_T32UQD_20240702T000000", moment(2024, 7, 1, 10, 15, 59)),
        ("LC08_L2SP_001066_20200803_20210330_02_T1", day(2020, 8, 3)),
        ("scene-2024-07-01", day(2024, 7, 1)),
        ("2024_07_01 b2", day(2024, 7, 1)),
        ("scene", None),
        ("tile_120240701", None),
        ("tile_20241301", None),
        ("tile_20240231", None),
        ("tile_2024-0701", None),
    ],
)
def test_names(tmp_path, name, period):
    assert find_acquisition([write_raster(tmp_path / f"{name}.tif", PIXELS)]) == period


def test_metadata_come_before_the_name(tmp_path):
    path = write_raster(tmp_path / "scene_20240701.tif", PIXELS)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(ns="IMAGERY", ACQUISITIONDATETIME="2019-05-04 03:02:01")
    assert find_acquisition([path]) == moment(2019, 5, 4, 3, 2, 1)
    assets = {"data": {"href": path.name, "bands": [{"name": "red"}]}}
    write_item(path.with_suffix(".json"), assets, datetime="2022-06-01T12:15:59+02:00")
    assert find_acquisition([path]) == moment(2022, 6, 1, 10, 15, 59)
    write_item(path.with_suffix(".json"), assets, datetime="0001-01-01T00:00:00+10:00")  # before the first year in UTC
    assert find_acquisition([path]) == moment(2019, 5, 4, 3, 2, 1)


def test_products(tmp_path):
    write_raster(tmp_path / "scene.tif", PIXELS)
    assets = {"data": {"href": "scene.tif"}}
    path = write_item(
        tmp_path / "item.json", assets, datetime=None, start_datetime="2022-01-01T00:00:00Z",
        end_datetime="2022-12-31T23:59:59Z",
    )  # fmt: skip
    assert item(assets)["properties"]["datetime"], "by default there is one"
    assert find_acquisition([as_image(path)]) == (at(2022, 1, 1), at(2022, 12, 31, 23, 59, 59))
    product = write_safe(tmp_path, {("B02", 10): PIXELS[0]}, baseline="04.00")
    metadata = next(product.glob("MTD*.xml"))
    renamed = tmp_path / "other.SAFE"
    text = "<x><PRODUCT_START_TIME>2021-03-04T05:06:07.024Z</PRODUCT_START_TIME>"
    metadata.write_text(metadata.read_text().replace("<", text.replace("<x>", "<!--") + "--><", 1))
    os.rename(product, renamed)  # noqa: PTH104
    assert find_acquisition([as_image(renamed)])[0].replace(microsecond=0) == at(2021, 3, 4, 5, 6, 7)


def test_several_files_are_a_period(tmp_path):
    names = ("a_20240701", "b_20240901", "b", "c_20240801T120000")
    files = [write_raster(tmp_path / f"{name}.tif", PIXELS, left=500_000 + 80 * i) for i, name in enumerate(names)]
    assert find_acquisition(files) == (at(2024, 7, 1), at(2024, 9, 1, 23, 59, 59))
    assert find_acquisition([Mosaic(files)]) == find_acquisition(files)
    assert find_acquisition([]) is None
