"""The synthetic sample landscape.

`scene` has the public function. `canvas` paints patches of land, `land_use` and `settlements` lay them out, `spectra`
has their reflectances, `sensor` simulates the images and `files` writes them.
"""
