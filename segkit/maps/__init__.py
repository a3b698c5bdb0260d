"""Operations on finished maps, whatever software made them.

`class_map` reads a map of classes and its strata; `change` compares two maps. A new operation on finished maps, such as
zonal areas or reclassification, goes here.
"""
