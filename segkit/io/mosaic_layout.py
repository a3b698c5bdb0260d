"""The layout of a mosaic: which files lie where on its grid, and what they declare."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from segkit.errors import DataError, GridError, RasterError, UsageError, suggest
from segkit.io.grid import Grid
from segkit.io.raster import GDAL_ERRORS, current_version, open_raster, read_grid
from segkit.io.remote import Remote

# The tags of a map that decide what its values mean.
_CLASS_TAGS = ("segkit_type", "segkit_classes")


@dataclass(frozen=True)
class MosaicTile:
    """A file of a mosaic: where it lies, and what it declares.

    Parameters
    ----------
    path, grid
        The file and its own grid.
    window
        Its place in the grid of the mosaic. A file on another grid is enclosed by it.
    resampled
        Whether the file is on another grid.
    dtypes, nodatavals, mask_flags, scales, offsets, descriptions, alpha
        Of each band, as rasterio gives them; `alpha` says whether GDAL takes the band for a mask.
    block_rows
        Height of the blocks in which it is stored.
    tags
        Those of the dataset.
    files
        All files that GDAL reads for it: itself, masks, headers.
    """

    path: Path
    grid: Grid
    window: Window
    resampled: bool
    dtypes: tuple[str, ...]
    nodatavals: tuple[float | None, ...]
    mask_flags: tuple[tuple[MaskFlags, ...], ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    descriptions: tuple[str | None, ...]
    alpha: tuple[bool, ...]
    block_rows: int
    tags: dict[str, str]
    files: tuple[Path, ...]

    @classmethod
    def from_dataset(cls, path: Path, dataset: DatasetReader) -> MosaicTile:
        """Describe an open file; it is the only one of its mosaic yet."""
        grid = read_grid(dataset)
        if not grid.has_location:
            raise GridError(
                f"{path}: has no georeference, so its place beside the other files is unknown; give it one "
                "(gdal_translate -a_srs -a_ullr)"
            )
        return cls(
            path,
            grid,
            grid.full_window,
            False,
            tuple(dataset.dtypes),
            tuple(dataset.nodatavals),
            tuple(map(tuple, dataset.mask_flag_enums)),
            tuple(dataset.scales),
            tuple(dataset.offsets),
            tuple(dataset.descriptions),
            tuple(kind == ColorInterp.alpha for kind in dataset.colorinterp),
            dataset.block_shapes[0][0],
            dict(dataset.tags()),
            (path,) if isinstance(path, Remote) else tuple(map(Path, dataset.files)),
        )


@dataclass(frozen=True)
class MosaicLayout:
    """The files of a mosaic on its grid; made by `read_layout`.

    Parameters
    ----------
    name
        Of the mosaic, for messages.
    grid
        The smallest grid that holds all files, in rows and columns of the first one.
    tiles
        In the order of the files.
    overlap
        Which file a pixel of several files is from: "first", "last", or "mean" of all; None if files do not overlap.
    """

    name: str
    grid: Grid
    tiles: tuple[MosaicTile, ...]
    overlap: str | None

    @functools.cached_property
    def _spans(self) -> NDArray[np.int64]:
        return _spans(self.tiles)

    @functools.cached_property
    def is_covered(self) -> bool:
        """Whether every pixel of the grid is in a file."""
        tops, bottoms, lefts, rights = self._spans.T
        tops, bottoms = (np.clip(each, 0, self.grid.height) for each in (tops, bottoms))
        lefts, rights = (np.clip(each, 0, self.grid.width) for each in (lefts, rights))
        if min(tops) > 0 or min(lefts) > 0 or max(bottoms) < self.grid.height or max(rights) < self.grid.width:
            return False
        rows = np.unique([*tops, *bottoms])
        columns = np.unique([*lefts, *rights])
        covered = np.zeros((len(rows) - 1, len(columns) - 1), dtype=bool)
        starts = np.searchsorted(rows, tops), np.searchsorted(rows, bottoms)
        across = np.searchsorted(columns, lefts), np.searchsorted(columns, rights)
        for top, bottom, left, right in zip(*starts, *across, strict=True):
            covered[top:bottom, left:right] = True
        return bool(covered.all())

    @property
    def is_resampled(self) -> bool:
        """Whether a file is on another grid."""
        return any(tile.resampled for tile in self.tiles)

    def find(self, window: Window) -> list[int]:
        """Return the indexes of the files that intersect a window; the file to take comes first."""
        top, left = int(window.row_off), int(window.col_off)
        bottom, right = top + int(window.height), left + int(window.width)
        tops, bottoms, lefts, rights = self._spans.T
        found = np.flatnonzero((tops < bottom) & (bottoms > top) & (lefts < right) & (rights > left)).tolist()
        return found[::-1] if self.overlap == "last" else found

    def common(self, key: str, what: str) -> Any:
        """Return what all files declare alike.

        Parameters
        ----------
        key, what
            Attribute of `MosaicTile`, and its name in the message.

        Raises
        ------
        RasterError
            Two files declare different values.
        """
        first = self.tiles[0]
        expected = getattr(first, key)
        for tile in self.tiles[1:]:
            if (value := getattr(tile, key)) != expected and repr(value) != repr(expected):  # NaN is NaN
                raise RasterError(
                    f"{first.path} has the {what} {_list(expected)}, {tile.path} {_list(value)}; files of one mosaic "
                    "must agree in this: convert one of them (gdal_translate)"
                )
        return expected


def tile_part(tile: MosaicTile, window: Window) -> tuple[Window, tuple[slice, slice]]:
    """Return the intersection of a file with a window of the mosaic: in the file, and as slices of the window."""
    place = tile.window
    top, left = max(window.row_off, place.row_off), max(window.col_off, place.col_off)
    bottom = min(window.row_off + window.height, place.row_off + place.height)
    right = min(window.col_off + window.width, place.col_off + place.width)
    height, width = int(bottom - top), int(right - left)
    row, column = int(top - window.row_off), int(left - window.col_off)
    in_file = Window(int(left - place.col_off), int(top - place.row_off), width, height)
    return in_file, (slice(row, row + height), slice(column, column + width))


def read_layout(
    name: str, files: Sequence[Path], overlap: str | None, *, resample: bool, vrt: bool | None
) -> MosaicLayout:
    """Open all files once and lay them out; the result is cached until a file changes.

    Parameters
    ----------
    name
        Of the mosaic, for messages.
    overlap
        As in `MosaicLayout`; None refuses files that overlap.
    resample
        Whether files may be on another grid than the first one.
    vrt
        As for `open_raster`.

    Raises
    ------
    GridError
        A file has no georeference, is on another grid, or overlaps with another one, and this is not allowed.
    RasterError
        A file cannot be read, or has other bands than the first one.
    """
    versions = tuple(_version(file) for file in files)
    return _read_layout(name, tuple(files), versions, overlap, resample, vrt)


def _version(file: Path) -> str:
    if isinstance(file, Remote):
        return current_version(file)
    try:
        facts = file.stat()
    except OSError:
        return ""  # opening it raises the error
    return f"{facts.st_size} {facts.st_mtime_ns}"


@functools.lru_cache(maxsize=32)
def _read_layout(
    name: str,
    files: tuple[Path, ...],
    versions: tuple[str, ...],  # a part of the key
    overlap: str | None,
    resample: bool,
    vrt: bool | None,
) -> MosaicLayout:
    found: list[MosaicTile] = []
    for file in files:
        with open_raster(file, vrt=vrt) as dataset:
            found.append(MosaicTile.from_dataset(file, dataset))
        _check_bands(found[0], found[-1])
    placed = [_place(found[0], tile, resample=resample) for tile in found]
    tops, bottoms, lefts, rights = _spans(placed).T
    top, left = int(tops.min()), int(lefts.min())
    # The transform of the file in the corner is exact; that of another one, moved, may differ in the last digits.
    corner = next(
        (tile for tile in placed if (tile.window.row_off, tile.window.col_off) == (top, left) and not tile.resampled),
        None,
    )
    moved = found[0].grid.transform @ Affine.translation(left, top)
    grid = Grid(
        int(bottoms.max()) - top,
        int(rights.max()) - left,
        moved if corner is None else corner.grid.transform,
        found[0].grid.crs,
    )
    layout = MosaicLayout(name, grid, tuple(_move(tile, -left, -top) for tile in placed), overlap)
    if overlap is None:
        _refuse_overlap(layout)
    return layout


def _check_bands(first: MosaicTile, tile: MosaicTile) -> None:
    """Raise a RasterError if a file has other bands than the first one, or other classes."""
    if len(tile.dtypes) != len(first.dtypes):
        raise RasterError(
            f"{first.path} has {len(first.dtypes)} bands, {tile.path} {len(tile.dtypes)}; files of one mosaic have the "
            "same bands: select them (gdal_translate -b), or leave the file out"
        )
    for band, (name, other) in enumerate(zip(first.descriptions, tile.descriptions, strict=True), 1):
        if name and other and name != other:
            raise RasterError(
                f"band {band} is {name} in {first.path}, but {other} in {tile.path}; files of one mosaic have the same "
                "bands in the same order: reorder them (gdal_translate -b), or leave the file out"
            )
    if tile.alpha != first.alpha:
        raise RasterError(
            f"{first.path} and {tile.path} differ in which bands are marked as alpha, which masks others; mark them "
            "alike (gdal_edit.py -colorinterp_N gray)"
        )
    if any(tile.tags.get(key) != first.tags.get(key) for key in _CLASS_TAGS):
        raise DataError(
            f"{first.path} and {tile.path} list different classes; maps of one mosaic have the same classes: predict "
            "both with one model"
        )


def _place(first: MosaicTile, tile: MosaicTile, *, resample: bool) -> MosaicTile:
    """Return a file with its window in rows and columns of the first one, which may be negative."""
    difference, column, row = _offset(first.grid, tile.grid)
    if difference is None:
        return replace(tile, window=Window(column, row, tile.grid.width, tile.grid.height))
    if first.grid.crs is None or tile.grid.crs is None:
        raise GridError(
            f"{tile.path} is not on the grid of {first.path} ({difference}), and one of them has no CRS, so it cannot "
            "be resampled; give both the same georeference"
        )
    if not resample:
        raise GridError(
            f"{tile.path} is not on the grid of {first.path} ({difference}); a mosaic has one grid"
            + suggest("warp it (gdalwarp -tap)", "set data.resample: true")
        )
    return replace(tile, window=_enclose(first, tile), resampled=True)


def _move(tile: MosaicTile, columns: int, rows: int) -> MosaicTile:
    place = tile.window
    moved = Window(int(place.col_off) + columns, int(place.row_off) + rows, place.width, place.height)
    return replace(tile, window=moved)


def _offset(grid: Grid, other: Grid) -> tuple[str | None, int, int]:
    """Return how the pixels of two grids differ (None: they are the same pixels), and the other's column and row."""
    column, row = ~grid.transform @ (other.transform @ (0, 0))
    shift = Affine.translation(round(column), round(row))
    moved = Grid(other.height, other.width, grid.transform @ shift, grid.crs)
    difference = moved.describe_difference(other)
    if difference is not None and moved.crs == other.crs:
        size, theirs = (" x ".join(f"{side:.10g}" for side in one.pixel_size) for one in (grid, other))
        if size != theirs:
            difference = f"pixels of {size} against {theirs}"
        elif (column - round(column), row - round(row)) != (0, 0):
            difference = f"shifted by {column - round(column):.3g} columns and {row - round(row):.3g} rows"
    return difference, round(column), round(row)


