"""Writers of vector files.

`writer` has the table of formats and writes, verifies and renames files. `ogr`, `geoparquet` and `geojson` each write
one family of formats, given a `base.FileSpec`. `qgis_style` writes the QGIS style.
"""
