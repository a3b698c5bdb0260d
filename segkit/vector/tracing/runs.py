"""Read a band of a map as runs of equal pixels, row by row. A map has far fewer runs than pixels."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader
from rasterio.windows import Window

from segkit.errors import DataError
from segkit.io.raster import read_window
from segkit.vector.tracing.jit import compiled

# Code of pixels without data; no class may have it.
NO_DATA = -(2**31)
# Pixels to read at once, in whole blocks of the file, and to split into runs at once.
_READ_PIXELS = 2**22
_WORK_PIXELS = 2**20
# Pixels that are compared with their left neighbours at once, in few instructions.
_COMPARED_PIXELS = 64


@dataclass(frozen=True)
class Runs:
    """Consecutive rows of a band as runs, in raster order; a run ends where the next one starts or at the row's end.

    Parameters
    ----------
    top
        Index of the first row in the map.
    row
        int64 (rows + 1,): row r has the runs row[r] to row[r + 1], at least one.
    first
        int32 (runs,): column where each run starts.
    class_index
        int32 (runs,): class of the pixels, from 0, or -1 for no data. Neighbours in a row differ.
    width
        Pixels per row.
    """

    top: int
    row: NDArray[np.int64]
    first: NDArray[np.int32]
    class_index: NDArray[np.int32]
    width: int

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.row.size - 1

    def upper(self, rows: int) -> Runs:
        """Return the first rows."""
        end = self.row[rows]
        return Runs(self.top, self.row[: rows + 1], self.first[:end], self.class_index[:end], self.width)

    def lower(self, rows: int) -> Runs:
        """Return the rows after the first `rows`."""
        start = self.row[rows]
        return Runs(self.top + rows, self.row[rows:] - start, self.first[start:], self.class_index[start:], self.width)

    def starts(self) -> NDArray[np.int64]:
        """Return the start of each run in the flattened pixels of these rows."""
        return np.repeat(np.arange(self.height), np.diff(self.row)) * self.width + self.first

    def lengths(self) -> NDArray[np.int64]:
        """Return the number of pixels of each run."""
        return np.diff(self.starts(), append=self.height * self.width)


def concatenate_runs(several: Sequence[Runs]) -> Runs:
    """Concatenate consecutive rows."""
    if len(several) == 1:
        return several[0]
    counts = np.concatenate([np.diff(one.row) for one in several])
    first, class_index = (np.concatenate([getattr(one, name) for one in several]) for name in ("first", "class_index"))
    row = np.concatenate(([0], np.cumsum(counts)))
    return Runs(several[0].top, row, first, class_index, several[0].width)


def in_parts(runs: Iterable[Runs], rows: int) -> Iterator[Runs]:
    """Yield the same rows in parts of at most `rows`."""
    for whole in runs:
        for start in range(0, whole.height, rows):
            yield whole.lower(start).upper(min(rows, whole.height - start))


class HeldRows:
    """Consecutive rows that are held back until something in them is decided."""

    def __init__(self) -> None:
        self._held: list[Runs] = []
        self.passed = 0  # rows that were released

    def add(self, runs: Runs) -> None:
        """Hold the next rows."""
        self._held.append(runs)

    def all(self) -> Runs:
        """Return all held rows; at least one must be held."""
        return concatenate_runs(self._held)

    def release(self, rows: int) -> Runs | None:
        """Return the held rows up to row `rows` of the map, and hold them no longer; None if there are none."""
        count = rows - self.passed
        if count <= 0:
            return None
        held = self.all()
        self.passed, self._held = rows, [held.lower(count)] if count < held.height else []
        return held.upper(count)


class Codes:
    """Assigns class indices 0, 1, 2, ... to the codes of a band, in the order in which they first occur.

    Parameters
    ----------
    nodata
        Code for no data besides `NO_DATA`, or None.
    on_new_code
        Called with each new code, except for no data.
    """

    def __init__(self, nodata: int | None, on_new_code: Callable[[int], None]) -> None:
        outside = {NO_DATA} if nodata is None else {NO_DATA, nodata}
        self.known_codes = np.array(sorted(outside), dtype=np.int32)
        self.class_index = np.full(len(outside), -1, dtype=np.int32)
        self._on_new_code = on_new_code
        self._count = 0

    def class_indices(self, codes: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the class index of each code."""
        class_indices = np.empty_like(codes)
        done = 0
        while (done := _look_up(codes, self.known_codes, self.class_index, class_indices, done)) < codes.size:
            position = np.searchsorted(self.known_codes, codes[done])
            self.known_codes = np.insert(self.known_codes, position, codes[done])
            self.class_index = np.insert(self.class_index, position, self._count)
            self._count += 1
            self._on_new_code(int(codes[done]))
        return class_indices


