"""Rasters on another grid."""

from __future__ import annotations

from typing import Any

from rasterio.enums import MaskFlags, Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from segkit.errors import RasterError
from segkit.io.grid import Grid
from segkit.io.raster import GDAL_ERRORS


def warp_to(
    dataset: DatasetReader,
    grid: Grid,
    resampling: Resampling,
    *,
    ignore_nodata: bool = False,
    nodata: float | None = None,
    tolerance: float = 0.125,
) -> WarpedVRT:
    """Return an open raster as a virtual one on another grid.

    Pixels outside of the raster are no data, and so are those with the declared no-data value, or with `nodata` in its
    place, unless `ignore_nodata`. Coordinates may be wrong by `tolerance` pixels of the raster, which saves time.

    Raises
    ------
    RasterError
        GDAL cannot warp to that grid.
    """
    # GDAL passes on the no-data value and the alpha band. It applies a mask band, but does not pass it on.
    masked = any({MaskFlags.nodata, MaskFlags.alpha} & set(flags) for flags in dataset.mask_flag_enums)
    instead: dict[str, Any] = {}
    if ignore_nodata or nodata is not None:
        instead = {"src_nodata": nodata, "nodata": nodata}
    try:
        return WarpedVRT(
            dataset,
            crs=grid.crs,
            transform=grid.transform,
            height=grid.height,
            width=grid.width,
            resampling=resampling,
            add_alpha=ignore_nodata or not (masked or instead),
            tolerance=tolerance,
            **instead,
        )
    except GDAL_ERRORS as error:
        raise RasterError(f"{dataset.name}: cannot be resampled ({error}); warp it first (gdalwarp)") from error
