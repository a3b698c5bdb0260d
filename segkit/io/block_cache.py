"""GDAL's cache of decoded blocks, which all rasters of the process share.

By default GDAL lets it grow to 5 % of the machine's memory. A fixed limit keeps memory independent of machine and
scene. It is set when a raster is opened, not at import. A limit that the user chose is kept: `GDAL_CACHEMAX` in the
environment or in `rasterio.Env`, or any smaller limit.
"""

from __future__ import annotations

import os

from rasterio.env import get_gdal_config, getenv, hasenv, set_gdal_config

_OPTION = "GDAL_CACHEMAX"
_limit_bytes = 128 * 2**20


def limit_block_cache() -> None:
    """Lower the limit of the cache to segkit's, unless the user chose one."""
    if not _chosen_by_user() and get_gdal_config(_OPTION) > _limit_bytes:
        set_gdal_config(_OPTION, _limit_bytes)


def raise_block_cache_limit(size: int) -> None:
    """Raise the limit of the cache to at least `size` bytes, unless the user chose one."""
    global _limit_bytes
    if not _chosen_by_user() and get_gdal_config(_OPTION) < size:
        _limit_bytes = max(size, _limit_bytes)
        set_gdal_config(_OPTION, size)


def _chosen_by_user() -> bool:
    return _OPTION in os.environ or (hasenv() and _OPTION in getenv())
