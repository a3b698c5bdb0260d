"""Exact distances of many pixels to the nearest of a few."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# A tree skips most pixels if there are few bands: with 3 bands it is ten times as fast as a matrix product of all, with
# 60 to 80 bands both are equal, and with 224 bands (EnMAP) it takes twice as long (tools/bench_applicability.py).
_MAX_TREE_BANDS = 64
_CHUNK_PIXELS = 2**11  # of a matrix product
_MAX_DIFFERENCE = 1e15  # squares of 1,000 bands fit into float32


class NearestPixels:
    """Distances to the nearest of some pixels.

    The distance of a pixel does not depend on the pixels that are asked for with it, nor on the number of threads.

    Parameters
    ----------
    pixels
        (m, C); at least one.
    """

    def __init__(self, pixels: NDArray[np.float64]) -> None:
        from scipy.spatial import KDTree

        self._pixels = np.ascontiguousarray(pixels)
        self._tree = KDTree(self._pixels) if pixels.shape[1] <= _MAX_TREE_BANDS else None
        self._mean = self._pixels.mean(axis=0)
        centred = (self._pixels - self._mean).astype(np.float32)
        self._factors, self._squares = np.ascontiguousarray(-2 * centred.T), (centred**2).sum(axis=1)
        self._length = float(np.sqrt(self._squares.max()))

    def distance(self, pixels: NDArray[np.float64], threads: int = 1) -> NDArray[np.float64]:
        """Return the Euclidean distance of each of some pixels (n, C) to the nearest one, float64 (n).

        Parameters
        ----------
        threads
            Of the search with few bands; with many, numpy decides.
        """
        if self._tree is not None:
            found: NDArray[np.float64] = self._tree.query(pixels, workers=threads)[0]
            return found
        starts = range(0, len(pixels), _CHUNK_PIXELS)
        chunks = [self._search_all(pixels[start : start + _CHUNK_PIXELS]) for start in starts]
        return np.concatenate(chunks) if chunks else np.zeros(0)

    def _search_all(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rank all distances by |x - p|^2 - |x|^2 = |p|^2 - 2 x p, and compute the smallest one in float64.

        The last bits of a matrix product depend on its shape and the threads. So all pixels that may be the nearest
        one are computed: those whose rank differs by less than the rounding errors of a scalar product (Higham 2002,
        "Accuracy and Stability of Numerical Algorithms", section 3.1).
        """
        # Clipping concerns values so far away that all distances are equal in float64.
        centred = (pixels - self._mean).clip(-_MAX_DIFFERENCE, _MAX_DIFFERENCE).astype(np.float32)
        ranks = centred @ self._factors
        ranks += self._squares
        error = np.finfo(np.float32).eps * (pixels.shape[1] + 4)
        length = np.sqrt(np.einsum("nc,nc->n", centred, centred)) + self._length
        candidates = ranks <= (ranks.min(axis=1) + 2 * error * length**2)[:, None]
        smallest = np.full(len(pixels), np.inf)
        left = np.arange(len(pixels))
        while len(left):  # mostly once: nearly every pixel has one candidate
            nearest = candidates[left].argmax(axis=1)
            squares = ((pixels[left] - self._pixels[nearest]) ** 2).sum(axis=1)
            smallest[left] = np.minimum(smallest[left], squares)
            candidates[left, nearest] = False
            left = left[candidates[left].any(axis=1)]
        distances: NDArray[np.float64] = np.sqrt(smallest)
        return distances
