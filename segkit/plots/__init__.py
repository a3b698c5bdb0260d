"""Figures: charts of scores and areas, and images of scenes, labels and maps.

`charts`, `area_bars` and `training_curves` draw charts in the common `style`; `images` draws pixels; `text` formats
numbers and names for all output that people read. A new figure goes here.
"""
