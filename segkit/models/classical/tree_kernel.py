"""Follow pixels through decision trees, compiled by numba."""

from __future__ import annotations

import numba
import numpy as np

from segkit.vector.tracing.jit import compiled

NODE = np.dtype([("feature", np.int32), ("threshold", np.float32), ("low", np.int32), ("high", np.int32)])
LANES = 8  # pixels that go down a tree side by side


@numba.njit(inline="always", error_model="numpy")
def _step(nodes, pixels, pixel, at):
    """Return the child to which a pixel goes; computed without a branch, which processors could not predict."""
    node = nodes[at]
    goes_high = np.int32(pixels[pixel, node.feature] > node.threshold)
    return np.int32(node.low + goes_high * (node.high - node.low))


@compiled
def sum_leaves(pixels, nodes, roots, values, sums):
    """Add the values of the leaves that pixels reach to `sums`, in the order of the trees.

    Eight pixels go down a tree side by side, each in a variable of its own: while the node of one comes from memory,
    the others go on. That takes less than half the time of one pixel after the other.

    Parameters
    ----------
    pixels
        float32 (n, F); n is a multiple of `LANES`.
    nodes
        `NODE` (M + leaves): a pixel goes to `low` if its feature is at most the threshold, else to `high`. The leaves
        come last, and lead to themselves.
    roots
        int32 (trees).
    values
        float64 (leaves, K).
    sums
        float64 (n, K), changed.
    """
    first = len(nodes) - len(values)
    for root in roots:
        for p in range(0, len(pixels), LANES):
            a = b = c = d = e = f = g = h = np.int32(root)
            moved = np.int32(1)
            while moved != 0:
                a_, b_ = _step(nodes, pixels, p, a), _step(nodes, pixels, p + 1, b)
                c_, d_ = _step(nodes, pixels, p + 2, c), _step(nodes, pixels, p + 3, d)
                e_, f_ = _step(nodes, pixels, p + 4, e), _step(nodes, pixels, p + 5, f)
                g_, h_ = _step(nodes, pixels, p + 6, g), _step(nodes, pixels, p + 7, h)
                moved = (a ^ a_) | (b ^ b_) | (c ^ c_) | (d ^ d_) | (e ^ e_) | (f ^ f_) | (g ^ g_) | (h ^ h_)
                a, b, c, d, e, f, g, h = a_, b_, c_, d_, e_, f_, g_, h_
            for k in range(values.shape[1]):
                sums[p, k] += values[a - first, k]
                sums[p + 1, k] += values[b - first, k]
                sums[p + 2, k] += values[c - first, k]
                sums[p + 3, k] += values[d - first, k]
                sums[p + 4, k] += values[e - first, k]
                sums[p + 5, k] += values[f - first, k]
                sums[p + 6, k] += values[g - first, k]
                sums[p + 7, k] += values[h - first, k]
