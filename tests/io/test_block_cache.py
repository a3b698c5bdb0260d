import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.env import get_gdal_config, set_gdal_config

from segkit.io import block_cache
from segkit.io.raster import open_raster

LIMIT = 128 * 2**20


@pytest.fixture
def raster(tmp_path, monkeypatch):
    """A small raster; GDAL's limit is 1 GiB, and is restored."""
    monkeypatch.delenv("GDAL_CACHEMAX", raising=False)
    monkeypatch.setattr(block_cache, "_limit_bytes", LIMIT)
    path = tmp_path / "a.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=4,
        height=4,
        count=1,
        dtype="uint8",
        crs="EPSG:32622",
        transform=Affine.scale(9),
    ) as dataset:
        dataset.write(np.ones((1, 4, 4), dtype=np.uint8))
    before = get_gdal_config("GDAL_CACHEMAX")
    set_gdal_config("GDAL_CACHEMAX", 2**30)
    yield path
    set_gdal_config("GDAL_CACHEMAX", before)


def limit_while_open(path):
    with open_raster(path):
        return get_gdal_config("GDAL_CACHEMAX")


def test_opening_a_raster_limits_the_cache(raster):
    assert limit_while_open(raster) == LIMIT
    assert get_gdal_config("GDAL_CACHEMAX") == LIMIT


def test_a_limit_of_the_user_is_kept(raster, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("GDAL_CACHEMAX", "1024")
        assert limit_while_open(raster) == 2**30
    with rasterio.Env(GDAL_CACHEMAX=2**29):
        assert limit_while_open(raster) == 2**29
        block_cache.raise_block_cache_limit(2**30)
        assert limit_while_open(raster) == 2**29
    set_gdal_config("GDAL_CACHEMAX", 2**20)
    assert limit_while_open(raster) == 2**20


def test_a_raised_limit_stays(raster):
    limit_while_open(raster)
    block_cache.raise_block_cache_limit(2 * LIMIT)
    assert limit_while_open(raster) == 2 * LIMIT
    block_cache.raise_block_cache_limit(LIMIT)
    assert limit_while_open(raster) == 2 * LIMIT
