"""Operations on finished maps, whatever software made them.

`class_map` reads a map of classes and its strata; `change` compares two maps, `zonal_areas` sums areas in zones,
`cleaning` merges small regions, and `reclassification` changes classes, by a new class table (`class_changes`) and by
`rules`. A new operation on finished maps goes here.
"""
