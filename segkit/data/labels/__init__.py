"""Labels of a scene, read as targets.

`open` chooses the reader: `codes` (class codes and masks), `fractions` or `features` (polygons and points); `merge`
combines several sources. A new kind of label source goes here.
"""
