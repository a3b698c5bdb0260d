"""Training: losses, the Lightning module and its callbacks, comparison of recipes, and a per-pixel baseline.

A new loss is a function and a row in `losses.LOSSES`; a schedule or an optimiser goes into `module`.
"""
