"""Maps as files: written part by part, each window by window, and assembled to a cloud-optimised GeoTIFF."""

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
from segkit.io.files import check_output, hindrance, staged, sync, writing_to
from segkit.io.grid import Grid
from segkit.io.raster import GDAL_ERRORS, PathLike, grid_of, open_raster, quiet, read_window, window_text


@dataclass(frozen=True)
class MapFormat:
    """What a map holds: one band of class values, a 0/1 band per class, or a band of probabilities per channel.

    Parameters
    ----------
    dtype, nodata
        Of every band. float32 with NaN is for what is not finished yet.
    band_names
        Their descriptions; one band each.
    tags
        Dataset metadata: class table, provenance.
    colors
        {value: "#rrggbb"} for the colour table of a single band.
    scale
        What a stored number is multiplied with to read it.
    overviews
        How overviews are made: "mode" for classes, "average" for numbers.
    """

    dtype: np.dtype[Any]
    nodata: float
    band_names: tuple[str, ...]
    tags: Mapping[str, str]
    colors: Mapping[int, str] | None = None
    scale: float = 1.0
    overviews: str = "mode"


@dataclass(frozen=True)
class Part:
    """Some rows of a map: a file of the map's width whose first row is the map's row `row`."""

    path: Path
    row: int


class MapWriter:
    """Takes the windows of a part in any order, each pixel at most once; made by `writing_part`."""

    def __init__(self, dataset: DatasetWriter, path: Path, grid: Grid) -> None:
        self._dataset = dataset
        self._path = path
        self._grid = grid
        self._sums: list[tuple[Window, int]] = []

    def write(self, values: NDArray[Any], window: Window) -> None:
        """Write values (bands, H, W) of a window of (H, W) pixels.

        Raises
        ------
        OutputError
            The disk is full.
        """
        stored = np.ascontiguousarray(values, dtype=self._dataset.dtypes[0])
        if stored.dtype.kind == "f":
            # Not every NaN has the bits of the one that stands for blocks that hold nothing else.
            stored = np.where(np.isnan(stored), stored.dtype.type(np.nan), stored)
        with telling(self._path):
            self._dataset.write(stored, window=window)
        self._sums.append((window, zlib.crc32(stored.data)))

    def _finish(self) -> None:
        """Close the file and compare what it holds with what was written: GDAL closes on a full disk silently.

        Raises
        ------
        OutputError
            They differ.
        """
        with telling(self._path):
            self._dataset.close()
            sync(self._path)
        with _reading_back(self._path), open_raster(self._path) as found:
            _check_grid(self._path, self._grid, found)
            for window, expected in self._sums:
                if zlib.crc32(read_window(found, found.indexes, window).data) != expected:
                    raise _differs(self._path, window)


@contextlib.contextmanager
def writing_part(path: Path, grid: Grid, form: MapFormat) -> Iterator[MapWriter]:
    """Write a part of a map as a plain GeoTIFF on `grid`, the part's own.

    Windows never written are no data. When the block ends, the file is read back and lies on the disk. When it raises,
    the file is gone. Of `form`, the file has the type, the no-data value and as many bands as there are names;
    `assemble` sees to the rest.

    Raises
    ------
    OutputError
        The disk is full, or what was written does not read back the same.
    """
    grid = grid.part(grid.whole)  # of a scene without georeference, too, a part says where it lies
    with contextlib.ExitStack() as undo:
        undo.callback(path.unlink, missing_ok=True)
        with telling(path), quiet():
            dataset = _create(path, grid, form)
        undo.callback(_abandon, dataset)
        writer = MapWriter(dataset, path, grid)
        yield writer
        writer._finish()
        undo.pop_all()


