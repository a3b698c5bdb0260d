"""From the pixels of a map to polygons: runs, arcs shared by neighbours, rings; compiled by numba."""
