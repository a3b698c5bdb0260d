"""Models: the network with its normalisation and calibration, the model file, and the files of a run folder.

A new architecture or a new field of the model file goes here. Training is in `segkit.training`, prediction of whole
scenes in `segkit.inference`.
"""
