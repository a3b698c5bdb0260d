"""Trace the pixels of a map to polygons: runs, arcs shared by neighbours, rings.

Functions that process single pixels, corners or vertices are compiled by numba (`jit`). `pipeline` calls all steps.
A change of the traced geometry or of its measures goes here.
"""