def read_runs(
    dataset: DatasetReader,
    band: int,
    codes: Codes,
    *,
    block: tuple[int, int] | None = None,
) -> Generator[Runs]:
    """Read an integer band as runs, from top to bottom.

    Parameters
    ----------
    codes
        Assigns class indices; must be created with the no-data value that `plain_nodata` returns.
    block
        Rows and columns to read at once; by default whole rows of several blocks of the file. This does not change the
        result.

    Raises
    ------
    DataError
        A value does not fit into 32 bits.
    RasterError
        The file is damaged.
    """
    masked = plain_nodata(dataset, band) is None and MaskFlags.all_valid not in dataset.mask_flag_enums[band - 1]
    for window in iter_strips(dataset, None if block is None else block[0]):
        columns = dataset.width if block is None else block[1]
        parts = [
            _read_codes(dataset, band, Window(left, window.row_off, min(columns, dataset.width - left), window.height),
                        masked=masked)
            for left in range(0, dataset.width, columns)
        ]  # fmt: skip
        pixels = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        for top in range(0, len(pixels), max(1, _WORK_PIXELS // dataset.width)):
            part = pixels[top : top + max(1, _WORK_PIXELS // dataset.width)]
            row, first, code = _split(part)
            yield Runs(int(window.row_off) + top, row, first, codes.class_indices(code), dataset.width)


def plain_nodata(dataset: DatasetReader, band: int) -> int | None:
    """Return the no-data value of a band if nothing else (mask, alpha) marks no data; otherwise None."""
    value = dataset.nodatavals[band - 1]
    plain = dataset.mask_flag_enums[band - 1] == [MaskFlags.nodata] and value is not None
    return int(value) if plain and NO_DATA < value < 2**31 and value == int(value) else None


def iter_strips(dataset: DatasetReader, height: int | None = None) -> Iterator[Window]:
    """Yield windows of whole rows that cover a raster, with `height` rows or whole blocks of about 4 million pixels."""
    if height is None:
        block = dataset.block_shapes[0][0]
        height = max(1, _READ_PIXELS // dataset.width // block) * block
    for top in range(0, dataset.height, height):
        yield Window(0, top, dataset.width, min(height, dataset.height - top))


def _read_codes(dataset: DatasetReader, band: int, window: Window, *, masked: bool) -> NDArray[Any]:
    """Read codes as uint8 (H, W) if possible, otherwise int32; masked pixels become `NO_DATA`."""
    pixels = read_window(dataset, [band], window, masked=masked)[0]
    hidden = np.ma.getmaskarray(pixels) if masked else np.zeros(0, dtype=bool)
    if pixels.dtype == np.uint8 and not hidden.any():
        return np.asarray(np.ma.getdata(pixels))
    if pixels.dtype.itemsize > 2:
        for value in (pixels.min(), pixels.max()):
            if value is not np.ma.masked and not NO_DATA < value < 2**31:
                raise DataError(
                    f"{dataset.name}: has the value {value}; values must lie above {NO_DATA} and below {2**31}: "
                    "reclassify the map"
                )
    codes: NDArray[np.int32] = np.ma.getdata(pixels).astype(np.int32)
    if masked:
        codes[hidden] = NO_DATA
    return codes


def _split(pixels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Return the start of each row's runs, and column and code of each run."""
    row = np.zeros(len(pixels) + 1, dtype=np.int64)
    # Allocated memory that is never written to is free.
    first, code = np.empty(pixels.size, dtype=np.int32), np.empty(pixels.size, dtype=np.int32)
    pixels = np.ascontiguousarray(pixels)
    count = _split_into(pixels, pixels.view(np.uint8), row, first, code)
    return row, first[:count].copy(), code[:count].copy()


@compiled
def _split_into(pixels, raw, row, first, code):
    height, width = pixels.shape
    size = raw.shape[1] // width
    n = 0
    for r in range(height):
        line, bytes_, before = pixels[r], raw[r, size:], raw[r, :-size]
        first[n], code[n] = 0, line[0]
        n += 1
        for start in range(1, width, _COMPARED_PIXELS):
            end = min(start + _COMPARED_PIXELS, width)
            # Bytes compared as bytes: the compiler turns this into a few SIMD instructions.
            these, those = bytes_[(start - 1) * size : (end - 1) * size], before[(start - 1) * size : (end - 1) * size]
            changes = np.uint8(0)
            for k in range(these.size):
                changes = np.uint8(changes | np.uint8(these[k] ^ those[k]))
            if changes:
                for c in range(start, end):
                    # Always write: cheaper than a branch that is hard to predict.
                    first[n], code[n] = c, line[c]
                    n += line[c] != line[c - 1]
        row[r + 1] = n
    return n


@compiled
def _look_up(codes, known_codes, class_index, class_indices, start):
    """Fill in the class indices of codes from `start` on; return the index of the first unknown code, or the size."""
    for k in range(start, codes.size):
        code = codes[k]
        low, high = 0, known_codes.size
        while low < high:
            middle = (low + high) // 2
            if known_codes[middle] < code:
                low = middle + 1
            else:
                high = middle
        if low == known_codes.size or known_codes[low] != code:
            return k
        class_indices[k] = class_index[low]
    return codes.size


@compiled
def read_pixels(row, first, class_index, top, width, left, upper, columns, rows):
    """Return the class indices of a window of runs, int32 (rows, columns); -1 where there are no pixels."""
    pixels = np.full((rows, columns), -1, dtype=np.int32)
    for r in range(max(0, top - upper), min(rows, top + row.size - 1 - upper)):
        low, high = row[upper + r - top], row[upper + r - top + 1]
        k = low + np.searchsorted(first[low:high], max(left, 0), side="right") - 1
        while k < high and first[k] < left + columns:
            after = first[k + 1] if k + 1 < high else width
            for c in range(max(first[k] - left, 0), min(after - left, columns)):
                pixels[r, c] = class_index[k]
            k += 1
    return pixels
