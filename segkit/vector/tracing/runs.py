"""Runs: a band of a map as stretches of equal pixels, row by row. A map has far fewer runs than pixels."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
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

# The code of pixels without data; no class may have it.
NO_DATA = -(2**31)
# Pixels that are read at once, in whole blocks of the file, and that are worked on at once.
_READ_PIXELS = 2**22
_WORK_PIXELS = 2**20
# Pixels that are compared with the ones before them in one go, which takes few instructions.
_STRETCH = 64


@dataclass(frozen=True)
class Runs:
    """Consecutive rows of a band as runs, in raster order; a run ends at the next one's start or at its row's end.

    Parameters
    ----------
    top
        The first row's number in the map.
    row
        int64 (rows + 1,): the runs of row r are number row[r] to row[r + 1]; each row has at least one.
    first
        int32 (runs,): the column where each starts.
    kind
        int32 (runs,): what its pixels are: a number from 0, or -1 for no data. Neighbours in a row differ.
    width
        Pixels in a row.
    """

    top: int
    row: NDArray[np.int64]
    first: NDArray[np.int32]
    kind: NDArray[np.int32]
    width: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.row.size - 1

    def upper(self, rows: int) -> Runs:
        """Return the first rows."""
        end = self.row[rows]
        return Runs(self.top, self.row[: rows + 1], self.first[:end], self.kind[:end], self.width)

    def lower(self, rows: int) -> Runs:
        """Return what lies below the first rows."""
        start = self.row[rows]
        return Runs(self.top + rows, self.row[rows:] - start, self.first[start:], self.kind[start:], self.width)

    def starts(self) -> NDArray[np.int64]:
        """Where each run starts in the flattened pixels of these rows."""
        return np.repeat(np.arange(self.height), np.diff(self.row)) * self.width + self.first

    def lengths(self) -> NDArray[np.int64]:
        """Pixels in each run."""
        return np.diff(self.starts(), append=self.height * self.width)


def joined(several: Sequence[Runs]) -> Runs:
    """Put rows below each other."""
    if len(several) == 1:
        return several[0]
    counts = np.concatenate([np.diff(one.row) for one in several])
    first, kind = (np.concatenate([getattr(one, name) for one in several]) for name in ("first", "kind"))
    row = np.concatenate(([0], np.cumsum(counts)))
    return Runs(several[0].top, row, first, kind, several[0].width)


class Codes:
    """Numbers the codes of a band as they turn up: kinds 0, 1, 2 and so on.

    Parameters
    ----------
    nodata
        The code that means no data, besides `NO_DATA`; None where there is none.
    meet
        Called with each new code, which is never one for no data.
    """

    def __init__(self, nodata: int | None, meet: Callable[[int], None]) -> None:
        outside = {NO_DATA} if nodata is None else {NO_DATA, nodata}
        self.known = np.array(sorted(outside), dtype=np.int32)
        self.kind = np.full(len(outside), -1, dtype=np.int32)
        self._meet = meet
        self._count = 0

    def kinds(self, codes: NDArray[np.int32]) -> NDArray[np.int32]:
        """Turn codes into kinds."""
        kinds = np.empty_like(codes)
        done = 0
        while (done := _look_up(codes, self.known, self.kind, kinds, done)) < codes.size:
            place = np.searchsorted(self.known, codes[done])
            self.known = np.insert(self.known, place, codes[done])
            self.kind = np.insert(self.kind, place, self._count)
            self._count += 1
            self._meet(int(codes[done]))
        return kinds


def read_runs(
    dataset: DatasetReader,
    band: int,
    codes: Codes,
    *,
    block: tuple[int, int] | None = None,
) -> Generator[Runs]:
    """Read a band of whole numbers as runs, from top to bottom.

    Parameters
    ----------
    codes
        Numbers what is found; made with the no-data value that `plain_nodata` gives.
    block
        Rows and columns that are read at once; by default whole rows, as many as lie in some blocks of the file. It
        does not change the result.

    Raises
    ------
    DataError
        A value is no 32-bit number.
    RasterError
        The file is damaged.
    """
    masked = plain_nodata(dataset, band) is None and MaskFlags.all_valid not in dataset.mask_flag_enums[band - 1]
    for window in strips(dataset, None if block is None else block[0]):
        columns = dataset.width if block is None else block[1]
        parts = [
            _read_codes(dataset, band, Window(left, window.row_off, min(columns, dataset.width - left), window.height),
                        masked=masked)
            for left in range(0, dataset.width, columns)
        ]  # fmt: skip
        pixels = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        for top in range(0, len(pixels), max(1, _WORK_PIXELS // dataset.width)):
            some = pixels[top : top + max(1, _WORK_PIXELS // dataset.width)]
            row, first, code = _split(some)
            yield Runs(int(window.row_off) + top, row, first, codes.kinds(code), dataset.width)


def plain_nodata(dataset: DatasetReader, band: int) -> int | None:
    """Return the value that alone says where a band has no data, None where there is none, or more than it says so."""
    value = dataset.nodatavals[band - 1]
    plain = dataset.mask_flag_enums[band - 1] == [MaskFlags.nodata] and value is not None
    return int(value) if plain and NO_DATA < value < 2**31 and value == int(value) else None


def strips(dataset: DatasetReader, height: int | None = None) -> Iterator[Window]:
    """Yield windows of whole rows that cover a raster: of `height`, or of whole blocks and some million pixels."""
    if height is None:
        block = dataset.block_shapes[0][0]
        height = max(1, _READ_PIXELS // dataset.width // block) * block
    for top in range(0, dataset.height, height):
        yield Window(0, top, dataset.width, min(height, dataset.height - top))


def _read_codes(dataset: DatasetReader, band: int, window: Window, *, masked: bool) -> NDArray[Any]:
    """Read codes, uint8 (H, W) or int32 where that does not do; a mask becomes `NO_DATA`."""
    pixels = read_window(dataset, [band], window, masked=masked)[0]
    hidden = np.ma.getmaskarray(pixels) if masked else np.zeros(0, dtype=bool)
    if pixels.dtype == np.uint8 and not hidden.any():
        return np.asarray(np.ma.getdata(pixels))
    if pixels.dtype.itemsize > 2:
        for value in (pixels.min(), pixels.max()):
            if value is not np.ma.masked and not NO_DATA < value < 2**31:
                raise DataError(
                    f"{dataset.name}: holds the code {value}; codes lie above {NO_DATA} and below {2**31}: "
                    "reclassify the map"
                )
    codes: NDArray[np.int32] = np.ma.getdata(pixels).astype(np.int32)
    if masked:
        codes[hidden] = NO_DATA
    return codes


def _split(pixels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Return where each row's runs start, and column and code of each run."""
    row = np.zeros(len(pixels) + 1, dtype=np.int64)
    # Reserved, but memory that is not written to costs nothing.
    first, code = np.empty(pixels.size, dtype=np.int32), np.empty(pixels.size, dtype=np.int32)
    pixels = np.ascontiguousarray(pixels)
    count = _split_into(pixels, pixels.view(np.uint8), row, first, code)
    return row, first[:count].copy(), code[:count].copy()


