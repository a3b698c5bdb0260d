"""Maps as files: written as strips of rows, window by window, and assembled to a cloud-optimised GeoTIFF."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.dtypes import dtype_rev, typename_fwd
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.windows import Window

from segkit.errors import OutputError, RasterError
from segkit.io.block_cache import limit_block_cache
from segkit.io.class_table import parse_color
from segkit.io.files import as_output_error, atomic_write, check_output, fsync, not_as_written
from segkit.io.grid import Grid, split_window
from segkit.io.paths import PathLike
from segkit.io.pixel_statistics import PixelStatistics
from segkit.io.raster import (
    GDAL_ERRORS,
    ignore_not_georeferenced,
    open_raster,
    read_grid,
    read_window,
    window_text,
)
from segkit.io.side_files import remove_side_files, write_side_files


@dataclass(frozen=True)
class MapProfile:
    """Bands and metadata of a map: one band of class values, a 0/1 band per class, or a probability band per channel.

    Parameters
    ----------
    dtype, nodata
        Of all bands. float32 with NaN is used for intermediate files.
    band_names
        Descriptions of the bands.
    tags
        Dataset metadata: class table, provenance.
    colors
        {value: "#rrggbb"} for the colour table of a single band.
    scale
        Value of one stored unit, as in GDAL's scale.
    overviews
        Resampling of overviews: "mode" for classes, "average" for numbers.
    """

    dtype: np.dtype[Any]
    nodata: float
    band_names: tuple[str, ...]
    tags: Mapping[str, str]
    colors: Mapping[int, str] | None = None
    scale: float = 1.0
    overviews: str = "mode"


@dataclass(frozen=True)
class MapStrip:
    """A file with some rows of a map, in its full width; its first row is row `row` of the map."""

    path: Path
    row: int


@dataclass(frozen=True)
class MapPart:
    """A file of a map: its path, its window of the map (None: the whole map), and its grid."""

    path: Path
    window: Window | None
    grid: Grid


class MapWriter:
    """Writes the windows of a strip, in any order, each pixel at most once; made by `open_strip_writer`."""

    def __init__(self, dataset: DatasetWriter, path: Path, grid: Grid) -> None:
        self._dataset = dataset
        self._path = path
        self._grid = grid
        self._checksums: list[tuple[Window, int]] = []

    def write(self, values: NDArray[Any], window: Window) -> None:
        """Write the values (bands, H, W) of a window.

        Raises
        ------
        OutputError
            The disk is full.
        """
        stored = np.ascontiguousarray(values, dtype=self._dataset.dtypes[0])
        if stored.dtype.kind == "f":
            # Give all NaN the same bits as those of blocks that are not stored.
            stored = np.where(np.isnan(stored), stored.dtype.type(np.nan), stored)
        with gdal_as_output_error(self._path):
            self._dataset.write(stored, window=window)
        self._checksums.append((window, zlib.crc32(stored.data)))

    def _finish(self) -> None:
        """Close the file, read it back and compare checksums; GDAL does not report a full disk when it closes a file.

        Raises
        ------
        OutputError
            The checksums differ.
        """
        with gdal_as_output_error(self._path):
            self._dataset.close()
            fsync(self._path)
        with _as_read_back_error(self._path), open_raster(self._path) as found:
            _check_grid(self._path, self._grid, found)
            for window, expected in self._checksums:
                if zlib.crc32(read_window(found, found.indexes, window).data) != expected:
                    raise _difference_error(self._path, window)


@contextlib.contextmanager
def open_strip_writer(path: Path, grid: Grid, profile: MapProfile) -> Iterator[MapWriter]:
    """Create a strip of a map as a plain GeoTIFF.

    Windows that are not written are no data. At the end of the block the file is read back, verified and synced to the
    disk. If the block raises, the file is removed.

    Parameters
    ----------
    grid
        Grid of the strip.
    profile
        Profile of the map. The strip has its dtype, no-data value and number of bands; `build_cog` adds the rest.

    Raises
    ------
    OutputError
        The disk is full, or the file does not read back as written.
    """
    grid = grid.subgrid(grid.full_window)  # strips of a scene without georeference have a transform, too
    with contextlib.ExitStack() as undo:
        undo.callback(path.unlink, missing_ok=True)
        limit_block_cache()
        with gdal_as_output_error(path), ignore_not_georeferenced:
            dataset = _create(path, grid, profile)
        undo.callback(_close_quietly, dataset)
        writer = MapWriter(dataset, path, grid)
        yield writer
        writer._finish()
        undo.pop_all()


def _create(path: Path, grid: Grid, profile: MapProfile) -> DatasetWriter:
    return rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=grid.height,
        width=grid.width,
        count=len(profile.band_names),
        dtype=profile.dtype,
        crs=grid.crs,
        transform=grid.transform,
        nodata=profile.nodata,
        tiled=True,
        # Windows are not aligned with blocks. Small blocks limit the bytes written twice if a block leaves GDAL's cache
        # half full. Blocks are not much higher than a strip of few rows.
        blockxsize=256,
        blockysize=min(256, -(-grid.height // 16) * 16),
        bigtiff="IF_SAFER",
        interleave="band",
        sparse_ok=True,
        # Floating-point numbers take long to compress and hardly shrink.
        **({} if profile.dtype.kind == "f" else {"compress": "DEFLATE", "zlevel": 1}),
    )


def _close_quietly(dataset: DatasetWriter) -> None:
    with contextlib.suppress(*GDAL_ERRORS, OSError):
        dataset.close()


def build_cog(
    path: PathLike,
    grid: Grid,
    profile: MapProfile,
    strips: Sequence[MapStrip],
    *,
    window: Window | None = None,
    overwrite: bool = False,
) -> None:
    """Assemble a map from its strips, as a cloud-optimised GeoTIFF on `grid`.

    The file is written under a temporary name, read back, compared with the strips pixel by pixel, and renamed. So are
    the files beside it that say what it holds (`io.side_files`). If that fails, no file is left.

    Parameters
    ----------
    strips
        They cover the rows of the map exactly once, in any order.
    window
        The part of the map that `grid` is; by default the whole map.

    Raises
    ------
    UsageError, OutputExistsError
        The map cannot be written there, or exists and `overwrite` is false.
    RasterError
        A strip cannot be opened.
    OutputError
        The disk is full, a strip is damaged, or the map does not read back as written.
    """
    target = check_output(path, overwrite=overwrite)
    is_whole, window = window is None, window or grid.full_window
    mosaic = _mosaic_vrt(window, profile, strips, is_whole=is_whole)
    # The creation option NUM_THREADS is for compression only; reading and overviews need GDAL_NUM_THREADS. GDAL keeps
    # the overviews in a file until it writes them; its default compression takes a quarter of the whole time.
    options = {"GDAL_NUM_THREADS": "ALL_CPUS", "COG_TMP_COMPRESSION": "PACKBITS"}
    with atomic_write(target) as finished, rasterio.Env(**options):
        with gdal_as_output_error(target), _open_vrt(mosaic, grid, profile) as dataset:
            rasterio.shutil.copy(
                dataset,
                finished,
                driver="COG",
                COMPRESS="DEFLATE",
                LEVEL=1,  # the default, 6, takes more than twice as long for files smaller by a seventh
                PREDICTOR="YES" if profile.overviews == "average" else "NO",  # helps with smooth values
                BLOCKSIZE=512,
                BIGTIFF="IF_SAFER",
                NUM_THREADS="ALL_CPUS",
                OVERVIEW_RESAMPLING=profile.overviews.upper(),
            )
        statistics = PixelStatistics(len(profile.band_names), profile.dtype, profile.nodata)
        _verify(finished, target, grid, strips, window, statistics)
        # GDAL may have written an .aux.xml already, for a CRS that GeoTIFF keys cannot express.
        write_side_files(finished, target, profile.tags, profile.band_names, profile.scale, statistics)
        remove_side_files(target)  # the new ones are moved here afterwards


def _mosaic_vrt(window: Window, profile: MapProfile, strips: Sequence[MapStrip], *, is_whole: bool) -> str:
    """Return the XML of a virtual raster that combines the strips of a window, or of the whole map."""
    placed, row = [], 0
    top, bottom = int(window.row_off), int(window.row_off + window.height)
    for strip in sorted(strips, key=lambda strip: strip.row):
        with open_raster(strip.path) as dataset:
            assert strip.row == row, f"{strip} does not follow row {row}"
            beyond = dataset.width - int(window.col_off + window.width)
            assert beyond == 0 if is_whole else beyond >= 0, f"{strip} is {dataset.width} pixels wide"
            row += dataset.height
        first, last = max(top, strip.row), min(bottom, row)
        if first >= last:
            continue
        size = f'xSize="{int(window.width)}" ySize="{last - first}"'
        file = f'<SourceFilename relativeToVRT="0">{escape(str(strip.path))}</SourceFilename>'
        source = f'<SrcRect xOff="{int(window.col_off)}" yOff="{first - strip.row}" {size}/>'
        placed.append((file, f'{source}<DstRect xOff="0" yOff="{first - top}" {size}/>'))
    assert row == bottom if is_whole else row >= bottom, f"strips end at row {row} of {bottom}"
    kind = typename_fwd[dtype_rev[profile.dtype.name]]
    bands = (
        # With the block size of the COG, GDAL makes overviews in larger chunks.
        f'<VRTRasterBand band="{band}" dataType="{kind}" blockXSize="512" blockYSize="512">'
        + "".join(
            f"<SimpleSource>{file}<SourceBand>{band}</SourceBand>{rectangles}</SimpleSource>"
            for file, rectangles in placed
        )
        + "</VRTRasterBand>"
        for band in range(1, len(profile.band_names) + 1)
    )
    size = f'rasterXSize="{int(window.width)}" rasterYSize="{int(window.height)}"'
    return f"<VRTDataset {size}>{''.join(bands)}</VRTDataset>"


def _open_vrt(xml: str, grid: Grid, profile: MapProfile) -> DatasetWriter:
    """Open the XML of a virtual raster, and set the metadata of the map on it in memory."""
    with ignore_not_georeferenced:
        dataset = rasterio.open(xml, "r+", driver="VRT")
        if grid.crs is not None:
            dataset.crs = grid.crs
        if grid.georeferenced:
            dataset.transform = grid.transform
    dataset.nodata = profile.nodata
    dataset.update_tags(**profile.tags)
    dataset.descriptions = profile.band_names
    # By default GDAL takes three bands of bytes for red, green and blue, and a fourth for alpha.
    dataset.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (dataset.count - 1)
    if profile.scale != 1:
        dataset.scales = (profile.scale,) * dataset.count
    if profile.colors is not None:
        dataset.write_colormap(1, {value: (*parse_color(color), 255) for value, color in profile.colors.items()})
    return dataset


def _verify(
    finished: Path,
    target: Path,
    grid: Grid,
    strips: Sequence[MapStrip],
    window: Window,
    statistics: PixelStatistics,
) -> None:
    """Compare a finished map with its strips, to find a full disk or a bad block now; gather its statistics."""
    with _as_read_back_error(target), open_raster(finished) as found:
        _check_grid(target, grid, found)
        for strip in strips:
            with open_raster(strip.path) as expected:
                top, bottom = (int(each) - strip.row for each in (window.row_off, window.row_off + window.height))
                first, last = max(0, top), min(expected.height, bottom)
                if first >= last:
                    continue
                for part in split_window(Window(window.col_off, first, window.width, last - first), 1024):
                    in_file = Window(part.col_off - window.col_off, part.row_off - top, part.width, part.height)
                    written = read_window(expected, expected.indexes, part)
                    stored = read_window(found, found.indexes, in_file)
                    if not np.array_equal(written.view(np.uint8), stored.view(np.uint8)):  # bitwise: NaN equals NaN
                        raise _difference_error(target, in_file)
                    statistics.add(stored)


def _check_grid(path: Path, grid: Grid, found: DatasetReader) -> None:
    stored = read_grid(found)
    difference = grid.describe_difference(stored)
    if difference or (stored.transform, stored.georeferenced) != (grid.transform, grid.georeferenced):
        raise OutputError(
            f"{path}: its grid changed when it was written ({difference or 'transform'}), since GeoTIFF cannot store "
            "the scene's grid; warp the scene to another CRS first"
        )


@contextlib.contextmanager
def gdal_as_output_error(path: Path) -> Iterator[None]:
    """Turn errors of GDAL and of the system into an OutputError that names the file."""
    with as_output_error(path, *GDAL_ERRORS):
        yield


@contextlib.contextmanager
def _as_read_back_error(path: Path) -> Iterator[None]:
    try:
        yield
    except RasterError as error:
        raise not_as_written(path, f"does not read back: {error}") from error


def _difference_error(path: Path, window: Window) -> OutputError:
    return not_as_written(path, f"reads back differently at {window_text(window)}")
