"""Union: which regions have become one. Union-find over int32 tables, for the kernels."""

from __future__ import annotations

from segkit.vector.tracing.jit import compiled

# The column of a table that names the region of which each is a part; its own number where it is none's.
PARENT = 0


@compiled
def root(region, k):  # type: ignore[no-untyped-def]
    """Return the region that k is part of, and shorten the way there."""
    while region[k, PARENT] != k:
        region[k, PARENT] = region[region[k, PARENT], PARENT]
        k = region[k, PARENT]
    return k
