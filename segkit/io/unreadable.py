"""Blocks of rasters that cannot be read, and rasters of which these blocks are no data in place of an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.warp import transform
from rasterio.windows import Window

from segkit.errors import UnreadableError
from segkit.io.grid import Grid
from segkit.io.pixel_area import has_areas
from segkit.io.raster import STREAM_DRIVERS, open_again, read_grid, read_mask, read_window, window_text

Place = tuple[int, int, int, int]  # first row, first column, rows, columns
_EDGE_POINTS = 21  # of a block that are transformed to find its place on another grid
_HALF_PX_OF_ROUNDING = 0.5 - 1e-6  # so that the centre of a pixel on the edge of a block counts on one side of it


@dataclass(frozen=True, order=True)
class UnreadableBlock:
    """A block of a file that cannot be read: its place in the file, and the pixels of the scene around it."""

    file: str
    in_file: Place
    in_scene: Place


class UnreadableBlocks:
    """The blocks that could not be read in a scene, as they were found.

    Parameters
    ----------
    grid
        That of the scene.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._found: dict[UnreadableBlock, Grid] = {}

    @property
    def blocks(self) -> list[UnreadableBlock]:
        """The blocks, in the order of their files' names and places."""
        return sorted(self._found)

    def add(self, file: str, grid: Grid, block: Window) -> None:
        """Add a block of a file on a grid."""
        found = UnreadableBlock(file, _place(block), _place(_window_on(self._grid, grid, block)))
        self._found[found] = grid

    def mask(self, window: Window) -> NDArray[np.bool_] | None:
        """Return the pixels of a window of the scene whose centres lie in a block, bool (H, W); None if none does."""
        masked: NDArray[np.bool_] | None = None
        for block, grid in tuple(self._found.items()):
            part = _intersection(_window(block.in_scene), window)
            if part is None:
                continue
            masked = np.zeros((int(window.height), int(window.width)), dtype=bool) if masked is None else masked
            top, left = int(part.row_off - window.row_off), int(part.col_off - window.col_off)
            inside = _centres_inside(self._grid, part, grid, block.in_file)
            masked[top : top + int(part.height), left : left + int(part.width)] |= inside
        return masked


