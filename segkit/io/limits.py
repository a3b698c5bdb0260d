"""Sizes up to which rasters are read: a file of some kilobytes can declare more pixels than fit in any memory."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from rasterio.dtypes import dtype_rev

VARIABLE = "SEGKIT_RASTER_LIMITS"  # "off": no limits
MAX_SIDE = 10**7  # pixels; a row around the earth has 4 million of 10 m
MAX_BANDS = 10**4
MAX_BLOCK_BYTES = 2**30  # decoded at once


def describe_excess(dataset: Any) -> str | None:
    """Return what of an open raster is larger than the limits, and what to do; None if nothing is."""
    if os.environ.get(VARIABLE) == "off":
        return None
    without = f"if the file is right, set {VARIABLE}=off"
    if (side := max(dataset.height, dataset.width)) > MAX_SIDE:
        return f"has {side:,} pixels along a side, at most {MAX_SIDE:,} are read; {without}"
    if dataset.count > MAX_BANDS:
        return f"has {dataset.count:,} bands, at most {MAX_BANDS:,} are read; {without}"
    if (size := _block_bytes(dataset)) > MAX_BLOCK_BYTES:
        return (
            f"is stored in blocks of {size / 1e9:.1f} GB, which are decoded at once, at most "
            f"{MAX_BLOCK_BYTES / 1e9:.1f} GB are; write it in tiles: gdal_translate -co TILED=YES IN OUT.tif, or "
            f"set {VARIABLE}=off"
        )
    return None


def _block_bytes(dataset: Any) -> int:
    """Return the bytes of the largest block, of all bands if they are stored together."""
    sizes = [
        height * width * (np.dtype(dtype).itemsize if dtype in dtype_rev else 8)
        for (height, width), dtype in zip(dataset.block_shapes, dataset.dtypes, strict=True)
    ]
    is_together = dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL"
    return sum(sizes) if is_together else max(sizes, default=0)
