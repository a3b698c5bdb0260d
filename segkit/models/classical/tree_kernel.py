"""Follow pixels through decision trees, compiled by numba."""

from __future__ import annotations

import numpy as np

from segkit.vector.tracing.jit import compiled

NODE = np.dtype([("feature", np.int32), ("threshold", np.float32), ("low", np.int32), ("high", np.int32)])


@compiled
def sum_leaves(features, nodes, roots, values, sums):
    """Add the values of the leaves that pixels reach to `sums`, in the order of the trees.

    Parameters
    ----------
    features
        float32 (n, F).
    nodes
        `NODE` (M): a pixel goes to `low` if its feature is at most the threshold, else to `high`; numbers below 0 are
        leaves, -1 - leaf.
    roots
        int32 (trees).
    values
        float64 (leaves, K).
    sums
        float64 (n, K), changed.
    """
    for root in roots:
        for pixel in range(len(features)):
            at = root
            while at >= 0:
                node = nodes[at]
                at = node.low if features[pixel, node.feature] <= node.threshold else node.high
            leaf = -1 - at
            for category in range(values.shape[1]):
                sums[pixel, category] += values[leaf, category]