class PartialRaster:
    """An open raster, of which blocks that cannot be read are no data; other attributes are those of the dataset.

    A window is read by blocks only if reading it failed, or if it holds a block that is known. What fails in a remote
    file is an error: a network that is down for a moment must not become no data.

    Parameters
    ----------
    unreadable
        Where blocks that cannot be read are noted.
    """

    def __init__(self, dataset: DatasetReader, unreadable: UnreadableBlocks) -> None:
        self.dataset, self.grid = dataset, read_grid(dataset)
        self._unreadable, self._known = unreadable, set[Place]()
        self._end = dataset.height  # rows from here on cannot be read
        self._name = str(Path(dataset.name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def read(self, indexes: Sequence[int], *, window: Window, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read bands of a window inside the raster, (bands, H, W); blocks that cannot be read are no data, or 0."""
        bands = list(indexes)
        dtype = np.result_type(*(self.dataset.dtypes[band - 1] for band in bands)) if out is None else out.dtype

        def read(part: Window) -> NDArray[Any]:
            shape = len(bands), int(part.height), int(part.width)
            given = out if part is window and out is not None else np.empty(shape, dtype)
            return read_window(self.dataset, bands, part, out=given)

        whole = self._read_whole(window, read)
        if whole is not None:
            return whole
        values = np.empty((len(bands), int(window.height), int(window.width)), dtype) if out is None else out
        blank = [[[self.dataset.nodatavals[band - 1] or 0]] for band in bands]
        for place, found in self._read_blocks(bands[0], window, read):
            values[:, *place] = blank if found is None else found
        return values

    def read_masks(self, band: int, *, window: Window) -> NDArray[np.uint8]:
        """Return the mask of a band, uint8 (H, W): 0 is no data."""

        def read(part: Window) -> NDArray[np.uint8]:
            return read_mask(self.dataset, band, part)

        whole = self._read_whole(window, read)
        if whole is not None:
            return whole
        masks: NDArray[np.uint8] = np.zeros((int(window.height), int(window.width)), dtype=np.uint8)
        for place, found in self._read_blocks(band, window, read):
            masks[place] = 0 if found is None else found
        return masks

    def read_coverage(self, window: Window) -> NDArray[np.bool_]:
        """Return where no block is known that cannot be read, bool (H, W); for windows that have been read."""
        covered = np.ones((int(window.height), int(window.width)), dtype=bool)
        for block, _, place in _blocks(self.dataset.block_shapes[0], window):
            covered[place] = not self._is_known(block)
        return covered

    def require_stored_values(self) -> None:
        """Do nothing: each pixel is a pixel of one file; see `segkit.io.mosaic_dataset.MosaicDataset`."""

    def _is_known(self, block: Window) -> bool:
        return _place(block) in self._known or block.row_off >= self._end

    def _holds_known(self, window: Window) -> bool:
        below = window.row_off + window.height > self._end
        return below or any(_intersection(_window(place), window) is not None for place in self._known)

    def open_again(self) -> None:
        """Open the file again, after an error; of one stream of pixels, note what cannot be read of it."""
        self.dataset = open_again(self.dataset)
        if self.dataset.driver in STREAM_DRIVERS and self._end == self.dataset.height:
            self._end = _first_lost_row(self.dataset)
            self.dataset = open_again(self.dataset)
            self._note(Window(0, self._end, self.grid.width, self.grid.height - self._end))

    def _note(self, block: Window) -> None:
        self._known.add(_place(block))
        lost = _intersection(block, self.grid.full_window)
        if lost is not None:
            self._unreadable.add(self._name, self.grid, lost)

    def _read_whole(self, window: Window, read: Callable[[Window], NDArray[Any]]) -> NDArray[Any] | None:
        """Read a window in one piece; None if that is not possible."""
        if self._holds_known(window):
            return None
        try:
            return read(window)
        except UnreadableError:
            self.open_again()
        return None

    def _read_blocks(
        self, band: int, window: Window, read: Callable[[Window], NDArray[Any]]
    ) -> Iterator[tuple[tuple[slice, slice], NDArray[Any] | None]]:
        """Read a window block by block; yield places and what was read, None if that is not possible."""
        for block, part, place in _blocks(self.dataset.block_shapes[band - 1], window):
            found = None
            if not self._is_known(block):
                try:
                    found = read(part)
                except UnreadableError:
                    self._note(block)
                    self.open_again()
            yield place, found


@dataclass(frozen=True)
class UnreadableGround:
    """The ground of blocks that could not be read, which is no data in a map.

    Parameters
    ----------
    blocks
        Number of blocks.
    pixels, hectares
        Of the scene that they cover, each once; hectares are None if the scene has no CRS, or a local one.
    first
        File and place of the first one.
    """

    blocks: int
    pixels: int
    hectares: float | None
    first: str

    @classmethod
    def total(cls, found: Sequence[UnreadableGround]) -> UnreadableGround:
        """Sum up what was found in several scenes."""
        areas = [one.hectares for one in found if one.hectares is not None]
        return cls(
            sum(one.blocks for one in found),
            sum(one.pixels for one in found),
            sum(areas) if len(areas) == len(found) else None,
            found[0].first,
        )

    def describe(self) -> str:
        """Return number, area and first of the blocks as the subject of a sentence, with its verb."""
        area = "" if self.hectares is None else f", {self.hectares:,.2f} ha"
        blocks, verb = ("block", "is") if self.blocks == 1 else ("blocks", "are")
        return f"{self.blocks:,} unreadable {blocks} ({self.pixels:,} pixels{area}; the first: {self.first}) {verb}"

    @classmethod
    def from_blocks(cls, blocks: Iterable[UnreadableBlock], grid: Grid) -> UnreadableGround | None:
        """Sum up blocks, of which some may be given several times; None if there are none."""
        found = sorted(set(blocks))
        if not found:
            return None
        covered = list(_cover([block.in_scene for block in found]))
        return cls(
            len(found),
            sum(rows * columns for _, _, rows, columns in covered),
            sum(_hectares(grid, place) for place in covered) if has_areas(grid) else None,
            f"{found[0].file}, {window_text(_window(found[0].in_file))}",
        )


def blocks_to_json(blocks: Iterable[UnreadableBlock]) -> list[dict[str, Any]]:
    """Return blocks as a value that JSON can hold."""
    return [asdict(block) for block in blocks]


def blocks_from_json(values: Iterable[dict[str, Any]]) -> Iterator[UnreadableBlock]:
    """Yield the blocks of `blocks_to_json`."""
    for value in values:
        yield UnreadableBlock(value["file"], tuple(value["in_file"]), tuple(value["in_scene"]))


def _first_lost_row(dataset: DatasetReader) -> int:
    """Return the first row of a file just opened that cannot be read; the number of rows if all can."""
    for row in range(dataset.height):
        try:
            read_window(dataset, dataset.indexes, Window(0, row, dataset.width, 1))
        except UnreadableError:
            return row
    return int(dataset.height)


def _blocks(shape: tuple[int, int], window: Window) -> Iterator[tuple[Window, Window, tuple[slice, slice]]]:
    """Yield the blocks of a raster in a window: block, its part in the window, and the place of that in the window."""
    (height, width), (top, left, rows, columns) = shape, _place(window)
    for row in range(top // height * height, top + rows, height):
        for column in range(left // width * width, left + columns, width):
            block = Window(column, row, width, height)
            part = _intersection(block, window)
            assert part is not None
            first, start = int(part.row_off) - top, int(part.col_off) - left
            yield block, part, (slice(first, first + int(part.height)), slice(start, start + int(part.width)))


def _place(window: Window) -> Place:
    return int(window.row_off), int(window.col_off), int(window.height), int(window.width)


def _window(place: Place) -> Window:
    row, column, rows, columns = place
    return Window(column, row, columns, rows)


def _intersection(one: Window, other: Window) -> Window | None:
    """Return what two windows share; None if that is nothing."""
    (top, left, rows, columns), (second, start, more_rows, more_columns) = _place(one), _place(other)
    first, begin = max(top, second), max(left, start)
    height, width = min(top + rows, second + more_rows) - first, min(left + columns, start + more_columns) - begin
    return Window(begin, first, width, height) if height > 0 and width > 0 else None


def _window_on(grid: Grid, own: Grid, block: Window) -> Window:
    """Return the window of a grid that holds the centres of all its pixels in a block on another grid."""
    top, left, height, width = _place(block)
    along = np.linspace(0, 1, _EDGE_POINTS)
    rows, columns = (each.ravel() for each in np.meshgrid(top + along * height, left + along * width))
    rows, columns = _convert(own, grid, rows, columns)
    spans = []
    for pixels, size in ((rows, grid.height), (columns, grid.width)):
        known = pixels[np.isfinite(pixels)]
        low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
        first = int(np.clip(np.ceil(low - _HALF_PX_OF_ROUNDING), 0, size))
        last = int(np.clip(np.ceil(high - _HALF_PX_OF_ROUNDING), first, size))
        spans.append((first, last - first))
    return Window(spans[1][0], spans[0][0], spans[1][1], spans[0][1])


def _centres_inside(grid: Grid, window: Window, own: Grid, place: Place) -> NDArray[np.bool_]:
    """Return the pixels of a window of a grid whose centres lie in a block on another grid, bool (H, W)."""
    top, left, height, width = _place(window)
    columns, rows = np.meshgrid(left + 0.5 + np.arange(width), top + 0.5 + np.arange(height))
    rows, columns = _convert(grid, own, rows, columns)
    row, column, block_rows, block_columns = place
    inside = (rows >= row) & (rows < row + block_rows) & (columns >= column) & (columns < column + block_columns)
    return np.asarray(inside, dtype=bool)


def _convert(
    grid: Grid, other: Grid, rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the rows and columns in another grid of places in a grid."""
    if grid.crs == other.crs and grid.transform == other.transform:
        return rows, columns
    x, y = _apply(grid.transform, columns, rows)
    if grid.crs != other.crs:
        shape = x.shape
        x, y = (np.reshape(each, shape) for each in transform(grid.crs, other.crs, x.ravel(), y.ravel())[:2])
    columns, rows = _apply(~other.transform, x, y)
    return rows, columns


def _apply(
    affine: Affine, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f


def _cover(places: Sequence[Place]) -> Iterator[Place]:
    """Yield rectangles that do not overlap and cover the same pixels."""
    rows = np.unique([edge for row, _, height, _ in places for edge in (row, row + height)])
    columns = np.unique([edge for _, column, _, width in places for edge in (column, column + width)])
    covered = np.zeros((max(0, len(rows) - 1), max(0, len(columns) - 1)), dtype=bool)
    for row, column, height, width in places:
        first, last = np.searchsorted(rows, (row, row + height))
        start, end = np.searchsorted(columns, (column, column + width))
        covered[first:last, start:end] = True
    for (top, bottom), flags in zip(pairwise(rows.tolist()), covered, strict=True):
        for (left, right), flag in zip(pairwise(columns.tolist()), flags, strict=True):
            if flag:
                yield top, left, bottom - top, right - left


def _hectares(grid: Grid, place: Place) -> float:
    """Return the true area of a rectangle of pixels, as that of a single large pixel."""
    row, column, rows, columns = place
    shape = Affine.translation(column, row) @ Affine.scale(columns, rows)
    return float(Grid(1, 1, grid.transform @ shape, grid.crs).hectares()[0, 0])
