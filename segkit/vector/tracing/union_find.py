"""Union-find over int32 tables of regions, for compiled functions."""

from __future__ import annotations

from segkit.vector.tracing.jit import compiled

# Column with the parent of a region; a root is its own parent.
PARENT = 0


@compiled
def root(region, k):
    """Return the root of region k, and shorten the path to it."""
    while region[k, PARENT] != k:
        region[k, PARENT] = region[region[k, PARENT], PARENT]
        k = region[k, PARENT]
    return k
