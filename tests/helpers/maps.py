"""Write arrays of class codes as maps."""

import rasterio
from affine import Affine

NODATA = 255


def write_map(path, codes, *, crs="EPSG:32622", transform=None, **profile):
    transform = transform or Affine(10, 0, 500_000, 0, -10, 9_000_000)
    options = {"nodata": NODATA, "dtype": codes.dtype, "crs": crs, "transform": transform} | profile
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=codes.shape[0], width=codes.shape[1], **options
    ) as file:
        file.write(codes, 1)
    return path