def _enclose(first: MosaicTile, tile: MosaicTile) -> Window:
    """Return the window of the first file's grid that encloses a file in another CRS, or of other pixels."""
    grid = tile.grid
    try:
        bounds = transform_bounds(grid.crs, first.grid.crs, *grid.bounds)
    except GDAL_ERRORS as error:
        raise GridError(f"{tile.path}: has no place in the CRS of {first.path} ({error}); leave it out") from error
    if bounds[0] > bounds[2]:
        raise GridError(
            f"{tile.path}: crosses the antimeridian, so in the CRS of {first.path} it has two places; name a file in "
            "another CRS first, or leave it out"
        )
    corners = [~first.grid.transform @ (x, y) for x in bounds[::2] for y in bounds[1::2]]
    if not np.isfinite(corners).all():
        raise GridError(f"{tile.path}: has no place in the CRS of {first.path}; leave it out")
    columns, rows = zip(*corners, strict=True)
    left, top = math.floor(min(columns)), math.floor(min(rows))
    return Window(left, top, math.ceil(max(columns)) - left, math.ceil(max(rows)) - top)


def _spans(tiles: Sequence[MosaicTile]) -> NDArray[np.int64]:
    """Return (first row, last row + 1, first column, last column + 1) of each file."""
    windows = [tile.window for tile in tiles]
    return np.array(
        [(w.row_off, w.row_off + w.height, w.col_off, w.col_off + w.width) for w in windows], dtype=np.int64
    )


