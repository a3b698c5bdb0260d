"""Labels of a scene: rasters of codes or fractions, and polygons, read as target planes."""
