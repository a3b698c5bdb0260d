"""Connected segments of coded pixels, and sums of values over each, from rows that are added from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Segments:
    """Segments of a scene.

    Parameters
    ----------
    number
        int64 (m,): the segment of each provisional number that `SegmentCollector.add` returned.
    code
        int64 (n,): code of each segment.
    pixels
        int64 (n,): pixels of each segment.
    sums
        float64 (V, n): sums of the values over the pixels of each segment.
    mark
        int64 (n,): the mark of each segment.
    """

    number: NDArray[np.int64]
    code: NDArray[np.int64]
    pixels: NDArray[np.int64]
    sums: NDArray[np.float64]
    mark: NDArray[np.int64]

    def find(self, provisional: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return the segment of each provisional number, -1 for -1."""
        found: NDArray[np.int64] = np.append(self.number, -1)[provisional]
        return found


class SegmentCollector:
    """Finds segments: pixels of one code that are connected through their sides, as those of polygons are.

    Memory holds some rows and a few numbers per segment.

    Parameters
    ----------
    values
        Number of values per pixel, V.
    """

    def __init__(self, values: int) -> None:
        self._values, self._count = values, 0
        self._tables: list[NDArray[np.float64]] = []
        self._links: list[NDArray[np.int64]] = []  # pairs of provisional numbers that are one segment
        self._last: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None  # codes and numbers of the last row

    def add(
        self,
        codes: NDArray[np.integer[Any]],
        values: Sequence[NDArray[Any]] = (),
        marks: NDArray[np.integer[Any]] | None = None,
    ) -> NDArray[np.int64]:
        """Add the next rows.

        Parameters
        ----------
        codes
            (H, W): codes of 0 or more; pixels with others are in no segment.
        values
            V arrays (H, W).
        marks
            (H, W): a number that is the same in all pixels of a segment; by default 0.

        Returns
        -------
        int64 (H, W): provisional number of the segment of each pixel, see `Segments.number`; -1 in no segment
        """
        numbers, size = label_segments(codes)
        inside = numbers >= 0
        flat = numbers[inside]
        first = np.zeros((2, size))
        first[0, flat] = codes[inside]
        if marks is not None:
            first[1, flat] = marks[inside]
        sums = [np.bincount(flat, minlength=size)]
        sums += [np.bincount(flat, np.asarray(each, dtype=np.float64)[inside], size) for each in values]
        self._tables.append(np.concatenate([first, np.stack(sums)]))
        numbers[inside] += self._count
        if self._last is not None:
            joined = (self._last[0] == codes[0]) & (codes[0] >= 0)
            self._links.append(np.unique(np.stack([self._last[1][joined], numbers[0][joined]]), axis=1))
        self._last = codes[-1].astype(np.int64), numbers[-1].copy()
        self._count += size
        return numbers

    def finish(self) -> Segments:
        """Return all segments, after the last row."""
        empty = np.zeros((2, 0), dtype=np.int64)
        size, number = _connect(self._count, np.concatenate([empty, *self._links], axis=1))
        table = np.concatenate([np.zeros((3 + self._values, 0)), *self._tables], axis=1)
        summed = np.stack([np.bincount(number, row, size) for row in table[2:]]).astype(np.float64)
        code, mark = np.zeros((2, size), dtype=np.int64)
        code[number], mark[number] = table[0], table[1]
        return Segments(number, code, summed[0].astype(np.int64), summed[1:], mark)


def label_segments(codes: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], int]:
    """Return the number of the segment of each pixel (H, W), -1 where a code is negative, and how many there are."""
    starts = np.ones(codes.shape, dtype=bool)
    np.not_equal(codes[:, 1:], codes[:, :-1], out=starts[:, 1:])
    run = np.cumsum(starts.ravel()).reshape(codes.shape) - 1
    # Wherever a run starts in one of two rows, it adjoins the run at that column of the other row.
    place = starts[1:] | starts[:-1]
    same = codes[1:][place] == codes[:-1][place]
    links = np.stack([run[:-1][place][same], run[1:][place][same]])
    size, component = _connect(int(run[-1, -1]) + 1, links)
    used = np.zeros(size, dtype=bool)
    used[component] = codes[starts] >= 0
    renumbered = np.where(used, np.cumsum(used) - 1, -1)
    return renumbered[component][run], int(used.sum())


def find_interior(codes: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Return the pixels whose eight neighbours have the same code, bool (H, W); those outside count as the same.

    Pixels at the border of two classes are mixed, and borders are drawn to about a pixel.
    """
    padded = np.pad(codes, 1, mode="edge")
    height, width = codes.shape
    around = (padded[row : row + height, column : column + width] for row in range(3) for column in range(3))
    same: NDArray[np.bool_] = np.logical_and.reduce([each == codes for each in around])
    return same


def _connect(size: int, links: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
    """Return the number of components of nodes 0 to `size` - 1 that links (2, n) connect, and that of each node."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(links.shape[1], dtype=bool), tuple(links)), shape=(size, size))
    number, component = connected_components(graph, directed=False)
    return int(number), component.astype(np.int64)
