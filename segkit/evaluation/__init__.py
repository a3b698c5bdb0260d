"""How good decisions are: metrics, boundaries, objects, calibration, intervals, the worst windows."""