@compiled
def _split_into(pixels, raw, row, first, code):  # type: ignore[no-untyped-def]
    height, width = pixels.shape
    size = raw.shape[1] // width
    n = 0
    for r in range(height):
        line, bytes_, before = pixels[r], raw[r, size:], raw[r, :-size]
        first[n], code[n] = 0, line[0]
        n += 1
        for start in range(1, width, _STRETCH):
            end = min(start + _STRETCH, width)
            # On bytes and in their own type, which the compiler makes a few wide instructions of.
            these, those = bytes_[(start - 1) * size : (end - 1) * size], before[(start - 1) * size : (end - 1) * size]
            changes = np.uint8(0)
            for k in range(these.size):
                changes = np.uint8(changes | np.uint8(these[k] ^ those[k]))
            if changes:
                for c in range(start, end):
                    # Written either way: cheaper than a branch that is hard to foresee.
                    first[n], code[n] = c, line[c]
                    n += line[c] != line[c - 1]
        row[r + 1] = n
    return n


@compiled
def _look_up(codes, known, kind, kinds, start):  # type: ignore[no-untyped-def]
    """Fill in the kinds of codes from `start` on; return where a code is not known, or how many there are."""
    for k in range(start, codes.size):
        code = codes[k]
        low, high = 0, known.size
        while low < high:
            middle = (low + high) // 2
            if known[middle] < code:
                low = middle + 1
            else:
                high = middle
        if low == known.size or known[low] != code:
            return k
        kinds[k] = kind[low]
    return codes.size