def find_overlaps(layout: MosaicLayout, among: Sequence[int] | None = None) -> Iterator[tuple[int, int]]:
    """Yield pairs of files that share pixels; `among` limits them to some files."""
    indexes = np.arange(len(layout.tiles)) if among is None else np.array(among, dtype=np.int64)
    spans = layout._spans[indexes]
    for place, (top, bottom, left, right) in enumerate(spans):
        others = spans[place + 1 :]
        meets = (others[:, 0] < bottom) & (others[:, 1] > top) & (others[:, 2] < right) & (others[:, 3] > left)
        for other in np.flatnonzero(meets):
            yield int(indexes[place]), int(indexes[place + 1 + other])


def _refuse_overlap(layout: MosaicLayout) -> None:
    pairs = list(itertools.islice(find_overlaps(layout), 1))
    if not pairs:
        return
    one, other = (layout.tiles[index] for index in pairs[0])
    shared, _ = tile_part(one, other.window)
    raise UsageError(
        f"{one.path} and {other.path} overlap by {int(shared.width)} x {int(shared.height)} pixels; say which to take"
        + suggest("add --mosaic-overlap first, last or mean", "set overlap beside mosaic in data.train (or data.val)")
    )


def _list(values: Sequence[Any]) -> str:
    distinct = list(dict.fromkeys(map(_name, values)))
    return ", ".join(distinct)


def _name(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)
