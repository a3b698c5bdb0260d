"""Files and geometry: rasters, vector files, URLs, grids, areas and regions, and outputs that are complete or absent.

Drivers, URL schemes, vector formats that are read, and checks of paths go here. Nothing here knows models or tasks.
"""
