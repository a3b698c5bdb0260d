"""Finished maps: their classes and pixels, and the change between two of them."""
