"""GeoTIFFs of which single blocks cannot be read."""

import os

import numpy as np
import rasterio

BLOCK = 16  # side of the blocks of `write_blocks`


def write_blocks(path, pixels, *, left=500_000, top=9_000_000, size=10, crs="EPSG:32622", nodata=0, compress="deflate"):
    """Write (bands, H, W) in compressed blocks."""
    profile = {"driver": "GTiff", "count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2]}
    profile |= {"dtype": pixels.dtype, "crs": crs, "nodata": nodata, "compress": compress, "tiled": True}
    transform = rasterio.Affine(size, 0, left, 0, -size, top)
    with rasterio.open(path, "w", **profile, transform=transform, blockxsize=BLOCK, blockysize=BLOCK) as dataset:
        dataset.write(pixels)
    return path


def break_block(path, row, column, share=1.0):
    """Damage a block of a GeoTIFF, counted from 0, or the end of it; size and time of the file stay."""
    facts = path.stat()
    with rasterio.open(path) as dataset:
        offset, size = (
            int(dataset.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE")
        )
    content = bytearray(path.read_bytes())
    damaged = int(size * share)
    content[offset + size - damaged : offset + size] = bytes(damaged)
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def lost_pixels(shape, *blocks):
    """Return the pixels of blocks (row, column), bool (H, W)."""
    lost = np.zeros(shape, dtype=bool)
    for row, column in blocks:
        lost[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK] = True
    return lost
