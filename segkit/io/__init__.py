"""Files and places: rasters, vector files, URLs, grids, areas, regions, outputs that are written whole."""
