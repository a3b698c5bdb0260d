"""Evaluation: predictions and maps compared with labels.

Metrics of pixels, boundaries and objects, bootstrap intervals, the fit of calibration and thresholds, and the worst
windows. A new metric goes here: a class that accumulates counts, added in `evaluate.evaluate_areas`.
"""
