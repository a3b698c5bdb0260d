"""Figures: charts of numbers, and images of pixels and classes."""
