"""Prediction: from a scene to a map, window by window, in bands of rows, with a journal of finished bands.

Changes to tiling, blending, precision, raster outputs, resuming and schedulers go here.
"""