def _create(path: Path, grid: Grid, form: MapFormat) -> DatasetWriter:
    return rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=grid.height,
        width=grid.width,
        count=len(form.band_names),
        dtype=form.dtype,
        crs=grid.crs,
        transform=grid.transform,
        nodata=form.nodata,
        tiled=True,
        # Windows do not end where blocks do. Small blocks bound what is written twice when a block leaves GDAL's cache
        # half full; none is much higher than a part of few rows.
        blockxsize=256,
        blockysize=min(256, -(-grid.height // 16) * 16),
        bigtiff="IF_SAFER",
        interleave="band",
        sparse_ok=True,
        # Numbers of many bits take long to compress and hardly shrink.
        **({} if form.dtype.kind == "f" else {"compress": "DEFLATE", "zlevel": 1}),
    )


def _abandon(dataset: DatasetWriter) -> None:
    with contextlib.suppress(*GDAL_ERRORS, OSError):
        dataset.close()


def assemble(path: PathLike, grid: Grid, form: MapFormat, parts: Sequence[Part], *, overwrite: bool = False) -> None:
    """Make a map of its parts: a cloud-optimised GeoTIFF on `grid`.

    The file is made beside the target, re-opened, compared with the parts pixel by pixel, and renamed. When that
    fails, nothing is left.

    Parameters
    ----------
    parts
        They cover the grid's rows exactly once, in any order.

    Raises
    ------
    UsageError, OutputExistsError
        The target cannot be written, or is there and `overwrite` is false.
    RasterError
        A part cannot be opened.
    OutputError
        The disk is full, a part is damaged, or what was written does not read back the same.
    """
    target = check_output(path, overwrite=overwrite)
    mosaic = _vrt(grid, form, parts)
    # NUM_THREADS is for packing blocks; without this, GDAL reads them and makes overviews in one thread.
    with staged(target) as finished, rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS"):
        with telling(target), _open_vrt(mosaic, grid, form) as dataset:
            rasterio.shutil.copy(
                dataset,
                finished,
                driver="COG",
                COMPRESS="DEFLATE",
                LEVEL=1,  # the default, 6, takes more than twice as long to save a seventh
                PREDICTOR="YES" if form.overviews == "average" else "NO",  # numbers are like their neighbours
                BLOCKSIZE=512,
                BIGTIFF="IF_SAFER",
                NUM_THREADS="ALL_CPUS",
                OVERVIEW_RESAMPLING=form.overviews.upper(),
            )
        _verify(finished, target, grid, parts)
        # What lies beside an older map of this name (statistics, overviews, a mask) would be taken for the new one's.
        # The new one may come with an .aux.xml of its own: a CRS for which GeoTIFF has no keys.
        for ending in (".aux.xml", ".ovr", ".msk"):
            target.with_name(target.name + ending).unlink(missing_ok=True)


def _vrt(grid: Grid, form: MapFormat, parts: Sequence[Part]) -> str:
    """Return the XML of a virtual raster that shows parts as one map's pixels."""
    placed, row = [], 0
    for part in sorted(parts, key=lambda part: part.row):
        with open_raster(part.path) as dataset:
            size = f'xSize="{grid.width}" ySize="{dataset.height}"'
            assert (part.row, dataset.width) == (row, grid.width), f"{part} does not follow row {row}"
            row += dataset.height
        file = f'<SourceFilename relativeToVRT="0">{escape(str(part.path))}</SourceFilename>'
        rectangles = f'<SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="0" yOff="{part.row}" {size}/>'
        placed.append((file, rectangles))
    assert row == grid.height, f"parts end at row {row} of {grid.height}"
    kind = typename_fwd[dtype_rev[form.dtype.name]]
    bands = (
        # With blocks as those of the COG, GDAL makes overviews in larger pieces.
        f'<VRTRasterBand band="{band}" dataType="{kind}" blockXSize="512" blockYSize="512">'
        + "".join(
            f"<SimpleSource>{file}<SourceBand>{band}</SourceBand>{rectangles}</SimpleSource>"
            for file, rectangles in placed
        )
        + "</VRTRasterBand>"
        for band in range(1, len(form.band_names) + 1)
    )
    return f'<VRTDataset rasterXSize="{grid.width}" rasterYSize="{grid.height}">{"".join(bands)}</VRTDataset>'


def _open_vrt(xml: str, grid: Grid, form: MapFormat) -> DatasetWriter:
    """Open the XML of a virtual raster and say of it in memory what the map is to say."""
    with quiet():
        dataset = rasterio.open(xml, "r+", driver="VRT")
        if grid.crs is not None:
            dataset.crs = grid.crs
        if grid.georeferenced:
            dataset.transform = grid.transform
    dataset.nodata = form.nodata
    dataset.update_tags(**form.tags)
    dataset.descriptions = form.band_names
    # Left to itself, GDAL takes three bands of bytes for colours and a fourth for a mask of the others.
    dataset.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (dataset.count - 1)
    if form.scale != 1:
        dataset.scales = (form.scale,) * dataset.count
    if form.colors is not None:
        dataset.write_colormap(1, {value: _rgba(color) for value, color in form.colors.items()})
    return dataset


def _verify(finished: Path, target: Path, grid: Grid, parts: Sequence[Part]) -> None:
    """Compare a finished map with its parts, so that a full disk or a bad block is found now."""
    with _reading_back(target), open_raster(finished) as found:
        _check_grid(target, grid, found)
        for part in parts:
            with open_raster(part.path) as expected:
                for window in grid_of(expected).tiles(1024):
                    place = Window(window.col_off, part.row + window.row_off, window.width, window.height)
                    wanted = read_window(expected, expected.indexes, window)
                    got = read_window(found, found.indexes, place)
                    if not np.array_equal(wanted.view(np.uint8), got.view(np.uint8)):  # bit by bit: NaN is NaN
                        raise _differs(target, place)


def _check_grid(path: Path, grid: Grid, found: DatasetReader) -> None:
    own = grid_of(found)
    difference = grid.difference(own)
    if difference or (own.transform, own.georeferenced) != (grid.transform, grid.georeferenced):
        raise OutputError(
            f"{path}: what was written lies on another grid ({difference or 'transform'}); "
            "GeoTIFF cannot hold the scene's, so warp the scene to another CRS first"
        )


@contextlib.contextmanager
def telling(path: Path) -> Iterator[None]:
    """Tell what GDAL and the system say of a file that is written."""
    with writing_to(path, *GDAL_ERRORS):
        yield


@contextlib.contextmanager
def _reading_back(path: Path) -> Iterator[None]:
    try:
        yield
    except RasterError as error:
        raise OutputError(f"{path}: does not read back: {error}{hindrance(path.parent)}") from error


def _differs(path: Path, window: Window) -> OutputError:
    return OutputError(f"{path}: reads back differently at {window_text(window)}{hindrance(path.parent)}")


def _rgba(color: str) -> tuple[int, int, int, int]:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue, 255
